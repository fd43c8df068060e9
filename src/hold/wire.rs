//! Values as the server takes them.

use std::error::Error;
use std::str::FromStr;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{Format, FromSql, IsNull, PgLsn, ToSql, Type, to_sql_checked};
use uuid::Uuid;

use crate::pg::{Lsn, Timestamp};

type Failure = Box<dyn Error + Sync + Send>;

/// A `timestamptz`: both count microseconds from the same moment.
#[derive(Debug)]
pub(super) struct At(pub(super) Timestamp);

impl ToSql for At {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Failure> {
        out.put_i64(self.0.0);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for At {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<At, Failure> {
        Ok(At(Timestamp(i64::from_be_bytes(raw.try_into()?))))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }
}

pub(super) fn to_pg_lsn(lsn: Lsn) -> PgLsn {
    PgLsn::from(lsn.0)
}

/// Ids as an array of this type, for the types that most ids have in the form that costs the server the least: reading a uuid
/// from text takes it a quarter of the time that deleting its row does.
pub(super) fn array_of<'a>(ids: &'a [&'a str], of: &Type) -> Box<dyn ToSql + Sync + Send + 'a> {
    match *of {
        Type::UUID_ARRAY => parsed::<Uuid>(ids),
        Type::INT8_ARRAY => parsed::<i64>(ids),
        Type::INT4_ARRAY => parsed::<i32>(ids),
        _ => None,
    }
    .unwrap_or_else(|| Box::new(AsWritten(ids)))
}

fn parsed<'a, T>(ids: &[&str]) -> Option<Box<dyn ToSql + Sync + Send + 'a>>
where
    T: FromStr + ToSql + Sync + Send + 'a,
{
    let parsed: Option<Vec<T>> = ids.iter().map(|id| id.parse().ok()).collect();
    Some(Box::new(parsed?))
}

/// Texts as an array of whatever type the server finds there: sent as text, and read by that type's own input.
#[derive(Debug)]
pub(super) struct AsWritten<'a>(pub(super) &'a [&'a str]);

impl ToSql for AsWritten<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Failure> {
        out.put_u8(b'{');
        for (index, text) in self.0.iter().enumerate() {
            if index > 0 {
                out.put_u8(b',');
            }
            out.put_u8(b'"');
            for byte in text.bytes() {
                if matches!(byte, b'"' | b'\\') {
                    out.put_u8(b'\\');
                }
                out.put_u8(byte);
            }
            out.put_u8(b'"');
        }
        out.put_u8(b'}');
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

/// Microseconds, of at most a century: the server adds them to its now.
pub(super) fn micros(duration: Duration) -> i64 {
    const CENTURY: i64 = 100 * 365 * 86_400 * 1_000_000;
    i64::try_from(duration.as_micros()).map_or(CENTURY, |micros| micros.min(CENTURY))
}

pub(super) fn count(attempts: u32) -> i32 {
    i32::try_from(attempts).unwrap_or(i32::MAX)
}

/// Text that the server takes: it has no zero bytes.
pub(super) fn clean(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_breaks_out_of_its_array() {
        let mut out = BytesMut::new();
        let texts = ["", "a", "\"", "\\", "{,}", "NULL", "größe"];
        AsWritten(&texts)
            .to_sql(&Type::UNKNOWN, &mut out)
            .expect("texts");
        assert_eq!(out, r#"{"","a","\"","\\","{,}","NULL","größe"}"#.as_bytes());
    }

    #[test]
    fn ids_have_the_form_of_their_type() {
        let uuid = "00000000-0000-0000-0000-0000000000ff";
        for (id, of, binary) in [
            (uuid, Type::UUID_ARRAY, true),
            ("7", Type::UUID_ARRAY, false),
            ("-7", Type::INT8_ARRAY, true),
            ("7", Type::INT4_ARRAY, true),
            ("9223372036854775807", Type::INT4_ARRAY, false),
            ("7", Type::TEXT_ARRAY, false),
            (uuid, Type::UNKNOWN, false),
        ] {
            let mut out = BytesMut::new();
            let ids = [id];
            let array = array_of(&ids, &of);
            array.to_sql_checked(&of, &mut out).expect("an array");
            let is_binary = matches!(array.encode_format(&of), Format::Binary);
            assert_eq!(is_binary, binary, "{id} as {of}");
            assert_eq!(out.starts_with(b"{"), !binary, "{id} as {of}");
        }
    }

    #[test]
    fn times_stay_in_range() {
        assert_eq!(micros(Duration::from_millis(1)), 1_000);
        assert_eq!(micros(Duration::MAX), 3_153_600_000_000_000);
        assert_eq!(count(u32::MAX), i32::MAX);
        assert_eq!(clean("a\0b"), "a\u{fffd}b");
    }
}
