//! `retention = "partition"` on real servers: partitions come ahead of time, and go when they are wholly settled.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aftercommit::control::Wanted;
use aftercommit::control::partitions::{
    drop_partition, extend, open_transactions, partitions, prepared_transactions, strays,
};
use aftercommit::outbox::TableName;
use aftercommit::preflight::{Class, Expectation, preflight};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::init::{apply, expected, wanted};
use crate::support::daemon::Daemon;
use crate::support::postgres::{Options, Postgres, SUPERUSER};
use crate::support::tasks::{printed, to_stdout};
use crate::support::wait::{PATIENCE, eventually};

const NAME: &str = "aftercommit";
const DAY: Duration = Duration::from_secs(86_400);
const SETTLED_AT_ONCE: &str = "[outbox]\nretention = \"partition\"\npartition_keep = \"0s\"";

/// A database with a partitioned outbox, and the daemon's role, which owns nothing.
struct Site {
    server: Postgres,
    admin: Client,
    /// Of every row that was inserted.
    ids: BTreeSet<String>,
}

impl Site {
    async fn start(version: u32) -> Option<Site> {
        Site::with(version, Some(DAY)).await
    }

    async fn with(version: u32, partition: Option<Duration>) -> Option<Site> {
        if !Postgres::available_or_skip(version) {
            return None;
        }
        let server = Postgres::start(Options {
            version,
            ..Options::default()
        });
        server.psql("create role daemon login replication");
        let (admin, observer) = (server.client().await, server.client().await);
        let wanted = Wanted {
            partition,
            ..wanted(NAME, Some("daemon"))
        };
        let (out, class) = apply(&admin, &observer, &wanted).await;
        assert_eq!(class, None, "{out}");
        let ids = BTreeSet::new();
        Some(Site { server, admin, ids })
    }

