//! qcow2, the format of QEMU: versions 2 and 3, read and written.
//!
//! # Layout
//!
//! The file consists of clusters of `1 << cluster_bits` bytes. Integers are big-endian.
//!
//! | structure | location | content | module |
//! |---|---|---|---|
//! | header | cluster 0 | sizes, offsets of the tables, extensions, backing file name | `header`, `extension` |
//! | L1 table | `l1_table_offset` | host offsets of the L2 tables | `entry` |
//! | L2 table | L1 entry | state and host offset of each guest cluster | `entry` |
//! | refcount table | `refcount_table_offset` | host offsets of the refcount blocks | `refcount` |
//! | refcount block | refcount table entry | reference count of each host cluster | `refcount` |
//! | snapshot table | `snapshots_offset` | internal snapshots, each with its own L1 table | `snapshot` |
//! | bitmap directory | bitmaps extension | persistent bitmaps | `bitmap` |
//! | LUKS header | encryption header extension | parameters of the encryption | `luks` |
//!
//! `reader` maps guest ranges through these tables, `writer` builds them in one pass, `check` verifies the reference counts.
//! `options` are the options of a new image. `update` changes an image in place.
//!
//! # Support
//!
//! | feature | read | create | change in place |
//! |---|---|---|---|
//! | version 2, version 3 | yes | yes | yes |
//! | clusters of 512 B to 2 MiB | yes | yes | yes |
//! | extended L2 entries | yes | yes | yes |
//! | compressed clusters: deflate (any window), zstd | yes | yes | written anew, uncompressed |
//! | zero clusters, preallocated clusters | yes | yes | yes |
//! | reference counts of 1 to 64 bits | yes | yes | yes |
//! | backing file | yes | yes | yes; another one, or none |
//! | external data file | yes | yes | yes |
//! | internal snapshots | yes | no | made, gone back to, deleted; never changed by a guest |
//! | bitmaps | listed, and copied on request | yes | added, removed, cleared, merged; enabled ones record writes, as in qemu |
//! | resizing | | | yes, with bitmaps; in version 2 not with snapshots |
//! | encryption (LUKS), with the feature `crypto` | yes | yes | yes; keys are added and erased |
//! | encryption (AES), with the feature `crypto`; a wrong secret is not detected | yes | yes | no |
//! | a damaged snapshot table, bitmap directory or LUKS header | reported with a warning; not needed for the active state | | refused |
//! | an image that was not closed cleanly | yes | | its refcounts are repaired first |
//! | an image that is marked as corrupt | yes | | refused |
//! | version 1 | another driver, `qcow` | | |
//! | unknown incompatible features | refused | no | no |
//!
//! # Differences from qemu-img
//!
//! - Deflate is written with a window of 32 KiB (RFC 1951, section 2), not 4 KiB. qemu and 7-Zip read it; dissect.hypervisor
//!   3.21 inflates with a window of 4 KiB and fails with an error. For such readers there is the option `window=12`.
//! - A file that ends before its L1 table is refused, because it cannot be told from a truncated image. qemu-img reads it as
//!   zeros.
//! - A damaged snapshot table or bitmap directory is a warning, and the active state is read. qemu-img refuses the image.
//! - Refcounts are written before each flush, also with lazy refcounts, so that an image is never left with refcounts that are out of date.
//! - A snapshot is made, gone back to or deleted by one write to the header; qemu-img changes refcounts and flags in place before it.
//! - When an overlay of version 2 grows below a longer backing file, its new part is zeroed after its size has changed: version 2 has no
//!   other zeros. A power cut in between shows data of the backing file there.
//! - `check` calls no clusters leaked while a table that may use them cannot be read.
//!
//! # References
//!
//! QEMU's `docs/interop/qcow2`, cited as "qcow2 specification" with the section. Where qemu is stricter (largest cluster,
//! largest tables), so is this driver.

mod bitmap;
mod check;
#[cfg(feature = "crypto")]
mod crypt;
mod entry;
mod extension;
mod extent;
mod header;
mod luks;
mod options;
mod reader;
mod refcount;
mod snapshot;
mod update;
mod writer;

use crate::driver::FormatDriver;
use crate::format::shared::signature;
use crate::format::shared::table::Fields;

pub(crate) static DRIVER: FormatDriver =
    FormatDriver::new(FORMAT_NAME, signature::is_qcow2, |source, cx| Ok(Box::new(reader::Reader::open(source, cx)?)))
        .extensions(&["qcow2"])
        .description("QEMU copy-on-write image, version 2 and 3")
        .create(|cx| Ok(Box::new(writer::Writer::create(cx)?)), options::OPTIONS)
        .measure(writer::measure)
        .check(check::check)
        .update(|file, cx| Ok(Box::new(update::Update::open(file, cx)?)))
        .repair(update::repair);

const FORMAT_NAME: &str = "qcow2";

/// Names the fields of this format in errors.
const FIELDS: Fields = Fields(FORMAT_NAME);

/// Returns the bytes before the first NUL, where names end in QEMU.
fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}
