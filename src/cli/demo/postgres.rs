//! A private Postgres: found on this machine, started in the playground, reached by a unix socket that only its owner
//! and root can open.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

use super::Error;
use super::playground::Playground;

/// What the shop is made of. The application may write orders, the worker reads them.
const SHOP: &str = "
create role shop login;
create schema shop;
create table shop.orders (id bigint primary key, customer bigint not null, placed_at timestamptz not null default now());
grant usage on schema shop to shop;
grant select, insert on shop.orders to shop;
";

/// `aftercommit init` has made a group for those who enqueue and one for the daemon. REPLICATION is not inherited.
const ROLES: &str = "
grant aftercommit_app to shop;
create role aftercommit login replication in role aftercommit_daemon;
";

/// Oldest version that aftercommit works with.
const OLDEST: u32 = 140_000;

const START_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// The server's database `shop`.
#[derive(Clone)]
pub(super) struct Database {
    folder: PathBuf,
}

/// A connection. Dropping it cuts it off as the end of its process would, with no farewell.
pub(super) struct Session {
    /// The connection's client.
    pub(super) client: Client,
    driver: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Where `initdb` and `postgres` are: Debian's place first, newest version first, then what `pg_config` says, then
/// `PATH`.
pub(super) fn programs() -> Result<PathBuf, Error> {
    let mut folders: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    folders.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    let configured = std::process::Command::new("pg_config")
        .arg("--bindir")
        .stderr(Stdio::null())
        .output()
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map(|text| PathBuf::from(text.trim()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    folders
        .into_iter()
        .map(|(_, folder)| folder)
        .chain(configured)
        .chain(std::env::split_paths(&path))
        .find(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
        .ok_or(Error::NoPostgres)
}

/// Makes a cluster in the playground, starts it, and makes the shop in it. Returns when it answers.
pub(super) async fn start(playground: &Playground, programs: &Path) -> Result<Database, Error> {
    let folder = playground.folder();
    let data = folder.join("data");
    let made = Command::from(playground.server(programs.join("initdb")))
        .args(["--username=postgres", "--auth=trust", "--encoding=UTF8"])
        .args(["--locale=C", "--no-sync", "--no-instructions", "--pgdata"])
        .arg(&data)
        .stderr(Stdio::piped())
        .output()
        .await
        .map_err(|source| Error::start("initdb", source))?;
    if !made.status.success() {
        return Err(Error::Program {
            program: "initdb",
            status: made.status,
            said: tail(&String::from_utf8_lossy(&made.stderr)),
        });
    }
    let log = folder.join("postgres.log");
    let output = File::create(&log).map_err(|source| Error::start("postgres", source))?;
    let mut server = Command::from(playground.server(programs.join("postgres")))
        .arg("-D")
        .arg(&data)
        .arg("-k")
        .arg(folder)
        .args(["-p", "5432", "-c", "listen_addresses="])
        .args(["-c", "wal_level=logical"])
        .stderr(output)
        .spawn()
        .map_err(|source| Error::start("postgres", source))?;

    let database = Database {
        folder: folder.to_owned(),
    };
    let begin = tokio::time::Instant::now();
    let session = loop {
        if let Ok(Some(status)) = server.try_wait() {
            return Err(Error::Program {
                program: "postgres",
                status,
                said: tail(&std::fs::read_to_string(&log).unwrap_or_default()),
            });
        }
        match database.session_in("postgres", "postgres").await {
            Ok(session) => break session,
            Err(error) if begin.elapsed() > START_LIMIT => return Err(error),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    };
    let version: String = session
        .client
        .query_one("show server_version_num", &[])
        .await?
        .try_get(0)?;
    if version.parse::<u32>().is_ok_and(|version| version < OLDEST) {
        return Err(Error::OldPostgres(programs.to_owned()));
    }
    session.client.batch_execute("create database shop").await?;
    database
        .session("postgres")
        .await?
        .client
        .batch_execute(SHOP)
        .await?;
    Ok(database)
}

impl Database {
    /// The database as a URL, for a user.
    pub(super) fn url(&self, user: &str) -> String {
        let host = self.folder.display().to_string().replace('/', "%2F");
        format!("postgres://{user}@{host}:5432/shop")
    }

    /// A connection as a user.
    pub(super) async fn session(&self, user: &str) -> Result<Session, Error> {
        self.session_in("shop", user).await
    }

    async fn session_in(&self, database: &str, user: &str) -> Result<Session, Error> {
        let (client, connection) = tokio_postgres::Config::new()
            .host_path(&self.folder)
            .port(5432)
            .user(user)
            .dbname(database)
            .application_name("aftercommit-demo")
            .connect(NoTls)
            .await?;
        // An error of the connection is an error of whoever uses its client.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Session { client, driver })
    }

    /// The server's version, in its own words.
    pub(super) async fn version(&self) -> Result<String, Error> {
        let session = self.session("postgres").await?;
        let row = session.client.query_one("show server_version", &[]).await?;
        Ok(row.try_get(0)?)
    }

    /// Empties the shop for the next act.
    pub(super) async fn empty(&self) -> Result<(), Error> {
        let session = self.session("postgres").await?;
        session
            .client
            .batch_execute("truncate shop.orders")
            .await
            .map_err(Error::from)
    }

    /// Lets the application enqueue and the daemon read, and neither do more, once `aftercommit init` has run.
    pub(super) async fn grant(&self) -> Result<(), Error> {
        let session = self.session("postgres").await?;
        session
            .client
            .batch_execute(ROLES)
            .await
            .map_err(Error::from)
    }

    /// Whether a daemon reads from the slot.
    pub(super) async fn slot_is_active(&self, slot: &str) -> Result<bool, Error> {
        let session = self.session("postgres").await?;
        let row = session
            .client
            .query_opt(
                "select active from pg_replication_slots where slot_name = $1",
                &[&slot],
            )
            .await?;
        Ok(match row {
            Some(row) => row.try_get(0)?,
            None => false,
        })
    }
}

/// The last lines of what a program said.
pub(super) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    match lines.get(lines.len().saturating_sub(6)..) {
        Some(last @ [_, ..]) => format!(", and said:\n{}", last.join("\n")),
        _ => String::new(),
    }
}
