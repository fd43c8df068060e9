//! A real Redis and a real Celery worker of a Django project, in the place of the worker inside of this process. What
//! the worker received and what it found is read from its own log.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Error;
use super::act::Clock;
use super::daemon::terminate;
use super::ledger::Event;
use super::plan;
use super::playground::{Playground, run, tail};
use super::postgres::Database;
use crate::sink::celery::Backlog;
use crate::sink::redis_client::url::{Address, Place};

const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);
const CONCURRENCY: &str = "4";

/// The Django project, and the Python that has what it needs.
pub(super) struct Project {
    folder: PathBuf,
    python: PathBuf,
}

/// A Redis and a worker that is ready.
pub(super) struct Celery {
    broker_url: String,
    backlog: Backlog,
    worker: Child,
    log: Lines<BufReader<ChildStderr>>,
}

/// What a line of the worker's log says.
#[derive(Debug, PartialEq, Eq)]
enum Said<'a> {
    Received(&'a str),
    Succeeded(&'a str),
    RowNotFound(&'a str),
}

impl Project {
    /// A project that is there, with its Python.
    pub(super) fn find(folder: &Path, python: &Path) -> Result<Project, Error> {
        // Not resolved further: the interpreter of a virtual environment is a link, and knows it by its path.
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let project = Project {
            folder: absolute(folder),
            python: absolute(python),
        };
        if !project.folder.join("manage.py").is_file() {
            return Err(Error::NoProject(project.folder));
        }
        if !project.python.is_file() {
            return Err(Error::NoPython(project.python));
        }
        Ok(project)
    }

    fn command(
        &self,
        playground: &Playground,
        database_url: &str,
        broker_url: &str,
    ) -> std::process::Command {
        let mut command = playground.command(&self.python);
        command
            .current_dir(&self.folder)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONUNBUFFERED", "1")
            .env("DJANGO_SETTINGS_MODULE", "shop.settings")
            .env("DATABASE_URL", database_url)
            .env("CELERY_BROKER_URL", broker_url);
        command
    }

    /// Makes the project's tables.
    pub(super) async fn migrate(
        &self,
        playground: &Playground,
        database: &Database,
    ) -> Result<(), Error> {
        let mut migrate = self.command(playground, &database.url("postgres"), "memory://");
        migrate.args(["manage.py", "migrate", "--verbosity", "0"]);
        run("manage.py migrate", migrate).await
    }
}

impl Celery {
    /// Starts Redis, then the worker, and waits until it is ready.
    pub(super) async fn start(
        playground: &Playground,
        project: &Project,
        database: &Database,
    ) -> Result<Celery, Error> {
        let socket = playground.folder().join("redis.sock");
        let backlog = start_redis(playground, &socket).await?;
        let broker_url = format!("redis+socket://{}", socket.display());
        let failed = |source| Error::start("celery", source);
        let mut worker = project.command(playground, &database.url("shop"), &broker_url);
        worker
            .args(["-m", "celery", "-A", "shop", "worker", "--loglevel", "info"])
            .args(["--concurrency", CONCURRENCY])
            .args(["--without-gossip", "--without-mingle"])
            .stderr(Stdio::piped());
        let mut worker = Command::from(worker).spawn().map_err(failed)?;
        let log = worker.stderr.take().expect("it was spawned with a pipe");
        let mut log = BufReader::new(log).lines();
        let ready = async {
            let mut said = String::new();
            while let Some(line) = log.next_line().await.map_err(Error::worker)? {
                if line.ends_with(" ready.") {
                    return Ok(());
                }
                said = said + &line + "\n";
            }
            Err(ended(&mut worker, &said).await)
        };
        tokio::time::timeout(START_LIMIT, ready)
            .await
            .map_err(|_| Error::NotReady {
                program: "celery",
                within: START_LIMIT,
            })??;
        Ok(Celery {
            broker_url,
            backlog,
            worker,
            log,
        })
    }

    /// The daemon's sink that leads here.
    pub(super) fn sink(&self) -> String {
        format!("[sink.celery.worker]\nbroker_url = \"{}\"", self.broker_url)
    }

    /// Reports what the worker does. When the daemon has ended, the worker finishes what is in its queue, and is
    /// stopped.
    pub(super) async fn watch(
        &mut self,
        clock: Clock,
        events: mpsc::Sender<Event>,
        mut daemon_ended: oneshot::Receiver<()>,
    ) -> Result<(), Error> {
        loop {
            tokio::select! {
                line = self.log.next_line() => match line.map_err(Error::worker)? {
                    Some(line) => report(&line, clock, &events).await,
                    None => return Err(ended(&mut self.worker, "").await),
                },
                _ = &mut daemon_ended => break,
            }
        }
        let finish = async {
            let mut poll = tokio::time::interval(POLL);
            let mut stopped = false;
            loop {
                tokio::select! {
                    line = self.log.next_line() => match line.map_err(Error::worker)? {
                        Some(line) => report(&line, clock, &events).await,
                        None => return Ok(()),
                    },
                    _ = poll.tick(), if !stopped => {
                        if self.backlog.unfinished("celery").await.map_err(Error::Redis)? == 0 {
                            terminate(&self.worker).await?;
                            stopped = true;
                        }
                    }
                }
            }
        };
        tokio::time::timeout(STOP_LIMIT, finish)
            .await
            .map_err(|_| Error::WorkerStays(STOP_LIMIT))?
    }
}

async fn start_redis(playground: &Playground, socket: &Path) -> Result<Backlog, Error> {
    let output = File::create(playground.folder().join("redis.log"))
        .map_err(|source| Error::start("redis-server", source))?;
    let mut server = Command::from(playground.server("redis-server"))
        .args(["--port", "0", "--save", "", "--appendonly", "no"])
        .arg("--unixsocket")
        .arg(socket)
        .stdout(output)
        .spawn()
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::NoRedis,
            _ => Error::start("redis-server", source),
        })?;
    let address = Address {
        place: Place::Unix(socket.to_owned()),
        user: None,
        password: None,
        db: 0,
        tls: None,
        name: None,
    };
    let begin = Instant::now();
    loop {
        match Backlog::open(address.clone()).await {
            Ok(backlog) => return Ok(backlog),
            Err(error) if begin.elapsed() > START_LIMIT => return Err(Error::Redis(error)),
            Err(_) => tokio::time::sleep(POLL).await,
        }
        if let Some(status) = server.try_wait().map_err(Error::worker)? {
            let log = playground.folder().join("redis.log");
            return Err(Error::Program {
                program: "redis-server",
                status,
                said: tail(&std::fs::read_to_string(log).unwrap_or_default()),
            });
        }
    }
}

