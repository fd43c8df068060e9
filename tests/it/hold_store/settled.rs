//! What is settled: checkpoints, deleted rows, cancelled tasks.

use std::time::{Duration, Instant};

use aftercommit::hold::{self, Checkpoint, Park, State, delete_settled};
use aftercommit::outbox::TableName;
use aftercommit::pg::Lsn;
use tokio_postgres::Client;

use super::{MINUTE, SLOT, Store, park};
use crate::support::postgres::Options;

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
