#![no_main]

#[path = "../properties/amqp.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|input: &[u8]| property::check(input));
