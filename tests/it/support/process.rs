//! Child processes that cannot outlive the tests.
//!
//! Each one leads a process group of its own and is stopped when its [`Process`] is dropped. For the cases that drop
//! nothing (a static, an abort, a kill -9 of the test process, Ctrl-C) a small shell waits at the other end of a pipe:
//! when the pipe closes, because this process is gone, it stops what is still there, unmounts, and removes the folders.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

use super::wait::{PATIENCE, eventually, within};

/// A child process, its output and how to stop it.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    stop: Signal,
    log: PathBuf,
}

impl Process {
    /// Starts the command in a process group of its own; what it writes to stderr goes to the end of `log`, and its
    /// stdout too unless the command says otherwise. `stop` ends it and its group at once.
    pub(crate) fn spawn(
        name: &'static str,
        command: &mut Command,
        stop: Signal,
        log: &Path,
    ) -> Process {
        let output = File::options().create(true).append(true).open(log);
        let output = output.unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        Process::spawn_to(name, command, stop, log, output.into())
    }

    /// As [`spawn`](Process::spawn); what it writes to stderr goes elsewhere, and `log` is for others to write to.
    pub(crate) fn spawn_to(
        name: &'static str,
        command: &mut Command,
        stop: Signal,
        log: &Path,
        stderr: Stdio,
    ) -> Process {
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name} with {command:?}: {error}"));
        watch_process(child.id(), stop);
        Process {
            name,
            child,
            stop,
            log: log.to_owned(),
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Whether it has not ended yet.
    pub(crate) fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it a signal. One that is gone already does not mind.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill_process(self.pid(), signal);
    }

    /// Whether it has a handler for a signal: `SigCgt` of `/proc/<pid>/status`, proc(5).
    pub(crate) fn catches(&self, signal: Signal) -> bool {
        let pid = self.pid().as_raw_nonzero();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let mut lines = status.lines();
        let caught = lines.find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        caught.is_some_and(|mask| mask >> (signal.as_raw() - 1) & 1 == 1)
    }

    /// Sends a signal to it and to its children, whichever groups they are in.
    pub(crate) fn signal_family(&self, signal: Signal) {
        let pid = self.pid().as_raw_nonzero();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        self.signal(signal);
        for child in children.unwrap_or_default().split_whitespace() {
            if let Some(child) = child.parse().ok().and_then(Pid::from_raw) {
                let _ = kill_process(child, signal);
            }
        }
    }

    /// kill -9 of it and its children, and waits until it is gone.
    pub(crate) fn kill9(&mut self) {
        self.signal_family(Signal::KILL);
        let _ = self.child.wait();
    }

    /// Waits, blocking, until it has ended by itself; panics when it has not after `timeout`.
    pub(crate) fn wait(&mut self, timeout: Duration) -> ExitStatus {
        let ended = within(timeout, || self.child.try_wait().ok().flatten());
        ended.unwrap_or_else(|| panic!("{} has not ended within {timeout:?}", self.name))
    }

    /// As [`wait`](Process::wait), for async code.
    pub(crate) async fn ended(&mut self, timeout: Duration) -> ExitStatus {
        let name = format!("the end of {}", self.name);
        let child = &mut self.child;
        eventually(timeout, &name, || {
            let status = child.try_wait().ok().flatten();
            async move { status }
        })
        .await
    }

    /// All that it has written to its log so far.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until a line of its log holds `text`; panics with the log when it ends, or takes too long.
    pub(crate) fn wait_for_output(&mut self, text: &str) {
        let found = within(PATIENCE, || {
            if self.output().contains(text) {
                return Some(true);
            }
            (!self.running()).then_some(false)
        });
        if found != Some(true) {
            panic!("{} has not said {text:?}:\n{}", self.name, self.tail());
        }
    }

