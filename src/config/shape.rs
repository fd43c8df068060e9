//! The shape of the document, before its values are read: what must be a table, and the types and names of sinks.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use super::decode::Document;
use super::keys;
use super::report::Problem;
use super::tree::{self, Path};
use crate::near;
use crate::sink::FEATURES;

/// Sink types that later versions may have.
const ELSEWHERE: [&str; 2] = ["pubsub", "sns"];

/// For benches; nobody is pointed to it.
const BENCH_ONLY: &str = "null";

/// Reports what has not the right shape, and takes it out of the document.
pub(super) fn check(document: &mut Document<'_>) {
    let mut wrong = Vec::new();
    let top = keys::in_section(&[]);
    for (key, value) in document.tree.get_ref() {
        let name: &str = key.get_ref();
        if !top.iter().any(|known| known == name) {
            continue;
        }
        let path = vec![name.to_owned()];
        match (name, value.get_ref()) {
            ("route", DeValue::Array(routes)) => {
                for (index, route) in routes.iter().enumerate() {
                    if !route.get_ref().is_table() {
                        let path = vec![name.to_owned(), format!("[{index}]")];
                        let title = "a route must be a table";
                        wrong.push((path, Problem::new(title).at(route.span()).help(ROUTE)));
                    }
                }
            }
            ("route", _) => {
                let title = "routes are a list, and each is written [[route]]";
                wrong.push((path, Problem::new(title).at(value.span()).help(ROUTE)));
            }
            ("sink", DeValue::Table(types)) => sink_types(types, &mut wrong),
            (_, DeValue::Table(_)) => {}
            (_, DeValue::Array(_)) => {
                let title = format!("there is only one [{name}]");
                let problem = Problem::new(title).at(value.span());
                wrong.push((path, problem.help(format!("write [{name}]"))));
            }
            _ => {
                let title = format!("`{name}` is a section");
                let problem = Problem::new(title).at(value.span());
                let help = format!("write [{name}] on a line of its own, and its keys below");
                wrong.push((path, problem.help(help)));
            }
        }
    }
    document.fail(wrong);
}

const ROUTE: &str = "write, for each route\n[[route]]\ntask = \"*\"\nsink = \"NAME\"";

fn sink_types(types: &DeTable<'_>, wrong: &mut Vec<(Path, Problem)>) {
    let known = keys::in_section(&["sink".to_owned()]);
    for (key, value) in types {
        let kind: &str = key.get_ref();
        let path = vec!["sink".to_owned(), kind.to_owned()];
        let has_names = value
            .get_ref()
            .as_table()
            .is_some_and(|names| names.values().all(|sink| sink.get_ref().is_table()));
        let is_known = known.iter().any(|known| known == kind);
        let problem = match (is_known, has_names) {
            (true, true) => continue,
            (true, false) if is_list(value.get_ref()) => {
                Problem::new("each sink is one table, in single brackets")
                    .help(format!("write [sink.{kind}.NAME]"))
            }
            (true, false) => Problem::new(format!("a sink of type {kind} has no name")).help(
                format!("write [sink.{kind}.NAME]; routes refer to it by that name"),
            ),
            (false, _) => unknown_type(kind, has_names, &known),
        };
        let place = if is_known { value.span() } else { key.span() };
        wrong.push((path, problem.at(place)));
    }
}

/// `[[sink.TYPE]]` or `[[sink.TYPE.NAME]]`.
fn is_list(value: &DeValue<'_>) -> bool {
    let names = value.as_table();
    value.is_array()
        || names.is_some_and(|names| names.values().any(|sink| sink.get_ref().is_array()))
}

fn unknown_type(kind: &str, has_names: bool, known: &[String]) -> Problem {
    let known: Vec<String> = known.iter().filter(|k| *k != BENCH_ONLY).cloned().collect();
    let has = known.join(", ");
    if FEATURES.contains(&kind) {
        let title = format!("sink type {kind} is not compiled into this binary");
        return Problem::new(title).help(format!("build it with --features {kind}"));
    }
    if ELSEWHERE.contains(&kind) {
        let title = format!("sink type {kind} is not part of this build; it has: {has}");
        return Problem::new(title);
    }
    let near = near::of(kind, &known);
    if near.is_none() && !has_names {
        return Problem::new(format!("the sink {kind} has no type"))
            .help(format!("write [sink.TYPE.{kind}]; the types are {has}"));
    }
    Problem::new(format!("unknown sink type {kind}; this build has: {has}"))
        .label(near.map(|near| format!("did you mean `{near}`?")))
}

/// Each sink's name, with its type; and what is wrong with the names.
pub(super) fn sinks(table: &DeTable<'_>) -> (BTreeMap<String, String>, Vec<Problem>) {
    let mut sinks = BTreeMap::<String, String>::new();
    let mut problems = Vec::new();
    let types = tree::value(table, &["sink"]);
    for (kind, names) in types
        .and_then(|types| types.get_ref().as_table())
        .into_iter()
        .flatten()
    {
        for (name, sink) in names.get_ref().as_table().into_iter().flatten() {
            let (kind, name) = (kind.get_ref().to_string(), name.get_ref().to_string());
            if name.is_empty() {
                problems.push(Problem::new("a sink's name is empty").at(sink.span()));
            }
            if let Some(other) = sinks.insert(name.clone(), kind.clone()) {
                let title = format!("the name {name:?} is used by two sinks");
                let help = format!(
                    "routes refer to sinks by name alone; there is also [sink.{other}.{name}]"
                );
                problems.push(Problem::new(title).at(sink.span()).help(help));
            }
        }
    }
    (sinks, problems)
}
