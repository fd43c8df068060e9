//! Floor 1: the log: text on a terminal, JSON otherwise, to standard error, and never in the way of the work.
//!
//! A line is handed to a thread of its own. If standard error is stuck or gone, lines are dropped and counted; nothing
//! waits for it, and nothing panics because of it.

mod queue;

use std::io::{self, IsTerminal};

use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

pub use queue::Queue;

/// The variable that overrides `[log] level`.
const FILTER: &str = "RUST_LOG";

/// Starts to log as `config` says; the level is overridden by `filter`, the value of `RUST_LOG`. What is still queued
/// when the returned [`Queue`] is dropped is written first, if that is quickly done.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(config: &Config, filter: Option<&str>) -> io::Result<Queue> {
    let stderr = io::stderr();
    let terminal = stderr.is_terminal();
    let queue = Queue::start(stderr)?;
    let (filter, refused) = choose(config.level, filter);
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(queue.writer())
        .log_internal_errors(false);
    let text = match config.format {
        Format::Auto => terminal,
        Format::Text => true,
        Format::Json => false,
    };
    // A second start in one process, as in tests, leaves the first one in place.
    let _ = match text {
        true => {
            let colours = terminal && std::env::var_os("NO_COLOR").is_none();
            lines
                .with_ansi(colours)
                .with_target(false)
                .finish()
                .try_init()
        }
        false => lines.json().flatten_event(true).finish().try_init(),
    };
    if let Some(why) = refused {
        tracing::warn!("{FILTER} is ignored: {why}");
    }
    Ok(queue)
}

/// The filter to use, and why `RUST_LOG` was not understood.
fn choose(level: Level, variable: Option<&str>) -> (EnvFilter, Option<String>) {
    let ours = match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "warn,aftercommit=info",
        Level::Debug => "warn,aftercommit=debug",
        Level::Trace => "warn,aftercommit=trace",
    };
    match variable
        .filter(|text| !text.is_empty())
        .map(EnvFilter::try_new)
    {
        None => (EnvFilter::new(ours), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(why)) => (EnvFilter::new(ours), Some(why.to_string())),
    }
}

/// `[log]`
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Nothing below it is logged; `RUST_LOG` overrides it.
    pub level: Level,
    /// How a line looks.
    pub format: Format,
}

/// How much is logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// What stops or loses something.
    Error,
    /// What needs attention.
    Warn,
    /// What happens.
    Info,
    /// Why it happens.
    Debug,
    /// Every step.
    Trace,
}

/// How a line of the log looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// One object a line.
    Json,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            level: Level::Info,
            format: Format::Auto,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_overrides_the_level() {
        for (level, variable, expected, understood) in [
            (Level::Error, None, "error", true),
            (Level::Debug, None, "aftercommit=debug,warn", true),
            (Level::Info, Some(""), "aftercommit=info,warn", true),
            (Level::Info, Some("trace"), "trace", true),
            (Level::Info, Some("a=b=c"), "aftercommit=info,warn", false),
        ] {
            let (filter, refused) = choose(level, variable);
            assert_eq!(filter.to_string(), expected);
            assert_eq!(refused.is_none(), understood);
        }
    }
}
