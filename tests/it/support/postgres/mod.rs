//! Private Postgres servers.

mod databases;
pub(crate) mod programs;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use self::databases::write_for_server;
use self::programs::{Programs, give_to_server, how_to_get, installed};
use super::port::free_port;
use super::process::{Process, scratch};
use super::tls::Certificates;
use super::wait::{PATIENCE, until, within};

/// The superuser of every server; it needs no password unless `hba` says otherwise.
pub(crate) const SUPERUSER: &str = "postgres";
/// The database that every server starts with.
pub(crate) const DATABASE: &str = "app";

/// How to start a server.
#[derive(Clone, Copy)]
pub(crate) struct Options<'a> {
    /// Major version.
    pub(crate) version: u32,
    /// Settings beside those of the harness; the last one of a name wins.
    pub(crate) settings: &'a [(&'a str, &'a str)],
    /// The whole of pg_hba.conf, instead of trust for everyone.
    pub(crate) hba: Option<&'a str>,
    /// Offer TLS with this certificate.
    pub(crate) tls: Option<&'a Certificates>,
    /// Names and contents of files in the data directory.
    pub(crate) files: &'a [(&'a str, &'a str)],
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options {
            version: 15,
            settings: &[],
            hba: None,
            tls: None,
            files: &[],
        }
    }
}

/// A private server, stopped when dropped.
pub(crate) struct Postgres {
    process: Option<Process>,
    programs: Programs,
    port: u16,
    directory: TempDir,
}

impl Postgres {
    /// Starts a server on a free port of 127.0.0.1 and on a unix socket, with `wal_level = logical` and a database
    /// `app`. Without fsync: that survives kill -9 of the server, not the loss of the machine.
    pub(crate) fn start(options: Options) -> Postgres {
        let programs = Programs::of(options.version);
        let directory = server_directory();
        let data = directory.path().join("data");
        run(Command::new("cp")
            .arg("-a")
            .arg(template(&programs))
            .arg(&data));
        let mut settings = String::from(SETTINGS);
        if let Some(certificates) = options.tls {
            settings.push_str("ssl = on\n");
            for (name, source) in [
                ("server.crt", certificates.certificate()),
                ("server.key", certificates.key()),
            ] {
                fs::copy(source, data.join(name)).expect("a copy of the certificate");
                give_to_server(&data.join(name));
            }
        }
        for (name, value) in options.settings {
            writeln!(settings, "{name} = '{value}'").expect("a string");
        }
        if let Some(hba) = options.hba {
            fs::write(data.join("pg_hba.conf"), hba).expect("pg_hba.conf");
        }
        for (name, text) in options.files {
            write_for_server(&data.join(name), text);
        }
        fs::write(data.join("postgresql.conf"), settings).expect("postgresql.conf");
        Postgres::run(programs, directory)
    }

    /// The major versions that can be started here.
    pub(crate) fn versions_available() -> Vec<u32> {
        installed().into_keys().collect()
    }

    /// Whether a version can be started; when not, says so and how to get it. For tests of the version matrix.
    pub(crate) fn available_or_skip(version: u32) -> bool {
        let available = installed().contains_key(&version);
        if !available {
            eprintln!(
                "SKIP Postgres {version} is not installed: {}",
                how_to_get(version)
            );
        }
        available
    }

    /// Major version.
    pub(crate) fn version(&self) -> u32 {
        self.programs.version
    }

    /// The port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the unix socket.
    pub(crate) fn socket_directory(&self) -> &Path {
        self.directory.path()
    }

    /// The postmaster's process id.
    pub(crate) fn pid(&self) -> i32 {
        self.process().pid().as_raw_nonzero().get()
    }

    /// URL of the database `app` for a user.
    pub(crate) fn url(&self, user: &str) -> String {
        self.url_through(self.port, user)
    }

    /// As [`url`](Postgres::url), by way of another port: a proxy's.
    pub(crate) fn url_through(&self, port: u16, user: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{port}/{DATABASE}")
    }

    /// Runs SQL as the superuser, in autocommit, and returns the rows, one a line, columns separated by `|`.
    pub(crate) fn psql(&self, sql: &str) -> String {
        self.psql_in(DATABASE, sql)
    }