async fn ended(worker: &mut Child, said: &str) -> Error {
    match worker.wait().await {
        Ok(status) => Error::Program {
            program: "celery",
            status,
            said: tail(said),
        },
        Err(error) => Error::worker(error),
    }
}

async fn report(line: &str, clock: Clock, events: &mpsc::Sender<Event>) {
    let Some(said) = read(line) else { return };
    let at = clock.now();
    let (Said::Received(id) | Said::Succeeded(id) | Said::RowNotFound(id)) = said;
    let Some(order) = plan::order_of(id) else {
        return;
    };
    let event = match said {
        Said::Received(id) => Event::Dispatched {
            order,
            id: id.to_owned(),
            key: None,
            at,
        },
        Said::Succeeded(_) | Said::RowNotFound(_) => Event::Ran {
            order,
            found: matches!(said, Said::Succeeded(_)),
            at,
        },
    };
    // The act listens until this sender is gone.
    let _ = events.send(event).await;
}

/// Reads a line of the worker's log: `... Task <name>[<id>] received`, `succeeded in ...`, `raised unexpected: ...`.
fn read(line: &str) -> Option<Said<'_>> {
    let (_, task) = line.split_once("] Task ")?;
    let (_, task) = task.split_once('[')?;
    let (id, said) = task.split_once("] ")?;
    if said == "received" {
        Some(Said::Received(id))
    } else if said.starts_with("succeeded in ") {
        Some(Said::Succeeded(id))
    } else if said.starts_with("raised ") && said.contains(": DoesNotExist(") {
        Some(Said::RowNotFound(id))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workers_log_is_read() {
        let head = "[2026-11-22 02:24:00,123: INFO/ForkPoolWorker-1] Task orders.tasks.send_receipt[4a-5b] ";
        for (tail, expected) in [
            ("received", Some(Said::Received("4a-5b"))),
            ("succeeded in 0.0123s: None", Some(Said::Succeeded("4a-5b"))),
            (
                "raised unexpected: DoesNotExist('Order matching query does not exist.')",
                Some(Said::RowNotFound("4a-5b")),
            ),
            ("raised unexpected: OperationalError('away')", None),
            ("retry: Retry in 1s", None),
        ] {
            assert_eq!(read(&format!("{head}{tail}")), expected);
        }
        assert_eq!(read("Traceback (most recent call last):"), None);
        assert_eq!(
            read("[2026-11-22 02:24:00,123: INFO/MainProcess] mingle: all alone"),
            None
        );
    }
}
