//! The hold table and the checkpoint on a real server.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use aftercommit::hold::{
    self, Batch, Buried, Checkpoint, Park, Place, Postponed, Queue, Released, State, delete_settled,
};
use aftercommit::outbox::{Field, Position, TableName, Task};
use aftercommit::pg::{Lsn, Timestamp};
use tokio_postgres::{Client, Row, Transaction};

use crate::init::{apply, wanted};
use crate::support::postgres::{Options, Postgres};

pub(crate) const SLOT: &str = "aftercommit";
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
const ALL: Batch = Batch {
    tasks: 1_000_000,
    bytes: 1 << 30,
};

/// A server with everything that `init` makes, and two connections of the daemon's role.
pub(crate) struct Store {
    pub(crate) postgres: Postgres,
    pub(crate) db: Client,
    pub(crate) look: Client,
}

impl Store {
    pub(crate) async fn start() -> Store {
        Store::on(15).await
    }

    pub(crate) async fn on(version: u32) -> Store {
        let options = Options {
            version,
            ..Options::default()
        };
        Store::with(options).await
    }

    async fn with(options: Options<'_>) -> Store {
        let postgres = Postgres::start(options);
        postgres.psql("create role daemon login replication");
        let (admin, observer) = (postgres.client().await, postgres.client().await);
        let (out, class) = apply(&admin, &observer, &wanted(SLOT, Some("daemon"))).await;
        assert_eq!(class, None, "{out}");
        Store {
            db: postgres.client_as("daemon").await,
            look: postgres.client_as("daemon").await,
            postgres,
        }
    }

    pub(crate) async fn park(&mut self, parks: &[Park]) {
        let db = self.db.transaction().await.expect("a transaction");
        hold::park(&db, SLOT, parks).await.expect("parked");
        db.commit().await.expect("a commit");
    }

    pub(crate) async fn remove(&mut self, ids: &[i64]) -> Vec<(String, String)> {
        let db = self.db.transaction().await.expect("a transaction");
        let queues = queues_of(&db, ids).await;
        hold::remove(&db, SLOT, ids).await.expect("removed");
        let freed = settle(&db, queues).await;
        db.commit().await.expect("a commit");
        freed
    }

    pub(crate) async fn postpone(&mut self, rows: &[Postponed]) {
        let db = self.db.transaction().await.expect("a transaction");
        hold::postpone(&db, SLOT, rows).await.expect("postponed");
        db.commit().await.expect("a commit");
    }

    pub(crate) async fn bury(&mut self, rows: &[(i64, bool)]) -> Vec<(String, String)> {
        let rows: Vec<_> = rows
            .iter()
            .map(|(id, blocks)| Buried {
                hold_id: *id,
                attempts: 9,
                error: "gone".to_owned(),
                blocks: *blocks,
            })
            .collect();
        let db = self.db.transaction().await.expect("a transaction");
        let ids: Vec<i64> = rows.iter().map(|row| row.hold_id).collect();
        let queues = queues_of(&db, &ids).await;
        hold::bury(&db, SLOT, &rows).await.expect("buried");
        let freed = settle(&db, queues).await;
        db.commit().await.expect("a commit");
        freed
    }

    pub(crate) async fn due(&self) -> Vec<Released> {
        self.due_but(&[], &[]).await
    }

    pub(crate) async fn due_but(&self, away: &[&str], in_flight: &[i64]) -> Vec<Released> {
        self.look(SLOT, away, in_flight, ALL).await
    }

    /// What is due, sink by sink, so much of each.
    pub(crate) async fn look(
        &self,
        slot: &str,
        away: &[&str],
        but: &[i64],
        batch: Batch,
    ) -> Vec<Released> {
        let mut released = Vec::new();
        let outlook = hold::outlook(&self.look, slot).await.expect("an answer");
        for sink in outlook.iter().filter(|of| of.is_due).map(|of| &of.sink) {
            if !away.contains(&&**sink) {
                let due = hold::due(&self.look, slot, sink, Place::START, but, batch).await;
                released.extend(due.expect("an answer").released);
            }
        }
        released
    }

