//! Pure: what a worker's line means.

use std::time::Duration;

use crate::sink::{Cause, Outcome};
use crate::units::parse_duration;

/// Characters of a worker's own words, at most.
const WORDS: usize = 200;
/// No worker puts a task off for longer.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The outcome that a line stands for; `None`, if it is no answer.
pub(super) fn parse(line: &[u8]) -> Option<Outcome> {
    let line = std::str::from_utf8(line).ok()?.trim();
    let (verb, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim_start();
    match verb {
        "ok" if rest.is_empty() => Some(Outcome::Delivered),
        "reject" => Some(Outcome::Reject(cause("the worker rejects it", rest))),
        "retry" => {
            let (first, words) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            Some(match pause(first) {
                Some(pause) => Outcome::RetryIn(pause, cause("the worker puts it off", words)),
                None => Outcome::Retry(cause("the worker puts it off", rest)),
            })
        }
        _ => None,
    }
}

/// `30s` as in the configuration, or a number of seconds.
fn pause(text: &str) -> Option<Duration> {
    let pause = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => parse_duration(text).ok()?,
    };
    Some(pause.min(LONGEST))
}

fn cause(what: &str, words: &str) -> Cause {
    match words.trim() {
        "" => Cause::new(what.to_owned()),
        words => Cause::new(format!("{what}: {}", printable(words, WORDS))),
    }
}

/// At most `most` characters of a text, with nothing in it that a terminal would act upon.
pub(super) fn printable(text: &str, most: usize) -> String {
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(most).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_one_meaning() {
        let seconds = Duration::from_secs;
        let retry = |words: &'static str| Outcome::Retry(Cause::new(words));
        let retry_in = |pause, words: &'static str| Outcome::RetryIn(pause, Cause::new(words));
        let reject = |words: &'static str| Outcome::Reject(Cause::new(words));
        for (line, expected) in [
            ("ok", Some(Outcome::Delivered)),
            (" ok\r", Some(Outcome::Delivered)),
            ("retry", Some(retry("the worker puts it off"))),
            (
                "retry 30",
                Some(retry_in(seconds(30), "the worker puts it off")),
            ),
            (
                "retry 5m",
                Some(retry_in(seconds(300), "the worker puts it off")),
            ),
            (
                "retry 999d",
                Some(retry_in(LONGEST, "the worker puts it off")),
            ),
            (
                "retry 5s the lock is taken",
                Some(retry_in(
                    seconds(5),
                    "the worker puts it off: the lock is taken",
                )),
            ),
            ("retry\tlater", Some(retry("the worker puts it off: later"))),
            ("reject", Some(reject("the worker rejects it"))),
            (
                "reject no such\u{1b}[31m order",
                Some(reject("the worker rejects it: no such [31m order")),
            ),
            ("", None),
            ("ok then", None),
            ("OK", None),
            ("okay", None),
            ("retrying", None),
            ("{\"ok\": true}", None),
        ] {
            assert_eq!(parse(line.as_bytes()), expected, "{line:?}");
        }
        assert_eq!(parse(b"ok \xff"), None);
        let long = format!("reject {}", "ż".repeat(10_000));
        let Some(Outcome::Reject(cause)) = parse(long.as_bytes()) else {
            panic!("it is an answer");
        };
        assert!(cause.to_string().chars().count() < 2 * WORDS);
    }
}
