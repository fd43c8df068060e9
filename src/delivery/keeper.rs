//! The keeper: the one that writes to the database, and looks into the hold table.
//!
//! It writes down what is settled: settled rows leave the outbox, tasks that wait enter the hold, and the checkpoint moves,
//! all in one transaction. Only then is a position confirmed to the server. So, whatever crashes, each committed row is in
//! one place at least: before the transaction in the slot, after it with the broker or in the hold. And where settled rows
//! are deleted, those that are left in the outbox are the unsettled ones. Every write may be made twice: where the answer
//! to COMMIT is lost, the same work is done again.
//!
//! And it brings back what is due. Both go over one connection and into one channel, one after the other: what it says was
//! due cannot be older than what it has said is written.
//!
//! Only the daemon whose walsender holds the slot may write or look: see [`round`].

mod held;
mod history;
mod line;
mod look;
mod round;
mod stuck;
mod under_way;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use self::line::outlived;
use self::under_way::UnderWay;
use super::KeyHasher;
use super::report::{self, Work, Written};
use crate::backoff::Backoff;
use crate::clock;
use crate::hold::Released;
use crate::intake::{Confirmation, Line, Session};
use crate::outbox::{Position, TableName};
use crate::replication::{Policy, Target};

/// Rounds that only delete rows are no closer together: at low rates one transaction of ours serves many of the
/// application's.
const SPACING: Duration = Duration::from_millis(100);
/// Where nothing is deleted, the checkpoint is written so often.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// After a round of so many bytes the connection is not kept.
const LARGE_ROUND: usize = 8 << 20;

/// What the keeper tells the relay.
#[derive(Debug)]
pub enum News {
    /// Work is written down.
    Written(Written),
    /// What the hold table has, at the beginning of a generation of sessions. Nothing of the generation may pass before.
    Held {
        /// The session in which it was read.
        session: Session,
        /// By sink: the hashes of the held keys.
        keys: Vec<Vec<u64>>,
        /// Rows that the server may send again, and that are held already.
        positions: HashSet<Position>,
    },
    /// The server keeps more WAL for the slot than it should, or no longer.
    Lags(bool),
    /// Keys of which nothing is held any more, as of what was written last: index of the sink, hash of the key.
    Freed(Vec<(usize, u64)>),
    /// Tasks whose time has come, in order. The relay answers for each of them, in [`Work::rows`].
    Released(Vec<Released>),
}

/// What the relay wants of the keeper beside the work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// By sink: it is away, and gets a task now and then.
    pub away: Vec<bool>,
    /// Nothing is to be released any more.
    pub draining: bool,
}

/// The keeper.
pub struct Keeper {
    /// The primary.
    pub target: Arc<Target>,
    /// The slot: whose hold and checkpoint.
    pub slot: String,
    /// The outbox table.
    pub table: TableName,
    /// The column of a task's id, where settled rows are to be deleted.
    pub delete_by: Option<String>,
    /// The names of the sinks, by index.
    pub sinks: Vec<Arc<str>>,
    /// For the held keys.
    pub hasher: KeyHasher,
    /// Bytes of released tasks that may be under way.
    pub release_bytes: usize,
    /// Bytes of WAL that the server may keep for the slot before stalled sinks spill.
    pub slot_lag: u64,
    /// How the intake stands.
    pub line: watch::Receiver<Line>,
    /// What to write.
    pub work: mpsc::Receiver<Work>,
    /// What else is wanted.
    pub wishes: watch::Receiver<Wishes>,
    /// To the relay.
    pub news: mpsc::Sender<News>,
    /// To the intake: what may be confirmed.
    pub confirmed: watch::Sender<Confirmation>,
}

struct Running {
    keeper: Keeper,
    client: Option<line::Connection>,
    /// The session that streams.
    session: Option<Session>,
    /// The generation for which the relay knows what is held.
    told: u64,
    /// Work that waits for its time.
    waiting: Option<(Work, Instant)>,
    /// When the last round was written.
    written_at: Instant,
    /// Tasks were settled since the checkpoint was written.
    unsaved: bool,
    /// What the checkpoint says.
    saved: Confirmation,
    /// Settled rows that cannot leave the outbox.
    stuck: stuck::Stuck,
    /// Bytes of WAL that the server keeps for the slot, as seen last.
    retained: u64,
    /// What the relay was told of that.
    lags: bool,
    /// Released tasks that are under way.
    under_way: UnderWay,
    /// When the looks start over, from what is due first.
    starts_over: Instant,
    /// When to look into the hold table again.
    next_look: Instant,
    /// Due rows that are left out of the looks for a while.
    passed_over: look::PassedOver,
    /// When to try each sink that is away.
    probes: Vec<look::Probe>,
    trouble: Backoff,
    /// What was said of it last, and its SQLSTATE.
    complaint: (&'static str, Option<String>),
}

/// Nobody listens any more.
struct Gone;

impl Keeper {
    /// Keeps until there is no more work to come.
    pub async fn run(self) {
        let probes = self.sinks.iter().map(|_| look::Probe::new()).collect();
        // One more, for what is held for a sink that is no more.
        let under_way = UnderWay::new(self.sinks.len() + 1, self.release_bytes);
        let now = Instant::now();
        let mut running = Running {
            keeper: self,
            client: None,
            session: None,
            told: 0,
            waiting: None,
            written_at: now,
            unsaved: false,
            saved: Confirmation::default(),
            stuck: stuck::Stuck::new(),
            retained: 0,
            lags: false,
            under_way,
            starts_over: now,
            next_look: now,
            passed_over: look::PassedOver::new(),
            probes,
            trouble: Backoff::new(line::RETRY),
            complaint: ("", None),
        };
        while running.step().await.is_ok() {}
    }
}

impl Running {
    async fn step(&mut self) -> Result<(), Gone> {
        let ready_at = self.waiting.as_ref().map(|(_, at)| *at);
        let looks = self.session.is_some();
        tokio::select! {
            biased;
            Ok(()) = self.keeper.line.changed() => {
                self.line();
                Ok(())
            }
            work = self.keeper.work.recv(), if self.waiting.is_none() => {
                self.take(work.ok_or(Gone)?).await
            }
            () = clock::sleep_until(ready_at), if ready_at.is_some() => match self.waiting.take() {
                Some((work, _)) => self.settle(work).await,
                None => Ok(()),
            },
            Ok(()) = self.keeper.wishes.changed() => {
                self.next_look = Instant::now();
                Ok(())
            }
            () = sleep_until(self.next_look), if looks => match self.session {
                Some(session) if session.generation != self.told => self.tell_held(session).await,
                Some(session) => self.look(session).await,
                None => Ok(()),
            },
            () = self.keeper.news.closed() => Err(Gone),
        }
    }

