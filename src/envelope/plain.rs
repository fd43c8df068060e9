//! A task as one JSON object on one line: each column that is not NULL, under the field's name, then `lsn`, `ordinal` and
//! `committed_at`.
//!
//! JSON columns are spliced unparsed; line breaks between their tokens become spaces. `body` is in base64.

use super::json::{self, Kind};
use super::{Unfit, check_json, decode_bytea, kombu};
use crate::outbox::{Field, Task};
use crate::pg::{Moment, Rfc3339};

/// Appends the object.
///
/// # Errors
/// Says which column is unfit; then only a part is written.
pub fn write(out: &mut Vec<u8>, task: &Task) -> Result<(), Unfit> {
    out.push(b'{');
    for field in Field::ALL {
        let (Some(bytes), Some(text)) = (task.get(field), task.text(field)) else {
            continue;
        };
        json::write_string(out, field.name());
        out.push(b':');
        match field {
            Field::Args => splice(out, task, field, bytes, Some(Kind::Array))?,
            Field::Kwargs | Field::Headers | Field::Options => {
                splice(out, task, field, bytes, Some(Kind::Object))?
            }
            Field::Payload => splice(out, task, field, bytes, None)?,
            Field::Body => {
                let body = decode_bytea(bytes).ok_or(Unfit::new(
                    "body must be a bytea column (in hexadecimal form)",
                ))?;
                out.push(b'"');
                kombu::write_base64(out, &body);
                out.push(b'"');
            }
            Field::Priority => match text.parse::<i64>() {
                Ok(_) => out.extend_from_slice(bytes),
                Err(_) => return Err(Unfit::new("priority must be a whole number")),
            },
            Field::RunAt | Field::ExpiresAt => write_moment(out, text),
            Field::Id | Field::Task | Field::Key | Field::Queue => json::write_string(out, text),
        }
        out.push(b',');
    }
    let (position, committed_at) = (task.position, task.committed_at);
    json::write_string(out, "lsn");
    out.push(b':');
    json::write_string(out, &position.commit_lsn.to_string());
    out.extend_from_slice(
        format!(",\"ordinal\":{},\"committed_at\":", position.ordinal).as_bytes(),
    );
    match committed_at.rfc3339() {
        Some(time) => json::write_string(out, time.as_str()),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
    Ok(())
}

fn splice(
    out: &mut Vec<u8>,
    task: &Task,
    field: Field,
    text: &[u8],
    expected: Option<Kind>,
) -> Result<(), Unfit> {
    let found = json::kind(text);
    let expected = match (expected, found) {
        (_, Some(Kind::Null)) => Kind::Null,
        (Some(expected), _) => expected,
        (None, found) => found.unwrap_or(Kind::Object),
    };
    check_json(task, field, expected)
        .map_err(|defect| Unfit::new(format!("{} {defect}", field.name())))?;
    json::write_on_one_line(out, text);
    Ok(())
}

/// In the form of ISO 8601 where there is one, else as Postgres wrote it: `infinity`, years BC.
fn write_moment(out: &mut Vec<u8>, text: &str) {
    let time = match Moment::parse(text.as_bytes()) {
        Ok(Moment::At(at)) => at.rfc3339(),
        _ => None,
    };
    json::write_string(out, time.as_ref().map_or(text, Rfc3339::as_str));
}
