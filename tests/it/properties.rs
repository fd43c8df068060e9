//! The bodies of the fuzz targets, on generated input.
//!
//! Random bytes alone seldom get past the first check, so most inputs are real ones with something changed.

use std::cell::Cell;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestRunner;

#[path = "../../fuzz/properties/amqp.rs"]
mod amqp;
#[path = "../../fuzz/properties/assembler.rs"]
mod assembler;
#[path = "../../fuzz/properties/config.rs"]
mod config;
#[path = "../../fuzz/properties/frames.rs"]
mod frames;
#[path = "../../fuzz/properties/pgoutput.rs"]
mod pgoutput;
#[path = "../../fuzz/properties/timestamp.rs"]
mod timestamp;

const FRAMES: &[&[u8]] = &[
    b"w\0\0\0\0\x03\x02\xE8\x88\0\0\0\0\x03\x02\xEB\xA0\0\x03\x03\xD3\x28\x9E\xF6\xA7B",
    b"k\0\0\0\x16\xB3\x74\xD8\x48\0\x03\x03\xD3\x28\x9E\xF6\xA7\x01",
];

const MESSAGES: &[&[u8]] = &[
    b"B\0\0\0\0\x03\x02\xEB\x70\0\x03\x03\xD3\x28\x9E\xF6\xA7\0\0\x02\xDC",
    b"C\0\0\0\0\0\x03\x02\xEB\x70\0\0\0\0\x03\x02\xEB\xA0\0\x03\x03\xD3\x28\x9E\xF6\xA7",
    b"O\0\0\0\x16\xB3\x74\xD8\x48elsewhere\0",
    b"R\0\0\x40\x0Eshop\0other\0f\0\x02\x01a\0\0\0\0\x17\xFF\xFF\xFF\xFF\0b\0\0\0\0\x19\xFF\xFF\xFF\xFF",
    b"Y\0\0\x40\x02shop\0mood\0",
    b"I\0\0\x40\x0EN\0\x03t\0\0\0\x011nt\0\0\0\x03Zo\xC3",
    b"U\0\0\x40\x0EO\0\x02t\0\0\0\x011t\0\0\0\x01xN\0\x02t\0\0\0\x011u",
    b"U\0\0\x40\x07K\0\x02t\0\0\0\x011nN\0\x02t\0\0\0\x012b\0\0\0\x01y",
    b"D\0\0\x40\x0EK\0\x02t\0\0\0\x011n",
    b"T\0\0\0\x02\x03\0\0\x40\x0E\0\0\x40\x07",
    b"M\x01\0\0\0\0\x03\x02\xEB\x28px\0\0\0\0\x05hello",
];

const AMQP: &[&[u8]] = &[
    b"\x01\0\0\0\0\0\x0c\0\x0a\0\x1e\x07\xff\x00\x02\0\0\0\x3c\xce\x08\0\0\0\0\0\0\xce",
    b"\x01\0\0\0\0\0\x12\0\x0a\0\x32\x01\x40\x07FORCED!\0\0\0\0\xce",
    b"\x01\0\x01\0\0\0\x12\0\x14\0\x28\x01\x94\x07no such\0\x3c\0\x28\xce",
    b"\x01\0\x01\0\0\0\x0d\0\x3c\0\x50\0\0\0\0\0\0\0\x07\x01\xce\x01\0\x01\0\0\0\x0d\0\x3c\0\x78\0\0\0\0\0\0\0\x08\0\xce",
    b"\x01\0\x01\0\0\0\x14\0\x3c\0\x32\x01\x38\x08NO_ROUTE\x02ex\x01k\xce\x02\0\x01\0\0\0\x1b\0\x3c\0\0\0\0\0\0\0\0\0\x03\xb0\x80\x03a/b\0\0\0\0\x02\x02id\xce\x03\0\x01\0\0\0\x03abc\xce",
    b"\0\x0a\0\x0a\0\x09\0\0\0\x14\x07versionS\0\0\0\x013\x01tt\x01\x01fF\0\0\0\0\0\0\0\x05PLAIN\0\0\0\x05en_US",
    b"\x07versionS\0\0\0\x013\x01tt\x01\x01fF\0\0\0\0",
];

const TIMES: &[&[u8]] = &[
    b"2026-11-22 00:14:24.02487+00",
    b"0044-02-29 12:00:00.000001-07:52:58 BC",
    b"294276-12-31 23:59:59.999999+05:30",
    b"infinity",
];

const CONFIGURATIONS: &[&[u8]] = &[
    include_bytes!("../../config.example.toml"),
    br#"
[postgres]
url = "${DATABASE_URL}"
slot = "${PASSWORD}"
[outbox]
table = "a.${PASSWORD}"
columns = { key = "${PASSWORD}", kwargs = "payload" }
[gate]
replicas = ["${DATABASE_URL}", "postgres://u:${PASSWORD}@h/d?sslmode=require"]
timeout = "${PASSWORD}"
[sink.celery.a]
broker_url = "${BROKER_URL:-redis://h}"
queue = "${PASSWORD}"
[sink.stdout.b]
[[route]]
task = "${PASSWORD}.*"
sink = "${PASSWORD}"
retry = { backoff = "1s..10m", attempts = 3 }
[[route]]
task = "*"
sink = "a"
"#,
];

/// A real input with some bytes changed, cut off, or added.
fn changed(seeds: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<u8>> {
    let edits = vec((any::<Index>(), any::<u8>()), 0..4);
    let seed = select(seeds);
    (seed, edits, any::<Index>(), vec(any::<u8>(), 0..3), 0..4).prop_map(
        |(seed, edits, cut, tail, kind)| {
            let mut input = seed.to_vec();
            for (index, byte) in edits {
                *index.get_mut(&mut input) = byte;
            }
            match kind {
                0 => input.truncate(cut.index(seed.len() + 1)),
                1 => input.extend(tail),
                _ => {}
            }
            input
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn frames_are_read_or_refused(input in prop_oneof![changed(FRAMES), vec(any::<u8>(), 0..64)]) {
        frames::check(&input);
    }

    #[test]
    fn what_an_amqp_server_says_is_read_or_refused(input in prop_oneof![changed(AMQP), vec(any::<u8>(), 0..64)]) {
        amqp::check(&input);
    }

    #[test]
    fn messages_are_read_or_refused(input in prop_oneof![changed(MESSAGES), vec(any::<u8>(), 0..64)]) {
        pgoutput::check(&input);
    }

    #[test]
    fn configurations_are_read_or_refused(input in prop_oneof![changed(CONFIGURATIONS), vec(any::<u8>(), 0..80)]) {
        config::check(&input);
    }

    #[test]
    fn times_are_read_or_refused(input in prop_oneof![changed(TIMES), vec(any::<u8>(), 0..40)]) {
        timestamp::check(&input);
    }
}

#[test]
fn streams_are_assembled_or_refused() {
    let count = Cell::new(0);
    let config = ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = TestRunner::new(config);
    runner
        .run(&vec(any::<u8>(), 0..600), |script| {
            count.set(count.get() + assembler::tasks(&script));
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let count = count.get();

    assert!(count > 1_000, "the scripts reached only {count} tasks");
}
