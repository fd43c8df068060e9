//! Pure: what was committed against what was delivered.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

/// A committed row.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) id: String,
    pub(crate) key: String,
    /// Ascends along a key, in the order of commits.
    pub(crate) seq: i64,
    /// Of all that the row carries.
    pub(crate) hash: String,
}

/// A message, as a worker would get it.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub(crate) id: String,
    pub(crate) key: String,
    pub(crate) seq: i64,
    /// Computed from what has arrived.
    pub(crate) hash: String,
    /// The start of its transaction's commit record.
    pub(crate) lsn: u64,
}

/// The hash of what a row carries. Against accidents, not against forgers.
pub(crate) fn hash(id: &str, key: &str, seq: i64, padding: &str) -> String {
    let mut hasher = DefaultHasher::new();
    (id, key, seq, padding).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

#[derive(Deserialize)]
struct Kwargs<'m> {
    key: &'m str,
    seq: i64,
    padding: &'m str,
}

impl Delivery {
    /// Reads a message of kombu's Redis transport.
    pub(crate) fn of_celery(message: &[u8]) -> Delivery {
        #[derive(Deserialize)]
        struct Envelope<'m> {
            body: &'m str,
            #[serde(borrow)]
            headers: Headers<'m>,
        }
        #[derive(Deserialize)]
        struct Headers<'m> {
            id: &'m str,
            #[serde(rename = "aftercommit-lsn")]
            lsn: &'m str,
        }
        let envelope: Envelope = serde_json::from_slice(message).expect("a message");
        let body = BASE64_STANDARD.decode(envelope.body).expect("base64");
        Delivery::of_call(envelope.headers.id, envelope.headers.lsn, &body)
    }

    /// Reads the body of a call of Celery: args, kwargs and embed.
    pub(crate) fn of_call(id: &str, lsn: &str, body: &[u8]) -> Delivery {
        let (_, kwargs, _): (serde::de::IgnoredAny, Kwargs, serde::de::IgnoredAny) =
            serde_json::from_slice(body).expect("args, kwargs and embed");
        Delivery::new(id, lsn, &kwargs)
    }

    /// Reads kwargs alone.
    pub(crate) fn of_kwargs(id: &str, lsn: &str, kwargs: &[u8]) -> Delivery {
        Delivery::new(id, lsn, &serde_json::from_slice(kwargs).expect("kwargs"))
    }

    /// Reads an object that has kwargs as the only one of its arguments.
    pub(crate) fn of_arguments(id: &str, lsn: &str, object: &[u8]) -> Delivery {
        #[derive(Deserialize)]
        struct Call<'m> {
            #[serde(borrow)]
            args: (Kwargs<'m>,),
        }
        let call: Call = serde_json::from_slice(object).expect("a call");
        Delivery::new(id, lsn, &call.args.0)
    }

    /// Reads the body of an event that carries a call: an object with its kwargs.
    pub(crate) fn of_event(id: &str, lsn: &str, body: &[u8]) -> Delivery {
        #[derive(Deserialize)]
        struct Event<'m> {
            #[serde(borrow)]
            kwargs: Kwargs<'m>,
        }
        let event: Event = serde_json::from_slice(body).expect("an event");
        Delivery::new(id, lsn, &event.kwargs)
    }

    /// Reads a line of the stdout sink.
    pub(crate) fn of_line(line: &str) -> Delivery {
        Delivery::of_object(line.as_bytes())
    }

    /// Reads a row that was written as one object.
    pub(crate) fn of_object(object: &[u8]) -> Delivery {
        #[derive(Deserialize)]
        struct Row<'m> {
            id: &'m str,
            lsn: &'m str,
            #[serde(borrow)]
            kwargs: Kwargs<'m>,
        }
        let row: Row = serde_json::from_slice(object).expect("a row");
        Delivery::new(row.id, row.lsn, &row.kwargs)
    }

    fn new(id: &str, lsn: &str, kwargs: &Kwargs) -> Delivery {
        let (high, low) = lsn.split_once('/').expect("an LSN");
        let half = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
        Delivery {
            hash: hash(id, kwargs.key, kwargs.seq, kwargs.padding),
            id: id.to_owned(),
            key: kwargs.key.to_owned(),
            seq: kwargs.seq,
            lsn: half(high) << 32 | half(low),
        }
    }
}

/// What the checker found.
#[derive(Debug)]
pub(crate) struct Receipt {
    pub(crate) committed: usize,
    /// Messages, with those that came twice.
    pub(crate) delivered: usize,
    /// Committed, not delivered, and not held.
    pub(crate) lost: Vec<String>,
    /// Delivered, and never committed; or not as it was committed.
    pub(crate) invented: Vec<String>,
    /// Messages beyond the first of their id.
    pub(crate) duplicates: usize,
    /// First deliveries that came after a later one of their key.
    pub(crate) disorder: Vec<String>,
}

