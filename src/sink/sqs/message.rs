//! Pure: a task as an entry of SendMessageBatch, within the limits of SQS (Developer Guide, "Amazon SQS message quotas").
//!
//! Attributes, all of the type String: `aftercommit-id`, `-task`, `-lsn` and `-committed-at`, the row's headers, and, as long as
//! there is room for ten, `aftercommit-key`, `content-type`, `aftercommit-priority` and `aftercommit-expires-at`.

use std::borrow::Cow;
use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use crate::envelope::Unfit;
use crate::envelope::parcel::{Format, Header, Parcel};
use crate::outbox::{Field, Task};
use crate::pg::{Moment, Timestamp};

/// Body and attributes of a message, and of all messages of a request together, in bytes.
pub(super) const MOST_BYTES: usize = 1 << 20;

/// Attributes of a message.
const MOST_ATTRIBUTES: usize = 10;

/// Every attribute's type, which counts as part of the message.
const TYPE: &str = "String";

/// Group and deduplication ids are no longer.
const LONGEST_ID: usize = 128;

/// The longest delay of a message, in seconds.
pub(super) const LONGEST_DELAY: i64 = 15 * 60;

/// What is sent for a task.
#[derive(Debug)]
pub(super) struct Message<'t> {
    pub(super) body: String,
    pub(super) attributes: Vec<Header<'t>>,
    /// Seconds; on standard queues only.
    pub(super) delay: Option<i32>,
    /// Group and deduplication id; on FIFO queues only.
    pub(super) fifo: Option<(Cow<'t, str>, Cow<'t, str>)>,
}

impl<'t> Message<'t> {
    /// Checks a task and makes its message. `now` is needed for the delay.
    ///
    /// # Errors
    /// Says which column is unfit.
    pub(super) fn new(
        task: &'t Task,
        format: Format,
        source: &str,
        fifo: bool,
        now: Timestamp,
    ) -> Result<Message<'t>, Unfit> {
        let Parcel { value, headers } = Parcel::new(format, source, task)?;
        let body = String::from_utf8(value.into_owned())
            .map_err(|_| Unfit::new("body is no text, and SQS takes nothing else"))?;
        if body.is_empty() {
            return Err(Unfit::new(
                "the message is empty, and SQS takes none that is",
            ));
        }
        check_characters(&body).map_err(|words| Unfit::new(format!("the message {words}")))?;
        let message = Message {
            body,
            attributes: attributes(task, headers)?,
            delay: if fifo { None } else { delay(task, now)? },
            fifo: fifo.then(|| group(task)),
        };
        match message.size() {
            size if size > MOST_BYTES => Err(Unfit::new(format!(
                "the message has {size} bytes with its attributes, and SQS takes 1 MiB"
            ))),
            _ => Ok(message),
        }
    }

    /// As SQS counts it: the body, and the names, types and values of the attributes.
    pub(super) fn size(&self) -> usize {
        let attribute = |(name, value): &Header<'_>| name.len() + TYPE.len() + value.len();
        self.body.len() + self.attributes.iter().map(attribute).sum::<usize>()
    }
}

fn attributes<'t>(task: &'t Task, headers: Vec<Header<'t>>) -> Result<Vec<Header<'t>>, Unfit> {
    let is_optional = |name: &str| {
        matches!(
            name,
            "content-type" | "aftercommit-priority" | "aftercommit-expires-at"
        )
    };
    let (optional, mut taken): (Vec<Header<'t>>, Vec<Header<'t>>) =
        headers.into_iter().partition(|(name, _)| is_optional(name));
    let ours = |name: &str| name.starts_with("aftercommit-");
    for (name, value) in &taken {
        if !ours(name) {
            check_name(name)?;
        }
        let named = |words: &str| Unfit::new(format!("headers.{name} {words}"));
        if value.is_empty() && !ours(name) {
            return Err(named("is empty, and SQS takes no empty attribute"));
        }
        check_characters(value).map_err(named)?;
    }
    taken.retain(|(_, value)| !value.is_empty());
    if taken.len() > MOST_ATTRIBUTES {
        return Err(Unfit::new(
            "headers has more than six members: a message on SQS has ten attributes, and four are ours",
        ));
    }
    let key = task.text(Field::Key);
    let key = key.filter(|key| !key.is_empty() && check_characters(key).is_ok());
    taken.extend(
        key.map(|key| ("aftercommit-key".into(), key.into()))
            .into_iter()
            .chain(optional)
            .filter(|(_, value)| check_characters(value).is_ok())
            .take(MOST_ATTRIBUTES - taken.len()),
    );
    Ok(taken)
}