    /// Time until the next task will be due.
    pub(crate) async fn next_due(&self, slot: &str) -> Option<Duration> {
        let outlook = hold::outlook(&self.look, slot).await.expect("an answer");
        outlook.iter().filter_map(|of| of.next).min()
    }

    /// Names of the tasks that are due, in order.
    pub(crate) async fn due_names(&self) -> Vec<String> {
        names(&self.due().await)
    }

    pub(crate) async fn keys(&self) -> Vec<(String, String)> {
        let mut keys = Vec::new();
        let each = |sink: &str, key: &str| keys.push((sink.to_owned(), key.to_owned()));
        hold::held_keys(&self.look, SLOT, each).await.expect("keys");
        keys.sort();
        keys
    }

    fn ids_of(&self, condition: &str) -> Vec<i64> {
        let sql = format!("select hold_id from aftercommit.hold where {condition}");
        let ids = self.postgres.psql(&sql);
        ids.lines()
            .map(|id| id.parse().expect("a number"))
            .collect()
    }

    fn ids(&self, names: &[&str]) -> Vec<i64> {
        let id = |name: &&str| {
            let sql = format!("select hold_id from aftercommit.hold where task = '{name}'");
            self.postgres.psql(&sql).parse().expect("one row")
        };
        names.iter().map(id).collect()
    }

    pub(crate) fn id(&self, name: &str) -> i64 {
        self.ids(&[name])[0]
    }

    /// Everything that is due, until nothing is, and each removed at once.
    pub(crate) async fn drain(&mut self) -> Vec<String> {
        let mut drained = Vec::new();
        loop {
            let due = self.due().await;
            if due.is_empty() {
                return drained;
            }
            drained.extend(names(&due));
            let ids: Vec<i64> = due.iter().map(|r| r.hold_id).collect();
            self.remove(&ids).await;
        }
    }
}

fn names(released: &[Released]) -> Vec<String> {
    released.iter().map(|r| r.task.name().to_owned()).collect()
}

fn pair(sink: &str, key: &str) -> (String, String) {
    (sink.to_owned(), key.to_owned())
}

/// A retrying task whose pause is over, for sink `a`; its place in the order of commits is `number`.
/// The queues that these rows are in, or would be if they blocked.
pub(crate) async fn queues_of(db: &Transaction<'_>, ids: &[i64]) -> Vec<Queue> {
    let queues = "select distinct sink, key from aftercommit.hold where hold_id = any ($1) and key is not null";
    let rows = db.query(queues, &[&ids]).await.expect("queues");
    let queue = |row: &Row| Queue {
        sink: row.get::<_, &str>(0).into(),
        key: row.get(1),
    };
    rows.iter().map(queue).collect()
}

/// Looks after queues; those that are empty.
pub(crate) async fn settle(db: &Transaction<'_>, queues: Vec<Queue>) -> Vec<(String, String)> {
    let settled = hold::settle_queues(db.client(), SLOT, queues).await;
    let empty = settled.expect("an answer").empty;
    let mut freed: Vec<_> = empty
        .into_iter()
        .map(|queue| (queue.sink.to_string(), queue.key))
        .collect();
    freed.sort();
    freed
}

pub(crate) fn park(number: u64, name: &str, key: Option<&str>) -> Park {
    let id = format!("id-{number}");
    let fields = [(Field::Id, id.as_str()), (Field::Task, name)];
    let fields = fields.into_iter().chain(key.map(|key| (Field::Key, key)));
    let position = Position {
        commit_lsn: Lsn(1_000 + number),
        ordinal: 0,
    };
    Park {
        task: Task::from_fields(fields, position, Timestamp(7)),
        sink: "a".into(),
        route: "*".into(),
        state: State::Retrying,
        due_in: Some(Duration::ZERO),
        due_at: None,
        blocks: true,
        attempts: 0,
        error: None,
    }
}

pub(crate) fn postponed(hold_id: i64, due_in: Duration) -> Postponed {
    Postponed {
        hold_id,
        due_in,
        attempts: 3,
        error: "refused".to_owned(),
    }
}

