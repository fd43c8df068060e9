//! The reader's loop: socket → frames → events → relay, and the status updates back.
//!
//! Arms, by priority: orders; the status timer; handing over what was read; reading. The timer waits for nothing but the
//! loop's own turn: while the relay takes nothing, the loop does not read, but still says that we live.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

use super::pacing::Pacing;
use super::session::{Open, check, refuse};
use super::{Channels, Ended, Intake, Item, Message, Order, Session};
use crate::backoff::Backoff;
use crate::clock;
use crate::outbox::{AssembleError, Assembler, Event};
use crate::pg::replication::{Keepalive, ReplicationMessage, XLogData};
use crate::pg::{ConfirmedLsn, Lsn};
use crate::preflight::{self, Facts};
use crate::replication::stream::{Chunk, Stream};
use crate::replication::{Error, Place, Policy, Socket, Stop, connect_sql};

/// How often news is confirmed. More often would only make the server write the slot more often.
const STATUS_INTERVAL: Duration = Duration::from_millis(500);
/// A status update is sent at least this often: well within the session's wal_sender_timeout of 60 s.
const STATUS_AT_LEAST: Duration = Duration::from_secs(10);
/// Answers to keepalives that demand one are no closer together: a server in shutdown sends tens of thousands a second.
const REPLY_SPACING: Duration = Duration::from_millis(20);
/// So many demands within [`STATUS_INTERVAL`] mean that the server is shutting down and waits for us.
const DEMANDS_AT_SHUTDOWN: u32 = 20;
/// A server that has been silent for so long, though asked, is gone.
const SILENCE: Duration = Duration::from_secs(35);
/// How long a server that is shutting down is kept waiting for what is in flight.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);
/// How often slot, publication and table are looked at again.
const WATCH_INTERVAL: Duration = Duration::from_secs(20);

struct Pump<'a> {
    intake: &'a Intake,
    stream: Stream<Socket>,
    assembler: Assembler,
    session: Session,
    /// The highest position that this session has received: nothing above it is confirmed, whatever the relay says.
    received: Lsn,
    sent: ConfirmedLsn,
    sent_at: Instant,
    next_status: Instant,
    heard_at: Instant,
    /// Keepalives since the last tick that demanded a reply.
    demands: u32,
    /// When the session ends, once the server is known to shut down.
    leave_at: Option<Instant>,
}

/// Pumps until the session ends.
pub(super) async fn run(
    intake: &Intake,
    open: Open,
    channels: &mut Channels,
    reconnect: &mut Backoff,
) -> Ended {
    let now = Instant::now();
    let Open {
        stream,
        assembler,
        session,
        facts,
    } = open;
    let mut pump = Pump {
        intake,
        stream,
        assembler,
        session,
        received: Lsn::ZERO,
        sent: ConfirmedLsn::default(),
        sent_at: now,
        next_status: now,
        heard_at: now,
        demands: 0,
        leave_at: None,
    };
    let ended = pump.run(channels, facts, reconnect).await;
    // What is settled by now is confirmed, so that it does not come again; a broken socket refuses it.
    if let Ended::Finished | Ended::Left = ended {
        let _ = pump.send_status(channels, false).await;
        pump.stream.close(LEAVE_WITHIN).await;
    }
    ended
}

