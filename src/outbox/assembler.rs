//! From messages of pgoutput to the tasks of one transaction after the other.
//!
//! With protocol version 1 a transaction is sent when its commit record has been decoded, whole, and one at a time:
//! Begin, changes, Commit. So a row that arrives belongs to a transaction that has committed, and is a task at once;
//! nothing is buffered here.

use std::collections::HashSet;
use std::ops::Range;

use bytes::Bytes;

use super::columns::{Columns, Layout, LayoutError, REQUIRED};
use super::task::{Position, Spans, Task};
use crate::pg::pgoutput::{Begin, Commit, Insert, Message, Relation};
use crate::pg::tuple::TupleColumn;
use crate::pg::{DecodeError, Lsn, Timestamp};

/// What a message of pgoutput means for us.
#[derive(Clone, Debug)]
pub enum Event {
    /// A committed transaction follows. It may turn out to have no task.
    Begin {
        /// Its transaction id, without the epoch: what a snapshot is asked about.
        xid: u32,
        /// Where its commit record starts: the LSN of its tasks' [`Position`].
        commit_lsn: Lsn,
        /// When it committed, by the server's clock.
        committed_at: Timestamp,
    },
    /// A row of the outbox.
    Task(Task),
    /// The transaction is complete.
    Commit {
        /// Where its commit record ends: the position to confirm when all is settled.
        end_lsn: Lsn,
    },
}

/// What arrived cannot be understood, or is not what was agreed. Nothing may be skipped: stop, or connect anew.
///
/// Says where in the log, as far as that is known, and never what was in a row.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AssembleError {
    /// A message is damaged, or of a kind that protocol version 1 does not have.
    #[error("{source}{}", within(.commit_lsn))]
    Decode {
        /// Start of the open transaction's commit record.
        commit_lsn: Option<Lsn>,
        /// What was read.
        source: DecodeError,
    },
    /// Messages in an order that the protocol does not have.
    #[error("{what}{}", within(.commit_lsn))]
    Order {
        /// What is wrong.
        what: &'static str,
        /// Start of the open transaction's commit record.
        commit_lsn: Option<Lsn>,
    },
    /// A Commit that belongs to another transaction than the Begin before it.
    #[error("Commit of {committed} after Begin of {begun}")]
    OtherCommit {
        /// The LSN that Begin told.
        begun: Lsn,
        /// The LSN that Commit told.
        committed: Lsn,
    },
    /// A row of a relation that was never described.
    #[error("a row of relation {relation}, which was not described{}", within(.commit_lsn))]
    UnknownRelation {
        /// OID of the relation.
        relation: u32,
        /// Start of the transaction's commit record.
        commit_lsn: Option<Lsn>,
    },
    /// The outbox table lacks a column.
    #[error("{source}{}", within(.commit_lsn))]
    Layout {
        /// Start of the transaction's commit record.
        commit_lsn: Option<Lsn>,
        /// The column, and the remedy.
        source: Box<LayoutError>,
    },
    /// A row of the outbox that is no task.
    #[error("outbox row {} of the transaction that commits at {}: {defect}", .position.ordinal + 1, .position.commit_lsn)]
    Row {
        /// Where the row stands.
        position: Position,
        /// What is wrong with it.
        defect: RowDefect,
    },
}

