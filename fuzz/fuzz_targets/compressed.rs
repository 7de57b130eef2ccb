//! Opens the input as a compressed file: gzip, xz, bzip2 or zstd by its first bytes.

#![no_main]

#[allow(dead_code, unused_imports, reason = "each target is one of its functions")]
#[path = "../../tests/fuzzing/mod.rs"]
mod fuzzing;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::compressed(data));
