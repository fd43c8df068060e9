//! A wall clock that jumps, for one process: libfaketime, preloaded, shows it the machine's time with an offset. Its
//! monotonic clock goes on as ever, as it does when somebody sets the clock of a machine.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::process::scratch;

/// The wall clock of the processes that have its environment.
pub(crate) struct WallClock {
    library: PathBuf,
    /// The file that tells the library.
    offset: PathBuf,
    directory: TempDir,
}

impl WallClock {
    /// One that shows the machine's time; or why there can be none.
    pub(crate) fn new() -> Result<WallClock, String> {
        let library = library().ok_or("no libfaketime: scripts/apt-install.sh libfaketime")?;
        let directory = scratch("clock");
        let clock = WallClock {
            library,
            offset: directory.path().join("offset"),
            directory,
        };
        clock.set(0);
        Ok(clock)
    }

    /// For a process that is to have it.
    pub(crate) fn environment(&self) -> [(&str, &str); 4] {
        [
            ("LD_PRELOAD", text(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE", text(&self.offset)),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
    }

    /// From now on it is so many seconds ahead of the machine's, or behind.
    pub(crate) fn set(&self, ahead: i64) {
        // Whoever reads it at this moment must not find half of it.
        let new = self.directory.path().join("new");
        fs::write(&new, format!("{ahead:+}")).expect("a file");
        fs::rename(new, &self.offset).expect("a file");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in ASCII")
}

/// The library for programs of several threads, where distributions keep it.
fn library() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?.flatten();
    let folders = folders.map(|entry| entry.path());
    [
        PathBuf::from("/usr/lib"),
        PathBuf::from("/usr/lib64"),
        PathBuf::from("/usr/local/lib"),
    ]
    .into_iter()
    .chain(folders)
    .map(|folder| folder.join("faketime/libfaketimeMT.so.1"))
    .find(|library| library.exists())
}
