//! A point in time, as Postgres counts it.

/// Microseconds since 2000-01-01 00:00:00 UTC, the epoch of Postgres.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp(pub i64);
