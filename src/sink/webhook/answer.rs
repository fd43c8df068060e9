//! Pure: what the answer of a receiver means for the task. The table stands at the head of the room.

use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use hyper::header::{DATE, HeaderMap, RETRY_AFTER};

use crate::sink::{Cause, Outage, Outcome};

/// No receiver puts a task off for longer.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// What an answer means: an outcome for its task, or that the receiver takes nothing from us at all.
///
/// # Errors
/// It does not let us in.
pub(super) fn judge(
    status: StatusCode,
    headers: &HeaderMap,
    host: &str,
    now: SystemTime,
) -> Result<Outcome, Outage> {
    let says = |words: &str| Cause::new(format!("{host} answers {}{words}", status.as_u16()));
    Ok(match status.as_u16() {
        200..=299 => Outcome::Delivered,
        300..=399 => Outcome::Retry(says(
            ", a redirect, which is not followed: set url to the new place",
        )),
        401 | 407 => {
            return Err(Outage::new(says(
                ", it does not let us in: see secret and extra_headers",
            )));
        }
        403 | 404 | 405 | 408 | 409 | 421 | 423 | 425 | 429 | 500.. => {
            let cause = says("");
            match retry_after(headers, now) {
                Some(pause) => Outcome::RetryIn(pause, cause),
                None => Outcome::Retry(cause),
            }
        }
        400..=499 => Outcome::Reject(says("")),
        _ => Outcome::Retry(says(", which is no answer")),
    })
}

/// `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3). What is neither does not count.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = match text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are a long time, too.
        true if !text.is_empty() => Duration::from_secs(text.parse().unwrap_or(u64::MAX)),
        _ => {
            let at = httpdate::parse_http_date(text).ok()?;
            // By the receiver's clock, where it tells what that shows.
            let date = headers.get(DATE).and_then(|date| date.to_str().ok());
            let now = date
                .and_then(|date| httpdate::parse_http_date(date).ok())
                .unwrap_or(now);
            at.duration_since(now).unwrap_or_default()
        }
    };
    Some(pause.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, retry_after: Option<&str>) -> Result<Outcome, Outage> {
        let mut headers = HeaderMap::new();
        if let Some(text) = retry_after {
            headers.insert(RETRY_AFTER, text.parse().expect("a header"));
        }
        let status = StatusCode::from_u16(status).expect("a status");
        // Sun, 06 Nov 1994 08:49:37 GMT
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        judge(status, &headers, "example.com", now)
    }

    #[test]
    fn every_status_has_one_meaning() {
        for status in 100..=999 {
            let outcome = answer(status, None);
            let as_expected = match status {
                200..=299 => outcome == Ok(Outcome::Delivered),
                401 | 407 => outcome.is_err(),
                403 | 404 | 405 | 408 | 409 | 421 | 423 | 425 | 429 => {
                    matches!(outcome, Ok(Outcome::Retry(_)))
                }
                400..=499 => matches!(outcome, Ok(Outcome::Reject(_))),
                _ => matches!(outcome, Ok(Outcome::Retry(_))),
            };
            assert!(as_expected, "{status}: {outcome:?}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let day = 24 * 3600;
        for (text, seconds) in [
            ("0", Some(0)),
            ("120", Some(120)),
            (" 7 ", Some(7)),
            ("86401", Some(day)),
            ("99999999999999999999999999", Some(day)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sunday, 06-Nov-94 08:50:37 GMT", Some(60)),
            ("Sun Nov  6 08:50:37 1994", Some(60)),
            ("Sun, 06 Nov 1994 08:49:36 GMT", Some(0)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(day)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            for status in [429, 503, 500, 408] {
                match (answer(status, Some(text)), seconds) {
                    (Ok(Outcome::RetryIn(pause, _)), Some(seconds)) => {
                        assert_eq!(pause, Duration::from_secs(seconds), "{text}")
                    }
                    (Ok(Outcome::Retry(_)), None) => {}
                    (other, _) => panic!("{text}: {other:?}"),
                }
            }
        }
        let mut headers = HeaderMap::new();
        let soon = "Sun, 06 Nov 1994 08:50:37 GMT".parse().expect("a header");
        let date = "Sun, 06 Nov 1994 08:50:00 GMT".parse().expect("a header");
        headers.extend([(RETRY_AFTER, soon), (DATE, date)]);
        let pause = retry_after(&headers, SystemTime::UNIX_EPOCH);
        assert_eq!(
            pause,
            Some(Duration::from_secs(37)),
            "by the receiver's clock"
        );
        assert_eq!(answer(200, Some("5")), Ok(Outcome::Delivered));
        assert!(matches!(answer(410, Some("5")), Ok(Outcome::Reject(_))));
    }
}
