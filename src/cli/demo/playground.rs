//! A temporary folder and every process that is started in it, and the certainty that both go away.
//!
//! A shell, the sweeper, waits for the end of its standard input, which is a pipe that only the demo holds. However
//! the demo ends, by itself, by a signal, by a panic that aborts, by kill -9, the pipe closes, and the sweeper stops
//! the processes and removes the folder. All processes are members of the sweeper's process group: so no process id
//! is kept that might by then belong to somebody else, and Ctrl-C at the terminal reaches the demo alone.

use std::fs::{DirBuilder, Permissions, set_permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::Error;

/// The longest path of a unix socket that every system takes, less the socket's own name (`/.s.PGSQL.5432`).
const LONGEST: usize = 90;

/// SIGQUIT is Postgres's immediate shutdown, and ends everything else at once. The postmaster removes its pid file
/// when its last child is gone; what is left after that, the sweeper among it, is killed.
const SWEEPER: &str = r#"
trap '' HUP INT QUIT TERM PIPE
while read -r _; do :; done
kill -QUIT 0
turns=0
while [ -e "$1/data/postmaster.pid" ] && [ "$turns" -lt 100 ]; do sleep 0.1; turns=$((turns + 1)); done
turns=0
while [ "$2" = remove ] && ! rm -rf "$1" && [ "$turns" -lt 20 ]; do sleep 0.1; turns=$((turns + 1)); done
kill -KILL 0
"#;

/// A user that servers run as.
#[derive(Clone, Copy, Debug)]
pub(super) struct User {
    uid: u32,
    gid: u32,
}

/// The folder and its sweeper.
pub(super) struct Playground {
    folder: PathBuf,
    sweeper: Child,
    /// Whom the servers run as, where we are root: Postgres refuses to run as root.
    user: Option<User>,
}

impl Playground {
    /// Makes a new folder, and starts its sweeper. With `keep` the folder stays when the processes are gone.
    pub(super) fn new(keep: bool) -> Result<Playground, Error> {
        let user = match id(&["-u"])? {
            0 => Some(unprivileged()?),
            _ => None,
        };
        let folder = base(user.is_some()).join(format!(
            "aftercommit-demo-{}-{:08x}",
            std::process::id(),
            fastrand::u32(..)
        ));
        let failed = |what: &'static str| {
            let place = folder.clone();
            move |source: io::Error| Error::Folder {
                what,
                place,
                source,
            }
        };
        DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .map_err(failed("make"))?;
        let sweeper = Command::new("/bin/sh")
            .args(["-c", SWEEPER, "aftercommit-demo-sweeper"])
            .arg(&folder)
            .arg(if keep { "keep" } else { "remove" })
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .process_group(0)
            .spawn()
            .inspect_err(|_| drop(std::fs::remove_dir(&folder)))
            .map_err(failed("watch over"))?;
        if let Some(User { uid, gid }) = user {
            chown(&folder, Some(uid), Some(gid)).map_err(failed("hand over"))?;
        }
        Ok(Playground {
            folder,
            sweeper,
            user,
        })
    }

    /// The folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A command that runs in the folder, goes away with it, and sees nothing of our terminal. Settings of libpq
    /// that were made for another server are taken away.
    pub(super) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("PG")) {
                command.env_remove(name);
            }
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir(&self.folder)
            .process_group(self.sweeper.id().cast_signed());
        command
    }

    /// The same for a server: never as root.
    pub(super) fn server(&self, program: impl AsRef<Path>) -> Command {
        let mut command = self.command(program);
        if let Some(User { uid, gid }) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Writes a file into the folder, for our eyes and the servers'.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<PathBuf, Error> {
        let place = self.folder.join(name);
        std::fs::write(&place, text)
            .and_then(|()| set_permissions(&place, Permissions::from_mode(0o644)))
            .map_err(|source| Error::Folder {
                what: "write into",
                place: place.clone(),
                source,
            })?;
        Ok(place)
    }

    /// Stops every process and removes the folder; returns when that is done. The runtime goes on meanwhile, and
    /// reaps the processes.
    pub(super) async fn sweep(self) -> Result<(), Error> {
        let Playground {
            folder,
            mut sweeper,
            ..
        } = self;
        drop(sweeper.stdin.take());
        tokio::task::spawn_blocking(move || sweeper.wait())
            .await
            .map_err(Error::Task)?
            .map(drop)
            .map_err(|source| Error::Folder {
                what: "sweep",
                place: folder,
                source,
            })
    }
}

/// Runs a command of [`Playground::command`] to its end.
///
/// # Errors
/// What it said last, if it fails.
pub(super) async fn run(program: &'static str, mut command: Command) -> Result<(), Error> {
    command.stderr(Stdio::piped());
    let ended = tokio::process::Command::from(command)
        .output()
        .await
        .map_err(|source| Error::start(program, source))?;
    match ended.status.success() {
        true => Ok(()),
        false => Err(Error::Program {
            program,
            status: ended.status,
            said: tail(&String::from_utf8_lossy(&ended.stderr)),
        }),
    }
}

/// The last lines of what a program said.
pub(super) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    match lines.get(lines.len().saturating_sub(6)..) {
        Some(last @ [_, ..]) => format!(", and said:\n{}", last.join("\n")),
        _ => String::new(),
    }
}

/// The first of a few places where a server's user can reach its socket, and the socket's path is short enough.
fn base(other_user: bool) -> PathBuf {
    let wanted = std::env::temp_dir();
    let plain = |path: &Path| {
        path.to_str().is_some_and(|text| {
            text.starts_with('/')
                && text.len() < LONGEST - "/aftercommit-demo-4194304-ffffffff".len()
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte))
        })
    };
    let open = |path: &Path| {
        !other_user
            || path.ancestors().all(|part| {
                std::fs::metadata(part).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0)
            })
    };
    match plain(&wanted) && open(&wanted) {
        true => wanted,
        false => PathBuf::from("/tmp"),
    }
}

fn unprivileged() -> Result<User, Error> {
    for name in ["postgres", "nobody"] {
        if let (Ok(uid), Ok(gid)) = (id(&["-u", name]), id(&["-g", name])) {
            return Ok(User { uid, gid });
        }
    }
    Err(Error::NoUser)
}

/// Asks `id`, which knows every directory that users come from.
fn id(arguments: &[&str]) -> Result<u32, Error> {
    let output = Command::new("id")
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    output
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .and_then(|text| text.trim().parse().ok())
        .ok_or(Error::NoUser)
}
