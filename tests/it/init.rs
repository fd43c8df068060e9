//! `init` on a real server.

use aftercommit::cli::exit::Code;
use aftercommit::cli::init;
use aftercommit::control::{self, Event, Wanted, script};
use aftercommit::outbox::TableName;
use aftercommit::preflight::{Class, Expectation};
use tokio::sync::mpsc;
use tokio_postgres::Client;

use crate::support::postgres::{Options, Postgres};

const OURS: [&str; 13] = [
    "id",
    "task",
    "args",
    "kwargs",
    "payload",
    "body",
    "key",
    "queue",
    "headers",
    "priority",
    "run_at",
    "expires_at",
    "options",
];

pub(crate) fn wanted(name: &str, login: Option<&str>) -> Wanted {
    Wanted {
        table: TableName::ours(),
        slot: name.to_owned(),
        publication: "aftercommit".to_owned(),
        login: login.map(str::to_owned),
        partition: None,
    }
}

pub(crate) fn expected(wanted: &Wanted) -> Expectation {
    Expectation {
        slot: wanted.slot.clone(),
        publication: wanted.publication.clone(),
        table: wanted.table.clone(),
        required: OURS.map(str::to_owned).to_vec(),
        optional: Vec::new(),
        application_name: "aftercommit".to_owned(),
        moments: ["run_at", "expires_at"].map(str::to_owned).to_vec(),
        deletes: true,
        partitions: wanted.partition.is_some(),
        heals: false,
        role: wanted.login.clone(),
    }
}

/// Runs `init` and returns what it printed, and what keeps the daemon from running.
pub(crate) async fn apply(
    client: &Client,
    observer: &Client,
    wanted: &Wanted,
) -> (String, Option<Class>) {
    let mut out = Vec::new();
    let class = init::apply(client, observer, wanted, &expected(wanted), &mut out)
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    (String::from_utf8(out).expect("text"), class)
}

/// Everything that `init` makes in a database, as the catalogs tell it.
async fn fingerprint(client: &Client) -> String {
    let row = client
        .query_one(
            "select concat_ws(E'\\n',
               (select nspacl::text from pg_namespace where nspname = 'aftercommit'),
               (select string_agg(concat_ws(' ', c.relname, c.relkind, c.reloptions,
                       (select array_agg(acl::text order by acl::text) from unnest(relacl) acl),
                       obj_description(c.oid, 'pg_class')), E'\\n' order by c.relname)
                from pg_class c where relnamespace = 'aftercommit'::regnamespace),
               (select string_agg(concat_ws(' ', attname, format_type(atttypid, atttypmod), attnotnull,
                       pg_get_expr(d.adbin, d.adrelid), col_description(attrelid, attnum)), E'\\n' order by attnum)
                from pg_attribute a left join pg_attrdef d on d.adrelid = attrelid and d.adnum = attnum
                where attrelid = 'aftercommit.outbox'::regclass and attnum > 0),
               (select string_agg(concat_ws(' ', conname, pg_get_constraintdef(oid)), E'\\n' order by conname)
                from pg_constraint where conrelid = 'aftercommit.outbox'::regclass),
               (select string_agg(concat_ws(' ', pg_get_functiondef(oid),
                       (select array_agg(acl::text order by acl::text) from unnest(proacl) acl),
                       obj_description(oid, 'pg_proc')), E'\\n' order by oid::regprocedure::text)
                from pg_proc where pronamespace = 'aftercommit'::regnamespace),
               (select string_agg(pg_get_triggerdef(oid), E'\\n') from pg_trigger
                where tgrelid = to_regclass('aftercommit.hold')),
               (select string_agg(concat_ws(' ', p.pubname, puballtables, pubinsert, pubupdate, pubdelete, pubtruncate,
                       pubviaroot, prrelid::regclass), E'\\n')
                from pg_publication p left join pg_publication_rel on prpubid = p.oid),
               (select string_agg(concat_ws(' ', plugin, slot_type, temporary, two_phase), E'\\n')
                from pg_replication_slots where database = current_database()))",
            &[],
        )
        .await
        .expect("the catalogs");
    row.get(0)
}

