//! A task as a list's message, or as a stream's entry.

use serde::Deserialize;

use crate::envelope::json::{self, Kind};
use crate::envelope::{Unfit, check_json, decode_bytea, plain};
use crate::outbox::{Field, Task};
use crate::sink::redis_client::resp;

/// How a task is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object with all columns of the row that are not NULL.
    #[default]
    Json,
    /// The row's `payload` or `body`, as it is.
    Payload,
}

/// Columns that are fields of an entry where the message is the payload.
const BESIDE: [Field; 2] = [Field::Key, Field::Headers];

/// How many fields an entry has.
pub(super) fn fields(format: Format, task: &Task) -> usize {
    match format {
        Format::Json => 3,
        Format::Payload => {
            5 + BESIDE
                .iter()
                .filter(|field| task.get(**field).is_some())
                .count()
        }
    }
}

/// Appends an entry: fields and values as arguments. The id comes first: the script looks for it there.
pub(super) fn write_entry(out: &mut Vec<u8>, format: Format, task: &Task) -> Result<(), Unfit> {
    let field = |out: &mut Vec<u8>, name: &str, value: &[u8]| {
        resp::write_bulk(out, name.as_bytes());
        resp::write_bulk(out, value);
    };
    field(out, "id", task.id().as_bytes());
    let time = task.committed_at.rfc3339();
    let time = time.as_ref().map_or("", |time| time.as_str());
    field(out, "committed_at", time.as_bytes());
    if format == Format::Payload {
        field(out, "lsn", task.position.commit_lsn.to_string().as_bytes());
        field(out, "task", task.name().as_bytes());
        for beside in BESIDE {
            if let Some(value) = task.get(beside) {
                if beside == Field::Headers {
                    check(task, beside, Kind::Object)?;
                }
                field(out, beside.name(), value);
            }
        }
    }
    resp::write_bulk(out, b"data");
    let mut written = Ok(());
    resp::write_bulk_with(out, |out| written = write_message(out, format, task));
    written
}

/// Appends a message.
pub(super) fn write_message(out: &mut Vec<u8>, format: Format, task: &Task) -> Result<(), Unfit> {
    match format {
        Format::Json => plain::write(out, task),
        Format::Payload => match (task.get(Field::Payload), task.get(Field::Body)) {
            (Some(payload), None) => {
                check(
                    task,
                    Field::Payload,
                    json::kind(payload).unwrap_or(Kind::Object),
                )?;
                out.extend_from_slice(payload);
                Ok(())
            }
            (None, Some(body)) => {
                let body = decode_bytea(body);
                let words = "body must be a bytea column (in hexadecimal form)";
                out.extend_from_slice(&body.ok_or(Unfit::new(words))?);
                Ok(())
            }
            (Some(_), Some(_)) => Err(Unfit::new("payload and body exclude each other")),
            (None, None) => Err(Unfit::new(
                "payload and body are NULL, and the sink sends nothing else (format = \"payload\")",
            )),
        },
    }
}

fn check(task: &Task, field: Field, kind: Kind) -> Result<(), Unfit> {
    check_json(task, field, kind).map_err(|defect| Unfit::new(format!("{} {defect}", field.name())))
}
