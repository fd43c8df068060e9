//! Why there is no closing table, in words that name the place and the remedy.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// Why there is no closing table.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(
        "PostgreSQL is not installed: no initdb and postgres in /usr/lib/postgresql/*/bin, in what pg_config --bindir \
         says, or in PATH. On Debian and Ubuntu: apt-get install postgresql"
    )]
    NoPostgres,
    #[error("the PostgreSQL in {} is older than 14, the oldest that has what aftercommit needs; install a newer one", .0.display())]
    OldPostgres(PathBuf),
    #[error(
        "PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody; run the demo as another user"
    )]
    NoUser,
    #[error("cannot {what} {}: {source}; TMPDIR names another place", place.display())]
    Folder {
        what: &'static str,
        place: PathBuf,
        source: io::Error,
    },
    #[error("redis-server is not installed. On Debian and Ubuntu: apt-get install redis-server")]
    NoRedis,
    #[error("no Django project in {}: run the demo in a checkout of aftercommit, or name it with --project", .0.display())]
    NoProject(PathBuf),
    #[error("no Python at {}: scripts/python-env.sh makes it, or name another with --python", .0.display())]
    NoPython(PathBuf),
    #[error("the demo's Redis: {0}")]
    Redis(crate::sink::Outage),
    #[error("the worker: {0}")]
    Worker(#[source] io::Error),
    #[error("{program} was not ready within {} s", within.as_secs())]
    NotReady {
        program: &'static str,
        within: Duration,
    },
    #[error("the worker did not finish within {} s", .0.as_secs())]
    WorkerStays(Duration),
    #[error("cannot start {program}: {source}")]
    Start {
        program: &'static str,
        source: io::Error,
    },
    #[error("{program} ended with {status}{said}")]
    Program {
        program: &'static str,
        status: ExitStatus,
        said: String,
    },
    #[error("the demo's database: {}", database_words(.0))]
    Database(#[from] tokio_postgres::Error),
    #[error("the daemon's standard output: {0}")]
    Pipe(#[source] io::Error),
    #[error("the daemon wrote a line that is not a task: {0}")]
    Line(#[source] serde_json::Error),
    #[error("the daemon did not read from its slot within {} s; --keep keeps its log", .0.as_secs())]
    DaemonDoesNotRead(Duration),
    #[error("the daemon did not end within {} s of SIGTERM; --keep keeps its log", .0.as_secs())]
    DaemonStays(Duration),
    #[error("a part of the demo failed: {0}")]
    Task(#[source] tokio::task::JoinError),
    #[error("cannot listen for signals: {0}")]
    Listen(#[source] io::Error),
    #[error("ended by signal {0}")]
    Signal(u8),
    #[error("standard output is closed")]
    OutputClosed,
}

impl Error {
    pub(super) fn start(program: &'static str, source: io::Error) -> Error {
        Error::Start { program, source }
    }

    pub(super) fn worker(source: io::Error) -> Error {
        Error::Worker(source)
    }

    pub(super) fn pipe(source: io::Error) -> Error {
        Error::Pipe(source)
    }
}

fn database_words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(refusal) => format!("{} ({})", refusal.message(), refusal.code().code()),
        None => error.to_string(),
    }
}
