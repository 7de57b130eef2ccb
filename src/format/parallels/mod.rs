//! Parallels expandable images (`.hds`, `.hdd`). Read, written, checked and repaired.
//!
//! # Layout
//!
//! All integers are little-endian. A sector has 512 bytes.
//!
//! | offset | content | module |
//! |---|---|---|
//! | 0 | header: magic, cluster size in sectors, disk size in sectors | `header` |
//! | 64 | BAT: for each cluster of the disk 0, or its host offset | `bat` |
//! | `data_off` sectors | data area: clusters in any order | |
//! | `ext_off` sectors | format extension, a cluster in the data area: dirty bitmaps | `extension` |
//!
//! Entries of the BAT count in sectors with the magic `WithoutFreeSpace`, in clusters with `WithouFreSpacExt`.
//!
//! # Support
//!
//! | feature | read | written |
//! |---|---|---|
//! | both magics | yes | `WithouFreSpacExt` |
//! | clusters of any number of sectors, such as the 63 of VirtualBox | yes | powers of two from 4 KiB to 64 MiB |
//! | images without `data_off` | yes | no |
//! | clusters that are not aligned to the data area | yes; `check` reports them | no |
//! | bitmaps of the format extension | listed, without verifying the MD5 checksum of the extension | no |
//! | an image that is in use, or was not closed | yes, reported as dirty | no |
//! | bundles with a `DiskDescriptor.xml`: snapshots, split disks | no: an image of the bundle is read alone | no |
//!
//! # References
//!
//! QEMU's `docs/interop/parallels`, cited as "Parallels specification" with the section.

mod bat;
mod check;
mod extension;
mod header;
mod options;
mod reader;
mod repair;
mod writer;

use crate::driver::FormatDriver;
use crate::format::shared::signature;
use crate::format::shared::table::Fields;

pub(crate) static DRIVER: FormatDriver = FormatDriver::new(FORMAT_NAME, signature::is_parallels, |source, cx| {
    Ok(Box::new(reader::Reader::open(source, cx)?))
})
.extensions(&["hds", "hdd"])
.description("Parallels expandable image")
.create(|cx| Ok(Box::new(writer::Writer::create(cx)?)), options::OPTIONS)
.check(check::check)
.repair(repair::repair);

const FORMAT_NAME: &str = "parallels";
/// Bytes in a sector of the disk.
const SECTOR: u64 = 512;

/// The fields of this format, for messages.
const FIELDS: Fields = Fields(FORMAT_NAME);
