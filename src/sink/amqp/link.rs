//! One connection to an AMQP broker, and the channel on it: bytes go out, and what comes in is told apart. The caller bounds
//! every wait; a wait that is dropped loses nothing.

use std::collections::HashSet;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until};
use tokio_util::io::poll_read_buf;

use super::method::{self, Method, Refusal, read_content_header};
use super::url::Address;
use super::wire::{BODY, FRAME_OVERHEAD, HEADER, HEARTBEAT, METHOD, Malformed, frame, write_frame};

/// Why a connection is of no more use.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It could not be opened.
    Unreachable(io::Error),
    /// It broke.
    Lost(io::Error),
    /// Nothing was heard for twice the heartbeat.
    Silent,
    /// The server closes it.
    Closed(Refusal),
    /// What answers speaks no AMQP 0-9-1.
    NotAmqp,
    /// The server has no way to log in that we know.
    NoMechanism(String),
}

impl From<Malformed> for Trouble {
    fn from(_: Malformed) -> Trouble {
        Trouble::NotAmqp
    }
}

pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// What has happened on a connection.
#[derive(Debug)]
pub(super) enum Event {
    /// The broker has said something.
    Said(Method),
    /// A message has come back, as no queue was found for it.
    Returned {
        exchange: String,
        routing_key: String,
        /// Its `message_id`.
        id: Option<String>,
    },
    /// All that was to be written is written.
    Written,
}

/// A message that is coming back.
struct Returning {
    exchange: String,
    routing_key: String,
    id: Option<String>,
    /// Bytes of its body that are still to come; unknown before its header.
    left: Option<u64>,
}

/// The largest frame that is offered, and RabbitMQ's own limit by default.
pub(super) const FRAME_MAX: u32 = 131_072;

pub(super) struct Link {
    /// Where it leads.
    pub(super) address: Arc<Address>,
    stream: Box<dyn Duplex>,
    input: BytesMut,
    /// What is to be written, of which the first `written` bytes are.
    pub(super) output: Vec<u8>,
    written: usize,
    /// What was written may still be in the stream's own buffer.
    unflushed: bool,
    returning: Option<Returning>,
    /// Bytes of a frame, at most.
    pub(super) frame_max: usize,
    heartbeat: Option<Duration>,
    last_sent: Instant,
    last_heard: Instant,
    /// The channel that messages are published on, and the tag of the last one.
    pub(super) channel: u16,
    pub(super) tag: u64,
    /// A queue has refused a message on this channel.
    pub(super) nacked: bool,
    /// Exchanges that have taken a message on this connection.
    pub(super) proven: HashSet<String>,
    /// The broker has told why it takes no messages at present.
    pub(super) blocked: Option<String>,
    /// The server's own version, as it tells.
    pub(super) server: String,
    /// The name of its cluster; RabbitMQ has one.
    pub(super) cluster: Option<String>,
}

/// What the output has grown to beyond this is given back once it is written.
const OUTPUT_KEPT: usize = 1 << 20;
const READ_AT_ONCE: usize = 16 << 10;

impl Link {
    pub(super) fn new(address: Arc<Address>, stream: Box<dyn Duplex>) -> Link {
        let now = Instant::now();
        Link {
            address,
            stream,
            input: BytesMut::new(),
            output: method::GREETING.to_vec(),
            written: 0,
            unflushed: false,
            returning: None,
            frame_max: FRAME_MAX as usize,
            heartbeat: None,
            last_sent: now,
            last_heard: now,
            channel: 0,
            tag: 0,
            nacked: false,
            proven: HashSet::new(),
            blocked: None,
            server: String::new(),
            cluster: None,
        }
    }

    /// From now on a heartbeat is sent after half of this time, and expected within twice of it.
    pub(super) fn set_heartbeat(&mut self, heartbeat: Duration) {
        self.heartbeat = (!heartbeat.is_zero()).then_some(heartbeat);
    }

    /// Bytes that are not written yet.
    pub(super) fn unwritten(&self) -> usize {
        self.output.len() - self.written
    }

