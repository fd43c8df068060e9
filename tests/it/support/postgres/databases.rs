//! Other databases and users than a server's first ones, whole scripts, and files beside its configuration.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

use super::programs::give_to_server;
use super::{Postgres, SUPERUSER};

impl Postgres {
    /// URL of any database for a user.
    pub(crate) fn url_to(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port())
    }

    /// A connection to any database as a user, and the task that drives it.
    pub(crate) async fn connect(&self, user: &str, database: &str) -> (Client, JoinHandle<()>) {
        let (client, connection) = tokio_postgres::connect(&self.url_to(user, database), NoTls)
            .await
            .expect("a connection");
        let task = tokio::spawn(async move {
            let _ = connection.await;
        });
        (client, task)
    }

    /// As [`connect`](Postgres::connect), where nobody waits for the connection's end.
    pub(crate) async fn client_in(&self, user: &str, database: &str) -> Client {
        self.connect(user, database).await.0
    }

    /// A new database, and a connection to it as the superuser.
    pub(crate) async fn database(&self, name: &str) -> Client {
        self.psql_in("postgres", &format!("create database {name}"));
        self.client_in(SUPERUSER, name).await
    }

    /// Runs a script through psql as the superuser: each statement by itself, up to the first error, which fails.
    pub(crate) fn run_script(&self, database: &str, script: &str) {
        let mut psql = self
            .programs
            .psql()
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d"])
            .arg(self.url_to(SUPERUSER, database))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("psql");
        let mut input = psql.stdin.take().expect("a pipe");
        input.write_all(script.as_bytes()).expect("psql reads");
        drop(input);
        assert!(psql.wait().expect("psql ends").success());
    }

    /// Writes a file into the data directory, for the server's eyes only.
    pub(crate) fn write(&self, name: &str, text: &str) {
        write_for_server(&self.directory.path().join("data").join(name), text);
    }
}

/// Writes a file that its owner, the server's account, alone may read: it refuses others for a key.
pub(super) fn write_for_server(path: &std::path::Path, text: &str) {
    fs::write(path, text).expect("a file of the server");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("chmod");
    give_to_server(path);
}
