//! `hold retry` and `hold discard`.

use tokio_postgres::types::Type;

use super::filter::{Condition, Filter, State};
use super::{Hold, failed};
use crate::cli::exit::Code;
use crate::cli::{Failure, output};

/// Rows of a transaction: a queue of the hold table is locked for as long as one takes.
const STEP: i64 = 5_000;

/// The arguments of both.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The first column of `hold list`
    #[arg(value_name = "HOLD_ID")]
    hold_ids: Vec<i64>,

    #[command(flatten)]
    filter: Filter,

    /// All of them; of a state, with --state
    #[arg(long, conflicts_with = "hold_ids")]
    all: bool,

    /// Print the number as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Refuses a command that is about every task, unless it says so.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.all || self.names_tasks() || self.filter.narrows() {
            return Ok(());
        }
        Err(Failure::new(
            Code::Usage,
            "which tasks? Give HOLD_IDs or a filter, such as --task; or --all",
        ))
    }

    /// Refuses to send what has not been tried.
    pub(super) fn check_retry(&self) -> Result<(), Failure> {
        if self.filter.state.contains(&State::Scheduled) {
            return Err(Failure::new(
                Code::Usage,
                "a scheduled task has not been tried: it is sent when its time has come",
            ));
        }
        self.check()
    }

    fn names_tasks(&self) -> bool {
        !self.hold_ids.is_empty() || self.filter.names_tasks()
    }

    /// The rows that are meant; in one of these states where none is given.
    fn condition(&self, slot: &str, states: &[State]) -> Condition {
        let mut filter = self.filter.clone();
        if filter.state.is_empty() {
            filter.state = states.to_vec();
        }
        let mut condition = filter.condition(slot);
        if !self.hold_ids.is_empty() {
            condition.and(
                "h.hold_id = any (?)",
                self.hold_ids.clone(),
                Type::INT8_ARRAY,
            );
        }
        condition
    }
}

/// Sends tasks again.
pub(super) async fn retry(hold: &Hold, args: &Args) -> Result<(), Failure> {
    let states: &[State] = match args.names_tasks() {
        true => &[State::Dead, State::Retrying],
        false => &[State::Dead],
    };
    let condition = args.condition(&hold.slot, states);
    let count = hold
        .change(&condition, "select aftercommit.hold_retry($1)")
        .await?;
    tell(args, count, "retried", "sent again")
}

/// Drops tasks.
pub(super) async fn discard(hold: &Hold, args: &Args) -> Result<(), Failure> {
    let states: &[State] = match args.names_tasks() {
        true => &[],
        false => &[State::Dead],
    };
    let condition = args.condition(&hold.slot, states);
    let count = hold
        .change(&condition, "select aftercommit.hold_discard($1)")
        .await?;
    tell(args, count, "discarded", "dropped")
}

/// How many, in words or in JSON. Whoever names tasks expects that they are there.
fn tell(args: &Args, count: i64, verb: &str, what: &str) -> Result<(), Failure> {
    let (tasks, are) = match count {
        1 => ("task", "is"),
        _ => ("tasks", "are"),
    };
    output::print(&match args.json {
        true => format!("{{\"{verb}\":{count}}}\n"),
        false => format!("{count} {tasks} {are} {what}\n"),
    })?;
    match count {
        0 if args.names_tasks() => Err(Failure::new(
            Code::Runtime,
            format!("none of the tasks that were named could be {verb}: see aftercommit hold list"),
        )),
        _ => Ok(()),
    }
}

impl Hold {
    /// Applies a function to the rows that are there now, step by step, and counts what it did.
    async fn change(&self, condition: &Condition, function: &str) -> Result<i64, Failure> {
        let step = format!(
            "select array_agg(hold_id) from (
               select h.hold_id from aftercommit.hold h
               where {} and h.hold_id > {} and h.hold_id <= {}
               order by h.hold_id limit {STEP}) h",
            condition.sql(),
            condition.place(0),
            condition.place(1)
        );
        let newest = "select coalesce(max(hold_id), 0) from aftercommit.hold";
        let row = self.db.query_typed_one(newest, &[]).await;
        let end: i64 = row.and_then(|row| row.try_get(0)).map_err(failed)?;
        let (mut count, mut last) = (0, 0);
        loop {
            let row = self
                .db
                .query_typed_one(&step, &condition.params(&[last, end]))
                .await;
            let ids: Option<Vec<i64>> = row.and_then(|row| row.try_get(0)).map_err(failed)?;
            let Some(ids) = ids else {
                return Ok(count);
            };
            let row = self
                .db
                .query_typed_one(function, &[(&ids, Type::INT8_ARRAY)])
                .await;
            let changed: i64 = row.and_then(|row| row.try_get(0)).map_err(failed)?;
            count += changed;
            last = ids.last().copied().unwrap_or(end);
        }
    }
}
