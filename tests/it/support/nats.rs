//! Private NATS servers with JetStream.

use std::fs::{self, File};
use std::future::Future;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::{self, Context, stream};
use bytes::Bytes;
use futures_util::StreamExt as _;
use rustix::process::Signal;
use tempfile::TempDir;

use super::port::free_port;
use super::process::{Process, scratch};
use super::wait::{PATIENCE, within};

/// The stream that [`Nats::start`] makes, with all subjects below `tasks`.
pub(crate) const STREAM: &str = "TASKS";

/// A message of a stream.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// Its place in the stream.
    pub(crate) sequence: u64,
    pub(crate) subject: String,
    pub(crate) headers: async_nats::HeaderMap,
    pub(crate) payload: Vec<u8>,
}

impl Stored {
    /// A header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.as_str())
    }

    /// The task's id.
    pub(crate) fn id(&self) -> String {
        self.header("Nats-Msg-Id").expect("an id").to_owned()
    }
}

/// A private server, stopped when dropped.
pub(crate) struct Nats {
    process: Process,
    port: u16,
    login: Option<(String, String)>,
    directory: TempDir,
}

/// Whether there is a nats-server; says so where there is none.
pub(crate) fn is_there() -> bool {
    let found = Command::new("nats-server")
        .arg("--version")
        .output()
        .is_ok();
    if !found {
        eprintln!("SKIP: no nats-server on this machine; scripts/apt-install.sh nats-server");
    }
    found
}

/// What a test uses to log in, beside what it tests.
const ADMIN: &str = "admin";
const ADMIN_PASSWORD: &str = "admin-4f1d";

impl Nats {
    /// Starts a server with a stream on disk.
    pub(crate) fn start() -> Nats {
        Nats::start_with("").with_stream()
    }

    /// Makes the stream that [`start`](Nats::start) does.
    pub(crate) fn with_stream(self) -> Nats {
        self.make_stream(stream::Config::default());
        self
    }

    /// Starts a server without a stream, with more of a configuration file. What is in `authorization` and `accounts`, if there
    /// is any, has to let [`login`](Nats::login) in.
    pub(crate) fn start_with(settings: &str) -> Nats {
        let directory = scratch("nats");
        for _ in 0..5 {
            let port = free_port();
            write_settings(&directory, port, settings);
            // Another process may take a free port before the server does.
            if let Ok(process) = launch(&directory) {
                let login = settings
                    .contains(ADMIN)
                    .then(|| (ADMIN.to_owned(), ADMIN_PASSWORD.to_owned()));
                return Nats {
                    process,
                    port,
                    login,
                    directory,
                };
            }
        }
        panic!("nats-server does not start");
    }

    /// A user of a configuration file that may do everything: what the harness logs in as.
    pub(crate) fn admin() -> String {
        format!("{{ user: \"{ADMIN}\", password: \"{ADMIN_PASSWORD}\" }}")
    }

    /// The port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The URL, without a login.
    pub(crate) fn url(&self) -> String {
        self.url_through(self.port)
    }

    /// As [`url`](Nats::url), by way of another port: a proxy's.
    pub(crate) fn url_through(&self, port: u16) -> String {
        format!("nats://127.0.0.1:{port}")
    }

