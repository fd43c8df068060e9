//! A reader of AMQP's properties, not that of the broker's client: what we write is read by somebody else.

use serde_json::{Value, json};

/// A value of a field table, with the type that it had there.
pub(super) enum Typed {
    Text(String),
    Nothing,
    Integer(char, i64),
    Boolean(bool),
    Double(f64),
    List(Vec<Typed>),
    Table(Vec<(String, Typed)>),
}

impl Typed {
    pub(super) fn value(&self) -> Value {
        match self {
            Typed::Text(text) => json!(text),
            Typed::Nothing => Value::Null,
            Typed::Integer(_, number) => json!(number),
            Typed::Boolean(is) => json!(is),
            Typed::Double(number) => json!(number),
            Typed::List(list) => list.iter().map(Typed::value).collect(),
            Typed::Table(table) => {
                let members = table
                    .iter()
                    .map(|(name, value)| (name.clone(), value.value()));
                Value::Object(members.collect())
            }
        }
    }

    /// As the tap has it: the type's letter, and Python's form of the value.
    pub(super) fn python(&self) -> String {
        let list = |all: Vec<String>| format!("[{}]", all.join(", "));
        match self {
            Typed::Text(text) => format!("'S', '{text}'"),
            Typed::Nothing => "'V', None".to_owned(),
            Typed::Integer(letter, number) => format!("'{letter}', {number}"),
            Typed::Boolean(true) => "'t', True".to_owned(),
            Typed::Boolean(false) => "'t', False".to_owned(),
            Typed::Double(number) => format!("'d', {number:?}"),
            Typed::List(all) => {
                let all = all.iter().map(|value| format!("({})", value.python()));
                format!("'A', {}", list(all.collect()))
            }
            Typed::Table(all) => {
                let all = all
                    .iter()
                    .map(|(name, value)| format!("('{name}', {})", value.python()));
                format!("'F', {}", list(all.collect()))
            }
        }
    }
}

/// The properties of a content header, in the order in which they stand there.
pub(super) struct Properties {
    pub(super) flags: u64,
    pub(super) all: Vec<(&'static str, Typed)>,
}

impl Properties {
    pub(super) fn read(bytes: &[u8]) -> Properties {
        let mut reader = Reader(bytes);
        let flags = reader.number(2);
        let mut all = Vec::new();
        for (bit, name) in [
            (15, "content_type"),
            (14, "content_encoding"),
            (13, "headers"),
            (12, "delivery_mode"),
            (11, "priority"),
            (10, "correlation_id"),
            (9, "reply_to"),
            (8, "expiration"),
            (7, "message_id"),
        ] {
            if flags >> bit & 1 == 1 {
                let value = match name {
                    "headers" => Typed::Table(reader.long().table()),
                    "delivery_mode" | "priority" => Typed::Integer('b', reader.number(1) as i64),
                    _ => Typed::Text(reader.text(1)),
                };
                all.push((name, value));
            }
        }
        assert!(
            reader.0.is_empty(),
            "something stands behind the properties"
        );
        Properties { flags, all }
    }
}

/// Reads what AMQP writes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn number(&mut self, bytes: usize) -> u64 {
        let taken = self.take(bytes).iter();
        taken.fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn text(&mut self, length: usize) -> String {
        let length = self.number(length) as usize;
        String::from_utf8(self.take(length).to_vec()).expect("UTF-8")
    }

    fn long(&mut self) -> Reader<'a> {
        let length = self.number(4) as usize;
        Reader(self.take(length))
    }

    fn value(&mut self) -> Typed {
        match char::from(self.take(1)[0]) {
            'S' => Typed::Text(self.text(4)),
            'V' => Typed::Nothing,
            'I' => Typed::Integer('I', (self.number(4) as u32 as i32).into()),
            'L' => Typed::Integer('L', self.number(8) as i64),
            't' => Typed::Boolean(self.number(1) == 1),
            'd' => Typed::Double(f64::from_bits(self.number(8))),
            'F' => Typed::Table(self.long().table()),
            'A' => {
                let mut inner = self.long();
                let mut list = Vec::new();
                while !inner.0.is_empty() {
                    list.push(inner.value());
                }
                Typed::List(list)
            }
            other => panic!("type {other}"),
        }
    }

    fn table(&mut self) -> Vec<(String, Typed)> {
        let mut table = Vec::new();
        while !self.0.is_empty() {
            table.push((self.text(1), self.value()));
        }
        table
    }
}
