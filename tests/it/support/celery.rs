//! Django and real Celery workers, in a virtual environment of pinned versions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::process::Signal;
use tempfile::TempDir;

use super::postgres::programs::target;
use super::process::{Process, scratch};

/// A Django project with a Celery app, and the servers that it uses.
#[derive(Clone)]
pub(crate) struct Project {
    /// Where Python finds its modules; the first one is the current folder.
    pub(crate) path: Vec<PathBuf>,
    /// `DJANGO_SETTINGS_MODULE`.
    pub(crate) settings: &'static str,
    /// The module of the Celery app.
    pub(crate) app: &'static str,
    /// `DATABASE_URL`.
    pub(crate) database_url: String,
    /// `CELERY_BROKER_URL`.
    pub(crate) broker_url: String,
}

impl Project {
    /// A Python command in the project: `python <arguments>`.
    pub(crate) fn python(&self, arguments: &[&str]) -> Command {
        let path = std::env::join_paths(&self.path).expect("paths without a colon");
        let mut command = Command::new(environment().join("bin/python"));
        command
            .args(arguments)
            .current_dir(&self.path[0])
            .stdin(Stdio::null())
            .env("PYTHONPATH", path)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONUNBUFFERED", "1")
            .env("DJANGO_SETTINGS_MODULE", self.settings)
            .env("DATABASE_URL", &self.database_url)
            .env("CELERY_BROKER_URL", &self.broker_url);
        command
    }

    /// Runs a Python command to its end and returns its stdout; panics with its messages when it fails.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = self.python(arguments).output().expect("python");
        assert!(
            output.status.success(),
            "python {arguments:?}: {}\n{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// A Celery worker as everyone runs it, stopped with its pool when dropped.
pub(crate) struct Worker {
    process: Process,
    _directory: TempDir,
}

impl Worker {
    /// `celery -A <app> worker` with a pool of `concurrency` processes, for queues separated by commas; blocks until it
    /// is ready.
    pub(crate) fn start(project: &Project, concurrency: u32, queues: &str) -> Worker {
        let directory = scratch("worker");
        let log = directory.path().join("log");
        let output = fs::File::create(&log).expect("a log file");
        let concurrency = concurrency.to_string();
        let mut command = project.python(&["-m", "celery", "-A", project.app, "worker"]);
        command
            .args([
                "--concurrency",
                &concurrency,
                "--loglevel",
                "info",
                "--queues",
                queues,
            ])
            .args(["--without-gossip", "--without-mingle"])
            .stdout(output);
        let mut process = Process::spawn("celery", &mut command, Signal::KILL, &log);
        process.wait_for_output(" ready.");
        Worker {
            process,
            _directory: directory,
        }
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        self.process.output()
    }

    /// The end of its log.
    pub(crate) fn tail(&self) -> String {
        self.process.tail()
    }

    /// SIGSTOP to the worker and its pool.
    pub(crate) fn stop(&self) {
        self.process.signal_family(Signal::STOP);
    }

    /// SIGCONT, after [`stop`](Worker::stop).
    pub(crate) fn cont(&self) {
        self.process.signal_family(Signal::CONT);
    }
}

/// The virtual environment; made by its script when it is missing or older than its requirements.
pub(crate) fn environment() -> &'static Path {
    static ENVIRONMENT: OnceLock<PathBuf> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let directory = target().join("python");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/python-env.sh");
        let status = Command::new(script)
            .arg(&directory)
            .stdin(Stdio::null())
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "scripts/python-env.sh failed"
        );
        directory
    })
}
