//! qcow, version 1: the first format of QEMU, before qcow2. Read, and written with compression.
//!
//! # Layout
//!
//! All integers are big-endian, and all offsets are in bytes.
//!
//! | structure | location | content | module |
//! |---|---|---|---|
//! | header | 0 | sizes, offset of the L1 table, backing file name | `header` |
//! | L1 table | `l1_table_offset`, usually after the header | host offsets of the L2 tables | `shared::two_level` |
//! | L2 table | L1 entry | state and host offset of each guest cluster | `entry` |
//!
//! L2 tables and clusters are aligned to clusters; compressed clusters are not. There are no reference counts, no zero clusters
//! and no internal snapshots.
//!
//! # Support
//!
//! | feature | read | written |
//! |---|---|---|
//! | clusters of 512 B to 64 KiB, L2 tables of 64 to 8192 entries | yes | yes; L2 tables as qemu-img makes them |
//! | compressed clusters: deflate | yes | yes |
//! | backing file | yes | yes |
//! | encryption (AES), with the feature `crypto`; not of compressed clusters | yes | yes |
//! | an empty disk | yes | no: qemu does not open it |
//!
//! An image is changed in place, unless it is encrypted: its clusters are written, and those of an overlay committed. Its size and its backing file stay, as in
//! qemu.
//!
//! The format of the backing file is not stored. Unless the file looks like a raw disk, the caller has to state it:
//! [`OpenOptions::backing_format`](crate::OpenOptions::backing_format).
//!
//! # Differences from qemu-img
//!
//! - A cluster that does not become smaller is stored uncompressed. qemu-img 10.0.2 stops at such a cluster; it ends with an error but no
//!   message, whatever it compresses.
//! - Deflate is written with a window of 32 KiB, which qemu reads, though it writes one of 4 KiB. For other readers there is the option
//!   `window=12`. 7-Zip reads no compressed clusters of this format.
//!
//! # References
//!
//! No specification exists. Field names are those of QEMU and of "QEMU Copy-On-Write file format" of libqcow.

mod entry;
mod header;
mod options;
mod reader;
mod update;
mod writer;

use crate::driver::FormatDriver;
use crate::format::shared::signature;
use crate::format::shared::table::Fields;

pub(crate) static DRIVER: FormatDriver =
    FormatDriver::new(FORMAT_NAME, signature::is_qcow, |source, cx| Ok(Box::new(reader::Reader::open(source, cx)?)))
        .extensions(&["qcow"])
        .description("QEMU copy-on-write image, version 1")
        .create(|cx| Ok(Box::new(writer::Writer::create(cx)?)), options::OPTIONS)
        .update(|file, cx| Ok(Box::new(update::Update::open(file, cx)?)));

const FORMAT_NAME: &str = "qcow";
/// Bytes in a sector of the disk.
const SECTOR: u64 = 512;

/// The fields of this format, for messages.
const FIELDS: Fields = Fields(FORMAT_NAME);
