//! The contract with the application: the outbox table, enqueue(), and who may do what.

use tokio::sync::OnceCell;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::init::{apply, wanted};
use crate::support::postgres::{Options, Postgres};

/// Runs SQL that the server must refuse, and returns its code and the constraint that it names.
async fn refused(client: &Client, sql: &str) -> (SqlState, String) {
    let error = client.batch_execute(sql).await.expect_err(sql);
    let db = error
        .as_db_error()
        .unwrap_or_else(|| panic!("{sql}: {error}"));
    (
        db.code().clone(),
        db.constraint().unwrap_or_default().to_owned(),
    )
}

/// One server for these tests, with what `init` makes; they share its table and nothing else.
async fn server() -> &'static Postgres {
    static SERVER: OnceCell<Postgres> = OnceCell::const_new();
    SERVER
        .get_or_init(async || {
            let server = Postgres::start(Options::default());
            let admin = server.client().await;
            let observer = server.client().await;
            server.psql(
                "create role shop login; create role stranger login; create role aftercommit login replication; \
                 revoke connect on database app from public; grant connect on database app to shop, stranger",
            );
            let wanted = wanted("aftercommit", Some("aftercommit"));
            let (out, class) = apply(&admin, &observer, &wanted).await;
            assert_eq!(class, None, "{out}");
            server.psql("grant aftercommit_app to shop");
            server
        })
        .await
}

#[tokio::test]
async fn an_application_may_insert_and_nothing_else() {
    let server = server().await;
    let shop = server.client_as("shop").await;
    for sql in [
        "insert into aftercommit.outbox (task) values ('a')",
        "insert into aftercommit.outbox (task, kwargs) values ('b', '{\"n\": 1}')",
        "insert into aftercommit.outbox (task, kwargs) values ('c', '{\"n\": 1}'::jsonb)",
        "insert into aftercommit.outbox (task, args, headers, options, priority, run_at, expires_at, body) \
         values ('d', '[1]', '{}', '{}', 255, now(), now() + '1 day', '\\xff00')",
        "select aftercommit.enqueue('e')",
        "select aftercommit.enqueue('f', kwargs => '{\"order_id\": 42}')",
        "select aftercommit.enqueue('g', '[1, 2]', '{}', key => 'k', priority => 5, \
         run_at => now() + interval '5 minutes')",
    ] {
        shop.batch_execute(sql)
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }
    for sql in [
        "select id from aftercommit.outbox",
        "insert into aftercommit.outbox (task) values ('a') returning id",
        "update aftercommit.outbox set task = 'x'",
        "delete from aftercommit.outbox",
        "truncate aftercommit.outbox",
        "create table aftercommit.mine ()",
    ] {
        assert_eq!(
            refused(&shop, sql).await.0,
            SqlState::INSUFFICIENT_PRIVILEGE,
            "{sql}"
        );
    }
    let stranger = server.client_as("stranger").await;
    let daemon = server.client_as("aftercommit").await;
    for (who, role) in [(&stranger, "stranger"), (&daemon, "aftercommit")] {
        for sql in [
            "select aftercommit.enqueue('a')",
            "insert into aftercommit.outbox (task) values ('a')",
            "update aftercommit.outbox set task = 'x'",
            "truncate aftercommit.outbox",
            "truncate aftercommit.hold",
        ] {
            assert_eq!(
                refused(who, sql).await.0,
                SqlState::INSUFFICIENT_PRIVILEGE,
                "{role}: {sql}"
            );
        }
    }
    // What was held is the daemon's; an application may cancel, by its id, what it has scheduled.
    for (who, role) in [(&stranger, "stranger"), (&shop, "shop")] {
        for sql in [
            "select from aftercommit.hold",
            "delete from aftercommit.hold",
            "select from aftercommit.checkpoint",
            "delete from aftercommit.outbox",
            "select aftercommit.hold_retry(1)",
            "select aftercommit.hold_discard(1)",
            "select aftercommit.hold_discard(array[1]::bigint[])",
            "select aftercommit.hold_lock('aftercommit')",
        ] {
            assert_eq!(
                refused(who, sql).await.0,
                SqlState::INSUFFICIENT_PRIVILEGE,
                "{role}: {sql}"
            );
        }
    }
    let cancel = "select aftercommit.cancel('x')";
    assert_eq!(
        refused(&stranger, cancel).await.0,
        SqlState::INSUFFICIENT_PRIVILEGE
    );
    for (who, sql) in [
        (&shop, cancel),
        (&daemon, cancel),
        (&daemon, "select aftercommit.hold_retry(1)"),
        (&daemon, "select aftercommit.hold_discard(1)"),
        (&daemon, "delete from aftercommit.outbox"),
    ] {
        who.batch_execute(sql)
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }
}

