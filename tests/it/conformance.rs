//! The contract of `Sink`, as tests that every sink passes. A new sink is one `Subject` and one line at the end.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use aftercommit::outbox::{Field, Position, TableName, Task};
use aftercommit::pg::{Lsn, Timestamp};
use aftercommit::sink::celery;
use aftercommit::sink::marks::{History, Scope, Settled, Terms};
use aftercommit::sink::nats::Config as NatsConfig;
use aftercommit::sink::stdout::Stdout;
use aftercommit::sink::{Cause, Delivery, Outage, Outcome, Probe, Settings as _, Sight, Sink};
use tokio::io::AsyncWrite;

use crate::support::nats::{Nats, STREAM};
use crate::support::redis::{Options, Redis};

type Fields = &'static [(Field, &'static str)];

/// A sink, the place behind it, and what makes it refuse.
trait Subject {
    /// A new sink to the same place.
    fn sink(&self) -> Box<dyn Sink>;
    /// The ids that have arrived, in order.
    fn received(&self) -> Vec<String>;
    /// Takes the place away, or brings it back with what it has kept.
    fn set_away(&mut self, away: bool);
    /// Fields that make a task one which the sink rejects.
    fn rejected(&self) -> Fields;
    /// Fields that make a task one which the sink answers with `Retry`; none, if it never does.
    fn retried(&self) -> Option<Fields>;
    /// Whether all tasks stay in their order, and not only those of each key, which is what the contract asks for.
    fn orders_all(&self) -> bool {
        true
    }
    /// Whether a look at the place tells that it is away.
    fn sees_that_it_is_away(&self) -> bool {
        true
    }
}

fn task(id: &str, key: Option<&str>, fields: &[(Field, &str)]) -> Task {
    let mut all = vec![
        (Field::Id, id),
        (Field::Task, "app.tasks.work"),
        (Field::Kwargs, "{\"n\": 1}"),
    ];
    all.extend(key.map(|key| (Field::Key, key)));
    all.extend_from_slice(fields);
    let position = Position {
        commit_lsn: Lsn(0x100),
        ordinal: 0,
    };
    Task::from_fields(all, position, Timestamp(848_000_000_000_000))
}

/// `count` tasks named `<prefix>-<n>`, over three keys and none.
fn batch(prefix: &str, count: usize) -> Vec<Task> {
    let keys = [Some("a"), Some(""), None, Some("b")];
    (0..count)
        .map(|n| task(&format!("{prefix}-{n}"), keys[n % keys.len()], &[]))
        .collect()
}

fn ids(tasks: &[Task]) -> Vec<String> {
    tasks.iter().map(|task| task.id().to_owned()).collect()
}

async fn deliver(sink: &mut Box<dyn Sink>, tasks: &[Task]) -> Vec<Outcome> {
    let outcomes = sink.deliver(tasks).await.expect("the place is there");
    assert_eq!(outcomes.len(), tasks.len(), "one outcome per task");
    outcomes
}

fn all_delivered(outcomes: &[Outcome]) -> bool {
    outcomes
        .iter()
        .all(|outcome| *outcome == Outcome::Delivered)
}

/// These tasks have arrived, each once, and in order.
fn assert_arrived(subject: &impl Subject, received: Vec<String>, expected: &[Task]) {
    if subject.orders_all() {
        return assert_eq!(received, ids(expected));
    }
    let all = |mut ids: Vec<String>| {
        ids.sort();
        ids
    };
    assert_eq!(all(received.clone()), all(ids(expected)));
    let keys: std::collections::HashSet<&[u8]> = expected.iter().filter_map(Task::key).collect();
    for key in keys {
        let of_key = expected.iter().filter(|task| task.key() == Some(key));
        let of_key: Vec<String> = of_key.map(|task| task.id().to_owned()).collect();
        let came = received.iter().filter(|id| of_key.contains(id));
        assert_eq!(came.cloned().collect::<Vec<_>>(), of_key);
    }
}

