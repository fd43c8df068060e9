//! Floor 1: the one place that reads the wall clock, and a wait that there may not be.
//!
//! A task's times are Postgres's and travel with it. What needs the present (a status update carries it, a message's
//! expiration is counted from it) asks here, and passes it down to the pure rooms as a [`Timestamp`]. Waits and
//! timeouts are measured with `Instant` instead, which no one can set back.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::pg::Timestamp;

/// The present by this machine's clock. A clock that stands before 1970 counts as 1970.
pub fn now() -> Timestamp {
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
