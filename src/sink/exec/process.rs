//! One worker: a process in a group of its own, the pipes to it, and a guard that logs what it says, ends it, and sees its
//! end.
//!
//! The guard is the only one that signals and reaps. It lives as long as the process: when the guard is dropped, as at the
//! end of the daemon, what is left of the group is killed.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::answer::{self, printable};
use super::lines::Lines;
use crate::clock;
use crate::sink::{Cause, Outcome};

/// Of an answer so many bytes are read.
const LONGEST_ANSWER: usize = 4 << 10;
/// A worker that writes more than this and no answer is ended.
const MOST_NONSENSE: usize = 1 << 20;
/// Of a line for the log so many bytes are read.
const LONGEST_LINE: usize = 1 << 10;
/// Lines of one worker for the log, within [`LOG_WINDOW`].
const MOST_LINES: u32 = 100;
const LOG_WINDOW: Duration = Duration::from_secs(1);
/// A worker whose input has ended has so long to end by itself; and again as long after SIGTERM. Together with the drain
/// below the ten seconds that container runtimes give.
const GENTLY: Duration = Duration::from_millis(500);
/// What a worker has said before its end is read for so long: what it has started may keep the pipe open.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What is started.
pub(super) struct Program {
    pub(super) command: Vec<String>,
    pub(super) directory: Option<PathBuf>,
    pub(super) environment: Vec<(String, SecretString)>,
    /// From SIGTERM to SIGKILL.
    pub(super) grace: Duration,
    /// A line that was no answer has been told.
    pub(super) told: Arc<AtomicBool>,
}

/// How a worker is ended.
#[derive(Clone, Copy, Debug)]
enum Stop {
    /// It is in the middle of a task.
    Now,
    /// It has nothing to do, and its input has ended.
    Gently,
}

/// A running worker. When it is dropped, it is ended.
pub(super) struct Worker {
    stdin: ChildStdin,
    stdout: Lines<ChildStdout>,
    stop: oneshot::Sender<Stop>,
    /// How it has ended.
    ended: watch::Receiver<Option<String>>,
    told: Arc<AtomicBool>,
}

impl Program {
    /// The program's name, for the log.
    pub(super) fn name(&self) -> &str {
        self.command.first().map_or("", String::as_str)
    }

    /// Starts a worker; its guard is one of `guards`.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn start(&self, guards: &mut JoinSet<()>) -> io::Result<Worker> {
        let mut command = Command::new(self.name());
        command
            .args(self.command.get(1..).unwrap_or_default())
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        for (name, value) in &self.environment {
            command.env(name, value.expose_secret());
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        let mut child = command.spawn()?;
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let pid = child
            .id()
            .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let group = Group(pid);
        let stdin = child.stdin.take().ok_or_else(gone)?;
        let stdout = child.stdout.take().ok_or_else(gone)?;
        let stderr = child.stderr.take().ok_or_else(gone)?;
        let (stop, stopped) = oneshot::channel();
        let (ends, ended) = watch::channel(None);
        let guard = Guard {
            group,
            child,
            stderr: Some(Lines::new(stderr, LONGEST_LINE)),
            log: Log::new(self.name(), pid),
            grace: self.grace,
        };
        guards.spawn(guard.run(stopped, ends));
        Ok(Worker {
            stdin,
            stdout: Lines::new(stdout, LONGEST_ANSWER),
            stop,
            ended,
            told: self.told.clone(),
        })
    }
}

impl Worker {
    /// Gives it a task, a line with its end, and waits for the answer.
    ///
    /// # Errors
    /// There was none, and there will be none.
    pub(super) async fn ask(&mut self, line: &[u8]) -> Result<Outcome, &'static str> {
        let Worker {
            stdin,
            stdout,
            told,
            ..
        } = self;
        let write = async {
            let written = stdin.write_all(line).await;
            written.map_err(|_| "the worker has closed its input")
        };
        let read = async {
            let mut nonsense = 0;
            loop {
                let Ok(Some(line)) = stdout.next().await else {
                    return Err("the worker has ended without an answer");
                };
                if let Some(outcome) = answer::parse(&line) {
                    return Ok(outcome);
                }
                tell_nonsense(told);
                nonsense += line.len() + 1;
                if nonsense > MOST_NONSENSE {
                    return Err("the worker writes much to its output, and no answer");
                }
            }
        };
        // Both at once: it may write before it has read all.
        let ((), outcome) = tokio::try_join!(write, read)?;
        Ok(outcome)
    }

    /// Whether it can be given a task: it is there, and has said nothing that would be taken for the answer.
    pub(super) fn is_ready(&mut self) -> bool {
        loop {
            let mut context = Context::from_waker(Waker::noop());
            let next = std::pin::pin!(self.stdout.next());
            match next.poll(&mut context) {
                Poll::Pending => return self.ended.borrow().is_none(),
                Poll::Ready(Ok(Some(line))) if answer::parse(&line).is_none() => {
                    tell_nonsense(&self.told)
                }
                Poll::Ready(Ok(Some(_))) => {
                    warn!("a worker has answered twice; it is started anew");
                    return false;
                }
                Poll::Ready(_) => return false,
            }
        }
    }

    /// Ends it in the middle of a task; says how it ended.
    pub(super) async fn end(self) -> Option<String> {
        let Worker {
            stop, mut ended, ..
        } = self;
        let _ = stop.send(Stop::Now);
        // Its guard bounds the wait.
        let ended = ended.wait_for(Option::is_some).await;
        ended.ok().and_then(|how| how.clone())
    }

    /// Lets it end: it has nothing to do.
    pub(super) fn release(self) {
        let _ = self.stop.send(Stop::Gently);
    }
}

