//! Streams of messages: whatever comes in whatever order, there is an answer, and a task is what its row says.
//!
//! The input is a script. Most of its steps are well-formed messages, so that the interesting ones are reached; some
//! are any bytes, or the message before with one byte changed.

use std::collections::HashMap;

use aftercommit::outbox::{Assembler, Columns, Config, Event, Field, Task};
use aftercommit::pg::pgoutput::Message;
use aftercommit::pg::tuple::TupleColumn;
use bytes::Bytes;

/// Runs a script, and returns the number of tasks that came out.
pub(super) fn tasks(input: &[u8]) -> usize {
    let columns = Columns::new(&Config::default()).expect("the default is a configuration");
    let mut assembler = Assembler::new(columns);
    let mut script = Script {
        rest: input,
        open: None,
        widths: [None; 4],
        last: Vec::new(),
    };
    let mut model = Model::default();
    let mut count = 0;
    while let Some(step) = script.step() {
        let Step::Message(message) = step else {
            script.reconnect();
            assembler.forget();
            model = Model::default();
            continue;
        };
        let chunk = Bytes::from([b"before", message.as_slice(), b"after"].concat());
        match assembler.message(&chunk, 6..6 + message.len()) {
            Ok(event) => {
                model.agrees(&message, &event);
                count += usize::from(matches!(event, Some(Event::Task(_))));
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                script.reconnect();
                assembler.forget();
                model = Model::default();
            }
        }
    }
    count
}

/// What the messages so far amount to, told without the assembler.
#[derive(Default)]
struct Model {
    /// Start of the open transaction's commit record, and the tasks so far.
    open: Option<(u64, u64)>,
    /// Names of the columns, where the relation is the outbox.
    relations: HashMap<u32, Option<Vec<String>>>,
}

impl Model {
    fn agrees(&mut self, message: &[u8], event: &Option<Event>) {
        let Ok(message) = Message::decode(message) else {
            panic!("a message that cannot be read has no meaning");
        };
        match (message, event) {
            (Message::Begin(begin), Some(Event::Begin { commit_lsn, .. })) => {
                assert_eq!(self.open, None);
                assert_eq!(begin.final_lsn, *commit_lsn);
                self.open = Some((commit_lsn.0, 0));
            }
            (Message::Commit(commit), Some(Event::Commit { end_lsn })) => {
                let (commit_lsn, _) = self.open.take().expect("a transaction is open");
                assert_eq!(commit.commit_lsn.0, commit_lsn);
                assert_eq!(commit.end_lsn, *end_lsn);
            }
            (Message::Relation(relation), None) => {
                let ours = (relation.namespace, relation.name) == ("aftercommit", "outbox");
                let names = relation.columns().map(|column| column.name.to_owned());
                let names = ours.then(|| names.collect());
                self.relations.insert(relation.id, names);
            }
            (Message::Insert(insert), Some(Event::Task(task))) => {
                let names = self.relations[&insert.relation].as_ref();
                let names = names.expect("only rows of the outbox are tasks");
                let values: Vec<_> = insert
                    .new
                    .columns()
                    .map(|column| match column {
                        Ok(TupleColumn::Text(value)) => Some(value),
                        Ok(TupleColumn::Null) => None,
                        _ => panic!("a row with such a column is no task"),
                    })
                    .collect();
                assert_eq!(names.len(), values.len());
                same_fields(task, names, &values);
                let (commit_lsn, count) = self.open.as_mut().expect("a transaction is open");
                assert_eq!(task.position.commit_lsn.0, *commit_lsn);
                assert_eq!(task.position.ordinal, *count);
                *count += 1;
            }
            (Message::Insert(insert), None) => {
                assert!(self.open.is_some());
                assert_eq!(self.relations.get(&insert.relation), Some(&None));
            }
            (_, None) => {}
            (_, Some(_)) => panic!("an event that the message does not tell of"),
        }
    }
}

fn same_fields(task: &Task, names: &[String], values: &[Option<&[u8]>]) {
    for field in Field::ALL {
        let column = names.iter().position(|name| name == field.name());
        let value = column.and_then(|column| values[column]);
        assert_eq!(task.get(field), value, "{}", field.name());
        assert_eq!(task.text(field).is_some(), value.is_some());
    }
    assert!(task.get(Field::Id).is_some() && task.get(Field::Task).is_some());
    let mut copy = task.clone();
    copy.detach();
    for field in Field::ALL {
        assert_eq!(task.get(field), copy.get(field));
    }
}

