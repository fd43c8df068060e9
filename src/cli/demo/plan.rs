//! Pure: what the shop is going to do. The same seed makes the same transactions, so that every act gets the same load.

use std::time::Duration;

/// Transactions that begin in a second.
pub(super) const RATE: u64 = 120;

/// Connections of the application. A customer always works through the same one, so that the order of the
/// customer's commits is known.
pub(super) const CONNECTIONS: u64 = 12;

const CUSTOMERS: u64 = 40;

/// One transaction of the application: it writes an order and enqueues a task about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Transaction {
    /// When it is due, counted from the start of the act. A connection that is late begins at once.
    pub(super) at: Duration,
    /// The order that it writes.
    pub(super) order: u64,
    /// Whose order it is.
    pub(super) customer: u64,
    /// Something more that the customer wants, written in a savepoint with a task of its own.
    pub(super) extra: Option<Extra>,
    /// Work between writing the order and enqueueing the task.
    pub(super) before: Duration,
    /// Work between enqueueing the task and the end of the transaction.
    pub(super) after: Duration,
    /// How it ends.
    pub(super) end: End,
}

/// A second order, in a savepoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extra {
    /// The order that it writes.
    pub(super) order: u64,
    /// Released, or rolled back after the task was enqueued.
    pub(super) released: bool,
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// COMMIT.
    Commit,
    /// COMMIT; then the application's process is gone before it does anything else.
    CommitThenDie,
    /// ROLLBACK.
    RollBack,
}

impl Transaction {
    /// Which of the application's connections runs it.
    pub(super) fn connection(&self) -> u64 {
        self.customer % CONNECTIONS
    }

    /// The ordering key of its tasks; half of the customers ask for none.
    pub(super) fn key(&self) -> Option<String> {
        (self.customer < CUSTOMERS / 2).then(|| format!("customer-{}", self.customer))
    }
}

/// The id of the task about an order, a UUID, which has the order in it: a worker's log names ids only.
pub(super) fn task_id(order: u64) -> String {
    format!("{TASK_IDS}{:012x}", order & 0xffff_ffff_ffff)
}

/// The order that is in a task's id.
pub(super) fn order_of(id: &str) -> Option<u64> {
    u64::from_str_radix(id.strip_prefix(TASK_IDS)?, 16).ok()
}

const TASK_IDS: &str = "00000000-0000-4000-8000-";

/// The transactions of an act that lasts so long, in the order in which they are due.
pub(super) fn transactions(seed: u64, length: Duration) -> Vec<Transaction> {
    let mut random = fastrand::Rng::with_seed(seed);
    let count = length.as_millis() as u64 * RATE / 1_000;
    (0..count)
        .map(|n| Transaction {
            at: Duration::from_micros(n * 1_000_000 / RATE),
            order: 2 * n,
            customer: random.u64(..CUSTOMERS),
            extra: (random.u32(..5) == 0).then(|| Extra {
                order: 2 * n + 1,
                released: random.u32(..3) == 0,
            }),
            before: Duration::from_millis(random.u64(..4)),
            // One in six commits right after the enqueue: the kindest case for a task that is handed over directly.
            after: match random.u32(..6) {
                0 => Duration::ZERO,
                _ => Duration::from_millis(random.u64(1..=12)),
            },
            end: match random.u32(..20) {
                0 | 1 => End::RollBack,
                2 => End::CommitThenDie,
                _ => End::Commit,
            },
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_load() {
        let length = Duration::from_secs(3);
        assert_eq!(transactions(7, length), transactions(7, length));
        assert_ne!(transactions(7, length), transactions(8, length));
    }

    #[test]
    fn an_id_is_a_uuid_and_leads_back_to_its_order() {
        for order in [0, 42, 0xffff_ffff_ffff] {
            let id = task_id(order);
            assert_eq!(uuid::Uuid::parse_str(&id).unwrap().to_string(), id);
            assert_eq!(order_of(&id), Some(order));
        }
        assert_eq!(order_of("5f0c3a52-0000-4000-8000-000000000001"), None);
        assert_eq!(order_of("not an id"), None);
    }

    #[test]
    fn every_way_to_end_occurs_even_in_a_short_act() {
        let all = transactions(1, Duration::from_secs(1));
        assert_eq!(all.len() as u64, RATE);
        for end in [End::Commit, End::CommitThenDie, End::RollBack] {
            assert!(all.iter().any(|one| one.end == end), "{end:?}");
        }
        for released in [true, false] {
            assert!(
                all.iter()
                    .any(|one| one.extra.is_some_and(|extra| extra.released == released)),
                "an extra with released = {released}"
            );
        }
        assert!(all.iter().any(|one| one.key().is_some()));
        assert!(all.iter().any(|one| one.key().is_none()));
    }

    #[test]
    fn orders_are_unique_and_ascend_with_time() {
        let all = transactions(1, Duration::from_secs(2));
        assert!(all.is_sorted_by(|a, b| a.order + 1 < b.order && a.at < b.at));
    }
}