#[tokio::test]
async fn enqueue_writes_what_it_is_given() {
    let client = server().await.client().await;
    // Nothing of the caller's is looked up: not with an empty search_path, nor with one that is set against it.
    client
        .batch_execute(
            "create schema bait; create function bait.gen_random_uuid() returns uuid language sql as 'select null::uuid'; \
             create table bait.outbox (id int)",
        )
        .await
        .expect("a bait");
    for path in ["''", "bait, pg_catalog"] {
        client
            .batch_execute(&format!("set search_path = {path}"))
            .await
            .expect("a path");
        let row = client
            .query_one(
                "with made as materialized (select aftercommit.enqueue('t', '[1]', '{\"b\": 1, \"a\": 12345678901234567890}', \
                   payload => '\"p\"', body => '\\x00ff', key => 'k', queue => 'q', headers => '{\"h\": 1}', priority => 7, \
                   run_at => '2030-01-01 00:00:00+00', expires_at => '2031-01-01 00:00:00+00', options => '{\"o\": 1}') as id) \
                 select id::text from made",
                &[],
            )
            .await
            .expect("an id");
        let id: String = row.get(0);
        let row = client
            .query_one(
                "select concat_ws('|', task, args, kwargs, payload, body, key, queue, headers, priority, \
                   run_at at time zone 'utc', expires_at at time zone 'utc', options) \
                 from aftercommit.outbox where id = ($1::text)::uuid",
                &[&id],
            )
            .await
            .expect("the row");
        assert_eq!(
            row.get::<_, String>(0),
            "t|[1]|{\"b\": 1, \"a\": 12345678901234567890}|\"p\"|\\x00ff|k|q|{\"h\": 1}|7|2030-01-01 00:00:00|\
             2031-01-01 00:00:00|{\"o\": 1}"
        );
        let twice = format!("select aftercommit.enqueue('t', id => '{id}')");
        assert_eq!(refused(&client, &twice).await.0, SqlState::UNIQUE_VIOLATION);
    }
}

#[tokio::test]
async fn a_row_that_no_worker_could_take_fails_in_its_own_transaction() {
    let client = server().await.client().await;
    for (column, value, constraint) in [
        ("args", "'{}'", "args_is_an_array"),
        ("args", "'null'", "args_is_an_array"),
        ("kwargs", "'[]'", "kwargs_is_an_object"),
        ("kwargs", "'\"{}\"'::jsonb", "kwargs_is_an_object"),
        ("headers", "'1'", "headers_is_an_object"),
        ("options", "'[]'", "options_is_an_object"),
        ("priority", "-1", "priority_is_a_byte"),
        ("priority", "256", "priority_is_a_byte"),
        ("run_at", "'infinity'", "run_at_is_a_date"),
        ("run_at", "'10000-01-01'", "run_at_is_a_date"),
        ("run_at", "'0044-03-15 BC'", "run_at_is_a_date"),
        ("expires_at", "'-infinity'", "expires_at_is_a_date"),
        ("expires_at", "'0001-01-01'", "expires_at_is_a_date"),
    ] {
        let sql = format!("insert into aftercommit.outbox (task, {column}) values ('t', {value})");
        assert_eq!(
            refused(&client, &sql).await,
            (SqlState::CHECK_VIOLATION, constraint.to_owned()),
            "{sql}"
        );
    }
    for (sql, code) in [
        (
            "insert into aftercommit.outbox (task) values ('')",
            SqlState::CHECK_VIOLATION,
        ),
        (
            "insert into aftercommit.outbox (kwargs) values ('{}')",
            SqlState::NOT_NULL_VIOLATION,
        ),
        (
            "insert into aftercommit.outbox (task, kwargs) values ('t', '{')",
            SqlState::INVALID_TEXT_REPRESENTATION,
        ),
    ] {
        assert_eq!(refused(&client, sql).await.0, code, "{sql}");
    }
    // A body counts twice, as it is sent.
    let body = |mib: u32| {
        format!(
            "insert into aftercommit.outbox (task, body) values ('t', decode(repeat('00', {mib} << 20), 'hex'))"
        )
    };
    assert_eq!(
        refused(&client, &body(129)).await.1,
        "row_is_at_most_256_mib"
    );
    client
        .batch_execute(&body(100))
        .await
        .expect("a body of 100 MiB");
}