struct Script<'a> {
    rest: &'a [u8],
    /// LSN of the transaction that should be open.
    open: Option<u8>,
    /// Columns of the relations that should be described.
    widths: [Option<usize>; 4],
    last: Vec<u8>,
}

enum Step {
    Message(Vec<u8>),
    Reconnect,
}

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let (bytes, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        bytes.to_vec()
    }

    fn reconnect(&mut self) {
        self.open = None;
        self.widths = [None; 4];
    }

    fn step(&mut self) -> Option<Step> {
        let message = match self.byte()? % 64 {
            0 => return Some(Step::Reconnect),
            1 => {
                let len = usize::from(self.byte()?);
                self.bytes(len)
            }
            2..=3 => self.changed()?,
            4 => self.begin()?,
            5 => self.commit()?,
            6..=10 => self.relation()?,
            11..=20 if self.open.is_some() => self.commit()?,
            _ if self.open.is_none() => self.begin()?,
            _ => self.insert()?,
        };
        self.last.clone_from(&message);
        Some(Step::Message(message))
    }

    /// The message before, with one byte changed.
    fn changed(&mut self) -> Option<Vec<u8>> {
        let mut message = std::mem::take(&mut self.last);
        let (index, value) = (usize::from(self.byte()?), self.byte()?);
        if let Some(byte) = message.get_mut(index) {
            *byte = value;
        }
        Some(message)
    }

    fn begin(&mut self) -> Option<Vec<u8>> {
        let lsn = self.byte()?;
        self.open = Some(lsn);
        let mut message = b"B".to_vec();
        message.extend(u64::from(lsn).to_be_bytes());
        message.extend([0; 12]);
        Some(message)
    }

    fn commit(&mut self) -> Option<Vec<u8>> {
        let wrong = u64::from(self.byte()? == 0);
        let lsn = u64::from(self.open.take().unwrap_or_default()) + wrong;
        let mut message = b"C\0".to_vec();
        message.extend(lsn.to_be_bytes());
        message.extend([0; 16]);
        Some(message)
    }

    /// One of four relations, mostly the outbox, with any of the fields, or in an order that is not theirs.
    fn relation(&mut self) -> Option<Vec<u8>> {
        let choice = self.byte()?;
        let chosen = u16::from_be_bytes([self.byte()?, self.byte()?]);
        let id = choice % 4;
        let mut names: Vec<_> = Field::ALL
            .iter()
            .filter(|field| chosen & 1 << **field as u16 != 0 || **field as u8 <= choice % 8)
            .map(|field| field.name())
            .collect();
        if chosen & 0x8000 != 0 {
            names.push("created_at");
            names.reverse();
        }
        self.widths[usize::from(id)] = Some(names.len());
        let mut message = vec![b'R', 0, 0, 0, id];
        let outbox = choice >> 6 != 0;
        message.extend(if outbox { "aftercommit\0" } else { "public\0" }.as_bytes());
        message.extend(b"outbox\0d");
        message.extend((names.len() as u16).to_be_bytes());
        for name in names {
            message.push(0);
            message.extend(name.as_bytes());
            message.extend([0; 9]);
        }
        Some(message)
    }

    fn insert(&mut self) -> Option<Vec<u8>> {
        let choice = self.byte()?;
        let id = choice % 4;
        let width = match self.widths[usize::from(id)] {
            Some(width) => width + usize::from(choice > 250),
            None if choice > 250 => 2,
            None => return self.relation(),
        };
        let mut message = vec![b'I', 0, 0, 0, id, b'N'];
        message.extend((width as u16).to_be_bytes());
        for _ in 0..width {
            let kind = self.byte()?;
            match kind {
                0 => message.push(b'u'),
                255 => message.push(b'b'),
                1..=20 => message.push(b'n'),
                _ => message.push(b't'),
            }
            if kind == 255 || kind > 20 {
                let mut value = self.bytes(usize::from(kind % 7));
                if kind < 245 {
                    value.iter_mut().for_each(|byte| *byte &= 0x7F);
                }
                message.extend((value.len() as u32).to_be_bytes());
                message.extend(value);
            }
        }
        Some(message)
    }
}
