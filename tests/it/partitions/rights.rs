//! Who may do what to partitions, and what the preflight finds missing.

use aftercommit::control::Wanted;
use aftercommit::control::partitions::{drop_partition, extend, partitions};
use aftercommit::outbox::TableName;
use aftercommit::preflight::{Class, Expectation, preflight};

use super::{DAY, NAME, SETTLED_AT_ONCE, Site, ours};
use crate::init::{apply, expected, wanted};
use crate::support::daemon::Daemon;
use crate::support::tasks::to_stdout;
use crate::support::wait::PATIENCE;

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
