//! The daemon with tasks on its standard output, and the application that makes them.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::unix::pipe;
use tokio::task::JoinSet;

use super::daemon::Daemon;
use super::postgres::Postgres;
use super::wait::{PATIENCE, eventually};

/// A configuration with every task on standard output; `name` is slot and publication.
pub(crate) fn to_stdout(url: &str, name: &str, more: &str) -> String {
    with_sink(url, name, "[sink.stdout.out]", more)
}

/// A configuration with one sink, whose table is given, named `out`; `name` is slot and publication. Rows stay in the
/// outbox, where [`committed`] finds them; unless `more` has an `[outbox]` of its own.
pub(crate) fn with_sink(url: &str, name: &str, sink: &str, more: &str) -> String {
    let more = match more.contains("[outbox]") {
        true => more.to_owned(),
        false => format!("{more}\n[outbox]\nretention = \"keep\"\n"),
    };
    format!(
        r#"
[postgres]
url = "{url}"
slot = "{name}"
publication = "{name}"

{sink}

[[route]]
task = "*"
sink = "out"

{more}
"#
    )
}

/// Ids of the tasks that the daemon has printed, in order.
pub(crate) fn printed(daemon: &Daemon) -> Vec<String> {
    // The last line may be half written.
    let tasks = daemon
        .stdout()
        .into_iter()
        .filter_map(|line| serde_json::from_str(&line).ok());
    tasks.map(|task: Value| id(&task).to_owned()).collect()
}

/// Waits until the daemon has printed so many tasks, and returns their ids.
pub(crate) async fn wait_for_printed(daemon: &Daemon, count: usize) -> Vec<String> {
    eventually(PATIENCE, &format!("{count} tasks on stdout"), || {
        let ids = printed(daemon);
        async move { (ids.len() >= count).then_some(ids) }
    })
    .await
}

/// The id of a task.
pub(crate) fn id(task: &Value) -> &str {
    task["id"].as_str().expect("an id")
}

/// Ids of the rows in the outbox, sorted.
pub(crate) fn committed(postgres: &Postgres) -> Vec<String> {
    let ids = postgres.psql("select id from aftercommit.outbox order by id");
    ids.lines().map(str::to_owned).collect()
}

/// Nothing lost, nothing invented, nothing twice.
pub(crate) fn assert_once_each(mut delivered: Vec<String>, committed: &[String]) {
    let all = delivered.len();
    delivered.sort();
    delivered.dedup();
    assert_eq!(all, delivered.len(), "tasks came twice");
    let sets = [delivered.as_slice(), committed].map(|ids| ids.iter().collect::<BTreeSet<_>>());
    let lost: Vec<_> = sets[1].difference(&sets[0]).collect();
    let invented: Vec<_> = sets[0].difference(&sets[1]).collect();
    assert!(
        lost.is_empty() && invented.is_empty(),
        "lost: {lost:?}, invented: {invented:?}"
    );
}

/// A daemon's tasks, one by one, at the moment when it writes them.
pub(crate) struct Tasks(Lines<BufReader<pipe::Receiver>>);

impl Tasks {
    /// Starts a daemon whose configuration sends tasks to stdout.
    pub(crate) fn of(config: &str) -> (Daemon, Tasks) {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let daemon = Daemon::start_with(config, |command| {
            command.stdout(Stdio::from(writer));
        });
        let reader = pipe::Receiver::from_owned_fd(reader.into()).expect("a pipe");
        (daemon, Tasks(BufReader::new(reader).lines()))
    }

    /// The next one; panics when none comes.
    pub(crate) async fn next(&mut self) -> Value {
        let line = tokio::time::timeout(PATIENCE, self.0.next_line()).await;
        let line = line.expect("another task").expect("a readable pipe");
        serde_json::from_str(&line.expect("a daemon that runs")).expect("a task")
    }

    /// Whether nothing has come, so far or for ever.
    pub(crate) async fn none(&mut self) -> bool {
        let line = tokio::time::timeout(Duration::from_millis(1), self.0.next_line()).await;
        !matches!(line, Ok(Ok(Some(_))))
    }
}

/// An application under load: one task a transaction, on several connections, which it opens again when they break.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    ids: Arc<Mutex<Vec<String>>>,
    workers: JoinSet<()>,
}

impl Load {
    /// Starts so many connections, each of which pauses between its transactions.
    pub(crate) fn start(url: &str, connections: usize, pause: Duration) -> Load {
        let mut load = Load {
            stop: Arc::default(),
            acknowledged: Arc::default(),
            ids: Arc::default(),
            workers: JoinSet::new(),
        };
        for _ in 0..connections {
            let (url, stop) = (url.to_owned(), load.stop.clone());
            let (acknowledged, ids) = (load.acknowledged.clone(), load.ids.clone());
            load.workers.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let connected = tokio_postgres::connect(&url, tokio_postgres::NoTls).await;
                    let Ok((client, connection)) = connected else {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    };
                    tokio::spawn(connection);
                    while !stop.load(Ordering::Relaxed) {
                        let id = uuid::Uuid::new_v4().to_string();
                        let insert = format!(
                            "insert into aftercommit.outbox (id, task, kwargs) values ('{id}', 'shop.tasks.load', '{{}}')"
                        );
                        if client.batch_execute(&insert).await.is_err() {
                            break;
                        }
                        ids.lock().expect("no panic").push(id);
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(pause).await;
                    }
                }
            });
        }
        load
    }

    /// How many transactions have been acknowledged so far.
    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many more transactions have been acknowledged.
    pub(crate) async fn more(&self, count: usize) {
        let wanted = self.acknowledged() + count;
        eventually(PATIENCE, "the application to go on", || {
            let reached = self.acknowledged() >= wanted;
            async move { reached.then_some(()) }
        })
        .await;
    }

    /// Ends it; returns the ids of the acknowledged transactions.
    pub(crate) async fn stop(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.workers.join_next().await {
            ended.expect("no panic");
        }
        std::mem::take(&mut self.ids.lock().expect("no panic"))
    }
}
