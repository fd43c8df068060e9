//! Which parts of the text may hold a secret, so that they are never shown.
//!
//! Better too much than too little: a URL is shown only when it is plain (scheme, host, port, path). References such
//! as `${DATABASE_URL}` are shown, they tell nothing.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::interpolate::literal_parts;
use super::{keys, tree};

/// What takes the place of a secret.
const MASK: &str = "***";

/// The places in `text` of all values that may be secret. In a text that is `broken` the parser may have missed some, so
/// that more is covered.
pub(super) fn secrets(table: &DeTable<'_>, text: &str, broken: bool) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    tree::walk(table, &mut Vec::new(), &mut |path, _, value| {
        if let DeValue::String(content) = value.get_ref() {
            let named = path.iter().any(|key| is_secret_key(key));
            if (named && !is_plain_url(content)) || has_credentials(content) {
                found.extend(inside_quotes(text, &value.span()));
            }
        }
    });
    if broken {
        found.extend(in_broken(text));
    }
    found
}

/// Whether a value may be shown in a message.
pub(super) fn may_show(path: &[String], raw: &str, value: &str) -> bool {
    let named = path.iter().any(|key| is_secret_key(key));
    !named && !raw.contains("${") && !has_credentials(value)
}

/// Takes a value that must not be seen out of a message.
pub(super) fn hide(message: &str, value: &str) -> String {
    let hidden = message.replace(&format!("{value:?}"), "this value");
    match value.is_empty() || !hidden.contains(value) {
        true => hidden,
        false => "this value is not understood".to_owned(),
    }
}

/// The literal parts of the string at `place`, without its quotes.
pub(super) fn inside_quotes(text: &str, place: &Range<usize>) -> Vec<Range<usize>> {
    let Some(raw) = text.get(place.clone()) else {
        return Vec::new();
    };
    let quotes = ["\"\"\"", "'''", "\"", "'"];
    let quote = quotes.into_iter().find(|quote| raw.starts_with(quote));
    let inner = quote.and_then(|quote| raw.strip_prefix(quote)?.strip_suffix(quote));
    let (inner, start) = match (inner, quote) {
        (Some(inner), Some(quote)) => (inner, place.start + quote.len()),
        _ => (raw, place.start),
    };
    literal_parts(inner)
        .into_iter()
        .map(|part| start + part.start..start + part.end)
        .collect()
}

/// Covers what must not be seen of one line, `line` in `text`; returns what may be shown, and where `mark` is in it.
pub(super) fn cover(
    text: &str,
    line: &Range<usize>,
    secrets: &[Range<usize>],
    mark: &Range<usize>,
) -> (String, Range<usize>) {
    let source = text.get(line.clone()).unwrap_or_default();
    let mut covers: Vec<Range<usize>> = credentials(source)
        .into_iter()
        .map(|part| line.start + part.start..line.start + part.end)
        .chain(secrets.iter().cloned())
        .map(|part| part.start.max(line.start)..part.end.min(line.end))
        .filter(|part| part.start < part.end)
        .collect();
    covers.sort_by_key(|part| part.start);

    let mut shown = String::new();
    let mut marked = 0..0;
    let mut at = line.start;
    let copy = |shown: &mut String, marked: &mut Range<usize>, piece: Range<usize>| {
        if piece.contains(&mark.start) {
            marked.start = shown.len() + mark.start - piece.start;
        }
        if piece.start < mark.end && mark.end <= piece.end {
            marked.end = shown.len() + mark.end - piece.start;
        }
        shown.push_str(text.get(piece).unwrap_or_default());
    };
    for part in covers {
        if part.end <= at {
            continue;
        }
        copy(&mut shown, &mut marked, at..part.start.max(at));
        let hidden = at.max(part.start)..part.end;
        if hidden.contains(&mark.start) {
            marked.start = shown.len();
        }
        shown.push_str(MASK);
        if hidden.start < mark.end && mark.end <= hidden.end {
            marked.end = shown.len();
        }
        at = part.end;
    }
    copy(&mut shown, &mut marked, at..line.end);
    if mark.start >= line.end {
        marked.start = shown.len();
    }
    if mark.end > line.end {
        marked.end = shown.len();
    }
    marked.end = marked.end.max(marked.start);
    (shown, marked)
}

/// Credentials in a URL, or in a piece of one, wherever it stands, be it in a comment.
fn credentials(line: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut start = 0;
    for word in line.split_inclusive(|c: char| c.is_whitespace() || matches!(c, '"' | '\'')) {
        if let Some(end) = word.rfind('@') {
            let user = word.get(..end).and_then(|word| word.find("//"));
            let user = user.map_or(0, |slashes| slashes + "//".len());
            let parts = literal_parts(word.get(user..end).unwrap_or_default());
            let at = start + user;
            found.extend(parts.iter().map(|part| at + part.start..at + part.end));
        }
        start += word.len();
    }
    found
}

