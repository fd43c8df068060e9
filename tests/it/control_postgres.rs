//! A private Postgres server, stopped when dropped. `AFTERCOMMIT_TEST_PG_BIN` chooses another version's programs.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

pub(crate) struct Server {
    directory: TempDir,
    port: u16,
}

impl Server {
    /// Starts one with logical decoding.
    pub(crate) fn start() -> Server {
        Server::with(&[])
    }

    /// Starts one with settings of its own; the last one of a name wins.
    pub(crate) fn with(settings: &[(&str, &str)]) -> Server {
        let directory = tempfile::Builder::new()
            .prefix("aftercommit-pg-")
            .tempdir()
            .expect("a directory");
        ran(Command::new("chown").arg("postgres").arg(directory.path()));
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let server = Server { directory, port };
        ran(server
            .program("initdb")
            .args([
                "--no-sync",
                "--auth=trust",
                "--username=postgres",
                "--encoding=UTF8",
                "--locale=C",
                "-D",
            ])
            .arg(server.data()));
        let mut conf = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\nfsync = off\n\
             wal_level = logical\nmax_prepared_transactions = 5\nmax_replication_slots = 40\n",
            server.directory.path().display()
        );
        for (name, value) in settings {
            conf.push_str(&format!("{name} = '{value}'\n"));
        }
        std::fs::OpenOptions::new()
            .append(true)
            .open(server.data().join("postgresql.conf"))
            .and_then(|mut file| file.write_all(conf.as_bytes()))
            .expect("postgresql.conf");
        server.control("start");
        server
    }

    pub(crate) fn restart(&self) {
        self.control("restart");
    }

    /// A connection, and the task that drives it.
    pub(crate) async fn connect(&self, user: &str, database: &str) -> (Client, JoinHandle<()>) {
        let (client, connection) = tokio_postgres::connect(&self.url(user, database), NoTls)
            .await
            .expect("a connection");
        let task = tokio::spawn(async move {
            let _ = connection.await;
        });
        (client, task)
    }

    pub(crate) async fn client(&self, user: &str, database: &str) -> Client {
        self.connect(user, database).await.0
    }

    /// A new database, and a superuser's connection to it.
    pub(crate) async fn database(&self, name: &str) -> Client {
        self.client("postgres", "postgres")
            .await
            .batch_execute(&format!("create database {name}"))
            .await
            .expect("a database");
        self.client("postgres", name).await
    }

    pub(crate) fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// Runs a script through psql, which stops at the first error.
    pub(crate) fn psql(&self, database: &str, script: &str) {
        let mut psql = Command::new("psql")
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d"])
            .arg(self.url("postgres", database))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("psql");
        psql.stdin
            .take()
            .expect("a pipe")
            .write_all(script.as_bytes())
            .expect("psql reads");
        assert!(psql.wait().expect("psql ends").success());
    }

    fn control(&self, verb: &str) {
        ran(self
            .program("pg_ctl")
            .args(["-s", "-w", "-m", "immediate", "-D"])
            .arg(self.data())
            .arg("-l")
            .arg(self.directory.path().join("log"))
            .arg(verb));
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn program(&self, name: &str) -> Command {
        let folder = std::env::var_os("AFTERCOMMIT_TEST_PG_BIN")
            .map_or_else(|| "/usr/lib/postgresql/15/bin".into(), PathBuf::from);
        let mut command = Command::new("runuser");
        command
            .args(["-u", "postgres", "--"])
            .arg(folder.join(name))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self
            .program("pg_ctl")
            .args(["-s", "-m", "immediate", "-D"])
            .arg(self.data())
            .arg("stop")
            .status();
    }
}

fn ran(command: &mut Command) {
    let status = command.status().expect("the program starts");
    assert!(status.success(), "{command:?}");
}