    async fn run(&self, sql: &str) {
        let done = self.admin.batch_execute(sql).await;
        done.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    fn insert(&mut self, created_at: &str) {
        let sql = format!(
            "insert into aftercommit.outbox (task, created_at) values ('t', {created_at}) returning id"
        );
        self.ids.insert(self.server.psql(&sql));
    }

    /// A partition whose time is long over; `n` makes it another one. Attached, which waits for nobody's transaction.
    fn add_past(&self, n: u32) -> String {
        let name = format!("past_{n}");
        let (from, to) = (2_000 + n, 2_001 + n);
        self.server.psql(&format!(
            "create table aftercommit.{name} (like aftercommit.outbox including all);
             alter table aftercommit.outbox attach partition aftercommit.{name}
               for values from ('{from}-01-01') to ('{to}-01-01')"
        ));
        name
    }

    fn has(&self, table: &str) -> bool {
        let sql = format!("select to_regclass('aftercommit.{table}') is not null");
        self.server.psql(&sql) == "t"
    }

    async fn wait_until_dropped(&self, table: &str) {
        eventually(PATIENCE, &format!("{table} is dropped"), || async {
            (!self.has(table)).then_some(())
        })
        .await;
    }

    async fn wait_until_printed(&self, daemon: &Daemon) {
        eventually(PATIENCE, "every task on stdout", || async {
            let seen: BTreeSet<String> = printed(daemon).into_iter().collect();
            assert!(seen.is_subset(&self.ids), "invented");
            (seen == self.ids).then_some(())
        })
        .await;
        assert_eq!(printed(daemon).len(), self.ids.len(), "twice");
    }

    /// As the daemon's role, which sees little of other sessions; or as one that sees all.
    fn config(&self, role: &str) -> String {
        to_stdout(&self.server.url(role), NAME, SETTLED_AT_ONCE)
    }
}

fn ours() -> TableName {
    TableName::ours()
}

async fn comes_and_goes(version: u32) {
    let Some(mut site) = Site::start(version).await else {
        return;
    };
    site.insert("now()");
    // One that is partitioned further is a partition, too.
    site.run(
        "create table aftercommit.nested partition of aftercommit.outbox
           for values from ('1999-01-01') to ('2000-01-01') partition by list (id);
         create table aftercommit.nested_all partition of aftercommit.nested default;",
    )
    .await;
    let old = site.add_past(20);
    site.insert("'2020-05-05'");
    site.insert("'1999-05-05'");
    let mut daemon = Daemon::start(&site.config("daemon"));
    site.wait_until_dropped(&old).await;
    site.wait_until_dropped("nested").await;
    // What is to come, the daemon makes by itself: as a later day would find it.
    let tomorrow = site.server.psql(
        "select name from aftercommit.outbox_partitions('aftercommit.outbox') order by upper desc limit 1",
    );
    site.run(&format!("drop table {tomorrow}")).await;
    assert!(daemon.terminate().await.success());
    site.wait_until_printed(&daemon).await;
    site.ids.clear();
    let mut daemon = Daemon::start(&site.config("daemon"));
    eventually(PATIENCE, "tomorrow", || async {
        let name = tomorrow.split_once('.').expect("a schema").1;
        site.has(name).then_some(())
    })
    .await;
    site.insert("now()");
    site.insert("now() + interval '1 day'");
    site.wait_until_printed(&daemon).await;
    let left = partitions(&site.admin, &ours()).await.expect("partitions");
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(left.iter().all(|p| p.past_us.is_some_and(|us| us < 0)));
    assert!(left.iter().all(|p| p.width == Some(DAY)));
    let owners = "select distinct tableowner from pg_tables where tablename like 'outbox%'";
    assert_eq!(site.server.psql(owners), SUPERUSER);
    assert!(daemon.terminate().await.success());
    assert!(!daemon.log().contains("WARN"), "{}", daemon.tail());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_come_and_go_on_14() {
    comes_and_goes(14).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_come_and_go_on_15() {
    comes_and_goes(15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_come_and_go_on_18() {
    comes_and_goes(18).await;
}

/// `now()` is when a transaction began: it may still insert into a partition whose time is over, and must not fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_transaction_keeps_its_partition() {
    let mut site = Site::start(15).await.expect("Debian's version");
    let today = site
        .server
        .psql("select name from aftercommit.outbox_partitions('aftercommit.outbox') limit 1");
    // Today is over in a moment; the rest of it is another partition.
    let end = site
        .server
        .psql("select clock_timestamp() + interval '3 seconds'");
    site.run(&format!(
        "drop table {today};
         create table aftercommit.until_now partition of aftercommit.outbox
           for values from ('2026-01-01') to ('{end}');
         create table aftercommit.from_now partition of aftercommit.outbox
           for values from ('{end}') to ('{end}'::timestamptz + interval '1 hour')"
    ))
    .await;
    let mut open = site.server.client().await;
    let other = site.server.client().await;
    let transaction = open.transaction().await.expect("a transaction");
    transaction
        .batch_execute("select 1")
        .await
        .expect("an answer");
    other.batch_execute("begin").await.expect("a transaction");

    // It sees when others began: so it does not wait where it need not, and the old one goes.
    let mut daemon = Daemon::start(&site.config(SUPERUSER));
    eventually(PATIENCE, "the end of the partition", || async {
        let is_over = format!("select clock_timestamp() > '{end}'");
        (site.server.psql(&is_over) == "t").then_some(())
    })
    .await;
    let witness = site.add_past(1);
    site.wait_until_dropped(&witness).await;
    assert!(site.has("until_now"));

    // One inserts by its own now(), and is prepared; the other one ends.
    let insert = "insert into aftercommit.outbox (task) values ('t') returning id::text, tableoid::regclass::text";
    let row = other
        .query_one(insert, &[])
        .await
        .expect("a partition for it");
    assert_eq!(row.get::<_, &str>(1), "aftercommit.until_now");
    site.ids.insert(row.get(0));
    other
        .batch_execute("prepare transaction 'p'")
        .await
        .expect("prepared");
    let row = transaction
        .query_one(insert, &[])
        .await
        .expect("a partition for it");
    site.ids.insert(row.get(0));
    transaction.commit().await.expect("a commit");
    // The last query of a look, in a look that began after that.
    let now = site.server.psql("select clock_timestamp()");
    let looked = format!(
        "select count(*) from pg_stat_activity where query ~ 'pg_current_wal_insert_lsn'
         and application_name = 'aftercommit partitions' and query_start > '{now}'"
    );
    eventually(PATIENCE, "another look", || async {
        (site.server.psql(&looked) == "1").then_some(())
    })
    .await;
    assert!(site.has("until_now"));
    site.run("commit prepared 'p'").await;
    site.wait_until_dropped("until_now").await;
    assert!(site.has("from_now"));
    site.wait_until_printed(&daemon).await;
    assert!(daemon.terminate().await.success());
}

/// Partitions of seconds come and go under writers that never pause: no insert fails, and no row is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_do_not_notice() {
    let mut site = Site::start(15).await.expect("Debian's version");
    site.run(
        "do $$
         declare name text;
         begin
           for name in select p.name from aftercommit.outbox_partitions('aftercommit.outbox') p loop
             execute 'drop table ' || name;
           end loop;
           execute format('create table aftercommit.short partition of aftercommit.outbox for values from (%L) to (%L)',
                          now(), now() + interval '4 seconds');
           perform aftercommit.outbox_extend('aftercommit.outbox', '1 day');
         end
         $$",
    )
    .await;
    let mut daemon = Daemon::start(&site.config("daemon"));
    let enough = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for _ in 0..4 {
        let (client, enough) = (site.server.client().await, enough.clone());
        writers.spawn(async move {
            let mut ids = Vec::new();
            while !enough.load(Ordering::Relaxed) {
                let insert =
                    "insert into aftercommit.outbox (task) values ('t'), ('t') returning id::text";
                let rows = client.query(insert, &[]).await.expect("a partition");
                ids.extend(rows.iter().map(|row| row.get::<_, String>(0)));
            }
            ids
        });
    }
    eventually(PATIENCE, "three partitions to come and go", || async {
        let gone = daemon.log().matches("dropped a partition").count();
        (gone >= 3).then_some(())
    })
    .await;
    enough.store(true, Ordering::Relaxed);
    while let Some(ids) = writers.join_next().await {
        site.ids.extend(ids.expect("a writer"));
    }
    site.wait_until_printed(&daemon).await;
    assert!(daemon.terminate().await.success());
    assert!(!daemon.log().contains("WARN"), "{}", daemon.tail());
}

/// Without rights to see when another session's transaction began, it counts as an old one.
#[tokio::test]
async fn a_plain_role_sees_that_a_transaction_is_open() {
    let site = Site::start(15).await.expect("Debian's version");
    let daemon = site.server.client_as("daemon").await;
    let quiet = open_transactions(&daemon).await.expect("an answer").len();
    let other = site.server.client().await;
    other
        .batch_execute("begin; select 1")
        .await
        .expect("a transaction");
    let open = open_transactions(&daemon).await.expect("an answer");
    assert_eq!(open.len(), quiet + 1, "{open:?}");
    assert!(open.iter().any(|open| open.age_us.is_none()), "{open:?}");
    let seen = open_transactions(&site.admin).await.expect("an answer");
    assert!(seen.iter().any(|open| open.age_us.is_some()), "{seen:?}");
    // Another database's cannot write here.
    let elsewhere = site.server.client_in(SUPERUSER, "postgres").await;
    elsewhere
        .batch_execute("begin; select 1")
        .await
        .expect("a transaction");
    let open = open_transactions(&daemon).await.expect("an answer");
    assert_eq!(open.len(), quiet + 1, "{open:?}");

    assert_eq!(prepared_transactions(&daemon).await.expect("none"), [""; 0]);
    other
        .batch_execute(
            "insert into aftercommit.outbox (task) values ('t'); prepare transaction 'p'",
        )
        .await
        .expect("prepared");
    let prepared = prepared_transactions(&daemon).await.expect("one");
    assert_eq!(prepared.len(), 1);
}

/// Nobody's insert waits behind a DROP that waits for a reader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_reader_only_postpones() {
    let mut site = Site::start(15).await.expect("Debian's version");
    let old = site.add_past(20);
    site.insert("'2020-05-05'");
    let last = site.server.psql(
        "select name from aftercommit.outbox_partitions('aftercommit.outbox') order by upper desc limit 1",
    );
    site.run(&format!("drop table {last}")).await;
    let mut reader = site.server.client().await;
    let reading = reader.transaction().await.expect("a transaction");
    let pid: i32 = reading
        .query_one(
            "select pg_backend_pid(), count(*) from aftercommit.outbox",
            &[],
        )
        .await
        .expect("rows")
        .get(0);

    let mut daemon = Daemon::start(&site.config(SUPERUSER));
    // Partitions are made beside a reader, even so.
    for words in ["made a partition", "it is dropped later"] {
        daemon
            .wait_for_log(words, |record| {
                record["message"].to_string().contains(words) || record.to_string().contains(words)
            })
            .await;
    }
    let log = daemon.log();
    assert!(log.contains(&pid.to_string()), "{log}");
    for _ in 0..20 {
        let begun = Instant::now();
        site.insert("now()");
        assert!(begun.elapsed() < Duration::from_secs(2), "an insert waited");
    }
    assert!(site.has(&old));
    site.wait_until_printed(&daemon).await;
    reading.commit().await.expect("a commit");
    site.wait_until_dropped(&old).await;
    assert!(daemon.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_partition_is_told_of_and_left_alone() {
    let mut site = Site::start(15).await.expect("Debian's version");
    let names = site
        .server
        .psql("select name from aftercommit.outbox_partitions('aftercommit.outbox')");
    for name in names.lines().skip(1) {
        site.run(&format!("drop table {name}")).await;
    }
    site.run("create table aftercommit.others partition of aftercommit.outbox default")
        .await;
    site.insert("now() + interval '1 day'");
    site.insert("'2020-05-05'");
    let old = site.add_past(19);
    let mut daemon = Daemon::start(&site.config("daemon"));
    for words in [
        "cannot make a partition of the outbox: updated partition constraint for default partition",
        "the DEFAULT partition has rows",
    ] {
        daemon
            .wait_for_log(words, |record| record.to_string().contains(words))
            .await;
    }
    // The next one could be made, and the old one dropped.
    site.wait_until_dropped(&old).await;
    site.wait_until_printed(&daemon).await;
    assert!(site.has("others"));
    assert_eq!(
        site.server.psql("select count(*) from aftercommit.others"),
        "2"
    );
    let left = partitions(&site.admin, &ours()).await.expect("partitions");
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(daemon.terminate().await.success());

    // Moved away by hand, they are in nobody's way any more.
    site.run("delete from aftercommit.others").await;
    let daemon = site.server.client_as("daemon").await;
    assert_eq!(strays(&daemon, &ours()).await.expect("an answer"), None);
    let made = extend(&daemon, &ours(), DAY).await.expect("made");
    assert_eq!(made.len(), 1, "{made:?}");
    assert_eq!(made[0].problem, None);
}

/// The application's own table and owner, months for partitions, a plain timestamp.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_the_application() {
    let server = Postgres::start(Options::default());
    server.psql(
        "create role daemon login replication; create role shop; create schema shop authorization shop;
         set role shop;
         create table shop.events (id bigint generated always as identity, task text not null, at timestamp not null default now(),
                                   primary key (id, at)) partition by range (at);
         create index on shop.events (task);
         create table shop.events_first partition of shop.events for values from ('2026-02-01') to ('2026-03-01');
         insert into shop.events (task, at) values ('before the slot', '2026-02-10')",
    );
    let url = server.url("daemon");
    let config = to_stdout(
        &url,
        NAME,
        "[outbox]\ntable = \"shop.events\"\nretention = \"partition\"",
    );
    let init =
        crate::support::daemon::aftercommit(&["init", "--url", &server.url(SUPERUSER)], &config);
    assert!(init.status.success(), "{init:?}");
    let months = "select count(*), bool_and(pg_get_expr(relpartbound, oid) ~ '-01 00:00:00.*-01 00:00:00'), \
                  string_agg(distinct relowner::regrole::text, ',') from pg_class where relname ~ '^events_p20[0-9]{4}01$'";
    let made = server.psql(months);
    assert!(made == "3|t|shop" || made == "4|t|shop", "{made}");
    let mut daemon = Daemon::start(&config);
    server.psql("insert into shop.events (task) values ('a')");
    eventually(PATIENCE, "the old one to go", || async {
        (server.psql("select to_regclass('shop.events_first') is null") == "t").then_some(())
    })
    .await;
    eventually(PATIENCE, "the task", || async {
        (printed(&daemon).len() == 1).then_some(())
    })
    .await;
    assert!(daemon.terminate().await.success());
}

/// Who may delete every row may drop what is past, and nobody else anything.
#[tokio::test]
async fn the_functions_do_no_more_than_they_say() {
    let site = Site::start(15).await.expect("Debian's version");
    site.run(
        "create role stranger login; grant usage on schema aftercommit to stranger;
         create schema other;
         create table other.log (at timestamptz) partition by range (at);
         create table other.old partition of other.log for values from ('2000-01-01') to ('2001-01-01');
         create table other.plain (at timestamptz);
         grant usage on schema other to daemon; grant delete on other.plain to daemon;
         create table aftercommit.others partition of aftercommit.outbox default",
    )
    .await;
    let daemon = site.server.client_as("daemon").await;
    let log: TableName = "other.log".parse().expect("a table");
    let oid = |name: &str| {
        let oid = site.server.psql(&format!("select '{name}'::regclass::oid"));
        oid.parse::<u32>().expect("an OID")
    };
    let code = |error: aftercommit::replication::Error| error.sqlstate().map(str::to_owned);
    let error = drop_partition(&daemon, &log, oid("other.old")).await;
    assert_eq!(code(error.expect_err("not ours")).as_deref(), Some("42501"));
    let error = extend(&daemon, &log, DAY).await;
    assert_eq!(code(error.expect_err("not ours")).as_deref(), Some("42501"));
    let plain: TableName = "other.plain".parse().expect("a table");
    let error = extend(&daemon, &plain, DAY).await;
    assert_eq!(code(error.expect_err("plain")).as_deref(), Some("42809"));
    let today = partitions(&daemon, &ours()).await.expect("partitions")[0].oid;
    for other in [
        today,
        oid("other.old"),
        oid("aftercommit.others"),
        oid("aftercommit.outbox"),
    ] {
        let error = drop_partition(&daemon, &ours(), other).await;
        assert_eq!(code(error.expect_err("not past")).as_deref(), Some("42P01"));
    }
    // What a caller calls by the name of a type is not taken for it.
    let old = site.add_past(1);
    let sly = daemon
        .batch_execute(
            "create type pg_temp.timestamptz as (a int); create type pg_temp.regtype as (a int);
             select * from aftercommit.outbox_extend('aftercommit.outbox', '1 day')",
        )
        .await;
    sly.expect("the real types");
    let old = oid(&format!("aftercommit.{old}"));
    drop_partition(&daemon, &ours(), old).await.expect("past");
    for (role, sql) in [
        (
            "stranger",
            "select aftercommit.outbox_extend('aftercommit.outbox', '1 day')",
        ),
        (
            "stranger",
            "select aftercommit.outbox_strays('aftercommit.outbox')",
        ),
        (
            "daemon",
            "create table aftercommit.mine partition of aftercommit.outbox for values from ('1990-01-01') to ('1991-01-01')",
        ),
    ] {
        let client = site.server.client_as(role).await;
        let error = client.batch_execute(sql).await.expect_err(sql);
        assert_eq!(error.code().map(|c| c.code()), Some("42501"), "{sql}");
    }
}

#[tokio::test]
async fn the_preflight_sees_what_is_missing() {
    let site = Site::with(15, None).await.expect("Debian's version");
    let expected = Expectation {
        partitions: true,
        ..expected(&wanted(NAME, Some("daemon")))
    };
    let findings = async || {
        let report = preflight(&site.admin, &expected).await;
        report.unwrap_or_else(|e| panic!("{e:?}")).findings
    };
    // A plain outbox is there already: init says so, and makes nothing.
    let wanted = Wanted {
        partition: Some(DAY),
        ..wanted(NAME, Some("daemon"))
    };
    let observer = site.server.client().await;
    let (out, class) = apply(&site.admin, &observer, &wanted).await;
    assert_eq!(class, Some(Class::Configuration));
    assert!(
        out.contains("aftercommit.outbox is not partitioned"),
        "{out}"
    );
    assert!(!out.contains("created"), "{out}");
    site.run("alter table aftercommit.outbox rename to outbox_old; alter index aftercommit.outbox_pkey rename to old_pkey")
        .await;
    let (out, class) = apply(&site.admin, &observer, &wanted).await;
    assert_eq!(class, None, "{out}");
    let (out, class) = apply(&site.admin, &observer, &wanted).await;
    assert_eq!((class, out.contains("created")), (None, false), "{out}");
    assert_eq!(findings().await, []);

    site.run("create role someone; grant create on schema aftercommit to someone")
        .await;
    for (break_it, words) in [
        (
            "revoke execute on function aftercommit.outbox_drop from aftercommit_daemon",
            "lacks execute",
        ),
        (
            "revoke delete on aftercommit.outbox from aftercommit_daemon",
            "lacks delete on table",
        ),
        (
            "alter function aftercommit.outbox_drop owner to someone",
            "owns the functions",
        ),
        (
            "drop function aftercommit.outbox_strays",
            "lacks the functions that make and drop partitions",
        ),
    ] {
        site.run(break_it).await;
        let found = findings().await;
        assert_eq!(found.len(), 1, "{break_it}: {found:?}");
        assert!(found[0].what.contains(words), "{}", found[0]);
        for sql in &found[0].sql {
            site.run(sql).await;
        }
        if found[0].sql.is_empty() {
            let (out, class) = apply(&site.admin, &observer, &wanted).await;
            assert_eq!(class, None, "{out}");
        }
        assert_eq!(findings().await, [], "after {break_it}");
    }

    // And the daemon does not start without.
    site.run("drop function aftercommit.outbox_strays").await;
    let config = to_stdout(&site.server.url("daemon"), NAME, SETTLED_AT_ONCE);
    let mut daemon = Daemon::start(&config);
    assert_eq!(daemon.ended(PATIENCE).await.code(), Some(78));
    assert!(
        daemon.log().contains("aftercommit init"),
        "{}",
        daemon.tail()
    );
}
