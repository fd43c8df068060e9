//! A point in time, as Postgres counts and writes it.
//!
//! Dates are those of the proleptic Gregorian calendar, as in Postgres (documentation, appendix "Date/Time Support").
//! The arithmetic counts in years that begin on 1 March, so that the leap day is a year's last.

use std::fmt;

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;
/// From 1970-01-01 to 2000-01-01.
const UNIX_EPOCH_TO_OURS: i64 = 10_957 * MICROS_PER_DAY;
/// From 0000-03-01 to 2000-01-01.
const MARCH_OF_YEAR_ZERO_TO_OURS: i64 = 730_425;
const DAYS_PER_ERA: i64 = 146_097;
const YEARS_PER_ERA: i64 = 400;

/// Microseconds since 2000-01-01 00:00:00 UTC, the epoch of Postgres.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// From microseconds since 1970-01-01 00:00:00 UTC; what is out of range becomes the nearest that is in it.
    pub fn from_unix_micros(micros: i64) -> Timestamp {
        Timestamp(micros.saturating_sub(UNIX_EPOCH_TO_OURS))
    }

    /// Microseconds since 1970-01-01 00:00:00 UTC; what is out of range becomes the nearest that is in it.
    pub fn to_unix_micros(self) -> i64 {
        self.0.saturating_add(UNIX_EPOCH_TO_OURS)
    }

    /// `2026-11-22T00:14:24.024870+00:00`: RFC 3339, in UTC, always with microseconds.
    ///
    /// `None` outside of the years 1 to 9999, for which neither RFC 3339 nor Python's `datetime` has a form.
    pub fn rfc3339(self) -> Option<Rfc3339> {
        let (year, month, day) = civil_from_days(self.0.div_euclid(MICROS_PER_DAY));
        if !(1..=9999).contains(&year) {
            return None;
        }
        let micros = self.0.rem_euclid(MICROS_PER_DAY);
        let second = micros / MICROS_PER_SECOND;
        let mut text = *b"0000-00-00T00:00:00.000000+00:00";
        digits(&mut text[0..4], year);
        digits(&mut text[5..7], month);
        digits(&mut text[8..10], day);
        digits(&mut text[11..13], second / 3600);
        digits(&mut text[14..16], second / 60 % 60);
        digits(&mut text[17..19], second % 60);
        digits(&mut text[20..26], micros % MICROS_PER_SECOND);
        Some(Rfc3339(text))
    }
}

/// Writes the last digits of a number that is not negative.
fn digits(place: &mut [u8], mut number: i64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// The text that [`Timestamp::rfc3339`] makes: 32 characters, no allocation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rfc3339([u8; 32]);

impl Rfc3339 {
    /// The text's bytes, all ASCII.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("digits and punctuation are ASCII")
    }
}

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// What a `timestamptz` column can hold: a point in time, or one of the two infinities.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Moment {
    /// `-infinity`: before every point in time.
    Past,
    /// A point in time.
    At(Timestamp),
    /// `infinity`: after every point in time.
    Never,
}

/// The text is not a `timestamptz` as Postgres writes it. Does not hold the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseTimestampError {
    /// Not of the form.
    #[error("not a timestamp of the form 2026-11-22 00:14:24.02487+00")]
    Form,
    /// A timestamp without its offset from UTC: nobody can say when that is.
    #[error("a timestamp without a time zone; the column has to be a timestamptz")]
    NoZone,
    /// Before or after what Postgres can count.
    #[error("a timestamp out of range")]
    Range,
}

impl Moment {
    /// Reads a `timestamptz` as Postgres writes it with `datestyle = ISO`: `2026-11-22 00:14:24.02487+00`, any offset
    /// from UTC, years of more than four digits, a ` BC` at the end, `infinity`, `-infinity`.
    ///
    /// # Errors
    /// Another form, no offset, or out of range.
    pub fn parse(text: &[u8]) -> Result<Moment, ParseTimestampError> {
        match text {
            b"infinity" => Ok(Moment::Never),
            b"-infinity" => Ok(Moment::Past),
            _ => Parser { rest: text }.timestamp().map(Moment::At),
        }
    }
}

struct Parser<'a> {
    rest: &'a [u8],
}

