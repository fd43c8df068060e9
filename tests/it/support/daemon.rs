//! The daemon as a real child process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal, prlimit};
use serde_json::Value;
use tempfile::TempDir;

use super::process::{Process, scratch, whole_lines};
use super::wait::{PATIENCE, eventually};

/// The program under test: this build's, or another one named by `AFTERCOMMIT_TEST_PROGRAM` (a release build, say).
pub(crate) fn program() -> Command {
    let program = std::env::var_os("AFTERCOMMIT_TEST_PROGRAM")
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_aftercommit").into());
    let mut command = Command::new(program);
    command
        .stdin(Stdio::null())
        .env_remove("AFTERCOMMIT_CONFIG")
        .env_remove("DATABASE_URL");
    command
}

/// Runs a command of the program to its end, with a configuration file: `aftercommit <arguments> -c <file>`.
pub(crate) fn aftercommit(arguments: &[&str], config: &str) -> Output {
    let directory = scratch("config");
    let file = directory.path().join("aftercommit.toml");
    fs::write(&file, config).expect("a configuration file");
    let mut command = program();
    command.args(arguments).arg("-c").arg(&file);
    command.output().expect("the program")
}

/// `aftercommit init`: schema, publication and slot.
pub(crate) fn init(config: &str) {
    let output = aftercommit(&["init"], config);
    assert!(
        output.status.success(),
        "init: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A running daemon, killed when dropped; its log is shown when the test fails.
pub(crate) struct Daemon {
    process: Process,
    directory: TempDir,
}

impl Daemon {
    /// `aftercommit run` with this configuration.
    pub(crate) fn start(config: &str) -> Daemon {
        Daemon::start_with(config, |_| ())
    }

    /// As [`start`](Daemon::start), with more arguments or environment.
    pub(crate) fn start_with(config: &str, adjust: impl FnOnce(&mut Command)) -> Daemon {
        Daemon::launch(config, adjust, |command, log| {
            Process::spawn("aftercommit", command, Signal::KILL, log)
        })
    }

    /// As [`start_with`](Daemon::start_with); its log goes elsewhere, and cannot be asked for here.
    pub(crate) fn start_logging_to(
        stderr: Stdio,
        config: &str,
        adjust: impl FnOnce(&mut Command),
    ) -> Daemon {
        Daemon::launch(config, adjust, |command, log| {
            Process::spawn_to("aftercommit", command, Signal::KILL, log, stderr)
        })
    }

    fn launch(
        config: &str,
        adjust: impl FnOnce(&mut Command),
        spawn: impl FnOnce(&mut Command, &Path) -> Process,
    ) -> Daemon {
        let directory = scratch("daemon");
        let file = directory.path().join("aftercommit.toml");
        fs::write(&file, config).expect("a configuration file");
        let stdout = File::create(directory.path().join("stdout")).expect("a file for stdout");
        let mut command = program();
        command.args(["run", "-c"]).arg(&file).stdout(stdout);
        adjust(&mut command);
        let log = directory.path().join("log");
        let process = spawn(&mut command, &log);
        Daemon { process, directory }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.process.pid().as_raw_nonzero().get()
    }

    /// The configuration file: write to it, then [`signal`](Daemon::signal) HUP.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.directory.path().join("aftercommit.toml")
    }

    /// Whether it has not ended.
    pub(crate) fn running(&mut self) -> bool {
        self.process.running()
    }

    /// kill -9, and waits until it is gone.
    pub(crate) fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// SIGTERM as soon as it would hear that (before, it would be killed by it), and waits for its end.
    pub(crate) async fn terminate(&mut self) -> ExitStatus {
        eventually(PATIENCE, "a daemon that hears SIGTERM", || {
            let hears = self.process.catches(Signal::TERM) || !self.process.running();
            async move { hears.then_some(()) }
        })
        .await;
        self.signal(Signal::TERM);
        self.ended(PATIENCE).await
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(&mut self, timeout: Duration) -> ExitStatus {
        self.process.ended(timeout).await
    }

    /// Its whole log as text.
    pub(crate) fn log(&self) -> String {
        self.process.output()
    }

    /// The end of its log.
    pub(crate) fn tail(&self) -> String {
        self.process.tail()
    }

    /// Its log, record by record; a line that is no JSON (a panic, say) comes as a string.
    pub(crate) fn records(&self) -> Vec<Value> {
        let log = self.log();
        whole_lines(&log)
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| Value::from(line)))
            .collect()
    }

    /// Waits for a record in the log; panics when it does not come, or when the daemon has ended without it.
    pub(crate) async fn wait_for_log(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(&Value) -> bool,
    ) -> Value {
        eventually(PATIENCE, what, || {
            let running = self.running(); // before the log is read: its last words count
            let record = self.records().into_iter().find(|record| wanted(record));
            assert!(
                running || record.is_some(),
                "the daemon ended before {what}"
            );
            async { record }
        })
        .await
    }

    /// What it has written to stdout, line by line.
    pub(crate) fn stdout(&self) -> Vec<String> {
        let text = fs::read_to_string(self.directory.path().join("stdout")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// How many file descriptors it has.
    pub(crate) fn descriptors(&self) -> usize {
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid()));
        open.expect("proc(5)").count()
    }

    /// It may have so many file descriptors from now on.
    pub(crate) fn limit_descriptors(&self, most: u64) {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        prlimit(Some(self.process.pid()), Resource::Nofile, limit).expect("prlimit(2)");
    }

    /// Its peak resident memory so far, in bytes; it must be running.
    pub(crate) fn peak_rss(&self) -> u64 {
        let peak = Daemon::peak_rss_of(self.pid());
        assert!(peak > 0, "VmHWM of a running process");
        peak
    }

    /// The peak resident memory of a process, in bytes; 0 when it is gone.
    pub(crate) fn peak_rss_of(pid: i32) -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.trim().parse().ok());
        kibibytes.map_or(0, |kibibytes: u64| kibibytes * 1024)
    }
}
