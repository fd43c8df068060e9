//! Pure: which partitions are wholly settled.
//!
//! A partition whose time is over can still get rows: from a transaction that began before its end, since `now()` is
//! when that began, or from one that gives the date itself. The first must not find its partition gone, or the
//! application's insert fails; so they are waited for, one kind after the other:
//!
//! 1. the transactions that were open when we first saw that the partition's time is over, and began before its end
//!    (where our role may not see when, they are taken to have);
//! 2. those that were prepared by then: the first ones may have become such, and hold no session any more;
//! 3. the position where the WAL is written then: all that these have committed is below. When it is confirmed, it is
//!    settled.
//!
//! A date of the past that the application gives comes later or not at all. Nothing is lost with the row that had one:
//! what is delivered comes from the WAL, not from the table, and what is held is in the hold table.

use std::collections::{HashMap, HashSet};

use crate::control::partitions::{Open, Partition};
use crate::pg::Lsn;

/// How far a partition is on its way out.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Stage {
    /// These transactions are still open.
    Open(HashSet<String>),
    /// These are still prepared.
    Prepared(HashSet<String>),
    /// All that is in it was written below this position.
    Written(Lsn),
}

/// The server, as it was looked at: first `open`, then `prepared`, then `written`.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) open: Vec<Open>,
    pub(super) prepared: Vec<String>,
    pub(super) written: Lsn,
}

/// The partitions whose time is over, by OID. They belong to one session: positions of another may mean nothing.
#[derive(Debug, Default)]
pub(super) struct Leaving(HashMap<u32, Stage>);

impl Leaving {
    /// Forgets all but these, and says whether a look at the server would bring one of them on. One whose time was over and
    /// is not, since a clock was set back, may get rows: it starts anew when its time is over again.
    pub(super) fn retain(&mut self, past: &[&Partition]) -> bool {
        self.0
            .retain(|oid, _| past.iter().any(|partition| partition.oid == *oid));
        past.iter()
            .any(|partition| !matches!(self.0.get(&partition.oid), Some(Stage::Written(_))))
    }

    /// Brings these on: their time is over, and was before the look.
    pub(super) fn look(&mut self, past: &[&Partition], look: &Look) {
        for partition in past {
            let stage = self.0.remove(&partition.oid);
            let mut stage = stage.unwrap_or_else(|| Stage::Open(began_before(partition, look)));
            if let Stage::Open(open) = &mut stage {
                open.retain(|id| look.open.iter().any(|now| now.id == *id));
                if open.is_empty() {
                    stage = Stage::Prepared(look.prepared.iter().cloned().collect());
                }
            }
            if let Stage::Prepared(prepared) = &mut stage {
                prepared.retain(|id| look.prepared.contains(id));
                if prepared.is_empty() {
                    stage = Stage::Written(look.written);
                }
            }
            self.0.insert(partition.oid, stage);
        }
    }

    /// Whether all in it is settled, with everything below `confirmed`.
    pub(super) fn is_settled(&self, partition: &Partition, confirmed: Lsn) -> bool {
        matches!(self.0.get(&partition.oid), Some(Stage::Written(lsn)) if *lsn <= confirmed)
    }

    /// The next position whose confirmation settles one of them; none where they wait for something else.
    pub(super) fn awaits(&self, confirmed: Lsn) -> Option<Lsn> {
        let written = self.0.values().filter_map(|stage| match stage {
            Stage::Written(lsn) if *lsn > confirmed => Some(*lsn),
            _ => None,
        });
        written.min()
    }
}

/// The partition's end was read before the transactions' ages: an age is rather too great, and one waits for too many.
fn began_before(partition: &Partition, look: &Look) -> HashSet<String> {
    let past_us = partition.past_us.unwrap_or_default();
    look.open
        .iter()
        .filter(|open| open.age_us.is_none_or(|age_us| age_us >= past_us))
        .map(|open| open.id.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(oid: u32, past_us: i64) -> Partition {
        Partition {
            oid,
            name: format!("p{oid}"),
            past_us: Some(past_us),
            width: None,
        }
    }

    fn look(open: &[(&str, Option<i64>)], prepared: &[&str], written: u64) -> Look {
        let open = open.iter().map(|(id, age_us)| Open {
            id: (*id).to_owned(),
            age_us: *age_us,
        });
        Look {
            open: open.collect(),
            prepared: prepared.iter().map(|id| (*id).to_owned()).collect(),
            written: Lsn(written),
        }
    }

    #[test]
    fn on_a_quiet_server_one_look_is_enough() {
        let partition = partition(1, 10);
        let mut leaving = Leaving::default();
        assert!(leaving.retain(&[&partition]));
        assert!(!leaving.is_settled(&partition, Lsn(900)), "not looked at");
        leaving.look(&[&partition], &look(&[], &[], 100));
        assert!(!leaving.retain(&[&partition]));
        assert_eq!(leaving.awaits(Lsn(99)), Some(Lsn(100)));
        assert!(!leaving.is_settled(&partition, Lsn(99)));
        assert!(leaving.is_settled(&partition, Lsn(100)));
        assert_eq!(leaving.awaits(Lsn(100)), None);
    }

    #[test]
    fn who_began_before_its_end_is_waited_for() {
        let partition = partition(1, 10);
        let mut leaving = Leaving::default();
        let mut at = |open: &[(&str, Option<i64>)], prepared: &[&str], written| {
            leaving.look(&[&partition], &look(open, prepared, written));
            leaving.awaits(Lsn(0))
        };
        let younger = ("younger", Some(9));
        assert_eq!(at(&[("a", Some(10)), ("b", None), younger], &[], 1), None);
        // One that comes later is not.
        assert_eq!(at(&[("b", None), younger, ("c", None)], &["x"], 2), None);
        // The last one has ended, or is prepared now: under another id.
        assert_eq!(at(&[younger, ("c", None)], &["x", "y"], 3), None);
        assert_eq!(at(&[("c", None)], &["y", "z"], 4), None);
        assert_eq!(at(&[("c", None)], &["z"], 5), Some(Lsn(5)));
        // The position is that of the moment when the last one was gone.
        assert_eq!(at(&[], &["w"], 6), Some(Lsn(5)));
    }

    #[test]
    fn each_partition_has_its_own_way() {
        let (old, young) = (partition(1, 100), partition(2, 10));
        let mut leaving = Leaving::default();
        leaving.look(&[&old, &young], &look(&[("a", Some(50))], &[], 7));
        assert!(leaving.is_settled(&old, Lsn(7)));
        assert!(!leaving.is_settled(&young, Lsn(7)));
        assert!(leaving.retain(&[&old, &young]));
        assert!(!leaving.retain(&[&old]));
        assert!(leaving.is_settled(&old, Lsn(7)));
        // The clock was set back.
        assert!(!leaving.retain(&[]));
        assert!(leaving.retain(&[&old]));
        assert!(!leaving.is_settled(&old, Lsn(9)));
    }
}
