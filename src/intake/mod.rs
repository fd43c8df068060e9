//! Floor 5: the reader's thread, from the socket to decoded events.
//!
//! It has a thread and a runtime of its own, for two reasons: under load it really sleeps between reads (see [`pacing`]),
//! and nothing that a sink does can delay its status updates. It connects, checks, streams, and connects again for ever,
//! until it is told to finish or meets an error that needs the operator.

mod drift;
mod heal;
pub mod pacing;
mod pump;
mod replicas;
mod session;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::budget::{Charge, Memory};
use crate::outbox::{Columns, Event, Retention};
use crate::pg::{ConfirmedLsn, Lsn};
use crate::replication::{Error, Place, Policy, RECONNECT, Stop, Target};
use crate::units::BackoffRange;

/// Pauses while another daemon holds the slot: short, since a standby is to take over within seconds.
const STAND_BY: BackoffRange = BackoffRange {
    min: Duration::from_secs(1),
    max: Duration::from_secs(2),
};
/// A session that moved the slot, or lasted for so long, was a good one: the next pause is the shortest again. A server
/// that accepts us and fails on the same transaction each time is not asked to decode it ten times a second.
const STEADY: Duration = Duration::from_secs(10);

/// What the intake needs to know.
#[derive(Clone, Debug)]
pub struct Intake {
    /// The primary.
    pub target: Arc<Target>,
    /// The logical replication slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// The outbox table and its columns.
    pub columns: Columns,
    /// What happens to settled rows.
    pub retention: Retention,
    /// Where `--until` stops.
    pub until: Option<Until>,
    /// Standbys that workers read from, and that may take over.
    pub replicas: Vec<Arc<Target>>,
    /// A lost slot is made again: settled rows are deleted, so that those in the table are the ones that are owed.
    pub heal: bool,
}

/// The argument of `--until`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Until {
    /// Up to what the server had written when we first connected.
    Now,
    /// Up to this position.
    Lsn(Lsn),
}

/// Decoded events of one session, in the order of the stream.
#[derive(Debug)]
pub struct Batch {
    /// [`Session::number`]; what is left over from a session that has ended is of no use.
    pub session: u64,
    /// The events.
    pub items: Vec<Item>,
    /// Their bytes.
    pub charge: Charge,
}

/// How the intake stands.
///
/// Beside the batches and not among them: the relay takes no batch while its budget is used up, but must hear at once
/// that a session has ended. What waits at the gate is cleared on the session's server, or never.
#[derive(Clone, Debug, Default)]
pub enum Line {
    /// No session; one will follow.
    #[default]
    Down,
    /// A session streams.
    Up(Session),
    /// Only the operator can help; no session will follow.
    Halted(Halt),
}

/// Why the daemon stops by itself.
#[derive(Clone, Debug)]
pub struct Halt {
    /// Its class, which has an exit code.
    pub stop: Stop,
    /// What is wrong, and the remedy.
    pub words: String,
}

/// One event of the stream.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are tasks; a box for each would cost more than the room"
)]
pub enum Item {
    /// Of the outbox.
    Outbox(Event),
    /// A keepalive: the server has nothing more for us below this position.
    Keepalive(Lsn),
}

/// Whose LSNs they are: on another server, or in another history of it, they mean something else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Identity {
    /// The system identifier of the database cluster.
    pub system_id: u64,
    /// Its timeline.
    pub timeline: u32,
}

impl Item {
    /// As it counts against the memory budget.
    pub fn size(&self) -> usize {
        match self {
            Item::Outbox(Event::Task(task)) => task.size(),
            _ => 0,
        }
    }
}

/// A replication session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Session {
    /// Counts the sessions.
    pub number: u64,
    /// Counts the identities (system, timeline) that were met. LSNs of different generations mean different things.
    pub generation: u64,
    /// The identity that it is of.
    pub identity: Identity,
    /// The walsender's process id.
    pub walsender_pid: u32,
    /// Everything below is settled, as we wrote down; the server may have forgotten it.
    pub start: Lsn,
    /// `--until`, as a position.
    pub until: Option<Lsn>,
}

