//! From the parsed document to the structs, with errors in the operator's words.
//!
//! serde stops at the first mistake. So what is wrong is reported, taken out of a copy of the document, and the rest is
//! read again, until nothing is wrong any more: all mistakes of a file are told at once.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use super::report::{Problem, listed};
use super::tree::{self, Path};
use super::{Config, keys, mask};
use crate::near;

/// A file with more mistakes than this is not read to its end.
const MOST: usize = 20;

/// The document while it is being checked: what is wrong goes out of `tree`, into `problems`.
pub(super) struct Document<'i> {
    pub(super) text: &'i str,
    pub(super) tree: Spanned<DeTable<'i>>,
    pub(super) problems: Vec<Problem>,
    removed: Vec<String>,
}

impl<'i> Document<'i> {
    pub(super) fn new(text: &'i str, tree: Spanned<DeTable<'i>>) -> Document<'i> {
        Document {
            text,
            tree,
            problems: Vec::new(),
            removed: Vec::new(),
        }
    }

    /// Notes problems and takes their causes out; the last first, so that the places of the others stay.
    pub(super) fn fail(&mut self, problems: Vec<(Path, Problem)>) {
        for (path, problem) in problems.into_iter().rev() {
            self.problems.push(problem);
            self.remove(&path);
        }
    }

    fn remove(&mut self, path: &[String]) {
        tree::remove(self.tree.get_mut(), path);
        self.removed.extend(path.last().cloned());
    }

    /// Reads the structs; `None` when something was wrong.
    pub(super) fn decode(&mut self) -> Option<Config> {
        while self.problems.len() < MOST {
            let source = Deserializer::from(self.tree.clone());
            let error = match Config::deserialize(source) {
                Ok(config) if self.problems.is_empty() => return Some(config),
                Ok(_) => return None,
                Err(error) => error,
            };
            let place = error.span().unwrap_or_default();
            let path = self.path_of(&place, error.message());
            if let Some(key) = between_backticks(error.message(), "missing field ") {
                if self.removed.iter().any(|removed| removed == key) {
                    return None;
                }
                self.problems.push(missing(&path, key, place));
            } else {
                let problem = self.explain(error.message(), &path, place);
                self.problems.push(problem);
            }
            if path.is_empty() {
                return None;
            }
            self.remove(&path);
        }
        None
    }

    /// What stands at the place of an error. A list that is written `[[...]]` has the place of its first element, and
    /// only the message tells which of the two is meant.
    fn path_of(&self, place: &Range<usize>, message: &str) -> Path {
        let table = self.tree.get_ref();
        let mut path = tree::find(table, place).unwrap_or_default();
        if let (true, Some((_, list))) = (tree::is_element(&path), path.split_last()) {
            let same = tree::value(table, list).is_some_and(|list| list.span() == *place);
            if same && message.starts_with("invalid type: sequence") {
                path.pop();
            }
        }
        path
    }

    fn explain(&self, message: &str, path: &[String], place: Range<usize>) -> Problem {
        let value = tree::value(self.tree.get_ref(), path);
        if let Some(key) = between_backticks(message, "unknown field ") {
            let strings = tree::strings_under(self.tree.get_ref(), path);
            return unknown_key(path, key, place).hide(strings);
        }
        let key = match tree::is_element(path) {
            true => format!("each of `{}`", tree::dotted(path)),
            false => format!("`{}`", tree::dotted(path)),
        };
        let found = value.map_or("something else", |value| kind(value.get_ref()));
        if let Some(variant) = between_backticks(message, "unknown variant ") {
            let known = expected_names(message);
            let title = format!("{key} has no such choice");
            let near = near::of(variant, &known).map(|near| format!("did you mean \"{near}\"?"));
            let help = format!("it can be {}", listed(&known, "\""));
            return Problem::new(title).at(place).label(near).help(help);
        }
        let expected = message.split_once(", expected ").map(|(_, e)| expected(e));
        if message.starts_with("invalid type: ") || message.starts_with("wanted ") {
            let expected = expected.unwrap_or_else(|| "a string".to_owned());
            return Problem::new(format!("{key} must be {expected}, not {found}")).at(place);
        }
        if let (true, Some(expected)) = (message.starts_with("invalid value: "), expected) {
            return Problem::new(format!("{key} must be {expected}")).at(place);
        }
        self.refused(&key, path, message, place)
    }

    /// A value of the right type that its parser refused: `what is wrong; how to write it`.
    fn refused(&self, key: &str, path: &[String], message: &str, place: Range<usize>) -> Problem {
        let value = tree::value(self.tree.get_ref(), path);
        let value = value.and_then(|value| value.get_ref().as_str());
        let raw = self.text.get(place.clone()).unwrap_or_default();
        if message == "invalid socket address syntax" {
            let expected = expected("socket address");
            return Problem::new(format!("{key} must be {expected}")).at(place);
        }
        let message = match value {
            Some(value) if !mask::may_show(path, raw, value) => mask::hide(message, value),
            _ => message.to_owned(),
        };
        match message.split_once("; ") {
            Some((what, help)) => Problem::new(format!("{key}: {what}")).help(help),
            None => Problem::new(format!("{key}: {message}")),
        }
        .at(place)
    }
}