fn tell_nonsense(told: &AtomicBool) {
    if !told.swap(true, Ordering::Relaxed) {
        warn!(
            "a worker writes lines to its output that are no answers; they are passed over: let it write to standard error \
             what is for the log"
        );
    }
}

/// A process group, killed when dropped.
struct Group(Option<Pid>);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.0 {
            // It may be gone already.
            let _ = kill_process_group(pid, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

struct Guard {
    // Dropped first: as long as the child is not reaped, no other group can have its number.
    group: Group,
    child: Child,
    stderr: Option<Lines<ChildStderr>>,
    log: Log,
    grace: Duration,
}

impl Guard {
    async fn run(
        mut self,
        mut stopped: oneshot::Receiver<Stop>,
        ends: watch::Sender<Option<String>>,
    ) {
        let mut is_asked = false;
        let mut next: Option<(Instant, Signal)> = None;
        let status = loop {
            tokio::select! {
                status = self.child.wait() => break status,
                line = next_line(&mut self.stderr), if self.stderr.is_some() => match line {
                    Some(line) => self.log.line(&line),
                    None => self.stderr = None,
                },
                stop = &mut stopped, if !is_asked => {
                    is_asked = true;
                    next = Some(match stop {
                        Ok(Stop::Gently) => (Instant::now() + GENTLY, Signal::TERM),
                        Ok(Stop::Now) | Err(_) => {
                            self.group.signal(Signal::TERM);
                            (Instant::now() + self.grace, Signal::KILL)
                        }
                    });
                }
                () = clock::sleep_until(next.map(|(at, _)| at)), if next.is_some() => {
                    let signal = next.take().map_or(Signal::KILL, |(_, signal)| signal);
                    self.group.signal(signal);
                    if signal == Signal::TERM {
                        next = Some((Instant::now() + GENTLY, Signal::KILL));
                    }
                }
            }
        };
        // What it has started and left behind.
        self.group.signal(Signal::KILL);
        self.group.0 = None;
        let _ = timeout(LAST_WORDS, async {
            while let Some(line) = next_line(&mut self.stderr).await {
                self.log.line(&line);
            }
        })
        .await;
        self.log.end();
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        ends.send_replace(Some(how));
    }
}

async fn next_line(stderr: &mut Option<Lines<ChildStderr>>) -> Option<Vec<u8>> {
    stderr.as_mut()?.next().await.ok().flatten()
}

/// A worker's lines on their way to the log; so many that it stays readable.
struct Log {
    program: String,
    pid: i32,
    window: Instant,
    lines: u32,
    left_out: u64,
}

impl Log {
    fn new(program: &str, pid: Option<Pid>) -> Log {
        Log {
            program: program.to_owned(),
            pid: pid.map_or(0, Pid::as_raw_pid),
            window: Instant::now(),
            lines: 0,
            left_out: 0,
        }
    }

    fn line(&mut self, line: &[u8]) {
        if self.window.elapsed() >= LOG_WINDOW {
            self.end();
            self.window = Instant::now();
            self.lines = 0;
        }
        if self.lines >= MOST_LINES {
            self.left_out += 1;
            return;
        }
        self.lines += 1;
        let text = printable(&String::from_utf8_lossy(line), LONGEST_LINE);
        info!(worker = self.program, pid = self.pid, "{text}");
    }

    fn end(&mut self) {
        let lines = std::mem::take(&mut self.left_out);
        if lines > 0 {
            warn!(
                worker = self.program,
                pid = self.pid,
                lines,
                "a worker writes more than the log takes; lines are left out"
            );
        }
    }
}

/// Why a task has no outcome, in words.
pub(super) fn cause(why: &str, how: Option<String>) -> Cause {
    match how {
        Some(how) => Cause::new(format!("{why} ({how})")),
        None => Cause::new(why.to_owned()),
    }
}