    /// As [`psql`](Postgres::psql), in another database.
    pub(crate) fn psql_in(&self, database: &str, sql: &str) -> String {
        let mut psql = self.programs.psql();
        psql.args([
            "-h",
            "127.0.0.1",
            "-p",
            &self.port.to_string(),
            "-U",
            SUPERUSER,
        ])
        .args(["-d", database, "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", sql]);
        run(&mut psql).trim_end().to_owned()
    }

    /// A connection as the superuser.
    pub(crate) async fn client(&self) -> tokio_postgres::Client {
        self.client_as(SUPERUSER).await
    }

    /// A connection as a user.
    pub(crate) async fn client_as(&self, user: &str) -> tokio_postgres::Client {
        self.client_in(user, DATABASE).await
    }

    /// kill -9 of the postmaster and all its backends.
    pub(crate) fn kill9(&mut self) {
        self.process_mut().kill9();
    }

    /// SIGSTOP to the postmaster and all its backends: the server hangs.
    pub(crate) fn stop(&self) {
        self.process().signal_family(Signal::STOP);
    }

    /// SIGCONT, after [`stop`](Postgres::stop).
    pub(crate) fn cont(&self) {
        self.process().signal_family(Signal::CONT);
    }

    /// Asks for a fast shutdown, without waiting for it.
    pub(crate) fn begin_stop_fast(&self) {
        self.process().signal(Signal::INT);
    }

    /// Fast shutdown; waits until the server is gone and says how long that took.
    pub(crate) async fn stop_fast(&mut self) -> Duration {
        let start = Instant::now();
        self.begin_stop_fast();
        self.process_mut().ended(PATIENCE).await;
        start.elapsed()
    }

    /// Smart shutdown, which waits until all clients have gone by themselves; says how long that took.
    pub(crate) async fn stop_smart(&mut self) -> Duration {
        let start = Instant::now();
        self.process().signal(Signal::TERM);
        self.process_mut().ended(PATIENCE).await;
        start.elapsed()
    }

    /// Starts it again, on the same port and data, after it has ended in whichever way; blocks until it is ready.
    pub(crate) fn restart(&mut self) {
        if self.process_mut().running() {
            self.begin_stop_fast();
            self.process_mut().wait(PATIENCE);
        }
        // After kill -9 the last backend may take a moment to let go of the shared memory.
        let process = within(PATIENCE, || {
            launch(&self.programs, self.directory.path(), self.port).ok()
        });
        self.process = Some(process.unwrap_or_else(|| panic!("no restart:\n{}", self.log())));
    }

    /// A hot standby of this server, streaming under `name`. With `sync`, commits on this server wait for it from now on.
    pub(crate) fn create_standby(&self, name: &str, sync: bool) -> Postgres {
        self.create_standby_through(self.port, name, sync)
    }

    /// As [`create_standby`](Postgres::create_standby); its replication goes through another port: a proxy's.
    pub(crate) fn create_standby_through(&self, port: u16, name: &str, sync: bool) -> Postgres {
        let directory = server_directory();
        let data = directory.path().join("data");
        run(self
            .programs
            .basebackup()
            .args([
                "-h",
                "127.0.0.1",
                "-p",
                &self.port.to_string(),
                "-U",
                SUPERUSER,
            ])
            .args(["-X", "stream", "-c", "fast", "--no-sync", "-D"])
            .arg(&data));
        let settings = format!(
            "primary_conninfo = 'host=127.0.0.1 port={port} user={SUPERUSER} application_name={name}'\n\
             hot_standby_feedback = on\n"
        );
        // Read after the primary's own settings, which came with the copy.
        append(&data.join("postgresql.auto.conf"), &settings);
        fs::write(data.join("standby.signal"), "").expect("standby.signal");
        let standby = Postgres::run(self.programs.clone(), directory);
        if sync {
            self.psql(&format!(
                "alter system set synchronous_standby_names = '{name}'"
            ));
            self.psql("select pg_reload_conf()");
        }
        let wanted = if sync {
            "streaming|sync"
        } else {
            "streaming|async"
        };
        let state = format!(
            "select state, sync_state from pg_stat_replication where application_name = '{name}'"
        );
        until(PATIENCE, "the standby to stream", || {
            (self.psql(&state) == wanted).then_some(())
        });
        standby
    }

    /// Makes a standby a primary, and waits until it is one.
    pub(crate) fn promote(&self) {
        assert_eq!(self.psql("select pg_promote(true, 60)"), "t");
    }

