//! Partitions come and go, under writers, and in tables of the application's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aftercommit::control::partitions::partitions;
use tokio::task::JoinSet;

use super::{DAY, NAME, Site, ours};
use crate::support::daemon::Daemon;
use crate::support::postgres::{Options, Postgres, SUPERUSER};
use crate::support::tasks::{printed, to_stdout};
use crate::support::wait::{PATIENCE, eventually};

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
