//! Redis as a producer needs it: its URLs, a connection, its protocol, and what its refusals mean. No sink by itself.

pub(super) mod connection;
pub(super) mod describe;
pub(super) mod nodes;
pub(super) mod outcome;
pub(super) mod resp;
pub(super) mod sentinel;
pub mod servers;
pub(super) mod slots;
pub mod url;
