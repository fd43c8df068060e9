//! What no single key tells: keys that exclude or need each other, names that refer to others; and what the rooms say of
//! their own settings.

use toml::de::DeTable;

use super::report::{Problem, listed};
use super::{Config, mask, tree};
use crate::control::check_slot_name;
use crate::near;
use crate::outbox::config::Retention;
use crate::outbox::{Columns, ColumnsError, Field};

/// The checks across keys, before the files are read that hold secrets.
pub(super) fn check(config: &Config, text: &str, table: &DeTable<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    problems.extend(primary(config, table));
    problems.extend(names(config, text, table));
    problems.extend(outbox(config, text, table));
    problems.extend(healing(config, text, table));
    problems.extend(routes(config, text, table));
    problems.extend(connections(config, text, table));
    problems
}

/// The URL stands in the configuration or in a file of its own, and not in both.
fn primary(config: &Config, table: &DeTable<'_>) -> Option<Problem> {
    let postgres = &config.postgres;
    match (&postgres.url, &postgres.url_file) {
        (Some(_), Some(_)) => {
            let place = tree::key_place(table, &["postgres", "url_file"]);
            let problem = Problem::new("[postgres] has both `url` and `url_file`");
            Some(problem.at(place).help("keep one of the two"))
        }
        (None, None) => {
            let place = tree::value(table, &["postgres"]).map(|value| value.span());
            let problem = Problem::new("[postgres] has neither `url` nor `url_file`");
            Some(
                problem
                    .at(place)
                    .help("add one of the two; `url_file` names a file that holds it"),
            )
        }
        _ => None,
    }
}

/// The string at `path`, in quotes; unless it came from a variable, and so may be anything.
fn shown(text: &str, table: &DeTable<'_>, path: &[&str]) -> String {
    let show = || {
        let value = tree::value(table, path)?;
        let (raw, value) = (text.get(value.span())?, value.get_ref().as_str()?);
        let steps: Vec<String> = path.iter().map(|step| (*step).to_owned()).collect();
        mask::may_show(&steps, raw, value).then(|| format!("{value:?}"))
    };
    show().unwrap_or_else(|| "this value".to_owned())
}

/// A value that its room refuses, in the room's words: `what is wrong: how to write it`.
fn refused(text: &str, table: &DeTable<'_>, path: &[&str], words: &str) -> Problem {
    let steps: Vec<String> = path.iter().map(|step| (*step).to_owned()).collect();
    let value = tree::value(table, path);
    let place = value.map(|value| value.span());
    let raw = place.clone().and_then(|place| text.get(place));
    let value = value.and_then(|value| value.get_ref().as_str());
    let words = match value {
        Some(value) if !mask::may_show(&steps, raw.unwrap_or_default(), value) => {
            mask::hide(words, value)
        }
        _ => words.to_owned(),
    };
    worded(&format!("`{}`:", tree::dotted(path)), &words).at(place)
}

/// `what is wrong: how to write it`, behind the key.
fn worded(key: &str, words: &str) -> Problem {
    match words.split_once(": ") {
        Some((what, help)) => Problem::new(format!("{key} {what}")).help(help),
        None => Problem::new(format!("{key} {words}")),
    }
}

/// Postgres's NAMEDATALEN, less one (documentation, chapter "Identifiers and Key Words").
const LONGEST_NAME: usize = 63;

fn names(config: &Config, text: &str, table: &DeTable<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Err(words) = check_slot_name(&config.postgres.slot) {
        problems.push(refused(text, table, &["postgres", "slot"], &words));
    }
    let publication = &config.postgres.publication;
    if publication.is_empty() || publication.len() > LONGEST_NAME {
        let path = ["postgres", "publication"];
        let shown = shown(text, table, &path);
        let words = format!("{shown} is not a name for a publication: 1 to 63 bytes");
        problems.push(refused(text, table, &path, &words));
    }
    problems
}

fn outbox(config: &Config, text: &str, table: &DeTable<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (field, column) in &config.outbox.columns {
        if column.len() > LONGEST_NAME {
            let path = ["outbox", "columns", field];
            let shown = shown(text, table, &path);
            let words = format!("{shown} is not a name for a column: at most 63 bytes");
            problems.push(refused(text, table, &path, &words));
        }
    }
    let mut config = config.outbox.clone();
    // One mistake hides the next, so what is unknown is told and left out.
    loop {
        match Columns::new(&config) {
            Ok(_) => return problems,
            Err(ColumnsError::Table(error)) => {
                let path = ["outbox", "table"];
                let words = format!("{} names no table: {error}", shown(text, table, &path));
                problems.push(refused(text, table, &path, &words));
                return problems;
            }
            Err(ColumnsError::UnknownField { name, near }) => {
                let near = near.map(|near| format!("did you mean `{near}`?"));
                let known = Field::ALL.map(|field| field.name().to_owned());
                let help = format!(
                    "left of the = stands the field, right of it your column; the fields are {}",
                    listed(&known, "")
                );
                let place = tree::key_place(table, &["outbox", "columns", &name]);
                let problem = Problem::new(format!("a task has no field `{name}`"));
                problems.push(problem.at(place).label(near).help(help));
                config.columns.remove(&name);
            }
            Err(ColumnsError::Required(field)) => {
                let words = format!("{field} needs a column: no task is without it");
                let path = ["outbox", "columns", field];
                problems.push(refused(text, table, &path, &words));
                return problems;
            }
        }
    }
}

