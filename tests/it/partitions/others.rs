//! Other sessions, and partitions that are not ours: nobody waits for us, and nothing of theirs goes.

use std::time::{Duration, Instant};

use aftercommit::control::partitions::{
    extend, open_transactions, partitions, prepared_transactions, strays,
};

use super::{DAY, Site, ours};
use crate::support::daemon::Daemon;
use crate::support::postgres::SUPERUSER;
use crate::support::wait::{PATIENCE, eventually};

/// `now()` is when a transaction began: it may still insert into a partition whose time is over, and must not fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_transaction_keeps_its_partition() {
    let mut site = Site::start(15).await.expect("Debian's version");
    // Not in the last moments before midnight.
    let with_time_left =
        "select name, upper from aftercommit.outbox_partitions('aftercommit.outbox')
                          where lower <= now() and upper > now() + interval '10 seconds'";
    let (today, midnight) = eventually(PATIENCE, "a day with time left", || async {
        let answer = site.server.psql(with_time_left);
        let (name, upper) = answer.split_once('|')?;
        Some((name.to_owned(), upper.to_owned()))
    })
    .await;
    // Today is over in a moment; the rest of it is another partition.
    let end = site
        .server
        .psql("select clock_timestamp() + interval '3 seconds'");
    site.run(&format!(
        "drop table {today};
         create table aftercommit.until_now partition of aftercommit.outbox
           for values from ('2026-01-01') to ('{end}');
         create table aftercommit.from_now partition of aftercommit.outbox
           for values from ('{end}') to ('{midnight}')"
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
    let insert = "insert into aftercommit.outbox (task, created_at) values ('t', now()) returning id::text, tableoid::regclass::text";
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
