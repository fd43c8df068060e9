//! The daemon with sinks that have no broker: kills, stops and outages, under load; nothing lost, keys in order.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aftercommit::pg::Lsn;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::daemon::{Daemon, init};
use crate::support::exam::says;
use crate::support::postgres::{Options, Postgres};
use crate::support::process::{scratch, whole_lines, write_program};
use crate::support::receiver::{Answer, Receiver};
use crate::support::tasks::with_sink;
use crate::support::wait::{PATIENCE, eventually};

const NAME: &str = "brokerless";
const KEYS: usize = 50;
const IN_FLIGHT: usize = 200;
/// The webhook's requests at a time; with an outage, so many are without an answer.
const SIDE_BY_SIDE: usize = 16;
const CANARY: &str = "k3ep-me-s3cret";

/// Commits so many tasks, from number `from` on, several in a transaction; task and key tell where each belongs.
fn commit(postgres: &Postgres, from: usize, count: usize) {
    let to = from + count - 1;
    postgres.psql(&format!(
        "do $$ begin
           for n in {from} .. {to} loop
             insert into aftercommit.outbox (id, task, key, kwargs)
               values (lpad(n::text, 32, '0')::uuid, 'a.b', n % {KEYS}, json_build_object('n', n, 'canary', '{CANARY}'));
             if n % 7 = 0 then commit; end if;
           end loop;
         end $$"
    ));
}

/// All of 1 to `last` has come, the first time in the order of its key; says how many came again.
fn check(numbers: &[usize], last: usize) -> usize {
    let mut seen = HashSet::new();
    let mut latest: HashMap<usize, usize> = HashMap::new();
    for n in numbers {
        if seen.insert(*n) {
            let before = latest.insert(n % KEYS, *n);
            assert!(
                before.is_none_or(|before| before < *n),
                "{n} after {before:?}"
            );
        }
    }
    assert_eq!(seen.len(), last, "lost or invented");
    numbers.len() - last
}

/// A task that has come: its number, and the position of its commit.
struct Came {
    n: usize,
    lsn: Lsn,
}

impl Came {
    fn read(task: &Value) -> Came {
        let n = task["kwargs"]["n"].as_u64().expect("a number");
        let lsn = task["lsn"].as_str().expect("a position");
        Came {
            n: usize::try_from(n).expect("small"),
            lsn: lsn.parse().expect("a position"),
        }
    }
}

fn numbers(came: &[Came]) -> Vec<usize> {
    came.iter().map(|it| it.n).collect()
}

/// How many of those that have come may come again, now that the daemon was killed: what the slot has not confirmed, and what
/// is still in the hold table.
async fn exposed(postgres: &Postgres, came: &[Came]) -> usize {
    let confirmed = "select confirmed_flush_lsn from pg_replication_slots where not active";
    let confirmed: Lsn = eventually(PATIENCE, "the end of the walsender", || async {
        postgres.psql(confirmed).parse().ok()
    })
    .await;
    let held = postgres.psql("select (kwargs::json ->> 'n')::int from aftercommit.hold");
    let held: HashSet<usize> = held.lines().map(|n| n.parse().expect("a number")).collect();
    let exposed = came
        .iter()
        .filter(|it| it.lsn >= confirmed || held.contains(&it.n));
    let exposed: HashSet<usize> = exposed.map(|it| it.n).collect();
    exposed.len()
}

/// How a round of a daemon ended: after so many had come, by a kill or as asked.
struct Round {
    end: usize,
    is_killed: bool,
}

/// Nothing that came before a graceful stop comes again after it, but what was `refused` before.
fn check_stops(numbers: &[usize], rounds: &[Round], refused: impl Fn(usize) -> bool) {
    let round_of = |at: usize| rounds.iter().position(|round| at < round.end);
    let mut first: HashMap<usize, Option<usize>> = HashMap::new();
    for (at, n) in numbers.iter().enumerate() {
        let round = round_of(at);
        let begun = *first.entry(*n).or_insert(round);
        let is_stopped = begun
            .and_then(|begun| rounds.get(begun))
            .is_some_and(|round| !round.is_killed);
        assert!(
            begun == round || !is_stopped || refused(*n),
            "{n} came again after a graceful stop"
        );
    }
}

async fn wait_until_settled(postgres: &Postgres) {
    eventually(PATIENCE, "all is settled", || async {
        let left = "select (select count(*) from aftercommit.outbox) + (select count(*) from aftercommit.hold)";
        (postgres.psql(left) == "0").then_some(())
    })
    .await;
}

