//! Order: by due time, and within a key whatever happens to one of its tasks.

use std::time::Duration;

use aftercommit::hold::{self, Batch, Park, State};
use aftercommit::outbox::{Field, Task};
use aftercommit::pg::Timestamp;

use super::{ALL, MINUTE, SLOT, Store, names, pair, park, postponed, queues_of, settle};

/// What was already held without a place in its queue does not leave what follows it waiting for ever.
#[tokio::test]
async fn nothing_waits_behind_nothing() {
    let mut store = Store::start().await;
    let dead = Park {
        state: State::Dead,
        blocks: false,
        due_in: None,
        ..park(1, "first", Some("k"))
    };
    store.park(&[dead]).await;
    let tried = Park {
        attempts: 1,
        ..park(1, "first", Some("k"))
    };
    store.park(&[tried, park(2, "second", Some("k"))]).await;
    assert_eq!(store.due_names().await, ["second"]);

    // By hand, somebody takes the place away from the head.
    store
        .postpone(&[postponed(store.id("second"), MINUTE)])
        .await;
    store.park(&[park(3, "third", Some("k"))]).await;
    store
        .postgres
        .psql("update aftercommit.hold set blocks = false where task = 'second'");
    assert_eq!(store.due_names().await, [""; 0]);
    hold::mend(&store.look, SLOT).await.expect("mended");
    assert_eq!(store.due_names().await, ["third"]);
    hold::mend(&store.look, "none").await.expect("mended");
}

#[tokio::test]
async fn tasks_are_due_in_order_of_time() {
    let mut store = Store::start().await;
    let scheduled = |number, name, micros: i64| Park {
        state: State::Scheduled,
        due_in: None,
        due_at: Some(Timestamp(micros)),
        blocks: false,
        ..park(number, name, None)
    };
    let soon = |number, name, due_in| Park {
        due_in: Some(due_in),
        ..park(number, name, None)
    };
    store
        .park(&[
            scheduled(1, "later", 3_000),
            scheduled(2, "sooner", 1_000),
            scheduled(3, "never", i64::MAX),
            soon(4, "in an hour", 60 * MINUTE),
            Park {
                sink: "b".into(),
                ..scheduled(5, "elsewhere", 2_000)
            },
            Park {
                state: State::Dead,
                due_in: None,
                ..park(6, "dead", None)
            },
            soon(7, "in a minute", MINUTE),
        ])
        .await;
    let next = store.next_due(SLOT).await;
    let next = next.expect("a time");
    assert!(next <= MINUTE && next > MINUTE / 2, "{next:?}");
    assert_eq!(store.due_names().await, ["sooner", "later", "elsewhere"]);
    let in_flight = store.ids(&["sooner"]);
    assert_eq!(
        names(&store.due_but(&[], &in_flight).await),
        ["later", "elsewhere"]
    );
    assert_eq!(names(&store.due_but(&["b"], &in_flight).await), ["later"]);
    assert_eq!(names(&store.due_but(&["a", "b"], &[]).await), [""; 0]);
    assert!(store.look("other", &[], &[], ALL).await.is_empty());
    assert_eq!(store.next_due("other").await, None);

    store
        .postgres
        .psql("delete from aftercommit.hold where task like 'in %'");
    assert_eq!(store.next_due(SLOT).await, None, "infinity does not come");
}

#[tokio::test]
async fn a_batch_has_its_limits() {
    let mut store = Store::start().await;
    let heavy = |number, size: usize| {
        let text = format!("\"{}\"", "x".repeat(size));
        let mut heavy = park(number, "t", None);
        let fields = [
            (Field::Id, "i"),
            (Field::Task, "t"),
            (Field::Payload, &*text),
        ];
        heavy.task = Task::from_fields(fields, heavy.task.position, Timestamp(0));
        heavy
    };
    let parks: Vec<Park> = (0..5).map(|n| heavy(n, 100_000)).collect();
    store.park(&parks).await;
    for (tasks, bytes, expected) in [
        (3, 1 << 30, 3),
        (10, 250_000, 3),
        (10, 1, 1),
        (10, 1 << 30, 5),
    ] {
        let due = store.look(SLOT, &[], &[], Batch { tasks, bytes }).await;
        assert_eq!(due.len(), expected, "{tasks} {bytes}");
    }
}

