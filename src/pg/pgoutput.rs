//! The messages of pgoutput, protocol version 1, as views into the bytes that they arrived in.
//!
//! Documentation: chapter "Logical Replication Message Formats". Later versions add messages for transactions that are
//! streamed before they commit, or that are prepared. We never ask for these, and must not take them for something
//! else: their tags are errors, like any that we do not know.

use super::tuple::Tuple;
use super::{Cursor, DecodeError, Lsn, Timestamp};

/// One message of pgoutput. Holds payloads, and so has no `Debug`.
#[derive(Clone, Copy)]
pub enum Message<'a> {
    /// `B`: a committed transaction follows.
    Begin(Begin),
    /// `C`: it is complete.
    Commit(Commit),
    /// `O`: the transaction was replicated to this server from elsewhere.
    Origin(Origin<'a>),
    /// `R`: what a relation looks like from now on.
    Relation(Relation<'a>),
    /// `Y`: the name of a type that is not built in.
    Type(Type<'a>),
    /// `I`: a new row.
    Insert(Insert<'a>),
    /// `U`: a changed row.
    Update(Update<'a>),
    /// `D`: a row that is gone.
    Delete(Delete<'a>),
    /// `T`: relations that were emptied.
    Truncate(Truncate<'a>),
    /// `M`: written by `pg_logical_emit_message`.
    Message(LogicalMessage<'a>),
}

/// `B`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Begin {
    /// Where the transaction's commit record starts.
    pub final_lsn: Lsn,
    /// When it committed.
    pub committed_at: Timestamp,
    /// Its transaction id, without the epoch.
    pub xid: u32,
}

/// `C`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Commit {
    /// Where the commit record starts.
    pub commit_lsn: Lsn,
    /// Where it ends: the position to confirm.
    pub end_lsn: Lsn,
    /// When the transaction committed.
    pub committed_at: Timestamp,
}

/// `O`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin<'a> {
    /// The commit's position on the origin.
    pub commit_lsn: Lsn,
    /// The origin's name.
    pub name: &'a str,
}

/// `R`
#[derive(Clone, Copy)]
pub struct Relation<'a> {
    /// The relation's OID.
    pub id: u32,
    /// Its schema.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// `relreplident` of `pg_class`: `d`, `n`, `f` or `i`.
    pub replica_identity: u8,
    len: u16,
    columns: Cursor<'a>,
}

/// A column of a [`Relation`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Column<'a> {
    /// 1 for a column of the replica identity.
    pub flags: u8,
    /// The column's name.
    pub name: &'a str,
    /// OID of its type.
    pub type_id: u32,
    /// The type's modifier, -1 for none.
    pub type_modifier: i32,
}

/// `Y`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Type<'a> {
    /// The type's OID.
    pub id: u32,
    /// Its schema.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// `I`
#[derive(Clone, Copy)]
pub struct Insert<'a> {
    /// OID of the relation.
    pub relation: u32,
    /// The row.
    pub new: Tuple<'a>,
}

/// `U`
#[derive(Clone, Copy)]
pub struct Update<'a> {
    /// OID of the relation.
    pub relation: u32,
    /// The old row or its key, where the replica identity asks for it.
    pub old: Option<Old<'a>>,
    /// The row as it is now.
    pub new: Tuple<'a>,
}

/// `D`
#[derive(Clone, Copy)]
pub struct Delete<'a> {
    /// OID of the relation.
    pub relation: u32,
    /// The old row or its key.
    pub old: Old<'a>,
}

/// What is told of a row that was there before.
#[derive(Clone, Copy)]
pub enum Old<'a> {
    /// `K`: the columns of the replica identity; the others are NULL.
    Key(Tuple<'a>),
    /// `O`: every column.
    Row(Tuple<'a>),
}

/// `T`
#[derive(Clone, Copy)]
pub struct Truncate<'a> {
    /// `CASCADE` was given.
    pub cascade: bool,
    /// `RESTART IDENTITY` was given.
    pub restart_identity: bool,
    relations: &'a [u8],
}

