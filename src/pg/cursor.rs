//! Reads big-endian values from a message, and never past its end.

use std::fmt;

/// A message could not be read. Says what was being read and where, never the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DecodeError {
    kind: Kind,
    what: &'static str,
    offset: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Short,
    Trailing,
    Unterminated,
    NotUtf8,
    Invalid,
    Tag(u8),
}

impl DecodeError {
    /// Place of the value that could not be read, in bytes from the start of the message.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// A tag byte that the protocol does not have at this place.
    #[cold]
    pub(crate) fn tag(tag: u8, what: &'static str, offset: usize) -> DecodeError {
        DecodeError {
            kind: Kind::Tag(tag),
            what,
            offset,
        }
    }

    /// A value that was read, but that the protocol does not allow.
    #[cold]
    pub(crate) fn invalid(what: &'static str, offset: usize) -> DecodeError {
        DecodeError {
            kind: Kind::Invalid,
            what,
            offset,
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DecodeError { what, offset, .. } = self;
        match self.kind {
            Kind::Short => write!(f, "message ends inside of {what}, at byte {offset}"),
            Kind::Trailing => write!(f, "bytes are left over after {what}, at byte {offset}"),
            Kind::Unterminated => write!(f, "{what} has no end, at byte {offset}"),
            Kind::NotUtf8 => write!(f, "{what} is not UTF-8, at byte {offset}"),
            Kind::Invalid => write!(f, "unexpected {what}, at byte {offset}"),
            Kind::Tag(tag) => write!(
                f,
                "unexpected {what} '{}', at byte {offset}",
                tag.escape_ascii()
            ),
        }
    }
}

impl std::error::Error for DecodeError {}

/// A place in a message. Every read checks the bounds; the caller names what it reads, for the error.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte of a message.
    pub fn new(message: &'a [u8]) -> Cursor<'a> {
        Cursor {
            rest: message,
            offset: 0,
        }
    }

    /// Bytes read so far.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The same place, in a message that ends where `end` stands.
    pub(crate) fn until(self, end: Cursor<'a>) -> Cursor<'a> {
        let len = end.offset.saturating_sub(self.offset);
        Cursor {
            rest: self.rest.get(..len).unwrap_or(self.rest),
            offset: self.offset,
        }
    }

    #[cold]
    fn error(&self, kind: Kind, what: &'static str) -> DecodeError {
        DecodeError {
            kind,
            what,
            offset: self.offset,
        }
    }

    fn take<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let Some((value, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(self.error(Kind::Short, what));
        };
        self.rest = rest;
        self.offset += N;
        Ok(*value)
    }

    /// One byte.
    ///
    /// # Errors
    /// The message ends here.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.take(what).map(u8::from_be_bytes)
    }

    /// Two bytes.
    ///
    /// # Errors
    /// The message ends before them.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        self.take(what).map(u16::from_be_bytes)
    }

    /// Four bytes.
    ///
    /// # Errors
    /// The message ends before them.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        self.take(what).map(u32::from_be_bytes)
    }

    /// Four bytes, signed.
    ///
    /// # Errors
    /// The message ends before them.
    pub fn i32(&mut self, what: &'static str) -> Result<i32, DecodeError> {
        self.take(what).map(i32::from_be_bytes)
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// The message ends before them.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        self.take(what).map(u64::from_be_bytes)
    }

    /// Eight bytes, signed.
    ///
    /// # Errors
    /// The message ends before them.
    pub fn i64(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        self.take(what).map(i64::from_be_bytes)
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// The message ends before them.
    pub fn bytes(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let Some((value, rest)) = self.rest.split_at_checked(len) else {
            return Err(self.error(Kind::Short, what));
        };
        self.rest = rest;
        self.offset += len;
        Ok(value)
    }

    /// A text that ends with a zero byte, without it.
    ///
    /// # Errors
    /// No zero byte follows, or the text is not UTF-8.
    pub fn cstr(&mut self, what: &'static str) -> Result<&'a str, DecodeError> {
        let Some(len) = memchr::memchr(0, self.rest) else {
            return Err(self.error(Kind::Unterminated, what));
        };
        let start = *self;
        let value = self.bytes(len, what)?;
        self.u8(what)?;
        std::str::from_utf8(value).map_err(|_| start.error(Kind::NotUtf8, what))
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        let rest = std::mem::take(&mut self.rest);
        self.offset += rest.len();
        rest
    }

    /// Checks that the message ends here; `what` is what was read last.
    ///
    /// # Errors
    /// Bytes are left.
    pub fn end(&self, what: &'static str) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.error(Kind::Trailing, what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_each_kind_of_value_in_turn() {
        let mut message = vec![7];
        message.extend(0x0102_u16.to_be_bytes());
        message.extend(0x0102_0304_u32.to_be_bytes());
        message.extend((-1_i32).to_be_bytes());
        message.extend(0x0102_0304_0506_0708_u64.to_be_bytes());
        message.extend((-2_i64).to_be_bytes());
        message.extend("Zoë\0".as_bytes());
        message.extend(b"abcde");
        let mut cursor = Cursor::new(&message);
        assert_eq!(cursor.u8("a"), Ok(7));
        assert_eq!(cursor.u16("a"), Ok(0x0102));
        assert_eq!(cursor.u32("a"), Ok(0x0102_0304));
        assert_eq!(cursor.i32("a"), Ok(-1));
        assert_eq!(cursor.u64("a"), Ok(0x0102_0304_0506_0708));
        assert_eq!(cursor.i64("a"), Ok(-2));
        assert_eq!(cursor.cstr("a"), Ok("Zoë"));
        assert_eq!(cursor.bytes(2, "a"), Ok(&b"ab"[..]));
        assert!(cursor.end("a").is_err());
        assert_eq!(cursor.rest(), b"cde");
        assert_eq!(cursor.offset(), message.len());
        assert_eq!(cursor.end("a"), Ok(()));
        assert_eq!(cursor.bytes(0, "a"), Ok(&b""[..]));
    }

    #[test]
    fn an_error_names_what_was_read_and_where_and_takes_nothing() {
        let mut cursor = Cursor::new(&[0, 1, b'a', 0xFF, 0, b'z']);
        assert_eq!(cursor.u16("count"), Ok(1));
        let text = |result: Result<(), DecodeError>| result.unwrap_err().to_string();
        for (error, words) in [
            (
                text(cursor.u64("commit LSN").map(drop)),
                "message ends inside of commit LSN, at byte 2",
            ),
            (
                text(cursor.bytes(usize::MAX, "value").map(drop)),
                "message ends inside of value, at byte 2",
            ),
            (
                text(cursor.end("tuple")),
                "bytes are left over after tuple, at byte 2",
            ),
            (
                text(cursor.clone().cstr("name").map(drop)),
                "name is not UTF-8, at byte 2",
            ),
        ] {
            assert_eq!(error, words);
        }
        cursor.bytes(3, "skipped").unwrap();
        assert_eq!(
            text(cursor.cstr("name").map(drop)),
            "name has no end, at byte 5"
        );
        assert_eq!(cursor.offset(), 5);
        assert_eq!(
            DecodeError::tag(b'\n', "message tag", 0).to_string(),
            "unexpected message tag '\\n', at byte 0"
        );
    }
}
