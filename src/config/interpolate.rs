//! `${VAR}`, `${VAR:-default}` and `$$` inside strings.
//!
//! It is done after the text was parsed, so that a variable's value can never change the structure: it may hold
//! quotes, newlines or brackets and stays one string. A default is taken when the variable is unset or empty, as in a
//! shell. A `$` before anything but `{` and `$` stands for itself.

use std::borrow::Cow;
use std::ops::Range;

use toml::de::DeTable;

use super::report::Problem;
use super::tree::{self, Path};

/// A variable's value, or none when it is not set.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Replaces the references in every string of `table`; returns what could not be replaced, and where.
pub(super) fn expand(table: &mut DeTable<'_>, text: &str, env: Env<'_>) -> Vec<(Path, Problem)> {
    let mut problems = Vec::new();
    tree::walk_strings(table, &mut Vec::new(), &mut |path, place, value| {
        let (expanded, faults) = expand_one(value, env);
        for fault in faults {
            let at = locate(text, &place, value, &fault.at);
            let problem = Problem::new(fault.title).at(at).help(fault.help);
            problems.push((path.to_vec(), problem));
        }
        if let Cow::Owned(new) = expanded {
            *value = Cow::Owned(new);
        }
    });
    problems
}

/// What is wrong with one reference; `at` is its place in the string's value.
#[derive(Debug)]
struct Fault {
    at: Range<usize>,
    title: String,
    help: String,
}

fn expand_one<'v>(value: &'v str, env: Env<'_>) -> (Cow<'v, str>, Vec<Fault>) {
    if !value.contains('$') {
        return (Cow::Borrowed(value), Vec::new());
    }
    let mut out = String::with_capacity(value.len());
    let mut faults = Vec::new();
    let mut rest = value;
    while let Some((before, from_dollar)) = split_at_dollar(rest) {
        out.push_str(before);
        let start = value.len() - from_dollar.len();
        if let Some(after) = from_dollar.strip_prefix("$$") {
            out.push('$');
            rest = after;
        } else if let Some(inside) = from_dollar.strip_prefix("${") {
            let (result, after) = reference(inside, env);
            match result {
                Ok(text) => out.push_str(&text),
                Err((title, help)) => faults.push(Fault {
                    at: start..value.len() - after.len(),
                    title,
                    help,
                }),
            }
            rest = after;
        } else {
            out.push('$');
            rest = from_dollar.strip_prefix('$').unwrap_or_default();
        }
    }
    out.push_str(rest);
    (Cow::Owned(out), faults)
}

fn split_at_dollar(text: &str) -> Option<(&str, &str)> {
    text.find('$').map(|at| text.split_at(at))
}

/// Reads a reference after its `${`; returns its value, or a title and a remedy, and what follows it.
fn reference<'v>(inside: &'v str, env: Env<'_>) -> (Result<String, (String, String)>, &'v str) {
    let escape = "to have it literally, write $${".to_owned();
    let Some((inner, after)) = inside.split_once('}') else {
        let title = "`${` has no closing `}`".to_owned();
        return (Err((title, escape)), "");
    };
    let (name, default) = match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    };
    let result = if !is_name(name) {
        let title = "`${...}` needs the name of a variable".to_owned();
        Err((
            title,
            format!("write ${{NAME}} or ${{NAME:-default}}; {escape}"),
        ))
    } else if default.is_some_and(|default| default.contains("${")) {
        let title = format!("the default of `${{{name}}}` refers to another variable");
        Err((title, "a default is plain text".to_owned()))
    } else {
        match (env(name), default) {
            (Some(value), None) => Ok(value),
            (Some(value), Some(_)) if !value.is_empty() => Ok(value),
            (_, Some(default)) => Ok(default.to_owned()),
            (None, None) => Err((
                format!("the variable {name} is not set"),
                format!("set {name} in the environment, or give a default: ${{{name}:-...}}"),
            )),
        }
    };
    (result, after)
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The place in the text of a part of a string's value. Exact unless the string is written with escapes that change
/// that part; then the whole string.
fn locate(text: &str, string: &Range<usize>, value: &str, part: &Range<usize>) -> Range<usize> {
    let place = || {
        let needle = value.get(part.clone())?;
        let earlier = value.get(..part.start)?.matches(needle).count();
        let (at, _) = text
            .get(string.clone())?
            .match_indices(needle)
            .nth(earlier)?;
        Some(string.start + at..string.start + at + needle.len())
    };
    place().unwrap_or_else(|| string.clone())
}