fn unknown_key(path: &[String], key: &str, place: Range<usize>) -> Problem {
    let section = path.split_last().map_or(&[][..], |(_, parents)| parents);
    let known = keys::in_section(section);
    let title = match section {
        [] => format!("unknown section `{key}`"),
        _ => format!("unknown key `{key}` in {}", tree::section(section)),
    };
    let label = match near::of(key, &known) {
        Some(near) => Some(format!("did you mean `{near}`?")),
        None => keys::home_of(key).map(|home| format!("this key belongs in {home}")),
    };
    let help = match (known.is_empty(), section) {
        (true, _) => "it takes no keys".to_owned(),
        (false, []) => format!("the sections are {}", listed(&known, "")),
        (false, _) => format!("its keys are {}", listed(&known, "")),
    };
    Problem::new(title).at(place).label(label).help(help)
}

fn missing(path: &[String], key: &str, place: Range<usize>) -> Problem {
    match path {
        [] => Problem::new(format!("there is no [{key}] section"))
            .help("add\n[postgres]\nurl = \"postgres://aftercommit@localhost/app\""),
        _ => Problem::new(format!("{} has no `{key}`", tree::section(path))).at(place),
    }
}

fn between_backticks<'m>(message: &'m str, start: &str) -> Option<&'m str> {
    let rest = message.strip_prefix(start)?.strip_prefix('`')?;
    // A key may hold backticks itself; serde puts none into what follows but around names that hold none.
    let end = rest.find("`, expected ").or_else(|| rest.find("`, there "));
    rest.get(..end.or_else(|| rest.rfind('`'))?)
}

/// The names that serde lists at the end of a message.
pub(super) fn expected_names(message: &str) -> Vec<String> {
    let list = message
        .rsplit_once(", expected ")
        .map_or("", |(_, list)| list);
    let quoted = list.split('`').skip(1).step_by(2);
    quoted.map(str::to_owned).collect()
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// serde's words for a type, in the operator's.
fn expected(words: &str) -> String {
    let range = |max: u64| format!("a whole number from 0 to {max}");
    match words {
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "an array".to_owned(),
        "a map" | "map" => "a table".to_owned(),
        "u8" => range(u8::MAX.into()),
        "u16" => range(u16::MAX.into()),
        "u32" | "u64" | "usize" => "a whole number, 0 or more".to_owned(),
        "a nonzero u32" | "a nonzero u64" | "a nonzero usize" => {
            "a whole number, 1 or more".to_owned()
        }
        "i32" | "i64" => "a whole number".to_owned(),
        "path string" => "a path".to_owned(),
        "socket address" => "an address such as \"127.0.0.1:9464\"".to_owned(),
        words if words.starts_with("struct ") => "a table".to_owned(),
        words if words.starts_with("string or ") => "a string".to_owned(),
        words => words.to_owned(),
    }
}