    /// A folder of its own, for files that settings name.
    pub(crate) fn folder(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// Makes the stream [`STREAM`], on disk unless it is said otherwise.
    pub(crate) fn make_stream(&self, config: stream::Config) {
        let subjects = match config.subjects.is_empty() {
            true => vec!["tasks".to_owned(), "tasks.>".to_owned()],
            false => config.subjects.clone(),
        };
        let config = stream::Config {
            name: STREAM.to_owned(),
            subjects,
            ..config
        };
        self.with(|context| async move {
            context.create_stream(config).await.expect("a stream");
        });
    }

    /// Changes the stream's settings.
    pub(crate) fn change_stream(&self, change: impl FnOnce(&mut stream::Config) + Send) {
        self.with(|context| async move {
            let mut stream = context.get_stream(STREAM).await.expect("a stream");
            let mut config = stream.info().await.expect("its settings").config.clone();
            change(&mut config);
            context.update_stream(config).await.expect("a change");
        });
    }

    /// How many messages the stream holds.
    pub(crate) fn count(&self) -> i64 {
        self.with(|context| async move {
            let stream = context.get_stream(STREAM).await.expect("a stream");
            i64::try_from(stream.cached_info().state.messages).expect("a count")
        })
    }

    /// Deletes the stream.
    pub(crate) fn delete_stream(&self) {
        self.with(|context| async move {
            context.delete_stream(STREAM).await.expect("its end");
        });
    }

    /// Drops the messages of a subject of the stream; `>` is all of them.
    pub(crate) fn purge(&self, subject: &'static str) {
        self.with(|context| async move {
            let stream = context.get_stream(STREAM).await.expect("a stream");
            stream.purge().filter(subject).await.expect("a purge");
        });
    }

    /// The messages of the stream, the oldest first.
    pub(crate) fn stored(&self) -> Vec<Stored> {
        self.stored_from(1)
    }

    /// The messages of the stream from this place on, the oldest first.
    pub(crate) fn stored_from(&self, first: u64) -> Vec<Stored> {
        self.with(|context| async move { read(&context, first).await })
    }

    /// The ids of the messages of the stream, the oldest first.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.stored().iter().map(Stored::id).collect()
    }

    /// Runs something with a client of its own, on a thread of its own: callers may be async, or not.
    pub(crate) fn with<T: Send, F: Future<Output = T>>(
        &self,
        work: impl FnOnce(Context) -> F + Send,
    ) -> T {
        let run = move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().expect("a runtime");
            runtime.block_on(async move { work(jetstream::new(self.client().await)).await })
        };
        std::thread::scope(|scope| scope.spawn(run).join().expect("a result"))
    }

    /// A client.
    pub(crate) async fn client(&self) -> async_nats::Client {
        let client = self.options().connect(self.url()).await;
        client.expect("a connection")
    }

    /// How the harness logs in.
    pub(super) fn options(&self) -> async_nats::ConnectOptions {
        let soon = |_| Duration::from_millis(20);
        let options = async_nats::ConnectOptions::new()
            .request_timeout(Some(PATIENCE))
            .reconnect_delay_callback(soon);
        match &self.login {
            Some((user, password)) => options.user_and_password(user.clone(), password.clone()),
            None => options,
        }
    }

    /// Publishes as somebody else, one after the other, until it is told to stop; how many.
    pub(crate) fn write_until(&self, subject: &'static str, stop: &AtomicBool) -> usize {
        self.with(|context| async move {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let published = context.publish(subject, "foreign".into()).await;
                published.expect("sent").await.expect("stored");
                count += 1;
            }
            count
        })
    }

    /// Publishes until the stream has no room for more messages. None made room for others.
    pub(crate) fn fill(&self, subject: &'static str) {
        self.with(|context| async move {
            let mut refused = None;
            while refused.is_none() {
                let mut sent = Vec::new();
                for _ in 0..1_000 {
                    sent.push(context.publish(subject, Bytes::new()).await.expect("sent"));
                }
                for answer in sent {
                    refused = answer.await.err().or(refused);
                }
            }
            let refused = refused.map(|it| it.to_string()).unwrap_or_default();
            assert!(refused.contains("maximum messages exceeded"), "{refused}");
            let stream = context.get_stream(STREAM).await.expect("a stream");
            let first = stream.cached_info().state.first_sequence;
            assert_eq!(first, 1, "the first messages of the stream are gone");
        });
    }

    /// Other settings, which the server takes without a restart.
    pub(crate) fn reload(&mut self, settings: &str) {
        const RELOADED: &str = "Reloaded server configuration";
        let before = self.process.output().matches(RELOADED).count();
        write_settings(&self.directory, self.port, settings);
        self.process.signal(Signal::HUP);
        let reloaded = within(PATIENCE, || {
            (self.process.output().matches(RELOADED).count() > before).then_some(())
        });
        reloaded.unwrap_or_else(|| panic!("no reload:\n{}", self.process.tail()));
    }

    /// kill -9, and waits until it is gone.
    pub(crate) fn kill9(&mut self) {
        self.process.kill9();
    }

    /// SIGSTOP: the server hangs, once each of its threads does.
    pub(crate) fn stop(&self) {
        self.process.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.process.pid().as_raw_nonzero());
        let stopped = within(PATIENCE, || {
            let mut threads = fs::read_dir(&tasks).ok()?.flatten();
            let hangs = threads.all(|thread| {
                let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
                stat.rsplit(") ")
                    .next()
                    .is_some_and(|rest| rest.starts_with('T'))
            });
            hangs.then_some(())
        });
        stopped.expect("nats-server hangs");
    }

    /// SIGCONT, after [`stop`](Nats::stop).
    pub(crate) fn cont(&self) {
        self.process.signal(Signal::CONT);
    }

    /// SIGUSR2: lame duck mode. It takes no new clients, and ends.
    pub(crate) fn lame_duck(&self) {
        self.process.signal(Signal::USR2);
    }

    /// Starts it again on the same port, with what it has on disk; kills it first if it runs.
    pub(crate) fn restart(&mut self) {
        self.process.kill9();
        let process = within(PATIENCE, || launch(&self.directory).ok());
        self.process = process.expect("nats-server starts again");
    }

    /// What it has written to its log.
    pub(crate) fn log(&self) -> String {
        self.process.output()
    }
}

