//! TupleData: the columns of one row.

use super::{Cursor, DecodeError};

/// A row as pgoutput sends it: a count, and then each column's kind and value.
///
/// Read lazily: a row of a table that nobody asks about costs nothing. So damage to a row shows when its columns are
/// read.
#[derive(Clone, Copy)]
pub struct Tuple<'a> {
    len: u16,
    start: Cursor<'a>,
}

/// The value of one column. Holds a payload, and so has no `Debug`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TupleColumn<'a> {
    /// `n`: NULL.
    Null,
    /// `u`: a TOASTed value that an update has not changed; it is not sent.
    Unchanged,
    /// `t`: the value as text, in the client encoding.
    Text(&'a [u8]),
    /// `b`: the value in its binary form.
    Binary(&'a [u8]),
}

impl<'a> Tuple<'a> {
    /// Starts a tuple that is the last part of its message.
    pub(crate) fn last(mut cursor: Cursor<'a>) -> Result<Tuple<'a>, DecodeError> {
        Ok(Tuple {
            len: cursor.u16("column count")?,
            start: cursor,
        })
    }

    /// Reads past a tuple that something else follows.
    pub(crate) fn next(cursor: &mut Cursor<'a>) -> Result<Tuple<'a>, DecodeError> {
        let len = cursor.u16("column count")?;
        let start = *cursor;
        for _ in 0..len {
            column(cursor)?;
        }
        Ok(Tuple {
            len,
            start: start.until(*cursor),
        })
    }

    /// Number of columns that the tuple says to have.
    pub fn len(&self) -> u16 {
        self.len
    }

    /// A tuple without columns.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Place of the first column, in bytes from the start of the message.
    pub fn offset(&self) -> usize {
        self.start.offset()
    }

    /// The columns, in the order of the relation.
    pub fn columns(&self) -> TupleColumns<'a> {
        TupleColumns {
            left: self.len,
            cursor: self.start,
        }
    }
}

/// Steps through the columns of a [`Tuple`]. Ends after the first error.
#[derive(Clone)]
pub struct TupleColumns<'a> {
    left: u16,
    cursor: Cursor<'a>,
}

impl TupleColumns<'_> {
    /// End of the column that was read last, in bytes from the start of the message.
    pub fn offset(&self) -> usize {
        self.cursor.offset()
    }
}

impl<'a> Iterator for TupleColumns<'a> {
    type Item = Result<TupleColumn<'a>, DecodeError>;

    /// The next column. After the last one, an error if bytes are left over.
    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let Some(left) = self.left.checked_sub(1) else {
            let end = self.cursor.end("tuple");
            self.cursor.rest();
            return end.err().map(Err);
        };
        self.left = left;
        let column = column(&mut self.cursor);
        if column.is_err() {
            self.left = 0;
            self.cursor.rest();
        }
        Some(column)
    }
}

#[inline]
fn column<'a>(cursor: &mut Cursor<'a>) -> Result<TupleColumn<'a>, DecodeError> {
    let offset = cursor.offset();
    let kind = cursor.u8("column kind")?;
    match kind {
        b'n' => Ok(TupleColumn::Null),
        b'u' => Ok(TupleColumn::Unchanged),
        b't' | b'b' => {
            let len = cursor.u32("column length")?;
            let value = cursor.bytes(len as usize, "column value")?;
            Ok(if kind == b't' {
                TupleColumn::Text(value)
            } else {
                TupleColumn::Binary(value)
            })
        }
        _ => Err(DecodeError::tag(kind, "column kind", offset)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &[u8] = b"\0\x05nut\0\0\0\x02hit\0\0\0\0b\0\0\0\x01\xFF";

    fn read(message: &[u8]) -> Result<Vec<TupleColumn<'_>>, DecodeError> {
        Tuple::last(Cursor::new(message))?.columns().collect()
    }

    #[test]
    fn reads_each_kind_of_column() {
        let columns = read(ROW);
        assert!(
            columns
                == Ok(vec![
                    TupleColumn::Null,
                    TupleColumn::Unchanged,
                    TupleColumn::Text(b"hi"),
                    TupleColumn::Text(b""),
                    TupleColumn::Binary(b"\xFF"),
                ])
        );
        assert!(read(b"\0\0") == Ok(Vec::new()));
    }

    #[test]
    fn the_place_of_a_value_is_known() {
        let tuple = Tuple::last(Cursor::new(ROW)).ok().unwrap();
        assert_eq!((tuple.len(), tuple.offset()), (5, 2));
        let mut columns = tuple.columns();
        let value = columns.by_ref().nth(2).unwrap();
        assert!(value == Ok(TupleColumn::Text(b"hi")));
        assert_eq!(&ROW[columns.offset() - 2..columns.offset()], b"hi");
    }

    #[test]
    fn a_tuple_between_others_ends_where_it_ends() {
        let message = [ROW, b"N"].concat();
        let mut cursor = Cursor::new(&message);
        let tuple = Tuple::next(&mut cursor).ok().unwrap();
        assert_eq!(cursor.offset(), ROW.len());
        assert!(tuple.columns().all(|column| column.is_ok()));
        assert_eq!(tuple.columns().count(), 5);
    }

    #[test]
    fn refuses_what_is_short_or_long_or_unknown() {
        for len in 0..ROW.len() {
            let error = read(&ROW[..len]).err().unwrap();
            assert!(error.to_string().contains("ends inside of"), "{len}");
        }
        for (message, words) in [
            (
                &b"\0\x01nn"[..],
                "bytes are left over after tuple, at byte 3",
            ),
            (b"\0\x01x", "unexpected column kind 'x', at byte 2"),
            (
                b"\0\x01t\xFF\xFF\xFF\xFFab",
                "message ends inside of column value, at byte 7",
            ),
        ] {
            assert_eq!(read(message).err().unwrap().to_string(), words);
        }
    }

    #[test]
    fn after_an_error_comes_nothing() {
        let mut columns = Tuple::last(Cursor::new(b"\0\x05nxnnn"))
            .ok()
            .unwrap()
            .columns();
        assert!(columns.next().unwrap().is_ok());
        assert!(columns.next().unwrap().is_err());
        assert!(columns.next().is_none());
    }
}
