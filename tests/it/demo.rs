//! `aftercommit demo`, as `make demo` runs it, only shorter: what its closing table says, and that nothing is left.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

fn demo(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aftercommit"));
    command
        .args(["demo", "--seconds", "2"])
        .env("TMPDIR", folder)
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A folder that the servers' user can reach, and that shows what the demo leaves.
fn folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

fn left_in(folder: &Path) -> Vec<std::ffi::OsString> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect()
}

/// The three cells of a row of the closing table.
fn cells(table: &str, label: &str) -> [u64; 3] {
    let row = table
        .lines()
        .find_map(|line| line.trim().strip_prefix(label))
        .unwrap_or_else(|| panic!("no row {label:?} in:\n{table}"));
    let cells: Vec<u64> = row
        .split_whitespace()
        .map(|cell| cell.parse().unwrap_or_else(|_| panic!("{label}: {row}")))
        .collect();
    cells.try_into().expect("three acts")
}

fn words(output: &Output) -> (String, String) {
    (
        String::from_utf8(output.stdout.clone()).unwrap(),
        String::from_utf8(output.stderr.clone()).unwrap(),
    )
}

#[test]
fn the_closing_table_shows_the_problem_and_the_cure() {
    let folder = folder();
    let output = demo(folder.path()).output().unwrap();
    let (said, complained) = words(&output);
    assert!(
        output.status.success(),
        "{}\n{said}\n{complained}",
        output.status
    );
    assert!(!said.contains('\x1b'), "no colours into a pipe:\n{said}");
    assert!(said.lines().all(|line| line.len() < 80), "{said}");

    let table = &said[said.find("  tasks  ").expect("a closing table")..];
    let committed = cells(table, "committed");
    let rolled_back = cells(table, "rolled back");
    let run = cells(table, "run");
    let not_found = cells(table, "row not found");
    let phantom = cells(table, "phantom");
    let lost = cells(table, "lost");
    let twice = cells(table, "twice, with the same id");

    assert_eq!(committed, [committed[0]; 3], "the same load in each act");
    assert_eq!(rolled_back, [rolled_back[0]; 3]);
    assert!(committed[0] > 0 && rolled_back[0] > 0);
    for act in 0..3 {
        assert_eq!(
            run[act] + lost[act],
            committed[act] + phantom[act] + twice[act],
            "act {act} does not add up:\n{table}"
        );
    }
    assert!(not_found[0] > 0, "direct: too early\n{table}");
    assert_eq!(
        phantom,
        [rolled_back[0], 0, 0],
        "direct: all that was rolled back was run\n{table}"
    );
    assert!(lost[1] > 0, "on_commit: lost with their process\n{table}");
    assert_eq!([not_found[1], lost[0]], [0, 0], "{table}");
    assert_eq!(
        [not_found[2], phantom[2], lost[2]],
        [0; 3],
        "outbox\n{table}"
    );
    assert_eq!(left_in(folder.path()), [""; 0]);
}

#[test]
fn a_signal_in_the_middle_leaves_nothing_behind() {
    let folder = folder();
    let mut child = demo(folder.path()).spawn().unwrap();
    wait_for(&mut child, "3 of 3");
    let signalled = Command::new("sh")
        .args(["-c", "kill -TERM \"$1\"", "sh", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(signalled.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143), "{}", words(&output).1);
    assert_eq!(left_in(folder.path()), [""; 0]);
}

#[test]
fn a_reader_that_goes_away_ends_it_and_leaves_nothing_behind() {
    let folder = folder();
    let mut child = demo(folder.path()).spawn().unwrap();
    wait_for(&mut child, "1 of 3");
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(words(&output).1, "");
    assert_eq!(left_in(folder.path()), [""; 0]);
}

/// Reads standard output up to a line that begins like this, and leaves the rest to be read.
fn wait_for(child: &mut Child, beginning: &str) {
    let mut reader = BufReader::with_capacity(1, child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with(beginning) {
        line.clear();
        if reader.read_line(&mut line).unwrap() == 0 {
            let mut complained = String::new();
            if let Some(mut errors) = child.stderr.take() {
                errors.read_to_string(&mut complained).unwrap();
            }
            panic!("it ended before {beginning:?}: {complained}");
        }
    }
    child.stdout = Some(reader.into_inner());
}
