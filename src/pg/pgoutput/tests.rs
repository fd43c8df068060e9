//! Bytes as PostgreSQL 15 sent them, and what they say.

use super::super::tuple::TupleColumn;
use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Reads the bytes as one kind of message; and checks that with any byte missing or one too many they are refused.
macro_rules! decode {
    ($kind:ident, $bytes:expr) => {{
        for len in 0..$bytes.len() {
            let cut = Message::decode(&$bytes[..len]).is_ok_and(|message| rows_are_whole(&message));
            assert!(!cut, "cut at {len}");
        }
        let long = [$bytes, b"\0"].concat();
        let long = Message::decode(&long).is_ok_and(|message| rows_are_whole(&message));
        assert!(!long, "one byte too many");
        match Message::decode($bytes) {
            Ok(Message::$kind(message)) => message,
            Ok(_) => panic!("another kind of message"),
            Err(error) => panic!("{error}"),
        }
    }};
}

fn rows_are_whole(message: &Message<'_>) -> bool {
    let whole = |tuple: Tuple<'_>| tuple.columns().all(|column| column.is_ok());
    match *message {
        Message::Insert(Insert { new, .. }) | Message::Update(Update { new, .. }) => whole(new),
        Message::Delete(Delete { old, .. }) => whole(old.tuple()),
        _ => true,
    }
}

impl<'a> Old<'a> {
    fn tuple(self) -> Tuple<'a> {
        match self {
            Old::Key(tuple) | Old::Row(tuple) => tuple,
        }
    }
}

/// A row in words: `-` for NULL, `?` for unchanged.
fn row(tuple: Tuple<'_>) -> String {
    let columns: Vec<_> = tuple
        .columns()
        .map(|column| match column.unwrap() {
            TupleColumn::Null => "-".to_owned(),
            TupleColumn::Unchanged => "?".to_owned(),
            TupleColumn::Text(value) | TupleColumn::Binary(value) => {
                String::from_utf8(value.to_vec()).unwrap()
            }
        })
        .collect();
    columns.join("|")
}

#[test]
fn begin() {
    let bytes = hex("42 000000000302eb70 000303d3289ef6a7 000002dc");
    assert_eq!(
        decode!(Begin, &bytes[..]),
        Begin {
            final_lsn: Lsn(0x302_EB70),
            committed_at: Timestamp(0x0003_03D3_289E_F6A7),
            xid: 732,
        }
    );
}

#[test]
fn commit() {
    let bytes = hex("43 00 000000000302eb70 000000000302eba0 000303d3289ef6a7");
    assert_eq!(
        decode!(Commit, &bytes[..]),
        Commit {
            commit_lsn: Lsn(0x302_EB70),
            end_lsn: Lsn(0x302_EBA0),
            committed_at: Timestamp(0x0003_03D3_289E_F6A7),
        }
    );
}

#[test]
fn origin() {
    let bytes = hex("4f 00000016b374d848 656c7365776865726500");
    assert_eq!(
        decode!(Origin, &bytes[..]),
        Origin {
            commit_lsn: "16/B374D848".parse().unwrap(),
            name: "elsewhere",
        }
    );
}

#[test]
fn relation() {
    let bytes = hex(
        "52 00004007 73686f7000 6f7574626f7800 64 0006
         01 696400 00000b86 ffffffff  00 7461736b00 00000019 ffffffff  00 6b776172677300 00000072 ffffffff
         00 6d6f6f6400 00004002 ffffffff  00 6e00 00000015 ffffffff  00 62696700 00000019 ffffffff",
    );
    let relation = decode!(Relation, &bytes[..]);
    assert_eq!(
        (relation.id, relation.namespace, relation.name),
        (0x4007, "shop", "outbox")
    );
    assert_eq!(
        (relation.replica_identity, relation.column_count()),
        (b'd', 6)
    );
    let columns: Vec<_> = relation
        .columns()
        .map(|column| (column.flags, column.name, column.type_id))
        .collect();
    assert_eq!(
        columns,
        [
            (1, "id", 2950),
            (0, "task", 25),
            (0, "kwargs", 114),
            (0, "mood", 0x4002),
            (0, "n", 21),
            (0, "big", 25),
        ]
    );
    assert!(relation.columns().all(|column| column.type_modifier == -1));
}

#[test]
fn an_empty_namespace_is_the_catalog() {
    let bytes = hex("52 00000001 00 7400 6e 0000");
    assert_eq!(decode!(Relation, &bytes[..]).namespace, "pg_catalog");
}

#[test]
fn type_name() {
    let bytes = hex("59 00004002 73686f7000 6d6f6f6400");
    assert_eq!(
        decode!(Type, &bytes[..]),
        Type {
            id: 0x4002,
            namespace: "shop",
            name: "mood",
        }
    );
}

