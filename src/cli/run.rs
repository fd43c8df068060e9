//! `aftercommit run`

use super::exit::Code;
use super::{Failure, plan};
use crate::config::{Config, Severity};
use crate::intake::{Halt, Until};
use crate::logging;
use crate::relay::End;
use crate::supervisor;

/// Runs until stopped, or until everything up to `until` is settled.
pub(super) fn execute(config: &Config, until: Option<Until>) -> Result<(), Failure> {
    let filter = std::env::var("RUST_LOG").ok();
    let _log = logging::start(&config.log, filter.as_deref()).map_err(|error| {
        Failure::new(Code::Runtime, format!("the log cannot be started: {error}"))
    })?;
    for finding in &config.findings {
        let line = finding.line;
        match finding.severity {
            Severity::Note => tracing::info!(line, "configuration: {}", finding.text),
            Severity::Warning => tracing::warn!(line, "configuration: {}", finding.text),
        }
    }
    let plan = plan::plan(config, until).map_err(|why| Failure::new(Code::Config, why))?;
    let end = supervisor::run(plan).map_err(|error| {
        Failure::new(
            Code::Runtime,
            format!("the daemon cannot be started: {error}"),
        )
    })?;
    match end {
        End::Clean => Ok(()),
        End::Halted(Halt { stop, words }) => Err(Failure::new(Code::from(stop), words)),
    }
}
