#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rbd_preflight_fuzz::keyring(data));
