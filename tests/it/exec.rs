//! The exec sink with real processes: what they are given, what their answers mean, and that none is left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aftercommit::outbox::{Field, Position, Task};
use aftercommit::pg::Timestamp;
use aftercommit::sink::{Outage, Outcome, Settings as _, Sight, Sink, exec};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::process::{scratch, write_program};
use crate::support::wait::{PATIENCE, eventually};

/// A folder with a worker in it.
struct Room(TempDir);

impl Room {
    /// The worker is a shell script that handles each line with `handle`, in which `$line` is the line.
    fn shell(handle: &str) -> Room {
        Room::with(&format!(
            "#!/bin/sh\ncd \"$(dirname \"$0\")\"\necho $$ >>pids\nwhile read -r line; do\n{handle}\ndone\necho end >>ends\n"
        ))
    }

    fn with(program: &str) -> Room {
        let room = Room(scratch("exec"));
        write_program(&room.path("worker"), program);
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn sink(&self, settings: Value) -> Box<dyn Sink> {
        let mut config = json!({"command": [self.path("worker")], "workers": 1, "grace": "500ms"});
        let keys = config.as_object_mut().expect("an object");
        keys.extend(settings.as_object().expect("an object").clone());
        let config: exec::Config = serde_json::from_value(config).expect("settings");
        config.open().expect("settings that do")
    }

    /// Waits until nothing is left of processes whose ids they have written down.
    async fn wait_for_no_processes(&self) {
        eventually(PATIENCE, "no process is left", || {
            let left = self
                .lines("pids")
                .iter()
                .any(|pid| Path::new(&format!("/proc/{pid}")).exists());
            async move { (!left).then_some(()) }
        })
        .await;
    }
}

fn task(id: &str, key: &str) -> Task {
    let fields = [(Field::Id, id), (Field::Task, "t"), (Field::Key, key)];
    Task::from_fields(fields, Position::default(), Timestamp(0))
}

fn tasks(count: usize, keys: usize) -> Vec<Task> {
    (0..count)
        .map(|n| task(&n.to_string(), &format!("k{}", n % keys)))
        .collect()
}

async fn one(sink: &mut Box<dyn Sink>) -> Result<Outcome, Outage> {
    let mut outcomes = sink.deliver(&tasks(1, 1)).await?;
    assert_eq!(outcomes.len(), 1);
    Ok(outcomes.remove(0))
}

fn words(outcome: &Result<Outcome, Outage>) -> String {
    match outcome {
        Ok(Outcome::Delivered) => String::new(),
        Ok(Outcome::Unsent) => "unsent".to_owned(),
        Ok(Outcome::Retry(cause) | Outcome::RetryIn(_, cause) | Outcome::Reject(cause)) => {
            cause.to_string()
        }
        Err(Outage { cause, .. }) => cause.to_string(),
    }
}

#[tokio::test]
async fn a_worker_has_only_what_it_is_given() {
    let room = Room::shell(
        "echo \"$line\" >>lines; env >env; pwd >folder; cat /proc/$$/cmdline | tr '\\0' ' ' >command; ls -l /proc/$$/fd >files; echo ok",
    );
    let settings = json!({
        "command": [room.path("worker"), "a b", "$HOME"],
        "environment": ["ONE=1=2", "EMPTY="],
    });
    let mut sink = room.sink(settings);
    assert_eq!(one(&mut sink).await, Ok(Outcome::Delivered));
    let mut environment = room.lines("env");
    environment.retain(|line| {
        !["PWD=", "OLDPWD=", "SHLVL=", "_="]
            .iter()
            .any(|of_the_shell| line.starts_with(of_the_shell))
    });
    environment.sort();
    let path = format!("PATH={}", std::env::var("PATH").expect("a path"));
    assert_eq!(environment, ["EMPTY=", "ONE=1=2", &path]);
    assert!(
        room.lines("command")[0].ends_with("worker a b $HOME "),
        "{:?}",
        room.lines("command")
    );
    // Its pipes, the script, and what we were started with ourselves: none of our sockets, nor what we wait with.
    let files = room.lines("files");
    let of = |kind: &str| files.iter().filter(|line| line.contains(kind)).count();
    assert_eq!((of("socket:"), of("anon_inode:")), (0, 0), "{files:?}");
    let line: Value = serde_json::from_str(&room.lines("lines")[0]).expect("JSON");
    assert_eq!(line["id"], "0");
}

#[tokio::test]
async fn what_a_worker_answers() {
    let room = Room::shell("cat answer");
    let mut sink = room.sink(json!({}));
    for (answer, expected) in [
        ("ok\n", ""),
        ("retry\n", "the worker puts it off"),
        ("retry 30s\n", "the worker puts it off"),
        (
            "reject no such order\n",
            "the worker rejects it: no such order",
        ),
        ("a print\nmore\nok\n", ""),
    ] {
        fs::write(room.path("answer"), answer).expect("a file");
        assert_eq!(words(&one(&mut sink).await), expected, "{answer}");
    }
    assert_eq!(room.lines("pids").len(), 1, "it is the same all the time");
    // A second answer would be taken for the next task's.
    fs::write(room.path("answer"), "ok\nok\n").expect("a file");
    assert_eq!(one(&mut sink).await, Ok(Outcome::Delivered));
    fs::write(room.path("answer"), "reject\n").expect("a file");
    assert_eq!(words(&one(&mut sink).await), "the worker rejects it");
    assert_eq!(room.lines("pids").len(), 2);
}

#[tokio::test]
async fn a_task_that_takes_too_long_is_ended_with_all_that_it_has_started() {
    for ignore in ["", "trap '' TERM;"] {
        let room = Room::shell(&format!(
            "{ignore} sh -c '{ignore} echo $$ >>pids; sleep 600; sleep 600' & wait; wait; sleep 600"
        ));
        let mut sink = room.sink(json!({"timeout": "300ms"}));
        let outcome = one(&mut sink).await;
        assert!(
            words(&outcome).contains("has not answered within 300ms"),
            "{outcome:?}"
        );
        assert!(matches!(outcome, Ok(Outcome::Retry(_))));
        assert_eq!(room.lines("pids").len(), 2);
        room.wait_for_no_processes().await;
    }
}

#[tokio::test]
async fn a_flood_ends_the_worker_and_takes_no_memory() {
    let room = Room::shell("yes no answer at all");
    let outcome = one(&mut room.sink(json!({}))).await;
    assert!(
        words(&outcome).contains("writes much to its output"),
        "{outcome:?}"
    );
    room.wait_for_no_processes().await;
    // One endless line, and to the log as well.
    let room = Room::shell(
        "head -c 8000000 /dev/zero | tr '\\0' x >&2; head -c 500000 /dev/zero | tr '\\0' x; echo; echo ok",
    );
    assert_eq!(one(&mut room.sink(json!({}))).await, Ok(Outcome::Delivered));
}

#[tokio::test]
async fn a_worker_that_ends_is_started_again_and_one_task_is_to_blame() {
    let room = Room::shell("case $line in *'\"id\":\"2\"'*) exit 3;; esac; echo ok");
    let mut sink = room.sink(json!({}));
    let outcomes = sink
        .deliver(&tasks(6, 3))
        .await
        .expect("the others are done");
    let delivered: Vec<bool> = outcomes
        .iter()
        .map(|outcome| *outcome == Outcome::Delivered)
        .collect();
    // With the task, what is behind it in its key.
    assert_eq!(delivered, [true, true, false, true, true, false]);
    assert!(
        words(&Ok(outcomes[2].clone())).contains("exit status: 3"),
        "{outcomes:?}"
    );
    assert_eq!(room.lines("pids").len(), 2);
}

#[tokio::test]
async fn workers_that_always_end_are_an_outage_with_pauses() {
    let room = Room::with("#!/bin/sh\necho $$ >>\"$(dirname \"$0\")/pids\"\nexit 1\n");
    let mut sink = room.sink(json!({"workers": 2}));
    let began = Instant::now();
    let mut tries = 0;
    while began.elapsed() < Duration::from_secs(2) {
        sink.deliver(&tasks(20, 20))
            .await
            .expect_err("nothing works");
        tries += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let started = room.lines("pids").len();
    assert!(
        tries > 40 && started < 40,
        "{tries} batches, {started} processes"
    );
    drop(sink);
    let mut sink = room.sink(json!({"command": ["/nowhere/worker"]}));
    let outage = one(&mut sink).await;
    assert!(
        words(&outage).contains("/nowhere/worker cannot be started"),
        "{outage:?}"
    );
    assert!(matches!(sink.probe().await[..], [Sight::Fault(..)]));
    for command in [json!([room.path("worker")]), json!(["sh"])] {
        let mut sink = room.sink(json!({"command": command}));
        assert!(matches!(sink.probe().await[..], [Sight::Good(_)]));
    }
}

#[tokio::test]
async fn keys_go_side_by_side_and_each_in_order() {
    let room = Room::shell(
        "echo \"$line\" | sed 's/.*\"id\":\"\\([0-9]*\\)\".*/begin \\1/' >>log; sleep 0.01; echo \"$line\" | sed 's/.*\"id\":\"\\([0-9]*\\)\".*/end \\1/' >>log; echo ok",
    );
    let mut sink = room.sink(json!({"workers": 3}));
    let outcomes = sink.deliver(&tasks(24, 4)).await.expect("it works");
    assert!(
        outcomes
            .iter()
            .all(|outcome| *outcome == Outcome::Delivered)
    );
    assert_eq!(room.lines("pids").len(), 3);
    let mut open: Vec<usize> = Vec::new();
    let mut most = 0;
    let mut last = [None; 4];
    for line in room.lines("log") {
        let (what, n) = line.split_once(' ').expect("two words");
        let n: usize = n.parse().expect("a number");
        match what {
            "begin" => {
                assert!(
                    open.iter().all(|other| other % 4 != n % 4),
                    "{n} beside {open:?}"
                );
                assert!(last[n % 4] < Some(n), "{n} after {:?}", last[n % 4]);
                last[n % 4] = Some(n);
                open.push(n);
                most = most.max(open.len());
            }
            _ => open.retain(|other| *other != n),
        }
    }
    assert!((2..=3).contains(&most), "{most}");
}

#[tokio::test]
async fn a_dropped_task_is_over_before_its_key_goes_on() {
    let room = Room::shell(
        "trap 'sleep 0.2; echo over >>log; exit' TERM; echo begin >>log; sleep 600 & wait",
    );
    let mut sink = room.sink(json!({"timeout": "1s", "grace": "5s"}));
    {
        let tasks = tasks(1, 1);
        let begun = async {
            eventually(PATIENCE, "it has begun", || {
                let begun = room.lines("log").len() == 1;
                async move { begun.then_some(()) }
            })
            .await;
        };
        tokio::select! {
            _ = sink.deliver(&tasks) => panic!("it has no end"),
            () = begun => {}
        }
    }
    let outcome = one(&mut sink).await;
    assert!(matches!(outcome, Ok(Outcome::Retry(_))), "{outcome:?}");
    assert_eq!(room.lines("log"), ["begin", "over", "begin", "over"]);
}

#[tokio::test]
async fn nothing_is_left_when_the_sink_is_closed_or_dropped() {
    // One that is idle ends by itself, when its input does.
    let room = Room::shell("echo ok");
    let mut sink = room.sink(json!({"workers": 2}));
    let outcomes = sink.deliver(&tasks(8, 8)).await.expect("it works");
    assert_eq!(outcomes.len(), 8);
    sink.close().await;
    room.wait_for_no_processes().await;
    assert_eq!(room.lines("ends").len(), room.lines("pids").len());
    // One that does not is killed.
    let room = Room::shell(
        "trap '' TERM; (echo ok; exec sleep 600 >&2) & echo $! >>pids; wait; sleep 600",
    );
    let mut sink = room.sink(json!({}));
    assert_eq!(one(&mut sink).await, Ok(Outcome::Delivered));
    let began = Instant::now();
    sink.close().await;
    assert!(began.elapsed() < Duration::from_secs(10));
    room.wait_for_no_processes().await;
    // So it is when nobody closes.
    let room = Room::shell(
        "trap '' TERM; (echo ok; exec sleep 600 >&2) & echo $! >>pids; wait; sleep 600",
    );
    let mut sink = room.sink(json!({}));
    assert_eq!(one(&mut sink).await, Ok(Outcome::Delivered));
    drop(sink);
    room.wait_for_no_processes().await;
}

#[tokio::test]
async fn neither_descriptors_nor_zombies_pile_up() {
    let room = Room::shell("exit 0");
    let mut sink = room.sink(json!({"workers": 1}));
    let open = || fs::read_dir("/proc/self/fd").expect("proc(5)").count();
    let _ = one(&mut sink).await;
    let before = open();
    let mut most = before;
    for _ in 0..30 {
        let _ = one(&mut sink).await;
        most = most.max(open());
    }
    // Other tests of this process have theirs.
    assert!(most < before + 200, "{before} and then {most}");
    room.wait_for_no_processes().await;
}

/// The worker in the README does what is said there.
#[tokio::test]
async fn the_example_in_the_readme_works() {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = fs::read_to_string(readme).expect("the README");
    let program = readme
        .split("```python\n")
        .find(|part| part.starts_with("import json, sys"))
        .and_then(|part| part.split("```").next())
        .expect("a worker in Python");
    let room = Room::with(program);
    let mut sink = room.sink(json!({"command": ["python3", room.path("worker")]}));
    let task = |id, fields: &[(Field, &'static str)]| {
        let all = [(Field::Id, id), (Field::Task, "local.resize")];
        let all = all.into_iter().chain(fields.iter().copied());
        Task::from_fields(all, Position::default(), Timestamp(0))
    };
    let tasks = [
        task(
            "1",
            &[
                (Field::Args, "[\"a.png\"]"),
                (Field::Kwargs, "{\"width\": 10}"),
            ],
        ),
        task("2", &[(Field::Args, "[\"a.png\"]")]),
        task(
            "3",
            &[
                (Field::Args, "[\"a.png\"]"),
                (Field::Kwargs, "{\"width\": 0}"),
            ],
        ),
        task("4", &[(Field::Task, "local.other")]),
    ];
    let outcomes = sink.deliver(&tasks).await.expect("it works");
    let [
        Outcome::Delivered,
        Outcome::Delivered,
        Outcome::Retry(why),
        Outcome::Reject(unknown),
    ] = &outcomes[..]
    else {
        panic!("{outcomes:?}");
    };
    assert!(why.to_string().contains("ZeroDivisionError"), "{why}");
    assert!(unknown.to_string().contains("local.other"), "{unknown}");
}

#[test]
fn settings_that_do_not_do_are_told_and_not_repeated() {
    for (settings, key) in [
        (json!({}), "command"),
        (json!({"command": []}), "command"),
        (json!({"command": ["", "a"]}), "command"),
        (json!({"command": ["a\u{0}"]}), "command"),
        (json!({"command": ["a"], "workers": 0}), "workers"),
        (json!({"command": ["a"], "timeout": "0s"}), "timeout"),
        (
            json!({"command": ["a"], "environment": ["hunter2"]}),
            "environment",
        ),
        (
            json!({"command": ["a"], "environment": ["=hunter2"]}),
            "environment",
        ),
    ] {
        let config: exec::Config = serde_json::from_value(settings.clone()).expect("settings");
        let invalid = config.validate().expect_err("it does not do");
        assert_eq!(invalid.key, key, "{settings}");
        assert!(
            !format!("{invalid} {config:?}").contains("hunter2"),
            "{invalid}"
        );
    }
}
