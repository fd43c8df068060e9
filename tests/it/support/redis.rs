//! Private Redis servers.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, AsyncConnectionConfig};
use rustix::process::Signal;
use tempfile::TempDir;

use super::port::free_port;
use super::process::{Process, scratch};
use super::tls::Certificates;
use super::wait::{PATIENCE, within};

/// How to start a server.
#[derive(Clone, Copy, Default)]
pub(crate) struct Options<'a> {
    /// The password that clients must give.
    pub(crate) password: Option<&'a str>,
    /// Serve TLS, on a second port, with this certificate.
    pub(crate) tls: Option<&'a Certificates>,
    /// Write every command to disk, with fsync, before answering.
    pub(crate) durable: bool,
    /// Settings beside those of the harness; the last one of a name wins.
    pub(crate) settings: &'a [(&'a str, &'a str)],
}

/// An entry of a stream: its id and its fields.
pub(crate) type Entry = (String, HashMap<String, String>);

/// A private server, stopped when dropped.
pub(crate) struct Redis {
    process: Process,
    arguments: Vec<String>,
    password: Option<String>,
    port: u16,
    tls_port: u16,
    directory: TempDir,
}

impl Redis {
    /// Starts a server that keeps everything in memory, on a free port of 127.0.0.1 and on a unix socket.
    pub(crate) fn start() -> Redis {
        Redis::start_with(Options::default())
    }

    /// As [`start`](Redis::start), with options.
    pub(crate) fn start_with(options: Options) -> Redis {
        let directory = scratch("redis");
        for _ in 0..5 {
            let (port, tls_port) = (free_port(), free_port());
            let mut arguments = Vec::new();
            let mut set = |name: &str, value: &str| {
                arguments.extend([format!("--{name}"), value.to_owned()]);
            };
            set("bind", "127.0.0.1");
            set("port", &port.to_string());
            set(
                "unixsocket",
                &directory.path().join("redis.sock").display().to_string(),
            );
            set("dir", &directory.path().display().to_string());
            set("save", "");
            set("appendonly", if options.durable { "yes" } else { "no" });
            set("appendfsync", "always");
            if let Some(password) = options.password {
                set("requirepass", password);
            }
            if let Some(certificates) = options.tls {
                set("tls-port", &tls_port.to_string());
                set(
                    "tls-cert-file",
                    &certificates.certificate().display().to_string(),
                );
                set("tls-key-file", &certificates.key().display().to_string());
                set(
                    "tls-ca-cert-file",
                    &certificates.authority().display().to_string(),
                );
                set("tls-auth-clients", "no");
            }
            for (name, value) in options.settings {
                set(name, value);
            }
            // Another process may take a free port before the server does.
            if let Ok(process) = launch(&arguments, &directory) {
                return Redis {
                    process,
                    arguments,
                    password: options.password.map(str::to_owned),
                    port,
                    tls_port,
                    directory,
                };
            }
        }
        panic!("redis-server does not start");
    }

    /// The port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The port of TLS on 127.0.0.1.
    pub(crate) fn tls_port(&self) -> u16 {
        self.tls_port
    }

    /// The unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }

    /// URL of a database, with the password.
    pub(crate) fn url(&self, database: u8) -> String {
        self.url_through(self.port, database)
    }

    /// As [`url`](Redis::url), by way of another port: a proxy's.
    pub(crate) fn url_through(&self, port: u16, database: u8) -> String {
        format!("redis://{}127.0.0.1:{port}/{database}", self.userinfo())
    }

    /// URL of a database on the TLS port.
    pub(crate) fn tls_url(&self, database: u8) -> String {
        format!(
            "rediss://{}127.0.0.1:{}/{database}",
            self.userinfo(),
            self.tls_port
        )
    }

    /// A connection to database 0.
    pub(crate) async fn connection(&self) -> MultiplexedConnection {
        self.connection_to(0).await
    }

    /// A connection to a database.
    pub(crate) async fn connection_to(&self, database: u8) -> MultiplexedConnection {
        let client = redis::Client::open(self.url(database)).expect("a URL");
        // The library gives up after half a second, which a busy machine may need.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .expect("a connection")
    }

    /// The whole of a list of database 0, from the left: what was pushed last comes first.
    pub(crate) async fn lrange(&self, key: &str) -> Vec<Vec<u8>> {
        self.connection()
            .await
            .lrange(key, 0, -1)
            .await
            .expect("LRANGE")
    }

