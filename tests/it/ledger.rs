//! Celery over Redis with marks, on real servers: nothing is pushed twice, whatever becomes of answers and connections.

use std::time::Duration;

use aftercommit::outbox::{Field, Position, TableName, Task};
use aftercommit::pg::{Lsn, Timestamp};
use aftercommit::sink::celery::Config;
use aftercommit::sink::marks::{History, Scope, Settled, Terms};
use aftercommit::sink::{Outcome, Settings as _, Sink};
use serde_json::json;

use crate::support::proxy::{Fault, Proxy, Way};
use crate::support::redis::Redis;
use crate::support::wait::{PATIENCE, eventually};

const TIMEOUT: Duration = Duration::from_millis(500);

fn open(url: &str) -> Box<dyn Sink> {
    let timeout = format!("{}ms", TIMEOUT.as_millis());
    let config: Config =
        serde_json::from_value(json!({"broker_url": url, "timeout": timeout})).expect("settings");
    config.open().expect("a sink")
}

fn scope(timeline: u32, generation: u64) -> Scope {
    let table = TableName::ours();
    let history = History {
        system_id: 42,
        timeline,
        slot: "aftercommit",
        table: &table,
    };
    Scope::new(&history, "workers", 0, generation)
}

/// The task of row `n`: three rows in each transaction.
fn task(n: u64, fields: &[(Field, &str)]) -> Task {
    let id = n.to_string();
    let standard = [(Field::Id, id.as_str()), (Field::Task, "app.tasks.work")];
    let all = standard.into_iter().chain(fields.iter().copied());
    Task::from_fields(all, position(n), Timestamp(0))
}

fn position(n: u64) -> Position {
    Position {
        commit_lsn: Lsn(0x100_0000 + 0x100 * (n / 3)),
        ordinal: n % 3,
    }
}

fn tasks(numbers: impl IntoIterator<Item = u64>) -> Vec<Task> {
    numbers.into_iter().map(|n| task(n, &[])).collect()
}

/// What is handed over: in the first generation, with nothing to forget.
struct Handing<'a> {
    sink: &'a mut Box<dyn Sink>,
    scope: Scope,
    settled: Settled,
}

fn by(sink: &mut Box<dyn Sink>) -> Handing<'_> {
    Handing {
        sink,
        scope: scope(1, 1),
        settled: Settled::default(),
    }
}

impl Handing<'_> {
    async fn hand(&mut self, tasks: &[Task]) -> Result<Vec<Outcome>, String> {
        let terms = Terms {
            scope: self.scope.clone(),
            turn: 1,
            settled: self.settled,
        };
        let delivery = self.sink.deliver_once(tasks, terms).await;
        delivery.map_err(|outage| outage.to_string())
    }

    async fn delivers(&mut self, tasks: &[Task]) {
        let outcomes = self.hand(tasks).await.expect("no outage");
        assert_eq!(outcomes, vec![Outcome::Delivered; tasks.len()]);
    }
}

fn arrived(server: &Redis) -> Vec<u64> {
    arrived_in(server, "celery")
}

