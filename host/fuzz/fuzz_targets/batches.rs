#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vkog_fuzz::batches::check(data));
