//! Histories of a few messages, and what they come to.

use super::*;
use crate::outbox::{Config, Field};

const OUTBOX: u32 = 16_391;
const OTHER: u32 = 16_398;
const LSN: Lsn = Lsn(0x302_EB70);
const TIME: Timestamp = Timestamp(0x0003_03D3_289E_F6A7);

fn begin(lsn: Lsn, xid: u32) -> Vec<u8> {
    let mut message = b"B".to_vec();
    message.extend(lsn.0.to_be_bytes());
    message.extend(TIME.0.to_be_bytes());
    message.extend(xid.to_be_bytes());
    message
}

fn commit(lsn: Lsn, end: Lsn) -> Vec<u8> {
    let mut message = b"C\0".to_vec();
    message.extend(lsn.0.to_be_bytes());
    message.extend(end.0.to_be_bytes());
    message.extend(TIME.0.to_be_bytes());
    message
}

fn relation(id: u32, namespace: &str, name: &str, columns: &[&str]) -> Vec<u8> {
    let mut message = b"R".to_vec();
    message.extend(id.to_be_bytes());
    message.extend(format!("{namespace}\0{name}\0d").as_bytes());
    message.extend((columns.len() as u16).to_be_bytes());
    for column in columns {
        message.extend(format!("\0{column}\0").as_bytes());
        message.extend([0, 0, 0, 25, 0xFF, 0xFF, 0xFF, 0xFF]);
    }
    message
}

fn outbox(columns: &[&str]) -> Vec<u8> {
    relation(OUTBOX, "aftercommit", "outbox", columns)
}

fn insert(id: u32, values: &[Option<&[u8]>]) -> Vec<u8> {
    let mut message = b"I".to_vec();
    message.extend(id.to_be_bytes());
    message.extend(b"N");
    message.extend((values.len() as u16).to_be_bytes());
    for value in values {
        match value {
            None => message.extend(b"n"),
            Some(value) => {
                message.extend(b"t");
                message.extend((value.len() as u32).to_be_bytes());
                message.extend(*value);
            }
        }
    }
    message
}

fn row(id: &str, task: &str) -> Vec<u8> {
    insert(OUTBOX, &[Some(id.as_bytes()), Some(task.as_bytes())])
}

fn assembler() -> Assembler {
    Assembler::new(Columns::new(&Config::default()).unwrap())
}

/// Feeds one message from the middle of a chunk.
fn feed(assembler: &mut Assembler, message: &[u8]) -> Result<Option<Event>, AssembleError> {
    let chunk = Bytes::from([b"before", message, b"after"].concat());
    assembler.message(&chunk, 6..6 + message.len())
}

/// Feeds all and tells the last answer.
fn feed_all(assembler: &mut Assembler, messages: &[Vec<u8>]) -> Result<String, AssembleError> {
    let mut last = None;
    for message in messages {
        last = feed(assembler, message)?;
    }
    Ok(match last {
        None => "nothing".to_owned(),
        Some(Event::Begin {
            xid, commit_lsn, ..
        }) => format!("begin {xid} {commit_lsn}"),
        Some(Event::Task(task)) => format!(
            "task {} {} {} {}",
            task.id(),
            task.name(),
            task.position.commit_lsn,
            task.position.ordinal
        ),
        Some(Event::Commit { end_lsn }) => format!("commit {end_lsn}"),
    })
}

#[test]
fn a_transaction_becomes_tasks() {
    let mut assembler = assembler();
    for (message, answer) in [
        (begin(LSN, 732), "begin 732 0/302EB70"),
        (outbox(&["id", "task"]), "nothing"),
        (row("1", "a"), "task 1 a 0/302EB70 0"),
        (relation(OTHER, "public", "outbox", &["id"]), "nothing"),
        (insert(OTHER, &[Some(b"x")]), "nothing"),
        (row("2", "b"), "task 2 b 0/302EB70 1"),
        (commit(LSN, Lsn(0x302_EBA0)), "commit 0/302EBA0"),
        (begin(Lsn(0x302_F9A0), 733), "begin 733 0/302F9A0"),
        (row("3", "c"), "task 3 c 0/302F9A0 0"),
        (commit(Lsn(0x302_F9A0), Lsn(0x302_F9D0)), "commit 0/302F9D0"),
    ] {
        let told = feed_all(&mut assembler, &[message]);
        assert_eq!(told, Ok(answer.to_owned()));
    }
}