const VALUES: [(Field, &str); 13] = [
    (Field::Id, "it's \"{an}\\ id"),
    (Field::Task, "shop.größe"),
    (Field::Args, "[1,  2]"),
    (Field::Kwargs, "{\"a\": 12345678901234567890}"),
    (Field::Payload, "\"\\u0000\""),
    (Field::Body, "\\x00ff"),
    (Field::Key, ""),
    (Field::Queue, "NULL"),
    (Field::Headers, "{}"),
    (Field::Priority, "7"),
    (Field::RunAt, "2030-01-01 00:00:00+00"),
    (Field::ExpiresAt, "infinity"),
    (Field::Options, "{ }"),
];

#[tokio::test]
async fn a_task_comes_back_as_it_was() {
    let mut store = Store::start().await;
    let position = Position {
        commit_lsn: Lsn(0x16_B374_D848),
        ordinal: 41,
    };
    let at = Timestamp(1_234_567_890_123_456);
    let full = Task::from_fields(VALUES, position, at);
    let least = Task::from_fields(
        [(Field::Id, "1"), (Field::Task, "t")],
        Position {
            ordinal: 42,
            ..position
        },
        at,
    );
    let parks = [full, least].map(|task| Park {
        task,
        sink: "workers".into(),
        route: "shop.*".into(),
        attempts: 4,
        error: Some("it broke\0".to_owned()),
        ..park(0, "", None)
    });
    store.park(&parks).await;
    let due = store.due().await;
    assert_eq!(due.len(), 2);
    for (released, parked) in due.iter().zip(&parks) {
        for field in Field::ALL {
            assert_eq!(released.task.text(field), parked.task.text(field));
        }
        assert_eq!(released.task.position, parked.task.position);
        assert_eq!(released.task.committed_at, at);
        assert_eq!(
            (
                &*released.sink,
                &*released.route,
                released.state,
                released.attempts
            ),
            ("workers", "shop.*", State::Retrying, 4)
        );
    }
    // The empty key is a key; no key is none.
    assert_eq!(store.keys().await, [pair("workers", "")]);
}

#[tokio::test]
async fn every_version_keeps_checkpoints_deletes_rows_and_cancels() {
    for version in [14, 16, 17, 18] {
        if !Postgres::available_or_skip(version) {
            continue;
        }
        let mut store = Store::on(version).await;
        store
            .park(&[Park {
                state: State::Scheduled,
                due_in: Some(MINUTE),
                blocks: false,
                ..park(1, "t", None)
            }])
            .await;
        let next = store.next_due(SLOT).await;
        assert!(next.is_some_and(|next| next <= MINUTE), "{version}");
        let cancelled = store.postgres.psql("select aftercommit.cancel('id-1')");
        assert_eq!(cancelled, "cancelled", "{version}");
        let id = store.postgres.psql("select aftercommit.enqueue('t')");
        let checkpoint = Checkpoint {
            system_id: 1,
            timeline: 2,
            lsn: Lsn(3),
        };
        let db = store.db.transaction().await.expect("a transaction");
        let deleted = delete_settled(&db, &TableName::ours(), "id", &[&id]).await;
        assert_eq!(deleted.expect("deleted"), 1, "{version}");
        hold::write_checkpoint(&db, SLOT, &checkpoint)
            .await
            .expect("written");
        db.commit().await.expect("a commit");
        let read = hold::read_checkpoint(&store.look, SLOT).await;
        assert_eq!(read.expect("an answer"), Some(checkpoint), "{version}");
    }
}

