//! The yardstick of the sinks: how fast each hands tasks over, beside what its broker takes from a bare loop that sends the very
//! same bytes, in the same run.
//!
//! A measurement, and no test: it asserts nothing about speed, and is run by `benches/run.sh sinks`. Each figure is the median
//! of three rounds, in which sink and bare loop take turns. CPU is that of the thread which the sink runs on; the broker's is
//! not in it.

mod answers;
mod exec;
#[cfg(feature = "kafka")]
mod kafka;
mod places;
mod replay;
mod tap;
mod webhook;

use std::borrow::Cow;
use std::time::{Duration, Instant};

use aftercommit::outbox::{Field, Position, TableName, Task};
use aftercommit::pg::{Lsn, Timestamp};
use aftercommit::sink::marks::{History, Scope, Settled, Terms};
use aftercommit::sink::{Outcome, Sink};
use tokio::runtime::Runtime;

use self::answers::Protocol;
use self::replay::Replay;
use self::tap::{Recording, Tap};

/// As a lane hands them over.
const BATCH: usize = 3_000;
const ROUNDS: usize = 3;
/// Tasks that go one by one, for the latency.
const SINGLE: usize = 300;

/// A broker, and the sink that is measured on it.
trait Place {
    /// A sink that connects to this port.
    fn sink(&self, port: u16) -> Box<dyn Sink>;
    /// Where the broker listens.
    fn port(&self) -> u16;
    /// How its answers are counted.
    fn protocol(&self) -> Protocol;
    /// As if nothing had been sent yet.
    fn reset(&mut self);
}

/// Tasks in batches, and then one by one.
struct Load {
    batches: Vec<Vec<Task>>,
    count: usize,
}

impl Load {
    /// So many tasks over so many keys; 0: without keys. Each has some 300 bytes of arguments.
    fn new(count: usize, keys: usize) -> Load {
        let position = Position {
            commit_lsn: Lsn(0x100),
            ordinal: 0,
        };
        let kwargs = format!("{{\"text\": \"{}\"}}", "x".repeat(280));
        let task = |n: usize| {
            let id = format!("7b1f9a52-9c1c-4b1c-8a1e-{n:012}");
            let key = (n % keys.max(1)).to_string();
            let mut fields = vec![
                (Field::Id, id.as_str()),
                (Field::Task, "shop.tasks.paid"),
                (Field::Kwargs, kwargs.as_str()),
            ];
            fields.extend((keys > 0).then_some((Field::Key, key.as_str())));
            let ordinal = n as u64;
            let position = Position {
                ordinal,
                ..position
            };
            Task::from_fields(fields, position, Timestamp(848_000_000_000_000))
        };
        let all: Vec<Task> = (0..count + SINGLE).map(task).collect();
        let (many, single) = all.split_at(count);
        let mut batches: Vec<Vec<Task>> = many.chunks(BATCH).map(<[Task]>::to_vec).collect();
        batches.extend(single.chunks(1).map(<[Task]>::to_vec));
        Load { batches, count }
    }
}

/// One run: how long the batches took, how much of the processor, and each single one.
struct Run {
    time: Duration,
    processor: Duration,
    single: Vec<Duration>,
}

impl Run {
    /// Measures `go`, which does the next batch each time it is called.
    async fn measure(load: &Load, mut go: impl AsyncFnMut(&[Task])) -> Run {
        let (single, many) = (load.batches.len() - SINGLE, load.batches.iter());
        let (start, used) = (Instant::now(), thread_time());
        for batch in many.clone().take(single) {
            go(batch).await;
        }
        let (time, processor) = (start.elapsed(), thread_time() - used);
        let mut each = Vec::with_capacity(SINGLE);
        for batch in many.skip(single) {
            let start = Instant::now();
            go(batch).await;
            each.push(start.elapsed());
        }
        each.sort();
        Run {
            time,
            processor,
            single: each,
        }
    }

    fn rate(&self, load: &Load) -> f64 {
        load.count as f64 / self.time.as_secs_f64()
    }

    /// Microseconds of the processor for a task.
    fn cost(&self, load: &Load) -> f64 {
        self.processor.as_secs_f64() * 1e6 / load.count as f64
    }

    /// Milliseconds that so many in a hundred did not exceed.
    fn latency(&self, percent: usize) -> f64 {
        let at = (self.single.len() * percent / 100).min(self.single.len() - 1);
        self.single[at].as_secs_f64() * 1e3
    }
}

