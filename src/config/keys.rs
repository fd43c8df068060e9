//! Every key that the structs accept, as serde itself tells it.
//!
//! A document with a key that cannot exist is read, and the refusal lists those that can. So there is no second list
//! that could differ from the structs.

use serde::Deserialize;
use toml::de::Deserializer;

use super::{Config, decode, tree};

/// Never the name of a key.
const PROBE: &str = "\"?\" = 0";

/// Each section with its keys. The sections are written as paths: `""` for the top level, `gate`, `route.retry`,
/// `sink.celery.NAME`.
pub fn all() -> Vec<(String, Vec<String>)> {
    let fixed = ["", "postgres", "outbox", "outbox.columns", "gate", "route"];
    let more = ["route.retry", "limits", "log", "admin", "sink"];
    let sinks = in_section(&["sink".to_owned()]);
    let sinks = sinks.iter().map(|kind| format!("sink.{kind}.NAME"));
    let sections = fixed.into_iter().chain(more).map(str::to_owned);
    sections
        .chain(sinks)
        .map(|section| {
            let keys = probe(&section);
            (section, keys)
        })
        .collect()
}

/// The keys of the section at `path`; none where any key is allowed, as the names of sinks are.
pub(super) fn in_section(path: &[String]) -> Vec<String> {
    probe(&tree::dotted(path))
}

/// The one section that has a key of this name.
pub(super) fn home_of(key: &str) -> Option<String> {
    let sections = all();
    let mut homes = sections
        .iter()
        .filter(|(_, keys)| keys.iter().any(|known| known == key))
        .map(|(section, _)| section.as_str());
    match (homes.next(), homes.next()) {
        (Some(""), None) => Some("the top level".to_owned()),
        (Some("route"), None) => Some("[[route]]".to_owned()),
        (Some(home), None) => Some(format!("[{home}]")),
        _ => None,
    }
}

fn probe(section: &str) -> Vec<String> {
    let mut parts = section.split('.');
    let head = match (parts.next(), section) {
        (_, "") => String::new(),
        (_, "outbox.columns") => {
            let fields = crate::outbox::Field::ALL;
            return fields.iter().map(|field| field.name().to_owned()).collect();
        }
        (Some("route"), "route") => "[[route]]".to_owned(),
        (Some("route"), _) => format!("[[route]]\n[{section}]"),
        (Some("sink"), _) => match (parts.next(), parts.next()) {
            (None, _) => "[sink]".to_owned(),
            (Some(_), None) => return Vec::new(),
            (Some(kind), Some(_)) => format!("[sink.{kind}.NAME]"),
        },
        _ => format!("[{section}]"),
    };
    let text = format!("{head}\n{PROBE}");
    let refused = Deserializer::parse(&text).and_then(Config::deserialize);
    match refused {
        Err(error) if error.message().starts_with("unknown field `?`") => {
            decode::expected_names(error.message())
        }
        _ => Vec::new(),
    }
}
