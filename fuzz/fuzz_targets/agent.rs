#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lvm_csi::fuzzing::agent(data));
