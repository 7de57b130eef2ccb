//! VDI, the format of VirtualBox: every kind read, dynamic and static images written.
//!
//! # Layout
//!
//! All integers are little-endian. Offsets are in bytes.
//!
//! | where | what | file |
//! |---|---|---|
//! | 0 | a text for people, the signature, the version, the header | `header` |
//! | in the header | UUIDs: the image, its state, its parent, the parent's state | `uuid` |
//! | `offBlocks` | block map: for each block of the disk its number in the data area, or that it is free or zeros | `map` |
//! | `offData` | data area: the blocks, each behind `cbBlockExtra` bytes of something else | |
//!
//! # Support
//!
//! | what | read | written |
//! |---|---|---|
//! | version 1 with headers of 384 bytes, of 400 and more | yes | 1.1, 400 |
//! | versions before 1 | refused by name | no |
//! | dynamic | yes | yes |
//! | static, in any order of blocks | yes | yes, `static=on`: in order, and holes stay holes of the file |
//! | differencing and undo | yes | no |
//! | blocks of any power of two from 512 bytes on | yes | from 128 KiB to 128 MiB, which is what VirtualBox 7.2 opens |
//! | bytes before each block (`cbBlockExtra`) | yes, they are passed over | none |
//! | disk sizes that are no multiple of 512 | yes, to the byte | rounded up |
//! | disks of no bytes | yes | no: VirtualBox takes them for damaged |
//!
//! An image is written as VirtualBox does it: the map at 1 MiB, the data on a MiB behind it, blocks in the order of the disk.
//!
//! Free blocks of an image without a parent read as zeros. With one they show the parent, and blocks of zeros do not.
//!
//! A disk whose size is no multiple of 512 has the bytes that its header says. VirtualBox shows its guest whole sectors only,
//! and leaves out the last bytes; qemu rounds up.
//!
//! The parent is known by its UUID alone, no file name is stored. VirtualBox calls the files of snapshots `{UUID}.vdi`, so
//! that is looked for, and then any file of the extension `vdi` that has the UUID. A parent's state has a UUID as well, which
//! changes when it is written to. VirtualBox does not compare it, and leaves an old one behind when it merges images, so
//! it is shown and not checked.
//!
//! What an image holds although VirtualBox refuses it, as null UUIDs, is a warning where it makes no difference for reading.
//!
//! # ReferencePolicy
//!
//! There is no specification. Names of fields, and what is valid, are those of VirtualBox (`VDICore.h`, `VDI.cpp`).

mod check;
mod header;
mod map;
mod options;
mod reader;
mod writer;

use crate::driver::{FormatDriver, Probe};
use crate::format::shared::table::Fields;

pub(crate) static DRIVER: FormatDriver =
    FormatDriver::new(FORMAT_NAME, probe, |source, cx| Ok(Box::new(reader::Reader::open(source, cx)?)))
        .extensions(&["vdi"])
        .description("VirtualBox virtual disk, dynamic, static or differencing")
        .create(|cx| Ok(Box::new(writer::Writer::create(cx)?)), options::OPTIONS)
        .check(check::check);

const FORMAT_NAME: &str = "vdi";
/// Bytes in a sector, of which a disk consists for its guest.
const SECTOR: u64 = 512;

fn probe(probe: &Probe<'_>) -> bool {
    probe.head.get(header::SIGNATURE_AT..).is_some_and(|rest| rest.starts_with(&header::SIGNATURE.to_le_bytes()))
}

/// The fields of this format, for messages.
const FIELDS: Fields = Fields(FORMAT_NAME);