fn postgres(config: impl Fn(&Postgres) -> String) -> (Postgres, String) {
    let postgres = Postgres::start(Options::default());
    let config = config(&postgres);
    init(&config);
    (postgres, config)
}

fn configured(postgres: &Postgres, sink: &str) -> String {
    let more = format!("[outbox]\n[limits]\nin_flight = {IN_FLIGHT}\n");
    let url = postgres.url(crate::support::postgres::SUPERUSER);
    with_sink(&url, NAME, sink, &more).replace(
        "sink = \"out\"",
        "sink = \"out\"\nretry = { backoff = \"50ms..200ms\", hold_after = \"500ms\" }",
    )
}

fn assert_discreet(daemon: &Daemon) {
    assert!(!daemon.log().contains(CANARY), "a payload is in the log");
}

/// What came, also what was refused.
fn came(receiver: &Receiver) -> Vec<Came> {
    let requests = receiver.requests();
    let tasks = requests.iter().map(|request| Came::read(&request.json()));
    tasks.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_survives_kills_outages_and_refusals() {
    // Each number whose request is odd in some way gets through the second time.
    let tried: std::sync::Mutex<HashSet<String>> = std::sync::Mutex::default();
    let mut receiver = Receiver::deciding(move |request| {
        let first = tried
            .lock()
            .expect("no panic")
            .insert(request.header("webhook-id").to_owned());
        let n = request.json()["kwargs"]["n"].as_u64().expect("a number");
        match n % 97 {
            3 if first => Answer::Status(503, vec!["retry-after: 0".to_owned()]),
            5 if first => Answer::Close,
            _ => Answer::Status(204, Vec::new()),
        }
    });
    let sink = format!(
        "[sink.webhook.out]\nurl = \"{}\"\nsecret = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"\nallow_addresses = [\"127.0.0.1\"]\n",
        receiver.url()
    );
    let (postgres, config) = postgres(|postgres| configured(postgres, &sink));
    let mut last = 0;
    let (mut kills, mut may_repeat) = (0, 0);
    let mut rounds = Vec::new();
    for round in 0..6 {
        let before = receiver.requests().len();
        let mut daemon = Daemon::start(&config);
        commit(&postgres, last + 1, 1000);
        last += 1000;
        eventually(PATIENCE, "it goes on", || async {
            (receiver.requests().len() > before + 200).then_some(())
        })
        .await;
        match round % 3 {
            0 => {
                daemon.kill9();
                kills += 1;
                may_repeat += exposed(&postgres, &came(&receiver)).await;
            }
            1 => {
                receiver.close();
                tokio::time::sleep(Duration::from_millis(700)).await;
                receiver.open();
                wait_until_settled(&postgres).await;
                assert_eq!(daemon.terminate().await.code(), Some(0));
            }
            _ => {
                let stopped = daemon.terminate().await;
                assert_eq!(stopped.code(), Some(0));
            }
        }
        assert_discreet(&daemon);
        rounds.push(Round {
            end: receiver.requests().len(),
            is_killed: round % 3 == 0,
        });
    }
    let mut daemon = Daemon::start(&config);
    wait_until_settled(&postgres).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let came = numbers(&came(&receiver));
    check_stops(&came, &rounds, |n| matches!(n % 97, 3 | 5));
    // Those that were refused or hung up on came twice by themselves.
    let refused = (1..=last).filter(|n| matches!(n % 97, 3 | 5)).count();
    let again = check(&came, last);
    // A kill also leaves requests without an answer, and so does an outage.
    let most = 2 * refused + may_repeat + (kills + 2) * SIDE_BY_SIDE;
    assert!(again <= most, "{again} came again, of {most} at most");
    println!(
        "{last} tasks, {kills} kills, {refused} refused at first, {again} more requests, of {most} at most"
    );
}

/// What was answered before the receiver went away is settled, though the rest of its batch is not: a stop then repeats nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_in_an_outage_repeats_nothing_that_was_answered() {
    const LAST: usize = 6;
    let let_in = Arc::new(AtomicBool::new(false));
    let receiver = Receiver::deciding({
        let let_in = let_in.clone();
        move |request| {
            let is_last = request.json()["kwargs"]["n"] == LAST;
            match is_last && !let_in.load(Ordering::SeqCst) {
                true => Answer::Status(401, Vec::new()),
                false => Answer::Status(204, Vec::new()),
            }
        }
    });
    let sink = format!(
        "[sink.webhook.out]\nurl = \"{}\"\nallow_addresses = [\"127.0.0.1\"]\nconcurrency = 1\n",
        receiver.url()
    );
    let (postgres, config) = postgres(|postgres| configured(postgres, &sink));
    // In one transaction, and so in one batch.
    commit(&postgres, 1, LAST);
    let mut daemon = Daemon::start(&config);
    eventually(PATIENCE, "the receiver does not let us in", || async {
        daemon
            .records()
            .iter()
            .any(|record| says(record, "is away"))
            .then_some(())
    })
    .await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let_in.store(true, Ordering::SeqCst);
    let mut daemon = Daemon::start(&config);
    wait_until_settled(&postgres).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let mut seen = numbers(&came(&receiver));
    seen.retain(|n| *n != LAST);
    assert_eq!(seen, (1..LAST).collect::<Vec<_>>());
}

/// A graceful stop beside a receiver that takes far longer for what is on its way to it than a stop may take: the rest of it
/// goes to the hold, or back there, and what has come does not come again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_beside_a_slow_receiver_repeats_nothing() {
    const LAST: usize = 300;
    for is_held in [false, true] {
        let is_slow = Arc::new(AtomicBool::new(true));
        let mut receiver = Receiver::deciding({
            let is_slow = is_slow.clone();
            move |_| match is_slow.load(Ordering::SeqCst) {
                true => Answer::Late(Duration::from_millis(100), 204),
                false => Answer::Status(204, Vec::new()),
            }
        });
        let sink = format!(
            "[sink.webhook.out]\nurl = \"{}\"\nallow_addresses = [\"127.0.0.1\"]\nconcurrency = 1\n",
            receiver.url()
        );
        let (postgres, config) = postgres(|postgres| configured(postgres, &sink));
        let mut daemon = Daemon::start(&config);
        if is_held {
            receiver.close();
        }
        commit(&postgres, 1, LAST);
        if is_held {
            eventually(PATIENCE, "all is held", || async {
                let held = postgres.psql("select count(*) from aftercommit.hold");
                (held == LAST.to_string()).then_some(())
            })
            .await;
            receiver.open();
        }
        eventually(PATIENCE, "some have come", || async {
            (receiver.requests().len() >= 10).then_some(())
        })
        .await;
        assert_eq!(daemon.terminate().await.code(), Some(0));
        let in_time = !daemon.log().contains("not delivered in time");
        assert!(in_time, "{}", daemon.log());
        is_slow.store(false, Ordering::SeqCst);
        let mut daemon = Daemon::start(&config);
        wait_until_settled(&postgres).await;
        assert_eq!(daemon.terminate().await.code(), Some(0));
        assert_eq!(check(&numbers(&came(&receiver)), LAST), 0, "came again");
    }
}

