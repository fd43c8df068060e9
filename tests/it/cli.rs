//! The command line, as a user meets it: what is printed, and the exit code.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::redis::Redis;

const USABLE: &str = r#"
[postgres]
url_file = "secrets/url"
[sink.celery.workers]
broker_url = "redis://:hunter2@localhost:6379/0"
[outbox]
retention = "keep"
[[route]]
task = "audit.*"
sink = "workers"
[[route]]
task = "*"
sink = "workers"
"#;

/// A folder with a usable configuration in `app.toml`.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("secrets")).expect("a folder");
    let url = "postgres://app:hunter2@db/app\r\n\n";
    fs::write(folder.path().join("secrets/url"), url).expect("written");
    fs::write(folder.path().join("app.toml"), USABLE).expect("written");
    folder
}

fn aftercommit(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aftercommit"));
    command
        .args(args)
        .current_dir(folder)
        .env_remove("AFTERCOMMIT_CONFIG")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

fn run(folder: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    told(aftercommit(folder, args).output().expect("it runs"))
}

fn told(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn check_tells_what_a_configuration_says() {
    let folder = folder();
    let expected = "\
ok: app.toml
  postgres  slot aftercommit, publication aftercommit
  outbox    aftercommit.outbox, settled rows stay
  gate      until visible; warns after 30s
  sink      workers (celery)
  route     audit.* -> workers
  route     * -> workers
";
    let expected = (Some(0), expected.to_owned(), String::new());
    assert_eq!(run(folder.path(), &["check", "-c", "app.toml"]), expected);
    assert_eq!(run(folder.path(), &["-c", "app.toml", "check"]), expected);
    let mut by_variable = aftercommit(folder.path(), &["check"]);
    by_variable.env("AFTERCOMMIT_CONFIG", "app.toml");
    assert_eq!(told(by_variable.output().expect("it runs")), expected);
}

#[test]
fn check_online_looks_at_the_sinks() {
    let redis = Redis::start();
    let folder = folder();
    let port = redis.port().to_string();
    let there = USABLE.replace(":hunter2@localhost:6379", &format!("127.0.0.1:{port}"));
    fs::write(folder.path().join("app.toml"), &there).expect("written");
    let (code, out, err) = run(folder.path(), &["check", "--online", "-c", "app.toml"]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.contains("ok: sink workers: Redis "), "{out}");
    assert!(
        out.contains("warning: sink workers: appendonly is off"),
        "{out}"
    );
    drop(redis);
    let (code, out, err) = run(folder.path(), &["check", "--online", "-c", "app.toml"]);
    assert_eq!(code, Some(1), "{out}");
    assert!(
        out.contains("error: sink workers: ") && err.contains("told above"),
        "{out}{err}"
    );
}

#[test]
fn a_wrong_configuration_is_78_and_shown() {
    let folder = folder();
    let wrong = USABLE.replace("sink = \"workers\"", "sink = \"worker\"");
    fs::write(folder.path().join("app.toml"), wrong).expect("written");
    for command in ["check", "run", "init"] {
        let (code, out, err) = run(folder.path(), &[command, "-c", "app.toml"]);
        assert_eq!((code, out.as_str()), (Some(78), ""), "{command}");
        assert!(err.contains(" --> app.toml:10:8\n"), "{err}");
        assert!(err.contains("did you mean \"workers\"?"), "{err}");
        assert!(!err.contains('\u{1b}'), "no colours into a pipe: {err:?}");
    }
}

#[test]
fn secrets_come_from_files_and_stay_unseen() {
    let folder = folder();
    let secret = folder.path().join("secrets/url");
    for (content, expected) in [
        (
            Some("mysql://app:hunter2@db"),
            "`postgres.url_file`: the URL has a scheme that is not Postgres's",
        ),
        (Some("\n"), "`url_file`: secrets/url is empty"),
        (
            None,
            "`url_file`: secrets/url cannot be read: No such file or directory",
        ),
    ] {
        match content {
            Some(content) => fs::write(&secret, content).expect("written"),
            None => fs::remove_file(&secret).expect("removed"),
        }
        let (code, _, err) = run(folder.path(), &["check", "-c", "app.toml"]);
        assert_eq!(code, Some(78));
        assert!(err.starts_with(&format!("error: {expected}")), "{err}");
        assert!(err.contains(" --> app.toml:3:12\n"), "{err}");
        assert!(!err.contains("hunter2"), "{err}");
    }
}

#[test]
fn relative_secrets_start_at_the_folder_of_the_configuration() {
    let folder = folder();
    let elsewhere = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("app.toml");
    let path = path.to_str().expect("UTF-8");
    let (code, _, err) = run(elsewhere.path(), &["check", "-c", path]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
}

#[test]
fn a_file_that_cannot_be_read_is_78() {
    let folder = folder();
    fs::write(folder.path().join("latin.toml"), b"# \n# caf\xe9\n").expect("written");
    for (file, expected) in [
        ("none.toml", "cannot be read: No such file or directory"),
        ("secrets", "cannot be read: Is a directory"),
        ("latin.toml", "cannot be read: line 2 is not UTF-8"),
        ("/dev/zero", "cannot be read: it is longer than 1 MiB"),
    ] {
        let (code, _, err) = run(folder.path(), &["check", "-c", file]);
        assert_eq!(code, Some(78), "{file}");
        assert!(err.contains(expected), "{err}");
    }
}

#[test]
fn a_wrong_command_line_is_2() {
    let folder = folder();
    for (args, expected) in [
        (&[][..], "-c FILE"),
        (&["check"], "AFTERCOMMIT_CONFIG"),
        (&["chekc"], "'check'"),
        (&["run", "--until", "never"], "16/B374D848, or is `now`"),
        (&["--until", "now", "check"], "--until belongs to `run`"),
    ] {
        let (code, _, err) = run(folder.path(), args);
        assert_eq!(code, Some(2), "{args:?}");
        assert!(err.contains(expected), "{err}");
    }
}

#[test]
fn version_and_completions_are_printed() {
    let folder = folder();
    let version = format!("aftercommit {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        run(folder.path(), &["--version"]),
        (Some(0), version, String::new())
    );
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = run(folder.path(), &["completions", shell]);
        assert_eq!(code, Some(0));
        assert!(
            out.contains("aftercommit") && out.contains("check"),
            "{shell}"
        );
    }
}

#[test]
fn outputs_that_are_gone_make_no_panic() {
    let folder = folder();
    fs::write(folder.path().join("wrong.toml"), "gate = 1").expect("written");
    let full = || Stdio::from(File::create("/dev/full").expect("Linux has it"));
    for (args, out_code) in [
        (&["check", "-c", "app.toml"][..], 1),
        (&["completions", "bash"], 1),
    ] {
        let output = aftercommit(folder.path(), args).stdout(full()).output();
        let (code, _, err) = told(output.expect("it runs"));
        assert_eq!(code, Some(out_code), "{err}");
        assert!(
            err.starts_with("error: standard output cannot be written"),
            "{err}"
        );
    }
    for (args, code) in [(&["check", "-c", "wrong.toml"][..], 78), (&["chekc"], 2)] {
        let status = aftercommit(folder.path(), args).stderr(full()).status();
        assert_eq!(status.expect("it runs").code(), Some(code), "{args:?}");
    }
}

#[test]
fn a_reader_that_left_is_no_failure() {
    let folder = folder();
    for args in [
        &["check", "-c", "app.toml"][..],
        &["completions", "bash"],
        &["--help"],
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = aftercommit(folder.path(), args);
        let (code, _, err) = told(command.stdout(writer).output().expect("it runs"));
        assert_eq!((code, err.as_str()), (Some(0), ""), "{args:?}");
    }
}
