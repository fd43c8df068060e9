//! The reliability exam: each fault is a row, and each row says what it has measured beside what must hold.
//!
//! | row | fault | file |
//! |---|---|---|
//! | 1, 2, 3 | kill -9 of the daemon, at random and at named points; SIGTERM under load | [`kills`] |
//! | 4, 5, 6, 7, 9 | the Postgres server: killed, stopped, hanging; its walsender terminated | [`server`] |
//! | 8, 10, 11, 13 | the broker: hanging, killed, away; its answers lost | [`brokers`] |
//! | 12, 14 | the network: cut, slow, flapping | [`network`] |
//! | 15 | the broker: out of memory, full, without what messages go to | [`full`] |
//! | 16 | one message in ten has nowhere to go: unroutable on RabbitMQ, no such topic or queue | [`unroutable`] |
//! | 17, 27 | the slot: dropped, invalidated; a standby takes over, with the slot and without | [`lost`] |
//! | 18, 20 | the catalog: publication, columns, what else one may do to a table | [`catalog`] |
//! | 21, 22, 23 | what the application writes: a million rows at once, 100 MB in one row, poison | [`input`] |
//! | 24 | one key that fails among a thousand | [`keys`] |
//! | 25 | credentials: wrong, rotated, revoked; certificates: another authority's, expired, none | [`doors`] |
//! | 26 | two daemons on one slot | [`roles`] |
//! | 28 | the clock: an hour forward and back | [`clock`] |
//! | 29 | no room: on the disk under the hold table, for the log, for file descriptors | [`room`] |
//! | 30, 31 | WAL of others, and a synchronous standby | [`wal`] |
//!
//! **Over each sink.** Rows 1, 2, 8, 10 to 16, 22, 23 and 25 are sat over every sink that they concern, each with the real
//! broker behind it ([`outlet`]): one test, and one receipt, for each. `SINKS=nats make exam` sits those over one sink; the
//! end of a test's name says which it is. Kafka and SQS are played by others (librdkafka, moto), in builds with these features;
//! what these cannot carry is left out, and [`outlet`]'s files say why. The other rows are sat over Celery on Redis.
//!
//! **Two profiles.** `cargo test` sits each row quickly, in a few seconds, and not over each sink: what it leaves out prints
//! SKIP. `EXAM=wide cargo test` leaves nothing out. `make exam` (`EXAM=full`) sits all in full, one row after the other and
//! with a release build; `make exam ROWS=1,4` some of them. In the quick profile rows share the machine with other tests, so
//! that times are judged by three times the bound.
//!
//! **The checker** is one for all rows ([`trial`]): of what was committed nothing is lost (not delivered, and not in the hold
//! table), nothing is delivered that was not committed, first deliveries of a key are in order, and no more comes twice than
//! the row allows ([`Again`]). Each daemon that a row starts is watched to its end: its peak memory, what it exits with, and
//! that its log holds no canary and no panic.
//!
//! **Seeded.** Every receipt has the seed; `EXAM_SEED` repeats what is random. Moments are those of the machine.

mod brokers;
mod catalog;
mod clock;
mod doors;
mod exposure;
mod full;
mod input;
mod keys;
mod kills;
mod lost;
mod network;
mod outlet;
mod roles;
mod room;
mod server;
mod sheet;
mod trial;
mod unroutable;
mod wal;

use std::time::Duration;

use self::outlet::Outlet;
use crate::support::exam::seed;

/// Whether the rows are sat in full.
fn is_full() -> bool {
    std::env::var("EXAM").is_ok_and(|profile| profile == "full")
}

/// Whether the quick profile sits each row over each outlet, for whoever works on one.
fn is_wide() -> bool {
    std::env::var("EXAM").is_ok_and(|profile| profile == "wide")
}

/// A count or a duration of the profile.
fn by_profile<T>(quick: T, full: T) -> T {
    if is_full() { full } else { quick }
}

/// From the end of a fault to the first new delivery: R of the daemon.
const DAEMON_BACK: Duration = Duration::from_secs(3);
/// R of a Postgres server.
const SERVER_BACK: Duration = Duration::from_secs(10);
/// R of a broker.
const BROKER_BACK: Duration = Duration::from_secs(5);
/// A stop under load takes no longer.
const STOPS_WITHIN: Duration = Duration::from_secs(10);
/// The daemon's peak memory, in bytes.
const MEMORY: u64 = 96_000_000;
/// How far the slot may be behind at the end, in bytes.
const LAG: u64 = 1 << 20;
