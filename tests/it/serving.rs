//! Sinks that are served one by one: a task that takes long holds up its key, and nobody else.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::support::daemon::{Daemon, init};
use crate::support::exam::processor_time;
use crate::support::postgres::{Options, Postgres, SUPERUSER};
use crate::support::process::{scratch, whole_lines, write_program};
use crate::support::receiver::{Answer, Receiver};
use crate::support::tasks::with_sink;
use crate::support::wait::{PATIENCE, eventually};

/// The tasks 1 to `TASKS`, of this many keys. The first of all takes long.
const TASKS: usize = 600;
const KEYS: usize = 20;
const SLOW: usize = 1;

fn is_of_the_slow_key(n: &usize) -> bool {
    n % KEYS == SLOW % KEYS
}

fn postgres(name: &str, sink: &str, tasks: usize) -> (Postgres, String) {
    let postgres = Postgres::start(Options::default());
    let config = with_sink(&postgres.url(SUPERUSER), name, sink, "[outbox]\n");
    init(&config);
    postgres.psql(&format!(
        "insert into aftercommit.outbox (task, key, kwargs)
         select 'a.b', n % {KEYS}, json_build_object('n', n) from generate_series(1, {tasks}) n"
    ));
    (postgres, config)
}

/// While the slow task is not done: all are that are of other keys, and those of its own key are not.
async fn only_its_key_waits(came: impl Fn() -> Vec<usize>) {
    let others = TASKS - TASKS / KEYS;
    eventually(PATIENCE, "all others are done", || {
        let came = came();
        async move { (came.len() >= others).then_some(()) }
    })
    .await;
    let came = came();
    assert!(!came.iter().any(is_of_the_slow_key));
    assert_eq!(came.len(), others, "nothing twice");
}

async fn settled(postgres: &Postgres) {
    eventually(PATIENCE, "all is settled", || async {
        let left = "select (select count(*) from aftercommit.outbox) + (select count(*) from aftercommit.hold)";
        (postgres.psql(left) == "0").then_some(())
    })
    .await;
}

/// Each once, and those of a key in order.
fn assert_in_order(came: &[usize]) {
    let mut sorted = came.to_vec();
    sorted.sort_unstable();
    assert_eq!(sorted, (1..=TASKS).collect::<Vec<_>>());
    for key in 0..KEYS {
        let of_key = came.iter().filter(|n| **n % KEYS == key);
        assert!(of_key.is_sorted(), "key {key} in order");
    }
}

/// A door that requests wait at.
#[derive(Default)]
struct Door {
    is_open: Mutex<bool>,
    opens: Condvar,
}

impl Door {
    fn wait(&self) {
        let is_open = self.is_open.lock().expect("no panic");
        let _open = self.opens.wait_while(is_open, |is_open| !*is_open);
    }

    fn open(&self) {
        *self.is_open.lock().expect("no panic") = true;
        self.opens.notify_all();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_request_holds_up_its_key_alone() {
    let door = Arc::new(Door::default());
    let receiver = Receiver::deciding({
        let door = door.clone();
        move |request| {
            if request.json()["kwargs"]["n"] == SLOW {
                door.wait();
            }
            Answer::Status(204, Vec::new())
        }
    });
    let sink = format!(
        "[sink.webhook.out]\nurl = \"{}\"\nallow_addresses = [\"127.0.0.1\"]\nconcurrency = 2\ntimeout = \"600s\"\n",
        receiver.url()
    );
    let (postgres, config) = postgres("slow_request", &sink, TASKS);
    let mut daemon = Daemon::start(&config);
    let came = || {
        let requests = receiver.requests();
        let numbers = requests
            .iter()
            .map(|request| request.json()["kwargs"]["n"].as_u64());
        let numbers = numbers.map(|n| usize::try_from(n.expect("a number")).expect("small"));
        numbers.collect::<Vec<usize>>()
    };
    only_its_key_waits(came).await;
    door.open();
    settled(&postgres).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert_in_order(&came());
}

/// A sink that was away and then hangs is waited for, and not looked at again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_an_answer_after_an_outage_costs_nothing() {
    let door = Arc::new(Door::default());
    let asked = Arc::new(AtomicUsize::new(0));
    let receiver = Receiver::deciding({
        let (door, asked) = (door.clone(), asked.clone());
        move |_| {
            if asked.fetch_add(1, Ordering::SeqCst) == 0 {
                return Answer::Status(401, Vec::new());
            }
            door.wait();
            Answer::Status(204, Vec::new())
        }
    });
    let sink = format!(
        "[sink.webhook.out]\nurl = \"{}\"\nallow_addresses = [\"127.0.0.1\"]\ntimeout = \"600s\"\n",
        receiver.url()
    );
    let (postgres, config) = postgres("hanging_trial", &sink, 1);
    let mut daemon = Daemon::start(&config);
    eventually(PATIENCE, "it is tried again", || async {
        (asked.load(Ordering::SeqCst) == 2).then_some(())
    })
    .await;
    let (before, since) = (processor_time(&daemon), Instant::now());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let spent = processor_time(&daemon) - before;
    assert!(spent < since.elapsed() / 4, "{spent:?}");
    door.open();
    settled(&postgres).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

/// And a stop that does not wait for a slow task repeats it, but nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_task_holds_up_its_key_alone_and_a_stop_repeats_no_other() {
    let room = scratch("serving");
    let path = |name: &str| room.path().join(name);
    write_program(
        &path("worker"),
        &format!(
            r#"#!/usr/bin/env python3
import json, os, sys, time
folder = os.path.dirname(__file__)
for line in sys.stdin:
    n = json.loads(line)["kwargs"]["n"]
    if n == {SLOW}:
        open(folder + "/begun", "a").write("begun\n")
    while n == {SLOW} and not os.path.exists(folder + "/go"):
        time.sleep(0.01)
    with open(folder + "/done", "a") as file:
        file.write(f"{{n}}\n")
    print("ok", flush=True)
"#
        ),
    );
    let sink = format!(
        "[sink.exec.out]\ncommand = [{:?}]\nworkers = 2\n",
        path("worker")
    );
    let (postgres, config) = postgres("slow_task", &sink, TASKS);
    let came = || {
        let text = fs::read_to_string(path("done")).unwrap_or_default();
        let numbers = whole_lines(&text).map(|n| n.parse().expect("a number"));
        numbers.collect::<Vec<usize>>()
    };
    let mut daemon = Daemon::start(&config);
    only_its_key_waits(came).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert!(!came().iter().any(is_of_the_slow_key), "it was ended");
    fs::write(path("go"), "").expect("a file");
    let mut daemon = Daemon::start(&config);
    settled(&postgres).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert_in_order(&came());
    let begun = fs::read_to_string(path("begun")).expect("a file");
    assert_eq!(begun.lines().count(), 2, "once by each daemon");
}
