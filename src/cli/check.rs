//! `aftercommit check`: what a configuration says, and what is odd about it, without connecting to anything; and with
//! `--online`, what the sinks are like that it names.

use std::fmt::Write;
use std::path::Path;

use std::time::Duration;

use tokio::time::timeout;

use super::exit::Code;
use super::{Failure, block_on, output};
use crate::config::Config;
use crate::outbox::config::{Preset, Retention};
use crate::sink::Sight;

/// How long a look at a sink may take.
const LOOK: Duration = Duration::from_secs(10);

/// The arguments of `check`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Connect to the sinks, too, and look whether they take tasks, and keep them. Sends nothing
    #[arg(long)]
    online: bool,
}

/// Prints the findings and a summary.
pub(super) fn execute(path: &Path, config: &Config, args: &Args) -> Result<(), Failure> {
    output::print(&report(&path.display().to_string(), config))?;
    match args.online {
        true => look(config),
        false => Ok(()),
    }
}

/// Prints what each sink is like.
fn look(config: &Config) -> Result<(), Failure> {
    let sinks = config.sinks.open();
    let sinks = sinks.map_err(|words| Failure::new(Code::Config, words))?;
    let mut faults = 0;
    block_on(async {
        for (name, mut sink) in sinks {
            let sights = timeout(LOOK, sink.probe()).await.unwrap_or_else(|_| {
                let words = format!("it does not answer within {LOOK:?}");
                vec![Sight::Fault(
                    words,
                    "see whether it hangs, or something on the way".to_owned(),
                )]
            });
            let mut out = String::new();
            for sight in sights {
                faults += usize::from(matches!(sight, Sight::Fault(..)));
                let _ = match sight {
                    Sight::Good(words) => writeln!(out, "ok: sink {name}: {words}"),
                    Sight::Risk(words, remedy) => {
                        writeln!(out, "warning: sink {name}: {words}\n  {remedy}")
                    }
                    Sight::Fault(words, remedy) => {
                        writeln!(out, "error: sink {name}: {words}\n  {remedy}")
                    }
                };
            }
            output::print(&out)?;
        }
        Ok(())
    })?;
    match faults {
        0 => Ok(()),
        _ => Err(Failure::new(
            Code::Runtime,
            "tasks cannot be delivered yet; what is wrong is told above",
        )),
    }
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