/// `M`
#[derive(Clone, Copy)]
pub struct LogicalMessage<'a> {
    /// Belongs to the transaction; others are sent at once, even if theirs is rolled back.
    pub transactional: bool,
    /// Its place in the log.
    pub lsn: Lsn,
    /// Tells whose it is.
    pub prefix: &'a str,
    /// What it says.
    pub content: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads one message. Rows stay unread: see [`Tuple`].
    ///
    /// # Errors
    /// An unknown tag or value, a short message, or bytes left over.
    #[inline]
    pub fn decode(message: &'a [u8]) -> Result<Message<'a>, DecodeError> {
        let mut cursor = Cursor::new(message);
        match cursor.u8("message tag")? {
            b'I' => insert(cursor).map(Message::Insert),
            b'B' => begin(cursor).map(Message::Begin),
            b'C' => commit(cursor).map(Message::Commit),
            b'R' => relation(cursor).map(Message::Relation),
            b'U' => update(cursor).map(Message::Update),
            b'D' => delete(cursor).map(Message::Delete),
            b'T' => truncate(cursor).map(Message::Truncate),
            b'Y' => type_name(cursor).map(Message::Type),
            b'O' => origin(cursor).map(Message::Origin),
            b'M' => logical_message(cursor).map(Message::Message),
            tag => Err(DecodeError::tag(tag, tag_words(tag), 0)),
        }
    }
}

#[cold]
fn tag_words(tag: u8) -> &'static str {
    match tag {
        b'b' | b'P' | b'K' | b'r' => "message tag of a two-phase transaction",
        b'S' | b'E' | b'c' | b'A' => "message tag of a streamed transaction",
        b'p' => "message tag of a streamed two-phase transaction",
        _ => "message tag",
    }
}

#[inline]
fn begin(mut cursor: Cursor<'_>) -> Result<Begin, DecodeError> {
    let begin = Begin {
        final_lsn: Lsn(cursor.u64("Begin final LSN")?),
        committed_at: Timestamp(cursor.i64("Begin commit time")?),
        xid: cursor.u32("Begin transaction id")?,
    };
    cursor.end("Begin")?;
    Ok(begin)
}

#[inline]
fn commit(mut cursor: Cursor<'_>) -> Result<Commit, DecodeError> {
    let offset = cursor.offset();
    if cursor.u8("Commit flags")? != 0 {
        return Err(DecodeError::invalid("Commit flags", offset));
    }
    let commit = Commit {
        commit_lsn: Lsn(cursor.u64("Commit LSN")?),
        end_lsn: Lsn(cursor.u64("Commit end LSN")?),
        committed_at: Timestamp(cursor.i64("Commit time")?),
    };
    cursor.end("Commit")?;
    Ok(commit)
}

fn origin(mut cursor: Cursor<'_>) -> Result<Origin<'_>, DecodeError> {
    let origin = Origin {
        commit_lsn: Lsn(cursor.u64("Origin LSN")?),
        name: cursor.cstr("Origin name")?,
    };
    cursor.end("Origin")?;
    Ok(origin)
}

/// An empty schema name stands for `pg_catalog`.
fn namespace<'a>(cursor: &mut Cursor<'a>, what: &'static str) -> Result<&'a str, DecodeError> {
    let name = cursor.cstr(what)?;
    Ok(if name.is_empty() { "pg_catalog" } else { name })
}

fn relation(mut cursor: Cursor<'_>) -> Result<Relation<'_>, DecodeError> {
    let mut relation = Relation {
        id: cursor.u32("Relation id")?,
        namespace: namespace(&mut cursor, "Relation namespace")?,
        name: cursor.cstr("Relation name")?,
        replica_identity: cursor.u8("Relation replica identity")?,
        len: cursor.u16("Relation column count")?,
        columns: cursor,
    };
    relation.columns = cursor;
    for _ in 0..relation.len {
        column(&mut cursor)?;
    }
    cursor.end("Relation")?;
    Ok(relation)
}

fn column<'a>(cursor: &mut Cursor<'a>) -> Result<Column<'a>, DecodeError> {
    Ok(Column {
        flags: cursor.u8("column flags")?,
        name: cursor.cstr("column name")?,
        type_id: cursor.u32("column type id")?,
        type_modifier: cursor.i32("column type modifier")?,
    })
}

