//! Floor 1: the walsender connection.
//!
//! From a URL to a server that is ready to stream: [`target`] reads the URL, `socket` and `tls` reach the server,
//! `startup` and `auth` get in, and [`Walsender`] says START_REPLICATION. [`connect_sql`] opens a plain SQL session
//! by the same rules. [`error`] keeps what went wrong, and `policy` decides what to do about it.

use std::time::Duration;

use crate::units::BackoffRange;

/// The name that the server shows for our connections. Not one of the cluster's standby names: a walsender that is picked
/// as a synchronous standby would make commits wait for us, and us for commits.
pub const APPLICATION_NAME: &str = "aftercommit";

/// Pauses between attempts to connect to a server that is away.
pub const RECONNECT: BackoffRange = BackoffRange {
    min: Duration::from_millis(100),
    max: Duration::from_secs(5),
};

mod auth;
pub mod config;
mod conninfo;
mod end_point;
pub mod error;
mod keywords;
pub mod message;
mod policy;
mod session;
mod silence;
mod slot;
mod socket;
mod sql;
mod startup;
pub mod stream;
pub mod target;
mod tls;
mod walsender;

pub use config::Config;
pub use error::{Error, Place, refuse_notice};
pub use message::ServerMessage;
pub use policy::{Policy, Stop};
pub use slot::CreatedSlot;
pub use socket::Socket;
pub use sql::{ANSWER_WITHIN, connect_sql, connect_sql_unhurried, drive, open_sql};
pub use startup::WAL_SENDER_TIMEOUT;
pub use target::Target;
pub use walsender::{CopyBoth, SystemIdentity, Walsender};