impl Pump<'_> {
    async fn run(
        &mut self,
        channels: &mut Channels,
        facts: Facts,
        reconnect: &mut Backoff,
    ) -> Ended {
        let mut pacing = Pacing::new(Instant::now());
        let mut pending: Option<Vec<Item>> = None;
        let mut drift = self.watch_drift(facts);
        loop {
            let outcome = tokio::select! {
                biased;
                changed = channels.orders.changed() => {
                    let order = *channels.orders.borrow();
                    match (changed, order) {
                        (Err(_), _) | (Ok(()), Order::Finish) => return Ended::Finished,
                        (Ok(()), Order::Leave) => self.leave(),
                        (Ok(()), Order::Stream) => {}
                    }
                    Ok(())
                }
                () = tokio::time::sleep_until(self.next_status.into()) => self.tick(channels, pending.is_some()).await,
                found = &mut drift => match found {
                    Ok(error) => Err(error),
                    Err(_) => Err(Error::protocol(Place::Streaming, "the watch over slot, publication and table has ended")),
                },
                permit = channels.messages.reserve(), if pending.is_some() => match (permit, pending.take()) {
                    (Ok(permit), Some(items)) => {
                        permit.send(Message::Items(items));
                        Ok(())
                    }
                    _ => return Ended::Finished,
                },
                chunk = self.stream.read(), if pending.is_none() => match chunk {
                    Ok(chunk) => {
                        reconnect.reset();
                        self.heard_at = Instant::now();
                        let read = chunk.bytes.len();
                        self.decode(&chunk).map(|items| {
                            pending = hand_over(items, &channels.messages);
                            if let Some(pause) = pacing.after_read(read, self.heard_at) {
                                std::thread::sleep(pause);
                            }
                        })
                    }
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = outcome {
                return Ended::Failed(error);
            }
            if self.leave_at.is_some_and(|at| at <= Instant::now()) {
                return Ended::Left;
            }
        }
    }

    /// Decodes a chunk. What was decoded before an error is handed out nowhere: the server sends it again.
    fn decode(&mut self, chunk: &Chunk) -> Result<Vec<Item>, Error> {
        let mut items = Vec::with_capacity(chunk.frames.len());
        for frame in &chunk.frames {
            let payload = chunk.bytes.get(frame.clone()).unwrap_or_default();
            match ReplicationMessage::decode(payload)
                .map_err(|error| Error::protocol(Place::Streaming, error.to_string()))?
            {
                ReplicationMessage::XLogData(_) => {
                    let message = frame.start + XLogData::HEADER_LEN..frame.end;
                    let Some(event) = self
                        .assembler
                        .message(&chunk.bytes, message)
                        .map_err(undecodable)?
                    else {
                        continue;
                    };
                    if let Event::Commit { end_lsn } = event {
                        self.received = self.received.max(end_lsn);
                    }
                    items.push(Item::Outbox(event));
                }
                ReplicationMessage::Keepalive(Keepalive {
                    wal_end,
                    reply_requested,
                    ..
                }) => {
                    self.received = self.received.max(wal_end);
                    if reply_requested {
                        self.demands += 1;
                        self.next_status = self.next_status.min(self.sent_at + REPLY_SPACING);
                    }
                    match items.last_mut() {
                        Some(Item::Keepalive(last)) => *last = wal_end,
                        _ => items.push(Item::Keepalive(wal_end)),
                    }
                }
            }
        }
        Ok(items)
    }

    /// The status timer.
    async fn tick(&mut self, channels: &Channels, blocked: bool) -> Result<(), Error> {
        let now = Instant::now();
        if self.demands >= DEMANDS_AT_SHUTDOWN {
            self.leave();
        }
        if blocked {
            // We don't read, so silence says nothing of the server.
            self.heard_at = now;
        }
        let silent = now.duration_since(self.heard_at);
        if silent >= SILENCE {
            return Err(Error::timeout(Place::Streaming, silent));
        }
        let news = self.confirmable(channels) > self.sent;
        let due = now.duration_since(self.sent_at) >= STATUS_AT_LEAST;
        // To end at a position we must hear that the server has come so far.
        let ask = silent >= STATUS_AT_LEAST || self.session.until.is_some();
        if news || due || ask || self.demands > 0 {
            self.send_status(channels, ask).await?;
        }
        self.demands = 0;
        self.next_status = now + STATUS_INTERVAL;
        Ok(())
    }

    fn confirmable(&self, channels: &Channels) -> ConfirmedLsn {
        let confirmed = *channels.confirmed.borrow();
        match confirmed.generation == self.session.generation {
            // Below a settled position everything is settled, so a lower one may be confirmed just as well.
            true => confirmed.lsn.at_most(self.received),
            false => self.sent,
        }
    }

    async fn send_status(&mut self, channels: &Channels, ask: bool) -> Result<(), Error> {
        self.sent = self.confirmable(channels).max(self.sent);
        self.sent_at = Instant::now();
        self.stream.send_status(self.sent, clock::now(), ask).await
    }

    fn leave(&mut self) {
        if self.leave_at.is_none() {
            warn!("the server is shutting down; confirming what is settled and leaving");
            let at = Instant::now() + LEAVE_WITHIN;
            self.leave_at = Some(at);
            self.next_status = self.next_status.min(at);
        }
    }

    /// Looks at slot, publication and table every so often, on connections of its own; resolves to the first drift.
    fn watch_drift(&self, facts: Facts) -> oneshot::Receiver<Error> {
        let intake = self.intake.clone();
        let (found, drift) = oneshot::channel();
        tokio::spawn(async move {
            let mut found = found;
            loop {
                tokio::select! {
                    () = found.closed() => return,
                    () = tokio::time::sleep(WATCH_INTERVAL) => {}
                }
                let looked = async {
                    let sql = connect_sql(&intake.target, "aftercommit watch").await?;
                    let now = check(&intake, &sql).await?;
                    refuse(preflight::drift(&facts, &now))
                };
                match looked.await {
                    Ok(()) => {}
                    Err(error) if matches!(error.policy(), Policy::Stop(_)) => {
                        error!(%error, "slot, publication or table have changed; stopping");
                        let _ = found.send(error);
                        return;
                    }
                    // The stream tells by itself whether the server is away.
                    Err(error) => warn!(%error, "could not look at slot, publication and table"),
                }
            }
        });
        drift
    }
}

/// What cannot be decoded is never skipped.
fn undecodable(error: AssembleError) -> Error {
    let stop = match error {
        AssembleError::Layout { .. } | AssembleError::Row { .. } => Stop::Configuration,
        _ => Stop::Runtime,
    };
    Error::judged(Place::Streaming, Policy::Stop(stop), error.to_string())
}

/// Hands items to the relay; gives back what it does not take now.
fn hand_over(items: Vec<Item>, messages: &mpsc::Sender<Message>) -> Option<Vec<Item>> {
    if items.is_empty() {
        return None;
    }
    match messages.try_send(Message::Items(items)) {
        Ok(()) => None,
        Err(
            mpsc::error::TrySendError::Full(Message::Items(items))
            | mpsc::error::TrySendError::Closed(Message::Items(items)),
        ) => Some(items),
        Err(_) => None,
    }
}
