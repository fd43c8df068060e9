//! `hold list`.

use tokio_postgres::Row as SqlRow;
use tokio_postgres::types::Type;

use super::filter::Filter;
use super::table::{self, Due};
use super::{Hold, failed};
use crate::cli::{Failure, output};

/// Rows that are fetched at a time.
const PAGE: i64 = 1_000;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    filter: Filter,

    /// List so many at most, the oldest first [default: 50, and all with --json]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(1..))]
    limit: Option<i64>,

    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// Prints the list.
pub(super) async fn execute(hold: &Hold, args: &Args) -> Result<(), Failure> {
    if args.json {
        let page = |rows: &[SqlRow]| {
            let lines = rows.iter().map(|row| row.try_get::<_, String>(1));
            let lines: Result<Vec<_>, _> = lines.collect();
            let mut text = lines.map_err(failed)?.join("\n");
            text.push('\n');
            output::print(&text)
        };
        hold.pages(args, JSON, page).await?;
        return Ok(());
    }
    let mut rows = Vec::new();
    let shown = hold.pages(args, COLUMNS, |page| {
        let page: Result<Vec<_>, _> = page.iter().map(read).collect();
        rows.extend(page.map_err(failed)?);
        Ok(())
    });
    let shown = shown.await?;
    let counts = hold.counts(&args.filter).await?;
    let mut text = match rows.is_empty() {
        true => String::new(),
        false => table::render(&rows),
    };
    text.push_str(&summary(&counts, shown));
    for other in hold.other_slots().await? {
        text.push_str(&format!(
            "slot {} has held tasks, too: [postgres] slot says which ones are shown\n",
            table::printable(&other)
        ));
    }
    output::print(&text)
}

const COLUMNS: &str = "\
    h.state, h.task, h.key, h.sink, h.attempts,
    case when isfinite(h.held_at) then floor(extract(epoch from clock_timestamp() - h.held_at))::int8
         else 9223372036854775807 end,
    case when isfinite(h.due_at) then floor(extract(epoch from h.due_at - clock_timestamp()))::int8
         when h.due_at > clock_timestamp() then 9223372036854775807
         when h.due_at is not null then 0 end,
    h.last_error";

fn read(row: &SqlRow) -> Result<table::Row, tokio_postgres::Error> {
    let state: String = row.try_get(1)?;
    let due = match row.try_get(7)? {
        Some(seconds) => Due::In(seconds),
        None if state == "dead" => Due::Never,
        None => Due::Behind,
    };
    Ok(table::Row {
        hold_id: row.try_get(0)?,
        state,
        task: row.try_get(2)?,
        key: row.try_get(3)?,
        sink: row.try_get(4)?,
        attempts: row.try_get(5)?,
        age_s: row.try_get(6)?,
        due,
        error: row.try_get(8)?,
    })
}

/// One JSON object; never a payload.
pub(super) const JSON: &str = "\
    json_build_object(
      'hold_id', h.hold_id, 'slot', h.slot, 'sink', h.sink, 'route', h.route, 'state', h.state, 'id', h.id,
      'task', h.task, 'key', h.key, 'due_at', h.due_at, 'is_behind', h.due_at is null and h.state <> 'dead',
      'released_at', h.released_at, 'attempts', h.attempts, 'last_error', h.last_error, 'held_at', h.held_at,
      'updated_at', h.updated_at, 'commit_lsn', h.commit_lsn, 'ordinal', h.ordinal, 'committed_at', h.committed_at
    )::text";

/// `3 of 5 held tasks: 4 dead, 1 retrying`
fn summary(counts: &[(String, i64)], shown: i64) -> String {
    let all: i64 = counts.iter().map(|(_, count)| count).sum();
    if all == 0 {
        return "no held tasks\n".to_owned();
    }
    let by_state: Vec<String> = counts
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let part = match shown < all {
        true => format!("{shown} of "),
        false => String::new(),
    };
    let tasks = if all == 1 { "task" } else { "tasks" };
    format!("{part}{all} held {tasks}: {}\n", by_state.join(", "))
}

impl Hold {
    /// Fetches the rows page by page; the first column is the row's number. Returns how many there were.
    async fn pages(
        &self,
        args: &Args,
        columns: &str,
        mut page: impl FnMut(&[SqlRow]) -> Result<(), Failure>,
    ) -> Result<i64, Failure> {
        let condition = args.filter.condition(&self.slot);
        let sql = format!(
            "select h.hold_id, {columns} from aftercommit.hold h where {} and h.hold_id > {} \
             order by h.hold_id limit {}",
            condition.sql(),
            condition.place(0),
            condition.place(1)
        );
        let limit = match (args.limit, args.json) {
            (Some(limit), _) => limit,
            (None, true) => i64::MAX,
            (None, false) => 50,
        };
        let (mut last, mut left) = (0, limit);
        loop {
            let numbers = [last, left.min(PAGE)];
            let rows = self.db.query_typed(&sql, &condition.params(&numbers)).await;
            let rows = rows.map_err(failed)?;
            let Some(end) = rows.last() else {
                return Ok(limit - left);
            };
            last = end.try_get(0).map_err(failed)?;
            left -= i64::try_from(rows.len()).unwrap_or(left);
            page(&rows)?;
        }
    }

    async fn counts(&self, filter: &Filter) -> Result<Vec<(String, i64)>, Failure> {
        let condition = filter.condition(&self.slot);
        let sql = format!(
            "select h.state, count(*) from aftercommit.hold h where {} group by h.state order by h.state",
            condition.sql()
        );
        let rows = self.db.query_typed(&sql, &condition.params(&[])).await;
        rows.and_then(|rows| {
            let pair = |row: &SqlRow| Ok((row.try_get(0)?, row.try_get(1)?));
            rows.iter().map(pair).collect()
        })
        .map_err(failed)
    }

    /// Slots with held tasks that are not ours; the first and the last of them.
    async fn other_slots(&self) -> Result<Vec<String>, Failure> {
        let rows = self
            .db
            .query_typed(
                "select distinct slot from (
                   select min(slot) as slot from aftercommit.hold union all select max(slot) from aftercommit.hold) h
                 where slot <> $1 order by slot",
                &[(&self.slot, Type::TEXT)],
            )
            .await;
        rows.and_then(|rows| rows.iter().map(|row| row.try_get(0)).collect())
            .map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_says_what_is_left_out() {
        let counts = |counts: &[(&str, i64)]| -> Vec<(String, i64)> {
            let owned = counts.iter();
            owned.map(|(state, n)| ((*state).to_owned(), *n)).collect()
        };
        for (given, shown, expected) in [
            (counts(&[]), 0, "no held tasks\n"),
            (counts(&[("dead", 1)]), 1, "1 held task: 1 dead\n"),
            (
                counts(&[("dead", 4), ("retrying", 1)]),
                3,
                "3 of 5 held tasks: 4 dead, 1 retrying\n",
            ),
        ] {
            assert_eq!(summary(&given, shown), expected);
        }
    }
}
