//! The trial: servers, writers, and daemons that are watched from their start to their end; and the checker that every row
//! ends with.

use std::collections::HashSet;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::outlet::{Found, Other, Place};
use super::sheet::Sheet;
use super::{LAG, MEMORY, Outlet, STOPS_WITHIN, by_profile};
use crate::support::daemon::Daemon;
use crate::support::exam::ledger::{Delivery, Receipt};
use crate::support::exam::load::Load;
use crate::support::exam::{Exam, indiscretions, processor_time};
use crate::support::redis::Options;
use crate::support::wait::PATIENCE;

/// While a peer is down, a daemon uses less than this of a core. The quick profile has a debug build, beside other tests; one
/// that turns without end uses all of a core.
pub(super) fn calm() -> f64 {
    by_profile(0.5, 0.25)
}
/// After so long without a new delivery, what was sent has been seen. RabbitMQ hands nothing on while it waits for its disk.
fn quiet() -> Duration {
    by_profile(Duration::from_millis(200), Duration::from_secs(1))
}
/// How long the next task may take to come. Long: it only runs out when something is wrong.
const SETTLES_WITHIN: Duration = Duration::from_secs(120);

/// A configuration with something else in one place.
pub(super) fn edited(config: &str, from: &str, to: &str) -> String {
    assert!(
        config.contains(from),
        "{from:?} is not in the configuration"
    );
    config.replace(from, to)
}

/// A configuration of [`Exam::config`] with another sink.
fn with_sink(config: &str, sink: &str) -> String {
    let (before, rest) = config
        .split_once("[sink.celery.workers]")
        .expect("the sink");
    let (_, routes) = rest.split_once("[[route]]").expect("the route");
    format!("{before}{sink}\n[[route]]{routes}")
}

/// One sitting of a row.
pub(super) struct Trial {
    pub(super) exam: Exam,
    pub(super) sheet: Sheet,
    pub(super) outlet: Outlet,
    pub(super) place: Box<dyn Place>,
    found: Found,
    /// Those that did not come to the outlet.
    elsewhere: Vec<Delivery>,
    /// Different ids among them.
    known: HashSet<String>,
    /// How many deliveries there were, and when.
    looks: Vec<(Instant, usize)>,
    memory: u64,
}

impl Trial {
    /// Private servers, and nothing running yet.
    pub(super) fn new(sheet: &Sheet, outlet: Outlet) -> Trial {
        Trial::on(sheet, outlet, Exam::start())
    }

    /// As [`new`](Trial::new), with a broker that can be stopped and killed, and keeps what it has acknowledged.
    pub(super) fn durable(sheet: &Sheet, outlet: Outlet) -> Trial {
        let exam = Exam::start_with(Options {
            durable: true,
            ..Options::default()
        });
        let place = outlet.open(true);
        Trial::with(sheet, outlet, exam, place)
    }

    /// As [`new`](Trial::new), with a broker that can be stopped.
    pub(super) fn own(sheet: &Sheet, outlet: Outlet) -> Trial {
        let place = outlet.open(true);
        Trial::with(sheet, outlet, Exam::start(), place)
    }

    /// As [`new`](Trial::new), on servers that are there.
    pub(super) fn on(sheet: &Sheet, outlet: Outlet, exam: Exam) -> Trial {
        let place = outlet.open(false);
        Trial::with(sheet, outlet, exam, place)
    }

    fn with(sheet: &Sheet, outlet: Outlet, exam: Exam, place: Box<dyn Place>) -> Trial {
        Trial {
            exam,
            sheet: sheet.clone(),
            outlet,
            place,
            found: Found::default(),
            elsewhere: Vec::new(),
            known: HashSet::new(),
            looks: Vec::new(),
            memory: MEMORY,
        }
    }

    /// The row has a bound of its own on the peak memory of daemons that are started from now on, in bytes.
    pub(super) fn allow_memory(&mut self, most: u64) {
        self.memory = most;
    }

