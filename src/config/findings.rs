//! What can be used, and should be known.

use toml::de::DeTable;

use super::report::{Finding, Severity};
use super::{Config, tree};
use crate::route;

/// Keys of the contract that are accepted now and take effect with a later version.
const LATER: [(&[&str], &str); 1] = [(
    &["admin"],
    "takes effect with the status page; until then nothing listens",
)];

/// What can be used, and should be known.
pub(super) fn told(config: &Config, text: &str, table: &DeTable<'_>) -> Vec<Finding> {
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
