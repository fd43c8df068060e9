//! Other databases and users than a server's first ones, whole scripts, and files beside its configuration.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

use super::programs::give_to_server;
use super::{Postgres, SUPERUSER};
use crate::support::wait::{PATIENCE, until};

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

    /// Sets up this server's standby so that it keeps a copy of the slot (from Postgres 17 on), and waits until it has one.
    pub(crate) fn keep_slots_on(&self, standby: &Postgres) {
        self.psql(
            "select pg_create_physical_replication_slot('standby')
             where not exists (select from pg_replication_slots where slot_name = 'standby')",
        );
        self.psql("alter system set synchronized_standby_slots = 'standby'");
        self.psql("select pg_reload_conf()");
        let conninfo = format!(
            "host=127.0.0.1 port={} user={SUPERUSER} application_name=standby dbname=app",
            self.port()
        );
        for setting in [
            "primary_slot_name = 'standby'".to_owned(),
            "sync_replication_slots = on".to_owned(),
            format!("primary_conninfo = '{conninfo}'"),
        ] {
            standby.psql(&format!("alter system set {setting}"));
        }
        standby.psql("select pg_reload_conf()");
        until(PATIENCE, "a copy of the slot", || {
            // A slot is copied once its position lies in the standby's WAL: there has to be some.
            self.psql("select pg_log_standby_snapshot()");
            let ready = "select synced and not temporary and invalidation_reason is null from pg_replication_slots";
            (standby.psql(ready) == "t").then_some(())
        });
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