#[tokio::test]
async fn a_second_run_changes_nothing_and_psql_makes_the_same() {
    let server = Postgres::start(Options::default());
    let client = server.database("applied").await;
    let observer = server.client_in("postgres", "applied").await;
    let wanted_here = wanted("applied", Some("postgres"));

    let (out, class) = apply(&client, &observer, &wanted_here).await;
    assert_eq!(class, None, "{out}");
    // A superuser is a member of every group.
    assert_eq!(out.matches("created ").count(), 10, "{out}");
    let first = fingerprint(&client).await;
    assert!(first.contains("row_is_at_most_256_mib"), "{first}");
    let place = "select confirmed_flush_lsn::text || 'aftercommit.outbox'::regclass::oid \
                 from pg_replication_slots where slot_name = 'applied'";
    let before: String = client.query_one(place, &[]).await.expect("a slot").get(0);

    let (out, class) = apply(&client, &observer, &wanted_here).await;
    assert_eq!(class, None, "{out}");
    assert_eq!(out.matches("already there ").count(), 11, "{out}");
    assert!(!out.contains("created"), "{out}");
    assert_eq!(fingerprint(&client).await, first);
    let after: String = client.query_one(place, &[]).await.expect("a slot").get(0);
    assert_eq!(after, before);

    // The same by psql, in a database of its own; also twice, the second time where everything is there.
    let printed = server.database("printed").await;
    let script = script(&wanted("printed", Some("postgres")));
    for _ in 0..2 {
        server.run_script("printed", &script);
        assert_eq!(fingerprint(&printed).await, first);
    }
}

#[tokio::test]
async fn an_older_enqueue_is_replaced_and_a_publication_completed() {
    let server = Postgres::start(Options::default());
    let client = server.client().await;
    let observer = server.client().await;
    let wanted = wanted("aftercommit", None);
    apply(&client, &observer, &wanted).await;
    let first = fingerprint(&client).await;
    client
        .batch_execute(
            "do $$ begin execute replace(pg_get_functiondef('aftercommit.enqueue'::regproc), 'return task_id', \
             'return null'); end $$; alter publication aftercommit drop table aftercommit.outbox",
        )
        .await
        .expect("an older one");
    assert_ne!(fingerprint(&client).await, first);
    let (out, class) = apply(&client, &observer, &wanted).await;
    assert_eq!(class, None, "{out}");
    assert_eq!(out.matches("created ").count(), 2, "{out}");
    assert_eq!(fingerprint(&client).await, first);
}

#[tokio::test]
async fn the_owner_of_a_database_needs_no_administrator() {
    let server = Postgres::start(Options::default());
    server
        .psql("create role aftercommit login replication; alter database app owner to aftercommit");
    let client = server.client_as("aftercommit").await;
    let observer = server.client_as("aftercommit").await;
    let wanted = wanted("aftercommit", Some("aftercommit"));
    let (out, class) = apply(&client, &observer, &wanted).await;
    assert_eq!(class, None, "{out}");
    assert_eq!(out.matches("created ").count(), 8, "{out}");
    assert_eq!(out.matches("left out ").count(), 3, "{out}");

    // With the administrator's help the rest is made.
    let admin = server.client().await;
    let (out, class) = apply(&admin, &observer, &wanted).await;
    assert_eq!(class, None, "{out}");
    assert_eq!(out.matches("created ").count(), 3, "{out}");
}

