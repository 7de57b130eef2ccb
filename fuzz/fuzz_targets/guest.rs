//! Looks for what the file systems of the disk in the input do not use.

#![no_main]

#[allow(dead_code, unused_imports, reason = "each target is one of its functions")]
#[path = "../../tests/fuzzing/mod.rs"]
mod fuzzing;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::guest::guest(data));
