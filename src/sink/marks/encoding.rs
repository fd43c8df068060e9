//! How a note lists its tasks: seven or eight bytes for each, four where many come from one transaction.
//!
//! A note is a sequence of lists, put one after the other by whoever stores them; each begins with a zero. Numbers are
//! in groups of seven bits, the lowest first; differences to the number before are folded to be positive.

use crate::outbox::Position;
use crate::pg::Lsn;

/// A list begins: differences are to 0.
const RESET: u8 = 0;
/// Row 0 of a transaction: difference of the LSN, hash.
const ONE: u8 = 1;
/// Successive rows of a transaction: difference of the LSN, first row, how many come after it, hashes.
const RUN: u8 = 2;
/// A row of the hold table: difference of the number, hash.
const HELD: u8 = 3;

/// What a note lists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Item {
    /// Rows of a transaction.
    Run(Run),
    /// A row of the hold table.
    Held {
        /// Its number.
        hold_id: i64,
        /// [`hash`] of the task's id.
        hash: u32,
    },
}

/// Successive rows of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first.
    pub first: Position,
    /// [`hash`] of the id of each; one at least.
    pub hashes: Vec<u32>,
}

impl Run {
    /// The hash of the row at a position, if it is one of these.
    pub fn get(&self, position: Position) -> Option<u32> {
        if self.first.commit_lsn != position.commit_lsn {
            return None;
        }
        let nth = position.ordinal.checked_sub(self.first.ordinal)?;
        self.hashes.get(usize::try_from(nth).ok()?).copied()
    }

    fn is_continued_by(&self, position: Position) -> bool {
        let next = self.first.ordinal.checked_add(self.hashes.len() as u64);
        self.first.commit_lsn == position.commit_lsn && next == Some(position.ordinal)
    }
}

/// The bytes are no note.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

/// Writes one list.
#[derive(Debug, Default)]
pub struct List {
    bytes: Vec<u8>,
    /// Not written yet: the next row may continue it.
    open: Option<Run>,
    /// For the hashes of the next run.
    spare: Vec<u32>,
    lsn: u64,
    hold_id: u64,
}

impl List {
    /// Adds a task that came from the stream.
    pub fn add(&mut self, position: Position, hash: u32) {
        if let Some(run) = &mut self.open
            && run.is_continued_by(position)
        {
            run.hashes.push(hash);
            return;
        }
        self.close();
        let mut hashes = std::mem::take(&mut self.spare);
        hashes.push(hash);
        self.open = Some(Run {
            first: position,
            hashes,
        });
    }

    /// Adds a task that came from the hold table.
    pub fn add_held(&mut self, hold_id: i64, hash: u32) {
        self.close();
        let hold_id = hold_id.cast_unsigned();
        self.begin(HELD);
        number(&mut self.bytes, folded(self.hold_id, hold_id));
        self.bytes.extend_from_slice(&hash.to_le_bytes());
        self.hold_id = hold_id;
    }

    /// The list; empty when nothing was added.
    pub fn finish(mut self) -> Vec<u8> {
        self.close();
        self.bytes
    }

    fn begin(&mut self, kind: u8) {
        if self.bytes.is_empty() {
            self.bytes.push(RESET);
        }
        self.bytes.push(kind);
    }

    fn close(&mut self) {
        let Some(Run { first, mut hashes }) = self.open.take() else {
            return;
        };
        let Lsn(lsn) = first.commit_lsn;
        let more = hashes.len() as u64 - 1;
        let one = first.ordinal == 0 && more == 0;
        self.begin(if one { ONE } else { RUN });
        number(&mut self.bytes, folded(self.lsn, lsn));
        if !one {
            number(&mut self.bytes, first.ordinal);
            number(&mut self.bytes, more);
        }
        for hash in hashes.drain(..) {
            self.bytes.extend_from_slice(&hash.to_le_bytes());
        }
        self.spare = hashes;
        self.lsn = lsn;
    }
}

