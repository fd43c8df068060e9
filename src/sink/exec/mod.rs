//! Processes of ours, for who has no broker: a command is started several times, and each of its processes does one task
//! after the other.
//!
//! - **Delivered** means: a worker has answered `ok`. Other than with a broker, the task is then done.
//! - **Repeats**: a worker that ends, or is ended, in the middle of a task may have done it; the task comes again, with the
//!   same `id`. So it does when the daemon is stopped and the worker does not come to its end within 7 seconds.
//! - **Order**: tasks of one key one after the other, each when the one before is done. Others side by side, one for each
//!   worker: a long task holds up its key and its worker, nobody else.
//! - **What can be lost**: nothing that was not answered for.
//!
//! The protocol:
//! - A worker reads a line from its standard input: a task, as one JSON object. `id`, `task`, `args`, `kwargs` and whatever
//!   else the row has (the head of `envelope/plain.rs` says more).
//! - It writes a line to its standard output: `ok`; `retry`, or `retry 30s`, not before that, with a reason if it likes; or
//!   `reject` with a reason: the task is dead. A buffered output needs a flush.
//! - Other lines on standard output are passed over, and told once. Standard error goes to the log, line by line.
//! - When its input ends, it ends, too.
//!
//! A worker that does not answer within `timeout` is ended, with all that it has started: SIGTERM to its process group, and
//! after `grace` SIGKILL. One that has ended is started anew; after several without an answer between, with pauses, and
//! meanwhile the sink is away. Its environment is what is configured, and PATH.

mod answer;
mod crew;
mod lines;
mod process;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustix::fs::{Access, access};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

pub use self::crew::Exec;
use self::process::Program;
use super::settings::check_timeout;
use super::{Invalid, Settings, Sink};

/// No machine does more at a time.
const MOST_WORKERS: u32 = 256;

/// `[sink.exec.<name>]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The program and its arguments; no shell.
    #[serde(default)]
    pub command: Vec<String>,
    /// Its processes.
    #[serde(default = "default_workers")]
    pub workers: u32,
    /// How long a task may take.
    #[serde(
        default = "default_timeout",
        deserialize_with = "crate::units::duration"
    )]
    pub timeout: Duration,
    /// From SIGTERM to SIGKILL.
    #[serde(default = "default_grace", deserialize_with = "crate::units::duration")]
    pub grace: Duration,
    /// Where it is started; the daemon's own working directory, if none.
    pub directory: Option<PathBuf>,
    /// Its environment, besides PATH: `"NAME=value"`.
    #[serde(default)]
    pub environment: Vec<SecretString>,
}

fn default_workers() -> u32 {
    2
}

fn default_timeout() -> Duration {
    Duration::from_secs(300)
}

fn default_grace() -> Duration {
    Duration::from_secs(5)
}

impl Settings for Config {
    fn validate(&self) -> Result<(), Invalid> {
        match self.command.first().map(String::as_str) {
            None => {
                return Err(Invalid::new(
                    "command",
                    "is missing: write [\"python3\", \"worker.py\"]",
                ));
            }
            Some("") => return Err(Invalid::new("command", "begins with no program")),
            Some(_) => {}
        }
        let holds_nul = |text: &str| text.contains('\0');
        if self.command.iter().any(|part| holds_nul(part)) {
            return Err(Invalid::new("command", "holds a zero byte"));
        }
        if self.workers == 0 || self.workers > MOST_WORKERS {
            return Err(Invalid::new(
                "workers",
                format!("must be 1 to {MOST_WORKERS}"),
            ));
        }
        check_timeout("timeout", self.timeout)?;
        self.variables().map(drop)
    }

    fn open(&self) -> Result<Box<dyn Sink>, Invalid> {
        self.validate()?;
        let program = Program {
            command: self.command.clone(),
            directory: self.directory.clone(),
            environment: self.variables()?,
            grace: self.grace,
            told: Arc::new(AtomicBool::new(false)),
        };
        let workers = usize::try_from(self.workers).unwrap_or(1);
        Ok(Box::new(Exec::new(program, workers, self.timeout)))
    }
}

impl Config {
    fn variables(&self) -> Result<Vec<(String, SecretString)>, Invalid> {
        let variable = |line: &SecretString| match line.expose_secret().split_once('=') {
            Some((name, value)) if !name.is_empty() && !line.expose_secret().contains('\0') => {
                Ok((name.to_owned(), value.to_owned().into()))
            }
            _ => Err(Invalid::new(
                "environment",
                "holds what is no variable: write \"NAME=value\"",
            )),
        };
        self.environment.iter().map(variable).collect()
    }
}

impl Program {
    /// The program's file, if it can be run.
    ///
    /// # Errors
    /// Why not, in words.
    fn find(&self) -> Result<PathBuf, String> {
        let name = Path::new(self.name());
        let runs = |path: &Path| path.is_file() && access(path, Access::EXEC_OK).is_ok();
        if self.name().contains('/') {
            // As execve(2) will see it, from where it is started.
            let path = self
                .directory
                .as_ref()
                .map_or(name.to_owned(), |directory| directory.join(name));
            return match runs(&path) {
                true => Ok(path),
                false => Err(format!("{} is no program that can be run", path.display())),
            };
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut found = std::env::split_paths(&path).map(|folder| folder.join(name));
        found
            .find(|path| runs(path))
            .ok_or_else(|| format!("{} is in no folder of PATH", name.display()))
    }
}
