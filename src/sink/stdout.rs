//! One JSON object a line on standard output.
//!
//! - **Delivered** means: written to the pipe, file or terminal, and flushed. What reads it may still lose it.
//! - **Repeats** are not dropped; the same task carries the same `id`.
//! - **Order**: that of the batches.
//! - A batch that is dropped midway, or takes too long, leaves no torn line: what was begun is finished before the next.
//!
//! What an object holds stands at the head of `envelope/plain.rs`. A JSON column that holds no JSON would tear the format
//! and is rejected.

use std::future::ready;
use std::io;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::{Cause, Delivery, Invalid, Outage, Outcome, Probe, Settings, Sight, Sink};
use crate::envelope::plain;
use crate::outbox::Task;

/// A reader that takes nothing for so long counts as away.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A buffer that has grown beyond this is given back after its batch.
const BUFFER_KEPT: usize = 4 << 20;

/// `[sink.stdout.<name>]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Settings for Config {
    fn open(&self) -> Result<Box<dyn Sink>, Invalid> {
        Ok(Box::new(Stdout::new(tokio::io::stdout())))
    }
}

/// Writes tasks as lines to `W`.
pub struct Stdout<W> {
    writer: W,
    /// Lines, of which the first `written` bytes have been taken by the writer.
    lines: Vec<u8>,
    written: usize,
}

impl<W: AsyncWrite + Send + Unpin> Stdout<W> {
    /// Writes to `writer`.
    pub fn new(writer: W) -> Stdout<W> {
        Stdout {
            writer,
            lines: Vec::new(),
            written: 0,
        }
    }

    /// Writes what is left of the lines. Cancel-safe: `written` counts what the writer has taken.
    async fn write_out(&mut self) -> io::Result<()> {
        while let Some(rest) = self
            .lines
            .get(self.written..)
            .filter(|rest| !rest.is_empty())
        {
            match self.writer.write(rest).await {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => self.written += taken,
                Err(e) => {
                    // Whatever was torn, its reader is gone.
                    self.lines.clear();
                    self.written = 0;
                    return Err(e);
                }
            }
        }
        self.writer.flush().await?;
        self.lines.clear();
        self.lines.shrink_to(BUFFER_KEPT);
        self.written = 0;
        Ok(())
    }
}

impl<W: AsyncWrite + Send + Unpin> Sink for Stdout<W> {
    fn probe(&mut self) -> Probe<'_> {
        let words = "writes to standard output; what reads it may still lose it".to_owned();
        Box::pin(ready(vec![Sight::Good(words)]))
    }

    fn deliver<'a>(&'a mut self, batch: &'a [Task]) -> Delivery<'a> {
        Box::pin(async move {
            // Of an earlier batch that was dropped midway, only the line that was begun is still owed.
            let owed =
                match self.written {
                    0 => 0,
                    written => self.lines.get(written..).map_or(0, |rest| {
                        match self.lines.get(written - 1) {
                            Some(b'\n') => 0,
                            _ => memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1),
                        }
                    }),
                };
            self.lines.truncate(self.written + owed);
            self.lines.drain(..self.written);
            self.written = 0;
            let mut stopped: Vec<&[u8]> = Vec::new();
            let outcomes = batch
                .iter()
                .map(|task| {
                    if task.key().is_some_and(|key| stopped.contains(&key)) {
                        return Outcome::Retry(Cause::new(
                            "an earlier task of its key was not delivered",
                        ));
                    }
                    let start = self.lines.len();
                    match plain::write(&mut self.lines, task) {
                        Ok(()) => {
                            self.lines.push(b'\n');
                            Outcome::Delivered
                        }
                        Err(unfit) => {
                            self.lines.truncate(start);
                            stopped.extend(task.key());
                            Outcome::Reject(Cause::new(unfit.into_words()))
                        }
                    }
                })
                .collect();
            match timeout(TIMEOUT, self.write_out()).await {
                Ok(Ok(())) => Ok(outcomes),
                Ok(Err(e)) => Err(Outage::new(Cause::new(format!(
                    "standard output cannot be written to: {e}"
                )))),
                Err(_) => Err(Outage::new(Cause::new(format!(
                    "standard output was not read for {TIMEOUT:?}"
                )))),
            }
        })
    }
}
