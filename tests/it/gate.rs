//! The gate on real servers: a worker that gets a task finds the row that it is about. Row 31 of the exam has the same
//! with many commits.

use tokio::task::JoinSet;

use crate::support::daemon::{Daemon, init};
use crate::support::orders::{Probe, order, place_orders};
use crate::support::postgres::{Options, Postgres, SUPERUSER};
use crate::support::proxy::{Fault, Proxy};
use crate::support::tasks::{Tasks, id, printed, to_stdout, wait_for_printed};
use crate::support::wait::{PATIENCE, eventually};

const NAME: &str = "aftercommit";
const NOT_VISIBLE: &str = "a committed transaction is not visible yet";

fn primary() -> Postgres {
    let primary = Postgres::start(Options::default());
    primary.psql("create table public.orders (id int primary key)");
    init(&to_stdout(&primary.url(SUPERUSER), NAME, ""));
    primary
}

/// Commits so many orders that wait for the synchronous standby, and returns when all of them do.
async fn place_waiting_orders(server: &Postgres, first: usize, count: usize) -> JoinSet<bool> {
    let mut customers = JoinSet::new();
    for number in first..first + count {
        let client = server.client().await;
        customers.spawn(async move { client.batch_execute(&order(number)).await.is_ok() });
    }
    let waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep' and application_name not like 'aftercommit%'";
    eventually(PATIENCE, "commits that wait for the standby", || {
        let waiting = server.psql(waiting) == count.to_string();
        async move { waiting.then_some(()) }
    })
    .await;
    customers
}

async fn wait_for_warning(daemon: &mut Daemon, seconds: u64) {
    daemon
        .wait_for_log("the gate's warning", |record| {
            let message = record["message"].as_str().unwrap_or_default();
            message.starts_with(NOT_VISIBLE) && record["seconds"].as_u64() >= Some(seconds)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_standby_has_is_not_dispatched_and_after_a_failover_never() {
    let mut primary = primary();
    let proxy = Proxy::start(primary.port());
    let standby = primary.create_standby_through(proxy.port(), "standby", true);
    // Both hosts, as one writes it where either may be the primary.
    let url = format!(
        "postgres://{SUPERUSER}@127.0.0.1:{},127.0.0.1:{}/app",
        primary.port(),
        standby.port()
    );
    let mut daemon = Daemon::start(&to_stdout(&url, NAME, "[gate]\ntimeout = \"300ms\""));
    primary.psql(&order(0));
    wait_for_printed(&daemon, 1).await;

    // The standby is away, and comes back.
    proxy.both(Fault::Stall);
    let customers = place_waiting_orders(&primary, 1, 3).await;
    wait_for_warning(&mut daemon, 2).await;
    assert_eq!(printed(&daemon).len(), 1, "dispatched before it is visible");
    assert_eq!(primary.psql("select count(*) from orders"), "1");
    proxy.pass();
    assert!(customers.join_all().await.into_iter().all(|placed| placed));
    wait_for_printed(&daemon, 4).await;

    // It is away again, and takes over without having got the last two: for their customers they never happened.
    proxy.both(Fault::Stall);
    let customers = place_waiting_orders(&primary, 4, 2).await;
    wait_for_warning(&mut daemon, 1).await;
    primary.kill9();
    assert!(!customers.join_all().await.into_iter().any(|placed| placed));
    standby.promote();
    let status = daemon.ended(PATIENCE).await;
    assert_eq!(status.code(), Some(3), "the slot has not come along");
    assert!(
        daemon
            .log()
            .contains("error: the server is not as it has to be"),
        "{}",
        daemon.tail()
    );
    assert!(
        daemon.log().contains("slot \"aftercommit\" does not exist"),
        "{}",
        daemon.tail()
    );
    assert_eq!(printed(&daemon).len(), 4);

    let config = to_stdout(&standby.url(SUPERUSER), NAME, "");
    init(&config);
    let (mut daemon, mut tasks) = Tasks::of(&config);
    standby.psql(&order(6));
    let task = tasks.next().await;
    assert_eq!(task["key"], "6", "a phantom: {}", id(&task));
    assert_eq!(
        standby.psql("select string_agg(id::text, ' ' order by id) from orders"),
        "0 1 2 3 6"
    );
    assert!(daemon.terminate().await.success());
    assert!(tasks.none().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_workers_read_from_is_waited_for() {
    const ORDERS: usize = 400;
    let primary = primary();
    let replica = primary.create_standby("replica", false);
    replica.psql("alter system set recovery_min_apply_delay = '150ms'");
    replica.psql("select pg_reload_conf()");
    let gate = format!(
        "[gate]\nreplicas = [\"{}\"]\ntimeout = \"300ms\"",
        replica.url(SUPERUSER)
    );
    let (mut daemon, mut tasks) = Tasks::of(&to_stdout(&primary.url(SUPERUSER), NAME, &gate));
    let probe = Probe::at(&replica).await;
    let customers = place_orders(&primary, 0, ORDERS).await;
    assert_eq!(probe.not_found(&mut tasks, ORDERS).await, 0);
    customers.join_all().await;

    replica.psql("select pg_wal_replay_pause()");
    eventually(PATIENCE, "the replica to pause", || {
        let paused = replica.psql("select pg_get_wal_replay_pause_state()") == "paused";
        async move { paused.then_some(()) }
    })
    .await;
    primary.psql(&order(ORDERS));
    wait_for_warning(&mut daemon, 1).await;
    assert!(tasks.none().await, "dispatched before the replica has it");
    replica.psql("select pg_wal_replay_resume()");
    assert_eq!(probe.not_found(&mut tasks, 1).await, 0);
    assert!(daemon.terminate().await.success());
}
