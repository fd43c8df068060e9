//! The relay's side of the gate: what waits there, what is known, and the watch that asks.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::gate::clearance::Clearance;
use crate::gate::watcher::{News, Wanted};
use crate::intake::Item;
use crate::outbox::assembler::Event;

/// What has waited for so long no longer keeps the read buffer alive.
const DETACH_AFTER: Duration = Duration::from_secs(1);

/// Starts the watch over visibility for one session: of this walsender, answering what is wanted with news.
pub type Gate = Box<
    dyn Fn(
            u32,
            watch::Receiver<Option<Wanted>>,
            mpsc::Sender<News>,
        ) -> Pin<Box<dyn Future<Output = ()> + Send>>
        + Send,
>;

/// Items wait here, in order, until the transaction at their head is visible.
pub(super) struct Gatehouse {
    /// `None`: everything passes.
    gate: Option<Gate>,
    /// Items whose transaction, or one before it, is not visible yet. The first is a Begin.
    waiting: VecDeque<Item>,
    tasks: u64,
    since: Option<Instant>,
    clearance: Option<Clearance>,
    wanted: watch::Sender<Option<Wanted>>,
    news: mpsc::Receiver<News>,
    watchers: JoinSet<()>,
}

impl Gatehouse {
    pub(super) fn new(gate: Option<Gate>) -> Gatehouse {
        let (wanted, _) = watch::channel(None);
        let (_, news) = mpsc::channel(1);
        Gatehouse {
            gate,
            waiting: VecDeque::new(),
            tasks: 0,
            since: None,
            clearance: None,
            wanted,
            news,
            watchers: JoinSet::new(),
        }
    }

    /// A session begins: its server is asked from now on.
    pub(super) fn open(&mut self, walsender_pid: u32) {
        let Some(gate) = &self.gate else { return };
        let (wanted, wants) = watch::channel(None);
        let (news, hears) = mpsc::channel(1);
        self.wanted = wanted;
        self.news = hears;
        self.watchers.spawn(gate(walsender_pid, wants, news));
    }

    /// The session has ended. What waits comes again with the next one; says how many bytes of tasks that is. What is
    /// known, or about to be told, is of this session's server: on another one the same transaction id is another's.
    pub(super) fn close(&mut self) -> usize {
        self.clearance = None;
        self.news.close();
        while self.news.try_recv().is_ok() {}
        self.watchers.abort_all();
        while self.watchers.try_join_next().is_some() {}
        self.since = None;
        self.tasks = 0;
        self.waiting.drain(..).map(|item| item.size()).sum()
    }

    /// Tasks that wait.
    pub(super) fn tasks(&self) -> u64 {
        self.tasks
    }

    /// Items that wait.
    pub(super) fn items(&self) -> usize {
        self.waiting.len()
    }

    /// What the watch has to say; `None` where there is no watch. Cancel-safe.
    pub(super) async fn news(&mut self) -> Option<News> {
        self.news.recv().await
    }

    /// An item comes; given back if it may pass at once.
    pub(super) fn arrive(&mut self, item: Item) -> Option<Item> {
        if self.waiting.is_empty() {
            if self.admits(&item) {
                return Some(item);
            }
            self.since = Some(Instant::now());
            self.want(&item);
        }
        match (item, self.waiting.back_mut()) {
            (Item::Keepalive(wal_end), Some(Item::Keepalive(last))) => *last = wal_end.max(*last),
            (mut item, _) => {
                if let Item::Outbox(Event::Task(task)) = &mut item {
                    self.tasks += 1;
                    if self.since.is_some_and(|at| at.elapsed() > DETACH_AFTER) {
                        task.detach();
                    }
                }
                self.waiting.push_back(item);
            }
        }
        None
    }

    /// More is known. [`next`](Gatehouse::next) gives what may pass now.
    pub(super) fn learn(&mut self, clearance: Clearance) {
        self.clearance = Some(clearance);
    }

    /// The next item that may pass.
    pub(super) fn next(&mut self) -> Option<Item> {
        let item = self.waiting.pop_front()?;
        if !self.admits(&item) {
            self.want(&item);
            self.waiting.push_front(item);
            return None;
        }
        self.tasks -= u64::from(matches!(item, Item::Outbox(Event::Task(_))));
        if self.waiting.is_empty() {
            self.since = None;
        }
        Some(item)
    }

    /// Only a Begin is held at the gate; what follows it goes with it.
    fn admits(&self, item: &Item) -> bool {
        match item {
            Item::Outbox(Event::Begin {
                xid, commit_lsn, ..
            }) => {
                self.gate.is_none()
                    || self
                        .clearance
                        .as_ref()
                        .is_some_and(|known| known.admits(*xid, *commit_lsn))
            }
            _ => true,
        }
    }

    fn want(&self, item: &Item) {
        if let Item::Outbox(Event::Begin {
            xid, commit_lsn, ..
        }) = item
        {
            self.wanted.send_replace(Some(Wanted {
                xid: *xid,
                commit_lsn: *commit_lsn,
            }));
        }
    }
}