impl Parser<'_> {
    fn timestamp(mut self) -> Result<Timestamp, ParseTimestampError> {
        let year = self.number(4, 6)?;
        self.expect(b'-')?;
        let month = self.number(2, 2)?;
        self.expect(b'-')?;
        let day = self.number(2, 2)?;
        self.expect(b' ')?;
        let hour = self.number(2, 2)?;
        self.expect(b':')?;
        let minute = self.number(2, 2)?;
        self.expect(b':')?;
        let second = self.number(2, 2)?;
        let micros = if self.skip(b'.') { self.fraction()? } else { 0 };
        let offset = self.offset()?;
        // The calendar has no year 0, but the arithmetic has: it is the year 1 BC.
        let astronomical = match self.rest {
            b"" => year,
            b" BC" => 1 - year,
            _ => return Err(ParseTimestampError::Form),
        };
        let in_calendar = year > 0
            && (1..=12).contains(&month)
            && (1..=days_in_month(astronomical, month)).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        if !in_calendar {
            return Err(ParseTimestampError::Form);
        }
        let seconds = hour * 3600 + minute * 60 + second - offset;
        days_from_civil(astronomical, month, day)
            .checked_mul(MICROS_PER_DAY)
            .and_then(|day| day.checked_add(seconds * MICROS_PER_SECOND + micros))
            .map(Timestamp)
            .ok_or(ParseTimestampError::Range)
    }

    /// Seconds east of UTC.
    fn offset(&mut self) -> Result<i64, ParseTimestampError> {
        let (sign, rest) = match self.rest.split_first() {
            Some((b'+', rest)) => (1, rest),
            Some((b'-', rest)) => (-1, rest),
            None | Some((b' ', _)) => return Err(ParseTimestampError::NoZone),
            Some(_) => return Err(ParseTimestampError::Form),
        };
        self.rest = rest;
        let hours = self.number(2, 2)?;
        let mut parts = [0; 2];
        for part in &mut parts {
            if self.skip(b':') {
                *part = self.number(2, 2)?;
            }
        }
        let [minutes, seconds] = parts;
        // Postgres' own limit: less than 16 hours.
        if hours > 15 || minutes > 59 || seconds > 59 {
            return Err(ParseTimestampError::Form);
        }
        Ok(sign * (hours * 3600 + minutes * 60 + seconds))
    }

    /// One to six digits after the point, as microseconds.
    fn fraction(&mut self) -> Result<i64, ParseTimestampError> {
        let before = self.rest.len();
        let value = self.number(1, 6)?;
        let count = before - self.rest.len();
        Ok((count..6).fold(value, |value, _| value * 10))
    }

    /// A number of `min` to `max` digits; as many of them as there are.
    fn number(&mut self, min: usize, max: usize) -> Result<i64, ParseTimestampError> {
        let count = self
            .rest
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        if !(min..=max).contains(&count) {
            return Err(ParseTimestampError::Form);
        }
        let (digits, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(digits
            .iter()
            .fold(0, |value, digit| value * 10 + i64::from(digit - b'0')))
    }

    fn skip(&mut self, byte: u8) -> bool {
        match self.rest.split_first() {
            Some((first, rest)) if *first == byte => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), ParseTimestampError> {
        if self.skip(byte) {
            Ok(())
        } else {
            Err(ParseTimestampError::Form)
        }
    }
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days from 2000-01-01 to a date. Years are astronomical: 0 is the year 1 BC.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let era = year.div_euclid(YEARS_PER_ERA);
    let year = year.rem_euclid(YEARS_PER_ERA);
    // From March, months of 31, 30, 31, 30, 31 days come again and again.
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let day_of_era = year * 365 + year / 4 - year / 100 + day_of_year;
    era * DAYS_PER_ERA + day_of_era - MARCH_OF_YEAR_ZERO_TO_OURS
}

/// The date, some days after 2000-01-01.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + MARCH_OF_YEAR_ZERO_TO_OURS;
    let era = days.div_euclid(DAYS_PER_ERA);
    let day_of_era = days.rem_euclid(DAYS_PER_ERA);
    // Leaves the leap days out of the count: one in 4 years, but not in 100, but in 400.
    let year = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524
        - day_of_era / (DAYS_PER_ERA - 1))
        / 365;
    let day_of_year = day_of_era - (year * 365 + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let year = era * YEARS_PER_ERA + year;
    if month < 10 {
        (year, month + 3, day)
    } else {
        (year + 1, month - 9, day)
    }
}

#[cfg(test)]
mod tests;
