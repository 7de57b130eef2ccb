//! qcow2, the format of QEMU: versions 2 and 3, both ways.
//!
//! # Layout
//!
//! Everything lies in clusters of `1 << cluster_bits` bytes; integers are big-endian.
//!
//! | where | what | file |
//! |---|---|---|
//! | cluster 0 | header, extensions, name of the backing file | `header`, `extension` |
//! | `l1_table_offset` | L1 table: the place of each L2 table | `entry` |
//! | from the L1 table | L2 tables: the place of each guest cluster | `entry` |
//! | `refcount_table_offset` | places of the refcount blocks: how often each host cluster is used | `refcount` |
//! | `snapshots_offset` | internal snapshots, each with an L1 table of its own | `snapshot` |
//! | bitmaps extension | directory of persistent bitmaps | `bitmap` |
//!
//! # Support
//!
//! | what | read | written |
//! |---|---|---|
//! | version 2, version 3 | yes | yes |
//! | clusters of 512 B to 2 MiB | yes | yes |
//! | extended L2 entries | yes | yes |
//! | deflate (any window), zstd | yes | yes |
//! | zero clusters, preallocated ones | yes | yes |
//! | reference counts of 1 to 64 bits | yes (only `check` needs them) | yes |
//! | backing file | yes | yes |
//! | external data file | yes | no |
//! | internal snapshots | yes | no |
//! | bitmaps | listed | no |
//! | encryption (AES, LUKS) | named, its guest bytes refused | no |
//! | version 1, unknown incompatible features | refused | no |
//!
//! Deflate is written with the full window of 32 KiB (RFC 1951, section 2), where qemu-img uses 4 KiB. qemu and 7-Zip read
//! it; dissect.hypervisor 3.21 inflates with a window of 4 KiB and fails with an error. The option `window=12` is for such
//! readers.
//!
//! A file that ends before its L1 table is refused, where qemu-img reads a disk of zeros: there is no telling it from an
//! image that was cut off.
//!
//! # ReferencePolicy
//!
//! The format is specified in QEMU's `docs/interop/qcow2`, quoted here as "qcow2 specification" with its section. Where
//! qemu is stricter than that document (largest cluster, largest tables), so is this module.

mod bitmap;
mod check;
mod entry;
mod extension;
mod header;
mod options;
mod reader;
mod refcount;
mod snapshot;
mod writer;

use crate::driver::{FormatDriver, Probe};
use crate::format::shared::table::Fields;

pub(crate) static DRIVER: FormatDriver =
    FormatDriver::new(FORMAT_NAME, probe, |source, cx| Ok(Box::new(reader::Reader::open(source, cx)?)))
        .extensions(&["qcow2"])
        .description("QEMU copy-on-write image, version 2 and 3")
        .create(|cx| Ok(Box::new(writer::Writer::create(cx)?)), options::OPTIONS)
        .check(check::check);

const FORMAT_NAME: &str = "qcow2";

/// The magic, whatever the version: what a version this crate does not know is refused for is the version.
fn probe(probe: &Probe<'_>) -> bool {
    probe.head.starts_with(header::MAGIC) && probe.head.get(4..8).is_some_and(|version| version != [0, 0, 0, 1])
}

/// The fields of this format, for messages.
const FIELDS: Fields = Fields(FORMAT_NAME);
