//! Pure: what the server says in an ErrorResponse or a NoticeResponse.

use std::fmt;

use postgres_protocol::message::backend::ErrorFields;
use tokio_postgres::fallible_iterator::FallibleIterator;

/// An ErrorResponse or NoticeResponse (Postgres documentation, chapter "Error and Notice Message Fields").
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServerMessage {
    /// `ERROR`, `FATAL`, `WARNING` …, never translated.
    pub severity: String,
    /// The SQLSTATE, five characters.
    pub sqlstate: String,
    /// The message, in the server's language.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What the server advises.
    pub hint: Option<String>,
    /// The function in the server's source that reported it; the one field that tells errors of the same SQLSTATE
    /// apart whatever the language.
    pub routine: String,
}

impl ServerMessage {
    /// Reads the body of an ErrorResponse or NoticeResponse frame, without its tag and length.
    ///
    /// Never fails: what cannot be read is left out, since half a reason is better than none.
    pub fn parse(body: &[u8]) -> ServerMessage {
        let mut message = ServerMessage::default();
        let mut rest = body;
        while let Some((&field, tail)) = rest.split_first() {
            let Some(end) = memchr::memchr(0, tail) else {
                break;
            };
            let (value, after) = tail.split_at(end);
            message.set(field, value);
            rest = after.get(1..).unwrap_or_default();
        }
        message
    }

    pub(super) fn from_fields(mut fields: ErrorFields<'_>) -> ServerMessage {
        let mut message = ServerMessage::default();
        while let Ok(Some(field)) = fields.next() {
            message.set(field.type_(), field.value_bytes());
        }
        message
    }

    pub(super) fn from_db(e: &tokio_postgres::error::DbError) -> ServerMessage {
        ServerMessage {
            severity: e.severity().to_owned(),
            sqlstate: e.code().code().to_owned(),
            message: e.message().to_owned(),
            detail: e.detail().map(str::to_owned),
            hint: e.hint().map(str::to_owned),
            routine: e.routine().unwrap_or_default().to_owned(),
        }
    }

    fn set(&mut self, field: u8, value: &[u8]) {
        let text = || String::from_utf8_lossy(value).into_owned();
        match field {
            b'V' => self.severity = text(),
            b'C' => self.sqlstate = text(),
            b'M' => self.message = text(),
            b'D' => self.detail = Some(text()),
            b'H' => self.hint = Some(text()),
            b'R' => self.routine = text(),
            _ => {}
        }
    }

    /// The first two characters of the SQLSTATE.
    pub(super) fn class(&self) -> &str {
        self.sqlstate.get(..2).unwrap_or_default()
    }
}

/// Values of rows stand in the details of classes 22 and 23, and in the messages of 22: a payload must not reach a log.
impl fmt::Display for ServerMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.class() {
            "22" => write!(f, "{} (data error in {})", self.sqlstate, self.routine),
            _ => write!(f, "{} (SQLSTATE {})", self.message, self.sqlstate),
        }?;
        if let (Some(detail), false) = (&self.detail, matches!(self.class(), "22" | "23")) {
            write!(f, "; {}", without_stop(detail))?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; hint: {}", without_stop(hint))?;
        }
        Ok(())
    }
}

/// Details and hints are sentences; here they stand inside of one.
fn without_stop(sentence: &str) -> &str {
    sentence.strip_suffix('.').unwrap_or(sentence)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_are_read_by_their_letter() {
        let read = ServerMessage::parse(
            b"SFEHLER\0VERROR\0C42704\0Mno slot\0Dbecause\0Hmake one\0RReplicationSlotAcquire\0\0",
        );
        let expected = ServerMessage {
            severity: "ERROR".to_owned(),
            sqlstate: "42704".to_owned(),
            message: "no slot".to_owned(),
            detail: Some("because".to_owned()),
            hint: Some("make one".to_owned()),
            routine: "ReplicationSlotAcquire".to_owned(),
        };
        assert_eq!(read, expected);
        assert_eq!(ServerMessage::parse(b"C42704\0Mcut off").sqlstate, "42704");
        assert_eq!(ServerMessage::parse(b""), ServerMessage::default());
    }

    #[test]
    fn sentences_are_joined_into_one() {
        let read = ServerMessage::parse(b"C55000\0Mskipped\0DIt does not exist.\0HCreate it.\0\0");
        assert_eq!(
            read.to_string(),
            "skipped (SQLSTATE 55000); It does not exist; hint: Create it"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>) {
            let _ = ServerMessage::parse(&bytes).to_string();
        }
    }
}