    /// The intake stands differently.
    fn line(&mut self) {
        let session = match &*self.keeper.line.borrow_and_update() {
            Line::Up(session) => Some(*session),
            Line::Down | Line::Halted(_) => None,
        };
        if std::mem::replace(&mut self.session, session) != session {
            // If keeper and intake waited one after the other, both would take long to come back.
            self.trouble.reset();
        }
        if self.session.is_none() {
            // A server that shuts down waits for its clients.
            self.client = None;
        }
        self.next_look = Instant::now();
    }

    /// Work comes: it is written at once, but for deletes that can wait for more.
    async fn take(&mut self, work: Work) -> Result<(), Gone> {
        let draining = self.keeper.wishes.borrow().draining;
        let earliest = self.written_at + SPACING;
        let only_deletes = work.changes_rows() && !work.changes_hold();
        // Where rows are stuck, the relay asks again at once how far everything is settled.
        let waits = only_deletes && !draining || !self.stuck.is_empty() && !work.changes_hold();
        if waits && Instant::now() < earliest {
            self.waiting = Some((work, earliest));
            return Ok(());
        }
        self.settle(work).await
    }

    /// Writes work down and says so.
    async fn settle(&mut self, mut work: Work) -> Result<(), Gone> {
        // All of it is given back, also what turns out to be void.
        let parked = report::sizes(&work);
        self.unsaved |= work.settled > 0;
        let saves = self.unsaved && self.written_at.elapsed() >= CHECKPOINT_EVERY;
        if work.changes_rows() || !self.stuck.is_empty() || saves && self.session.is_some() {
            self.write(&mut work).await?;
            self.written_at = Instant::now();
            self.unsaved = false;
            self.shrink(&work);
        }
        let confirmation = self.stuck.confirmable(work.confirmation);
        self.keeper.confirmed.send_if_modified(|known| {
            let news = *known != confirmation;
            *known = confirmation;
            news
        });
        self.under_way.end(&work.rows);
        if work.changes_hold() || !work.rows.is_empty() {
            self.next_look = Instant::now();
        }
        let written = Written {
            parked,
            lanes: work.lanes,
            confirmation,
            saved: self.saved,
        };
        self.tell(News::Written(written)).await
    }

    /// Writes one round, trying again until it is committed, or cannot be meant any more.
    async fn write(&mut self, work: &mut Work) -> Result<(), Gone> {
        let mut in_vain = 0;
        loop {
            let session = self.up().await?;
            if session.generation != work.confirmation.generation {
                // The server tells its history differently now: what came from the other one comes again, if it exists.
                // What was delivered was delivered.
                work.parks.clear();
                work.tickets.clear();
                if session.identity.system_id != work.confirmation.identity.system_id {
                    self.stuck = stuck::Stuck::new();
                    return Ok(());
                }
            }
            let over = outlived(self.keeper.line.clone(), session);
            let round = async {
                self.vouch(session, work).await?;
                self.round(session, work).await
            };
            let round = tokio::select! {
                round = round => round,
                () = over => {
                    self.client = None;
                    continue;
                }
            };
            let error = match round {
                Ok(()) => {
                    if session.generation == work.confirmation.generation && self.stuck.is_empty() {
                        self.saved = work.confirmation;
                    }
                    if in_vain > 0 {
                        info!(attempts = in_vain, "what is settled is written down again");
                    }
                    self.trouble.reset();
                    return Ok(());
                }
                Err(error) if error.policy() == Policy::StandBy => {
                    self.not_ours().await?;
                    continue;
                }
                Err(error) => error,
            };
            in_vain += 1;
            let words = "what is settled cannot be written down; it is kept, and nothing more is confirmed until it is";
            self.failed(error, words).await?;
        }
    }

    /// A connection keeps the room that its largest message has needed.
    fn shrink(&mut self, work: &Work) {
        let bytes: usize = work.parks.iter().map(|park| park.task.size()).sum();
        if bytes > LARGE_ROUND {
            self.client = None;
        }
    }

    /// Tells the relay when the slot's lag passes its limit.
    async fn tell_lag(&mut self) -> Result<(), Gone> {
        let lags = self.retained > self.keeper.slot_lag;
        if lags == self.lags {
            return Ok(());
        }
        self.lags = lags;
        if lags {
            warn!(
                retained = self.retained,
                limit = self.keeper.slot_lag,
                "the server keeps more WAL for the slot than [limits] slot_lag; stalled sinks spill to the hold table"
            );
        } else {
            info!(
                retained = self.retained,
                "the slot is within [limits] slot_lag again"
            );
        }
        self.tell(News::Lags(lags)).await
    }

    async fn tell(&mut self, news: News) -> Result<(), Gone> {
        self.keeper.news.send(news).await.map_err(|_| Gone)
    }
}
