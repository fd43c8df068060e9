//! The reader's loop: socket → frames → events → relay, and the status updates back.
//!
//! Arms, by priority: orders; the status timer; what the watch has seen; handing over what was read; reading. The timer
//! waits for nothing but the loop's own turn: while the relay takes nothing, the loop does not read, but still says that
//! we live.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

use super::drift::Seen;
use super::heal::Rows;
use super::pacing::Pacing;
use super::session::Open;
use super::{Batch, Channels, Ended, Item, Line, Order, Session};
use crate::clock;
use crate::failpoint::{self, Point};
use crate::outbox::{AssembleError, Assembler, Event};
use crate::pg::replication::{Keepalive, ReplicationMessage, XLogData};
use crate::pg::{ConfirmedLsn, Lsn};
use crate::replication::stream::{Chunk, Stream};
use crate::replication::{Error, Place, Policy, Stop};

/// How often news is confirmed. It bounds what comes again after a crash. To the server an update is cheap: it writes the
/// slot to disk only when the slot's restart point moves.
const STATUS_INTERVAL: Duration = Duration::from_millis(100);
/// A status update is sent at least this often: well within the session's wal_sender_timeout of 60 s.
const STATUS_AT_LEAST: Duration = Duration::from_secs(10);
/// The same while the stream is not read, since the relay takes nothing, or rows go before it: then only a write shows that
/// nobody is there any more. The first one is answered by a reset, and the next one fails.
const STATUS_UNREAD: Duration = Duration::from_millis(500);
/// Answers to keepalives that demand one are no closer together: a server in shutdown sends tens of thousands a second.
const REPLY_SPACING: Duration = Duration::from_millis(20);
/// So many demands within [`DEMANDS_WITHIN`] mean that the server is shutting down and waits for us: it sends the next
/// as soon as it has an answer to the last. Otherwise one comes each half of its wal_sender_timeout.
const DEMANDS_AT_SHUTDOWN: u32 = 20;
/// The time over which demands are counted.
const DEMANDS_WITHIN: Duration = Duration::from_secs(1);
/// A server that has been silent for so long, though asked, is gone.
const SILENCE: Duration = Duration::from_secs(35);
/// How long a server that is shutting down is kept waiting for what is in flight.
const SETTLE_WITHIN: Duration = Duration::from_millis(1500);
/// How long such a server may then take to read the last status update and to close.
const LEAVE_WITHIN: Duration = Duration::from_millis(500);
/// The same for any other server: to go without its answer could lose the update, and send tasks twice.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

struct Pump<S> {
    stream: Stream<S>,
    assembler: Assembler,
    session: Session,
    /// What goes before the stream; until it is through, the stream is not read.
    rows: Option<Rows>,
    /// How the pause under load is made.
    pause: fn(Duration),
    /// The highest position that this session has received: nothing above it is confirmed, whatever the relay says.
    received: Lsn,
    sent: ConfirmedLsn,
    sent_at: Instant,
    next_status: Instant,
    heard_at: Instant,
    /// A keepalive has demanded an answer, which it has not had yet.
    owes_reply: bool,
    /// Keepalives that demanded an answer since the time beside it.
    demands: (u32, Instant),
    /// When the session ends, once the server is known to shut down.
    leave_at: Option<Instant>,
}

/// Pumps until the session ends. `pause` really sleeps, but in tests.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    open: Open<S>,
    watch: mpsc::Receiver<Seen>,
    channels: &mut Channels,
    pause: fn(Duration),
) -> Ended {
    let now = Instant::now();
    let Open {
        stream,
        assembler,
        session,
        rows,
        received,
    } = open;
    let mut pump = Pump {
        stream,
        assembler,
        session,
        rows,
        pause,
        received,
        sent: ConfirmedLsn::default(),
        sent_at: now,
        next_status: now,
        heard_at: now,
        owes_reply: false,
        demands: (0, now),
        leave_at: None,
    };
    channels.line.send_replace(Line::Up(session));
    let ended = pump.run(channels, watch).await;
    channels.line.send_replace(Line::Down);
    // What is settled by now is confirmed, so that it does not come again; a broken socket refuses it.
    let patience = match ended {
        Ended::Finished => CLOSE_WITHIN,
        Ended::Left => LEAVE_WITHIN,
        Ended::Failed(_) => return ended,
    };
    let last = async {
        let _ = pump.send_status(channels, false).await;
        pump.stream.close(patience).await;
    };
    let _ = timeout(patience, last).await;
    ended
}

