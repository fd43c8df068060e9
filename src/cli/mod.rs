//! Floor 10: the command line. One file for each command; here is what they share.

mod args;
mod check;
mod completions;
#[cfg(all(feature = "celery", feature = "stdout"))]
pub mod demo;
pub mod exit;
mod hold;
pub mod init;
mod output;
mod plan;
mod run;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use crate::config::{self, Config};
use crate::replication::{self, Policy};
use args::{Args, Command};
use exit::Code;

/// Parses the arguments, runs the command, and returns the process's exit code.
pub fn main() -> ExitCode {
    match Args::try_parse().and_then(Args::checked) {
        Ok(args) => execute(args).unwrap_or_else(|failure| {
            output::complain(&failure.message);
            failure.code.into()
        }),
        Err(told) => {
            // Help and version come this way too, with a code of 0. A closed pipe is nobody's failure.
            let _ = told.print();
            match told.exit_code() {
                0 => Code::Clean.into(),
                _ => Code::Usage.into(),
            }
        }
    }
}

fn execute(args: Args) -> Result<ExitCode, Failure> {
    let config = args.config;
    match args.command {
        None => run::execute(&load(config)?, args.run.until)?,
        Some(Command::Run(run)) => run::execute(&load(config)?, run.until)?,
        Some(Command::Init(args)) => init::execute(&load(config)?, &args)?,
        Some(Command::Hold(args)) => hold::execute(&load(config)?, &args)?,
        Some(Command::Check(args)) => {
            let path = required(config)?;
            check::execute(&path, &read(&path)?, &args)?;
        }
        #[cfg(all(feature = "celery", feature = "stdout"))]
        Some(Command::Demo(demo)) => return Ok(demo::run(demo)),
        Some(Command::Completions { shell }) => completions::execute(shell)?,
    }
    Ok(Code::Clean.into())
}

/// Why a command ended early: what the operator reads, and the code that the process returns.
#[derive(Debug)]
struct Failure {
    code: Code,
    message: String,
}

impl Failure {
    fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure {
            code,
            message: format!("error: {}", message.into()),
        }
    }
}

impl From<config::Error> for Failure {
    fn from(error: config::Error) -> Failure {
        Failure {
            code: Code::Config,
            message: error.render(output::colours()),
        }
    }
}

/// The server, or the way to it.
impl From<replication::Error> for Failure {
    fn from(error: replication::Error) -> Failure {
        let code = match error.policy() {
            Policy::Stop(stop) => Code::from(stop),
            Policy::Reconnect | Policy::StandBy => Code::Temporary,
        };
        Failure::new(code, error.to_string())
    }
}

/// Runs what has to wait for somebody else.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime =
        runtime.map_err(|error| Failure::new(Code::Runtime, format!("cannot start: {error}")))?;
    runtime.block_on(work)
}

fn required(path: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let none = "no configuration is given: name the file with -c FILE, or set AFTERCOMMIT_CONFIG";
    path.ok_or_else(|| Failure::new(Code::Usage, none))
}

fn read(path: &Path) -> Result<Config, Failure> {
    Ok(Config::load(path)?)
}

fn load(path: Option<PathBuf>) -> Result<Config, Failure> {
    read(&required(path)?)
}
