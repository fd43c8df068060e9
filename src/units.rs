//! Floor 0, pure: durations, sizes and backoff ranges as they are written in the configuration.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

/// Reads `250ms`, `5s`, `10m`, `2h`, `1d`: a whole number and one unit.
///
/// # Errors
/// Says which forms are understood.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let scale_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad("duration", text, "250ms, 5s, 10m, 2h or 1d")),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(scale_ms))
        .map(Duration::from_millis)
        .ok_or_else(|| bad("duration", text, "250ms, 5s, 10m, 2h or 1d"))
}

/// Reads `512`, `64KiB`, `64MiB`, `1GiB`, `500kB`, `64MB`, `1GB`: bytes.
///
/// # Errors
/// Says which forms are understood.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text);
    let scale = match unit {
        "" | "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(bad("size", text, "512KiB, 64MiB or 1GiB")),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(scale))
        .ok_or_else(|| bad("size", text, "512KiB, 64MiB or 1GiB"))
}

fn split_unit(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    text.split_at(digits)
}

fn bad(what: &str, text: &str, forms: &str) -> String {
    format!("{text:?} is not a {what}; write it like {forms}")
}

/// The shortest and the longest pause between attempts, written `"1s..10m"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackoffRange {
    /// The pause before the second attempt.
    pub min: Duration,
    /// No pause is longer.
    pub max: Duration,
}

/// Reads `1s..10m`.
///
/// # Errors
/// Says which form is understood.
pub fn parse_backoff(text: &str) -> Result<BackoffRange, String> {
    let form = || {
        bad(
            "backoff",
            text,
            "\"1s..10m\": the shortest pause, two dots, the longest",
        )
    };
    let (min, max) = text.split_once("..").ok_or_else(form)?;
    let range = BackoffRange {
        min: parse_duration(min).map_err(|_| form())?,
        max: parse_duration(max).map_err(|_| form())?,
    };
    if range.min.is_zero() || range.min > range.max {
        return Err(form());
    }
    Ok(range)
}

struct FromText<T>(fn(&str) -> Result<T, String>, &'static str);

impl<T> Visitor<'_> for FromText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.1)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }
}

/// For `#[serde(deserialize_with)]`: a duration.
///
/// # Errors
/// Those of [`parse_duration`].
pub fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    d.deserialize_str(FromText(parse_duration, "a duration such as \"5s\""))
}

/// For `#[serde(deserialize_with)]`: a size in bytes.
///
/// # Errors
/// Those of [`parse_size`].
pub fn size<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    d.deserialize_str(FromText(parse_size, "a size such as \"64MiB\""))
}

impl<'de> Deserialize<'de> for BackoffRange {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<BackoffRange, D::Error> {
        d.deserialize_str(FromText(parse_backoff, "a range such as \"1s..10m\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations() {
        for (text, ms) in [
            ("0s", 0),
            ("250ms", 250),
            ("5s", 5_000),
            ("10m", 600_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)));
        }
        for bad in [
            "",
            "s",
            "5",
            "5 s",
            "-5s",
            "1.5s",
            "5sec",
            "5S",
            "99999999999999999999s",
            "18446744073709551615d",
            "５s",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn reads_sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("64KiB", 65_536),
            ("64MiB", 67_108_864),
            ("1GiB", 1_073_741_824),
            ("500kB", 500_000),
            ("64MB", 64_000_000),
            ("1GB", 1_000_000_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        for bad in [
            "",
            "MiB",
            "64 MiB",
            "64mib",
            "64M",
            "-1",
            "99999999999999999GiB",
        ] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn reads_backoff_ranges() {
        let range = BackoffRange {
            min: Duration::from_secs(1),
            max: Duration::from_secs(600),
        };
        assert_eq!(parse_backoff("1s..10m"), Ok(range));
        for bad in [
            "", "1s", "..", "1s..", "1s...10m", "10m..1s", "0s..1s", "1s .. 2s",
        ] {
            let why = parse_backoff(bad).expect_err(bad);
            assert!(why.contains("is not a backoff"), "{why}");
        }
    }
}