/// A stop does not wait for ever for an answer: what is in the hands of the sink goes to the hold, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_beside_a_receiver_that_hangs_leaves_all_in_the_hold() {
    const LAST: usize = 20;
    const IN_A_REQUEST: usize = 5;
    let hangs = Arc::new(AtomicBool::new(true));
    let receiver = Receiver::deciding({
        let hangs = hangs.clone();
        move |_| match hangs.load(Ordering::SeqCst) {
            true => Answer::Silence,
            false => Answer::Status(204, Vec::new()),
        }
    });
    let sink = format!(
        "[sink.webhook.out]\nurl = \"{}\"\nallow_addresses = [\"127.0.0.1\"]\nbatch = {IN_A_REQUEST}\ntimeout = \"600s\"\n",
        receiver.url()
    );
    let (postgres, config) = postgres(|postgres| configured(postgres, &sink));
    commit(&postgres, 1, LAST);
    let mut daemon = Daemon::start(&config);
    eventually(PATIENCE, "a request has come", || async {
        (receiver.requests().len() == 1).then_some(())
    })
    .await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let in_time = !daemon.log().contains("not delivered in time");
    assert!(in_time, "{}", daemon.log());
    let held = postgres.psql("select count(*) from aftercommit.hold");
    assert_eq!(held, LAST.to_string());
    hangs.store(false, Ordering::SeqCst);
    let mut daemon = Daemon::start(&config);
    wait_until_settled(&postgres).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let came: Vec<usize> = receiver
        .requests()
        .iter()
        .flat_map(|request| request.json().as_array().expect("an array").clone())
        .map(|task| Came::read(&task).n)
        .collect();
    let again = check(&came, LAST);
    assert_eq!(again, IN_A_REQUEST, "those of the request that hung");
}

struct Room(TempDir);

