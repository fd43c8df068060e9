//! Settled rows that cannot leave the outbox, because another session keeps a lock on them or on the table.
//!
//! Nobody waits for it: what is held and due goes on, and what is settled meanwhile leaves. But what is still in the outbox
//! counts as not settled: until it is gone, the position that is confirmed stays where it was. The locker's transaction
//! keeps the server's WAL in any case.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::intake::Confirmation;

/// The rows are tried again so often.
const AGAIN: Duration = Duration::from_secs(1);
/// With so many of them the keeper waits for the lock after all.
const MOST: usize = 1 << 16;

/// The rows, and what may be confirmed beside them.
#[derive(Debug)]
pub(super) struct Stuck {
    ids: Vec<String>,
    next_try: Instant,
    /// The last position below which no row was left.
    complete: Confirmation,
}

impl Stuck {
    pub(super) fn new() -> Stuck {
        Stuck {
            ids: Vec::new(),
            next_try: Instant::now(),
            complete: Confirmation::default(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Whether more may be added.
    pub(super) fn has_room(&self) -> bool {
        self.ids.len() < MOST
    }

    /// Those to be tried now, and those to be left alone.
    pub(super) fn parts(&self) -> (&[String], &[String]) {
        let tried = match self.next_try <= Instant::now() {
            true => self.ids.len(),
            false => 0,
        };
        self.ids.split_at(tried)
    }

    /// These are what is left.
    pub(super) fn set(&mut self, ids: Vec<String>) {
        if self.next_try <= Instant::now() {
            self.next_try = Instant::now() + AGAIN;
        }
        match (self.ids.len(), ids.len()) {
            (0, 1..) => warn!(
                rows = ids.len(),
                "settled rows cannot leave the outbox: another session keeps a lock on them, or on the table. Tasks go on; the \
                 slot stays where it is until that session's transaction ends"
            ),
            (1.., 0) => info!("all settled rows have left the outbox"),
            _ => {}
        }
        self.ids = ids;
    }

    /// How much of what is settled may be confirmed.
    pub(super) fn confirmable(&mut self, settled: Confirmation) -> Confirmation {
        if self.ids.is_empty() {
            self.complete = settled;
        }
        self.complete
    }
}
