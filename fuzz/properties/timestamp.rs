//! Times: any text is read or refused, and any time can be written and read again.

use aftercommit::pg::{Moment, Timestamp};

/// Reads any text as a time; and takes its first bytes as a time, and writes it.
pub(super) fn check(input: &[u8]) {
    if let Ok(Moment::At(timestamp)) = Moment::parse(input) {
        check_written(timestamp);
    }
    if let Some(micros) = input.first_chunk() {
        let timestamp = Timestamp(i64::from_be_bytes(*micros));
        check_written(timestamp);
        // Any time at all is rarely one of the years that can be written.
        check_written(Timestamp(timestamp.0 % 250_000_000_000_000_000));
    }
}

fn check_written(timestamp: Timestamp) {
    let Some(written) = timestamp.rfc3339() else {
        return;
    };
    let mut text = *written.as_bytes();
    assert_eq!(text[10], b'T');
    text[10] = b' ';
    assert_eq!(Moment::parse(&text), Ok(Moment::At(timestamp)));
    assert_eq!(
        Timestamp::from_unix_micros(timestamp.to_unix_micros()),
        timestamp
    );
}
