//! The arguments.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

#[cfg(all(feature = "celery", feature = "stdout"))]
use super::demo;
use super::{check, hold, init};
use crate::intake::Until;
use crate::pg::Lsn;

const AFTER_HELP: &str = "\
Without a command it runs, as with `run`.

Exit codes: 0 clean, 1 runtime, 2 usage, 3 slot or publication lost (do not restart blindly), 75 temporary,
78 configuration. Logs go to standard error; RUST_LOG overrides their level.";

/// Dispatches tasks from a Postgres outbox table after COMMIT, to unmodified Celery workers and other destinations.
#[derive(Debug, Parser)]
#[command(name = "aftercommit", version, after_help = AFTER_HELP, max_term_width = 100)]
pub(super) struct Args {
    /// The configuration; config.example.toml documents every key
    #[arg(
        short,
        long,
        value_name = "FILE",
        global = true,
        env = "AFTERCOMMIT_CONFIG"
    )]
    pub(super) config: Option<PathBuf>,

    #[command(flatten)]
    pub(super) run: Run,

    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Read commits and dispatch their tasks, until stopped
    Run(Run),
    /// Create the schema, the outbox, the roles, the publication and the slot
    Init(init::Args),
    /// Look at held tasks, send them again, or drop them
    Hold(hold::Args),
    /// Check the configuration, without connecting to anything unless asked to
    Check(check::Args),
    #[cfg(all(feature = "celery", feature = "stdout"))]
    /// Show the problem and the cure, on a private Postgres
    Demo(demo::Args),
    /// Print the completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// The arguments of `run`.
#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// Stop when everything up to here is settled: an LSN such as 16/B374D848, or `now`
    #[arg(long, value_name = "LSN|now", value_parser = until)]
    pub(super) until: Option<Until>,
}

impl Args {
    /// Refuses what only `run` understands beside another command.
    pub(super) fn checked(self) -> Result<Args, clap::Error> {
        match self.command {
            Some(_) if self.run.until.is_some() => Err(Args::command().error(
                ErrorKind::ArgumentConflict,
                "--until belongs to `run`: write it after the command, or leave the command out",
            )),
            _ => Ok(self),
        }
    }
}

fn until(text: &str) -> Result<Until, String> {
    match text {
        "now" => Ok(Until::Now),
        _ => text
            .parse::<Lsn>()
            .map(Until::Lsn)
            .map_err(|error| format!("{error}, or is `now`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        let words = std::iter::once("aftercommit").chain(line.split_whitespace());
        Args::try_parse_from(words).and_then(Args::checked)
    }

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn reads_commands() {
        let until = |line: &str| match parse(line).expect(line) {
            Args {
                command: None, run, ..
            } => run.until,
            Args {
                command: Some(Command::Run(run)),
                ..
            } => run.until,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(until(""), None);
        assert_eq!(until("-c f --until now"), Some(Until::Now));
        assert_eq!(until("run --until 0/10"), Some(Until::Lsn(Lsn(16))));
        for line in ["-c f check", "check -c f", "--config=f check"] {
            let args = parse(line).expect(line);
            assert_eq!(args.config, Some(PathBuf::from("f")), "{line}");
            assert!(matches!(args.command, Some(Command::Check(_))), "{line}");
        }
        let print = parse("init --print").expect("it is a command").command;
        assert!(matches!(
            print,
            Some(Command::Init(init::Args { print: true, .. }))
        ));
    }

    #[test]
    fn refuses_the_rest() {
        for line in [
            "chekc",
            "--until",
            "--until never",
            "--until now check",
            "check --until now",
            "check extra",
            "completions",
            "completions dos",
        ] {
            let refused = parse(line).expect_err(line);
            assert_eq!(refused.exit_code(), 2, "{line}");
        }
    }
}
