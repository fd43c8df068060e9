//! A server that owes an answer and is silent for too long is gone, whatever becomes of the connection.
//!
//! The kernel notices a peer whose machine is gone. It does not notice one that hangs, nor one behind something that keeps
//! the connection up by itself (a balancer, a tunnel): whoever waits there would wait for ever. So the bytes of a SQL session
//! are followed as they pass, in both directions: each Query and each Sync of ours is answered by a ReadyForQuery, but for a
//! Sync that arrives while the server takes a COPY (documentation, chapter "Message Flow"). While an answer is owed, or what
//! we write is not taken, something has to move.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// A session's socket, whose reads fail when the server has been silent for too long.
#[derive(Debug)]
pub(super) struct Heard<S> {
    socket: S,
    /// How long the server may be silent while it owes an answer; `None`: for ever.
    patience: Option<Duration>,
    ours: Frames,
    theirs: Frames,
    /// Answers that are owed.
    owed: usize,
    /// The server does not take what we write.
    is_stuck: bool,
    /// Since when nothing has moved, while something should.
    since: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl<S> Heard<S> {
    /// `read` are bytes that the server has sent already.
    pub(super) fn new(socket: S, patience: Option<Duration>, read: &[u8]) -> Heard<S> {
        let mut theirs = Frames::default();
        theirs.pass(read, |_| {});
        Heard {
            socket,
            patience,
            ours: Frames::default(),
            theirs,
            owed: 0,
            is_stuck: false,
            since: None,
            alarm: None,
        }
    }

    /// Nothing moves: sees to it that the task is woken in time, and fails when that time has come.
    fn wait(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(patience) = self.patience else {
            return Ok(());
        };
        if self.owed == 0 && !self.is_stuck {
            self.since = None;
            return Ok(());
        }
        let end = *self.since.get_or_insert_with(Instant::now) + patience;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(end)));
        if alarm.deadline() != end {
            alarm.as_mut().reset(end);
        }
        match alarm.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => {
                let words = format!("no answer within {patience:?}");
                Err(io::Error::new(io::ErrorKind::TimedOut, words))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let Poll::Ready(read) = Pin::new(&mut this.socket).poll_read(cx, buf) else {
            this.wait(cx)?;
            return Poll::Pending;
        };
        this.since = None;
        let read_now = buf.filled().get(before..).unwrap_or_default();
        let owed = &mut this.owed;
        this.theirs.pass(read_now, |tag| {
            // tokio-postgres begins a COPY with a Sync, too.
            let answers = matches!(tag, READY_FOR_QUERY | COPY_IN);
            *owed = owed.saturating_sub(usize::from(answers));
        });
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write(cx, buf);
        this.is_stuck = written.is_pending();
        if let Poll::Ready(Ok(count)) = written {
            this.since = None;
            let owed = &mut this.owed;
            this.ours.pass(buf.get(..count).unwrap_or_default(), |tag| {
                *owed += usize::from(matches!(tag, QUERY | SYNC));
            });
        }
        // The reader may have looked already, and is not woken before the answer comes.
        this.wait(cx)?;
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

const QUERY: u8 = b'Q';
const SYNC: u8 = b'S';
const READY_FOR_QUERY: u8 = b'Z';
const COPY_IN: u8 = b'G';

/// Where in the frames of one direction we are: a tag, a length that counts itself, a body.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; 5],
    /// Bytes of the header that have come.
    have: usize,
    /// Bytes of the body that are still to come.
    rest: usize,
}

impl Frames {
    /// Bytes pass; `each` is told the tag of every frame whose end has come.
    fn pass(&mut self, mut bytes: &[u8], mut each: impl FnMut(u8)) {
        while !bytes.is_empty() {
            if self.have < self.header.len() {
                let (gap, count) = (self.header.get_mut(self.have..), bytes.len());
                let gap = gap.unwrap_or_default();
                let (now, later) = bytes.split_at(gap.len().min(count));
                for (to, from) in gap.iter_mut().zip(now) {
                    *to = *from;
                }
                self.have += now.len();
                bytes = later;
                if self.have < self.header.len() {
                    return;
                }
                let [_, length @ ..] = self.header;
                self.rest = (u32::from_be_bytes(length) as usize).saturating_sub(length.len());
            }
            let (_, later) = bytes.split_at(self.rest.min(bytes.len()));
            self.rest -= bytes.len() - later.len();
            bytes = later;
            if self.rest == 0 {
                self.have = 0;
                each(self.header[0]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
