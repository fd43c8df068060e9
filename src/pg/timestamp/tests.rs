//! Values and texts as PostgreSQL 15 gave them, and generated ones.

use proptest::prelude::*;

use super::*;

fn at(text: &str) -> i64 {
    match Moment::parse(text.as_bytes()) {
        Ok(Moment::At(Timestamp(micros))) => micros,
        other => panic!("{text}: {other:?}"),
    }
}

/// Text and `extract(epoch from ..)` of PostgreSQL 15.
#[test]
fn reads_what_postgres_writes() {
    for (text, micros) in [
        ("2000-01-01 00:00:00+00", 0),
        ("1999-12-31 23:59:59.999999+00", -1),
        ("2026-11-22 00:14:24.02487+00", 848_621_664_024_870),
        ("2026-11-22 05:44:24.02487+05:30", 848_621_664_024_870),
        ("2026-11-21 17:14:24.02487-07", 848_621_664_024_870),
        ("1970-01-01 00:00:00+00", -946_684_800_000_000),
        ("2000-02-29 12:00:00+00", 5_140_800_000_000),
        ("1900-03-01 00:00:00+00", -3_150_576_000_000_000),
        ("1900-01-01 00:19:32+00:19:32", -3_155_673_600_000_000),
        ("0001-01-01 00:00:00+00", -63_082_281_600_000_000),
        ("0001-12-31 23:59:59+00 BC", -63_082_281_601_000_000),
        ("0005-02-29 00:00:00+00 BC", -63_235_036_800_000_000),
        ("4713-01-01 00:00:00+00 BC", -211_810_204_800_000_000),
        ("10000-01-01 00:00:00+00", 252_455_616_000_000_000),
        ("2100-02-28 23:59:59+00", 3_160_857_599_000_000),
        ("2024-02-29 18:29:59.5+00", 762_546_599_500_000),
        ("294276-12-31 23:59:59.999999+00", 9_223_371_331_199_999_999),
    ] {
        assert_eq!(at(text), micros, "{text}");
    }
    assert_eq!(Moment::parse(b"infinity"), Ok(Moment::Never));
    assert_eq!(Moment::parse(b"-infinity"), Ok(Moment::Past));
    assert!(Moment::Past < Moment::At(Timestamp(i64::MIN)));
    assert!(Moment::At(Timestamp(i64::MAX)) < Moment::Never);
}

#[test]
fn refuses_what_postgres_does_not_write() {
    for text in [
        "",
        "now",
        "Infinity",
        "2026-11-22",
        "2026-11-22T00:14:24+00",
        "2026-11-22 00:14+00",
        "2026-11-22 00:14:24Z",
        "2026-11-22 00:14:24.+00",
        "2026-11-22 00:14:24.0248701+00",
        "2026-11-22 00:14:24+0530",
        "2026-11-22 0:14:24+00",
        "2026-11-22 00:14:24+",
        "2026-11-22 00:14:24+16",
        "2026-11-22 00:14:24+00 ",
        "2026-11-22 00:14:24+00 AD",
        " 2026-11-22 00:14:24+00",
        "22/11/2026 00:14:24+00",
        "2026-13-01 00:00:00+00",
        "2026-00-01 00:00:00+00",
        "2026-02-29 00:00:00+00",
        "1900-02-29 00:00:00+00",
        "2026-04-31 00:00:00+00",
        "2026-04-00 00:00:00+00",
        "2026-11-22 24:00:00+00",
        "2026-11-22 00:60:00+00",
        "2026-11-22 00:00:60+00",
        "0000-01-01 00:00:00+00",
        "0000-01-01 00:00:00+00 BC",
        "1234567-01-01 00:00:00+00",
        "226-01-01 00:00:00+00",
    ] {
        let parsed = Moment::parse(text.as_bytes());
        assert_eq!(parsed, Err(ParseTimestampError::Form), "{text}");
    }
    for (text, error) in [
        ("2026-11-22 00:14:24.5", ParseTimestampError::NoZone),
        ("0044-03-15 12:00:00 BC", ParseTimestampError::NoZone),
        ("294277-12-31 00:00:00+00", ParseTimestampError::Range),
        ("999999-12-31 00:00:00+00", ParseTimestampError::Range),
        ("300000-12-31 00:00:00+00 BC", ParseTimestampError::Range),
    ] {
        assert_eq!(Moment::parse(text.as_bytes()), Err(error), "{text}");
    }
}

#[test]
fn writes_what_celery_reads() {
    for (micros, text) in [
        (848_621_664_024_870, "2026-11-22T00:14:24.024870+00:00"),
        (0, "2000-01-01T00:00:00.000000+00:00"),
        (-1, "1999-12-31T23:59:59.999999+00:00"),
        (-63_082_281_600_000_000, "0001-01-01T00:00:00.000000+00:00"),
        (252_455_615_999_999_999, "9999-12-31T23:59:59.999999+00:00"),
    ] {
        let written = Timestamp(micros).rfc3339().unwrap();
        assert_eq!(written.to_string(), text);
    }
    for micros in [
        i64::MIN,
        -63_082_281_600_000_001,
        252_455_616_000_000_000,
        i64::MAX,
    ] {
        assert_eq!(Timestamp(micros).rfc3339(), None, "{micros}");
    }
}

#[test]
fn counts_from_the_epoch_of_unix_too() {
    assert_eq!(Timestamp::from_unix_micros(0).0, -946_684_800_000_000);
    assert_eq!(Timestamp(0).to_unix_micros(), 946_684_800_000_000);
    assert_eq!(Timestamp(i64::MAX).to_unix_micros(), i64::MAX);
    assert_eq!(Timestamp::from_unix_micros(i64::MIN).0, i64::MIN);
}

/// A calendar made by counting, day by day, with nothing but the lengths of the months.
#[test]
fn agrees_with_a_calendar_that_counts_days() {
    let mut day_number = days_from_civil(-400, 1, 1);
    for year in -400..=2800 {
        for month in 1..=12 {
            for day in 1..=days_in_month(year, month) {
                assert_eq!(days_from_civil(year, month, day), day_number);
                assert_eq!(civil_from_days(day_number), (year, month, day));
                day_number += 1;
            }
        }
    }
    assert_eq!(days_from_civil(2000, 1, 1), 0);
    assert_eq!(days_from_civil(1970, 1, 1), -10_957);
}

proptest! {
    #[test]
    fn a_date_comes_back_from_its_days(days in -150_000_000_i64..150_000_000) {
        let (year, month, day) = civil_from_days(days);
        prop_assert!((1..=12).contains(&month));
        prop_assert!((1..=days_in_month(year, month)).contains(&day));
        prop_assert_eq!(days_from_civil(year, month, day), days);
    }

    #[test]
    fn an_offset_moves_the_clock_and_not_the_moment(
        micros in -63_000_000_000_000_000_i64..252_000_000_000_000_000,
        offset_minutes in -959_i64..960,
    ) {
        let local = Timestamp(micros + offset_minutes * 60 * MICROS_PER_SECOND);
        let written = local.rfc3339().unwrap().to_string();
        let sign = if offset_minutes < 0 { '-' } else { '+' };
        let (hours, minutes) = (offset_minutes.abs() / 60, offset_minutes.abs() % 60);
        let text = format!("{}{sign}{hours:02}:{minutes:02}", written[..26].replace('T', " "));
        prop_assert_eq!(at(&text), micros);
    }
}