impl Room {
    fn new() -> Room {
        let room = Room(scratch("room"));
        write_program(&room.path("worker"), WORKER);
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What was done.
    fn came(&self) -> Vec<Came> {
        let text = fs::read_to_string(self.path("done")).unwrap_or_default();
        let tasks = whole_lines(&text).map(serde_json::from_str);
        tasks
            .map(|task| Came::read(&task.expect("a task")))
            .collect()
    }

    async fn wait_for_no_processes(&self) {
        eventually(PATIENCE, "no worker is left", || async {
            let text = fs::read_to_string(self.path("pids")).unwrap_or_default();
            let left = text
                .lines()
                .any(|pid| Path::new(&format!("/proc/{pid}")).exists());
            (!left).then_some(())
        })
        .await;
    }
}

/// Writes down its tasks; some tasks fail the first time, and some end the worker.
const WORKER: &str = r#"#!/usr/bin/env python3
import json, os, sys
folder = os.path.dirname(__file__)
def note(name, what):
    with open(folder + "/" + name, "a") as file:
        file.write(f"{what}\n")
note("pids", os.getpid())
for line in sys.stdin:
    n = json.loads(line)["kwargs"]["n"]
    first = not os.path.exists(f"{folder}/tried-{n}")
    if n % 97 in (3, 5) and first:
        open(f"{folder}/tried-{n}", "w").close()
        if n % 97 == 5:
            sys.exit(9)
        print("retry 0s not yet", flush=True)
        continue
    note("done", line.strip())
    print("ok", flush=True)
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_workers_survive_kills_and_leave_nothing_behind() {
    let room = Room::new();
    let sink = format!(
        "[sink.exec.out]\ncommand = [{:?}]\nworkers = 3\n",
        room.path("worker")
    );
    let (postgres, config) = postgres(|postgres| configured(postgres, &sink));
    let mut last = 0;
    let (mut kills, mut may_repeat) = (0, 0);
    let mut rounds = Vec::new();
    for round in 0..4 {
        let before = room.came().len();
        let mut daemon = Daemon::start(&config);
        commit(&postgres, last + 1, 1000);
        last += 1000;
        eventually(PATIENCE, "it goes on", || async {
            (room.came().len() > before + 200).then_some(())
        })
        .await;
        if round % 2 == 0 {
            daemon.kill9();
            kills += 1;
        } else {
            assert_eq!(daemon.terminate().await.code(), Some(0));
        }
        // Their input has ended, and so do they.
        room.wait_for_no_processes().await;
        if round % 2 == 0 {
            may_repeat += exposed(&postgres, &room.came()).await;
        }
        assert_discreet(&daemon);
        rounds.push(Round {
            end: room.came().len(),
            is_killed: round % 2 == 0,
        });
    }
    let mut daemon = Daemon::start(&config);
    wait_until_settled(&postgres).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let done = numbers(&room.came());
    check_stops(&done, &rounds, |_| false);
    room.wait_for_no_processes().await;
    let again = check(&done, last);
    assert!(
        again <= may_repeat,
        "{again} were done again, of {may_repeat} at most"
    );
    println!("{last} tasks, {kills} kills, {again} done again, of {may_repeat} at most");
}

/// A graceful stop waits for the task that is being done, does none twice, and ends the workers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_lets_a_task_come_to_its_end() {
    let room = Room(scratch("room"));
    write_program(
        &room.path("worker"),
        "#!/bin/sh\ncd \"$(dirname \"$0\")\"\necho $$ >>pids\nwhile read -r line; do echo \"$line\" >>begun; sleep 0.5; echo \"$line\" >>done; echo ok; done\necho end >>ends\n",
    );
    let sink = format!(
        "[sink.exec.out]\ncommand = [{:?}]\nworkers = 2\n",
        room.path("worker")
    );
    let (postgres, config) = postgres(|postgres| configured(postgres, &sink));
    let mut daemon = Daemon::start(&config);
    commit(&postgres, 1, 20);
    let lines = |name: &str| {
        fs::read_to_string(room.path(name))
            .unwrap_or_default()
            .lines()
            .count()
    };
    eventually(PATIENCE, "two have begun", || async {
        (lines("begun") >= 2).then_some(())
    })
    .await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    room.wait_for_no_processes().await;
    assert_eq!((lines("begun"), lines("ends")), (lines("done"), 2));
    let mut daemon = Daemon::start(&config);
    wait_until_settled(&postgres).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let done = fs::read_to_string(room.path("done")).expect("a file");
    let ids: HashSet<String> = done
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["id"].to_string())
        .collect();
    assert_eq!((ids.len(), done.lines().count()), (20, 20));
}