#[test]
fn a_task_is_a_slice_of_the_chunk_with_every_field() {
    let mut assembler = assembler();
    let names: Vec<_> = Field::ALL.iter().rev().map(|field| field.name()).collect();
    feed(&mut assembler, &begin(LSN, 1)).unwrap();
    feed(&mut assembler, &outbox(&names)).unwrap();
    let values: Vec<_> = names
        .iter()
        .map(|name| match *name {
            "args" => None,
            "payload" => Some(Vec::new()),
            "kwargs" => Some(r#"{"name": "Zoë"}"#.repeat(20).into_bytes()),
            name => Some(format!("the {name}").into_bytes()),
        })
        .collect();
    let borrowed: Vec<_> = values.iter().map(Option::as_deref).collect();
    let chunk = Bytes::from(insert(OUTBOX, &borrowed));
    let Ok(Some(Event::Task(task))) = assembler.message(&chunk, 0..chunk.len()) else {
        panic!("no task");
    };
    for (name, value) in names.iter().zip(&values) {
        let field = Field::ALL.into_iter().find(|field| field.name() == *name);
        let told = task.get(field.unwrap());
        assert_eq!(told, value.as_deref(), "{name}");
        if let Some(told) = told {
            assert!(
                chunk.as_ptr_range().contains(&told.as_ptr()),
                "{name} was copied"
            );
        }
    }
    assert_eq!(task.committed_at, TIME);
    assert!(task.size() <= chunk.len());
}

#[test]
fn columns_are_found_again_after_each_relation_message() {
    let mut assembler = assembler();
    let values = [Some(&b"first"[..]), Some(b"second"), Some(b"third")];
    for (columns, answer) in [
        (["id", "task", "note"], "task first second 0/302EB70 0"),
        (["task", "note", "id"], "task third first 0/302EB70 1"),
    ] {
        let mut messages = vec![outbox(&columns), insert(OUTBOX, &values)];
        if answer.ends_with('0') {
            messages.insert(0, begin(LSN, 1));
        }
        assert_eq!(feed_all(&mut assembler, &messages), Ok(answer.to_owned()));
    }
    // Renamed: from now on another's rows.
    let renamed = relation(OUTBOX, "aftercommit", "outbox_old", &["task", "note", "id"]);
    let told = feed_all(&mut assembler, &[renamed, insert(OUTBOX, &values)]);
    assert_eq!(told, Ok("nothing".to_owned()));
    // And another table in its place.
    let anew = relation(OTHER, "aftercommit", "outbox", &["id", "task"]);
    let values = [Some(&b"4"[..]), Some(b"d")];
    let told = feed_all(&mut assembler, &[anew, insert(OTHER, &values)]);
    assert_eq!(told, Ok("task 4 d 0/302EB70 2".to_owned()));
}

#[test]
fn what_is_no_insert_is_skipped() {
    let mut assembler = assembler();
    feed(&mut assembler, &begin(LSN, 1)).unwrap();
    for message in [
        &b"U\0\0\0\x01N\0\x01n"[..],
        b"D\0\0\0\x01K\0\x01n",
        b"T\0\0\0\x01\0\0\0\0\x01",
        b"O........here\0",
        b"Y\0\0\0\x01a\0b\0",
        b"M\0........p\0\0\0\0\0",
    ] {
        assert!(matches!(feed(&mut assembler, message), Ok(None)));
    }
    let told = feed_all(&mut assembler, &[outbox(&["id", "task"]), row("1", "a")]);
    assert_eq!(told, Ok("task 1 a 0/302EB70 0".to_owned()));
}

#[test]
fn what_is_not_agreed_is_an_error_with_its_place() {
    let first = begin(LSN, 1);
    let table = outbox(&["id", "task", "note"]);
    let three = |values: [Option<&[u8]>; 3]| insert(OUTBOX, &values);
    let unchanged = b"I\0\0\x40\x07N\0\x03t\0\0\0\x01at\0\0\0\x01bu".to_vec();
    let binary = b"I\0\0\x40\x07N\0\x03t\0\0\0\x01ab\0\0\0\x01bn".to_vec();
    let short = b"I\0\0\x40\x07N\0\x03nn".to_vec();
    for (messages, words) in [
        (
            vec![first.clone(), begin(LSN, 2)],
            "Begin inside of a transaction (in the transaction that commits at 0/302EB70)",
        ),
        (vec![commit(LSN, LSN)], "Commit without a Begin"),
        (
            vec![table.clone(), row("1", "a")],
            "Insert outside of a transaction",
        ),
        (
            vec![first.clone(), commit(LSN, LSN), row("1", "a")],
            "Insert outside of a transaction",
        ),
        (
            vec![first.clone(), commit(Lsn(1), LSN)],
            "Commit of 0/1 after Begin of 0/302EB70",
        ),
        (
            vec![first.clone(), row("1", "a")],
            "a row of relation 16391, which was not described (in the transaction that commits at 0/302EB70)",
        ),
        (
            vec![first.clone(), outbox(&["id"])],
            "outbox table aftercommit.outbox has no column task, which every task needs; \
             add it, or map another to task in [outbox.columns] (in the transaction that commits at 0/302EB70)",
        ),
        (
            vec![first.clone(), table.clone(), row("1", "a")],
            "outbox row 1 of the transaction that commits at 0/302EB70: \
             2 columns, but the table was described with 3",
        ),
        (
            vec![
                first.clone(),
                table.clone(),
                three([None, Some(b"a"), None]),
            ],
            "outbox row 1 of the transaction that commits at 0/302EB70: \
             id is NULL; a task without it can be neither sent nor tracked",
        ),
        (
            vec![
                first.clone(),
                table.clone(),
                three([Some(b"1"), Some(b"a"), None]),
                three([Some(b"1"), Some(b"secret\xFF"), None]),
            ],
            "outbox row 2 of the transaction that commits at 0/302EB70: task is not UTF-8",
        ),
        (
            vec![first.clone(), table.clone(), unchanged],
            "outbox row 1 of the transaction that commits at 0/302EB70: the value of column 3 was not sent",
        ),
        (
            vec![first.clone(), table.clone(), binary],
            "outbox row 1 of the transaction that commits at 0/302EB70: the value of column 2 is in binary form",
        ),
        (
            vec![first.clone(), table, short],
            "message ends inside of column kind, at byte 10 (in the transaction that commits at 0/302EB70)",
        ),
        (vec![b"Z".to_vec()], "unexpected message tag 'Z', at byte 0"),
    ] {
        let error = feed_all(&mut assembler(), &messages).unwrap_err();
        assert_eq!(error.to_string(), words);
        assert!(!format!("{error:?}").contains("secret"));
    }
}

#[test]
fn a_column_that_holds_no_field_may_be_anything_in_text_form() {
    let messages = [
        begin(LSN, 1),
        outbox(&["id", "task", "note"]),
        insert(OUTBOX, &[Some(b"1"), Some("ü".as_bytes()), Some(b"\xFF")]),
    ];
    let told = feed_all(&mut assembler(), &messages);
    assert_eq!(told, Ok("task 1 ü 0/302EB70 0".to_owned()));
}

#[test]
fn a_new_stream_knows_nothing_of_the_old_one() {
    let mut assembler = assembler();
    let start = [begin(LSN, 1), outbox(&["id", "task"]), row("1", "a")];
    let told = "task 1 a 0/302EB70 0".to_owned();
    assert_eq!(feed_all(&mut assembler, &start), Ok(told.clone()));
    assembler.forget();
    let unknown = feed_all(&mut assembler, &[begin(LSN, 1), row("1", "a")]);
    assert!(matches!(
        unknown,
        Err(AssembleError::UnknownRelation { .. })
    ));
    assembler.forget();
    assert_eq!(feed_all(&mut assembler, &start), Ok(told));
}

#[test]
#[should_panic]
fn a_range_outside_of_its_chunk_is_our_own_mistake() {
    drop(assembler().message(&Bytes::from_static(b"B"), 0..2));
}

#[test]
fn a_task_knows_which_of_its_fields_are_json() {
    let mut described = outbox(&["id", "task", "kwargs"]);
    // The last column's type: from text to json.
    let type_id = described.len() - 5;
    assert_eq!(described[type_id], 25);
    let text = described.clone();
    described[type_id] = 114;
    let row = insert(OUTBOX, &[Some(b"1"), Some(b"a"), Some(b"{}")]);
    let mut assembler = assembler();
    feed(&mut assembler, &begin(LSN, 732)).unwrap();
    for (relation, json) in [(&text, false), (&described, true)] {
        feed(&mut assembler, relation).unwrap();
        let Some(Event::Task(mut task)) = feed(&mut assembler, &row).unwrap() else {
            panic!("a row is a task");
        };
        task.detach();
        assert_eq!(task.is_json(Field::Kwargs), json);
        assert!(!task.is_json(Field::Id) && !task.is_json(Field::Args));
    }
}