    /// The end of its log.
    pub(crate) fn tail(&self) -> String {
        const TAIL: u64 = 8 * 1024;
        let mut bytes = Vec::new();
        let _ = File::open(&self.log).and_then(|mut file| {
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
            file.read_to_end(&mut bytes)
        });
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} wrote:\n{}\n---", self.name, self.tail());
        }
        if !self.running() {
            return;
        }
        // A stopped process handles nothing but SIGKILL until it is continued.
        let _ = kill_process_group(self.pid(), self.stop);
        self.signal_family(Signal::CONT);
        if within(Duration::from_secs(10), || {
            self.child.try_wait().ok().flatten()
        })
        .is_none()
        {
            let _ = kill_process_group(self.pid(), Signal::KILL);
            self.kill9();
        }
    }
}

/// A temporary folder that other users may enter, removed when dropped or when this process is gone.
pub(crate) fn scratch(name: &str) -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::Builder::new()
        .prefix(&format!("aftercommit-{name}-"))
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir()
        .expect("a temporary folder");
    tell_watcher(&format!("directory {}", directory.path().display()));
    directory
}

/// The lines of a file that somebody writes to: one whose end is not written yet comes the next time.
pub(crate) fn whole_lines(text: &str) -> impl Iterator<Item = &str> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines()
}

/// A program in a file, that may be run at once: no other thread's child can still have it open for writing.
pub(crate) fn write_program(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    let written = Command::new("sh")
        .args(["-c", "cat >\"$0\"", &path.display().to_string()])
        .stdin(Stdio::piped())
        .spawn()
        .and_then(|mut shell| {
            shell
                .stdin
                .take()
                .map(|mut pipe| pipe.write_all(text.as_bytes()))
                .transpose()?;
            shell.wait()
        });
    assert!(
        written.is_ok_and(|status| status.success()),
        "{} is written",
        path.display()
    );
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it may be run");
}

/// A file system is going to be mounted on this folder.
pub(super) fn watch_mount(folder: &Path) {
    tell_watcher(&format!("mount {}", folder.display()));
}

fn watch_process(pid: u32, stop: Signal) {
    // Ids are used again, ids with their start time are not: field 22 of proc(5), the 20th after the name.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let start = stat
        .rsplit_once(") ")
        .and_then(|(_, fields)| fields.split(' ').nth(19));
    if let Some(start) = start {
        tell_watcher(&format!("process {pid} {start} {}", stop.as_raw()));
    }
}

fn tell_watcher(line: &str) {
    static WATCHER: LazyLock<Mutex<Child>> = LazyLock::new(|| {
        let watcher = Command::new("sh")
            .args(["-c", WATCHER_SCRIPT, "aftercommit-test-watcher"])
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        Mutex::new(watcher)
    });
    let mut watcher = WATCHER
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let pipe = watcher.stdin.as_mut().expect("a piped stdin");
    writeln!(pipe, "{line}").expect("the watcher lives as long as we do");
}

/// Reads what there is to clean up, until the pipe closes; then cleans up.
const WATCHER_SCRIPT: &str = r#"
processes= directories= mounts=
while read -r kind rest; do
    case $kind in
    process) processes="$processes
$rest" ;;
    directory) directories="$directories
$rest" ;;
    mount) mounts="$mounts
$rest" ;;
    esac
done

# Prints the pid and the signal of each process that is still there, and still the same.
alive() {
    printf '%s\n' "$processes" | while read -r pid start signal; do
        [ -n "$pid" ] && read -r stat <"/proc/$pid/stat" || continue
        set -- ${stat##*) }
        [ "${20}" = "$start" ] && [ "$1" != Z ] && echo "$pid $signal"
    done
}

alive | while read -r pid signal; do
    kill -"$signal" -"$pid"
    kill -CONT -"$pid"
done
tries=0
while [ -n "$(alive)" ] && [ $tries -lt 100 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
alive | while read -r pid signal; do kill -KILL -"$pid"; done
printf '%s\n' "$mounts" | while read -r mount; do
    [ -n "$mount" ] && umount -l "$mount"
done
printf '%s\n' "$directories" | while read -r directory; do
    [ -n "$directory" ] && rm -rf "$directory"
done
"#;