/// What this thread has used of the processor: in nanoseconds, of `/proc/thread-self/schedstat`, proc(5).
fn thread_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("proc(5)");
    let first = text.split(' ').next().and_then(|ns| ns.parse().ok());
    Duration::from_nanos(first.expect("a number"))
}

/// Hands a batch over as a lane does: what was left unsent comes again, and on terms, so that what the sink keeps of marks is
/// in the figures.
async fn through(sink: &mut Box<dyn Sink>, batch: &[Task]) {
    let table = TableName::ours();
    let history = History {
        system_id: 7,
        timeline: 1,
        slot: "aftercommit",
        table: &table,
    };
    let mut left: Cow<'_, [Task]> = batch.into();
    while !left.is_empty() {
        let terms = Terms {
            scope: Scope::new(&history, "measured", 0, 1),
            turn: 1,
            settled: Settled::default(),
        };
        let outcomes = sink.deliver_once(&left, terms).await;
        let outcomes = outcomes.expect("the broker is there");
        let done = [Outcome::Delivered, Outcome::Unsent];
        let all = outcomes.iter().all(|it| done.contains(it));
        assert!(all, "all is delivered");
        let unsent = left.iter().zip(&outcomes);
        let unsent = unsent.filter(|(_, it)| **it == Outcome::Unsent);
        left = unsent.map(|(task, _)| task.clone()).collect();
    }
}

/// What the sink sends, by connection and batch.
async fn record(place: &mut impl Place, load: &Load) -> Vec<Recording> {
    place.reset();
    let tap = Tap::on(place.port());
    let mut sink = place.sink(tap.port());
    for batch in &load.batches {
        through(&mut sink, batch).await;
        tap.mark();
    }
    tap.recordings()
}

/// Measures a sink beside the bare loop, and prints a line of the table.
fn measure(name: &str, keys: usize, count: usize, place: &mut impl Place) {
    let runtime = runtime();
    let load = Load::new(count, keys);
    let recordings = runtime.block_on(record(place, &load));
    compare(name, keys, &load, || {
        let ours = runtime.block_on(of_sink(place, &load));
        place.reset();
        let (port, protocol) = (place.port(), place.protocol());
        let bare = runtime.block_on(async {
            let mut replay = Replay::to(port, protocol, &recordings).await;
            Run::measure(&load, async |_| replay.next().await).await
        });
        (ours, bare)
    });
}

/// One thread, whose time is that of what is measured.
fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime")
}

/// A run of a place's sink.
async fn of_sink(place: &mut impl Place, load: &Load) -> Run {
    place.reset();
    let mut sink = place.sink(place.port());
    Run::measure(load, async |batch| through(&mut sink, batch).await).await
}

/// A line of the table: medians of some rounds, each of which is a run of the sink and one of the bare loop.
fn compare(name: &str, keys: usize, load: &Load, mut round: impl FnMut() -> (Run, Run)) {
    let (mut ours, mut bare): (Vec<Run>, Vec<Run>) = (0..ROUNDS).map(|_| round()).unzip();
    for runs in [&mut ours, &mut bare] {
        runs.sort_by_key(|run| run.time);
    }
    let (ours, bare) = (&ours[ROUNDS / 2], &bare[ROUNDS / 2]);
    println!(
        "| {name} | {keys} | {:.0} | {:.0} | **{:.2}** | {:.2} | {:.2} | {:.2} / {:.2} | {:.2} / {:.2} |",
        ours.rate(load),
        bare.rate(load),
        ours.rate(load) / bare.rate(load),
        ours.cost(load),
        bare.cost(load),
        ours.latency(50),
        ours.latency(99),
        bare.latency(50),
        bare.latency(99),
    );
}

/// All sinks, one after the other.
#[test]
#[ignore = "a measurement: benches/run.sh sinks"]
fn sinks() {
    println!(
        "| sink | keys | tasks a second | the broker's own limit | ratio | CPU, µs a task | the bare loop's | one task, p50 / p99 ms | the bare loop's |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    // SINKS=redis,nats measures some of them.
    let wanted = std::env::var("SINKS").unwrap_or_default();
    let wanted = |name: &str| wanted.is_empty() || wanted.split(',').any(|it| it == name);
    places::all(&wanted);
    if wanted("webhook") {
        webhook::measure();
    }
    if wanted("exec") {
        exec::measure();
    }
    #[cfg(feature = "kafka")]
    if wanted("kafka") {
        kafka::measure();
    }
}
