//! Opens the input as an image of the format in `DISKIMAGE_FORMAT`, and writes to it; `any`, the default, detects the format.

#![no_main]

#[allow(dead_code, unused_imports, reason = "each target is one of its functions")]
#[path = "../../tests/fuzzing/mod.rs"]
mod fuzzing;

use std::sync::LazyLock;

use diskimage::Format;

static FORMAT: LazyLock<Option<Format>> = LazyLock::new(|| {
    let name = std::env::var("DISKIMAGE_FORMAT").ok().filter(|name| name != "any")?;
    Some(Format::by_name(&name).unwrap())
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::disk::disk(*FORMAT, data));