/// The parts of a string as it is written, quotes and all, that are not a bare `${NAME}`.
pub(super) fn literal_parts(raw: &str) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut literal = 0;
    let mut from = 0;
    while let Some(at) = raw.get(from..).and_then(|rest| rest.find('$')) {
        let dollar = from + at;
        let rest = raw.get(dollar..).unwrap_or_default();
        let name = rest
            .strip_prefix("${")
            .and_then(|inside| inside.split_once('}'))
            .map(|(name, _)| name)
            .filter(|name| is_name(name));
        if let Some(name) = name {
            parts.push(literal..dollar);
            from = dollar + "${}".len() + name.len();
            literal = from;
        } else {
            from = dollar + if rest.starts_with("$$") { 2 } else { 1 };
        }
    }
    parts.push(literal..raw.len());
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "A" => Some("alpha".to_owned()),
            "EMPTY" => Some(String::new()),
            "REF" => Some("${A} \"$$".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn replaces_references() {
        for (value, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("${A}", "alpha"),
            ("x${A}y${A}", "xalphayalpha"),
            ("${EMPTY}", ""),
            ("${EMPTY:-d}", "d"),
            ("${A:-d}", "alpha"),
            ("${NONE:-}", ""),
            ("${NONE:-redis://h:6379/0}", "redis://h:6379/0"),
            ("${NONE:-a:-b}", "a:-b"),
            ("$$", "$"),
            ("$${A}", "${A}"),
            ("$$$$${A}", "$$alpha"),
            ("pa$word$", "pa$word$"),
            ("$A", "$A"),
            ("${REF}", "${A} \"$$"),
            ("é${A}é", "éalphaé"),
        ] {
            let (text, faults) = expand_one(value, &env);
            assert_eq!(text, expected, "{value:?}");
            assert!(faults.is_empty(), "{value:?}");
        }
    }

    #[test]
    fn names_what_it_cannot_replace() {
        for (value, at, title) in [
            ("x${NONE}y", 1..8, "the variable NONE is not set"),
            ("${A", 0..3, "`${` has no closing `}`"),
            ("${}", 0..3, "`${...}` needs the name of a variable"),
            ("${1A}", 0..5, "`${...}` needs the name of a variable"),
            ("${A-b}", 0..6, "`${...}` needs the name of a variable"),
            (
                "${B:-${A}}",
                0..9,
                "the default of `${B}` refers to another variable",
            ),
        ] {
            let (_, faults) = expand_one(value, &env);
            let [fault] = faults.as_slice() else {
                panic!("{value:?}: {faults:?}");
            };
            assert_eq!((fault.at.clone(), fault.title.as_str()), (at, title));
        }
    }

    #[test]
    fn tells_literal_parts_from_references() {
        for (raw, expected) in [
            ("\"${A}\"", vec!["\"", "\""]),
            ("'a:${A}@h'", vec!["'a:", "@h'"]),
            ("'${A:-secret}'", vec!["'${A:-secret}'"]),
            ("'$${A}${B}'", vec!["'$${A}", "'"]),
            ("'${A'", vec!["'${A'"]),
        ] {
            let parts: Vec<&str> = literal_parts(raw).into_iter().map(|r| &raw[r]).collect();
            assert_eq!(parts, expected, "{raw}");
        }
    }
}
