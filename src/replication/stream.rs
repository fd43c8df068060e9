//! The stream of CopyData frames, both ways.
//!
//! Reading is cancel-safe: bytes stay in the buffer until a whole frame is there, and a dropped [`Stream::read`] loses
//! nothing. Reads are large (up to the buffer's free space), since each wake-up of the reader interrupts the walsender
//! too; what comes out is a [`Chunk`]: whole frames, in one shared allocation, from which tasks are slices.

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::io::poll_read_buf;

use super::error::{Error, Place, refuse_notice};
use super::message::ServerMessage;
use crate::pg::replication::StatusUpdate;
use crate::pg::{ConfirmedLsn, Timestamp};

/// Size of the read buffer: a whole read's worth, so that a pausing reader takes what a walsender sends meanwhile.
const BUFFER: usize = 256 << 10;
/// A read begins with at least this much free space.
const MIN_FREE: usize = 64 << 10;
/// No frame is longer: a value is at most 1 GB, and a message is refused by the server when it does not fit in that.
const MAX_FRAME: usize = (1 << 30) + (1 << 16);
/// No message beside the data is longer.
const MAX_WORDS: usize = 16 << 20;
/// How long a write may take. A status update is 39 bytes; a peer that does not take them is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Whole CopyData frames, in the order they came, in one shared buffer.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The buffer.
    pub bytes: Bytes,
    /// Where each frame's payload lies in it.
    pub frames: Vec<Range<usize>>,
}

