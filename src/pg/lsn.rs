//! A place in the write-ahead log.

use std::fmt;
use std::str::FromStr;

/// A log sequence number: a byte position in the write-ahead log.
///
/// Ordered by position. Written as Postgres writes it, `16/B374D848`
/// (documentation, chapter "pg_lsn Type"). `0/0` means "none".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// `0/0`: no position.
    pub const ZERO: Lsn = Lsn(0);

    /// Appends the text. It is in every message: `Display` would take five times as long.
    pub fn write(self, out: &mut Vec<u8>) {
        write_hex(out, (self.0 >> 32) as u32);
        out.push(b'/');
        write_hex(out, self.0 as u32);
    }
}

fn write_hex(out: &mut Vec<u8>, number: u32) {
    let digits = (u32::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        let nibble = (number >> (4 * digit)) as u8 & 15;
        out.push(nibble + if nibble < 10 { b'0' } else { b'A' - 10 });
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A position below which everything is settled, so that the server may forget it.
///
/// A type of its own, so that a position which was merely *received* cannot be sent as confirmed. Only the watermark
/// makes one (a test of the layout checks it).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct ConfirmedLsn(Lsn);

impl ConfirmedLsn {
    /// For the watermark only: vouches that everything below `lsn` is settled.
    pub fn vouch(lsn: Lsn) -> ConfirmedLsn {
        ConfirmedLsn(lsn)
    }

    /// This position, or `bound` if that is lower: below it everything is settled too. `bound` has to be the end of a
    /// transaction, or a keepalive's WAL end.
    pub fn at_most(self, bound: Lsn) -> ConfirmedLsn {
        ConfirmedLsn(self.0.min(bound))
    }

    /// The position itself.
    pub fn lsn(self) -> Lsn {
        self.0
    }
}

/// The text is not of the form `16/B374D848`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an LSN has the form 16/B374D848")]
pub struct ParseLsnError;

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Lsn, ParseLsnError> {
        let half = |s: &str| {
            let hex = !s.is_empty() && s.bytes().all(|b| b.is_ascii_hexdigit());
            if !hex {
                return Err(ParseLsnError);
            }
            u32::from_str_radix(s, 16).map_err(|_| ParseLsnError)
        };
        let (high, low) = text.split_once('/').ok_or(ParseLsnError)?;
        Ok(Lsn(u64::from(half(high)?) << 32 | u64::from(half(low)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_the_form_of_postgres() {
        for (text, value) in [
            ("0/0", 0),
            ("16/B374D848", 0x16_B374_D848),
            ("A0/9000000F", 0xA0_9000_000F),
            ("FFFFFFFF/FFFFFFFF", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Lsn(value)));
            assert_eq!(Lsn(value).to_string(), text);
            let mut written = Vec::new();
            Lsn(value).write(&mut written);
            assert_eq!(written, text.as_bytes());
        }
        for bad in [
            "",
            "/",
            "1",
            "1/",
            "/1",
            "1/2/3",
            "+1/2",
            "100000000/0",
            "g/0",
            " 1/2",
        ] {
            assert_eq!(bad.parse::<Lsn>(), Err(ParseLsnError), "{bad:?}");
        }
    }
}
