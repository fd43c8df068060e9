//! What daemons write to stdout, each to a file.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use tempfile::TempDir;

use super::{Found, Place};
use crate::support::exam::Exam;
use crate::support::process::scratch;

/// The files, in the order of the lives.
pub(super) struct Files {
    folder: TempDir,
    outputs: Vec<Output>,
}

struct Output {
    path: PathBuf,
    /// Bytes of whole lines.
    read: usize,
}

impl Files {
    pub(super) fn new() -> Files {
        Files {
            folder: scratch("stdout"),
            outputs: Vec::new(),
        }
    }
}

impl Output {
    /// Reads the whole lines that are new; half a line is nobody's task.
    fn read_on(&mut self, found: &mut Found) {
        let mut text = String::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.read as u64))?;
            file.read_to_string(&mut text)
        });
        let whole = text.rfind('\n').filter(|_| read.is_ok());
        let Some(whole) = whole else { return };
        self.read += whole + 1;
        text[..whole]
            .lines()
            .for_each(|line| found.add_object(line.as_bytes()));
    }
}

const NO_BROKER: &str = "there is no broker";

impl Place for Files {
    fn port(&self, _: &Exam) -> u16 {
        panic!("{NO_BROKER}")
    }

    fn sink(&self, _: &Exam, _: u16) -> String {
        "[sink.stdout.workers]\n".to_owned()
    }

    fn read(&mut self, _: &Exam, found: &mut Found) {
        for output in &mut self.outputs {
            output.read_on(found);
        }
    }

    fn rewind(&mut self) {
        for output in &mut self.outputs {
            output.read = 0;
        }
    }

    fn stop(&mut self, _: &Exam) {
        panic!("{NO_BROKER}")
    }

    fn cont(&mut self, _: &Exam) {
        panic!("{NO_BROKER}")
    }

    fn kill9(&mut self, _: &mut Exam) {
        panic!("{NO_BROKER}")
    }

    fn restart(&mut self, _: &mut Exam) {
        panic!("{NO_BROKER}")
    }

    fn stdout(&mut self) -> Option<File> {
        let path = self
            .folder
            .path()
            .join(format!("life-{}", self.outputs.len()));
        let file = File::create(&path).expect("a file for stdout");
        self.outputs.push(Output { path, read: 0 });
        Some(file)
    }
}