#[tokio::test]
async fn a_key_keeps_its_order_through_every_failure() {
    let mut store = Store::start().await;
    let tried = |number, name, due_in| Park {
        attempts: 1,
        due_in: Some(due_in),
        ..park(number, name, Some("k"))
    };
    // The first of the key failed; the rest waits for it, here and in later calls, whatever their own times say.
    store
        .park(&[
            tried(1, "one", MINUTE),
            park(2, "two", Some("k")),
            park(3, "free", Some("l")),
            park(4, "keyless", None),
        ])
        .await;
    store.park(&[park(5, "three", Some("k"))]).await;
    assert_eq!(store.due_names().await, ["free", "keyless"]);
    assert_eq!(store.keys().await, [pair("a", "k"), pair("a", "l")]);
    let ids = store.ids(&["free", "keyless"]);
    assert_eq!(store.remove(&ids).await, [pair("a", "l")]);

    // It is due, fails again, is due again, and is delivered: two and three follow, in order.
    let one = store.id("one");
    store.postpone(&[postponed(one, Duration::ZERO)]).await;
    let due = store.due().await;
    assert_eq!(names(&due), ["one"]);
    assert_eq!((due[0].attempts, due[0].state), (3, State::Retrying));
    assert_eq!(store.remove(&[one]).await, []);
    assert_eq!(store.due_names().await, ["two", "three"]);

    // Two fails while three is in flight behind it, and was not tried.
    let (two, three) = (store.id("two"), store.id("three"));
    store.postpone(&[postponed(two, MINUTE)]).await;
    assert_eq!(store.due_names().await, [""; 0]);
    // Three was tried, too, and failed: it waits for two all the same.
    store.postpone(&[postponed(three, Duration::ZERO)]).await;
    assert_eq!(store.due_names().await, [""; 0]);
    assert_eq!(store.remove(&[two]).await, []);
    assert_eq!(store.due_names().await, ["three"]);
    assert_eq!(store.remove(&[three]).await, [pair("a", "k")]);
    assert_eq!(store.keys().await, []);
}

#[tokio::test]
async fn one_failure_of_a_batch_and_a_success_before_it() {
    let mut store = Store::start().await;
    let parks: Vec<Park> = ["one", "two", "three"]
        .into_iter()
        .zip(1..)
        .map(|(name, number)| park(number, name, Some("k")))
        .collect();
    store.park(&parks).await;
    let ids = store.ids(&["one", "two", "three"]);
    assert_eq!(store.due_names().await, ["one", "two", "three"]);
    let db = store.db.transaction().await.expect("a transaction");
    let queues = queues_of(&db, &ids[..1]).await;
    hold::remove(&db, SLOT, &ids[..1]).await.expect("removed");
    hold::postpone(&db, SLOT, &[postponed(ids[1], MINUTE)])
        .await
        .expect("postponed");
    settle(&db, queues).await;
    db.commit().await.expect("a commit");
    assert_eq!(store.due_names().await, [""; 0]);
    let next = store.next_due(SLOT).await;
    assert!(
        next.is_some_and(|next| next > MINUTE / 2),
        "two keeps its pause"
    );
    assert_eq!(store.remove(&ids[1..]).await, [pair("a", "k")]);
}

/// What was spilled, because its sink is away, drains in order without a further write.
#[tokio::test]
async fn what_was_spilled_is_due_at_once_and_in_order() {
    let mut store = Store::start().await;
    let spilled = |number, name, due_in| Park {
        due_in: Some(due_in),
        ..park(number, name, Some("k"))
    };
    store.park(&[spilled(1, "one", MINUTE)]).await;
    store.park(&[spilled(2, "two", Duration::ZERO)]).await;
    assert_eq!(
        store.due_names().await,
        [""; 0],
        "two is not due before one"
    );
    store
        .postgres
        .psql("update aftercommit.hold set due_at = due_at - interval '1 hour'");
    assert_eq!(store.due_names().await, ["one", "two"]);
}

#[tokio::test]
async fn the_dead_free_their_key_or_block_it() {
    let mut store = Store::start().await;
    let queue = |key: &'static str, from: u64| {
        let name = move |n| format!("{key}{n}");
        (0..3)
            .map(move |n| park(from + n, &name(n), Some(key)))
            .collect::<Vec<_>>()
    };
    for (key, from) in [("x", 0), ("y", 10), ("z", 20)] {
        store.park(&queue(key, from)).await;
    }
    let ids = store.ids(&["x0", "y0", "z0", "z1", "z2"]);
    let freed = store
        .bury(&[
            (ids[0], false),
            (ids[1], true),
            (ids[2], false),
            (ids[3], false),
            (ids[4], false),
        ])
        .await;
    assert_eq!(freed, [pair("a", "z")]);
    assert_eq!(store.due_names().await, ["x1", "x2"]);
    assert_eq!(store.keys().await, [pair("a", "x"), pair("a", "y")]);
    store.park(&[park(30, "y3", Some("y"))]).await;
    assert_eq!(store.due_names().await, ["x1", "x2"]);

    // In the middle of a queue, with what went before it still in flight.
    let (x1, x2) = (store.id("x1"), store.id("x2"));
    store.bury(&[(x2, true)]).await;
    assert_eq!(store.due_names().await, ["x1"]);
    assert_eq!(store.remove(&[x1]).await, []);
    assert_eq!(store.due_names().await, [""; 0]);

    // Whoever deletes the dead one, the rest goes on.
    store
        .postgres
        .psql("delete from aftercommit.hold where task = 'y0'");
    assert_eq!(store.drain().await, ["y1", "y2", "y3"]);
    assert_eq!(store.keys().await, [pair("a", "x")]);
}