/// Reads a note, whatever its bytes are.
///
/// # Errors
/// When it is none; what was read before says nothing then.
pub fn read(mut bytes: &[u8]) -> Result<Vec<Item>, Malformed> {
    let mut items = Vec::new();
    let (mut lsn, mut hold) = (0, 0);
    let mut begun = false;
    while let Some(kind) = take(&mut bytes) {
        match kind {
            RESET => (lsn, hold, begun) = (0, 0, true),
            ONE | RUN if begun => {
                lsn = unfolded(lsn, read_number(&mut bytes)?);
                let (ordinal, more) = match kind {
                    ONE => (0, 0),
                    _ => (read_number(&mut bytes)?, read_number(&mut bytes)?),
                };
                ordinal.checked_add(more).ok_or(Malformed)?;
                // No more than there are bytes: nothing is reserved before.
                let hashes = (0..=more).map(|_| read_hash(&mut bytes));
                items.push(Item::Run(Run {
                    first: Position {
                        commit_lsn: Lsn(lsn),
                        ordinal,
                    },
                    hashes: hashes.collect::<Result<_, _>>()?,
                }));
            }
            HELD if begun => {
                hold = unfolded(hold, read_number(&mut bytes)?);
                items.push(Item::Held {
                    hold_id: hold.cast_signed(),
                    hash: read_hash(&mut bytes)?,
                });
            }
            _ => return Err(Malformed),
        }
    }
    Ok(items)
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

    fn at(lsn: u64, ordinal: u64) -> Position {
        Position {
            commit_lsn: Lsn(lsn),
            ordinal,
        }
    }

    #[test]
    fn a_row_takes_a_few_bytes() {
        let mut list = List::default();
        list.add(at(0x1_0000_0000, 0), 1);
        let first = 2 + 5 + 4;
        (1..100).for_each(|n| list.add(at(0x1_0000_0000 + 400 * n, 0), 1));
        list.add_held(70_000, 2);
        list.add_held(70_001, 3);
        (0..1_000).for_each(|n| list.add(at(0x1_0001_0000, n), n as u32));
        let bytes = list.finish();
        let expected =
            first + 99 * (1 + 2 + 4) + (1 + 3 + 4) + (1 + 1 + 4) + (1 + 3 + 1 + 2 + 4_000);
        assert_eq!(bytes.len(), expected);
        let items = read(&bytes).unwrap();
        assert_eq!(items.len(), 103);
        assert_eq!(
            items[100..],
            [
                Item::Held {
                    hold_id: 70_000,
                    hash: 2
                },
                Item::Held {
                    hold_id: 70_001,
                    hash: 3
                },
                Item::Run(Run {
                    first: at(0x1_0001_0000, 0),
                    hashes: (0..1_000).collect(),
                }),
            ]
        );
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
        for bytes in [
            &[ONE, 1, 0, 0, 0, 0][..],
            &[RESET, 9],
            &[RESET, ONE, 0x80],
            &[RESET, ONE, 1, 0, 0, 0],
            &[RESET, HELD, 1],
            &[
                RESET, ONE, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0,
            ],
            &[
                RESET, RUN, 1, 2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0,
                0,
            ],
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
                (any::<bool>(), any::<u64>(), 0u64..4, any::<u32>()), 0..20), 0..4),
        ) {
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            for tasks in lists {
                let mut list = List::default();
                for (held, number, ordinal, hash) in tasks {
                    if held {
                        list.add_held(number.cast_signed(), hash);
                        expected.push((None, number, hash));
                    } else {
                        // Few LSNs, so that runs come about.
                        let lsn = [0, u64::MAX / 2, u64::MAX][number as usize % 3];
                        list.add(at(lsn, ordinal), hash);
                        expected.push((Some(lsn), ordinal, hash));
                    }
                }
                bytes.extend(list.finish());
            }
            let mut found = Vec::new();
            for item in read(&bytes).unwrap() {
                match item {
                    Item::Held { hold_id, hash } => found.push((None, hold_id.cast_unsigned(), hash)),
                    Item::Run(run) => (run.first.ordinal..).zip(run.hashes).for_each(|(ordinal, hash)| {
                        found.push((Some(run.first.commit_lsn.0), ordinal, hash));
                    }),
                }
            }
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = read(&bytes);
        }
    }
}