/// Drops repeats, which are allowed after a delivery with an unknown end.
fn first_ones(ids: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    ids.into_iter()
        .filter(|id| seen.insert(id.clone()))
        .collect()
}

async fn what_is_delivered_has_arrived_in_order(subject: impl Subject) {
    let mut sink = subject.sink();
    assert!(deliver(&mut sink, &[]).await.is_empty());
    let mut expected = Vec::new();
    for (n, count) in [1, 2, 500, 1, 37].into_iter().enumerate() {
        let tasks = batch(&format!("{n}"), count);
        assert!(all_delivered(&deliver(&mut sink, &tasks).await));
        expected.extend(tasks);
        // What is delivered is there to be read.
        assert_arrived(&subject, subject.received(), &expected);
    }
    // Another sink to the same place, as after a restart.
    let tasks = batch("again", 3);
    assert!(all_delivered(&deliver(&mut subject.sink(), &tasks).await));
    expected.extend(tasks);
    assert_arrived(&subject, subject.received(), &expected);
}

async fn a_rejected_task_harms_no_neighbour(subject: impl Subject) {
    not_delivered(&subject, subject.rejected(), |outcome| {
        matches!(outcome, Outcome::Reject(_))
    })
    .await;
}

async fn a_retried_task_harms_no_neighbour(subject: impl Subject) {
    if let Some(fields) = subject.retried() {
        not_delivered(&subject, fields, |outcome| {
            matches!(outcome, Outcome::Retry(_))
        })
        .await;
    }
}

async fn not_delivered(subject: &impl Subject, fields: Fields, expected: fn(&Outcome) -> bool) {
    let mut sink = subject.sink();
    let tasks = [
        task("1", Some("a"), &[]),
        task("2", Some("a"), fields),
        task("3", Some("a"), &[]),
        task("4", Some("b"), &[]),
        task("5", None, fields),
        task("6", None, &[]),
        task("7", Some("a"), &[]),
    ];
    let outcomes = deliver(&mut sink, &tasks).await;
    let delivered = |n: usize| outcomes[n - 1] == Outcome::Delivered;
    assert!(
        expected(&outcomes[1]) && expected(&outcomes[4]),
        "{outcomes:?}"
    );
    assert!(delivered(1) && delivered(4) && delivered(6), "{outcomes:?}");
    // The key waits behind its task: later ones may come again, and must not have overtaken it.
    for later in [3, 7] {
        assert!(
            matches!(outcomes[later - 1], Outcome::Retry(_)),
            "{outcomes:?}"
        );
    }
    assert_eq!(subject.received(), ["1", "4", "6"]);
    // The lane goes on with what is left.
    assert!(all_delivered(
        &deliver(
            &mut sink,
            &[task("3", Some("a"), &[]), task("7", Some("a"), &[])]
        )
        .await
    ));
    assert_eq!(subject.received(), ["1", "4", "6", "3", "7"]);
    // A batch of nothing else.
    let outcomes = deliver(&mut sink, &[task("8", None, fields)]).await;
    assert!(expected(&outcomes[0]), "{outcomes:?}");
    assert_eq!(subject.received().len(), 5);
}

async fn an_outage_loses_nothing(mut subject: impl Subject) {
    let (before, during, after) = (batch("before", 5), batch("during", 5), batch("after", 5));
    let mut sink = subject.sink();
    assert!(all_delivered(&deliver(&mut sink, &before).await));
    subject.set_away(true);
    for _ in 0..3 {
        let Outage(cause) = sink.deliver(&during).await.expect_err("it is away");
        assert!(!cause.to_string().is_empty());
    }
    subject.set_away(false);
    assert!(all_delivered(&deliver(&mut sink, &during).await));
    assert!(all_delivered(&deliver(&mut sink, &after).await));
    let expected = [before, during, after].concat();
    assert_arrived(&subject, first_ones(subject.received()), &expected);
}

