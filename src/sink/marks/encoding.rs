//! How a note lists its tasks: seven or eight bytes for each, four where many come from one transaction.
//!
//! A note is a sequence of lists, put one after the other by whoever stores them; each begins with a zero. Numbers are
//! in groups of seven bits, the lowest first; differences to the number before are folded to be positive.

use super::Mark;
use crate::outbox::Position;
use crate::pg::Lsn;

/// A list begins: differences are to 0.
const RESET: u8 = 0;
/// Row 0 of a transaction: difference of the LSN, hash.
const ONE: u8 = 1;
/// Successive rows of a transaction: difference of the LSN, first row, how many come after it, hashes.
const RUN: u8 = 2;

/// The bytes are no note.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

/// Writes one list.
#[derive(Debug, Default)]
pub struct List {
    bytes: Vec<u8>,
    /// Of the run that is not written yet: its first row, and the hashes.
    first: Position,
    hashes: Vec<u32>,
    lsn: u64,
}

impl List {
    /// Adds a task.
    pub fn add(&mut self, mark: Mark) {
        let next = self.first.ordinal.checked_add(self.hashes.len() as u64);
        let continues = self.first.commit_lsn == mark.position.commit_lsn
            && next == Some(mark.position.ordinal);
        if !continues || self.hashes.is_empty() {
            self.close();
            self.first = mark.position;
        }
        self.hashes.push(mark.hash);
    }

    /// The list; empty when nothing was added.
    pub fn finish(mut self) -> Vec<u8> {
        self.close();
        self.bytes
    }

    /// Writes the run.
    fn close(&mut self) {
        let Some(more) = self.hashes.len().checked_sub(1) else {
            return;
        };
        if self.bytes.is_empty() {
            self.bytes.push(RESET);
        }
        let Position {
            commit_lsn: Lsn(lsn),
            ordinal,
        } = self.first;
        let one = ordinal == 0 && more == 0;
        self.bytes.push(if one { ONE } else { RUN });
        number(&mut self.bytes, folded(self.lsn, lsn));
        if !one {
            number(&mut self.bytes, ordinal);
            number(&mut self.bytes, more as u64);
        }
        for hash in self.hashes.drain(..) {
            self.bytes.extend_from_slice(&hash.to_le_bytes());
        }
        self.lsn = lsn;
    }
}

/// Reads a note, whatever its bytes are.
///
/// # Errors
/// When it is none; what was read before says nothing then.
pub fn read(mut bytes: &[u8]) -> Result<Vec<Mark>, Malformed> {
    let mut marks = Vec::new();
    let mut lsn = 0;
    let mut begun = false;
    while let Some(kind) = take(&mut bytes) {
        match kind {
            RESET => (lsn, begun) = (0, true),
            ONE | RUN if begun => {
                lsn = unfolded(lsn, read_number(&mut bytes)?);
                let (first, more) = match kind {
                    ONE => (0, 0),
                    _ => (read_number(&mut bytes)?, read_number(&mut bytes)?),
                };
                let last = first.checked_add(more).ok_or(Malformed)?;
                // No more than there are bytes: nothing is reserved before.
                for ordinal in first..=last {
                    let position = Position {
                        commit_lsn: Lsn(lsn),
                        ordinal,
                    };
                    let hash = read_hash(&mut bytes)?;
                    marks.push(Mark { position, hash });
                }
            }
            _ => return Err(Malformed),
        }
    }
    Ok(marks)
}

/// A hash of a task's id, the same for ever: it is stored. Eight bytes at a time, since it is made for every task.
pub fn hash(id: &str) -> u32 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = (id.len() as u64).wrapping_mul(ODD);
    for chunk in id.as_bytes().chunks(8) {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(chunk) {
            *to = *from;
        }
        state = (state ^ u64::from_le_bytes(word)).wrapping_mul(ODD);
        state ^= state >> 29;
    }
    (state ^ state >> 32) as u32
}

fn folded(from: u64, to: u64) -> u64 {
    let difference = to.wrapping_sub(from).cast_signed();
    (difference << 1 ^ difference >> 63).cast_unsigned()
}

fn unfolded(from: u64, folded: u64) -> u64 {
    let difference = (folded >> 1) ^ (folded & 1).wrapping_neg();
    from.wrapping_add(difference)
}

fn number(out: &mut Vec<u8>, mut rest: u64) {
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u8> {
    let (first, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(*first)
}

fn read_number(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes).ok_or(Malformed)?;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return Err(Malformed);
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed)
}

fn read_hash(bytes: &mut &[u8]) -> Result<u32, Malformed> {
    let (hash, rest) = bytes.split_first_chunk().ok_or(Malformed)?;
    *bytes = rest;
    Ok(u32::from_le_bytes(*hash))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mark(lsn: u64, ordinal: u64, hash: u32) -> Mark {
        Mark {
            position: Position {
                commit_lsn: Lsn(lsn),
                ordinal,
            },
            hash,
        }
    }

    #[test]
    fn a_row_takes_a_few_bytes() {
        let mut marks = vec![mark(0x1_0000_0000, 0, 1)];
        marks.extend((1..100).map(|n| mark(0x1_0000_0000 + 400 * n, 0, 1)));
        marks.extend((0..1_000).map(|n| mark(0x1_0001_0000, n, n as u32)));
        marks.push(mark(0x1_0001_0000, 1_001, 7));
        let mut list = List::default();
        marks.iter().for_each(|mark| list.add(*mark));
        let bytes = list.finish();
        let expected =
            (2 + 5 + 4) + 99 * (1 + 2 + 4) + (1 + 3 + 1 + 2 + 4_000) + (1 + 1 + 2 + 1 + 4);
        assert_eq!(bytes.len(), expected);
        assert_eq!(read(&bytes), Ok(marks));
    }

    #[test]
    fn the_hash_is_the_same_for_ever() {
        for (id, expected) in [
            ("", 0),
            ("1", 1_124_313_598),
            ("6a1f5c1e-8a44-4d2c-9a3a-0d9f8a1b2c3d", 664_715_298),
        ] {
            assert_eq!(hash(id), expected, "{id}");
        }
    }

    #[test]
    fn what_is_no_note_is_refused() {
        const MOST: [u8; 9] = [0xff; 9];
        for bytes in [
            &[ONE, 1, 0, 0, 0, 0][..],
            &[RESET, 9],
            &[RESET, ONE, 0x80],
            &[RESET, ONE, 1, 0, 0, 0],
            &[&[RESET, ONE], &MOST[..], &[0x7f, 0, 0, 0, 0]].concat(),
            &[&[RESET, RUN, 1, 2], &MOST[..], &[1, 0, 0, 0, 0]].concat(),
            &[RESET, RUN, 1, 2, 1, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(read(bytes), Err(Malformed), "{bytes:?}");
        }
        assert_eq!(read(&[]), Ok(Vec::new()));
    }

    proptest! {
        #[test]
        fn what_is_listed_is_read(
            lists in proptest::collection::vec(proptest::collection::vec(
                (0usize..5, 0u64..4, any::<u32>()), 0..20), 0..4),
        ) {
            const LSNS: [u64; 5] = [0, 8, 1 << 40, u64::MAX / 2, u64::MAX];
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            for tasks in lists {
                let mut list = List::default();
                for (lsn, ordinal, hash) in tasks {
                    let mark = mark(LSNS[lsn], ordinal, hash);
                    list.add(mark);
                    expected.push(mark);
                }
                bytes.extend(list.finish());
            }
            prop_assert_eq!(read(&bytes), Ok(expected));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = read(&bytes);
        }
    }
}