#[tokio::test]
async fn the_dead_are_sent_again_in_their_place() {
    let mut store = Store::start().await;
    let dead = |number, name, blocks| Park {
        state: State::Dead,
        due_in: None,
        attempts: 12,
        blocks,
        ..park(number, name, Some("k"))
    };
    store
        .park(&[
            dead(1, "released", false),
            dead(2, "first", true),
            dead(3, "second", true),
            park(4, "third", Some("k")),
        ])
        .await;
    assert_eq!(store.due_names().await, [""; 0]);
    let retry = |name: &str| {
        let sql = format!("select aftercommit.hold_retry({})", store.id(name));
        store.postgres.psql(&sql)
    };
    assert_eq!(store.postgres.psql("select aftercommit.hold_retry(0)"), "f");
    assert_eq!(retry("released"), "t");
    assert_eq!(retry("second"), "t");
    let due = store.due().await;
    assert_eq!(
        names(&due),
        ["released"],
        "the second waits for the first, which is dead"
    );
    assert_eq!(due[0].attempts, 0);
    assert_eq!(retry("first"), "t");
    assert_eq!(
        store.drain().await,
        ["released", "first", "second", "third"]
    );
    assert_eq!(store.keys().await, []);
}

/// A scheduled task holds nobody up; when its time has come, it comes behind all that is held of its key by then.
#[tokio::test]
async fn a_scheduled_task_waits_for_its_key() {
    let mut store = Store::start().await;
    let scheduled = |number, name, key| Park {
        state: State::Scheduled,
        due_in: None,
        due_at: Some(Timestamp(number)),
        blocks: false,
        ..park(u64::try_from(number).expect("a number"), name, Some(key))
    };
    store
        .park(&[
            scheduled(3, "later", "k"),
            scheduled(1, "sooner", "k"),
            scheduled(2, "of another", "l"),
        ])
        .await;
    assert_eq!(store.keys().await, []);
    let failing = Park {
        attempts: 1,
        due_in: Some(MINUTE),
        ..park(4, "failing", Some("k"))
    };
    store.park(&[failing]).await;
    assert_eq!(store.due_names().await, ["of another"]);
    store.park(&[park(5, "live", Some("k"))]).await;
    assert_eq!(store.due_names().await, ["of another"]);

    // Sent when nothing of its key was held, it fails: it is before what came later.
    store.park(&[park(6, "behind", Some("l"))]).await;
    let other = store.id("of another");
    store.postpone(&[postponed(other, Duration::ZERO)]).await;
    let due = store.due().await;
    assert_eq!(names(&due), ["of another"]);
    assert_eq!(due[0].state, State::Retrying);
    assert_eq!(store.drain().await, ["of another", "behind"]);

    let failing = store.id("failing");
    store
        .postgres
        .psql(&format!("select aftercommit.hold_retry({failing})"));
    assert_eq!(store.drain().await, ["failing", "sooner", "later", "live"]);
    assert_eq!(store.keys().await, []);
}

/// An operator discards the head of a queue at the very moment at which the daemon holds a task behind it.
#[tokio::test]
async fn a_queue_is_changed_by_one_at_a_time() {
    let mut store = Store::start().await;
    for round in 0..20 {
        let failing = Park {
            attempts: 1,
            due_in: Some(60 * MINUTE),
            ..park(2 * round, "head", Some("k"))
        };
        store.park(&[failing]).await;
        let head = store.id("head");
        let discard = format!("select aftercommit.hold_discard({head})");
        let behind = [park(2 * round + 1, "behind", Some("k"))];
        let db = store.db.transaction().await.expect("a transaction");
        let (discarded, parked) = tokio::join!(store.look.batch_execute(&discard), async {
            hold::park(&db, SLOT, &behind).await?;
            db.commit()
                .await
                .map_err(aftercommit::replication::Error::from)
        });
        discarded.expect("discarded");
        parked.expect("parked");
        assert_eq!(store.drain().await, ["behind"], "round {round}");
    }
}