impl<S: AsyncRead + AsyncWrite + Unpin> Pump<S> {
    async fn run(&mut self, channels: &mut Channels, mut watch: mpsc::Receiver<Seen>) -> Ended {
        let mut pacing = Pacing::new(Instant::now().into_std());
        let mut pending: Option<Batch> = None;
        // An order to leave that came before this session was for another one.
        if *channels.orders.borrow_and_update() == Order::Finish {
            return Ended::Finished;
        }
        loop {
            let room = channels.memory.has_room();
            let outcome = tokio::select! {
                biased;
                changed = channels.orders.changed() => {
                    let order = *channels.orders.borrow_and_update();
                    match (changed, order) {
                        (Err(_), _) | (Ok(()), Order::Finish) => return Ended::Finished,
                        (Ok(()), Order::Leave) => self.leave(),
                        (Ok(()), Order::Stream) => {}
                    }
                    Ok(())
                }
                () = sleep_until(self.next_status) => {
                    let unread = pending.is_some() || self.rows.is_some() || !room;
                    self.tick(channels, unread).await
                }
                seen = watch.recv() => match seen {
                    Some(Seen::Leaving) => {
                        self.leave();
                        Ok(())
                    }
                    Some(Seen::Drift(error)) => Err(error),
                    None => Err(Error::protocol(Place::Streaming, "the watch over slot, publication and table has ended")),
                },
                permit = channels.batches.reserve(), if pending.is_some() => match (permit, pending.take()) {
                    (Ok(permit), Some(batch)) => {
                        permit.send(batch);
                        Ok(())
                    }
                    _ => return Ended::Finished,
                },
                () = channels.memory.room(), if !room => Ok(()),
                batch = next_rows(&mut self.rows), if pending.is_none() && room && self.rows.is_some() => match batch {
                    Some(Ok(items)) => {
                        pending = hand_over(self.charged(items, channels), &channels.batches);
                        Ok(())
                    }
                    Some(Err(error)) => Err(error),
                    None => {
                        self.rows = None;
                        Ok(())
                    }
                },
                chunk = self.stream.read(), if pending.is_none() && room && self.rows.is_none() => match chunk {
                    Ok(chunk) => {
                        self.heard_at = Instant::now();
                        let read = chunk.bytes.len();
                        self.decode(&chunk).map(|items| {
                            pending = hand_over(self.charged(items, channels), &channels.batches);
                            if let Some(pause) = pacing.after_read(read, self.heard_at.into_std()) {
                                (self.pause)(pause);
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

    /// A batch, charged to the memory budget.
    fn charged(&self, items: Vec<Item>, channels: &Channels) -> Batch {
        let bytes = items.iter().map(Item::size).sum();
        Batch {
            session: self.session.number,
            charge: channels.memory.charge(bytes),
            items,
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
                ReplicationMessage::XLogData(data) => {
                    clock::hear_first(data.sent_at);
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
                    sent_at,
                    reply_requested,
                }) => {
                    clock::hear_first(sent_at);
                    self.received = self.received.max(wal_end);
                    if reply_requested {
                        self.demanded();
                        self.next_status = self.next_status.min(self.sent_at + REPLY_SPACING);
                    }
                    match items.last_mut() {
                        Some(Item::Keepalive(last)) => *last = wal_end.max(*last),
                        _ => items.push(Item::Keepalive(wal_end)),
                    }
                }
            }
        }
        Ok(items)
    }

    /// A keepalive demands an answer.
    fn demanded(&mut self) {
        self.owes_reply = true;
        let (demands, since) = &mut self.demands;
        if since.elapsed() > DEMANDS_WITHIN {
            (*demands, *since) = (0, Instant::now());
        }
        *demands += 1;
    }

    /// The status timer.
    async fn tick(&mut self, channels: &Channels, blocked: bool) -> Result<(), Error> {
        let now = Instant::now();
        if self.demands.0 >= DEMANDS_AT_SHUTDOWN {
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
        if news {
            failpoint::reach(Point::Recorded);
        }
        let at_least = match blocked {
            true => STATUS_UNREAD,
            false => STATUS_AT_LEAST,
        };
        // The next tick would be too late.
        let due = now.duration_since(self.sent_at) + STATUS_INTERVAL > at_least;
        // To end at a position we must hear that the server has come so far.
        let ask = silent >= STATUS_AT_LEAST || self.session.until.is_some();
        if news || due || ask || self.owes_reply {
            self.send_status(channels, ask).await?;
        }
        self.owes_reply = false;
        let next = now + STATUS_INTERVAL;
        self.next_status = self.leave_at.map_or(next, |at| next.min(at));
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
        let mut orders = channels.orders.clone();
        let leave_at = self.leave_at.unwrap_or(self.sent_at + SILENCE);
        // A peer that takes nothing does not keep an order waiting; what it did not take goes before the next update.
        tokio::select! {
            biased;
            sent = self.stream.send_status(self.sent, clock::now(), ask) => sent,
            _ = orders.changed() => Ok(()),
            () = sleep_until(leave_at) => Ok(()),
        }
    }

    fn leave(&mut self) {
        if self.leave_at.is_none() {
            warn!("the server is shutting down, or gone; confirming what is settled and leaving");
            let at = Instant::now() + SETTLE_WITHIN;
            self.leave_at = Some(at);
            self.next_status = self.next_status.min(at);
        }
    }
}

async fn next_rows(rows: &mut Option<Rows>) -> Option<Result<Vec<Item>, Error>> {
    rows.as_mut()?.next().await
}

/// What cannot be decoded is never skipped.
pub(super) fn undecodable(error: AssembleError) -> Error {
    let stop = match error {
        AssembleError::Layout { .. } | AssembleError::Row { .. } => Stop::Configuration,
        _ => Stop::Runtime,
    };
    Error::judged(Place::Streaming, Policy::Stop(stop), error.to_string())
}

/// Hands a batch to the relay; gives back what it does not take now.
fn hand_over(batch: Batch, batches: &mpsc::Sender<Batch>) -> Option<Batch> {
    if batch.items.is_empty() {
        return None;
    }
    match batches.try_send(batch) {
        Ok(()) => None,
        Err(mpsc::error::TrySendError::Full(batch) | mpsc::error::TrySendError::Closed(batch)) => {
            Some(batch)
        }
    }
}

#[cfg(test)]
mod script;
#[cfg(test)]
mod tests;
