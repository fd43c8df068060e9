//! Messages of pgoutput: any bytes are read or refused, and what was read, written again, is what was there.

use aftercommit::pg::pgoutput::{Message, Old};
use aftercommit::pg::tuple::{Tuple, TupleColumn};

/// Reads any bytes, and if they are a message, writes it again and compares.
pub(super) fn check(input: &[u8]) {
    match Message::decode(input) {
        Err(error) => {
            assert!(error.offset() <= input.len());
            assert!(!error.to_string().is_empty());
        }
        Ok(message) => {
            if let Some(written) = write(&message) {
                // An empty namespace is told as the catalog's name, so it cannot be told apart from it.
                let renamed = written.windows(11).any(|window| window == b"pg_catalog\0");
                assert!(written == input || renamed);
            }
        }
    }
}

/// `None` if a row, which is read only now, is damaged.
fn write(message: &Message<'_>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    match message {
        Message::Begin(begin) => {
            out.push(b'B');
            out.extend(begin.final_lsn.0.to_be_bytes());
            out.extend(begin.committed_at.0.to_be_bytes());
            out.extend(begin.xid.to_be_bytes());
        }
        Message::Commit(commit) => {
            out.extend(b"C\0");
            out.extend(commit.commit_lsn.0.to_be_bytes());
            out.extend(commit.end_lsn.0.to_be_bytes());
            out.extend(commit.committed_at.0.to_be_bytes());
        }
        Message::Origin(origin) => {
            out.push(b'O');
            out.extend(origin.commit_lsn.0.to_be_bytes());
            text(&mut out, origin.name);
        }
        Message::Relation(relation) => {
            out.push(b'R');
            out.extend(relation.id.to_be_bytes());
            text(&mut out, relation.namespace);
            text(&mut out, relation.name);
            out.push(relation.replica_identity);
            out.extend(relation.column_count().to_be_bytes());
            for column in relation.columns() {
                out.push(column.flags);
                text(&mut out, column.name);
                out.extend(column.type_id.to_be_bytes());
                out.extend(column.type_modifier.to_be_bytes());
            }
        }
        Message::Type(value) => {
            out.push(b'Y');
            out.extend(value.id.to_be_bytes());
            text(&mut out, value.namespace);
            text(&mut out, value.name);
        }
        Message::Insert(insert) => {
            out.push(b'I');
            out.extend(insert.relation.to_be_bytes());
            out.push(b'N');
            row(&mut out, insert.new)?;
        }
        Message::Update(update) => {
            out.push(b'U');
            out.extend(update.relation.to_be_bytes());
            if let Some(told) = update.old {
                old(&mut out, told)?;
            }
            out.push(b'N');
            row(&mut out, update.new)?;
        }
        Message::Delete(delete) => {
            out.push(b'D');
            out.extend(delete.relation.to_be_bytes());
            old(&mut out, delete.old)?;
        }
        Message::Truncate(truncate) => {
            out.push(b'T');
            out.extend((truncate.relations().len() as u32).to_be_bytes());
            out.push(u8::from(truncate.cascade) | u8::from(truncate.restart_identity) << 1);
            out.extend(truncate.relations().flat_map(u32::to_be_bytes));
        }
        Message::Message(message) => {
            out.push(b'M');
            out.push(u8::from(message.transactional));
            out.extend(message.lsn.0.to_be_bytes());
            text(&mut out, message.prefix);
            out.extend((message.content.len() as u32).to_be_bytes());
            out.extend(message.content);
        }
    }
    Some(out)
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend(text.as_bytes());
    out.push(0);
}

fn old(out: &mut Vec<u8>, old: Old<'_>) -> Option<()> {
    let (tag, tuple) = match old {
        Old::Key(tuple) => (b'K', tuple),
        Old::Row(tuple) => (b'O', tuple),
    };
    out.push(tag);
    row(out, tuple)
}

fn row(out: &mut Vec<u8>, tuple: Tuple<'_>) -> Option<()> {
    out.extend(tuple.len().to_be_bytes());
    for column in tuple.columns() {
        let (kind, value) = match column.ok()? {
            TupleColumn::Null => (b'n', None),
            TupleColumn::Unchanged => (b'u', None),
            TupleColumn::Text(value) => (b't', Some(value)),
            TupleColumn::Binary(value) => (b'b', Some(value)),
        };
        out.push(kind);
        if let Some(value) = value {
            out.extend((value.len() as u32).to_be_bytes());
            out.extend(value);
        }
    }
    Some(())
}
