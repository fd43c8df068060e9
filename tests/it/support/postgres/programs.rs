//! Where the server programs of each version are, and the account that they run under.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{LazyLock, Mutex, OnceLock};

use tempfile::TempDir;

use super::super::process::scratch;

/// Where Debian keeps the server programs, in a folder per version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// The programs of one version, in a place where the server's account can run them.
#[derive(Clone)]
pub(crate) struct Programs {
    pub(super) version: u32,
    folder: PathBuf,
    psql: PathBuf,
}

impl Programs {
    /// The programs of a major version.
    pub(super) fn of(version: u32) -> Programs {
        static FOUND: LazyLock<Mutex<BTreeMap<u32, Programs>>> = LazyLock::new(Mutex::default);
        let mut found = FOUND
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let programs = found.entry(version).or_insert_with(|| {
            let folder = installed().remove(&version).unwrap_or_else(|| {
                panic!("Postgres {version} is not here: {}", how_to_get(version))
            });
            Programs {
                version,
                folder: reachable(version, folder),
                psql: psql(),
            }
        });
        programs.clone()
    }

    /// A server program, to run under the server's account with nothing of our environment.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.folder.join(program));
        as_server_account(&mut command);
        command
    }

    /// `psql`, as ourselves; any version speaks to any.
    pub(super) fn psql(&self) -> Command {
        let mut command = Command::new(&self.psql);
        command.env_clear().stdin(Stdio::null());
        command
    }

    /// `pg_basebackup` copies from servers of its own version and of older ones.
    pub(super) fn basebackup(&self) -> Command {
        let folder = installed()
            .into_iter()
            .find(|(version, folder)| {
                *version >= self.version && folder.join("pg_basebackup").exists()
            })
            .map(|(version, _)| Programs::of(version).folder)
            .unwrap_or_else(|| panic!("no pg_basebackup for Postgres {}", self.version));
        let mut command = Command::new(folder.join("pg_basebackup"));
        as_server_account(&mut command);
        command
    }
}

/// The major versions that can be started here, each with its folder of programs.
pub(super) fn installed() -> BTreeMap<u32, PathBuf> {
    let folders = [PathBuf::from(DEBIAN), target().join("postgres")];
    let mut versions = BTreeMap::new();
    for entry in folders
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .flatten()
    {
        let programs = entry.path().join("bin");
        let version = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let Some(version) = version
            && programs.join("initdb").exists()
        {
            versions.entry(version).or_insert(programs);
        }
    }
    versions
}

/// What to run when a version is missing.
pub(super) fn how_to_get(version: u32) -> String {
    match version {
        15 => "scripts/apt-install.sh postgresql".to_owned(),
        _ => "scripts/python-env.sh, then scripts/postgres-versions.sh".to_owned(),
    }
}

/// Hands a file or folder to the server's account.
pub(crate) fn give_to_server(path: &Path) {
    if let Some((user, group)) = server_account() {
        std::os::unix::fs::chown(path, Some(user), Some(group)).expect("root may give files away");
    }
}

/// Cargo's target folder.
pub(crate) fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("a folder in target")
}

fn as_server_account(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/bin:/bin")
        .current_dir("/");
    if let Some((user, group)) = server_account() {
        command.uid(user).gid(group);
    }
}

/// Postgres refuses to run as root: root starts it as user `postgres`, or as `nobody`; others as themselves (`None`).
fn server_account() -> Option<(u32, u32)> {
    static ACCOUNT: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *ACCOUNT.get_or_init(|| {
        if !rustix::process::getuid().is_root() {
            return None;
        }
        let users = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
        let account = |name: &str| {
            let line = users
                .lines()
                .find(|line| line.split(':').next() == Some(name))?;
            let mut fields = line
                .split(':')
                .skip(2)
                .map_while(|field| field.parse().ok());
            Some((fields.next()?, fields.next()?))
        };
        Some(
            account("postgres")
                .or_else(|| account("nobody"))
                .expect("an account other than root"),
        )
    })
}

/// A clone below /root, or in a folder of `mktemp -d`, is closed to the server's account: then a copy is used.
fn reachable(version: u32, folder: PathBuf) -> PathBuf {
    static COPIES: OnceLock<TempDir> = OnceLock::new();
    let mut probe = Command::new(folder.join("postgres"));
    as_server_account(&mut probe);
    if probe
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
    {
        return folder;
    }
    let copy = COPIES
        .get_or_init(|| scratch("programs"))
        .path()
        .join(version.to_string());
    let copied = Command::new("cp")
        .arg("-a")
        .arg(folder.parent().expect("a folder of a version")) // `bin` may be a link: not `..`
        .arg(&copy)
        .status();
    assert!(
        copied.is_ok_and(|status| status.success()),
        "cannot copy {}",
        folder.display()
    );
    copy.join("bin")
}

/// Debian's, which speaks TLS, before those of the version matrix.
fn psql() -> PathBuf {
    let debian = fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let folders = debian.map(|entry| entry.path().join("bin"));
    folders
        .chain(installed().into_values().rev())
        .map(|folder| folder.join("psql"))
        .find(|psql| psql.exists())
        .expect("psql: scripts/apt-install.sh postgresql")
}
