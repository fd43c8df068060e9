//! Workers of other task queues than Celery: the real ones, each with a small application in `tests/workers` that writes down what
//! it is given.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::celery::environment;
use super::postgres::programs::target;
use super::process::{Process, scratch, whole_lines};
use super::wait::{PATIENCE, until};

/// Where the applications are.
pub(crate) fn applications() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/workers")
}

/// A worker, stopped with all its processes when dropped.
pub(crate) struct QueueWorker {
    process: Process,
    directory: TempDir,
}

impl QueueWorker {
    /// A Dramatiq worker with one process of so many threads.
    pub(crate) fn dramatiq(
        broker_url: &str,
        threads: usize,
        variables: &[(&str, &str)],
    ) -> QueueWorker {
        let mut command = Command::new(environment().join("bin/python"));
        command
            .args([
                "-m",
                "dramatiq",
                "dramatiq_app",
                "--processes",
                "1",
                "--threads",
            ])
            .arg(threads.to_string())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("BROKER_URL", broker_url)
            .envs(variables.iter().copied());
        QueueWorker::start("dramatiq", command, "ready for action")
    }

    /// A Sidekiq process with so many threads; `None`, and says why, where there is no Sidekiq.
    pub(crate) fn sidekiq(
        broker_url: &str,
        threads: usize,
        queues: &[&str],
    ) -> Option<QueueWorker> {
        // Another version than Debian's: AFTERCOMMIT_TEST_SIDEKIQ="ruby -I .../lib .../bin/sidekiq".
        let words = std::env::var("AFTERCOMMIT_TEST_SIDEKIQ");
        let words = words.unwrap_or_else(|_| "sidekiq".to_owned());
        let mut words = words.split_whitespace();
        let program = words.next().expect("a program");
        let words: Vec<&str> = words.collect();
        let version = Command::new(program).args(&words).arg("--version").output();
        if !version.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIP: there is no Sidekiq here (scripts/apt-install.sh ruby-sidekiq)");
            return None;
        }
        let mut command = Command::new(program);
        command
            .args(words)
            .args(["-r", "./sidekiq_app.rb", "-t", "1", "-c"])
            .arg(threads.to_string())
            .args(queues.iter().flat_map(|queue| ["-q", queue]))
            .env("BROKER_URL", broker_url);
        Some(QueueWorker::start("sidekiq", command, "See LICENSE"))
    }

    /// A BullMQ worker, of the version that the package has, with so many jobs at a time; `None`, and says why, where there is none.
    pub(crate) fn bullmq(
        package: &str,
        broker_url: &str,
        jobs: usize,
        queues: &[&str],
    ) -> Option<QueueWorker> {
        let modules = target().join("node/node_modules");
        if !modules.join(package).is_dir() {
            eprintln!("SKIP: there is no BullMQ here (scripts/node-env.sh)");
            return None;
        }
        let mut command = Command::new("node");
        command
            .args(["bullmq_app.js", package, &jobs.to_string()])
            .args(queues)
            .env("NODE_PATH", modules)
            .env("BROKER_URL", broker_url);
        Some(QueueWorker::start("bullmq", command, "ready"))
    }

    fn start(name: &'static str, mut command: Command, ready: &str) -> QueueWorker {
        let directory = scratch("worker");
        let log = directory.path().join("log");
        let output = fs::File::create(&log).expect("a log file");
        command
            .current_dir(applications())
            .env("RECORD", directory.path().join("record"))
            .stdout(output);
        let mut process = Process::spawn(name, &mut command, Signal::KILL, &log);
        process.wait_for_output(ready);
        QueueWorker { process, directory }
    }

    /// What its jobs were given so far, in order.
    pub(crate) fn record(&self) -> Vec<Value> {
        let text = self.record_text();
        let line = |line: &str| serde_json::from_str(line).expect("a line of JSON");
        whole_lines(&text).map(line).collect()
    }

    /// The same, as text.
    pub(crate) fn record_text(&self) -> String {
        fs::read_to_string(self.directory.path().join("record")).unwrap_or_default()
    }

    /// Waits until so many jobs have begun.
    pub(crate) fn wait_for(&self, jobs: usize) -> Vec<Value> {
        let found = super::wait::within(PATIENCE, || {
            let record = self.record();
            (record.len() >= jobs).then_some(record)
        });
        found.unwrap_or_else(|| {
            panic!(
                "{} of {jobs} jobs:\n{}",
                self.record().len(),
                self.process.tail()
            )
        })
    }

    /// Waits until it has said something.
    pub(crate) fn wait_for_log(&self, text: &str) {
        until(PATIENCE, text, || {
            self.process.output().contains(text).then_some(())
        });
    }

    /// What it has said.
    pub(crate) fn log(&self) -> String {
        self.process.output()
    }
}
