//! `aftercommit run`

use super::exit::Code;
use super::{Failure, Until};
use crate::config::{Config, Severity};
use crate::logging;

/// Runs until stopped, or until everything up to `until` is settled.
pub(super) fn execute(config: Config, until: Option<Until>) -> Result<(), Failure> {
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
    Err(Failure::new(
        Code::Runtime,
        format!("run is not wired yet (until {until:?})"),
    ))
}
