//! Rows into a table by COPY, in its binary form (PostgreSQL documentation, COPY, "Binary Format").
//!
//! A task may be hundreds of megabytes: its texts go out in pieces, so that there is no second copy of them.

use std::pin::Pin;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::SinkExt as _;
use tokio_postgres::{CopyInSink, Error as SqlError, Transaction};

use crate::pg::{Lsn, Timestamp};

/// So many bytes are sent at a time.
const PIECE: usize = 64 << 10;
/// What a stream begins with.
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// The length of a value that is NULL, and what a stream ends with in place of a number of columns.
const NULL: i32 = -1;
const END: i16 = -1;

/// A COPY under way. Dropped before its end it is undone, and the transaction is of no more use.
pub(super) struct Copy {
    server: Pin<Box<CopyInSink<Bytes>>>,
    out: BytesMut,
}

/// A value that is small; a text is not, see [`Copy::text`].
pub(super) enum Value {
    /// `bool`
    Bool(bool),
    /// `int4`
    Int4(i32),
    /// `int8`
    Int8(i64),
    /// `timestamptz`, or NULL: both count microseconds from the same moment.
    Time(Option<Timestamp>),
    /// `pg_lsn`
    Lsn(Lsn),
}

impl Copy {
    /// Starts what `sql` says: `copy ... from stdin (format binary)`.
    ///
    /// # Errors
    /// Those of the server; also in what follows.
    pub(super) async fn start(db: &Transaction<'_>, sql: &str) -> Result<Copy, SqlError> {
        let server = Box::pin(db.copy_in(sql).await?);
        let mut out = BytesMut::with_capacity(PIECE);
        out.put_slice(SIGNATURE);
        // No flags, and no extension of the header.
        out.put_i32(0);
        out.put_i32(0);
        Ok(Copy { server, out })
    }

    /// Begins a row of so many columns.
    pub(super) fn row(&mut self, columns: i16) {
        self.out.put_i16(columns);
    }

    /// The row's next value.
    pub(super) fn value(&mut self, value: Value) {
        let out = &mut self.out;
        match value {
            Value::Bool(yes) => {
                out.put_i32(1);
                out.put_u8(u8::from(yes));
            }
            Value::Int4(number) => {
                out.put_i32(4);
                out.put_i32(number);
            }
            Value::Int8(number) | Value::Time(Some(Timestamp(number))) => {
                out.put_i32(8);
                out.put_i64(number);
            }
            Value::Time(None) => out.put_i32(NULL),
            Value::Lsn(Lsn(position)) => {
                out.put_i32(8);
                out.put_u64(position);
            }
        }
    }

    /// The row's next value, a `text`, or NULL.
    pub(super) async fn text(&mut self, text: Option<&str>) -> Result<(), SqlError> {
        let Some(text) = text else {
            self.out.put_i32(NULL);
            return Ok(());
        };
        // No server has, or takes, a longer one.
        self.out
            .put_i32(i32::try_from(text.len()).unwrap_or(i32::MAX));
        for piece in text.as_bytes().chunks(PIECE) {
            self.out.put_slice(piece);
            self.pass_on(PIECE).await?;
        }
        Ok(())
    }

    /// Ends it.
    pub(super) async fn finish(mut self) -> Result<(), SqlError> {
        self.out.put_i16(END);
        self.pass_on(0).await?;
        self.server.as_mut().finish().await?;
        Ok(())
    }

    /// Sends what is gathered, if it is so much.
    async fn pass_on(&mut self, at_least: usize) -> Result<(), SqlError> {
        if self.out.len() < at_least {
            return Ok(());
        }
        let bytes = self.out.split().freeze();
        self.server.as_mut().feed(bytes).await
    }
}