    /// The configuration of a daemon that sends everything to the outlet.
    pub(super) fn config(&self) -> String {
        self.config_by(&self.exam.postgres_url(), None)
    }

    /// As [`config`](Trial::config), by way of another URL of the database, and another port of the broker.
    pub(super) fn config_by(&self, postgres_url: &str, broker_port: Option<u16>) -> String {
        let config = self.config_through(postgres_url, &self.exam.redis.url(0));
        if self.outlet == Outlet::Redis && broker_port.is_none() {
            return config;
        }
        let port = broker_port.unwrap_or_else(|| match self.outlet {
            Outlet::Stdout | Outlet::Exec => 0,
            _ => self.broker_port(),
        });
        with_sink(&config, &self.place.sink(&self.exam, port))
    }

    /// As [`config`](Trial::config), with the secrets of the sink in a file.
    pub(super) fn config_from(&self, file: &Path) -> String {
        let config = self.config_through(&self.exam.postgres_url(), &self.exam.redis.url(0));
        with_sink(&config, &self.place.sink_from(file))
    }

    /// The configuration of a daemon that pushes everything to Redis, by way of other URLs.
    pub(super) fn config_through(&self, postgres_url: &str, broker_url: &str) -> String {
        self.exam.config_through(postgres_url, broker_url)
    }

    /// Where the broker listens, for a proxy.
    pub(super) fn broker_port(&self) -> u16 {
        self.place.port(&self.exam)
    }

    /// SIGSTOP of the broker.
    pub(super) fn stop_broker(&mut self) {
        self.place.stop(&self.exam);
    }

    /// SIGCONT of the broker.
    pub(super) fn cont_broker(&mut self) {
        self.place.cont(&self.exam);
    }

    /// kill -9 of the broker.
    pub(super) fn kill_broker(&mut self) {
        self.place.kill9(&mut self.exam);
    }

    /// The broker is back.
    pub(super) fn restart_broker(&mut self) {
        self.place.restart(&mut self.exam);
    }

    /// Starts a daemon, which is watched until its end.
    pub(super) fn start(&mut self, config: &str) -> Life {
        self.start_with(config, &[])
    }

    /// As [`start`](Trial::start), with environment variables.
    pub(super) fn start_with(&mut self, config: &str, environment: &[(&str, &str)]) -> Life {
        let stdout = self.place.stdout();
        let daemon = Daemon::start_with(config, |command| {
            command.envs(environment.iter().copied());
            stdout.map(|file| command.stdout(file));
        });
        Life::watch(daemon, &self.sheet, self.memory)
    }

    /// As [`start`](Trial::start), with its log written elsewhere.
    pub(super) fn start_logging_to(&mut self, stderr: Stdio, config: &str) -> Life {
        let stdout = self.place.stdout();
        let daemon = Daemon::start_logging_to(stderr, config, |command| {
            stdout.map(|file| command.stdout(file));
        });
        Life::watch(daemon, &self.sheet, self.memory)
    }

    /// Writers on three connections, which keep a daemon busy at some 1,000 rows a second; or one, for a small part of it.
    pub(super) fn load(&self) -> Load {
        match self.outlet.gently(10) {
            10 => self.exam.load(3, Duration::from_millis(120)),
            _ => self.light_load(Duration::from_millis(200)),
        }
    }

    /// A writer with so long a pause between transactions, at most; ten times as long where the outlet is slow.
    pub(super) fn light_load(&self, pause: Duration) -> Load {
        let pause = pause * 10 / self.outlet.gently(10) as u32;
        self.exam.load(1, pause)
    }

    /// These have been delivered too, elsewhere; in the order of a list of Redis, the last one first.
    pub(super) fn deliver_also(&mut self, messages: &[Vec<u8>]) {
        let messages = messages.iter().rev();
        self.elsewhere
            .extend(messages.map(|message| Delivery::of_celery(message)));
    }

