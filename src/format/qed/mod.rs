//! QED, a former format of QEMU. Read, written and checked.
//!
//! # Layout
//!
//! The file consists of clusters. All integers are little-endian, and all offsets are in bytes.
//!
//! | structure | location | content | module |
//! |---|---|---|---|
//! | header | cluster 0 | sizes, features, offset of the L1 table, backing file name | `header` |
//! | L1 table | `l1_table_offset` | host offsets of the L2 tables | `shared::two_level` |
//! | L2 table | L1 entry | state and host offset of each guest cluster | `entry` |
//!
//! All tables have the same length, `table_size` clusters. There are no reference counts: each cluster is used once.
//!
//! # Support
//!
//! | feature | read | written |
//! |---|---|---|
//! | clusters of 4 KiB to 64 MiB, tables of 1 to 16 clusters | yes | what qemu opens: up to 4 MiB, tables of 2 clusters and more |
//! | zero clusters | yes | yes, in overlays |
//! | backing file | yes | yes |
//! | writing in place, by a guest | | yes; disks grow, and shrink where they have no data |
//! | an image that needs a check (`QED_F_NEED_CHECK`) | yes, reported as dirty | no |
//! | unknown features | refused | no |
//! | unknown compatible and autoclear features | ignored | none |
//!
//! The format of the backing file is stated only if it is raw (`QED_F_BACKING_FORMAT_NO_PROBE`). For another format, the caller has to
//! state it: [`OpenOptions::backing_format`](crate::OpenOptions::backing_format).
//!
//! An image that needs a check is read because every entry is checked when it is used, which is what qemu does before it clears the
//! bit.
//!
//! # References
//!
//! QEMU's `docs/interop/qed_spec`, cited as "QED specification" with the section.

mod check;
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
    FormatDriver::new(FORMAT_NAME, signature::is_qed, |source, cx| Ok(Box::new(reader::Reader::open(source, cx)?)))
        .extensions(&["qed"])
        .description("QEMU enhanced disk, a former format of QEMU")
        .create(|cx| Ok(Box::new(writer::Writer::create(cx)?)), options::OPTIONS)
        .check(check::check)
        .update(|file, cx| Ok(Box::new(update::Update::open(file, cx)?)));

const FORMAT_NAME: &str = "qed";
/// Bytes in a sector of the disk.
const SECTOR: u64 = 512;

/// The fields of this format, for messages.
const FIELDS: Fields = Fields(FORMAT_NAME);
