//! Processes of the daemon's own, which write down what they get. There is no broker: what is stopped and killed is them.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{Found, Place};
use crate::support::exam::{CANARY_SECRET, Exam};
use crate::support::process::{scratch, write_program};

/// How many there are.
pub(super) const WORKERS: usize = 2;

const WORKER: &str = r#"#!/usr/bin/env python3
import os, sys
folder = os.path.dirname(__file__)
open(folder + "/pid-%d" % os.getpid(), "w").close()
done = os.open(folder + "/done", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
for line in sys.stdin.buffer:
    os.write(done, line)
    os.write(1, b"ok\n")
os.unlink(folder + "/pid-%d" % os.getpid())
"#;

/// A folder with the program, and with what its processes have written.
pub(super) struct Workers {
    folder: TempDir,
    /// Bytes of whole lines.
    read: u64,
}

impl Workers {
    pub(super) fn start() -> Workers {
        let folder = scratch("workers");
        write_program(&folder.path().join("worker"), WORKER);
        Workers { folder, read: 0 }
    }

    fn program(&self) -> PathBuf {
        self.folder.path().join("worker")
    }

    /// To those that run, and to nobody who has got one of their numbers since.
    fn signal(&self, signal: Signal) {
        let program = self.program().display().to_string();
        let files = fs::read_dir(self.folder.path()).expect("the folder");
        for file in files.flatten() {
            let name = file.file_name();
            let name = name.to_string_lossy();
            let Some(pid) = name.strip_prefix("pid-") else {
                continue;
            };
            let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let pid = pid.parse().ok().and_then(Pid::from_raw);
            match pid.filter(|_| arguments.contains(&program)) {
                Some(pid) => drop(kill_process(pid, signal)),
                None => drop(fs::remove_file(file.path())),
            }
        }
    }
}

impl Place for Workers {
    fn port(&self, _: &Exam) -> u16 {
        panic!("no port leads there")
    }

    fn sink(&self, _: &Exam, _: u16) -> String {
        format!(
            "[sink.exec.workers]\ncommand = [\"{}\"]\nworkers = {WORKERS}\ntimeout = \"10s\"\n\
             environment = [\"TOKEN={CANARY_SECRET}\"]\n",
            self.program().display()
        )
    }

    fn read(&mut self, _: &Exam, found: &mut Found) {
        let mut text = String::new();
        let read = fs::File::open(self.folder.path().join("done")).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.read))?;
            file.read_to_string(&mut text)
        });
        let whole = text.rfind('\n').filter(|_| read.is_ok());
        let Some(whole) = whole else { return };
        self.read += whole as u64 + 1;
        text[..whole]
            .lines()
            .for_each(|line| found.add_object(line.as_bytes()));
    }

    fn rewind(&mut self) {
        self.read = 0;
    }

    fn stop(&mut self, _: &Exam) {
        self.signal(Signal::STOP);
    }

    fn cont(&mut self, _: &Exam) {
        self.signal(Signal::CONT);
    }

    fn kill9(&mut self, _: &mut Exam) {
        self.signal(Signal::KILL);
    }

    /// The daemon starts them anew.
    fn restart(&mut self, _: &mut Exam) {}
}