fn arrived_in(server: &Redis, list: &str) -> Vec<u64> {
    let ids = server.ids(0, list);
    ids.iter().map(|id| id.parse().expect("a number")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_and_cut_batches_push_nothing_twice() {
    cut_and_lose("{}", 40_000).await;
}

/// A batch that is large goes out while it is being encoded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_that_are_cut_while_they_are_encoded_leave_nothing() {
    let large = format!("{{\"text\": \"{}\"}}", "x".repeat(4_000));
    cut_and_lose(&large, 800_000).await;
}

/// Sixty batches, of which some are cut within so many bytes, and some answers lost.
async fn cut_and_lose(kwargs: &str, bytes: u64) {
    let server = Redis::start();
    let proxy = Proxy::start(server.port());
    let mut sink = open(&server.url_through(proxy.port(), 0));
    let mut random = fastrand::Rng::with_seed(7);
    let (mut next, mut lost) = (0, 0);
    let mut waiting: Vec<u64> = Vec::new();
    for round in 0..60 {
        waiting.extend(next..next + random.u64(1..40));
        next = waiting.last().map_or(0, |last| last + 1);
        let fault = random.u8(..10);
        match fault {
            0 => proxy.set(Way::Down, Fault::BlackHole),
            1 => proxy.set(Way::Down, Fault::CutAfter(random.u64(..80))),
            2 => proxy.set(Way::Up, Fault::CutAfter(random.u64(..bytes))),
            _ => {}
        }
        // Another composition each time, as a lane's when it is given a batch back.
        let size = random.usize(1..=waiting.len());
        let numbers = waiting.iter().copied().take(size);
        let batch: Vec<Task> = numbers
            .map(|n| task(n, &[(Field::Kwargs, kwargs)]))
            .collect();
        match by(&mut sink).hand(&batch).await {
            Ok(outcomes) => {
                assert_eq!(outcomes, vec![Outcome::Delivered; size], "round {round}");
                waiting.drain(..size);
            }
            Err(_) => lost += 1,
        }
        if random.u8(..8) == 0 {
            // kill -9, and all that is not known to be settled comes again.
            sink = open(&server.url_through(proxy.port(), 0));
            let unsettled = waiting.first().copied().unwrap_or(next);
            waiting = (unsettled.min(next.saturating_sub(100))..next).collect();
        }
        proxy.reset();
        proxy.pass();
    }
    by(&mut sink).delivers(&tasks(waiting)).await;
    assert!(lost > 5, "{lost}");
    assert_eq!(arrived(&server), (0..next).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrives_late_is_not_applied() {
    let server = Redis::start();
    let proxy = Proxy::start(server.port());
    let url = server.url_through(proxy.port(), 0);
    for (first, with_marks, expected) in [
        (0, true, vec![0, 1]),
        // The same without marks, or this test would prove nothing.
        (2, false, vec![0, 1, 2, 3, 3]),
    ] {
        let (mut late, mut successor) = (open(&url), open(&url));
        by(&mut late).delivers(&tasks([first])).await;
        let second = tasks([first + 1]);
        // On its way for longer than we wait, and than it takes us to come back.
        proxy.set(Way::Up, Fault::Delay(TIMEOUT * 3));
        let handed = match with_marks {
            true => by(&mut late).hand(&second).await.is_ok(),
            false => late.deliver(&second).await.is_ok(),
        };
        assert!(!handed);
        proxy.pass();
        drop(late);
        match with_marks {
            true => by(&mut successor).delivers(&second).await,
            false => drop(successor.deliver(&second).await.expect("no outage")),
        }
        eventually(PATIENCE, "the end of the late connection", || async {
            (proxy.open() == 1).then_some(())
        })
        .await;
        assert_eq!(arrived(&server), expected);
    }
}

#[tokio::test]
async fn two_daemons_that_believe_to_be_the_active_one_push_nothing_twice() {
    let server = Redis::start();
    let (mut one, mut other) = (open(&server.url(0)), open(&server.url(0)));
    for n in 0..10 {
        by(&mut one).delivers(&tasks(n * 6..n * 6 + 6)).await;
        by(&mut other).delivers(&tasks(n * 6 + 3..n * 6 + 6)).await;
        // Each takes what the other has missed, and what it has itself.
        let mut handing = by(&mut other);
        handing.scope = scope(1, n + 2);
        handing.delivers(&tasks(n * 6..n * 6 + 6)).await;
    }
    assert_eq!(arrived(&server), (0..60).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_successor_knows_what_is_there_one_by_one() {
    let server = Redis::start();
    let mut sink = open(&server.url(0));
    let all = tasks(0..9);
    by(&mut sink).delivers(&all[..4]).await;
    by(&mut sink).delivers(&all[6..8]).await;
    let mut sink = open(&server.url(0));
    for order in [&[7, 6, 3, 1][..], &[8, 5, 0], &[2, 4, 7]] {
        by(&mut sink).delivers(&tasks(order.iter().copied())).await;
    }
    assert_eq!(arrived(&server), [0, 1, 2, 3, 6, 7, 8, 5, 4]);
    // Another row at the same position: a history that was replaced behind our back.
    let fields = [(Field::Id, "100"), (Field::Task, "app.tasks.work")];
    let other = Task::from_fields(fields, position(6), Timestamp(0));
    by(&mut sink).delivers(&[other]).await;
    assert_eq!(arrived(&server).last(), Some(&100));
}

#[tokio::test]
async fn a_doubtful_batch_is_known_when_it_comes_back_from_the_hold() {
    let server = Redis::start();
    let proxy = Proxy::start(server.port());
    let mut sink = open(&server.url_through(proxy.port(), 0));
    let all = tasks(0..8);
    by(&mut sink).delivers(&all[..2]).await;
    proxy.set(Way::Down, Fault::BlackHole);
    by(&mut sink).hand(&all[2..5]).await.expect_err("an outage");
    proxy.reset();
    proxy.pass();
    // Meanwhile the lane has spilled: the slot has moved on, and the tasks come from the hold, the last ones first.
    for number in [7, 6, 5, 4, 3, 2] {
        let task = &all[number..=number];
        let mut handing = by(&mut sink);
        handing.settled.below = Lsn(u64::MAX);
        let outcome = handing.hand(task).await;
        assert_eq!(outcome, Ok(vec![Outcome::Delivered]));
    }
    assert_eq!(arrived(&server), [0, 1, 2, 3, 4, 7, 6, 5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_redis_gets_again_what_comes_again_and_another_scope_too() {
    let server = Redis::start();
    let proxy = Proxy::start(server.port());
    let mut sink = open(&server.url_through(proxy.port(), 0));
    let all = tasks(0..9);
    by(&mut sink).delivers(&all[..3]).await;
    server.run(&["FLUSHALL"]);
    // Untouched by that: nothing was in doubt, and nothing comes again.
    by(&mut sink).delivers(&all[3..6]).await;
    assert_eq!(arrived(&server), [3, 4, 5]);
    // In doubt, applied, and flushed: pushed again.
    proxy.set(Way::Down, Fault::BlackHole);
    by(&mut sink).hand(&all[6..]).await.expect_err("an outage");
    server.run(&["FLUSHALL"]);
    proxy.reset();
    proxy.pass();
    by(&mut sink).delivers(&all[6..]).await;
    assert_eq!(arrived(&server), [6, 7, 8]);
    // A successor has the whole of it to repeat but for what is there.
    let mut sink = open(&server.url(0));
    by(&mut sink).delivers(&all).await;
    assert_eq!(arrived(&server), [6, 7, 8, 0, 1, 2, 3, 4, 5]);
    // Another timeline: the same positions are other rows.
    let mut handing = by(&mut sink);
    handing.scope = scope(2, 1);
    handing.delivers(&all).await;
    assert_eq!(arrived(&server).len(), 18);
    // And back: all known.
    by(&mut sink).delivers(&all).await;
    assert_eq!(arrived(&server).len(), 18);
}

#[tokio::test]
async fn a_new_generation_is_known_to_repeat() {
    let server = Redis::start();
    let mut sink = open(&server.url(0));
    let all = tasks(0..6);
    by(&mut sink).delivers(&all[..4]).await;
    let mut handing = by(&mut sink);
    handing.scope = scope(1, 2);
    handing.delivers(&all).await;
    assert_eq!(arrived(&server), (0..6).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_took_nothing_is_in_no_note() {
    let server = Redis::start();
    let proxy = Proxy::start(server.port());
    let mut sink = open(&server.url_through(proxy.port(), 0));
    server.run(&[
        "SADD",
        "_kombu.binding.both",
        "k\x06\x16\x06\x16celery",
        "k\x06\x16\x06\x16taken",
    ]);
    let both = r#"{"exchange": "both", "routing_key": "k"}"#;
    let batch = [
        task(0, &[]),
        task(1, &[(Field::Queue, "taken")]),
        task(2, &[]),
        task(3, &[(Field::Options, both)]),
        task(4, &[(Field::Queue, "taken")]),
    ];
    server.run(&["SET", "taken", "by another"]);
    proxy.set(Way::Down, Fault::CutAfter(900));
    let mut handing = by(&mut sink);
    let mut outcome = handing.hand(&batch).await;
    if outcome.is_ok() {
        // The bindings had to be asked for in the first batch: this one's answer is lost.
        proxy.set(Way::Down, Fault::BlackHole);
        outcome = handing
            .hand(&[task(5, &[]), task(6, &[(Field::Queue, "taken")])])
            .await;
    }
    outcome.expect_err("an outage");
    server.run(&["DEL", "taken"]);
    proxy.reset();
    proxy.pass();
    let rest = [task(5, &[]), task(6, &[(Field::Queue, "taken")])];
    let mut sink = open(&server.url(0));
    by(&mut sink)
        .delivers(&[&batch[..], &rest[..]].concat())
        .await;
    // Where one of two lists has failed, the whole task comes again.
    assert_eq!(arrived(&server), [0, 2, 3, 5, 3]);
    assert_eq!(arrived_in(&server, "taken"), [1, 3, 4, 6]);
}

#[tokio::test]
async fn bindings_that_are_met_late_give_up_what_was_sent_of_the_batch() {
    let server = Redis::start();
    server.run(&[
        "SADD",
        "_kombu.binding.both",
        "k\x06\x16\x06\x16celery",
        "k\x06\x16\x06\x16other",
    ]);
    let large = format!("{{\"text\": \"{}\"}}", "x".repeat(4_000));
    let exchange = r#"{"exchange": "both", "routing_key": "k"}"#;
    let of = |n: u64| {
        let last = (n % 100 == 99).then_some((Field::Options, exchange));
        let fields: Vec<_> = [(Field::Kwargs, large.as_str())]
            .into_iter()
            .chain(last)
            .collect();
        task(n, &fields)
    };
    let mut sink = open(&server.url(0));
    let batch: Vec<Task> = (0..100).map(of).collect();
    by(&mut sink).delivers(&batch).await;
    // It is still known whose the ledger is, and what is in it.
    let rest: Vec<Task> = (100..200).map(of).collect();
    by(&mut sink).delivers(&rest).await;
    let mut sink = open(&server.url(0));
    by(&mut sink).delivers(&[batch, rest].concat()).await;
    assert_eq!(arrived(&server), (0..200).collect::<Vec<_>>());
    assert_eq!(arrived_in(&server, "other"), [99, 199]);
}

#[tokio::test]
async fn notes_go_with_what_is_settled() {
    let server = Redis::start();
    let mut connection = server.connection().await;
    let mut sink = open(&server.url(0));
    let mut most: usize = 0;
    let mut expires: i64 = 0;
    for n in 0..60 {
        let mut handing = by(&mut sink);
        handing.settled.below = position(3 * n).commit_lsn;
        handing.settled.turn = 1;
        handing.delivers(&tasks(9 * n..9 * n + 9)).await;
        let keys: Vec<String> = redis::cmd("KEYS")
            .arg("aftercommit:*")
            .query_async(&mut connection)
            .await
            .expect("KEYS");
        let [key] = &keys[..] else {
            panic!("one ledger: {keys:?}");
        };
        assert_eq!(
            key,
            "aftercommit:marks:1:42:1:aftercommit:\"aftercommit\".\"outbox\":\"workers\":0"
        );
        let ask = async |name: &str| -> i64 {
            let mut connection = connection.clone();
            let asked = redis::cmd(name).arg(key).query_async(&mut connection).await;
            asked.expect(name)
        };
        most = most.max(ask("HLEN").await as usize);
        expires = ask("TTL").await;
    }
    assert!(most <= 60 - 20 + 3, "{most}");
    assert!((604_000..=604_800).contains(&expires), "{expires}");
    assert_eq!(arrived(&server), (0..540).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_user_without_the_rights_delivers_without_marks() {
    let server = Redis::start();
    let batch = tasks(0..2);
    for (nth, rules) in [
        &["~celery", "+@all"][..],
        &["~*", "+@all", "-eval"],
        &["~*", "+@all", "-watch"],
        &["~*", "+@all", "-type"],
        &["%W~celery", "~aftercommit:*", "+@all"],
    ]
    .into_iter()
    .enumerate()
    {
        let user = format!("user{nth}");
        server.run(&[&["ACL", "SETUSER", &user, "on", ">pw"], rules].concat());
        let url = format!("redis://{user}:pw@127.0.0.1:{}", server.port());
        for _ in 0..2 {
            let mut sink = open(&url);
            by(&mut sink).delivers(&batch).await;
            by(&mut sink).delivers(&batch).await;
        }
        assert_eq!(arrived(&server).len(), 8, "{rules:?}");
        server.run(&["FLUSHALL"]);
    }
    // With just what is asked for.
    let rights = "+multi +exec +lpush +smembers +select +watch +unwatch +eval +hset +hget +hmget +hkeys +hdel +expire +type";
    let rights: Vec<&str> = rights.split(' ').collect();
    let user = [
        &[
            "ACL",
            "SETUSER",
            "app",
            "on",
            ">pw",
            "~celery",
            "~aftercommit:*",
        ],
        &rights[..],
    ];
    server.run(&user.concat());
    for _ in 0..2 {
        let mut sink = open(&format!("redis://app:pw@127.0.0.1:{}", server.port()));
        by(&mut sink).delivers(&batch).await;
    }
    assert_eq!(arrived(&server), [0, 1]);
    // Somebody else's key where ours would be: the tasks are more important.
    server.run(&["FLUSHALL"]);
    let mut sink = open(&server.url(0));
    by(&mut sink).delivers(&batch).await;
    let key = format!("aftercommit:marks:1:{}", scope(1, 1));
    server.run(&["SET", &key, "not a hash"]);
    by(&mut sink).delivers(&tasks([2])).await;
    assert_eq!(arrived(&server), [0, 1, 2]);
}