/// What is wrong with a row of the outbox.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RowDefect {
    /// NULL in a field that every task has.
    #[error("{0} is NULL; a task without it can be neither sent nor tracked")]
    Null(&'static str),
    /// A text that is not UTF-8, as in a database with the encoding SQL_ASCII.
    #[error("{0} is not UTF-8")]
    NotUtf8(&'static str),
    /// More or fewer columns than the relation.
    #[error("{found} columns, but the table was described with {described}")]
    ColumnCount {
        /// Columns of the row.
        found: usize,
        /// Columns of the relation.
        described: usize,
    },
    /// A column, counted from 1, that was not sent, as if it were the row of an update.
    #[error("the value of column {0} was not sent")]
    Unchanged(usize),
    /// A column, counted from 1, in binary form, which we did not ask for.
    #[error("the value of column {0} is in binary form")]
    Binary(usize),
}

fn within(commit_lsn: &Option<Lsn>) -> String {
    commit_lsn
        .map(|lsn| format!(" (in the transaction that commits at {lsn})"))
        .unwrap_or_default()
}

/// Turns messages of pgoutput into [`Event`]s.
///
/// After an error its state is of no use: [`forget`](Assembler::forget), and begin a new stream.
pub struct Assembler {
    columns: Columns,
    /// Relations with the outbox's name, by OID: more than one if the table was dropped and created anew.
    outboxes: Vec<(u32, Layout)>,
    /// The OIDs of all others.
    others: HashSet<u32>,
    transaction: Option<Transaction>,
}

struct Transaction {
    commit_lsn: Lsn,
    committed_at: Timestamp,
    /// Outbox rows so far.
    rows: u64,
}

impl Assembler {
    /// Waits for the first Begin of a stream.
    pub fn new(columns: Columns) -> Assembler {
        Assembler {
            columns,
            outboxes: Vec::new(),
            others: HashSet::new(),
            transaction: None,
        }
    }

    /// Forgets every relation and the open transaction: a new stream describes and begins them anew.
    pub fn forget(&mut self) {
        self.outboxes.clear();
        self.others.clear();
        self.transaction = None;
    }

    /// Takes one message: the bytes of `chunk` in `range`. A task is a slice of the chunk, and keeps it alive.
    ///
    /// `None` is a message that carries no task: it may be forgotten, and moves no position.
    ///
    /// # Errors
    /// A damaged message, one in the wrong place, or a table or row that holds no task.
    ///
    /// # Panics
    /// If the range lies outside of the chunk, or spans 4 GiB: a frame of the protocol cannot.
    pub fn message(
        &mut self,
        chunk: &Bytes,
        range: Range<usize>,
    ) -> Result<Option<Event>, AssembleError> {
        assert!(
            u32::try_from(range.len()).is_ok(),
            "a frame of the protocol is smaller"
        );
        let message = Message::decode(&chunk[range.clone()]).map_err(|e| self.damaged(e))?;
        match message {
            Message::Insert(insert) => Ok(self.insert(chunk, range, insert)?.map(Event::Task)),
            Message::Begin(begin) => self.begin(begin).map(Some),
            Message::Commit(commit) => self.commit(commit).map(Some),
            Message::Relation(relation) => self.relation(relation).map(|()| None),
            Message::Update(_)
            | Message::Delete(_)
            | Message::Truncate(_)
            | Message::Origin(_)
            | Message::Type(_)
            | Message::Message(_) => Ok(None),
        }
    }

    fn begin(&mut self, begin: Begin) -> Result<Event, AssembleError> {
        if self.transaction.is_some() {
            return Err(self.order("Begin inside of a transaction"));
        }
        self.transaction = Some(Transaction {
            commit_lsn: begin.final_lsn,
            committed_at: begin.committed_at,
            rows: 0,
        });
        Ok(Event::Begin {
            xid: begin.xid,
            commit_lsn: begin.final_lsn,
            committed_at: begin.committed_at,
        })
    }

    fn commit(&mut self, commit: Commit) -> Result<Event, AssembleError> {
        let Some(transaction) = self.transaction.take() else {
            return Err(self.order("Commit without a Begin"));
        };
        if commit.commit_lsn != transaction.commit_lsn {
            return Err(AssembleError::OtherCommit {
                begun: transaction.commit_lsn,
                committed: commit.commit_lsn,
            });
        }
        Ok(Event::Commit {
            end_lsn: commit.end_lsn,
        })
    }

    /// Relations are described before their first row, and again at any time.
    fn relation(&mut self, relation: Relation<'_>) -> Result<(), AssembleError> {
        self.outboxes.retain(|(id, _)| *id != relation.id);
        self.others.remove(&relation.id);
        let table = self.columns.table();
        if (table.schema(), table.name()) != (relation.namespace, relation.name) {
            self.others.insert(relation.id);
            return Ok(());
        }
        let columns = relation.columns();
        let columns: Vec<_> = columns
            .map(|column| (column.name, column.type_id))
            .collect();
        let layout = self
            .columns
            .layout(&columns)
            .map_err(|error| AssembleError::Layout {
                commit_lsn: self.commit_lsn(),
                source: Box::new(error),
            })?;
        self.outboxes.push((relation.id, layout));
        Ok(())
    }

    /// A new row. `None` if it is another table's.
    fn insert(
        &mut self,
        chunk: &Bytes,
        range: Range<usize>,
        insert: Insert<'_>,
    ) -> Result<Option<Task>, AssembleError> {
        let Some(transaction) = &mut self.transaction else {
            return Err(self.order("Insert outside of a transaction"));
        };
        let mut outboxes = self.outboxes.iter().rev();
        let Some((_, layout)) = outboxes.find(|(id, _)| *id == insert.relation) else {
            return if self.others.contains(&insert.relation) {
                Ok(None)
            } else {
                Err(AssembleError::UnknownRelation {
                    relation: insert.relation,
                    commit_lsn: self.commit_lsn(),
                })
            };
        };
        let position = Position {
            commit_lsn: transaction.commit_lsn,
            ordinal: transaction.rows,
        };
        transaction.rows += 1;
        let (row, spans) =
            read_row(chunk, range, insert, layout).map_err(|error| error.at(position))?;
        Ok(Some(Task::new(
            row,
            spans,
            layout.json(),
            position,
            transaction.committed_at,
        )))
    }

    fn commit_lsn(&self) -> Option<Lsn> {
        self.transaction
            .as_ref()
            .map(|transaction| transaction.commit_lsn)
    }

    #[cold]
    fn damaged(&self, source: DecodeError) -> AssembleError {
        AssembleError::Decode {
            commit_lsn: self.commit_lsn(),
            source,
        }
    }

    #[cold]
    fn order(&self, what: &'static str) -> AssembleError {
        AssembleError::Order {
            what,
            commit_lsn: self.commit_lsn(),
        }
    }
}

enum RowError {
    Decode(DecodeError),
    Defect(RowDefect),
}

impl RowError {
    #[cold]
    fn at(self, position: Position) -> AssembleError {
        match self {
            RowError::Decode(source) => AssembleError::Decode {
                commit_lsn: Some(position.commit_lsn),
                source,
            },
            RowError::Defect(defect) => AssembleError::Row { position, defect },
        }
    }
}

/// The bytes of a row and the places of its fields in them.
#[inline]
fn read_row(
    chunk: &Bytes,
    range: Range<usize>,
    insert: Insert<'_>,
    layout: &Layout,
) -> Result<(Bytes, Spans), RowError> {
    let found = usize::from(insert.new.len());
    let described = layout.column_count();
    if found != described {
        return Err(RowError::Defect(RowDefect::ColumnCount {
            found,
            described,
        }));
    }
    let start = insert.new.offset();
    let mut spans = Spans::default();
    let mut steps = layout.steps();
    let mut columns = insert.new.columns();
    let mut index = 0;
    while let Some(column) = columns.next() {
        let span = match column.map_err(RowError::Decode)? {
            TupleColumn::Text(value) => {
                let end = columns.offset() - start;
                Some(((end - value.len()) as u32, end as u32))
            }
            TupleColumn::Null => None,
            TupleColumn::Unchanged => {
                return Err(RowError::Defect(RowDefect::Unchanged(index + 1)));
            }
            TupleColumn::Binary(_) => return Err(RowError::Defect(RowDefect::Binary(index + 1))),
        };
        while let Some(((step, field), later)) = steps.split_first()
            && *step == index
        {
            spans[*field as usize] = span;
            steps = later;
        }
        index += 1;
    }
    for field in REQUIRED {
        if spans[field as usize].is_none() {
            return Err(RowError::Defect(RowDefect::Null(field.name())));
        }
    }
    let row = chunk.slice(range.start + start..range.end);
    // The lengths between the values may look like anything, so this holds for many rows, but not for all that are
    // pure ASCII.
    if !row.is_ascii() {
        check_utf8(&row, &spans, layout)?;
    }
    Ok((row, spans))
}

fn check_utf8(row: &[u8], spans: &Spans, layout: &Layout) -> Result<(), RowError> {
    for (_, field) in layout.steps() {
        let text = spans[*field as usize]
            .and_then(|(start, end)| row.get(start as usize..end as usize))
            .unwrap_or_default();
        if std::str::from_utf8(text).is_err() {
            return Err(RowError::Defect(RowDefect::NotUtf8(field.name())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
