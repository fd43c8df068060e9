//! JSON as text: checked, taken apart at its top level, and written; never parsed into values.

mod items;
mod scan;
mod string;
#[cfg(test)]
mod tests;

pub use items::{Elements, Members, elements, members};
pub use scan::{Defect, Dialect, Kind, MAX_DEPTH, MAX_INTEGER_DIGITS, check, check_vouched, kind};
pub use string::{text, write_string, write_string_cut};

/// How many arrays and objects stand within each other in `json`, which is well-formed.
pub fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut at) = (0usize, 0, 0);
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => at = string::end(json, at + 1),
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
        at += 1;
    }
    deepest
}

/// Appends `json`, with the line breaks between its tokens made spaces, so that it stays on one line.
///
/// `json` is well-formed: a raw line break cannot stand inside of a JSON string.
pub fn write_on_one_line(out: &mut Vec<u8>, json: &[u8]) {
    let start = out.len();
    out.extend_from_slice(json);
    for byte in out.iter_mut().skip(start) {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
}
