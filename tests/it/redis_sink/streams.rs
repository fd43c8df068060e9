//! Streams on one server: ids, late tasks, and what the ledger knows.

use std::time::Duration;

use aftercommit::outbox::{Field, Task};
use aftercommit::pg::{Lsn, Timestamp};
use aftercommit::sink::Outcome;
use serde_json::{Value, json};

use super::{Lane, entry, numbers, open, task, tasks};
use crate::support::proxy::{Fault, Proxy, Way};
use crate::support::redis::Redis;
use crate::support::wait::{PATIENCE, eventually};

fn at(url: &str) -> Lane {
    Lane::new(open(json!({"url": url, "stream": "events"})))
}

fn arrived(server: &Redis) -> Vec<u64> {
    numbers(server.entry_ids("events"))
}

fn ids(server: &Redis) -> Vec<String> {
    server
        .entries("events")
        .into_iter()
        .map(|(id, _)| id)
        .collect()
}

#[tokio::test]
async fn an_entry_has_the_id_of_its_position_and_the_row() {
    let server = Redis::start();
    let mut lane = at(&server.url(0));
    let batch = [
        task(
            0,
            &[
                (Field::Kwargs, "{\"a\": 12345678901234567890}"),
                (Field::Key, "k"),
            ],
        ),
        task(1, &[]),
        task(3, &[]),
    ];
    lane.delivers(&batch).await;
    assert_eq!(ids(&server), [entry(0), entry(1), entry(3)]);
    let (_, fields) = server.entries("events").swap_remove(0);
    assert_eq!(fields.len(), 3);
    assert_eq!(
        fields["data"],
        "{\"id\":\"0\",\"task\":\"app.tasks.work\",\"kwargs\":{\"a\": 12345678901234567890},\"key\":\"k\",\
         \"lsn\":\"0/1000000\",\"ordinal\":0,\"committed_at\":\"2000-01-01T00:00:00.000000+00:00\"}"
    );
    let mut lane = Lane::new(open(
        json!({"url": server.url(0), "stream": "raw", "format": "payload"}),
    ));
    let batch = [
        task(
            6,
            &[
                (Field::Payload, "{\"n\": 1}"),
                (Field::Key, "k"),
                (Field::Headers, "{\"h\": 1}"),
            ],
        ),
        task(7, &[(Field::Body, "\\x6869")]),
        task(8, &[]),
    ];
    let outcomes = lane.hand(&batch).await.expect("no outage");
    assert!(matches!(outcomes[2], Outcome::Reject(_)), "{outcomes:?}");
    let entries: Value = json!(server.entries("raw"));
    assert_eq!(
        entries,
        json!([
            [entry(6), {"id": "6", "task": "app.tasks.work", "lsn": "0/1000200", "committed_at": "2000-01-01T00:00:00.000000+00:00",
                        "key": "k", "headers": "{\"h\": 1}", "data": "{\"n\": 1}"}],
            [entry(7), {"id": "7", "task": "app.tasks.work", "lsn": "0/1000200", "committed_at": "2000-01-01T00:00:00.000000+00:00",
                        "data": "hi"}],
        ])
    );
}

#[tokio::test]
async fn late_tasks_are_added_behind_and_none_twice() {
    let server = Redis::start();
    let mut lane = at(&server.url(0));
    lane.delivers(&tasks([0, 4, 5])).await;
    // From the hold: older than what is there. And then the rest of a transaction that was interrupted by them.
    lane.delivers(&tasks([2, 1, 6])).await;
    lane.delivers(&tasks([3, 7])).await;
    assert_eq!(arrived(&server), [0, 4, 5, 2, 1, 6, 3, 7]);
    let last = |n: u64, more: u64| {
        let (lsn, seq) = entry(n)
            .split_once('-')
            .map(|(l, s)| (l.to_owned(), s.parse::<u64>()))
            .expect("an id");
        format!("{lsn}-{}", seq.expect("a number") + more)
    };
    assert_eq!(
        ids(&server),
        [
            entry(0),
            entry(4),
            entry(5),
            last(5, 1),
            last(5, 2),
            entry(6),
            last(6, 1),
            entry(7)
        ]
    );
    // All of it again, to a successor, in any order.
    let mut lane = at(&server.url(0));
    lane.delivers(&tasks([7, 6, 5, 4, 3, 2, 1, 0])).await;
    assert_eq!(arrived(&server).len(), 8);
}

