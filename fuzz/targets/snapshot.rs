#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| jackline_repository::fuzzing::snapshot(data));
