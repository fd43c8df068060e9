//! `aftercommit check`: what a configuration says, and what is odd about it, without connecting to anything.

use std::fmt::Write;
use std::path::Path;

use super::{Failure, output};
use crate::config::Config;
use crate::outbox::config::{Preset, Retention};

/// Prints the findings and a summary.
pub(super) fn execute(path: &Path, config: &Config) -> Result<(), Failure> {
    output::print(&report(&path.display().to_string(), config))
}

fn report(name: &str, config: &Config) -> String {
    let mut out = String::new();
    for finding in &config.findings {
        let line = finding
            .line
            .map_or(String::new(), |line| format!(":{line}"));
        let (severity, text) = (finding.severity, &finding.text);
        let _ = writeln!(out, "{severity}: {name}{line}: {text}");
    }
    let _ = writeln!(out, "ok: {name}");
    for (what, text) in summary(config) {
        let _ = writeln!(out, "  {what:<8}  {text}");
    }
    out
}

fn summary(config: &Config) -> Vec<(&'static str, String)> {
    let postgres = &config.postgres;
    let mut lines = vec![
        (
            "postgres",
            format!(
                "slot {}, publication {}",
                postgres.slot, postgres.publication
            ),
        ),
        ("outbox", outbox(config)),
        ("gate", gate(config)),
    ];
    for (name, kind) in &config.sink_types {
        lines.push(("sink", format!("{name} ({kind})")));
    }
    for route in &config.routes {
        lines.push(("route", format!("{} -> {}", route.task, route.sink)));
    }
    lines
}

fn outbox(config: &Config) -> String {
    let outbox = &config.outbox;
    let mut text = match outbox.retention {
        Retention::Delete => format!("{}, settled rows are deleted", outbox.table),
        Retention::Keep => format!("{}, settled rows stay", outbox.table),
        Retention::Partition => format!("{}, settled partitions are dropped", outbox.table),
    };
    if let Some(Preset::Debezium) = outbox.preset {
        text.push_str(", preset debezium");
    }
    for (field, column) in &outbox.columns {
        let _ = write!(text, ", {field} = {column}");
    }
    text
}

fn gate(config: &Config) -> String {
    let gate = &config.gate;
    let replicas = match gate.replicas.len() {
        0 => String::new(),
        1 => ", and on 1 replica".to_owned(),
        n => format!(", and on {n} replicas"),
    };
    match (gate.visibility, replicas.as_str()) {
        (false, "") => "none: tasks leave as soon as their commit is decoded".to_owned(),
        (false, _) => format!(
            "not on the primary{replicas}; warns after {:?}",
            gate.timeout
        ),
        (true, _) => format!("until visible{replicas}; warns after {:?}", gate.timeout),
    }
}