impl<'a> Relation<'a> {
    /// Number of columns.
    pub fn column_count(&self) -> u16 {
        self.len
    }

    /// The columns, in the order of the rows' columns.
    pub fn columns(&self) -> impl Iterator<Item = Column<'a>> + use<'a> {
        let mut cursor = self.columns;
        // All of them were read once when the message was decoded, so none fails now.
        (0..self.len).map_while(move |_| column(&mut cursor).ok())
    }
}

fn type_name(mut cursor: Cursor<'_>) -> Result<Type<'_>, DecodeError> {
    let value = Type {
        id: cursor.u32("Type id")?,
        namespace: namespace(&mut cursor, "Type namespace")?,
        name: cursor.cstr("Type name")?,
    };
    cursor.end("Type")?;
    Ok(value)
}

#[inline]
fn insert(mut cursor: Cursor<'_>) -> Result<Insert<'_>, DecodeError> {
    let relation = cursor.u32("Insert relation id")?;
    new_tag(&mut cursor)?;
    Ok(Insert {
        relation,
        new: Tuple::last(cursor)?,
    })
}

#[inline]
fn new_tag(cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
    let offset = cursor.offset();
    match cursor.u8("new tuple tag")? {
        b'N' => Ok(()),
        tag => Err(DecodeError::tag(tag, "new tuple tag", offset)),
    }
}

fn update(mut cursor: Cursor<'_>) -> Result<Update<'_>, DecodeError> {
    let relation = cursor.u32("Update relation id")?;
    let mut after_tag = cursor;
    let old = match after_tag.u8("old tuple tag")? {
        b'K' => Some(Old::Key(Tuple::next(&mut after_tag)?)),
        b'O' => Some(Old::Row(Tuple::next(&mut after_tag)?)),
        _ => None,
    };
    if old.is_some() {
        cursor = after_tag;
    }
    new_tag(&mut cursor)?;
    Ok(Update {
        relation,
        old,
        new: Tuple::last(cursor)?,
    })
}

fn delete(mut cursor: Cursor<'_>) -> Result<Delete<'_>, DecodeError> {
    let relation = cursor.u32("Delete relation id")?;
    let offset = cursor.offset();
    let old = match cursor.u8("old tuple tag")? {
        b'K' => Old::Key(Tuple::last(cursor)?),
        b'O' => Old::Row(Tuple::last(cursor)?),
        tag => return Err(DecodeError::tag(tag, "old tuple tag", offset)),
    };
    Ok(Delete { relation, old })
}

fn truncate(mut cursor: Cursor<'_>) -> Result<Truncate<'_>, DecodeError> {
    let len = cursor.u32("Truncate relation count")? as usize;
    let offset = cursor.offset();
    let options = cursor.u8("Truncate options")?;
    if options & !3 != 0 {
        return Err(DecodeError::invalid("Truncate options", offset));
    }
    let relations = cursor.bytes(len.saturating_mul(4), "Truncate relation ids")?;
    cursor.end("Truncate")?;
    Ok(Truncate {
        cascade: options & 1 != 0,
        restart_identity: options & 2 != 0,
        relations,
    })
}

impl<'a> Truncate<'a> {
    /// OIDs of the relations.
    pub fn relations(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        let (ids, _) = self.relations.as_chunks::<4>();
        ids.iter().map(|id| u32::from_be_bytes(*id))
    }
}

fn logical_message(mut cursor: Cursor<'_>) -> Result<LogicalMessage<'_>, DecodeError> {
    let offset = cursor.offset();
    let flags = cursor.u8("Message flags")?;
    if flags > 1 {
        return Err(DecodeError::invalid("Message flags", offset));
    }
    let lsn = Lsn(cursor.u64("Message LSN")?);
    let prefix = cursor.cstr("Message prefix")?;
    let len = cursor.u32("Message length")?;
    let content = cursor.bytes(len as usize, "Message content")?;
    cursor.end("Message")?;
    Ok(LogicalMessage {
        transactional: flags == 1,
        lsn,
        prefix,
        content,
    })
}

#[cfg(test)]
mod tests;
