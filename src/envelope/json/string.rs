//! JSON strings: written from text, and read back as text.

use std::borrow::Cow;

/// Appends `value` as a JSON string, with its quotes.
pub fn write_string(out: &mut Vec<u8>, value: &str) {
    out.push(b'"');
    write_escaped(out, value.as_bytes());
    out.push(b'"');
}

/// Like [`write_string`], cut to at most `max` characters; what was cut ends in `...`.
pub fn write_string_cut(out: &mut Vec<u8>, value: &str, max: usize) {
    let kept = cut(value, max);
    out.push(b'"');
    write_escaped(out, kept.as_bytes());
    if kept.len() < value.len() {
        out.extend_from_slice(b"...");
    }
    out.push(b'"');
}

/// All of `value`, or so much of it that three dots still fit into `max` characters.
fn cut(value: &str, max: usize) -> &str {
    // No more characters than bytes: a short text is not counted.
    if value.len() <= max || value.char_indices().nth(max).is_none() {
        return value;
    }
    let end = value.char_indices().nth(max.saturating_sub(3));
    end.and_then(|(at, _)| value.get(..at)).unwrap_or(value)
}

/// Eight bytes at a step, copied before they are looked at: JSON inside of a string has a quote every few bytes, and a search
/// and a copy for each of the pieces between them costs twice as much.
fn write_escaped(out: &mut Vec<u8>, value: &[u8]) {
    out.reserve(value.len());
    let mut rest = value;
    while let Some((chunk, behind)) = rest.split_first_chunk::<8>() {
        out.extend_from_slice(chunk);
        let word = u64::from_le_bytes(*chunk);
        let flags = special(word);
        if flags == 0 {
            rest = behind;
            continue;
        }
        let plain = flags.trailing_zeros() as usize / 8;
        out.truncate(out.len() - 8 + plain);
        match (word >> (8 * plain)) as u8 {
            quote @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', quote]),
            control => write_control(out, control),
        }
        rest = rest.get(plain + 1..).unwrap_or_default();
    }
    for byte in rest {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            0..0x20 => write_control(out, *byte),
            plain => out.push(*plain),
        }
    }
}

#[cold]
fn write_control(out: &mut Vec<u8>, byte: u8) {
    match byte {
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        _ => {
            let digit = |nibble: u8| char::from_digit(nibble.into(), 16).map_or(b'0', |c| c as u8);
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
        }
    }
}

/// The text of the JSON string `json`; `None` if it is none, or holds half of a surrogate pair.
pub fn text(json: &[u8]) -> Option<Cow<'_, str>> {
    let inner = json.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if find_special(inner, 0) == inner.len() {
        return std::str::from_utf8(inner).ok().map(Cow::Borrowed);
    }
    serde_json::from_slice::<String>(json).ok().map(Cow::Owned)
}

/// Where the string whose content begins at `from` has its closing quote; the length, if it has none.
pub(super) fn end(json: &[u8], from: usize) -> usize {
    let mut at = find_special(json, from);
    while json.get(at) == Some(&b'\\') {
        at = find_special(json, at + 2);
    }
    at
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Flags the bytes of a word, the first in the lowest, that are quotes, backslashes or control characters.
///
/// Of the flags that the subtractions set, the lowest is exact: only a borrow from a lower byte that is flagged itself can
/// set one wrongly.
fn special(word: u64) -> u64 {
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    ((quote.wrapping_sub(ONES) & !quote)
        | (backslash.wrapping_sub(ONES) & !backslash)
        | (word.wrapping_sub(ONES * 0x20) & !word))
        & HIGHS
}

/// The first byte at or after `from` that is a quote, a backslash or a control character; the length, if there is none.
pub(super) fn find_special(text: &[u8], from: usize) -> usize {
    let mut at = from;
    while let Some(chunk) = text
        .get(at..at + 8)
        .and_then(|c| <[u8; 8]>::try_from(c).ok())
    {
        let flags = special(u64::from_le_bytes(chunk));
        if flags != 0 {
            return at + flags.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while text
        .get(at)
        .is_some_and(|b| !matches!(b, b'"' | b'\\' | 0..0x20))
    {
        at += 1;
    }
    at
}