async fn a_place_that_is_away_at_first_is_found_later(mut subject: impl Subject) {
    subject.set_away(true);
    let mut sink = subject.sink();
    let tasks = batch("n", 5);
    sink.deliver(&tasks).await.expect_err("it is away");
    subject.set_away(false);
    assert!(all_delivered(&deliver(&mut sink, &tasks).await));
    assert_arrived(&subject, first_ones(subject.received()), &tasks);
}

async fn a_look_tells_whether_the_place_is_there_and_changes_nothing(mut subject: impl Subject) {
    let mut sink = subject.sink();
    let tasks = batch("n", 3);
    assert!(all_delivered(&deliver(&mut sink, &tasks).await));
    let is_fault = |sight: &Sight| matches!(sight, Sight::Fault(..));
    let seen = sink.probe().await;
    assert!(!seen.is_empty() && !seen.iter().any(is_fault), "{seen:?}");
    if subject.sees_that_it_is_away() {
        subject.set_away(true);
        let seen = sink.probe().await;
        assert!(seen.iter().any(is_fault), "{seen:?}");
        subject.set_away(false);
        let seen = sink.probe().await;
        assert!(!seen.iter().any(is_fault), "{seen:?}");
    }
    assert_arrived(&subject, subject.received(), &tasks);
    let more = batch("m", 3);
    assert!(all_delivered(&deliver(&mut sink, &more).await));
}

async fn the_same_id_may_come_again(subject: impl Subject) {
    let mut sink = subject.sink();
    let tasks = batch("n", 8);
    for _ in 0..3 {
        assert!(all_delivered(&deliver(&mut sink, &tasks).await));
    }
    assert_arrived(&subject, first_ones(subject.received()), &tasks);
}