/// An attribute's name: letters, digits, dashes, underscores and dots, and not one of Amazon's.
fn check_name(name: &str) -> Result<(), Unfit> {
    let is_good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let begins = |prefix: &str| {
        let start = name.get(..prefix.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    let dots = name.starts_with('.') || name.ends_with('.') || name.contains("..");
    if !name.bytes().all(is_good) || dots || begins("aws.") || begins("amazon.") {
        return Err(Unfit::new(format!(
            "headers.{name} cannot be an attribute's name on SQS: letters, digits, dashes, underscores and single dots, \
             not beginning with AWS. or Amazon."
        )));
    }
    Ok(())
}

/// XML's characters: SQS refuses a message with another one.
fn check_characters(text: &str) -> Result<(), &'static str> {
    let is_good = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..);
    match text.chars().all(is_good) {
        true => Ok(()),
        false => {
            Err("has a character in it that SQS refuses: a control character, U+FFFE or U+FFFF")
        }
    }
}

/// Seconds until `run_at`, rounded up. What is further ahead than SQS can wait was held until it is not.
fn delay(task: &Task, now: Timestamp) -> Result<Option<i32>, Unfit> {
    let Some(text) = task.get(Field::RunAt) else {
        return Ok(None);
    };
    let at = match Moment::parse(text) {
        Ok(Moment::At(at)) => at,
        Ok(Moment::Past) => return Ok(None),
        Ok(Moment::Never) => return Err(Unfit::new("run_at is infinity")),
        Err(defect) => return Err(Unfit::new(format!("run_at is {defect}"))),
    };
    let ahead = at.0.saturating_sub(now.0).max(0);
    let seconds = ahead.saturating_add(999_999) / 1_000_000;
    Ok(i32::try_from(seconds.min(LONGEST_DELAY))
        .ok()
        .filter(|s| *s > 0))
}

/// The group is the key, or, of a task without one, its own; repeats are known by the task's id.
fn group(task: &Task) -> (Cow<'_, str>, Cow<'_, str>) {
    let id = || fitting(task.id());
    let group = match task.key() {
        None => id(),
        Some(_) => fitting(task.text(Field::Key).unwrap_or_default()),
    };
    (group, id())
}

