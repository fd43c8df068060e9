//! A table with many rows.

use std::time::Instant;

use aftercommit::hold::{self, Batch, Park};
use aftercommit::outbox::{Field, Task};
use aftercommit::pg::Timestamp;

use super::{SLOT, Store, park};

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
