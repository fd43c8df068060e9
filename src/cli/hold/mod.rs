//! `aftercommit hold`: looks at held tasks, sends them again, drops them.

mod change;
mod filter;
mod list;
mod show;
mod table;

use clap::Subcommand;
use tokio_postgres::Client;

use super::exit::Code;
use super::{Failure, block_on};
use crate::config::Config;
use crate::replication::{Error, connect_sql_unhurried};

/// Look at held tasks, send them again, or drop them.
///
/// A held task waits for its time (scheduled), for another attempt (retrying), or for you (dead). These are the tasks of
/// the slot in the configuration. With nothing but psql: select * from aftercommit.hold;
/// select aftercommit.hold_retry(hold_id); select aftercommit.hold_discard(hold_id);
/// select aftercommit.cancel('the id of a scheduled task').
#[derive(Debug, clap::Args)]
#[command(about, long_about)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List held tasks, and count them by state
    List(list::Args),
    /// Show everything about one held task
    Show(show::Args),
    /// Send dead tasks again, with all their attempts and no expiry; with --state retrying, those that wait for another
    /// attempt now
    Retry(change::Args),
    /// Drop dead tasks for good; others with --state, or where they are named
    Discard(change::Args),
}

/// Runs the command.
pub(super) fn execute(config: &Config, args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::Retry(args) => args.check_retry()?,
        Command::Discard(args) => args.check()?,
        Command::List(_) | Command::Show(_) => {}
    }
    let target = config
        .postgres
        .target()
        .map_err(|why| Failure::new(Code::Config, why))?;
    block_on(async {
        let db = connect_sql_unhurried(&target, "aftercommit hold").await?;
        let hold = Hold {
            db,
            slot: config.postgres.slot.clone(),
        };
        match &args.command {
            Command::List(args) => list::execute(&hold, args).await,
            Command::Show(args) => show::execute(&hold, args).await,
            Command::Retry(args) => change::retry(&hold, args).await,
            Command::Discard(args) => change::discard(&hold, args).await,
        }
    })
}

/// The hold table of one slot.
struct Hold {
    db: Client,
    slot: String,
}

/// A query on the hold table failed.
fn failed(error: tokio_postgres::Error) -> Failure {
    let missing = error
        .code()
        .is_some_and(|code| matches!(code.code(), "42P01" | "3F000" | "42883"));
    if missing {
        return Failure::new(
            Code::Config,
            "this database has no hold table: aftercommit init makes it",
        );
    }
    Error::sql("hold table", error).into()
}
