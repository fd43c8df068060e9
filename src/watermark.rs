//! Floor 1, pure: outstanding work, and the LSN to confirm.
//!
//! The watermark sees the stream in its order: `begin`, `open` for each task, `commit`, and keepalives between
//! transactions; and, in any order, how many tasks of a transaction have been settled. From these it knows the one
//! position that may be confirmed to the server: the end of the longest prefix in which everything is settled.
//!
//! It outlives connections. After a reconnect the server sends every transaction above the confirmed position again,
//! whole; [`Watermark::begin`] says which of them are known already, and from which row on a transaction that was cut
//! in the middle is news. So a lost connection makes no duplicates.
//!
//! Only `Commit.end_lsn` and a keepalive's WAL end are ever confirmed: an LSN inside of a transaction is no boundary,
//! and with a commit record's *start* the server would send its transaction again.

use std::collections::VecDeque;

use crate::pg::{ConfirmedLsn, Lsn};

/// Names a transaction in the watermark; what a task's settlement is reported under.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(u64);

/// What [`Watermark::begin`] says of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begun {
    /// Its first `skip` rows were opened before the connection was lost (0: it is new); the others are to be opened.
    Open {
        /// The transaction's ticket.
        ticket: Ticket,
        /// Rows that are known already.
        skip: u64,
    },
    /// All of it was taken before: skip it, up to and with its Commit.
    Known,
}

/// The server did not send what it must have sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StreamGap {
    /// A transaction that was cut in the middle did not come again.
    #[error(
        "the server went on with the transaction at {next} without sending the one at {missing} again, of which only a part had come"
    )]
    NotResent {
        /// The commit LSN of the transaction that is missing.
        missing: Lsn,
        /// The commit LSN of the transaction that came instead.
        next: Lsn,
    },
}

#[derive(Debug)]
struct Entry {
    /// Start of the commit record; the WAL end for a keepalive's mark.
    commit_lsn: Lsn,
    /// What can be confirmed once this entry and all before it are settled; `None` until the Commit has come.
    end: Option<Lsn>,
    /// Rows opened.
    opened: u64,
    /// Rows opened and not settled.
    outstanding: u64,
}

/// Outstanding work, in commit order.
#[derive(Debug, Default)]
pub struct Watermark {
    /// The oldest that is not settled first.
    entries: VecDeque<Entry>,
    /// The ticket number of `entries[0]`.
    base: u64,
    confirmed: Lsn,
    /// The last transaction whose Commit was taken.
    last_commit: Lsn,
    outstanding: u64,
}

impl Watermark {
    /// Starts over, for a server whose LSNs mean something else: another system, or another timeline. Below `start`
    /// everything is settled already.
    ///
    /// Settlements of tickets from before are ignored from here on.
    pub fn reset(&mut self, start: Lsn) {
        self.base += self.entries.len() as u64;
        self.entries.clear();
        self.confirmed = start;
        self.last_commit = Lsn::ZERO;
        self.outstanding = 0;
    }

    /// A transaction begins, or begins again after a reconnect.
    ///
    /// # Errors
    /// When a transaction that was cut is skipped by the server: rows would be lost.
    pub fn begin(&mut self, commit_lsn: Lsn) -> Result<Begun, StreamGap> {
        if commit_lsn <= self.last_commit {
            return Ok(Begun::Known);
        }
        let newest = self.base + self.entries.len() as u64;
        if let Some(cut) = self.entries.back().filter(|entry| entry.end.is_none()) {
            if cut.commit_lsn != commit_lsn {
                return Err(StreamGap::NotResent {
                    missing: cut.commit_lsn,
                    next: commit_lsn,
                });
            }
            return Ok(Begun::Open {
                ticket: Ticket(newest - 1),
                skip: cut.opened,
            });
        }
        self.entries.push_back(Entry {
            commit_lsn,
            end: None,
            opened: 0,
            outstanding: 0,
        });
        Ok(Begun::Open {
            ticket: Ticket(newest),
            skip: 0,
        })
    }

    /// A row of the transaction that is open goes on its way.
    pub fn open(&mut self) {
        let entry = self.entries.back_mut().filter(|entry| entry.end.is_none());
        let entry = entry.expect("rows are opened between begin and commit");
        entry.opened += 1;
        entry.outstanding += 1;
        self.outstanding += 1;
    }

    /// The transaction that is open is complete.
    pub fn commit(&mut self, end_lsn: Lsn) {
        let entry = self.entries.back_mut().filter(|entry| entry.end.is_none());
        let entry = entry.expect("a commit follows its begin");
        debug_assert!(end_lsn > entry.commit_lsn);
        entry.end = Some(end_lsn);
        self.last_commit = entry.commit_lsn;
        self.advance();
    }

    /// The server has nothing more for us below `wal_end`.
    ///
    /// Takes effect once everything that came before it is settled. Inside of a transaction, also one that was cut and
    /// has not come again, it means nothing.
    pub fn keepalive(&mut self, wal_end: Lsn) {
        match self.entries.back_mut() {
            Some(entry) if entry.end.is_none() => return,
            Some(entry) if entry.opened == 0 => entry.end = entry.end.max(Some(wal_end)),
            _ => self.entries.push_back(Entry {
                commit_lsn: wal_end,
                end: Some(wal_end),
                opened: 0,
                outstanding: 0,
            }),
        }
        self.advance();
    }

    /// `count` tasks of a transaction are settled.
    pub fn settle(&mut self, ticket: Ticket, count: u64) {
        let Some(index) = ticket.0.checked_sub(self.base) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(index as usize) else {
            return;
        };
        assert!(entry.outstanding >= count, "a task was settled twice");
        entry.outstanding -= count;
        self.outstanding -= count;
        self.advance();
    }

    /// Whether a ticket is of the history that is being followed, and not settled wholly.
    pub fn knows(&self, ticket: Ticket) -> bool {
        ticket.0 >= self.base
    }

    fn advance(&mut self) {
        while let Some(Entry {
            end: Some(end),
            outstanding: 0,
            ..
        }) = self.entries.front()
        {
            self.confirmed = self.confirmed.max(*end);
            self.entries.pop_front();
            self.base += 1;
        }
    }

    /// The position below which everything is settled.
    pub fn confirmed(&self) -> ConfirmedLsn {
        ConfirmedLsn::vouch(self.confirmed)
    }

    /// Tasks opened and not settled.
    pub fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// Transactions, and keepalives, that are remembered: those which are not settled, and all that came behind one.
    pub fn transactions(&self) -> usize {
        self.entries.len()
    }

    /// Whether a transaction is open: begun, and its Commit not taken yet.
    pub fn in_transaction(&self) -> bool {
        self.entries.back().is_some_and(|entry| entry.end.is_none())
    }
}

#[cfg(test)]
mod tests;
