//! `hold show`.

use std::fmt::Write as _;

use serde_json::{Map, Value};
use tokio_postgres::types::Type;

use super::filter::Condition;
use super::list::JSON;
use super::table::{printable, span};
use super::{Hold, failed};
use crate::cli::exit::Code;
use crate::cli::{Failure, output};

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The first column of `hold list`
    #[arg(value_name = "HOLD_ID")]
    hold_id: i64,

    /// Show what the task carries, too: arguments, payload, body, headers, options
    #[arg(long)]
    payload: bool,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// What a task carries. It may be secret, and is shown only when asked for.
const PAYLOAD: [&str; 6] = ["args", "kwargs", "payload", "body", "headers", "options"];

/// Prints one task.
pub(super) async fn execute(hold: &Hold, args: &Args) -> Result<(), Failure> {
    let mut condition = Condition::new(&hold.slot);
    condition.and("h.hold_id = ?", args.hold_id, Type::INT8);
    // Sizes are of the text, as it was sent.
    let payload = PAYLOAD.map(|field| match args.payload {
        true => format!("'{field}', h.{field}"),
        false => format!("'{field}', octet_length(h.{field})"),
    });
    let sql = format!(
        "select {JSON}, json_build_object({}, 'queue', h.queue, 'priority', h.priority, 'run_at', h.run_at,
                'expires_at', h.expires_at)::text,
                case when isfinite(h.held_at) then floor(extract(epoch from clock_timestamp() - h.held_at))::int8 end,
                case when isfinite(h.due_at) then floor(extract(epoch from h.due_at - clock_timestamp()))::int8 end,
                case when h.due_at is null and h.state <> 'dead' then (
                  select min(q.hold_id) from aftercommit.hold q
                  where q.slot = h.slot and q.sink = h.sink and q.blocks and q.key = h.key
                    and hashtextextended(q.key, 0) = hashtextextended(h.key, 0)) end
         from aftercommit.hold h where {}",
        payload.join(", "),
        condition.sql()
    );
    let row = hold.db.query_typed_opt(&sql, &condition.params(&[])).await;
    let row = row.map_err(failed)?.ok_or_else(|| {
        Failure::new(
            Code::Runtime,
            format!(
                "there is no held task {} in slot {}",
                args.hold_id, hold.slot
            ),
        )
    })?;
    let known: String = row.try_get(0).map_err(failed)?;
    let carried: String = row.try_get(1).map_err(failed)?;
    let (known, carried) = (object(&known)?, object(&carried)?);
    if args.json {
        return output::print(&json(known, carried, args.payload)?);
    }
    let times = Times {
        age_s: row.try_get(2).map_err(failed)?,
        due_s: row.try_get(3).map_err(failed)?,
        behind: row.try_get(4).map_err(failed)?,
    };
    output::print(&text(&known, &carried, &times, args.payload))
}

struct Times {
    age_s: Option<i64>,
    due_s: Option<i64>,
    behind: Option<i64>,
}

fn object(text: &str) -> Result<Map<String, Value>, Failure> {
    serde_json::from_str(text)
        .map_err(|error| Failure::new(Code::Runtime, format!("the answer is no object: {error}")))
}

fn json(
    mut known: Map<String, Value>,
    carried: Map<String, Value>,
    with_payload: bool,
) -> Result<String, Failure> {
    for (field, value) in carried {
        let name = match PAYLOAD.contains(&field.as_str()) && !with_payload {
            true => format!("{field}_bytes"),
            false => field,
        };
        known.insert(name, value);
    }
    let line = serde_json::to_string(&known)
        .map_err(|error| Failure::new(Code::Runtime, format!("cannot be written: {error}")))?;
    Ok(line + "\n")
}

fn text(
    known: &Map<String, Value>,
    carried: &Map<String, Value>,
    times: &Times,
    with_payload: bool,
) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(out, "{name:<13} {value}");
        }
    };
    let shown = |map: &Map<String, Value>, name: &str| match map.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => printable(text),
        Some(other) => other.to_string(),
    };
    for name in [
        "hold_id", "slot", "sink", "route", "state", "id", "task", "key",
    ] {
        line(name, &shown(known, name));
    }
    let due = shown(known, "due_at");
    line(
        "due_at",
        &match (times.due_s, times.behind) {
            (Some(seconds), _) if seconds > 0 => format!("{due}, in {}", span(seconds)),
            (Some(_), _) => format!("{due}, now"),
            (None, Some(behind)) => {
                format!("when those before it in its key have gone, from {behind} on")
            }
            (None, None) => due,
        },
    );
    for name in ["released_at", "attempts", "last_error"] {
        line(name, &shown(known, name));
    }
    let held = shown(known, "held_at");
    line(
        "held_at",
        &match times.age_s {
            Some(seconds) => format!("{held}, {} ago", span(seconds)),
            None => held,
        },
    );
    line("updated_at", &shown(known, "updated_at"));
    line(
        "committed_at",
        &format!(
            "{}, LSN {}, row {} of its transaction",
            shown(known, "committed_at"),
            shown(known, "commit_lsn"),
            shown(known, "ordinal")
        ),
    );
    for name in ["queue", "priority", "run_at", "expires_at"] {
        line(name, &shown(carried, name));
    }
    if with_payload {
        PAYLOAD
            .iter()
            .for_each(|name| line(name, &shown(carried, name)));
        return out;
    }
    let sizes: Vec<String> = PAYLOAD
        .iter()
        .filter(|name| !carried.get(**name).is_none_or(Value::is_null))
        .map(|name| format!("{name} of {} bytes", shown(carried, name)))
        .collect();
    if !sizes.is_empty() {
        line(
            "carries",
            &format!("{}; --payload shows it", sizes.join(", ")),
        );
    }
    out
}
