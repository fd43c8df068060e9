//! Pure: which transactions a snapshot of the primary, and the replicas' positions, let pass.

use crate::pg::Lsn;

/// A snapshot of the primary, as `pg_current_snapshot()` writes it: `xmin:xmax:xip,xip,…` (documentation, chapter
/// "Transaction ID and Snapshot Information Functions").
///
/// Only the low 32 bits of each id are kept: Begin carries no more, and to rebuild a 64-bit id from them goes wrong at
/// the wrap. Ids are compared as Postgres compares them, modulo 2^32, which holds for ids less than 2^31 apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    xmax: u32,
    /// In progress, sorted by value.
    xip: Vec<u32>,
}

/// The text is not a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("pg_current_snapshot() returned something that is not a snapshot")]
pub struct ParseSnapshotError;

impl Snapshot {
    /// Reads the text form.
    ///
    /// # Errors
    /// When it is not of that form.
    pub fn parse(text: &str) -> Result<Snapshot, ParseSnapshotError> {
        let id = |text: &str| {
            text.parse::<u64>()
                .map(|id| id as u32)
                .map_err(|_| ParseSnapshotError)
        };
        let mut parts = text.split(':');
        let (Some(xmin), Some(xmax), Some(xip), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ParseSnapshotError);
        };
        id(xmin)?;
        let mut xip = match xip {
            "" => Vec::new(),
            list => list.split(',').map(id).collect::<Result<Vec<u32>, _>>()?,
        };
        xip.sort_unstable();
        Ok(Snapshot {
            xmax: id(xmax)?,
            xip,
        })
    }

    /// Whether the snapshot sees what this transaction did, given that its commit record has been decoded.
    pub fn sees(&self, xid: u32) -> bool {
        (xid.wrapping_sub(self.xmax) as i32) < 0 && self.xip.binary_search(&xid).is_err()
    }
}

/// What the gate knows; once it admits a transaction, it does so for ever (on the same server).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Clearance {
    /// The newest snapshot of the primary; `None` where visibility is not asked for.
    pub snapshot: Option<Snapshot>,
    /// The least `pg_last_wal_replay_lsn()` of the named replicas; `None` where there are none.
    pub replayed: Option<Lsn>,
}

impl Clearance {
    /// Whether the tasks of a transaction may leave.
    ///
    /// `commit_lsn` is the start of its commit record, so a replica has replayed it when it stands *above*: a replay
    /// position is always the end of a record.
    pub fn admits(&self, xid: u32, commit_lsn: Lsn) -> bool {
        self.snapshot
            .as_ref()
            .is_none_or(|snapshot| snapshot.sees(xid))
            && self.replayed.is_none_or(|replayed| replayed > commit_lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_what_had_ended_also_across_the_wrap() {
        for (snapshot, xid, seen) in [
            ("100:100:", 99, true),
            ("100:100:", 100, false),
            ("100:100:", 101, false),
            ("100:110:102,105", 101, true),
            ("100:110:102,105", 102, false),
            ("100:110:102,105", 105, false),
            ("100:110:102,105", 109, true),
            ("100:110:102,105", 110, false),
            // The second epoch: 2^32 + 5, written in 64 bits; ids before the wrap are older.
            ("4294967301:4294967301:", 4_294_967_295, true),
            ("4294967301:4294967301:", 3, true),
            ("4294967301:4294967301:", 5, false),
            ("4294967301:4294967301:", 6, false),
            // Not yet wrapped: an id after the wrap is in the future.
            ("4294967290:4294967290:", 4_294_967_289, true),
            ("4294967290:4294967290:", 4, false),
            // In progress on both sides of the wrap.
            (
                "4294967290:4294967301:4294967290,4294967299",
                4_294_967_290,
                false,
            ),
            (
                "4294967290:4294967301:4294967290,4294967299",
                4_294_967_291,
                true,
            ),
            ("4294967290:4294967301:4294967290,4294967299", 3, false),
            ("4294967290:4294967301:4294967290,4294967299", 4, true),
            ("3:3:", 2_147_483_650, false),
            ("3:3:", 2_147_483_651, true),
        ] {
            assert_eq!(
                Snapshot::parse(snapshot).map(|s| s.sees(xid)),
                Ok(seen),
                "{xid} in {snapshot}"
            );
        }
    }

    #[test]
    fn refuses_what_is_no_snapshot() {
        for bad in [
            "", "1:2", "1:2:3:4", "a:2:", "1:b:", "1:2:x", "1:2:3,", "-1:2:",
        ] {
            assert_eq!(Snapshot::parse(bad), Err(ParseSnapshotError), "{bad:?}");
        }
    }

    #[test]
    fn a_replica_is_level_when_it_stands_above_the_commit_record() {
        let at = |replayed| Clearance {
            snapshot: None,
            replayed: Some(Lsn(replayed)),
        };
        assert!(!at(99).admits(1, Lsn(100)));
        assert!(
            !at(100).admits(1, Lsn(100)),
            "the record begins there; it is not replayed"
        );
        assert!(at(101).admits(1, Lsn(100)));
        let neither = Clearance {
            snapshot: None,
            replayed: None,
        };
        assert!(neither.admits(1, Lsn(100)));
        let both = Clearance {
            snapshot: Some(Snapshot {
                xmax: 5,
                xip: vec![],
            }),
            replayed: Some(Lsn(50)),
        };
        assert!(both.admits(4, Lsn(49)));
        assert!(!both.admits(5, Lsn(49)));
        assert!(!both.admits(4, Lsn(50)));
    }
}