    /// What the server has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn run(programs: Programs, directory: TempDir) -> Postgres {
        // Another process may take a free port before the server does.
        for _ in 0..5 {
            let port = free_port();
            if let Ok(process) = launch(&programs, directory.path(), port) {
                return Postgres {
                    process: Some(process),
                    programs,
                    port,
                    directory,
                };
            }
        }
        let log = fs::read_to_string(directory.path().join("log")).unwrap_or_default();
        panic!("Postgres {} does not start:\n{log}", programs.version);
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("only Drop takes it away")
    }

    fn process_mut(&mut self) -> &mut Process {
        self.process.as_mut().expect("only Drop takes it away")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.process = None;
        // A server that was killed leaves its System V segment behind, and its id in the last but one line of its file.
        let pid_file = self.directory.path().join("data/postmaster.pid");
        let segment = fs::read_to_string(pid_file).ok().and_then(|file| {
            let line = file.lines().nth(6)?;
            Some(line.split_whitespace().nth(1)?.to_owned())
        });
        if let Some(segment) = segment {
            let _ = Command::new("ipcrm").args(["-m", &segment]).output();
        }
    }
}

const SETTINGS: &str = "\
listen_addresses = '127.0.0.1'
wal_level = logical
max_wal_senders = 20
max_replication_slots = 20
max_prepared_transactions = 20
shared_buffers = 32MB
dynamic_shared_memory_type = mmap
fsync = off
wal_retrieve_retry_interval = 100ms
jit = off
log_line_prefix = '%m [%p] %a '
log_min_messages = log
timezone = UTC
";

/// Starts the postmaster and waits until it takes connections; an error when it ends before.
fn launch(programs: &Programs, directory: &Path, port: u16) -> Result<Process, ()> {
    let data = directory.join("data");
    let mut command = programs.command("postgres");
    let log = directory.join("log");
    let output = fs::File::options()
        .create(true)
        .append(true)
        .open(&log)
        .expect("a log file");
    command
        .arg("-D")
        .arg(&data)
        .args(["-p", &port.to_string()])
        .args([
            "-k",
            directory.to_str().expect("a temporary folder in ASCII"),
        ])
        .stdout(output);
    let mut process = Process::spawn("postgres", &mut command, Signal::QUIT, &log);
    let pid = process.pid().as_raw_nonzero().to_string();
    // The postmaster's file tells its state in the last line, as pg_ctl knows it.
    let ready = within(PATIENCE, || {
        if !process.running() {
            return Some(false);
        }
        let file = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
        let mut lines = file.lines();
        (lines.next() == Some(&pid) && lines.nth(6).is_some_and(|state| state.trim() == "ready"))
            .then_some(true)
    });
    if ready == Some(true) {
        Ok(process)
    } else {
        Err(())
    }
}

/// A cluster as `initdb` leaves it, with the database `app`; made once per version, copied for each server.
fn template(programs: &Programs) -> PathBuf {
    static TEMPLATES: LazyLock<Mutex<BTreeMap<u32, TempDir>>> = LazyLock::new(Mutex::default);
    let mut templates = TEMPLATES
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let directory = templates.entry(programs.version).or_insert_with(|| {
        let directory = server_directory();
        run(programs
            .command("initdb")
            .args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C"])
            .args(["-U", SUPERUSER, "-D"])
            .arg(directory.path().join("data")));
        append(&directory.path().join("data/postgresql.conf"), SETTINGS);
        let server = Postgres::run(programs.clone(), directory);
        server.psql_in("postgres", &format!("create database {DATABASE}"));
        server.into_data()
    });
    directory.path().join("data")
}

impl Postgres {
    /// Stops it cleanly and keeps its folder.
    fn into_data(mut self) -> TempDir {
        self.begin_stop_fast();
        self.process_mut().wait(PATIENCE);
        std::mem::replace(&mut self.directory, scratch("empty"))
    }
}

fn server_directory() -> TempDir {
    let directory = scratch("pg");
    give_to_server(directory.path());
    directory
}

fn append(path: &Path, text: &str) {
    let present = fs::read_to_string(path).expect("a file of the server");
    fs::write(path, present + "\n" + text).expect("a file of the server");
}

/// Runs a command to its end; panics with its messages when it fails.
fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
