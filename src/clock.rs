//! Floor 1: what time it is, and a wait that there may not be.
//!
//! A task's times are Postgres's and travel with it, so the present that they are compared with is Postgres's, too: a clock
//! of this machine that is wrong, or jumps, would let tasks expire that have hours left. The keeper hears the server's clock
//! whenever it asks for something ([`hear`]), once a second or more often; between two answers it is carried on by a clock
//! that no one sets. Before the first answer it is that of the stream, which no task comes before ([`hear_first`]). What
//! needs the present (a status update carries it, a message's expiration is counted from it) asks here, and passes it down to
//! the pure rooms as a [`Timestamp`]. Waits and timeouts are measured with `Instant`.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Instant as Steady, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::pg::Timestamp;

/// Carries a clock on that is heard now and then.
#[derive(Debug)]
struct Reckoning {
    since: Steady,
    /// What the clock showed at `since`, in microseconds; [`UNHEARD`] until it is known.
    showed: AtomicI64,
}

/// No clock shows this.
const UNHEARD: i64 = i64::MIN;

impl Reckoning {
    fn new() -> Reckoning {
        Reckoning {
            since: Steady::now(),
            showed: AtomicI64::new(UNHEARD),
        }
    }

    /// The clock shows `shows` now.
    fn hear(&self, shows: Timestamp) {
        let showed = shows.0.saturating_sub(self.elapsed()).max(UNHEARD + 1);
        self.showed.store(showed, Ordering::Relaxed);
    }

    /// The clock showed `shows` a moment ago. Counts for nothing once it was heard.
    fn hear_first(&self, shows: Timestamp) {
        if self.showed.load(Ordering::Relaxed) == UNHEARD {
            let showed = shows.0.saturating_sub(self.elapsed()).max(UNHEARD + 1);
            let order = Ordering::Relaxed;
            // Where it fails, somebody else has heard it meanwhile.
            let _ = self.showed.compare_exchange(UNHEARD, showed, order, order);
        }
    }

    /// What the clock shows now, if it was ever heard.
    fn now(&self) -> Option<Timestamp> {
        match self.showed.load(Ordering::Relaxed) {
            UNHEARD => None,
            showed => Some(Timestamp(showed.saturating_add(self.elapsed()))),
        }
    }

    fn elapsed(&self) -> i64 {
        i64::try_from(self.since.elapsed().as_micros()).unwrap_or(i64::MAX)
    }
}

/// The server's clock: one for the process, as this machine's is.
static SERVER: LazyLock<Reckoning> = LazyLock::new(Reckoning::new);

/// The server's clock shows `shows` now. It is heard late, by the way of an answer, and so never ahead: a task goes out that
/// has just expired, rather than that one is given up which has not.
pub fn hear(shows: Timestamp) {
    SERVER.hear(shows);
}

/// A message of the stream was sent when the server's clock showed `shows` (the time in XLogData and keepalives, PostgreSQL's
/// streaming replication protocol). It may have waited since then, so the first one counts, and only as long as nothing was
/// heard otherwise.
pub fn hear_first(shows: Timestamp) {
    SERVER.hear_first(shows);
}

/// The present by the server's clock; until that was heard, by this machine's.
pub fn now() -> Timestamp {
    SERVER.now().unwrap_or_else(ours)
}

/// The present by this machine's clock. One that stands before 1970 counts as 1970.
fn ours() -> Timestamp {
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_unix_micros(i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX))
}

/// Waits until a moment; not at all where there is none. For the arms of a loop, beside a guard that there is one.
pub async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_heard_until_there_is_better() {
        const HOUR: i64 = 3_600_000_000;
        let clock = Reckoning::new();
        let shows = |clock: &Reckoning| clock.now().map(|now| now.0 / HOUR);
        clock.hear_first(Timestamp(2 * HOUR));
        clock.hear_first(Timestamp(3 * HOUR));
        assert_eq!(shows(&clock), Some(2));
        clock.hear(Timestamp(4 * HOUR));
        clock.hear_first(Timestamp(5 * HOUR));
        assert_eq!(shows(&clock), Some(4));
    }

    #[test]
    fn a_clock_is_followed_wherever_it_is_set() {
        const MINUTE: i64 = 60_000_000;
        let clock = Reckoning::new();
        assert_eq!(clock.now(), None);
        for shows in [0, 5 * MINUTE, -5 * MINUTE] {
            clock.hear(Timestamp(shows));
            let now = clock.now().map_or(0, |now| now.0);
            assert!((shows..shows + MINUTE).contains(&now), "{shows}: {now}");
        }
    }
}
