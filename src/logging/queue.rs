//! Lines on their way to a writer that may be slow, stuck or gone.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

/// So many lines wait at most; about a megabyte.
const LINES: usize = 4096;

/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// A bounded queue in front of a thread that writes. Dropping it waits, for a second at most, until what is queued has
/// been written.
#[derive(Debug)]
pub struct Queue {
    writer: Writer,
}

/// Puts lines into the queue; never waits, never fails.
#[derive(Clone, Debug)]
pub struct Writer {
    sender: SyncSender<Item>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Item {
    Line(Vec<u8>),
    /// All that came before is written when this is answered.
    Flush(SyncSender<()>),
}

impl Queue {
    /// Starts the thread that writes to `out`. What `out` refuses is lost.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<Queue> {
        let (sender, receiver) = sync_channel(LINES);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            sender,
            dropped: dropped.clone(),
        };
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_all(&receiver, out, &dropped))?;
        Ok(Queue { writer })
    }

    /// What puts lines into this queue.
    pub fn writer(&self) -> Writer {
        self.writer.clone()
    }

    fn flush(&self) {
        let deadline = Instant::now() + LAST_LINES;
        let (done, wait) = sync_channel(1);
        let mut item = Item::Flush(done);
        while let Err(TrySendError::Full(back)) = self.writer.sender.try_send(item) {
            if Instant::now() >= deadline {
                return;
            }
            item = back;
            thread::sleep(Duration::from_millis(1));
        }
        let _ = wait.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.flush();
    }
}

fn write_all(receiver: &Receiver<Item>, mut out: impl Write, dropped: &AtomicU64) {
    for item in receiver {
        match item {
            Item::Line(line) => {
                let _ = out.write_all(&line);
            }
            Item::Flush(done) => {
                let _ = out.flush();
                let _ = done.try_send(());
            }
        }
        let lines = dropped.swap(0, Ordering::Relaxed);
        if lines > 0 {
            tracing::warn!(
                lines,
                "the log could not be written fast enough, and lines were dropped"
            );
        }
    }
}

impl Write for Writer {
    /// One call is one line; the formatter writes whole lines.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.sender.try_send(Item::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Writer {
    type Writer = Writer;

    fn make_writer(&'a self) -> Writer {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use super::*;

    /// Writes nothing before it is allowed to.
    struct Stuck {
        gate: Receiver<()>,
        lines: Arc<Mutex<Vec<Vec<u8>>>>,
    }

    impl Write for Stuck {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.gate.recv();
            self.lines.lock().expect("no panic").push(line.to_vec());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
    }

    #[test]
    fn a_stuck_writer_costs_lines_and_no_time() {
        let (open, gate) = channel::<()>();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let stuck = Stuck {
            gate,
            lines: lines.clone(),
        };
        let queue = Queue::start(stuck).expect("a thread");
        let mut writer = queue.writer();
        let sent = LINES + 100;
        for n in 0..sent {
            writer
                .write_all(n.to_string().as_bytes())
                .expect("never fails");
        }
        let dropped = writer.dropped.load(Ordering::Relaxed);
        // One line may be in the thread's hands.
        assert!((99..=100).contains(&dropped), "{dropped}");
        drop(open);
        drop(queue);
        let lines = lines.lock().expect("no panic");
        assert_eq!(lines.len() as u64, sent as u64 - dropped);
        assert_eq!(lines.first().map(Vec::as_slice), Some(&b"0"[..]));
    }

    #[test]
    fn a_broken_writer_harms_nobody() {
        let queue = Queue::start(Broken).expect("a thread");
        let mut writer = queue.writer();
        for _ in 0..10 {
            writer.write_all(b"line").expect("never fails");
        }
        drop(queue);
        assert_eq!(writer.dropped.load(Ordering::Relaxed), 0);
    }
}
