//! Timestamps: from the text that Postgres writes, to the text that Python reads.

use crate::pg::Timestamp;

const DAY: i64 = 86_400_000_000;
/// Days from 0000-03-01 to 2000-01-01 in the proleptic Gregorian calendar.
const EPOCH_FROM_MARCH_0: i64 = 730_425;

/// A `timestamptz`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Moment {
    /// `-infinity`
    Past,
    /// A point in time.
    At(Timestamp),
    /// `infinity`
    Never,
}

/// Reads what Postgres writes with `DateStyle = ISO`: `2026-11-22 00:14:24.02487+00`, `infinity`, `-infinity`.
///
/// Without an offset (a column of type `timestamp`) it is UTC. `None` for anything else, and for years BC.
pub(crate) fn parse_postgres(text: &str) -> Option<Moment> {
    match text {
        "infinity" => return Some(Moment::Never),
        "-infinity" => return Some(Moment::Past),
        _ => {}
    }
    let (date, clock) = text.split_once(' ')?;
    let mut parts = date.splitn(3, '-');
    let year = number(parts.next()?, 4, 6)?;
    let month = number(parts.next()?, 2, 2)?;
    let day = number(parts.next()?, 2, 2)?;
    let (clock, offset) = match clock.find(['+', '-']) {
        Some(at) => (
            clock.get(..at)?,
            seconds(clock.get(at + 1..)?)? * sign(clock, at),
        ),
        None => (clock, 0),
    };
    let (whole, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || fraction.len() > 6 {
        return None;
    }
    let mut micros = 0;
    if !fraction.is_empty() {
        micros = number(fraction, 1, 6)? * 10_i64.pow(6 - fraction.len() as u32);
    }
    let seconds = seconds(whole)? - offset;
    let days = days_from_civil(year, month, day);
    let at = days
        .checked_mul(DAY)?
        .checked_add(seconds * 1_000_000 + micros)?;
    Some(Moment::At(Timestamp(at)))
}

fn sign(clock: &str, at: usize) -> i64 {
    if clock.as_bytes().get(at) == Some(&b'-') {
        -1
    } else {
        1
    }
}

/// `HH`, `HH:MM` or `HH:MM:SS`
fn seconds(text: &str) -> Option<i64> {
    let mut total = 0;
    let mut unit = 3600;
    for part in text.splitn(3, ':') {
        total += number(part, 2, 2)? * unit;
        unit /= 60;
    }
    Some(total)
}

fn number(text: &str, min: usize, max: usize) -> Option<i64> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    if !digits || text.len() < min || text.len() > max {
        return None;
    }
    text.parse().ok()
}

/// Appends `2026-11-22T00:14:24.024870+00:00`, the form that Celery itself writes.
///
/// False, and nothing is written, where Python has no such date: outside of the years 1 to 9999.
pub(crate) fn write_iso(out: &mut Vec<u8>, at: Timestamp) -> bool {
    let (days, micros) = (at.0.div_euclid(DAY), at.0.rem_euclid(DAY));
    let (year, month, day) = civil_from_days(days);
    if !(1..=9999).contains(&year) {
        return false;
    }
    let second = micros / 1_000_000;
    let mut text = *b"0000-00-00T00:00:00.000000+00:00";
    for (start, len, value) in [
        (0, 4, year),
        (5, 2, month),
        (8, 2, day),
        (11, 2, second / 3600),
        (14, 2, second / 60 % 60),
        (17, 2, second % 60),
        (20, 6, micros % 1_000_000),
    ] {
        let mut rest = value;
        for digit in text.iter_mut().skip(start).take(len).rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }
    out.extend_from_slice(&text);
    true
}

/// Days since 2000-01-01. Years begin in March, so that the leap day is the last one.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - EPOCH_FROM_MARCH_0
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + EPOCH_FROM_MARCH_0;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year_of_era;
    if month < 10 {
        (year, month + 3, day)
    } else {
        (year + 1, month - 9, day)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_postgres_and_writes_python() {
        for (postgres, python) in [
            ("2000-01-01 00:00:00+00", "2000-01-01T00:00:00.000000+00:00"),
            (
                "2026-11-22 00:14:24.02487+00",
                "2026-11-22T00:14:24.024870+00:00",
            ),
            (
                "2024-02-29 23:59:59.999999+00",
                "2024-02-29T23:59:59.999999+00:00",
            ),
            ("1999-12-31 23:59:59+00", "1999-12-31T23:59:59.000000+00:00"),
            ("2100-03-01 00:00:00+00", "2100-03-01T00:00:00.000000+00:00"),
            (
                "2031-02-03 05:05:06.789012+01",
                "2031-02-03T04:05:06.789012+00:00",
            ),
            (
                "2031-02-03 04:05:06-03:30",
                "2031-02-03T07:35:06.000000+00:00",
            ),
            (
                "1850-06-01 00:00:00+01:24:12",
                "1850-05-31T22:35:48.000000+00:00",
            ),
            ("2031-02-03 04:05:06", "2031-02-03T04:05:06.000000+00:00"),
            ("0001-01-01 00:00:00+00", "0001-01-01T00:00:00.000000+00:00"),
            (
                "9999-12-31 23:59:59.5+00",
                "9999-12-31T23:59:59.500000+00:00",
            ),
        ] {
            let Some(Moment::At(at)) = parse_postgres(postgres) else {
                panic!("{postgres}");
            };
            let mut out = Vec::new();
            assert!(write_iso(&mut out, at));
            assert_eq!(String::from_utf8(out).unwrap(), python);
        }
        assert_eq!(
            parse_postgres("2000-01-01 00:00:01+00"),
            Some(Moment::At(Timestamp(1_000_000)))
        );
        assert_eq!(parse_postgres("infinity"), Some(Moment::Never));
        assert_eq!(parse_postgres("-infinity"), Some(Moment::Past));
    }

    #[test]
    fn refuses_what_postgres_does_not_write_and_python_cannot_read() {
        for bad in [
            "",
            "now",
            "2026-11-22",
            "2026-11-22T00:14:24Z",
            "0044-03-15 00:00:00+00 BC",
            "2026-13-01 00:00:00+00",
            "2026-00-01 00:00:00+00",
            "2026-11-32 00:00:00+00",
            "2026-11-22 0:14:24+00",
            "2026-11-22 00:14:24.1234567+00",
            "2026-11-22 00:14:24.+",
            "2026-11-22 00:14:24+",
            "22/11/2026 00:14:24 UTC",
            "2026-11-22 00:14:24+00 BC",
        ] {
            assert_eq!(parse_postgres(bad), None, "{bad:?}");
        }
        for far in [Timestamp(i64::MAX), Timestamp(i64::MIN)] {
            let mut out = Vec::new();
            assert!(!write_iso(&mut out, far));
            assert!(out.is_empty());
        }
        let Some(Moment::At(at)) = parse_postgres("10000-01-01 00:00:00+00") else {
            panic!("a year of five digits");
        };
        assert!(!write_iso(&mut Vec::new(), at));
    }
}