/// The walsender connection in CopyBoth mode.
#[derive(Debug)]
pub struct Stream<S> {
    socket: S,
    buffer: BytesMut,
    /// What is still to be written. It may begin in the middle of a frame whose write was cut, so it is never cleared.
    out: BytesMut,
    /// The last notice. The server repeats it many times while it waits for a standby.
    noticed: String,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream<S> {
    /// Takes over a connection that is in CopyBoth mode, with the bytes that were read beyond its beginning.
    pub fn new(socket: S, buffer: BytesMut) -> Stream<S> {
        Stream {
            socket,
            buffer,
            out: BytesMut::with_capacity(64),
            noticed: String::new(),
        }
    }

    /// Reads what is there, waiting for the first byte, and returns the frames that are complete; there may be none.
    ///
    /// # Errors
    /// The server's ErrorResponse, the end of the stream, an I/O error, or a frame that is not of the protocol.
    pub async fn read(&mut self) -> Result<Chunk, Error> {
        if let Some(chunk) = self.take_frames()? {
            return Ok(chunk);
        }
        self.make_room();
        let Stream { socket, buffer, .. } = self;
        let read = poll_fn(|cx| poll_fill(socket, buffer, cx)).await;
        if read.map_err(streaming)? == 0 {
            return Err(Error::closed(Place::Streaming));
        }
        let empty = || Chunk {
            bytes: Bytes::new(),
            frames: Vec::new(),
        };
        Ok(self.take_frames()?.unwrap_or_else(empty))
    }

    /// A frame that is longer than the buffer gets room at once, so that it is not copied again and again.
    fn make_room(&mut self) {
        let needed = match self
            .buffer
            .get(1..5)
            .and_then(|length| <[u8; 4]>::try_from(length).ok())
        {
            Some(length) => {
                (u32::from_be_bytes(length) as usize + 1).saturating_sub(self.buffer.len())
            }
            None => 0,
        };
        if needed > BUFFER {
            self.buffer.reserve(needed);
        } else if self.buffer.capacity() - self.buffer.len() < MIN_FREE {
            self.buffer
                .reserve(BUFFER - self.buffer.len().min(BUFFER / 2));
        }
    }

    /// Splits the whole frames off the buffer. Messages other than CopyData are dealt with here.
    fn take_frames(&mut self) -> Result<Option<Chunk>, Error> {
        let mut frames = Vec::with_capacity(self.buffer.len() / 128);
        let mut at = 0;
        while let Some(header) = self
            .buffer
            .get(at..at + 5)
            .and_then(|h| <[u8; 5]>::try_from(h).ok())
        {
            let [tag, length @ ..] = header;
            let length = u32::from_be_bytes(length) as usize;
            // Judged by the header alone, before room is made for what it promises.
            let longest = match tag {
                b'd' => MAX_FRAME,
                b'E' | b'N' | b'S' | b'c' | b'C' => MAX_WORDS,
                _ => {
                    return Err(Error::protocol(
                        Place::Streaming,
                        format!("an unexpected message of type {:?}", tag as char),
                    ));
                }
            };
            if !(4..=longest).contains(&length) {
                return Err(Error::protocol(
                    Place::Streaming,
                    format!(
                        "a message of type {:?} has a length of {length}",
                        tag as char
                    ),
                ));
            }
            let end = at + 1 + length;
            let Some(body) = self.buffer.get(at + 5..end) else {
                break;
            };
            match tag {
                b'd' => frames.push(at + 5..end),
                // What came before the error is complete and in order; it is handed out first.
                b'E' if !frames.is_empty() => break,
                b'E' => {
                    return Err(Error::server(
                        Place::Streaming,
                        ServerMessage::parse(&Bytes::copy_from_slice(body)),
                    ));
                }
                b'N' => {
                    let notice = ServerMessage::parse(&Bytes::copy_from_slice(body));
                    if notice.message != self.noticed {
                        tracing::warn!(%notice, "notice from Postgres");
                        self.noticed.clone_from(&notice.message);
                    }
                    refuse_notice(Place::Streaming, notice)?;
                }
                // The end: CopyDone, or, from a server that shuts down, CommandComplete without one.
                b'c' | b'C' if !frames.is_empty() => break,
                b'c' | b'C' => return Err(Error::closed(Place::Streaming)),
                // ParameterStatus may come at any time.
                _ => {}
            }
            at = end;
        }
        if at == 0 {
            return Ok(None);
        }
        Ok(Some(Chunk {
            bytes: self.buffer.split_to(at).freeze(),
            frames,
        }))
    }

    /// Sends a standby status update: everything below `confirmed` may be forgotten.
    ///
    /// Cancel-safe: what was not written goes before whatever is sent next.
    ///
    /// # Errors
    /// An I/O error, or a peer that does not read for ten seconds.
    pub async fn send_status(
        &mut self,
        confirmed: ConfirmedLsn,
        now: Timestamp,
        reply: bool,
    ) -> Result<(), Error> {
        StatusUpdate {
            confirmed,
            sent_at: now,
            reply_requested: reply,
        }
        .encode(&mut self.out);
        self.flush().await
    }

    /// Ends the stream in order: CopyDone, then reads until the server has closed it too, for `patience` at most. By then it has
    /// taken the last status update.
    pub async fn close(mut self, patience: Duration) {
        self.out.extend_from_slice(b"c\0\0\0\x04X\0\0\0\x04");
        let end = async {
            self.flush().await?;
            loop {
                self.buffer.clear();
                self.make_room();
                let Stream { socket, buffer, .. } = &mut self;
                if poll_fn(|cx| poll_fill(socket, buffer, cx))
                    .await
                    .map_err(streaming)?
                    == 0
                {
                    return Ok::<(), Error>(());
                }
            }
        };
        // A server that goes away meanwhile has nothing to tell us any more.
        let _ = tokio::time::timeout(patience, end).await;
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let Stream { socket, out, .. } = self;
        let write = async {
            while !out.is_empty() {
                if socket.write_buf(out).await? == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
            }
            socket.flush().await
        };
        match tokio::time::timeout(WRITE_TIMEOUT, write).await {
            Ok(written) => written.map_err(streaming),
            Err(_) => Err(Error::timeout(Place::Streaming, WRITE_TIMEOUT)),
        }
    }
}

fn streaming(error: io::Error) -> Error {
    Error::io(Place::Streaming, error)
}

/// Reads until nothing more is there, or the free space is used up (TLS hands out no more than a record at a time).
/// Pending only if not a byte was read.
fn poll_fill<S: AsyncRead + Unpin>(
    socket: &mut S,
    buffer: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let mut total = 0;
    loop {
        let free = buffer.capacity() - buffer.len();
        if free == 0 {
            return Poll::Ready(Ok(total));
        }
        let before = buffer.len();
        match poll_read_buf(Pin::new(&mut *socket), cx, buffer) {
            Poll::Ready(Ok(_)) if buffer.len() == before => return Poll::Ready(Ok(total)),
            Poll::Ready(Ok(_)) => total += buffer.len() - before,
            Poll::Ready(Err(error)) if total == 0 => return Poll::Ready(Err(error)),
            Poll::Pending if total == 0 => return Poll::Pending,
            // The error, or the end, shows again at the next read.
            Poll::Ready(Err(_)) | Poll::Pending => return Poll::Ready(Ok(total)),
        }
    }
}

#[cfg(test)]
mod tests;
