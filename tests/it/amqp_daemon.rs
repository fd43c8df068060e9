//! The daemon in front of a real RabbitMQ: what comes back, and a broker that takes nothing for a while.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::json;

use crate::sink_faults::assert_calm;
use crate::support::daemon::{Daemon, init};
use crate::support::exam::says;
use crate::support::postgres::{Options, Postgres, SUPERUSER};
use crate::support::rabbitmq::{RabbitMq, Vhost, id, is_installed};
use crate::support::tasks::{committed, with_sink};
use crate::support::wait::{PATIENCE, until};

/// In the hands of a sink, at most.
const IN_FLIGHT: usize = 4096;

/// Every task goes to the exchange `shop`, which has a queue for `order.*`.
fn shop(postgres: &Postgres, vhost: &Vhost<'_>) -> String {
    vhost.exchange("shop", "topic");
    vhost.queue("orders", json!({}));
    vhost.bind("shop", "orders", "order.#");
    let sink = format!(
        "[sink.amqp.out]\nurl = \"{}\"\nexchange = \"shop\"",
        vhost.url()
    );
    let limits = format!("[limits]\nin_flight = {IN_FLIGHT}");
    let config = with_sink(&postgres.url(SUPERUSER), "aftercommit", &sink, &limits);
    init(&config);
    config
}

/// Commits so many tasks in one transaction, half of them with one of a hundred keys.
fn insert(postgres: &Postgres, task: &str, rows: usize) {
    postgres.psql(&format!(
        "insert into aftercommit.outbox (task, key)
         select {task}, case when n % 2 = 0 then 'k' || n % 100 end from generate_series(1, {rows}) n"
    ));
}

/// Ids of the messages that have arrived, in their order, once there are so many different ones.
fn arrived(vhost: &Vhost<'_>, count: usize) -> Vec<String> {
    until(2 * PATIENCE, "all messages", || {
        let ids: Vec<String> = vhost.peek("orders").iter().map(id).collect();
        let different: HashSet<&String> = ids.iter().collect();
        (different.len() >= count).then_some(ids)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_ten_thousand_exactly_those_that_come_back_are_dead() {
    const ROWS: usize = 10_000;
    if !is_installed() {
        return;
    }
    let vhost = RabbitMq::shared().vhost();
    let postgres = Postgres::start(Options::default());
    let config = shop(&postgres, &vhost);
    let mut daemon = Daemon::start(&config);
    // No key has one that comes back.
    insert(
        &postgres,
        "case when n % 10 = 3 then 'nobody' else 'order.paid' end",
        ROWS,
    );
    let held = "select count(*) from aftercommit.hold";
    until(2 * PATIENCE, "the dead", || {
        (postgres.psql(held) == (ROWS / 10).to_string()).then_some(())
    });
    let mut ids = arrived(&vhost, ROWS - ROWS / 10);
    assert_eq!(ids.len(), ROWS - ROWS / 10, "each once");
    ids.extend(postgres.psql("select id from aftercommit.hold where state = 'dead' and attempts = 1 and task = 'nobody'").lines().map(str::to_owned));
    ids.sort();
    assert_eq!(ids, committed(&postgres));
    let why = postgres.psql("select distinct last_error from aftercommit.hold");
    assert_eq!(
        why,
        "the exchange \"shop\" has no queue for the routing key \"nobody\": bind one, then retry the task"
    );
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

/// The words of the alarm, the command that sets it off, and the one that ends it.
const ALARMS: [(&str, [&str; 2], [&str; 2]); 2] = [
    (
        "low on memory",
        ["set_vm_memory_high_watermark", "0.000001"],
        ["set_vm_memory_high_watermark", "0.4"],
    ),
    (
        "low on disk",
        ["set_disk_free_limit", "900GB"],
        ["set_disk_free_limit", "1MB"],
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_wait_while_the_broker_has_no_room() {
    if !is_installed() {
        return;
    }
    let server = RabbitMq::start();
    let vhost = server.default_vhost();
    let postgres = Postgres::start(Options::default());
    let config = shop(&postgres, &vhost);
    let mut daemon = Daemon::start(&config);
    let mut rows = 100;
    insert(&postgres, "'order.paid'", rows);
    arrived(&vhost, rows);
    for (words, start, end) in ALARMS {
        server.ctl(&start);
        insert(&postgres, "'order.paid'", 2500);
        rows += 2500;
        daemon
            .wait_for_log(words, |record| says(record, words))
            .await;
        assert_calm(&daemon, Duration::from_secs(4)).await;
        let burnt = postgres
            .psql("select count(*) from aftercommit.hold where attempts > 0 or state = 'dead'");
        assert_eq!(burnt, "0", "attempts of {words}");
        server.ctl(&end);
        arrived(&vhost, rows);
    }
    let ids = arrived(&vhost, rows);
    let different: HashSet<&String> = ids.iter().collect();
    let all = committed(&postgres);
    assert!(all.len() == rows && all.iter().all(|id| different.contains(id)));
    // What was under way when the alarm came is in doubt, and nothing else.
    let twice = ids.len() - different.len();
    eprintln!("{twice} of {rows} came twice");
    assert!(twice <= 2 * ALARMS.len() * IN_FLIGHT, "{twice}");
    assert_eq!(daemon.terminate().await.code(), Some(0));
}