/// A crash between the commit here and the broker's forgetting: the same rows come again.
#[tokio::test]
async fn a_row_that_is_sent_again_is_held_once() {
    let mut store = Store::start().await;
    let first: Vec<Park> = (0..10).map(|n| park(n, "t", Some("k"))).collect();
    store.park(&first).await;
    let again: Vec<Park> = (5..15).map(|n| park(n, "t", Some("k"))).collect();
    store.park(&again).await;
    store.park(&[]).await;
    let mut positions = HashSet::new();
    let each = |position| assert!(positions.insert(position));
    hold::held_positions(&store.look, SLOT, Lsn(1_003), each)
        .await
        .expect("positions");
    let expected: HashSet<Position> = (3..15).map(|n| park(n, "", None).task.position).collect();
    assert_eq!(positions, expected);
    let due = store.due().await;
    let ids: Vec<&str> = due.iter().map(|r| r.task.id()).collect();
    let expected: Vec<String> = (0..15).map(|n| format!("id-{n}")).collect();
    assert_eq!(ids, expected);

    // The same position in another history, after a restore: another task.
    let mut other = park(3, "other", None);
    let fields = [(Field::Id, "other"), (Field::Task, "other")];
    other.task = Task::from_fields(fields, other.task.position, Timestamp(7));
    store.park(&[other]).await;
    assert_eq!(store.due().await.len(), 16);
}

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