/// What is in the table tells what was not sent only where settled rows are deleted.
fn healing(config: &Config, text: &str, table: &DeTable<'_>) -> Option<Problem> {
    if !config.postgres.heal || config.outbox.retention == Retention::Delete {
        return None;
    }
    let line = match tree::value(table, &["outbox", "retention"]) {
        Some(value) => format!(" (line {})", tree::line_number(text, value.span().start)),
        None => String::new(),
    };
    let title = format!(
        "`postgres.heal` needs `outbox.retention` = \"delete\", which is another one{line}"
    );
    let help = "rows that stay in the table are not told from those that were not sent: set retention = \"delete\", or \
                heal = false";
    let place = tree::value(table, &["postgres", "heal"]).map(|value| value.span());
    Some(Problem::new(title).at(place).help(help))
}

fn routes(config: &Config, text: &str, table: &DeTable<'_>) -> Vec<Problem> {
    let sinks: Vec<String> = config.sink_types.keys().cloned().collect();
    let mut problems = Vec::new();
    if sinks.is_empty() {
        let help = "add\n[sink.celery.workers]\nbroker_url = \"redis://localhost:6379/0\"";
        problems.push(Problem::new("there is no sink: tasks have nowhere to go").help(help));
    }
    if config.routes.is_empty() {
        let sink = sinks.first().map_or("workers", String::as_str);
        let help = format!("add\n[[route]]\ntask = \"*\"\nsink = {sink:?}");
        problems.push(Problem::new("there is no route: no task would go anywhere").help(help));
    }
    if sinks.is_empty() {
        return problems;
    }
    for (index, route) in config.routes.iter().enumerate() {
        if config.sink_types.contains_key(&route.sink) {
            continue;
        }
        let index = format!("[{index}]");
        let path = ["route", index.as_str(), "sink"];
        let place = tree::value(table, &path).map(|value| value.span());
        let near = near::of(&route.sink, &sinks).map(|near| format!("did you mean {near:?}?"));
        let help = format!("the sinks are {}", listed(&sinks, "\""));
        let title = format!("there is no sink named {}", shown(text, table, &path));
        problems.push(Problem::new(title).at(place).label(near).help(help));
    }
    problems
}

/// The URLs, and the sinks' settings: as those read them who connect.
pub(super) fn connections(config: &Config, text: &str, table: &DeTable<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    if config.postgres.url.is_some()
        && let Err(words) = config.postgres.target()
    {
        let key = written(table, &["postgres"], "url");
        let path = ["postgres", key.as_str()];
        let shown = format!("`{}`:", tree::dotted(&path));
        problems.push(unusable(text, table, &path, worded(&shown, &words)));
    }
    let replicas = config.gate.targets(config.postgres.password.as_ref());
    for (index, replica) in replicas.enumerate() {
        if let Err(words) = replica {
            let path = ["gate", "replicas", &format!("[{index}]")];
            problems.push(unusable(
                text,
                table,
                &path,
                worded("`gate.replicas`:", &words),
            ));
        }
    }
    for (kind, name, settings) in config.sinks.each() {
        let section = ["sink", kind, name];
        if let Err(invalid) = settings.validate() {
            let key = written(table, &section, invalid.key);
            let path = [&section[..], &[&key]].concat();
            let shown = format!("`{}`", tree::dotted(&path));
            problems.push(unusable(text, table, &path, worded(&shown, &invalid.words)));
        }
    }
    problems
}

/// The key that the operator wrote: `key`, or the one that names a file which holds it.
fn written(table: &DeTable<'_>, section: &[&str], key: &str) -> String {
    let in_file = format!("{key}_file");
    match tree::value(table, &[section, &[key]].concat()) {
        None if tree::value(table, &[section, &[&in_file]].concat()).is_some() => in_file,
        _ => key.to_owned(),
    }
}

/// A value that may be a secret, of which the problem repeats nothing; and the slip that it is most often.
fn unusable(text: &str, table: &DeTable<'_>, path: &[&str], problem: Problem) -> Problem {
    // What is missing has no place; its section has.
    let section = path.split_last().map_or(path, |(_, section)| section);
    let value = tree::value(table, path).or_else(|| tree::value(table, section));
    let place = value.map(|value| value.span());
    let raw = place.clone().and_then(|place| text.get(place));
    let bare_variable = raw
        .unwrap_or_default()
        .trim_matches(['"', '\''])
        .strip_prefix('$')
        .is_some_and(|name| !name.starts_with(['{', '$']));
    match bare_variable {
        true => problem.at(place).help("a variable is written ${NAME}"),
        false => problem.at(place),
    }
}