/// What may be secret in a text that the parser did not understand: all values but those of known, harmless keys, and
/// the lines into which a secret may run on when its closing quote is missing.
fn in_broken(text: &str) -> Vec<Range<usize>> {
    let known: Vec<String> = keys::all().into_iter().flat_map(|(_, keys)| keys).collect();
    let mut found = Vec::new();
    let mut runs_on = false;
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim();
        let end = start + line.trim_end().len();
        let is_head =
            content.starts_with('[') && content.ends_with(']') && !content.contains("://");
        match content.split_once('=') {
            _ if is_head => runs_on = false,
            Some((key, value)) => {
                let key = key.trim_matches(|c: char| !c.is_alphanumeric() && c != '_');
                let key = key.rsplit(['.', ' ']).next().unwrap_or(key);
                let is_known = known.iter().any(|known| known == key);
                let value = value.trim();
                let bare = value.trim_matches(['"', '\'']);
                let harmless = literal_parts(bare).is_empty() || is_plain_url(bare);
                if !is_known && runs_on {
                    found.push(start..end);
                } else if (is_secret_key(key) || !is_known) && !harmless {
                    found.push(end - value.len()..end);
                }
                if is_known {
                    runs_on = is_secret_key(key) && !is_closed(value);
                }
            }
            None if runs_on => found.push(start..end),
            None => {}
        }
        start += line.len();
    }
    found
}

/// Whether a value, as it is written, ends on its line.
fn is_closed(value: &str) -> bool {
    match value.chars().next() {
        Some(quote @ ('"' | '\'')) => value.matches(quote).count() % 2 == 0,
        Some('[') => value.ends_with(']'),
        _ => false,
    }
}

/// Keys whose values are secret, or may carry one.
pub(super) fn is_secret_key(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let telling = [
        "url",
        "replicas",
        "passw",
        "secret",
        "token",
        "dsn",
        "extra_headers",
        "environment",
        "properties",
    ];
    telling.iter().any(|part| key.contains(part)) && !key.ends_with("_file")
}

/// Whether a value looks like a URL or a connection string that carries a password.
pub(super) fn has_credentials(value: &str) -> bool {
    let url = value
        .split_once("://")
        .is_some_and(|(_, rest)| rest.contains('@'));
    url || value.to_ascii_lowercase().contains("password=")
}

/// `scheme://host:port/path` and nothing else.
fn is_plain_url(value: &str) -> bool {
    let Some((scheme, rest)) = value.split_once("://") else {
        return false;
    };
    let (authority, path) = match rest.split_once('/') {
        Some((authority, path)) => (authority, path),
        None => (rest, ""),
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port),
        None => (authority, ""),
    };
    let all = |text: &str, more: &str| {
        text.chars()
            .all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    all(scheme, "+-.")
        && all(host, "-._")
        && port.bytes().all(|b| b.is_ascii_digit())
        && all(path, "-._/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covered(line: &str, mark: Range<usize>) -> (String, String) {
        let (table, errors) = DeTable::parse_recoverable(line);
        let secrets = secrets(table.get_ref(), line, !errors.is_empty());
        let (shown, mark) = cover(line, &(0..line.len()), &secrets, &mark);
        let marked = shown[mark].to_owned();
        (shown, marked)
    }

    #[test]
    fn hides_what_may_be_secret() {
        for (line, shown) in [
            ("url = 'postgres://u:pw@h/db'", "url = '***'"),
            ("url = \"postgres://u:pw#h/db\" # x", "url = \"***\" # x"),
            (
                "url = 'redis://localhost:6379/0'",
                "url = 'redis://localhost:6379/0'",
            ),
            ("url = 'redis://localhost/?password=x'", "url = '***'"),
            ("url = '${DATABASE_URL}'", "url = '${DATABASE_URL}'"),
            ("url = 'pg://u:${PW}@h'", "url = '***${PW}***'"),
            ("url = '${U:-pg://u:pw@h}'", "url = '***'"),
            ("table = 'pg://u:pw@h'", "table = '***'"),
            ("table = 'host=x password=y'", "table = '***'"),
            ("table = 'a.b'", "table = 'a.b'"),
            ("password_file = '/run/x'", "password_file = '/run/x'"),
            (
                "x = { url = 'pg://u:p@h', n = 1 }",
                "x = { url = '***', n = 1 }",
            ),
            (
                "replicas = ['a b', 'pg://h/d']",
                "replicas = ['***', 'pg://h/d']",
            ),
            ("url = \"postgres://u:pw@h", "url = ***"),
            ("n = 1 # was pg://u:pw@h/d", "n = 1 # was pg://***@h/d"),
            ("url = hunter2", "url = ***"),
            ("url = hunter2 hunter3", "url = ***"),
            ("[postgres] url = \"x", "[postgres] url = ***"),
        ] {
            assert_eq!(covered(line, 0..0).0, shown, "{line}");
        }
    }

    #[test]
    fn keeps_the_mark_where_it_was_meant() {
        let line = "x = { url = 'pg://u:p@h', n = 1 }";
        for (mark, expected) in [
            (0..1, "x"),
            (12..24, "'***'"),
            (15..18, "***"),
            (26..27, "n"),
            (0..line.len(), "x = { url = '***', n = 1 }"),
            (line.len()..line.len(), ""),
        ] {
            assert_eq!(covered(line, mark.clone()).1, expected, "{mark:?}");
        }
    }
}
