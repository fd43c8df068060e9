//! Floor 0, pure: the values and frames of the Postgres replication protocol.

pub mod cursor;
pub mod lsn;
pub mod pgoutput;
pub mod replication;
pub mod timestamp;
pub mod tuple;

pub use cursor::{Cursor, DecodeError};
pub use lsn::{ConfirmedLsn, Lsn};
pub use timestamp::{Moment, Rfc3339, Timestamp};