    /// Waits for what happens next; `Written` is told when there was something to write. Writes and reads at once: a
    /// broker that has too much to say does not listen.
    ///
    /// # Errors
    /// The connection is of no more use.
    pub(super) async fn event(&mut self) -> Result<Event, Trouble> {
        loop {
            if let Some(event) = self.heard()? {
                return Ok(event);
            }
            let beat = self.heartbeat.map(|every| self.last_sent + every / 2);
            let silent = self.heartbeat.map(|every| self.last_heard + every * 2);
            let moved = tokio::select! {
                biased;
                moved = poll_fn(|cx| self.poll(cx)) => moved.map_err(Trouble::Lost)?,
                () = at(silent) => return Err(Trouble::Silent),
                () = at(beat) => {
                    write_frame(&mut self.output, HEARTBEAT, 0, |_| ());
                    self.last_sent = Instant::now();
                    continue;
                }
            };
            if moved == Moved::AllWritten {
                return Ok(Event::Written);
            }
        }
    }

    /// What has come in and was not told yet. Does not wait.
    pub(super) fn heard(&mut self) -> Result<Option<Event>, Trouble> {
        let largest = self.frame_max - FRAME_OVERHEAD;
        while let Some(frame) = frame(&self.input, largest)? {
            let payload = self.input.get(frame.payload).unwrap_or_default();
            let event = match frame.kind {
                METHOD => Method::read(payload)?.map(Event::Said),
                HEADER | BODY => match &mut self.returning {
                    Some(returning) => {
                        returning.take(frame.kind, payload)?;
                        None
                    }
                    None => return Err(Trouble::NotAmqp),
                },
                _ => None,
            };
            self.input.advance(frame.end);
            match event {
                Some(Event::Said(said)) => {
                    if let Some(said) = self.answer(said)? {
                        return Ok(Some(Event::Said(said)));
                    }
                }
                _ => {
                    if let Some(done) = self
                        .returning
                        .take_if(|returning| returning.left == Some(0))
                    {
                        let Returning {
                            exchange,
                            routing_key,
                            id,
                            ..
                        } = done;
                        return Ok(Some(Event::Returned {
                            exchange,
                            routing_key,
                            id,
                        }));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Does what a method asks of the connection itself; gives it back where it is for others.
    fn answer(&mut self, said: Method) -> Result<Option<Method>, Trouble> {
        match said {
            Method::ConnectionClose(refusal) => return Err(Trouble::Closed(refusal)),
            Method::Return {
                exchange,
                routing_key,
            } => {
                self.returning = Some(Returning {
                    exchange,
                    routing_key,
                    id: None,
                    left: None,
                });
                return Ok(None);
            }
            Method::Flow { active } => {
                method::flow_ok(&mut self.output, self.channel, active);
                return Ok(None);
            }
            Method::ChannelClose(_) => {
                self.returning = None;
                method::channel_close_ok(&mut self.output, self.channel);
            }
            Method::Blocked(ref why) => self.blocked = Some(why.clone()),
            Method::Unblocked => self.blocked = None,
            _ => {}
        }
        Ok(Some(said))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Moved>> {
        let mut moved = None;
        while let Some(rest) = self
            .output
            .get(self.written..)
            .filter(|rest| !rest.is_empty())
        {
            match Pin::new(&mut self.stream).poll_write(cx, rest)? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(count) => {
                    self.written += count;
                    self.unflushed = true;
                    self.last_sent = Instant::now();
                }
                Poll::Pending => break,
            }
        }
        if self.unflushed && Pin::new(&mut self.stream).poll_flush(cx)?.is_ready() {
            self.unflushed = false;
        }
        if self.written > 0 && self.written == self.output.len() {
            self.output.clear();
            self.output.shrink_to(OUTPUT_KEPT);
            self.written = 0;
            moved = Some(Moved::AllWritten);
        }
        self.input.reserve(READ_AT_ONCE);
        match poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.input)? {
            Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Poll::Ready(_) => {
                self.last_heard = Instant::now();
                moved = moved.or(Some(Moved::Some));
            }
            Poll::Pending => {}
        }
        moved.map_or(Poll::Pending, |moved| Poll::Ready(Ok(moved)))
    }
}

#[derive(PartialEq, Eq)]
enum Moved {
    AllWritten,
    Some,
}

impl Returning {
    fn take(&mut self, kind: u8, payload: &[u8]) -> Result<(), Malformed> {
        match (kind, self.left) {
            (HEADER, None) => {
                let (length, id) = read_content_header(payload)?;
                self.left = Some(length);
                self.id = id;
            }
            (BODY, Some(left)) => {
                let left = left.checked_sub(payload.len() as u64).ok_or(Malformed)?;
                self.left = Some(left);
            }
            _ => return Err(Malformed),
        }
        Ok(())
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
