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

// Half of the inputs have a number of the image changed, so that valid images are damaged where it matters.
libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed % 2 == 0 {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    }
    fuzzing::damage(&mut data[..size], seed / 2);
    size
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::disk::disk(*FORMAT, data));