    /// What was delivered so far, in order, with what came twice.
    pub(super) async fn deliveries(&mut self) -> &[Delivery] {
        let before = self.found.rows.len();
        self.place.read(&self.exam, &mut self.found);
        let new = self.found.rows[before..].iter().map(|it| it.id.clone());
        self.known.extend(new);
        self.looks.push((Instant::now(), self.found.rows.len()));
        &self.found.rows
    }

    /// What else has come, of tasks that the checker does not know.
    pub(super) async fn others(&mut self) -> Vec<Other> {
        self.deliveries().await;
        let mut others = self.found.others.clone();
        others.extend(self.place.elsewhere(&self.exam));
        others
    }

    /// How many different tasks were delivered so far.
    pub(super) async fn different(&mut self) -> usize {
        self.deliveries().await;
        self.known.len()
    }

    /// How many deliveries there were at `time`, at most; as far as was looked.
    pub(super) fn at(&self, time: Instant) -> usize {
        let before = self.looks.iter().rev().find(|(at, _)| *at <= time);
        before.map_or(0, |(_, count)| *count)
    }

    /// Looks on for so long.
    pub(super) async fn look_on(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(Duration::from_millis(20))).await;
            self.deliveries().await;
        }
    }

    /// Waits until all that was sent is seen, while nobody sends.
    pub(super) async fn wait_for_the_last(&mut self) {
        let mut last = Instant::now();
        while self.outlet.is_seen_late() && last.elapsed() < quiet() {
            let before = self.found.rows.len();
            if self.deliveries().await.len() > before {
                last = Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until so many different tasks have been delivered.
    pub(super) async fn wait_for(&mut self, different: usize) {
        let (mut last, mut so_far) = (Instant::now(), self.known.len());
        while self.different().await < different {
            if self.known.len() > so_far {
                (last, so_far) = (Instant::now(), self.known.len());
            }
            assert!(
                last.elapsed() < SETTLES_WITHIN,
                "{so_far} of {different} tasks have come, and no more"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until nothing more has come for a second.
    pub(super) async fn wait_for_silence(&mut self) {
        let (start, mut last) = (Instant::now(), Instant::now());
        while last.elapsed() < Duration::from_secs(1) {
            assert!(start.elapsed() < PATIENCE, "it goes on and on");
            let before = self.found.rows.len();
            if self.deliveries().await.len() > before {
                last = Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits for a task that has not come before; how long that took from `healed` on is the row's recovery time.
    pub(super) async fn recovery(&mut self, healed: Instant, within: Duration) {
        let before = self.different().await;
        self.wait_for(before + 1).await;
        self.sheet.time("recovery", healed.elapsed(), within);
    }

    /// The checker. The writers have stopped; what is under way comes. No more than so many come twice. What counts is what
    /// is there now, and not what was seen once.
    pub(super) async fn check(&mut self, duplicates: usize) -> Receipt {
        let written = self.exam.written().await;
        self.wait_for_the_last().await;
        self.place.rewind();
        self.found = Found::default();
        self.known.clear();
        let (mut last, mut so_far) = (Instant::now(), 0);
        let receipt = loop {
            let held = self.exam.held().await;
            let elsewhere = self.elsewhere.len();
            let expected = written.len().saturating_sub(held.len() + elsewhere);
            let come = self.different().await;
            // A queue of hundreds of thousands is read for a while.
            if come > so_far {
                (last, so_far) = (Instant::now(), come);
            }
            let late = last.elapsed() > SETTLES_WITHIN;
            if come >= expected || late {
                self.wait_for_the_last().await;
                let all = [self.found.rows.as_slice(), &self.elsewhere].concat();
                let receipt = Receipt::new(&written, &all, &held);
                if receipt.lost.is_empty() || late {
                    break receipt;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        self.sheet.count("lost", receipt.lost.len(), 0);
        self.sheet.count("invented", receipt.invented.len(), 0);
        self.sheet.count("out of order", receipt.disorder.len(), 0);
        self.sheet.count("twice", receipt.duplicates, duplicates);
        self.sheet.at_least("committed", receipt.committed, 1);
        receipt
    }

    /// The checker, and the end of a row: the slot is back, and the last daemon stops in order.
    pub(super) async fn conclude(&mut self, mut life: Life, duplicates: usize) -> Receipt {
        let receipt = self.check(duplicates).await;
        self.check_lag().await;
        life.stop().await;
        receipt
    }

    /// The slot is back behind the end of the WAL, or was not when patience ended.
    pub(super) async fn check_lag(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let lag = self.lag();
            if lag <= LAG || Instant::now() > deadline {
                return self.sheet.wal("lag", lag, LAG);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// How far the slot is behind the end of the WAL, in bytes.
    pub(super) fn lag(&self) -> u64 {
        let sql = "select greatest(0, pg_current_wal_lsn() - confirmed_flush_lsn)::int8
            from pg_replication_slots where slot_type = 'logical'";
        self.exam.postgres.psql(sql).parse().expect("a number")
    }
}

/// A daemon that is watched: its memory all the time, its log at its end.
pub(super) struct Life {
    daemon: Daemon,
    sheet: Sheet,
    memory: u64,
    peak: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Life {
    /// Watches a daemon from now on; its peak memory is to stay below so many bytes.
    pub(super) fn watch(daemon: Daemon, sheet: &Sheet, memory: u64) -> Life {
        let (peak, over) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        std::thread::spawn({
            let (peak, over, pid) = (peak.clone(), over.clone(), daemon.pid());
            move || {
                while !over.load(Ordering::Relaxed) {
                    peak.fetch_max(Daemon::peak_rss_of(pid), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        });
        Life {
            daemon,
            sheet: sheet.clone(),
            memory,
            peak,
            over,
        }
    }

    /// Where it is taken down.
    pub(super) fn sheet(&self) -> &Sheet {
        &self.sheet
    }

    /// SIGTERM; it has to end in order, and in time.
    pub(super) async fn stop(&mut self) {
        let start = Instant::now();
        let status = self.terminate().await;
        self.exits(status, 0);
        self.sheet.time("stop", start.elapsed(), STOPS_WITHIN);
    }

    /// It has ended; with the code that it has to?
    pub(super) fn exits(&self, status: ExitStatus, expected: i32) {
        let code = status.code();
        self.sheet
            .count("wrong exits", usize::from(code != Some(expected)), 0);
        if code != Some(expected) {
            let words = format!("exit code {code:?} and not {expected}");
            self.sheet.note(words);
        }
    }

    /// Waits until it has ended by itself, with this code.
    pub(super) async fn ends(&mut self, expected: i32) {
        let status = self.ended(PATIENCE).await;
        self.exits(status, expected);
    }

    /// A peer is down from now on.
    pub(super) fn peer_down(&self) -> Down {
        Down {
            since: Instant::now(),
            used: processor_time(&self.daemon),
        }
    }

    /// The peer is back: how much of the processor was used meanwhile?
    pub(super) fn peer_up(&self, down: &Down) {
        let used = processor_time(&self.daemon).saturating_sub(down.used);
        let share = used.as_secs_f64() / down.since.elapsed().as_secs_f64();
        self.sheet.cores("while down", share, calm());
    }
}

/// When a peer went down, and what the daemon had used of the processor by then.
pub(super) struct Down {
    since: Instant,
    used: Duration,
}

impl Deref for Life {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl DerefMut for Life {
    fn deref_mut(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let peak = Daemon::peak_rss_of(self.daemon.pid()).max(self.peak.load(Ordering::Relaxed));
        self.sheet.memory(peak, self.memory);
        let found = indiscretions(&self.daemon).len();
        self.sheet.count("indiscretions", found, 0);
        let printed = self.daemon.stdout().len();
        self.sheet.count("stray output", printed, 0);
    }
}
