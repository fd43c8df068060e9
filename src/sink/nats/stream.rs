//! What a stream says of itself, pure (NATS documentation, "JetStream API": STREAM.INFO).

use serde::Deserialize;

use super::protocol::{self, Message};

/// The level of the subject that answers come to, below the inbox; the question's number follows.
const REPLY: &str = ".stream.";

/// Appends the question, under its number on this connection: an answer to an earlier one may tell what is over.
pub(super) fn write_request(
    out: &mut Vec<u8>,
    api_prefix: &str,
    stream: &str,
    inbox: &str,
    number: u64,
) {
    let subject = format!("{api_prefix}.STREAM.INFO.{stream}");
    let reply = format!("{inbox}{REPLY}{number}");
    protocol::write_publish(out, &subject, &reply, b"NATS/1.0\r\n\r\n", &[]);
}

/// The number of the question that is answered under this subject.
pub(super) fn answered(subject: &str, inbox: &str) -> Option<u64> {
    let number = subject.strip_prefix(inbox)?.strip_prefix(REPLY)?;
    number.parse().ok()
}

/// What a look at a stream has shown.
#[derive(Debug)]
pub(super) enum Look {
    There(Box<Stream>),
    /// It is not there, or JetStream is not.
    Absent(String),
    /// It does not tell.
    Unknown(String),
}

/// A stream, as far as it concerns us.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Stream {
    pub(super) config: Config,
    pub(super) state: State,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Config {
    pub(super) name: String,
    pub(super) subjects: Vec<String>,
    pub(super) retention: String,
    pub(super) discard: String,
    pub(super) storage: String,
    pub(super) num_replicas: u32,
    pub(super) max_msgs: i64,
    pub(super) max_bytes: i64,
    pub(super) max_msgs_per_subject: i64,
    /// Nanoseconds.
    pub(super) max_age: u64,
    pub(super) max_msg_size: i64,
    /// Nanoseconds.
    pub(super) duplicate_window: u64,
    pub(super) no_ack: bool,
    pub(super) sealed: bool,
    pub(super) mirror: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct State {
    pub(super) consumer_count: u32,
}

#[derive(Deserialize)]
struct Refused {
    error: Error,
}

#[derive(Deserialize)]
struct Error {
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

impl Look {
    pub(super) fn of(message: &Message<'_>) -> Look {
        if message.status() == Some(503) {
            return Look::Absent("JetStream is off, or not for our account".to_owned());
        }
        if let Ok(Refused { error }) = serde_json::from_slice(message.payload) {
            let words = format!("{} ({})", error.description, error.err_code);
            return Look::Absent(words);
        }
        match serde_json::from_slice(message.payload) {
            Ok(stream) => Look::There(Box::new(stream)),
            Err(_) => Look::Unknown("what answers is not JetStream".to_owned()),
        }
    }

    /// Whether guards may be used. With replicas a message that fails leaves its id behind, as if it were stored or about to
    /// be, and is refused under it until the window is over (nats-server 2.10 to 2.14): there, nothing is sent that may fail.
    pub(super) fn takes_guards(&self) -> bool {
        matches!(self, Look::There(stream) if stream.config.num_replicas == 1)
    }
}