/// As it is, where SQS takes it for an id: visible ASCII, 128 at most. Else its hash, which is the same each time.
fn fitting(text: &str) -> Cow<'_, str> {
    let fits = (1..=LONGEST_ID).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if fits {
        return Cow::Borrowed(text);
    }
    let mut hash = String::from("sha256-");
    for byte in Sha256::digest(text.as_bytes()) {
        // Writing to a String does not fail.
        let _ = write!(hash, "{byte:02x}");
    }
    Cow::Owned(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::Position;

    fn task(fields: &[(Field, &str)]) -> Task {
        let all = [(Field::Id, "7"), (Field::Task, "shop.paid")];
        let all = all.into_iter().chain(fields.iter().copied());
        Task::from_fields(all, Position::default(), Timestamp(0))
    }

    fn made(fields: &[(Field, &str)], fifo: bool) -> Result<String, String> {
        let task = task(fields);
        let message = Message::new(&task, Format::Payload, "", fifo, Timestamp(0));
        let message = message.map_err(|unfit| unfit.to_string())?;
        let names: Vec<&str> = message
            .attributes
            .iter()
            .map(|(name, _)| name.as_ref())
            .collect();
        let shown = format!("{} {:?} {:?}", names.join(","), message.delay, message.fifo);
        Ok(shown.replace("aftercommit-", "ac-"))
    }

    #[test]
    fn attributes_as_there_is_room() {
        let payload = (Field::Payload, "1");
        let key = (Field::Key, "k");
        let ours = "ac-id,ac-task,ac-lsn,ac-committed-at";
        let shown = |more: &str| format!("{ours}{more} None None");
        assert_eq!(made(&[payload], false).unwrap(), shown(",content-type"));
        assert_eq!(
            made(&[payload, key, (Field::Priority, "3")], false).unwrap(),
            shown(",ac-key,content-type,ac-priority")
        );
        let four = (Field::Headers, "{\"a\": 1, \"b\": 1, \"c\": 1, \"d\": 1}");
        assert_eq!(
            made(&[payload, key, four, (Field::Priority, "3")], false).unwrap(),
            shown(",a,b,c,d,ac-key,content-type")
        );
        let seven = "{\"a\": 1, \"b\": 1, \"c\": 1, \"d\": 1, \"e\": 1, \"f\": 1, \"g\": 1}";
        let error = made(&[payload, (Field::Headers, seven)], false).unwrap_err();
        assert!(error.contains("more than six"), "{error}");
    }

    #[test]
    fn groups_and_delays() {
        let payload = (Field::Payload, "1");
        let end = |fields: &[(Field, &str)], fifo| {
            let shown = made(fields, fifo).unwrap();
            shown.split_once(' ').unwrap().1.to_owned()
        };
        assert_eq!(end(&[payload], true), "None Some((\"7\", \"7\"))");
        assert_eq!(
            end(&[payload, (Field::Key, "order:7")], true),
            "None Some((\"order:7\", \"7\"))"
        );
        for odd in ["", "a b", "ä", &"x".repeat(129)] {
            let shown = end(&[payload, (Field::Key, odd)], true);
            assert!(shown.starts_with("None Some((\"sha256-"), "{shown}");
        }
        for (at, delay) in [
            ("2000-01-01 00:00:00+00", "None None"),
            ("1999-01-01 00:00:00+00", "None None"),
            ("2000-01-01 00:00:00.000001+00", "Some(1) None"),
            ("2000-01-01 00:02:00+00", "Some(120) None"),
            ("2000-01-01 00:15:00.5+00", "Some(900) None"),
            ("-infinity", "None None"),
        ] {
            assert_eq!(end(&[payload, (Field::RunAt, at)], false), delay, "{at}");
        }
    }

    #[test]
    fn what_sqs_would_refuse_is_refused_in_words() {
        let large = format!("\"{}\"", "x".repeat(MOST_BYTES));
        let below = format!("\"{}\"", "x".repeat(MOST_BYTES - 300));
        assert!(made(&[(Field::Payload, &below)], false).is_ok());
        for (field, value, words) in [
            (Field::Payload, large.as_str(), "1 MiB"),
            (Field::Payload, "\"\u{FFFE}\"", "U+FFFE"),
            (Field::Body, "\\xff", "no text"),
            (Field::Body, "\\x", "is empty"),
            (Field::Body, "\\x6100", "control character"),
            (
                Field::Headers,
                "{\"a\": \"\\u0000\"}",
                "headers.a has a character",
            ),
            (Field::Headers, "{\"a\": \"\"}", "headers.a is empty"),
            (Field::Headers, "{\"AWS.a\": 1}", "attribute's name"),
            (Field::Headers, "{\"a..b\": 1}", "attribute's name"),
            (Field::Headers, "{\"a/b\": 1}", "attribute's name"),
            (Field::RunAt, "tomorrow", "run_at is"),
        ] {
            let mut fields = vec![(field, value)];
            if !matches!(field, Field::Payload | Field::Body) {
                fields.push((Field::Payload, "1"));
            }
            let error = made(&fields, false).unwrap_err();
            assert!(error.contains(words), "{field:?} {words}: {error}");
        }
    }
}
