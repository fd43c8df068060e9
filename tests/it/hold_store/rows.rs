//! What is held comes back as it was, and is held once.

use std::collections::HashSet;

use aftercommit::hold::{self, Checkpoint, Park, State, delete_settled};
use aftercommit::outbox::{Field, Position, TableName, Task};
use aftercommit::pg::{Lsn, Timestamp};

use super::{MINUTE, SLOT, Store, pair, park};
use crate::support::postgres::Postgres;

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
