//! Decodes the input as DEFLATE or zlib with two decoders.

#![no_main]

#[allow(dead_code, unused_imports, reason = "each target is one of its functions")]
#[path = "../../tests/fuzzing/mod.rs"]
mod fuzzing;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::inflate(data));
