//! The house is tidy: what the crate's documentation says of its rooms is so.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file. One that is longer is asking which second thing it does.
const LONGEST: usize = 450;

/// Nobody leaves these behind.
const LEFT_OVERS: [&str; 6] = ["TODO", "FIXME", "XXX", "todo!", "unimplemented!", "dbg!"];

/// What a pure room does not see.
const IMPURE: [&str; 10] = [
    "std::env",
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "tokio::",
    "SystemTime",
    "Instant::now",
    "fastrand",
    "new_v4",
];

struct Source {
    /// Below `src`.
    path: String,
    text: String,
}

impl Source {
    /// The module of the crate that it is part of; none for `lib.rs` and `main.rs`.
    fn room(&self) -> Option<&str> {
        let first = self.path.split('/').next().unwrap_or_default();
        let room = first.strip_suffix(".rs").unwrap_or(first);
        (!matches!(room, "lib" | "main")).then_some(room)
    }

    fn is_test(&self) -> bool {
        self.path.contains("/tests")
    }

    /// What is compiled into the daemon.
    fn product(&self) -> &str {
        match self.text.split_once("#[cfg(test)]\nmod tests {") {
            _ if self.is_test() => "",
            Some((product, _)) => product,
            None => &self.text,
        }
    }
}

#[derive(Clone, Copy)]
struct Floor {
    number: u32,
    pure: bool,
}

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut found = Vec::new();
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of ours") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let source = |path: PathBuf| Source {
        text: fs::read_to_string(&path).expect("a source file"),
        path: path
            .strip_prefix(&root)
            .expect("below src")
            .display()
            .to_string(),
    };
    files("src").into_iter().map(source).collect()
}

/// The table in `lib.rs`: `//! | 3 P | [`route`] | … |`.
fn floors() -> BTreeMap<String, Floor> {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs"));
    let lib = lib.expect("lib.rs");
    let row = |line: &str| {
        let mut cells = line.strip_prefix("//! | ")?.split(" | ");
        let (floor, room) = (cells.next()?, cells.next()?);
        let mut floor = floor.split(' ');
        let number = floor.next()?.parse().ok()?;
        let room = room.strip_prefix("[`")?.strip_suffix("`]")?;
        let pure = floor.next() == Some("P");
        Some((room.to_owned(), Floor { number, pure }))
    };
    lib.lines().filter_map(row).collect()
}

/// The rooms that `crate::` leads to: `crate::pg::Lsn`, `crate::{gate, outbox::Task}`.
fn imports(text: &str) -> Vec<&str> {
    let mut rooms = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        // `$crate::`, and words that end so.
        if text[..at].ends_with(|c: char| c == '$' || c == '_' || c.is_alphanumeric()) {
            continue;
        }
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => rooms.push(rest),
            Some(rest) => {
                let (mut depth, mut expected) = (0, true);
                for (at, c) in rest.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => expected = true,
                        _ if expected && c.is_alphabetic() => {
                            rooms.push(&rest[at..]);
                            expected = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    let name = |rest: &'_ str| rest.find(|c: char| c != '_' && !c.is_alphanumeric());
    rooms
        .into_iter()
        .map(|rest| &rest[..name(rest).unwrap_or(rest.len())])
        .filter(|room| room.starts_with(|c: char| c.is_ascii_lowercase()))
        .collect()
}

#[test]
fn imports_are_read() {
    let text = "use crate::pg::Lsn;\nuse crate::{gate, outbox::{Task, Field},\n config};\ncrate::units::size(x); $crate::a";
    assert_eq!(imports(text), ["pg", "gate", "outbox", "config", "units"]);
}

#[test]
fn every_room_stands_on_its_floor() {
    let floors = floors();
    let mut wrong = Vec::new();
    for source in sources() {
        let Some(room) = source.room() else { continue };
        let Some(floor) = floors.get(room) else {
            wrong.push(format!("{}: {room} is not in lib.rs's table", source.path));
            continue;
        };
        let head = source.text.lines().next().unwrap_or_default();
        let is_door =
            source.path == format!("{room}.rs") || source.path == format!("{room}/mod.rs");
        let number = floor.number;
        let pure = if floor.pure { ", pure" } else { "" };
        if is_door && !head.starts_with(&format!("//! Floor {number}{pure}: ")) {
            wrong.push(format!(
                "{}: begins with {head:?}, and lib.rs says Floor {number}{pure}",
                source.path
            ));
        }
        for import in imports(&source.text) {
            let allowed = import == room
                || floors
                    .get(import)
                    .is_some_and(|other| other.number < number);
            if !allowed {
                wrong.push(format!(
                    "{}: imports {import}, which is not on a lower floor",
                    source.path
                ));
            }
        }
        let product = source.product();
        for word in IMPURE
            .iter()
            .filter(|word| floor.pure && product.contains(**word))
        {
            wrong.push(format!("{}: is pure, and has {word}", source.path));
        }
    }
    for room in floors.keys() {
        if !sources().iter().any(|source| source.room() == Some(room)) {
            wrong.push(format!("lib.rs's table has {room}, which is not there"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A position that was received, or guessed, must not become one that is confirmed.
#[test]
fn only_the_watermark_vouches() {
    let sources = sources();
    let vouching = sources
        .iter()
        .filter(|source| source.product().contains("ConfirmedLsn::vouch("));
    let paths: Vec<&str> = vouching.map(|source| source.path.as_str()).collect();
    assert_eq!(paths, ["watermark.rs"]);
}

#[test]
fn every_file_says_what_it_is_and_stays_short() {
    let mut wrong = Vec::new();
    for source in sources() {
        if !source.text.starts_with("//! ") {
            wrong.push(format!("{}: has no head that says what it is", source.path));
        }
        let lines = source.text.lines().count();
        if lines > LONGEST {
            wrong.push(format!("{}: has {lines} lines", source.path));
        }
    }
    for path in files("tests/it")
        .into_iter()
        .chain(files("fuzz/properties"))
    {
        if path.extension().is_some_and(|ext| ext == "rs")
            && !fs::read_to_string(&path)
                .expect("a file")
                .starts_with("//! ")
        {
            wrong.push(format!("{}: has no head", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_is_left_for_later() {
    let mut wrong = Vec::new();
    let folders = [
        "src",
        "tests/it",
        "fuzz/properties",
        "fuzz/targets",
        "sql",
        "scripts",
    ];
    for path in folders.into_iter().flat_map(files) {
        if path.ends_with("tests/it/tidy.rs") {
            continue;
        }
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        let word = |c: char| c == '_' || c.is_alphanumeric();
        for left_over in LEFT_OVERS {
            for (at, _) in text.match_indices(left_over) {
                let before = text[..at].ends_with(word);
                let behind = text[at + left_over.len()..].starts_with(word);
                if !before && !behind {
                    let line = 1 + text[..at].matches('\n').count();
                    wrong.push(format!("{}:{line}: {left_over}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
