//! The real daemon, as a child process: `aftercommit init` once, then `aftercommit run` with a sink that writes each
//! task to standard output, which is a pipe to us.

use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot};

use super::Error;
use super::act::Clock;
use super::ledger::Event;
use super::playground::{Playground, run, tail};
use super::postgres::Database;
use super::worker::Queue;

const SLOT: &str = "aftercommit";
const START_LIMIT: Duration = Duration::from_secs(15);
const STOP_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// What the daemon is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// kill -9, and a new one at once.
    Kill,
    /// SIGTERM.
    Stop,
}

/// Where the daemon is and what it is given.
pub(super) struct Daemon<'a> {
    playground: &'a Playground,
    executable: &'a Path,
    config: PathBuf,
    log: PathBuf,
}

/// One line of the `stdout` sink, as far as we read it.
#[derive(Deserialize)]
struct Line {
    id: String,
    key: Option<String>,
    kwargs: Kwargs,
}

#[derive(Deserialize)]
struct Kwargs {
    order_id: u64,
}

impl<'a> Daemon<'a> {
    /// Writes the configuration and runs `aftercommit init` with it.
    pub(super) async fn install(
        playground: &'a Playground,
        executable: &'a Path,
        database: &Database,
        sink: &str,
    ) -> Result<Daemon<'a>, Error> {
        let text = format!(
            "[postgres]\nurl = \"${{DATABASE_URL}}\"\nslot = \"{SLOT}\"\n\n{sink}\n\n[[route]]\ntask = \"*\"\nsink = \"worker\"\n"
        );
        let daemon = Daemon {
            playground,
            executable,
            config: playground.write("aftercommit.toml", &text)?,
            log: playground.folder().join("aftercommit.log"),
        };
        let mut init = playground.command(executable);
        init.env("DATABASE_URL", database.url("postgres"))
            .arg("init")
            .arg("-c")
            .arg(&daemon.config);
        run("aftercommit init", init).await?;
        database.grant().await?;
        Ok(daemon)
    }

    fn spawn(&self, database: &Database) -> Result<Child, Error> {
        let failed = |source| Error::start("aftercommit run", source);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(failed)?;
        let mut command = self.playground.command(self.executable);
        command
            .env("DATABASE_URL", database.url("aftercommit"))
            .arg("run")
            .arg("-c")
            .arg(&self.config)
            .stdout(Stdio::piped())
            .stderr(log);
        Command::from(command).spawn().map_err(failed)
    }

    fn ended(&self, status: ExitStatus) -> Error {
        Error::Program {
            program: "aftercommit run",
            status,
            said: tail(&std::fs::read_to_string(&self.log).unwrap_or_default()),
        }
    }

    /// Runs the daemon until it is told to stop, and hands on to the worker what it dispatches. `ready` is told when
    /// it reads from the slot.
    pub(super) async fn keep(
        &self,
        database: &Database,
        queue: Queue,
        clock: Clock,
        events: mpsc::Sender<Event>,
        mut orders: mpsc::Receiver<Order>,
        ready: oneshot::Sender<()>,
    ) -> Result<(), Error> {
        let mut child = self.spawn(database)?;
        let mut sender = self.wait_until_it_reads(database, &mut child).await?;
        let _ = ready.send(());
        let mut back = true;
        loop {
            let mut pipe = Pipe::of(&mut child);
            let mut next_sender = pin!(other_sender(database, sender));
            let order = loop {
                tokio::select! {
                    order = orders.recv() => break order.unwrap_or(Order::Stop),
                    other = &mut next_sender, if !back => {
                        sender = other?;
                        back = true;
                        let _ = events.send(Event::Back { at: clock.now() }).await;
                    }
                    line = pipe.next() => match line? {
                        Some(line) => pass_on(&queue, line).await,
                        None => return Err(self.ended(child.wait().await.map_err(Error::pipe)?)),
                    },
                }
            };
            match order {
                Order::Kill => child.start_kill().map_err(Error::pipe)?,
                Order::Stop => terminate(&child).await?,
            }
            // What it had written before it ended was dispatched. A line that it was in the middle of was not.
            let rest = async {
                while let Some(line) = pipe.next().await? {
                    pass_on(&queue, line).await;
                }
                child.wait().await.map_err(Error::pipe)
            };
            let status = tokio::time::timeout(STOP_LIMIT, rest)
                .await
                .map_err(|_| Error::DaemonStays(STOP_LIMIT))??;
            match order {
                Order::Stop if status.success() => return Ok(()),
                Order::Kill if status.signal() == Some(9) => {}
                Order::Stop | Order::Kill => return Err(self.ended(status)),
            }
            let _ = events.send(Event::Killed { at: clock.now() }).await;
            child = self.spawn(database)?;
            back = false;
        }
    }

    async fn wait_until_it_reads(
        &self,
        database: &Database,
        child: &mut Child,
    ) -> Result<i32, Error> {
        let begin = tokio::time::Instant::now();
        loop {
            if let Some(sender) = database.sender_of(SLOT).await? {
                return Ok(sender);
            }
            if let Some(status) = child.try_wait().map_err(Error::pipe)? {
                return Err(self.ended(status));
            }
            if begin.elapsed() > START_LIMIT {
                return Err(Error::DaemonDoesNotRead(START_LIMIT));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Waits until the slot is sent to a daemon by another process than the one that sent it to the last daemon: that one
/// may take a moment to see that its client is dead.
async fn other_sender(database: &Database, last: i32) -> Result<i32, Error> {
    loop {
        match database.sender_of(SLOT).await? {
            Some(sender) if sender != last => return Ok(sender),
            _ => tokio::time::sleep(POLL).await,
        }
    }
}

async fn pass_on(queue: &Queue, line: Line) {
    queue.put(line.kwargs.order_id, line.id, line.key).await;
}

/// SIGTERM by the shell's own `kill`, which every machine has.
pub(super) async fn terminate(child: &Child) -> Result<(), Error> {
    let Some(pid) = child.id() else { return Ok(()) };
    Command::new("/bin/sh")
        .args(["-c", "kill -TERM \"$1\"", "sh", &pid.to_string()])
        .stderr(Stdio::null())
        .status()
        .await
        .map(drop)
        .map_err(Error::pipe)
}

/// The daemon's standard output, line by line.
struct Pipe {
    reader: BufReader<ChildStdout>,
    line: Vec<u8>,
}

impl Pipe {
    fn of(child: &mut Child) -> Pipe {
        let output = child.stdout.take().expect("it was spawned with a pipe");
        Pipe {
            reader: BufReader::new(output),
            line: Vec::new(),
        }
    }

    /// The next whole line; `None` at the end. Cancel-safe: what was read of a line stays in the buffer.
    async fn next(&mut self) -> Result<Option<Line>, Error> {
        self.reader
            .read_until(b'\n', &mut self.line)
            .await
            .map_err(Error::pipe)?;
        if self.line.last() != Some(&b'\n') {
            return Ok(None);
        }
        let line = serde_json::from_slice(&self.line).map_err(Error::Line)?;
        self.line.clear();
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_sink_is_read() {
        let line: Line = serde_json::from_str(
            r#"{"id":"5b1d","task":"orders.tasks.send_receipt","args":null,"kwargs":{"order_id": 42},"key":"customer-7"}"#,
        )
        .unwrap();
        assert_eq!((line.kwargs.order_id, line.id.as_str()), (42, "5b1d"));
        assert_eq!(line.key.as_deref(), Some("customer-7"));
    }
}