#[tokio::test]
async fn a_role_without_rights_is_told_what_to_do() {
    let server = Postgres::start(Options::default());
    let admin = server.client().await;
    admin
        .batch_execute("create role nobody login")
        .await
        .expect("a role");
    let nobody = server.client_as("nobody").await;
    let wanted_nobody = wanted("aftercommit", Some("nobody"));
    let error = init::apply(
        &nobody,
        &admin,
        &wanted_nobody,
        &expected(&wanted_nobody),
        &mut Vec::new(),
    )
    .await
    .expect_err("no rights");
    assert_eq!(error.code(), Code::Config);
    let message = error.to_string();
    assert!(
        message.starts_with("schema aftercommit: permission denied for database app (42501)\n"),
        "{message}"
    );
    assert!(message.contains("--url"), "{message}");

    // An administrator may make everything, but the daemon's role is not fit to run; then, it is.
    let observer = server.client().await;
    for (login, remedy) in [
        ("nobody", "alter role \"nobody\" replication;"),
        ("Day Mon", "create role \"Day Mon\" login replication;"),
    ] {
        let wanted = wanted("aftercommit", Some(login));
        let (out, class) = apply(&admin, &observer, &wanted).await;
        assert_eq!(class, Some(Class::Configuration), "{out}");
        assert!(out.contains(remedy), "{out}");
        admin.batch_execute(remedy).await.expect("the remedy");
        let (out, class) = apply(&admin, &observer, &wanted).await;
        assert_eq!(class, None, "{out}");
        let member = "select pg_has_role($1::text, 'aftercommit_daemon', 'member')";
        let row = admin.query_one(member, &[&login]).await.expect("a role");
        assert!(row.get::<_, bool>(0), "{login}");
    }
}

#[tokio::test]
async fn a_table_of_the_application_is_left_as_it_is() {
    let server = Postgres::start(Options::default());
    let client = server.client().await;
    let observer = server.client().await;
    let wanted = Wanted {
        table: "shop.events".parse().expect("a table"),
        ..wanted("aftercommit", None)
    };
    let expected = Expectation {
        required: vec!["id".to_owned(), "type".to_owned()],
        ..expected(&wanted)
    };
    let run = async || {
        let mut out = Vec::new();
        let class = init::apply(&client, &observer, &wanted, &expected, &mut out)
            .await
            .unwrap_or_else(|e| panic!("{e}"));
        (String::from_utf8(out).expect("text"), class)
    };
    client
        .batch_execute("create schema shop; create table shop.\"Events\" (id int, type text)")
        .await
        .expect("a table");
    let (out, class) = run().await;
    assert_eq!(class, Some(Class::Configuration));
    assert!(
        out.contains("table shop.events does not exist") && out.contains("there is shop.Events"),
        "{out}"
    );
    assert!(!out.contains("created"), "{out}");

    client
        .batch_execute("create table shop.events (id int, type text)")
        .await
        .expect("a table");
    let (out, class) = run().await;
    assert_eq!(class, None, "{out}");
    assert_eq!(out.matches("created ").count(), 8, "{out}");
    let row = client
        .query_one(
            "select to_regclass('aftercommit.outbox') is null, to_regproc('aftercommit.enqueue') is null, \
               has_table_privilege('aftercommit_daemon', 'shop.events', 'delete'), \
               has_table_privilege('aftercommit_daemon', 'shop.events', 'insert')",
            &[],
        )
        .await
        .expect("a row");
    let found: [bool; 4] = [row.get(0), row.get(1), row.get(2), row.get(3)];
    assert_eq!(found, [true, true, true, false]);
    let (out, class) = run().await;
    assert_eq!(class, None, "{out}");
    assert_eq!(out.matches("already there ").count(), 8, "{out}");
}

#[tokio::test]
async fn what_is_missing_of_the_hold_table_is_made_again() {
    let server = Postgres::start(Options::default());
    let client = server.client().await;
    let observer = server.client().await;
    let wanted = wanted("aftercommit", None);
    apply(&client, &observer, &wanted).await;
    let first = fingerprint(&client).await;
    for sql in [
        "drop table aftercommit.hold",
        "drop table aftercommit.checkpoint",
        "drop index aftercommit.hold_queue",
        "drop trigger hold_after_delete on aftercommit.hold",
        "drop function aftercommit.hold_enqueue",
        "revoke delete on aftercommit.hold from aftercommit_daemon",
        "revoke select on aftercommit.outbox from aftercommit_daemon",
        "revoke execute on function aftercommit.cancel(text) from aftercommit_app",
    ] {
        client.batch_execute(sql).await.expect(sql);
        assert_ne!(fingerprint(&client).await, first, "{sql}");
        let (out, class) = apply(&client, &observer, &wanted).await;
        assert_eq!(class, None, "{sql}: {out}");
        assert_eq!(fingerprint(&client).await, first, "{sql}");
    }
}

