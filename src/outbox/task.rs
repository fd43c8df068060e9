//! One committed outbox row.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;

use crate::pg::{Lsn, Timestamp};

/// Where a row stands in the order of commits.
///
/// Ordered first by the transaction's commit record, then by the row's ordinal in the transaction, counted from 0
/// over the rows of the outbox. Unique and stable: the same row has the same position each time it is decoded.
///
/// The LSN is that of the commit record's *start* (`Begin.final_lsn`), since a large transaction's rows are
/// dispatched before its Commit frame, which tells the end, has arrived. A standby has replayed the transaction
/// when its `pg_last_wal_replay_lsn()` is greater than this LSN.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Position {
    /// Start of the transaction's commit record.
    pub commit_lsn: Lsn,
    /// Number of outbox rows before this one in its transaction.
    pub ordinal: u64,
}

/// The fields of a task, and their index in it. The contract names are the columns of `aftercommit.outbox`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(usize)]
pub enum Field {
    /// The task's identity everywhere.
    Id,
    /// Task name or event type.
    Task,
    /// Positional arguments, a JSON array.
    Args,
    /// Keyword arguments, a JSON object.
    Kwargs,
    /// An event's body, JSON.
    Payload,
    /// A message that the application has built; `bytea` in its text form.
    Body,
    /// Ordering key.
    Key,
    /// Overrides the route's queue, subject, topic or stream.
    Queue,
    /// Message headers, a JSON object of scalars.
    Headers,
    /// Message priority, a small integer.
    Priority,
    /// Not before.
    RunAt,
    /// Not after.
    ExpiresAt,
    /// Sink-specific extras, a JSON object.
    Options,
}

impl Field {
    /// Every field, in the order of its index.
    pub const ALL: [Field; 13] = [
        Field::Id,
        Field::Task,
        Field::Args,
        Field::Kwargs,
        Field::Payload,
        Field::Body,
        Field::Key,
        Field::Queue,
        Field::Headers,
        Field::Priority,
        Field::RunAt,
        Field::ExpiresAt,
        Field::Options,
    ];

    /// The field's name in the contract, in configuration and in errors.
    pub fn name(self) -> &'static str {
        match self {
            Field::Id => "id",
            Field::Task => "task",
            Field::Args => "args",
            Field::Kwargs => "kwargs",
            Field::Payload => "payload",
            Field::Body => "body",
            Field::Key => "key",
            Field::Queue => "queue",
            Field::Headers => "headers",
            Field::Priority => "priority",
            Field::RunAt => "run_at",
            Field::ExpiresAt => "expires_at",
            Field::Options => "options",
        }
    }
}

/// Larger than what is read at once: such a row is most of the buffer that it arrived in.
const LARGE_ROW: usize = 1 << 20;

/// A set of fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FieldSet(u16);

impl FieldSet {
    /// Adds a field.
    pub fn insert(&mut self, field: Field) {
        self.0 |= 1 << field as u16;
    }

    /// Whether a field is in it.
    pub fn contains(self, field: Field) -> bool {
        self.0 & 1 << field as u16 != 0
    }
}

impl FromIterator<Field> for FieldSet {
    fn from_iter<I: IntoIterator<Item = Field>>(fields: I) -> FieldSet {
        let mut set = FieldSet::default();
        fields.into_iter().for_each(|field| set.insert(field));
        set
    }
}

/// Start and end of a field's text in the row; `None` is SQL NULL, or a field that the table does not have.
pub type Spans = [Option<(u32, u32)>; Field::ALL.len()];

/// One committed outbox row: its text fields, unparsed, in the buffer that they arrived in.
///
/// The row is one slice of the read buffer and so keeps that buffer alive; [`Task::detach`] copies it out when the
/// task has to wait.
#[derive(Clone)]
pub struct Task {
    row: Bytes,
    spans: Spans,
    json: FieldSet,
    /// The row has memory of its own.
    detached: bool,
    /// Where the row stands in the order of commits.
    pub position: Position,
    /// When its transaction committed, by the server's clock.
    pub committed_at: Timestamp,
}

impl Task {
    /// Builds a task from a row's bytes and the places of its fields. `json` are those in columns of type json or jsonb.
    ///
    /// The caller has checked that every field is UTF-8. A span that lies outside of the row reads as NULL.
    pub fn new(
        row: Bytes,
        spans: Spans,
        json: FieldSet,
        position: Position,
        committed_at: Timestamp,
    ) -> Task {
        Task {
            row,
            spans,
            json,
            detached: false,
            position,
            committed_at,
        }
    }

    /// Builds a task from field values; for tests, and for rows that do not come from the stream. Nobody vouches for the
    /// syntax of its JSON.
    pub fn from_fields<'a>(
        fields: impl IntoIterator<Item = (Field, &'a str)>,
        position: Position,
        committed_at: Timestamp,
    ) -> Task {
        let mut row = Vec::new();
        let mut spans = Spans::default();
        for (field, value) in fields {
            let start = row.len() as u32;
            row.extend_from_slice(value.as_bytes());
            spans[field as usize] = Some((start, row.len() as u32));
        }
        Task::new(
            row.into(),
            spans,
            FieldSet::default(),
            position,
            committed_at,
        )
    }

    /// A field's bytes as Postgres wrote them (text format, UTF-8); `None` for NULL.
    pub fn get(&self, field: Field) -> Option<&[u8]> {
        let (start, end) = self.spans[field as usize]?;
        self.row.get(Range {
            start: start as usize,
            end: end as usize,
        })
    }

    /// Whether the field's column is of type json or jsonb, so that its text is well-formed JSON: Postgres has checked it.
    pub fn is_json(&self, field: Field) -> bool {
        self.json.contains(field)
    }

    /// A field as text; `None` for NULL.
    pub fn text(&self, field: Field) -> Option<&str> {
        self.get(field)
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// The task's identity.
    pub fn id(&self) -> &str {
        self.text(Field::Id).unwrap_or_default()
    }

    /// The task's name, what routes match.
    pub fn name(&self) -> &str {
        self.text(Field::Task).unwrap_or_default()
    }

    /// The ordering key. An empty key is a key like any other.
    pub fn key(&self) -> Option<&[u8]> {
        self.get(Field::Key)
    }

    /// Size of the row in bytes, as counted against the memory budget.
    pub fn size(&self) -> usize {
        self.row.len()
    }

    /// Copies the row into memory of its own, so that the buffer it arrived in can go; once. A very large one has filled its
    /// buffer by itself.
    pub fn detach(&mut self) {
        if !self.detached && self.row.len() < LARGE_ROW {
            self.row = Bytes::copy_from_slice(&self.row);
        }
        self.detached = true;
    }
}

/// Identity and place only: a payload never reaches a log.
impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("id", &self.id())
            .field("task", &self.name())
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}
