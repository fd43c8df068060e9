//! Floor 0, pure: the values and frames of the Postgres replication protocol.

pub mod lsn;
pub mod timestamp;

pub use lsn::{ConfirmedLsn, Lsn};
pub use timestamp::Timestamp;
