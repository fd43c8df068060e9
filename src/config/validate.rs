//! What no single key tells: keys that exclude or need each other, names that refer to others, URLs.

use secrecy::{ExposeSecret, SecretString};
use toml::de::DeTable;

use super::report::{Finding, Problem, Severity, listed};
use super::{Config, mask, tree};
use crate::near;
use crate::outbox::Field;
use crate::route;

/// The checks across keys.
pub(super) fn check(config: &Config, text: &str, table: &DeTable<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let postgres = &config.postgres;
    let has = (postgres.url.is_some(), postgres.url_file.is_some());
    problems.extend(either(table, &["postgres"], ["url", "url_file"], has));
    problems.extend(names(config, text, table));
    problems.extend(columns(config, text, table));
    problems.extend(routes(config, text, table));
    for (name, sink) in &config.sinks.celery {
        let has = (sink.broker_url.is_some(), sink.broker_url_file.is_some());
        let section = ["sink", "celery", name];
        problems.extend(either(
            table,
            &section,
            ["broker_url", "broker_url_file"],
            has,
        ));
    }
    problems.extend(urls(config, text, table));
    problems
}

/// A secret stands in the file or in a file of its own, and not in both.
fn either(
    table: &DeTable<'_>,
    section: &[&str],
    [key, file_key]: [&str; 2],
    has: (bool, bool),
) -> Option<Problem> {
    let names: Vec<String> = section.iter().map(|step| (*step).to_owned()).collect();
    let shown = tree::section(&names);
    match has {
        (true, true) => {
            let place = tree::key_place(table, &[section, &[file_key]].concat());
            let title = format!("{shown} has both `{key}` and `{file_key}`");
            Some(Problem::new(title).at(place).help("keep one of the two"))
        }
        (false, false) => {
            let place = tree::value(table, section).map(|value| value.span());
            let title = format!("{shown} has neither `{key}` nor `{file_key}`");
            let help = format!("add one of the two; `{file_key}` names a file that holds it");
            Some(Problem::new(title).at(place).help(help))
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

fn names(config: &Config, text: &str, table: &DeTable<'_>) -> Vec<Problem> {
    let problem = |path: [&str; 2], title: String, help: &str| {
        let place = tree::value(table, &path).map(|value| value.span());
        Problem::new(title).at(place).help(help)
    };
    let mut problems = Vec::new();
    let slot = &config.postgres.slot;
    let slot_chars = slot
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if slot.is_empty() || slot.len() > LONGEST_NAME || !slot_chars {
        let shown = shown(text, table, &["postgres", "slot"]);
        let title = format!("{shown} cannot be the name of a slot");
        let help = "Postgres takes 1 to 63 of a to z, 0 to 9 and _";
        problems.push(problem(["postgres", "slot"], title, help));
    }
    let publication = &config.postgres.publication;
    if publication.is_empty() || publication.len() > LONGEST_NAME {
        let shown = shown(text, table, &["postgres", "publication"]);
        let title = format!("{shown} cannot be the name of a publication");
        problems.push(problem(
            ["postgres", "publication"],
            title,
            "Postgres takes 1 to 63 bytes",
        ));
    }
    let name = &config.outbox.table;
    let parts: Vec<&str> = name.split('.').collect();
    let fits = |part: &&str| !part.is_empty() && part.len() <= LONGEST_NAME + QUOTES;
    if !name.contains('"') && (parts.len() != 2 || !parts.iter().all(fits)) {
        let shown = shown(text, table, &["outbox", "table"]);
        let title = match parts.as_slice() {
            [table] if fits(table) => format!("`outbox.table`: {shown} has no schema"),
            _ => format!("`outbox.table`: {shown} cannot be the name of a table"),
        };
        let help = "write it with its schema: \"aftercommit.outbox\", \"public.outbox\"";
        problems.push(problem(["outbox", "table"], title, help));
    }
    problems
}

/// Postgres's NAMEDATALEN, less one (documentation, chapter "Identifiers and Key Words").
const LONGEST_NAME: usize = 63;
const QUOTES: usize = 2;

fn columns(config: &Config, text: &str, table: &DeTable<'_>) -> Vec<Problem> {
    let known: Vec<String> = Field::ALL
        .iter()
        .map(|field| field.name().to_owned())
        .collect();
    let mut problems = Vec::new();
    for (field, column) in &config.outbox.columns {
        let path = ["outbox", "columns", field];
        if !known.contains(field) {
            let near = near::of(field, &known).map(|near| format!("did you mean `{near}`?"));
            let title = format!("a task has no field `{field}`");
            let help = format!(
                "left of the = stands the field, right of it your column; the fields are {}",
                listed(&known, "")
            );
            let place = tree::key_place(table, &path);
            problems.push(Problem::new(title).at(place).label(near).help(help));
        } else if column.is_empty() || column.len() > LONGEST_NAME {
            let shown = shown(text, table, &path);
            let title = format!("{shown} cannot be the name of a column");
            let place = tree::value(table, &path).map(|value| value.span());
            problems.push(
                Problem::new(title)
                    .at(place)
                    .help("Postgres takes 1 to 63 bytes"),
            );
        }
    }
    problems
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

/// The schemes of the URLs. The rest of a URL is read by who connects with it.
pub(super) fn urls(config: &Config, text: &str, table: &DeTable<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut check = |path: &[&str], url: &SecretString, verdict: fn(&str) -> Result<(), String>| {
        let Err(why) = verdict(url.expose_secret()) else {
            return;
        };
        let Some((key, section)) = path.split_last() else {
            return;
        };
        let file_key = format!("{key}_file");
        let in_file = [section, &[file_key.as_str()]].concat();
        let place = tree::value(table, path).or_else(|| tree::value(table, &in_file));
        let place = place.map(|value| value.span());
        let raw = place
            .clone()
            .and_then(|place| text.get(place))
            .unwrap_or_default();
        let bare_variable = raw
            .trim_matches(['"', '\''])
            .strip_prefix('$')
            .is_some_and(|name| !name.starts_with(['{', '$']));
        let steps: Vec<String> = path.iter().map(|step| (*step).to_owned()).collect();
        let problem = Problem::new(format!("`{}` {why}", tree::dotted(&steps))).at(place);
        problems.push(match bare_variable {
            true => problem.help("a variable is written ${NAME}"),
            false => problem,
        });
    };
    if let Some(url) = &config.postgres.url {
        check(&["postgres", "url"], url, postgres_url);
    }
    for (index, url) in config.gate.replicas.iter().enumerate() {
        check(
            &["gate", "replicas", &format!("[{index}]")],
            url,
            postgres_url,
        );
    }
    for (name, sink) in &config.sinks.celery {
        if let Some(url) = &sink.broker_url {
            check(&["sink", "celery", name, "broker_url"], url, celery_url);
        }
    }
    problems
}

fn postgres_url(url: &str) -> Result<(), String> {
    match scheme(url) {
        Some("postgres" | "postgresql") => Ok(()),
        None if url.contains('=') => Ok(()),
        _ => Err("must begin with postgres://".to_owned()),
    }
}

fn celery_url(url: &str) -> Result<(), String> {
    const HAS: &str = "this build has brokers at redis://, rediss:// and redis+socket://";
    match scheme(url) {
        Some("redis" | "rediss" | "redis+socket" | "unix") => Ok(()),
        Some(other @ ("amqp" | "amqps" | "pyamqp" | "sqs" | "sentinel")) => Err(format!(
            "names a broker ({other}://) that is not part of this build; {HAS}"
        )),
        _ => Err(format!("does not begin with the scheme of a broker; {HAS}")),
    }
}

fn scheme(url: &str) -> Option<&str> {
    url.split_once("://").map(|(scheme, _)| scheme)
}

/// Keys of the contract that are accepted now and take effect with a later version.
const LATER: [(&[&str], &str); 3] = [
    (
        &["outbox", "retention"],
        "takes effect with the hold table; until then settled rows stay in the outbox",
    ),
    (
        &["limits", "slot_lag"],
        "takes effect with the hold table; until then a stalled sink holds the slot back",
    ),
    (
        &["admin"],
        "takes effect with the status page; until then nothing listens",
    ),
];

/// The same, of a route's `retry`.
const LATER_RETRY: [(&str, &str); 2] = [
    (
        "attempts",
        "takes effect with the hold table; until then a task is tried again without end",
    ),
    (
        "hold_after",
        "takes effect with the hold table; until then a task is tried again in its place",
    ),
];

/// What can be used, and should be known.
pub(super) fn findings(config: &Config, text: &str, table: &DeTable<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let line = |path: &[&str]| {
        let place = tree::key_place(table, path)?;
        Some(tree::line_number(text, place.start))
    };
    let mut later = |path: &[&str], what: &str| {
        if let Some(value) = tree::value(table, path) {
            let key = path.last().copied().unwrap_or_default();
            let shown = match value.get_ref().is_table() {
                true => format!("[{key}]"),
                false => format!("{key} = {}", text.get(value.span()).unwrap_or_default()),
            };
            findings.push(Finding {
                severity: Severity::Note,
                line: line(path),
                text: format!("{shown} {what}"),
            });
        }
    };
    for (path, what) in LATER {
        later(path, what);
    }
    for index in 0..config.routes.len() {
        for (key, what) in LATER_RETRY {
            later(&["route", &format!("[{index}]"), "retry", key], what);
        }
    }
    let route_line = |index: usize| line(&["route", &format!("[{index}]")]);
    for (index, by) in route::unreachable(&config.routes) {
        let (Some(route), Some(earlier)) = (config.routes.get(index), config.routes.get(by)) else {
            continue;
        };
        let place = route_line(by).map_or(String::new(), |line| format!(" (line {line})"));
        findings.push(Finding {
            severity: Severity::Warning,
            line: route_line(index),
            text: format!(
                "no task reaches the route for \"{}\": the route for \"{}\"{place} comes first and takes them all",
                route.task, earlier.task
            ),
        });
    }
    if !config.gate.visibility {
        findings.push(Finding {
            severity: Severity::Warning,
            line: line(&["gate", "visibility"]),
            text: "the gate is off: a worker can get a task before it can see the row".to_owned(),
        });
    }
    if !config
        .routes
        .iter()
        .any(|route| route.task == route::Pattern::All)
    {
        findings.push(Finding {
            severity: Severity::Note,
            line: None,
            text: "no route has task = \"*\": a task that no other route matches has nowhere to go"
                .to_owned(),
        });
    }
    for name in config.sink_types.keys() {
        if !config.routes.iter().any(|route| route.sink == *name) {
            let kind = config.sink_types.get(name).map_or("", String::as_str);
            findings.push(Finding {
                severity: Severity::Warning,
                line: line(&["sink", kind, name]),
                text: format!("no route names the sink {name:?}"),
            });
        }
    }
    findings.sort_by_key(|finding| finding.line);
    findings
}