#[tokio::test]
async fn a_slot_that_has_to_wait_says_for_whom() {
    let server = Postgres::start(Options::default());
    let client = server.client().await;
    let observer = server.client().await;
    let wanted = wanted("aftercommit", None);

    let open = server.client_in("postgres", "postgres").await;
    open.batch_execute("set application_name = 'report'; begin; select pg_current_xact_id()")
        .await
        .expect("an open transaction");
    let pid: i32 = open
        .query_one("select pg_backend_pid()", &[])
        .await
        .expect("a pid")
        .get(0);
    let prepared = server.client_in("postgres", "postgres").await;
    prepared
        .batch_execute(
            "create table t (); begin; insert into t default values; prepare transaction 'it''s'",
        )
        .await
        .expect("a prepared transaction");

    let (tell, mut told) = mpsc::unbounded_channel();
    let init = tokio::spawn(async move {
        control::apply(&client, &observer, &wanted, &mut |event| {
            if let Event::WaitingFor(blockers) = event {
                let lines: Vec<String> = blockers
                    .iter()
                    .map(|b| format!("{b}; {}", b.remedy()))
                    .collect();
                let _ = tell.send(lines.join("\n"));
            }
        })
        .await
    });
    let waiting = told.recv().await.expect("it waits");
    assert!(
        waiting.contains(&format!(
            "pid {pid} (report, role postgres, database postgres, idle in transaction), open for "
        )),
        "{waiting}"
    );
    assert!(
        waiting.contains(&format!("select pg_terminate_backend({pid});")),
        "{waiting}"
    );
    assert!(
        waiting.contains("prepared transaction \"it's\" in database postgres")
            && waiting.contains("rollback prepared 'it''s';"),
        "{waiting}"
    );
    assert!(!init.is_finished());
    open.batch_execute("rollback").await.expect("a rollback");
    prepared
        .batch_execute("rollback prepared 'it''s'")
        .await
        .expect("a rollback");
    init.await.expect("no panic").expect("a slot");
    assert!(told.recv().await.is_none());
}

/// An `init` that was killed while it waited must not leave a slot behind: nobody would read it, and it would keep
/// all WAL.
#[tokio::test]
async fn a_slot_is_not_made_for_a_client_that_has_gone() {
    let server = Postgres::start(Options::default());
    let (client, connection) = server.connect("postgres", "app").await;
    let observer = server.client().await;
    let pid: i32 = client
        .query_one("select pg_backend_pid()", &[])
        .await
        .expect("a pid")
        .get(0);
    let open = server.client_in("postgres", "postgres").await;
    open.batch_execute("begin; select pg_current_xact_id()")
        .await
        .expect("an open transaction");
    let (tell, mut told) = mpsc::unbounded_channel();
    let init = tokio::spawn(async move {
        control::apply(
            &client,
            &observer,
            &wanted("aftercommit", None),
            &mut |event| {
                if let Event::WaitingFor(_) = event {
                    let _ = tell.send(());
                }
            },
        )
        .await
        .map_err(|e| e.code().cloned())
    });
    told.recv().await.expect("it waits");
    connection.abort();
    assert_eq!(init.await.expect("no panic"), Err(None));

    let look = server.client().await;
    let gone = async || {
        let row = look
            .query_one(
                "select not exists (select from pg_stat_activity where pid = $1)",
                &[&pid],
            )
            .await;
        row.expect("a row").get::<_, bool>(0)
    };
    while !gone().await {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    open.batch_execute("commit").await.expect("a commit");
    let slots = look
        .query("select slot_name from pg_replication_slots", &[])
        .await
        .expect("slots");
    assert!(slots.is_empty());
}