async fn a_delivery_may_be_dropped_at_any_await(subject: impl Subject) {
    let mut sink = subject.sink();
    let mut expected = Vec::new();
    for polls in 0..40 {
        let tasks = batch(&format!("{polls}"), 20);
        {
            let mut delivery = sink.deliver(&tasks);
            let mut left = polls;
            std::future::poll_fn(|cx| {
                if left == 0 || delivery.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                left -= 1;
                cx.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
        }
        assert!(all_delivered(&deliver(&mut sink, &tasks).await));
        expected.extend(tasks);
    }
    assert_arrived(&subject, first_ones(subject.received()), &expected);
}

async fn large_and_small_tasks_go_together(subject: impl Subject) {
    let mut sink = subject.sink();
    let large = format!("{{\"text\": \"{}\"}}", "żółć\\n".repeat(200_000));
    let tasks: Vec<Task> = (0..9)
        .map(|n| {
            let kwargs = if n % 3 == 1 { &large } else { "{}" };
            task(&format!("{n}"), Some("k"), &[(Field::Kwargs, kwargs)])
        })
        .collect();
    assert!(all_delivered(&deliver(&mut sink, &tasks).await));
    assert_eq!(subject.received(), ids(&tasks));
}

macro_rules! conforms {
    // A subject that cannot be had everywhere: where it is not there, which it says, the tests are skipped.
    ($name:ident, when $there:expr => $subject:expr) => {
        conforms!(@all $name, $there.then(|| $subject));
    };
    ($name:ident, $subject:expr) => {
        conforms!(@all $name, Some($subject));
    };
    (@all $name:ident, $subject:expr) => {
        conforms!($name, $subject,
            what_is_delivered_has_arrived_in_order
            a_rejected_task_harms_no_neighbour
            a_retried_task_harms_no_neighbour
            an_outage_loses_nothing
            a_place_that_is_away_at_first_is_found_later
            a_look_tells_whether_the_place_is_there_and_changes_nothing
            the_same_id_may_come_again
            a_delivery_may_be_dropped_at_any_await
            large_and_small_tasks_go_together
        );
    };
    ($name:ident, $subject:expr, $($test:ident)*) => {
        mod $name {
            $(
                #[tokio::test]
                async fn $test() {
                    if let Some(subject) = $subject {
                        super::$test(subject).await;
                    }
                }
            )*
        }
    };
}

conforms!(memory, super::Memory::default());
conforms!(stdout, super::Lines::default());
conforms!(celery_on_redis, super::CeleryOnRedis::start());
conforms!(
    celery_on_redis_with_marks,
    super::WithMarks(super::CeleryOnRedis::start())
);
conforms!(
    jetstream,
    when crate::support::nats::is_there() => super::OnNats::start()
);

/// The smallest sink that conforms: what the suite itself is tried on.
#[derive(Default, Clone)]
struct Memory(Arc<Mutex<(Vec<String>, bool)>>);

impl Subject for Memory {
    fn sink(&self) -> Box<dyn Sink> {
        Box::new(self.clone())
    }

    fn received(&self) -> Vec<String> {
        self.0.lock().unwrap().0.clone()
    }

    fn set_away(&mut self, away: bool) {
        self.0.lock().unwrap().1 = away;
    }

    fn rejected(&self) -> Fields {
        &[(Field::Queue, "reject")]
    }

    fn retried(&self) -> Option<Fields> {
        Some(&[(Field::Queue, "retry")])
    }
}

impl Sink for Memory {
    fn probe(&mut self) -> Probe<'_> {
        let sight = match self.0.lock().unwrap().1 {
            true => Sight::Fault("away".to_owned(), "wait".to_owned()),
            false => Sight::Good("here".to_owned()),
        };
        Box::pin(std::future::ready(vec![sight]))
    }

    fn deliver<'a>(&'a mut self, batch: &'a [Task]) -> Delivery<'a> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut place = self.0.lock().unwrap();
            if place.1 {
                return Err(Outage(Cause::new("away")));
            }
            let mut stopped = Vec::new();
            let outcome = |task: &Task| {
                let behind = task
                    .key()
                    .is_some_and(|key| stopped.contains(&key.to_vec()));
                let outcome = match task.text(Field::Queue) {
                    _ if behind => return Outcome::Retry(Cause::new("behind")),
                    Some("reject") => Outcome::Reject(Cause::new("rejected")),
                    Some("retry") => Outcome::Retry(Cause::new("retried")),
                    _ => {
                        place.0.push(task.id().to_owned());
                        return Outcome::Delivered;
                    }
                };
                stopped.extend(task.key().map(<[u8]>::to_vec));
                outcome
            };
            Ok(batch.iter().map(outcome).collect())
        })
    }
}

/// `stdout`, on a pipe that takes a few bytes at a time.
#[derive(Default, Clone)]
struct Lines(Arc<Mutex<Pipe>>);

#[derive(Default)]
struct Pipe {
    taken: Vec<u8>,
    calls: usize,
    closed: bool,
}

impl Subject for Lines {
    fn sink(&self) -> Box<dyn Sink> {
        Box::new(Stdout::new(self.clone()))
    }

    fn received(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().taken.clone()).expect("UTF-8");
        assert!(
            text.is_empty() || text.ends_with('\n'),
            "a torn line at the end"
        );
        let id = |line: &str| {
            let line: serde_json::Value =
                serde_json::from_str(line).expect("one JSON object a line");
            line["id"].as_str().expect("an id").to_owned()
        };
        text.lines().map(id).collect()
    }

    fn set_away(&mut self, away: bool) {
        self.0.lock().unwrap().closed = away;
    }

    fn rejected(&self) -> Fields {
        &[(Field::Payload, "{no json")]
    }

    fn sees_that_it_is_away(&self) -> bool {
        false
    }

    fn retried(&self) -> Option<Fields> {
        None
    }
}