#[tokio::test]
async fn without_its_ledger_the_stream_itself_refuses_what_it_has() {
    let server = Redis::start();
    let mut lane = at(&server.url(0));
    lane.delivers(&tasks(0..6)).await;
    server.run(&[
        "DEL",
        "aftercommit:marks:1:42:1:aftercommit:\"aftercommit\".\"outbox\":\"events\":0",
    ]);
    at(&server.url(0)).delivers(&tasks(0..9)).await;
    // Also of a sink that is told of no terms.
    let mut sink = open(json!({"url": server.url(0), "stream": "events"}));
    let outcomes = sink.deliver(&tasks(3..12)).await.expect("no outage");
    assert_eq!(outcomes, vec![Outcome::Delivered; 9]);
    assert_eq!(arrived(&server), (0..12).collect::<Vec<_>>());
    // Another row at a position that is there is another task.
    let other = task(5, &[(Field::Id, "50")]);
    sink.deliver(&[other]).await.expect("no outage");
    assert_eq!(arrived(&server).last(), Some(&50));
}

#[tokio::test]
async fn a_stream_that_others_add_to_loses_nothing() {
    let server = Redis::start();
    let mut lane = at(&server.url(0));
    lane.delivers(&tasks(0..3)).await;
    server.run(&["XADD", "events", "*", "id", "900"]);
    lane.delivers(&tasks(3..6)).await;
    server.run(&["XADD", "events", "*", "id", "901"]);
    lane.delivers(&tasks([6])).await;
    lane.generation += 1;
    lane.delivers(&tasks(0..7)).await;
    assert_eq!(arrived(&server), [0, 1, 2, 900, 3, 4, 5, 901, 6]);
    // One that is at its end takes no more, and harms no other.
    server.run(&[
        "XADD",
        "full",
        "18446744073709551615-18446744073709551615",
        "id",
        "902",
    ]);
    let batch = [task(9, &[(Field::Queue, "full")]), task(10, &[])];
    let outcomes = lane.hand(&batch).await.expect("no outage");
    assert!(matches!(outcomes[0], Outcome::Retry(_)), "{outcomes:?}");
    assert_eq!(outcomes[1], Outcome::Delivered);
    assert_eq!(arrived(&server).last(), Some(&10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_and_cut_batches_add_nothing_twice() {
    let server = Redis::start();
    let proxy = Proxy::start(server.port());
    let url = server.url_through(proxy.port(), 0);
    let mut lane = at(&url);
    let mut random = fastrand::Rng::with_seed(7);
    let (mut next, mut lost) = (0, 0);
    let mut waiting: Vec<u64> = Vec::new();
    let mut all = 0;
    for round in 0..60 {
        let more = random.u64(1..40);
        waiting.extend(next..next + more);
        next += more;
        all += more;
        match random.u8(..10) {
            0 => proxy.set(Way::Down, Fault::BlackHole),
            1 => proxy.set(Way::Down, Fault::CutAfter(random.u64(..80))),
            2 => proxy.set(Way::Up, Fault::CutAfter(random.u64(..40_000))),
            _ => {}
        }
        // Some wait for a while, as in the hold, and so are late.
        let size = random.usize(1..=waiting.len());
        if random.u8(..4) == 0 {
            random.shuffle(&mut waiting);
        }
        let batch = tasks(waiting.iter().copied().take(size));
        match lane.hand(&batch).await {
            Ok(outcomes) => {
                assert_eq!(outcomes, vec![Outcome::Delivered; size], "round {round}");
                waiting.drain(..size);
            }
            Err(_) => lost += 1,
        }
        if random.u8(..8) == 0 {
            // kill -9, and all that is not known to be settled comes again.
            lane = at(&url);
            waiting = (next.saturating_sub(100)..next)
                .chain(
                    waiting
                        .into_iter()
                        .filter(|n| *n < next.saturating_sub(100)),
                )
                .collect();
        }
        proxy.reset();
        proxy.pass();
    }
    // The last reset may be on its way yet.
    let last = tasks(waiting);
    while let Err(cause) = lane.hand(&last).await {
        lost += 1;
        assert!(lost < 100, "{cause}");
    }
    assert!(lost > 5, "{lost}");
    let mut arrived = arrived(&server);
    assert_eq!(arrived.len() as u64, all);
    arrived.sort_unstable();
    assert_eq!(arrived, (0..next).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrives_late_is_not_applied() {
    let server = Redis::start();
    let proxy = Proxy::start(server.port());
    let url = server.url_through(proxy.port(), 0);
    let (mut late, mut successor) = (at(&url), at(&url));
    late.delivers(&tasks([1])).await;
    // Older than what is there, so that its id does not protect it.
    let second = tasks([0]);
    proxy.set(Way::Up, Fault::Delay(Duration::from_secs(3)));
    late.hand(&second).await.expect_err("an outage");
    proxy.pass();
    drop(late);
    successor.delivers(&second).await;
    eventually(PATIENCE, "the end of the late connection", || async {
        (proxy.open() == 1).then_some(())
    })
    .await;
    assert_eq!(arrived(&server), [1, 0]);
}

#[tokio::test]
async fn streams_are_trimmed_and_named_by_the_row() {
    let server = Redis::start();
    let mut lane = Lane::new(open(
        json!({"url": server.url(0), "stream": "t:{key}", "maxlen": 100}),
    ));
    let keyed = |n: u64| task(n, &[(Field::Key, "a")]);
    for part in 0..10 {
        let batch: Vec<_> = (part * 100..part * 100 + 100).map(keyed).collect();
        lane.delivers(&batch).await;
    }
    let length = server.entries("t:a").len();
    assert!((100..=200).contains(&length), "{length}");
    // What was trimmed is known all the same.
    let batch: Vec<_> = (0..300).map(keyed).collect();
    lane.generation += 1;
    lane.delivers(&batch).await;
    assert_eq!(server.entries("t:a").len(), length);
    let batch = [
        task(2000, &[]),
        task(2001, &[(Field::Queue, "elsewhere")]),
        task(2002, &[(Field::Queue, "aftercommit:marks:1:x")]),
    ];
    let outcomes = lane.hand(&batch).await.expect("no outage");
    assert!(matches!(outcomes[0], Outcome::Reject(_)), "{outcomes:?}");
    assert_eq!(outcomes[1], Outcome::Delivered);
    assert!(matches!(outcomes[2], Outcome::Reject(_)), "{outcomes:?}");
}

#[tokio::test]
async fn entries_go_by_the_age_of_their_commit() {
    let server = Redis::start();
    let settings = json!({"url": server.url(0), "stream": "events", "max_age": "1h"});
    let mut lane = Lane::new(open(settings));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.expect("after 1970").as_micros() as i64;
    let ago = |n: u64, minutes: i64| {
        let mut task = task(n, &[]);
        task.committed_at = Timestamp::from_unix_micros(now - minutes * 60_000_000);
        task
    };
    let young: Vec<Task> = (0..30).map(|n| ago(n, 50)).collect();
    lane.delivers(&young).await;
    assert_eq!(arrived(&server), (0..30).collect::<Vec<_>>());
    // Too old, but for the last one. Somebody else's, without a time, goes with those around it.
    let mut lane = Lane::new(open(
        json!({"url": server.url(0), "stream": "events", "max_age": "40m"}),
    ));
    server.run(&["XADD", "events", &entry(30), "foreign", "1"]);
    for n in 31..35 {
        lane.delivers(&[ago(n, 30)]).await;
    }
    assert_eq!(ids(&server)[0], entry(30));
    assert_eq!(server.entries("events").len(), 5);
}

#[tokio::test]
async fn rights_that_are_missing_are_named() {
    let server = Redis::start();
    let rights = "+eval +type +hget +hset +hdel +hkeys +hmget +expire +xadd +xrange +xinfo +xtrim";
    let rights: Vec<&str> = rights.split(' ').collect();
    let keys = ["~events", "~aftercommit:*"];
    server.run(
        &[
            &["ACL", "SETUSER", "app", "on", ">pw"],
            &keys[..],
            &rights[..],
        ]
        .concat(),
    );
    let url = format!("redis://app:pw@127.0.0.1:{}", server.port());
    let mut lane = at(&url);
    let batch = [
        task(0, &[]),
        task(1, &[(Field::Queue, "forbidden")]),
        task(2, &[]),
    ];
    let outcomes = lane.hand(&batch).await.expect("no outage");
    assert!(
        matches!(&outcomes[1], Outcome::Reject(cause) if cause.to_string().contains("forbidden")),
        "{outcomes:?}"
    );
    assert_eq!(arrived(&server), [0, 2]);
    for right in rights {
        server.run(&["ACL", "SETUSER", "app", &right.replace('+', "-")]);
        let seen = format!("{:?}", at(&url).sink.probe().await);
        assert!(seen.contains("lacks rights"), "{right}: {seen}");
        if !["+hdel", "+hmget", "+xrange", "+xinfo", "+xtrim"].contains(&right) {
            let cause = at(&url).hand(&tasks([9])).await.expect_err(right);
            assert!(cause.contains("lacks rights"), "{right}: {cause}");
        }
        server.run(&["ACL", "SETUSER", "app", right]);
    }
    assert_eq!(arrived(&server), [0, 2]);
}

#[tokio::test]
async fn notes_go_with_what_is_settled() {
    let server = Redis::start();
    let mut connection = server.connection().await;
    let mut lane = at(&server.url(0));
    let mut most = 0;
    for n in 0..60u64 {
        lane.settled.below = Lsn(0x100_0000 + 0x100 * n);
        lane.settled.turn = 1;
        lane.delivers(&tasks(9 * n..9 * n + 9)).await;
        let key = "aftercommit:marks:1:42:1:aftercommit:\"aftercommit\".\"outbox\":\"events\":0";
        let length = redis::cmd("HLEN")
            .arg(key)
            .query_async(&mut connection)
            .await;
        most = most.max(length.expect("HLEN"));
    }
    assert!(most <= 60u64 - 20 + 3, "{most}");
}
