//! Disks that are soon full: a file system in memory, of a size that can be changed while it is in use.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::postgres::programs::give_to_server;
use super::process::{scratch, watch_mount};

/// A mounted file system, gone when dropped.
pub(crate) struct Disk {
    directory: TempDir,
}

impl Disk {
    /// One of so many MiB; or why there can be none.
    pub(crate) fn mount(mebibytes: u32) -> Result<Disk, String> {
        let disk = Disk {
            directory: scratch("disk"),
        };
        watch_mount(disk.path());
        mount(
            &["tmpfs", "-t", "tmpfs", "-o", &size(mebibytes)],
            disk.path(),
        )?;
        give_to_server(disk.path());
        Ok(disk)
    }

    /// Its folder, which is the Postgres server's.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Something else takes all that is left of it.
    pub(crate) fn fill(&self) {
        let mut file = File::create(self.path().join("something else")).expect("a file");
        let error = std::io::copy(&mut std::io::repeat(0), &mut file).expect_err("no end of it");
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    }

    /// It has so many MiB from now on.
    pub(crate) fn resize(&self, mebibytes: u32) {
        let options = format!("remount,{}", size(mebibytes));
        mount(&["-o", &options], self.path()).expect("it was mounted before");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A server may still have files of it open.
        let mut umount = Command::new("umount");
        let umount = umount.arg("-l").arg(self.path()).stderr(Stdio::null());
        let _ = umount.status();
    }
}

fn size(mebibytes: u32) -> String {
    format!("size={mebibytes}m")
}

fn mount(arguments: &[&str], path: &Path) -> Result<(), String> {
    let mut mount = Command::new("mount");
    let output = mount.args(arguments).arg(path).output();
    let output = output.map_err(|error| format!("no mount: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}
