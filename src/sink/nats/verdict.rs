//! What an answer of JetStream means for the task: the outcome table, pure (nats-server, `server/errors.json`).
//!
//! | answer | means |
//! |---|---|
//! | a sequence number | stored |
//! | `duplicate` with a sequence number | stored before, under the same id |
//! | `duplicate` with 0; 10158 | on its way to the other replicas, or failed there: retried until the window is over |
//! | 10070 | the guard refused it: sent again, in its turn |
//! | 10054, 10097 | the message or its headers are too large: rejected |
//! | 10077 with "per subject" | its subject is full: retried |
//! | 10077, 10047, 10023, 10028, 10002 | the stream or the disk is full: retried |
//! | 10035, 10039, 10009, 10008, 10118, 10167, 503 | JetStream or its stream is not there: retried |
//! | any other | its subject belongs to another stream, the stream is sealed, ...: retried |
//!
//! A failure is of the *place* where it would meet every task as well; if nothing of a batch could be stored, the whole sink
//! counts as away, and nobody's attempts are counted.

use serde::Deserialize;

use super::flow::Answer;
use super::protocol::Message;
use crate::sink::{Cause, Outcome};

/// Sees to it that words of the server do not fill the log.
const MAX_WORDS: usize = 200;

/// An answer, judged.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) answer: Answer,
    pub(super) about: About,
}

/// What is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// Nothing, or the task.
    Task,
    /// The stream, its storage, or JetStream.
    Place,
    /// One or the other: a look at the stream tells.
    Doubt,
    /// It is a replicated stream whose ids wait for each other: guards must not be used with it.
    Replicas,
}

#[derive(Deserialize)]
struct Ack<'m> {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    #[serde(borrow)]
    error: Option<Refusal<'m>>,
}

#[derive(Deserialize)]
struct Refusal<'m> {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    err_code: u32,
    #[serde(default, borrow)]
    description: std::borrow::Cow<'m, str>,
}

/// Judges the answer to one message.
pub(super) fn judge(message: &Message<'_>) -> Verdict {
    if message.status() == Some(503) {
        return failed(
            About::Doubt,
            Outcome::Retry(Cause::new(
                "no stream takes its subject, or JetStream is off",
            )),
        );
    }
    let Ok(ack) = serde_json::from_slice::<Ack<'_>>(message.payload) else {
        let words = "what answers for its subject is no stream: another program listens there, too";
        return failed(About::Task, Outcome::Retry(Cause::new(words)));
    };
    match ack.error {
        Some(refusal) => refused(&refusal),
        None if ack.seq > 0 => Verdict {
            answer: Answer::Stored,
            about: About::Task,
        },
        None if ack.duplicate => in_process(),
        None => failed(
            About::Task,
            Outcome::Retry(Cause::new("the stream's answer has no sequence number")),
        ),
    }
}

fn refused(refusal: &Refusal<'_>) -> Verdict {
    let words = || {
        let words: String = refusal.description.chars().take(MAX_WORDS).collect();
        Cause::new(format!("{words} ({})", refusal.err_code))
    };
    match refusal.err_code {
        10070 => Verdict {
            answer: Answer::Overtaken,
            about: About::Task,
        },
        10158 => in_process(),
        10054 | 10097 => failed(About::Task, Outcome::Reject(words())),
        10077 if refusal.description.contains("per subject") => {
            failed(About::Task, Outcome::Retry(words()))
        }
        10002 | 10008 | 10009 | 10023 | 10028 | 10035 | 10039 | 10047 | 10077 | 10118 | 10167 => {
            failed(About::Place, Outcome::Retry(words()))
        }
        _ if refusal.code == 503 => failed(About::Place, Outcome::Retry(words())),
        _ => failed(About::Task, Outcome::Retry(words())),
    }
}

fn in_process() -> Verdict {
    let words = "a replicated stream has its id on the way, and does not say that it is stored";
    failed(About::Replicas, Outcome::Retry(Cause::new(words)))
}

fn failed(about: About, outcome: Outcome) -> Verdict {
    Verdict {
        answer: Answer::Failed(outcome),
        about,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &str, payload: &str) -> (&'static str, About) {
        let message = Message {
            subject: "",
            headers: headers.as_bytes(),
            payload: payload.as_bytes(),
        };
        let Verdict { answer, about } = judge(&message);
        let answer = match answer {
            Answer::Stored => "stored",
            Answer::Overtaken => "overtaken",
            Answer::Failed(Outcome::Reject(_)) => "reject",
            Answer::Failed(Outcome::Retry(_)) => "retry",
            Answer::Failed(_) => "other",
        };
        (answer, about)
    }

    fn error(code: u16, err_code: u32, description: &str) -> (&'static str, About) {
        let error =
            serde_json::json!({"code": code, "err_code": err_code, "description": description});
        of(
            "",
            &serde_json::json!({"stream": "S", "seq": 0, "error": error}).to_string(),
        )
    }

    #[test]
    fn the_outcome_table() {
        use About::{Doubt, Place, Replicas, Task};
        assert_eq!(of("", r#"{"stream":"S","seq":7}"#), ("stored", Task));
        assert_eq!(
            of("", r#"{"stream":"S","seq":7,"duplicate": true}"#),
            ("stored", Task)
        );
        assert_eq!(
            of("", r#"{"stream":"S","seq":0,"duplicate": true}"#),
            ("retry", Replicas)
        );
        assert_eq!(of("", r#"{"stream":"S"}"#), ("retry", Task));
        assert_eq!(of("", "+OK"), ("retry", Task));
        assert_eq!(of("", ""), ("retry", Task));
        assert_eq!(of("NATS/1.0 503\r\n\r\n", ""), ("retry", Doubt));
        for (code, err_code, description, expected) in [
            (400, 10070, "wrong last msg ID: x", ("overtaken", Task)),
            (
                409,
                10158,
                "duplicate message id is in process",
                ("retry", Replicas),
            ),
            (
                400,
                10054,
                "message size exceeds maximum allowed",
                ("reject", Task),
            ),
            (
                400,
                10097,
                "header size exceeds maximum allowed of 64k",
                ("reject", Task),
            ),
            (503, 10077, "maximum messages exceeded", ("retry", Place)),
            (503, 10077, "maximum bytes exceeded", ("retry", Place)),
            (
                503,
                10077,
                "maximum messages per subject exceeded",
                ("retry", Task),
            ),
            (503, 10023, "insufficient resources", ("retry", Place)),
            (
                500,
                10047,
                "insufficient storage resources available",
                ("retry", Place),
            ),
            (
                400,
                10002,
                "resource limits exceeded for account",
                ("retry", Place),
            ),
            (
                503,
                10039,
                "JetStream not enabled for account",
                ("retry", Place),
            ),
            (503, 0, "raft: not leader", ("retry", Place)),
            (
                400,
                10060,
                "expected stream does not match",
                ("retry", Task),
            ),
            (
                400,
                10109,
                "invalid operation on sealed stream",
                ("retry", Task),
            ),
            (500, 99999, "something new", ("retry", Task)),
        ] {
            assert_eq!(
                error(code, err_code, description),
                expected,
                "{description}"
            );
        }
    }
}