    /// The lengths of the messages of a list, the oldest first; for messages that are too large to be fetched.
    pub(crate) async fn lengths(&self, database: u8, list: &str) -> Vec<usize> {
        const SCRIPT: &str = r#"
            local lengths = {}
            for at = redis.call('llen', KEYS[1]) - 1, 0, -1 do
                table.insert(lengths, string.len(redis.call('lindex', KEYS[1], at)))
            end
            return lengths"#;
        let mut connection = self.connection_to(database).await;
        let mut script = redis::cmd("EVAL");
        script.arg(SCRIPT).arg(1).arg(list);
        script.query_async(&mut connection).await.expect("numbers")
    }

    /// Runs a command, as code that blocks its thread.
    pub(crate) fn run(&self, command: &[&str]) {
        let (name, arguments) = command.split_first().expect("a command");
        let run = redis::cmd(name).arg(arguments).exec(&mut self.blocking(0));
        run.expect(name);
    }

    /// Runs a command, and gives its answer; as code that blocks its thread.
    pub(crate) fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let (name, arguments) = command.split_first().expect("a command");
        let answer = redis::cmd(name).arg(arguments).query(&mut self.blocking(0));
        answer.expect(name)
    }

    /// All messages of a list, the oldest first, as code that blocks its thread.
    pub(crate) fn messages(&self, database: u8, list: &str) -> Vec<serde_json::Value> {
        let command = redis::cmd("LRANGE").arg(list).arg(0).arg(-1).clone();
        let mut found: Vec<String> = command.query(&mut self.blocking(database)).expect("a list");
        found.reverse();
        let message = |text: &String| serde_json::from_str(text).expect("JSON");
        found.iter().map(message).collect()
    }

    /// The task ids of the messages of a list, the oldest first, as code that blocks its thread.
    pub(crate) fn ids(&self, database: u8, list: &str) -> Vec<String> {
        let messages = self.messages(database, list);
        let id = |message: &serde_json::Value| message["headers"]["id"].as_str().map(str::to_owned);
        messages
            .iter()
            .map(|message| id(message).expect("an id"))
            .collect()
    }

    /// The entries of a stream, the oldest first: id and fields. As code that blocks its thread.
    pub(crate) fn entries(&self, stream: &str) -> Vec<Entry> {
        let command = redis::cmd("XRANGE").arg(stream).arg("-").arg("+").clone();
        command.query(&mut self.blocking(0)).expect("a stream")
    }

    /// The task ids of a stream's entries, the oldest first.
    pub(crate) fn entry_ids(&self, stream: &str) -> Vec<String> {
        self.entries(stream)
            .into_iter()
            .map(|(_, fields)| fields["id"].clone())
            .collect()
    }

    /// A connection to a database, for code that blocks its thread.
    pub(crate) fn blocking(&self, database: u8) -> redis::Connection {
        let client = redis::Client::open(self.url(database)).expect("a URL");
        client.get_connection().expect("a connection")
    }

    /// kill -9, and waits until it is gone.
    pub(crate) fn kill9(&mut self) {
        self.process.kill9();
    }

    /// SIGSTOP: the server hangs.
    pub(crate) fn stop(&self) {
        self.process.signal(Signal::STOP);
    }

    /// SIGCONT, after [`stop`](Redis::stop).
    pub(crate) fn cont(&self) {
        self.process.signal(Signal::CONT);
    }

    /// Starts it again on the same ports; kills it first if it runs.
    pub(crate) fn restart(&mut self) {
        self.process.kill9();
        let process = within(PATIENCE, || launch(&self.arguments, &self.directory).ok());
        self.process = process.expect("redis-server starts again");
    }

    fn userinfo(&self) -> String {
        match &self.password {
            Some(password) => format!(":{password}@"),
            None => String::new(),
        }
    }
}

/// Starts the server and waits until it takes connections; an error when it ends before.
fn launch(arguments: &[String], directory: &TempDir) -> Result<Process, ()> {
    const READY: &str = "Ready to accept connections";
    let log = directory.path().join("log");
    let starts = std::fs::read_to_string(&log)
        .unwrap_or_default()
        .matches(READY)
        .count();
    let output = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .expect("a log file");
    let mut command = Command::new("redis-server");
    command
        .args(arguments)
        .current_dir(directory.path())
        .stdout(output);
    let mut process = Process::spawn("redis-server", &mut command, Signal::KILL, &log);
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