#[test]
fn insert() {
    let bytes = hex(
        "49 00004007 4e 0006 74 00000024 30313866326133302d303030302d373030302d383030302d303030303030303030303031
         74 0000000e 73686f702e7461736b732e706179
         74 00000020 7b226f726465725f6964223a2034322c20226e616d65223a20225a6fc3ab227d
         74 00000002 6f6b 6e 6e",
    );
    let insert = decode!(Insert, &bytes[..]);
    assert_eq!(insert.relation, 0x4007);
    assert_eq!(
        row(insert.new),
        r#"018f2a30-0000-7000-8000-000000000001|shop.tasks.pay|{"order_id": 42, "name": "Zoë"}|ok|-|-"#
    );
}

#[test]
fn update() {
    for (bytes, old, new) in [
        // Replica identity full.
        (
            hex(
                "55 0000400e 4f 0002 74 00000001 31 74 00000001 78 4e 0002 74 00000001 31 74 00000001 79",
            ),
            Some((b'O', "1|x")),
            "1|y",
        ),
        // The key did not change, and the second column is a TOASTed value that did not either.
        (
            hex("55 00004007 4e 0003 74 00000001 32 75 6e"),
            None,
            "2|?|-",
        ),
        (
            hex("55 00004007 4b 0003 74 00000001 32 6e 6e 4e 0003 74 00000001 33 75 6e"),
            Some((b'K', "2|-|-")),
            "3|?|-",
        ),
    ] {
        let update = decode!(Update, &bytes[..]);
        let told = update.old.map(|old| {
            let kind = if matches!(old, Old::Key(_)) {
                b'K'
            } else {
                b'O'
            };
            (kind, row(old.tuple()))
        });
        assert_eq!(told, old.map(|(kind, row)| (kind, row.to_owned())));
        assert_eq!(row(update.new), new);
    }
}

#[test]
fn delete() {
    let bytes = hex("44 0000400e 4f 0002 74 00000001 31 74 00000001 79");
    let delete = decode!(Delete, &bytes[..]);
    assert_eq!(delete.relation, 0x400E);
    assert!(matches!(delete.old, Old::Row(_)));
    assert_eq!(row(delete.old.tuple()), "1|y");
    let bytes = hex("44 0000400e 4b 0002 74 00000001 31 6e");
    let delete = decode!(Delete, &bytes[..]);
    assert!(matches!(delete.old, Old::Key(_)));
    assert_eq!(row(delete.old.tuple()), "1|-");
}

#[test]
fn truncate() {
    let bytes = hex("54 00000002 03 0000400e 00004007");
    let truncate = decode!(Truncate, &bytes[..]);
    assert!(truncate.cascade && truncate.restart_identity);
    assert_eq!(truncate.relations().collect::<Vec<_>>(), [0x400E, 0x4007]);
}

#[test]
fn logical_message() {
    for (bytes, transactional, lsn, content) in [
        (
            hex("4d 01 000000000302eb28 707800 00000005 68656c6c6f"),
            true,
            Lsn(0x302_EB28),
            &b"hello"[..],
        ),
        (
            hex("4d 00 000000000302ebd8 707800 00000003 6e6f77"),
            false,
            Lsn(0x302_EBD8),
            b"now",
        ),
    ] {
        let message = decode!(Message, &bytes[..]);
        assert_eq!(
            (
                message.transactional,
                message.lsn,
                message.prefix,
                message.content
            ),
            (transactional, lsn, "px", content)
        );
    }
}

#[test]
fn what_the_protocol_does_not_have_is_refused() {
    for (bytes, words) in [
        (&b""[..], "message ends inside of message tag, at byte 0"),
        (b"?", "unexpected message tag '?', at byte 0"),
        (b"I\0\0\0\x01K", "unexpected new tuple tag 'K', at byte 5"),
        (b"U\0\0\0\x01X", "unexpected new tuple tag 'X', at byte 5"),
        (b"D\0\0\0\x01N", "unexpected old tuple tag 'N', at byte 5"),
        (b"C\x01........", "unexpected Commit flags, at byte 1"),
        (b"T\0\0\0\0\x04", "unexpected Truncate options, at byte 5"),
        (
            b"T\xFF\xFF\xFF\xFF\0....",
            "message ends inside of Truncate relation ids, at byte 6",
        ),
        (b"M\x02", "unexpected Message flags, at byte 1"),
        (b"Y\0\0\0\x01a\0\xFF\0", "Type name is not UTF-8, at byte 7"),
    ] {
        let error = Message::decode(bytes).err().expect(words);
        assert_eq!(error.to_string(), words);
    }
}

#[test]
fn tags_of_later_protocols_are_named() {
    for (tags, words) in [
        ("bPKr", "message tag of a two-phase transaction"),
        ("SEcA", "message tag of a streamed transaction"),
        ("p", "message tag of a streamed two-phase transaction"),
    ] {
        for tag in tags.chars() {
            let error = Message::decode(&[tag as u8, 0, 0]).err().unwrap();
            assert_eq!(
                error.to_string(),
                format!("unexpected {words} '{tag}', at byte 0")
            );
        }
    }
}