/// What the relay has settled, for the status updates.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Confirmation {
    /// The generation of sessions that the position belongs to.
    pub generation: u64,
    /// The identity that it is of.
    pub identity: Identity,
    /// Everything below is settled.
    pub lsn: ConfirmedLsn,
}

/// What the intake is to do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Order {
    /// Connect and stream.
    #[default]
    Stream,
    /// The server is shutting down: end this session within seconds, then connect again.
    Leave,
    /// Confirm what is settled, close, and end.
    Finish,
}

/// The intake's ends of its channels.
#[derive(Debug)]
pub struct Channels {
    /// To the relay.
    pub batches: mpsc::Sender<Batch>,
    /// To the relay: how the intake stands.
    pub line: watch::Sender<Line>,
    /// What may be confirmed.
    pub confirmed: watch::Receiver<Confirmation>,
    /// What to do.
    pub orders: watch::Receiver<Order>,
    /// What may be held in memory: nothing is read while it is used up.
    pub memory: Arc<Memory>,
}

/// How a session ended.
enum Ended {
    /// As ordered.
    Finished,
    /// The server is shutting down; the session was closed in order.
    Left,
    Failed(Error),
}

impl Intake {
    /// Streams until told to finish, or until only the operator can help.
    pub async fn run(self, mut channels: Channels) {
        let mut history = session::History::default();
        let mut reconnect = Backoff::new(RECONNECT);
        let mut stand_by = Backoff::new(STAND_BY);
        let mut finish = channels.orders.clone();
        loop {
            let opened = tokio::select! {
                biased;
                _ = finish.wait_for(|order| *order == Order::Finish) => return,
                opened = session::open(&self, &mut history, &channels) => opened,
            };
            let error = match opened {
                Ok((open, facts)) => {
                    (reconnect.attempts() > 0 || stand_by.attempts() > 0)
                        .then(|| info!("connected again"));
                    stand_by.reset();
                    let (since, before) = (Instant::now(), *channels.confirmed.borrow());
                    let walsender = open.session.walsender_pid;
                    let watch =
                        drift::watch(self.clone(), facts, walsender, history.warned.clone());
                    let ended = pump::run(open, watch, &mut channels, std::thread::sleep).await;
                    if let Some(healing) = &mut history.healing {
                        healing.conclude(*channels.confirmed.borrow()).await;
                    }
                    let moved = *channels.confirmed.borrow() != before;
                    if moved || since.elapsed() >= STEADY {
                        reconnect.reset();
                    }
                    match ended {
                        Ended::Finished => return,
                        Ended::Left => Error::closed(Place::Streaming),
                        Ended::Failed(error) => error,
                    }
                }
                Err(error) => error,
            };
            let pause = match error.policy() {
                Policy::Stop(Stop::SlotLost) if self.heal => {
                    history.lost = true;
                    warn!(%error, "the slot is lost; it will be made again");
                    reconnect.next(fastrand::f64())
                }
                Policy::Stop(stop) => {
                    let words = match stop {
                        Stop::SlotLost => heal::in_doubt(&self, &error).await,
                        _ => error.to_string(),
                    };
                    channels
                        .line
                        .send_replace(Line::Halted(Halt { stop, words }));
                    return;
                }
                Policy::StandBy => {
                    let pause = stand_by.next(fastrand::f64());
                    if stand_by.attempts() == 1 {
                        info!(slot = %self.slot, "another process reads the slot; standing by");
                    }
                    pause
                }
                Policy::Reconnect => {
                    let pause = reconnect.next(fastrand::f64());
                    warn!(%error, attempt = reconnect.attempts(), "no connection to Postgres; will try again");
                    pause
                }
            };
            tokio::select! {
                biased;
                _ = finish.wait_for(|order| *order == Order::Finish) => return,
                () = tokio::time::sleep(pause) => {}
                () = channels.batches.closed() => return,
            }
        }
    }
}
