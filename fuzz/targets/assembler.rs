#![no_main]

#[path = "../properties/assembler.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    property::tasks(input);
});
