//! Lists on one server.

use aftercommit::outbox::Field;
use aftercommit::sink::Outcome;
use serde_json::json;

use super::{Lane, open, task, tasks};
use crate::support::redis::Redis;

#[tokio::test]
async fn messages_are_pushed_at_either_end_whole_or_as_payload() {
    let server = Redis::start();
    let url = server.url(0);
    for (push, first, expected) in [("left", 10, [2, 1, 0]), ("right", 20, [0, 1, 2])] {
        let mut lane = Lane::new(open(
            json!({"url": url, "list": push, "push": push, "format": "payload"}),
        ));
        let payloads = ["0", "1", "2"].map(|n| [(Field::Payload, n)]);
        let batch: Vec<_> = (first..)
            .zip(&payloads)
            .map(|(n, fields)| task(n, fields))
            .collect();
        lane.delivers(&batch).await;
        lane.generation += 1;
        lane.delivers(&batch).await;
        let found = server.lrange(push).await;
        assert_eq!(found, expected.map(|n: i32| n.to_string().into_bytes()));
    }
    let mut lane = Lane::new(open(json!({"url": url, "list": "jobs"})));
    let mut batch = tasks(100..2_600);
    batch.insert(700, task(9_000, &[(Field::Queue, "other")]));
    lane.delivers(&batch).await;
    let ids: Vec<u64> = server
        .messages(0, "jobs")
        .iter()
        .map(|message| {
            message["id"]
                .as_str()
                .expect("an id")
                .parse()
                .expect("a number")
        })
        .collect();
    assert_eq!(ids, (100..2_600).collect::<Vec<_>>());
    assert_eq!(server.messages(0, "other").len(), 1);
}

#[tokio::test]
async fn a_list_that_fails_harms_no_other_and_takes_later_what_it_has_missed() {
    let server = Redis::start();
    server.run(&["SET", "taken", "by another"]);
    let mut lane = Lane::new(open(json!({"url": server.url(0), "list": "jobs"})));
    let batch = [
        task(0, &[(Field::Key, "k")]),
        task(1, &[(Field::Key, "k"), (Field::Queue, "taken")]),
        task(2, &[(Field::Key, "k")]),
        task(3, &[]),
    ];
    let outcomes = lane.hand(&batch).await.expect("no outage");
    let delivered: Vec<bool> = outcomes.iter().map(|o| *o == Outcome::Delivered).collect();
    assert_eq!(delivered, [true, false, false, true], "{outcomes:?}");
    server.run(&["DEL", "taken"]);
    lane.generation += 1;
    lane.delivers(&batch).await;
    assert_eq!(server.messages(0, "jobs").len(), 3);
    assert_eq!(server.messages(0, "taken").len(), 1);
}
