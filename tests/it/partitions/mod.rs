//! `retention = "partition"` on real servers: partitions come ahead of time, and go when they are wholly settled.

mod lifecycle;
mod others;
mod rights;

use std::collections::BTreeSet;
use std::time::Duration;

use aftercommit::control::Wanted;
use aftercommit::outbox::TableName;
use tokio_postgres::Client;

use crate::init::{apply, wanted};
use crate::support::daemon::Daemon;
use crate::support::postgres::{Options, Postgres};
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