impl Receipt {
    /// Compares. `deliveries` are in the order in which they came; `held` are ids of held tasks.
    pub(crate) fn new(
        written: &[Written],
        deliveries: &[Delivery],
        held: &HashSet<String>,
    ) -> Receipt {
        let known: HashMap<&str, &Written> =
            written.iter().map(|row| (row.id.as_str(), row)).collect();
        let mut seen: HashSet<&str> = HashSet::new();
        let mut last: HashMap<&str, i64> = HashMap::new();
        let (mut invented, mut disorder) = (Vec::new(), Vec::new());
        let mut duplicates = 0;
        for delivery in deliveries {
            let same = known.get(delivery.id.as_str()).is_some_and(|row| {
                row.key == delivery.key && row.seq == delivery.seq && row.hash == delivery.hash
            });
            if !same {
                invented.push(delivery.id.clone());
                continue;
            }
            if !seen.insert(&delivery.id) {
                duplicates += 1;
                continue;
            }
            let before = last.insert(&delivery.key, delivery.seq);
            if before.is_some_and(|before| before >= delivery.seq) {
                disorder.push(delivery.id.clone());
            }
        }
        let settled = |id: &str| seen.contains(id) || held.contains(id);
        let lost = written.iter().filter(|row| !settled(&row.id));
        Receipt {
            committed: written.len(),
            delivered: deliveries.len(),
            lost: lost.map(|row| row.id.clone()).collect(),
            invented,
            duplicates,
            disorder,
        }
    }

    /// Prints the receipt as one line, and panics unless it is sound: nothing lost, nothing invented, order per key, and
    /// no more duplicates than that.
    pub(crate) fn assert_sound(&self, what: &str, most_duplicates: usize) {
        eprintln!("{what}: {self} (at most {most_duplicates})");
        let first = |ids: &[String]| ids.iter().take(5).cloned().collect::<Vec<_>>();
        assert_eq!(first(&self.lost), [""; 0], "lost; {self}");
        assert_eq!(first(&self.invented), [""; 0], "invented; {self}");
        assert_eq!(first(&self.disorder), [""; 0], "out of order; {self}");
        assert!(self.duplicates <= most_duplicates, "{self}");
        assert!(self.committed > 0, "nothing was committed");
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "committed {}, lost {}, invented {}, out of order {}, duplicates {}",
            self.committed,
            self.lost.len(),
            self.invented.len(),
            self.disorder.len(),
            self.duplicates
        )
    }
}

#[test]
fn the_checker_finds_each_fault() {
    let rows: Vec<(String, &str, i64)> = [("k1", 1), ("k1", 2), ("k2", 1), ("k1", 3)]
        .into_iter()
        .enumerate()
        .map(|(n, (key, seq))| (format!("id{n}"), key, seq))
        .collect();
    let written: Vec<Written> = rows
        .iter()
        .map(|(id, key, seq)| Written {
            id: id.clone(),
            key: (*key).to_owned(),
            seq: *seq,
            hash: hash(id, key, *seq, ""),
        })
        .collect();
    let delivery = |n: usize| {
        let row = &written[n];
        Delivery {
            id: row.id.clone(),
            key: row.key.clone(),
            seq: row.seq,
            hash: row.hash.clone(),
            lsn: 0,
        }
    };
    let check = |order: &[usize]| {
        let deliveries: Vec<Delivery> = order.iter().map(|n| delivery(*n)).collect();
        let receipt = Receipt::new(&written, &deliveries, &HashSet::new());
        (
            receipt.lost.len(),
            receipt.invented.len(),
            receipt.disorder.len(),
            receipt.duplicates,
        )
    };
    assert_eq!(check(&[0, 1, 2, 3]), (0, 0, 0, 0));
    assert_eq!(
        check(&[2, 0, 1, 3]),
        (0, 0, 0, 0),
        "keys are free of each other"
    );
    assert_eq!(
        check(&[0, 1, 0, 1, 2, 3]),
        (0, 0, 0, 2),
        "repeats, in order or not"
    );
    assert_eq!(check(&[0, 1, 2]), (1, 0, 0, 0), "lost");
    assert_eq!(check(&[1, 0, 2, 3]), (0, 0, 1, 0), "out of order");

    let mut deliveries: Vec<Delivery> = (0..4).map(delivery).collect();
    deliveries[1].hash = hash("id1", "k1", 2, "other");
    deliveries.push(Delivery {
        id: "id9".to_owned(),
        ..delivery(3)
    });
    let receipt = Receipt::new(&written, &deliveries, &HashSet::new());
    assert_eq!(
        receipt.invented,
        ["id1", "id9"],
        "altered, and never committed"
    );
    assert_eq!(receipt.lost, ["id1"]);
    let held = HashSet::from(["id1".to_owned()]);
    assert!(Receipt::new(&written, &deliveries, &held).lost.is_empty());
}