#[tokio::test]
async fn cancelling_has_a_clear_answer() {
    let mut store = Store::start().await;
    let scheduled = |number: u64, name, due_in| Park {
        state: State::Scheduled,
        due_in: Some(due_in),
        blocks: false,
        ..park(number, name, None)
    };
    store
        .park(&[
            scheduled(1, "ahead", MINUTE),
            scheduled(2, "due", Duration::ZERO),
            park(3, "retrying", None),
            scheduled(4, "open", Duration::ZERO),
        ])
        .await;
    store
        .postgres
        .psql("create role shop login; grant aftercommit_app to shop");
    let shop = store.postgres.client_as("shop").await;
    let cancel = async |id: &str| -> String {
        let sql = format!("select aftercommit.cancel('{id}')");
        shop.query_one(&sql, &[]).await.expect("an answer").get(0)
    };
    assert_eq!(cancel("id-1").await, "cancelled");
    assert_eq!(cancel("id-1").await, "not held");
    assert_eq!(cancel("id-3").await, "too late");
    // It is being cancelled: nobody waits for the answer, and it is not sent meanwhile.
    shop.batch_execute("begin").await.expect("a transaction");
    assert_eq!(cancel("id-4").await, "cancelled");
    assert_eq!(store.due_names().await, ["due", "retrying"]);
    shop.batch_execute("rollback").await.expect("a rollback");
    assert_eq!(store.due_names().await, ["due", "retrying", "open"]);
    assert_eq!(cancel("id-2").await, "too late");
    assert_eq!(cancel("id-4").await, "too late");
    // Whatever the clock says now: it has been released.
    store
        .postgres
        .psql("update aftercommit.hold set due_at = due_at + interval '1 hour'");
    assert_eq!(cancel("id-4").await, "too late");
    for sql in [
        "select aftercommit.cancel(gen_random_uuid())",
        "select aftercommit.cancel(42)",
        "select aftercommit.cancel(42::bigint)",
    ] {
        let row = shop.query_one(sql, &[]).await.expect(sql);
        assert_eq!(row.get::<_, &str>(0), "not held");
    }
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

#[tokio::test]
async fn a_checkpoint_is_read_as_it_was_written() {
    let mut store = Store::start().await;
    let read = async |db: &Client, slot| hold::read_checkpoint(db, slot).await.expect("an answer");
    assert_eq!(read(&store.look, SLOT).await, None);
    // It goes back in another history only.
    for (timeline, lsn, kept) in [
        (7, 5, 5),
        (7, u64::MAX, u64::MAX),
        (8, 3, 3),
        (8, 0, 3),
        (8, 4, 4),
    ] {
        let checkpoint = |lsn| Checkpoint {
            system_id: u64::MAX,
            timeline,
            lsn: Lsn(lsn),
        };
        let db = store.db.transaction().await.expect("a transaction");
        hold::write_checkpoint(&db, SLOT, &checkpoint(lsn))
            .await
            .expect("written");
        db.commit().await.expect("a commit");
        assert_eq!(read(&store.look, SLOT).await, Some(checkpoint(kept)));
        assert_eq!(read(&store.look, "other").await, None);
    }
    store
        .postgres
        .psql("update aftercommit.checkpoint set system_id = 'nonsense'");
    assert_eq!(read(&store.look, SLOT).await, None);
}

#[tokio::test]
async fn settled_rows_are_deleted_by_ids_of_any_type() {
    let settings = [
        ("session_preload_libraries", "auto_explain"),
        ("auto_explain.log_min_duration", "0"),
    ];
    let mut store = Store::with(Options {
        settings: &settings,
        ..Options::default()
    })
    .await;
    store.postgres.psql(
        "create schema shop; \
         create table shop.by_uuid (id uuid primary key, n int); \
         create table shop.by_number (id bigserial primary key, n int); \
         create table shop.\"By Text\" (\"The Id\" text primary key, n int); \
         create domain shop.code as varchar(40); \
         create table shop.by_domain (id shop.code, at int, n int, primary key (id, at)) partition by range (at); \
         create table shop.by_domain_1 partition of shop.by_domain default; \
         insert into shop.by_uuid select gen_random_uuid(), n from generate_series(1, 20000) n; \
         insert into shop.by_number (n) select n from generate_series(1, 20000) n; \
         insert into shop.\"By Text\" select format('{\"\\,}%s', n), n from generate_series(1, 20000) n; \
         insert into shop.by_domain select n, n, n from generate_series(1, 20000) n; \
         grant usage on schema shop to daemon; grant select, delete on all tables in schema shop to daemon; \
         analyze",
    );
    for (table, column) in [
        ("shop.by_uuid", "id"),
        ("shop.by_number", "id"),
        ("shop.\"By Text\"", "The Id"),
        ("shop.by_domain", "id"),
    ] {
        let sql = format!("select \"{column}\" from {table} where n <= 1000");
        let ids = store.postgres.psql(&sql);
        let ids: Vec<&str> = ids.lines().collect();
        let name: TableName = table.parse().expect("a table");
        let db = store.db.transaction().await.expect("a transaction");
        let start = Instant::now();
        let deleted = delete_settled(&db, &name, column, &ids)
            .await
            .expect("deleted");
        println!(
            "{table}: {deleted} of 20,000 rows deleted in {:?}",
            start.elapsed()
        );
        assert_eq!(deleted, 1_000);
        let none = delete_settled(&db, &name, column, &ids)
            .await
            .expect("an answer");
        assert_eq!(none, 0);
        assert_eq!(
            delete_settled(&db, &name, column, &[])
                .await
                .expect("nothing"),
            0
        );
        db.commit().await.expect("a commit");
        let left = store
            .postgres
            .psql(&format!("select count(*), min(n) from {table}"));
        assert_eq!(left, "19000|1001");
    }
    let log = store.postgres.log();
    for index in [
        "by_uuid_pkey",
        "by_number_pkey",
        "\"By Text_pkey\"",
        "by_domain_1_pkey",
    ] {
        let plans = [
            format!("Index Scan using {index} on "),
            format!("Bitmap Index Scan on {index} "),
        ];
        assert!(plans.iter().any(|plan| log.contains(plan)), "{index}");
    }
}

/// Spilling and draining, with the figures; what it must reach is in the bench.
#[tokio::test]
async fn many_tasks_are_held_and_come_back_in_order() {
    const COUNT: u64 = 20_000;
    let mut store = Store::start().await;
    for (what, keys) in [("no keys", 0), ("1,000 keys", 1_000), ("one key", 1)] {
        let payload = "x".repeat(300);
        let parks: Vec<Park> = (0..COUNT)
            .map(|number| {
                let key = (keys > 0).then(|| (number % keys).to_string());
                let id = uuid::Uuid::new_v4().to_string();
                let mut park = park(number, "shop.tasks.send_receipt", None);
                let fields = [
                    (Field::Id, &*id),
                    (Field::Task, "t"),
                    (Field::Kwargs, &*payload),
                ];
                let key = key.as_deref().map(|key| (Field::Key, key));
                park.task = Task::from_fields(
                    fields.into_iter().chain(key),
                    park.task.position,
                    Timestamp(7),
                );
                park
            })
            .collect();
        let start = Instant::now();
        for parks in parks.chunks(1_000) {
            store.park(parks).await;
        }
        let held = rate(COUNT, start);
        let (start, mut positions) = (Instant::now(), Vec::new());
        loop {
            let batch = Batch {
                tasks: 1_000,
                bytes: 64 << 20,
            };
            let due = store.look(SLOT, &[], &[], batch).await;
            if due.is_empty() {
                break;
            }
            positions.extend(due.iter().map(|r| r.task.position));
            let ids: Vec<i64> = due.iter().map(|r| r.hold_id).collect();
            store.remove(&ids).await;
        }
        println!(
            "{what}: {held} rows/s held, {} rows/s back",
            rate(COUNT, start)
        );
        assert_eq!(positions.len() as u64, COUNT);
        // With the same due time for all of a chunk, the order is that of the commits.
        assert!(positions.is_sorted());
        assert_eq!(store.keys().await, []);
    }
}

fn rate(count: u64, start: Instant) -> u64 {
    (count as f64 / start.elapsed().as_secs_f64()) as u64
}

/// Autovacuum looks at a table that is all but empty, and then it fills: the planner takes it for empty. Whatever it makes of
/// that, no statement may go through all rows for each row.
#[tokio::test]
async fn a_table_that_has_just_filled_is_worked_on_as_fast() {
    const TASKS: usize = 4_000;
    // A tenth of a second is enough on a machine of our own; 160 million looks at rows take longer than this on any.
    const LIMIT: &str = "set statement_timeout = '8s';";
    let mut store = Store::start().await;
    store.park(&[park(0, "first", None)]).await;
    let fill = |store: &Store, state: &str, tasks: usize| {
        store.postgres.psql(&format!(
            "insert into aftercommit.hold (slot, sink, route, state, blocks, id, task, key, due_at, commit_lsn, ordinal,
               committed_at)
             select '{SLOT}', 'a', '*', '{state}', '{state}' = 'retrying', n::text, 'a.task', n::text, now(), '0/0', n, now()
             from generate_series(1, {tasks}) n"
        ))
    };
    let empty = |store: &Store| {
        // Without the trigger, which would look after each of their queues.
        let others = "set session_replication_role = replica;
                      delete from aftercommit.hold where task <> 'first'";
        store.postgres.psql(others);
        store.postgres.psql("vacuum analyze aftercommit.hold");
        let rows = "select reltuples::int8 from pg_class where oid = 'aftercommit.hold'::regclass";
        assert_eq!(store.postgres.psql(rows), "1", "as the planner believes");
    };
    for db in [&store.look, &store.db] {
        let limit = format!("{LIMIT} {}", hold::PLANNER);
        db.batch_execute(&limit).await.expect("a limit");
    }
    fill(&store, "retrying", 10 * TASKS);
    empty(&store);
    fill(&store, "scheduled", TASKS);
    assert_eq!(store.due().await.len(), TASKS + 1);

    empty(&store);
    fill(&store, "retrying", 10 * TASKS);
    let keys: Vec<String> = (1..=TASKS).map(|n| format!("new-{n}")).collect();
    let parks: Vec<Park> = (1..)
        .zip(&keys)
        .map(|(n, key)| park(n, "more", Some(key)))
        .collect();
    store.park(&parks).await;
    // And each queue is looked after that a row has left.
    store
        .remove(&store.ids_of("task = 'a.task' and key::int8 <= 4000"))
        .await;
    assert_eq!(
        store.postgres.psql("select count(*) from aftercommit.hold"),
        "40001"
    );

    // An operator's connection is told nothing.
    for function in ["hold_retry", "hold_discard"] {
        empty(&store);
        fill(&store, "retrying", 10 * TASKS);
        let changed = store.postgres.psql(&format!(
            "{LIMIT}
             select aftercommit.{function}((
               select array_agg(hold_id) from aftercommit.hold where task = 'a.task' and key::int8 <= {TASKS}))"
        ));
        assert_eq!(changed, TASKS.to_string(), "{function}");
    }
}