impl AsyncWrite for Lines {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let mut pipe = self.0.lock().unwrap();
        pipe.calls += 1;
        if pipe.closed {
            return Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()));
        }
        if pipe.calls.is_multiple_of(3) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let taken = bytes.len().min(1 + 37 * pipe.calls);
        pipe.taken.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct CeleryOnRedis(Redis);

impl CeleryOnRedis {
    fn start() -> CeleryOnRedis {
        CeleryOnRedis(Redis::start_with(Options {
            durable: true,
            ..Options::default()
        }))
    }
}

impl Subject for CeleryOnRedis {
    fn sink(&self) -> Box<dyn Sink> {
        let config = serde_json::json!({"broker_url": self.0.url(0)});
        let config: celery::Config = serde_json::from_value(config).unwrap();
        config.open().unwrap()
    }

    fn received(&self) -> Vec<String> {
        self.0.ids(0, "celery")
    }

    fn set_away(&mut self, away: bool) {
        if away {
            self.0.kill9()
        } else {
            self.0.restart()
        }
    }

    fn rejected(&self) -> Fields {
        &[(Field::Args, "{}")]
    }

    fn retried(&self) -> Option<Fields> {
        Some(&[(
            Field::Options,
            "{\"exchange\": \"nobody\", \"routing_key\": \"home\"}",
        )])
    }
}

/// JetStream, with a stream on disk.
struct OnNats(Nats);

impl OnNats {
    fn start() -> OnNats {
        OnNats(Nats::start_with("max_payload: 4MB\n").with_stream())
    }
}

impl Subject for OnNats {
    fn sink(&self) -> Box<dyn Sink> {
        let config =
            serde_json::json!({"url": self.0.url(), "stream": STREAM, "subject": "tasks.{task}"});
        let config: NatsConfig = serde_json::from_value(config).unwrap();
        config.open().unwrap()
    }

    fn received(&self) -> Vec<String> {
        self.0.ids()
    }

    fn set_away(&mut self, away: bool) {
        if away {
            self.0.kill9()
        } else {
            self.0.restart()
        }
    }

    fn rejected(&self) -> Fields {
        &[(Field::Headers, "{\"a\": \"b\\r\\nc: d\"}")]
    }

    fn retried(&self) -> Option<Fields> {
        Some(&[(Field::Queue, "elsewhere")])
    }

    fn orders_all(&self) -> bool {
        false
    }
}

/// A sink whose tasks are handed over on terms, as a lane does.
struct WithMarks<S>(S);

struct Marking {
    sink: Box<dyn Sink>,
    scope: Scope,
}

impl<S: Subject> Subject for WithMarks<S> {
    fn sink(&self) -> Box<dyn Sink> {
        let table = TableName::ours();
        let history = History {
            system_id: 1,
            timeline: 1,
            slot: "slot",
            table: &table,
        };
        Box::new(Marking {
            sink: self.0.sink(),
            scope: Scope::new(&history, "sink", 0, 0),
        })
    }

    /// Nothing comes twice: where the suite would overlook a repeat, this does not.
    fn received(&self) -> Vec<String> {
        let received = self.0.received();
        assert_eq!(first_ones(received.clone()), received);
        received
    }

    fn set_away(&mut self, away: bool) {
        self.0.set_away(away);
    }

    fn rejected(&self) -> Fields {
        self.0.rejected()
    }

    fn retried(&self) -> Option<Fields> {
        self.0.retried()
    }
}

impl Sink for Marking {
    fn probe(&mut self) -> Probe<'_> {
        self.sink.probe()
    }

    fn deliver<'a>(&'a mut self, batch: &'a [Task]) -> Delivery<'a> {
        // Any of them may have been delivered before.
        self.scope.generation += 1;
        let terms = Terms {
            scope: self.scope.clone(),
            turn: 1,
            settled: Settled::default(),
        };
        self.sink.deliver_once(batch, terms)
    }
}
