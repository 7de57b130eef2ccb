//! A format of another crate: the toy format. It uses the public API of `diskimage` only.
//!
//! A toy image has a header of 4 KiB, a table with the host cluster of each guest cluster, and the clusters. All numbers
//! are little-endian.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | signature "TOY\x01" |
//! | 4 | 4 | checksum: sum of all other bytes of the header |
//! | 8 | 8 | virtual size in bytes |
//! | 16 | 4 | cluster size in bytes, a power of two |
//! | 20 | 4 | number of table entries |
//! | 24 | 8 | host offset of the table |
//!
//! A table entry of 4 bytes is the host offset in clusters, or 0 for an unallocated cluster, which reads as zeros.

mod check;
mod header;
mod reader;
mod writer;

use diskimage::driver::{FormatDriver, Probe};
use diskimage::{Format, OptionSpec};

use header::SIGNATURE;

const NAME: &str = "toy";

static DRIVER: FormatDriver = FormatDriver::new(NAME, probe, reader::open)
    .aliases(&["toyimage"])
    .extensions(&["toy"])
    .description("sparse format of another crate")
    .create(writer::create, OPTIONS)
    .check(check::check);

static OPTIONS: &[OptionSpec] =
    &[OptionSpec { name: "cluster_size", values: "4k..2M", help: "allocation unit, a power of two; default 64k" }];

/// The toy format.
pub const TOY: Format = Format::from_driver(&DRIVER);

fn probe(probe: &Probe<'_>) -> bool {
    probe.head.starts_with(SIGNATURE)
}
