//! The contract of `Sink`, as tests that every sink passes. A new sink is a file here with one `Subject` and one line.

use std::collections::{HashMap, HashSet};
use std::task::Poll;

use aftercommit::outbox::{Field, Position, Task};
use aftercommit::pg::{Lsn, Timestamp};
use aftercommit::sink::{Outage, Outcome, Sight, Sink};

use crate::support::handover::hand_over;

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
    /// Whether tasks of different keys arrive in the order given, too, though nobody asks for that.
    fn keeps_all_in_order(&self) -> bool {
        true
    }
    /// Whether a look at the place tells that it is away.
    fn sees_that_it_is_away(&self) -> bool {
        true
    }
    /// How often a delivery is dropped, each time one poll later.
    fn drops(&self) -> usize {
        40
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
    hand_over(sink, tasks).await.expect("the place is there")
}

fn all_delivered(outcomes: &[Outcome]) -> bool {
    outcomes
        .iter()
        .all(|outcome| *outcome == Outcome::Delivered)
}

/// Drops repeats, which are allowed after a delivery with an unknown end.
fn first_ones(ids: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    ids.into_iter()
        .filter(|id| seen.insert(id.clone()))
        .collect()
}

/// These tasks have arrived, and no others; those of a key in the order given. Repeats are left out already.
fn assert_arrived(subject: &impl Subject, received: Vec<String>, tasks: &[Task]) {
    if subject.keeps_all_in_order() {
        assert_eq!(received, ids(tasks));
        return;
    }
    let key_of: HashMap<&str, Option<&[u8]>> =
        tasks.iter().map(|task| (task.id(), task.key())).collect();
    for id in &received {
        assert!(key_of.contains_key(id.as_str()), "{id} is of nobody");
    }
    assert_eq!(received.len(), tasks.len());
    let keys: HashSet<&[u8]> = tasks.iter().filter_map(Task::key).collect();
    for key in keys {
        let of_key = |id: &&String| key_of[id.as_str()] == Some(key);
        let received: Vec<&String> = received.iter().filter(of_key).collect();
        let tasks = tasks.iter().filter(|task| task.key() == Some(key));
        let tasks: Vec<&str> = tasks.map(Task::id).collect();
        assert_eq!(received, tasks);
    }
}

async fn what_is_delivered_has_arrived_in_order(subject: impl Subject) {
    let mut sink = subject.sink();
    assert!(deliver(&mut sink, &[]).await.is_empty());
    let mut expected = Vec::new();
    for (n, count) in [1, 2, 500, 1, 37].into_iter().enumerate() {
        let tasks = batch(&format!("{n}"), count);
        assert!(all_delivered(&deliver(&mut sink, &tasks).await));
        expected.extend(tasks);
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
    let kept = |ns: &[usize]| ns.iter().map(|n| tasks[n - 1].clone()).collect::<Vec<_>>();
    assert_arrived(subject, subject.received(), &kept(&[1, 4, 6]));
    // The lane goes on with what is left.
    assert!(all_delivered(
        &deliver(
            &mut sink,
            &[task("3", Some("a"), &[]), task("7", Some("a"), &[])]
        )
        .await
    ));
    assert_arrived(subject, subject.received(), &kept(&[1, 4, 6, 3, 7]));
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
        let Outage { cause, .. } = sink.deliver(&during).await.expect_err("it is away");
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
    for polls in 0..subject.drops() {
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
    ($name:ident, $subject:expr) => {
        conforms!($name, $subject, if true);
    };
    // Where the place cannot be had, the tests pass, and it was said why.
    ($name:ident, $subject:expr, if $there:expr) => {
        conforms!($name, $subject, if $there,
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
    ($name:ident, $subject:expr, if $there:expr, $($test:ident)*) => {
        mod $name {
            $(
                #[tokio::test]
                async fn $test() {
                    if $there {
                        crate::conformance::$test($subject).await;
                    }
                }
            )*
        }
    };
}

// Behind the macro, which they use.
mod exec;
#[cfg(feature = "kafka")]
mod kafka;
mod memory;
mod nats;
mod rabbitmq;
mod redis;
#[cfg(feature = "sqs")]
mod sqs;
mod stdout;
mod task_queues;
mod webhook;
