//! One private Postgres in a temporary directory, on a free port, for the tests of the connection.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// Runs until it is dropped.
pub(crate) struct Postgres {
    directory: TempDir,
    pub(crate) port: u16,
}

impl Postgres {
    /// `hba` is the whole pg_hba.conf, `settings` the end of postgresql.conf; `files` are put beside them, readable
    /// by the server only.
    pub(crate) fn start(hba: &str, settings: &str, files: &[(&str, &str)]) -> Postgres {
        let directory = TempDir::new().expect("temporary directory");
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|socket| socket.local_addr())
            .expect("free port")
            .port();
        let postgres = Postgres { directory, port };
        let data = postgres.data();
        let path = postgres.path().display().to_string();
        if is_root() {
            run(Command::new("chown").args(["postgres", &path]));
        }
        run(server_command("initdb")
            .args(["-N", "-A", "trust", "-U", "postgres", "-D"])
            .arg(&data));
        postgres.write("pg_hba.conf", hba);
        for (name, text) in files {
            postgres.write(name, text);
        }
        postgres.write(
            "postgresql.auto.conf",
            &format!(
                "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{path}'\nfsync = off\n\
                 shared_buffers = 16MB\nlog_connections = on\n{settings}"
            ),
        );
        let log = postgres.path().join("log");
        run(server_command("pg_ctl")
            .args(["-w", "start", "-D"])
            .arg(&data)
            .arg("-l")
            .arg(log));
        postgres
    }

    /// The directory of the unix socket.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// Writes a file into the data directory.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.data().join(name);
        fs::write(&path, text).expect("write");
        run(Command::new("chmod").arg("600").arg(&path));
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(&path));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let mut stop = server_command("pg_ctl");
        let _ = stop
            .args(["-m", "immediate", "stop", "-D"])
            .arg(self.data())
            .output();
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

/// Postgres refuses to run as root.
fn server_command(name: &str) -> Command {
    let program = format!("{BIN}/{name}");
    let mut command = if is_root() {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--", &program]);
        command
    } else {
        Command::new(program)
    };
    command.current_dir("/");
    command
}

fn run(command: &mut Command) {
    // Not output(): the server would inherit the pipe and hold it open.
    let status = command
        .stdout(std::process::Stdio::null())
        .status()
        .expect("start a program");
    assert!(status.success(), "{command:?}: {status}");
}
