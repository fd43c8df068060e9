//! A batch that goes in several parts, each behind the one before.

use aftercommit::outbox::{Field, Task};
use aftercommit::sink::Outcome;
use serde_json::json;

use super::{Lane, numbers, open, task, tasks};
use crate::support::proxy::{Fault, Proxy, Way};
use crate::support::redis::Redis;

/// More than a few parts.
const MANY: u64 = 2_000;
const KEYS: u64 = 7;
/// The one that is not taken at first: in the midst of a part.
const REFUSED: u64 = 700;

fn batch(queue: &str) -> Vec<Task> {
    let keyed = |n: u64| {
        let key = (n % KEYS).to_string();
        let queue = (n == REFUSED).then_some((Field::Queue, queue));
        let fields: Vec<_> = [(Field::Key, key.as_str())]
            .into_iter()
            .chain(queue)
            .collect();
        task(n, &fields)
    };
    (0..MANY).map(keyed).collect()
}

#[tokio::test]
async fn nothing_of_a_key_overtakes_what_a_part_before_has_not_taken() {
    for (queue, make, remedy) in [
        // A part that looks at what its keys are, and does nothing.
        (
            "taken",
            &["SET", "taken", "by another"][..],
            &["DEL", "taken"][..],
        ),
        // One that stops midway: this stream is at its end.
        (
            "full",
            &[
                "XADD",
                "full",
                "18446744073709551615-18446744073709551615",
                "id",
                "9000",
            ],
            &["DEL", "full"],
        ),
        // One that is refused.
        (
            "forbidden",
            &[
                "ACL",
                "SETUSER",
                "default",
                "resetkeys",
                "~events",
                "~aftercommit:*",
            ],
            &["ACL", "SETUSER", "default", "~*"],
        ),
    ] {
        let server = Redis::start();
        server.run(make);
        let settings = json!({"url": server.url(0), "stream": "events"});
        let mut lane = Lane::new(open(settings));
        let batch = batch(queue);
        let outcomes = lane.hand(&batch).await.expect("no outage");
        let is_behind = |n: u64| n >= REFUSED && n % KEYS == REFUSED % KEYS;
        for (n, outcome) in (0..).zip(&outcomes) {
            assert_eq!(*outcome == Outcome::Delivered, !is_behind(n), "{queue} {n}");
        }
        let arrived = numbers(server.entry_ids("events"));
        let expected: Vec<u64> = (0..MANY).filter(|n| !is_behind(*n)).collect();
        assert_eq!(arrived, expected, "{queue}");
        server.run(remedy);
        lane.generation += 1;
        lane.delivers(&batch).await;
        let arrived = numbers(server.entry_ids("events"));
        let of_key = arrived.iter().filter(|n| *n % KEYS == 0).copied();
        let expected: Vec<u64> = (0..MANY)
            .step_by(KEYS as usize)
            .filter(|n| *n != REFUSED)
            .collect();
        assert_eq!(of_key.collect::<Vec<_>>(), expected, "{queue}");
        assert_eq!(arrived.len() as u64, MANY - 1, "{queue}");
        assert_eq!(numbers(server.entry_ids(queue)), [REFUSED], "{queue}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_whose_answers_are_lost_are_pushed_once_and_in_order() {
    let server = Redis::start();
    let proxy = Proxy::start(server.port());
    let url = server.url_through(proxy.port(), 0);
    let at = |url: &str| Lane::new(open(json!({"url": url, "list": "jobs"})));
    let mut lane = at(&url);
    let mut random = fastrand::Rng::with_seed(7);
    let (mut next, mut lost) = (0, 0);
    let mut waiting: Vec<u64> = Vec::new();
    for round in 0..40 {
        waiting.extend(next..next + random.u64(1..MANY));
        next = waiting.last().map_or(next, |last| last + 1);
        match random.u8(..8) {
            0 => proxy.set(Way::Down, Fault::BlackHole),
            1 => proxy.set(Way::Down, Fault::CutAfter(random.u64(..300))),
            2..5 => proxy.set(Way::Up, Fault::CutAfter(random.u64(..300_000))),
            _ => {}
        }
        let size = random.usize(1..=waiting.len());
        match lane.hand(&tasks(waiting.iter().copied().take(size))).await {
            Ok(outcomes) => {
                assert_eq!(outcomes, vec![Outcome::Delivered; size], "round {round}");
                waiting.drain(..size);
            }
            Err(_) => lost += 1,
        }
        if random.u8(..8) == 0 {
            // kill -9, and all that is not known to be settled comes again.
            lane = at(&url);
            let unsettled = waiting.first().copied().unwrap_or(next);
            waiting = (unsettled.min(next.saturating_sub(5_000))..next).collect();
        }
        proxy.reset();
        proxy.pass();
    }
    let last = tasks(waiting);
    // The last reset may be on its way yet.
    while let Err(cause) = lane.hand(&last).await {
        lost += 1;
        assert!(lost < 100, "{cause}");
    }
    assert!(lost > 5, "{lost}");
    let messages = server.messages(0, "jobs");
    let ids = messages.iter().map(|message| message["id"].as_str());
    let arrived = numbers(ids.map(|id| id.expect("an id").to_owned()).collect());
    assert_eq!(arrived, (0..next).collect::<Vec<_>>());
}