fn write_settings(directory: &TempDir, port: u16, settings: &str) {
    let store = directory.path().join("jetstream");
    let text = format!(
        "listen: \"127.0.0.1:{port}\"\nserver_name: private\njetstream {{ store_dir: \"{}\" }}\n{settings}\n",
        store.display()
    );
    let path = directory.path().join("nats.conf");
    let written = File::create(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.expect("nats.conf");
}

/// Starts the server and waits until it takes connections; an error when it ends before.
fn launch(directory: &TempDir) -> Result<Process, ()> {
    const READY: &str = "Server is ready";
    let log = directory.path().join("log");
    let starts = fs::read_to_string(&log).unwrap_or_default();
    let starts = starts.matches(READY).count();
    let mut command = Command::new("nats-server");
    command
        .arg("--config")
        .arg(directory.path().join("nats.conf"))
        .current_dir(directory.path());
    let mut process = Process::spawn("nats-server", &mut command, Signal::KILL, &log);
    let ready = within(PATIENCE, || {
        if !process.running() {
            return Some(false);
        }
        (process.output().matches(READY).count() > starts).then_some(true)
    });
    if ready == Some(true) {
        Ok(process)
    } else {
        Err(())
    }
}

async fn read(context: &Context, first: u64) -> Vec<Stored> {
    let stream = context.get_stream(STREAM).await.expect("a stream");
    let all = try_to_read(&stream, first, usize::MAX).await;
    all.expect("its messages")
}

/// The messages of a stream whose state has just been asked for, from this place on, and not many more than `most`: up to
/// the first that was lost on the way, when a connection breaks. `None` when the server goes away.
pub(super) async fn try_to_read(
    stream: &stream::Stream,
    first: u64,
    most: usize,
) -> Option<Vec<Stored>> {
    let state = &stream.cached_info().state;
    let first = first.max(state.first_sequence);
    if state.messages == 0 || state.last_sequence < first {
        return Some(Vec::new());
    }
    let config = pull::Config {
        deliver_policy: DeliverPolicy::ByStartSequence {
            start_sequence: first,
        },
        ack_policy: AckPolicy::None,
        inactive_threshold: Duration::from_secs(30),
        memory_storage: true,
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await.ok()?;
    let mut found: Vec<Stored> = Vec::new();
    while found
        .last()
        .is_none_or(|last| last.sequence < state.last_sequence)
    {
        let batch = consumer.fetch().max_messages(1_000).messages().await;
        let mut batch = batch.ok()?;
        let before = found.len();
        while let Some(message) = batch.next().await {
            let message = message.ok()?;
            let info = message.info().ok()?;
            if info.consumer_sequence != found.len() as u64 + 1 {
                return Some(found);
            }
            let sequence = info.stream_sequence;
            let message = message.split().0;
            found.push(Stored {
                sequence,
                subject: message.subject.to_string(),
                headers: message.headers.unwrap_or_default(),
                payload: message.payload.to_vec(),
            });
        }
        if found.len() == before || found.len() >= most {
            break;
        }
    }
    Some(found)
}
