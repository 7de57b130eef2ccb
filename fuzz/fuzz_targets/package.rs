//! Opens the input as an archive, as the descriptor or as the manifest of a package.

#![no_main]

#[allow(dead_code, unused_imports, reason = "each target is one of its functions")]
#[path = "../../tests/fuzzing/mod.rs"]
mod fuzzing;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::packages::package(data));
