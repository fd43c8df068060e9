//! Floor 0: the memory budget, one for everything that the daemon holds of tasks.
//!
//! What is read is charged to it before anybody else sees it, and given back when it is settled, or dropped. While it is
//! used up nothing is read: so all that lies between the socket and the broker is bounded by it, but for the one read that
//! passes the limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Bytes of tasks in memory, and how many there may be.
#[derive(Debug)]
pub struct Memory {
    used: AtomicUsize,
    limit: usize,
    freed: Notify,
}

impl Memory {
    /// Nothing is used of it yet.
    pub fn new(limit: usize) -> Arc<Memory> {
        Arc::new(Memory {
            used: AtomicUsize::new(0),
            limit,
            freed: Notify::new(),
        })
    }

    /// Whether more may be read.
    pub fn has_room(&self) -> bool {
        self.used.load(Ordering::Acquire) < self.limit
    }

    /// Waits until more may be read. Cancel-safe; for one waiter.
    pub async fn room(&self) {
        while !self.has_room() {
            self.freed.notified().await;
        }
    }

    /// Charges what has been read.
    pub fn charge(self: &Arc<Memory>, bytes: usize) -> Charge {
        self.used.fetch_add(bytes, Ordering::AcqRel);
        Charge {
            memory: self.clone(),
            bytes,
        }
    }

    /// Gives back what was taken from a [`Charge`].
    pub fn free(&self, bytes: usize) {
        let before = self.used.fetch_sub(bytes, Ordering::AcqRel);
        debug_assert!(before >= bytes, "more is given back than was charged");
        if before >= self.limit && before - bytes < self.limit {
            self.freed.notify_one();
        }
    }
}

/// What has been charged, and is given back when this is dropped.
#[derive(Debug)]
pub struct Charge {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Charge {
    /// From now on the caller gives back what is in it, piece by piece, by [`Memory::free`].
    pub fn take_over(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.memory.free(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn makes_room_when_enough_is_given_back() {
        let memory = Memory::new(100);
        let charges: Vec<_> = (0..3).map(|_| memory.charge(60)).collect();
        assert!(
            !memory.has_room(),
            "180 of 100: the last read passes the limit"
        );
        let mut charges = charges.into_iter();
        let room = tokio::spawn({
            let memory = memory.clone();
            async move { memory.room().await }
        });
        tokio::task::yield_now().await;
        drop(charges.next());
        tokio::task::yield_now().await;
        assert!(!room.is_finished(), "120 of 100");
        if let Some(charge) = charges.next() {
            charge.take_over();
        }
        assert!(!memory.has_room());
        memory.free(21);
        room.await.expect("room");
        memory.free(39);
        drop(charges.next());
        assert_eq!(memory.used.load(Ordering::Acquire), 0);
    }
}
