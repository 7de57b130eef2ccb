//! VDI, the format of VirtualBox. Reads every type of image; writes dynamic and static images.
//!
//! # Layout
//!
//! All integers are little-endian. Offsets are in bytes.
//!
//! | offset | content | module |
//! |---|---|---|
//! | 0 | banner text, signature, version, header | `header` |
//! | in the header | UUIDs: the image, its modification, its parent, the modification of the parent | `header` |
//! | `offBlocks` | block map: for each block of the disk, free, zero or its index in the data area | `map` |
//! | `offData` | data area: the blocks, each preceded by `cbBlockExtra` bytes of metadata | |
//!
//! # Support
//!
//! | feature | read | written |
//! |---|---|---|
//! | version 1 with a header of 384 bytes, or of 400 and more | yes | 1.1, 400 bytes |
//! | versions before 1 | refused | no |
//! | dynamic | yes | yes |
//! | static, with blocks in any order | yes | yes, `static=on`: in guest order; holes stay holes of the file |
//! | differencing and undo | yes | no |
//! | block sizes: powers of two from 512 bytes | yes | 128 KiB to 128 MiB, as VirtualBox 7.2 accepts |
//! | bytes before each block (`cbBlockExtra`) | yes, skipped | none |
//! | disk sizes that are not a multiple of 512 | yes, exact | rounded up |
//! | writing in place, by a guest | | yes, if blocks are aligned to sectors; disks grow, as long as a few blocks are free if the map has to move, and shrink where they have no data |
//! | empty disks | yes | no: VirtualBox reports them as damaged |
//!
//! Images are written in the layout of VirtualBox: the map at 1 MiB, then the data area, aligned to 1 MiB, with blocks in guest
//! order.
//!
//! Free blocks read from the parent, or as zeros without a parent. Zero blocks always read as zeros.
//!
//! The disk has exactly the size in its header. If that is not a multiple of 512, VirtualBox exposes whole sectors only, without
//! the last bytes; qemu rounds up.
//!
//! The parent is identified by its UUID; no file name is stored. VirtualBox names snapshot files `{UUID}.vdi`, so this name is
//! tried first, then every file with the extension `vdi` and this UUID. The modification UUID of the parent changes when the
//! parent is written to. VirtualBox does not compare it, and leaves an outdated one when it merges images, so `info` shows it and
//! nothing checks it.
//!
//! Properties that VirtualBox refuses, such as nil UUIDs, are warnings if they do not affect reading.
//!
//! # References
//!
//! No specification exists. Field names and validity rules are those of VirtualBox (`VDICore.h`, `VDI.cpp`).

mod check;
mod header;
mod map;
mod options;
mod reader;
mod update;
mod writer;

use crate::driver::FormatDriver;
use crate::format::shared::signature;
use crate::format::shared::table::Fields;

pub(crate) static DRIVER: FormatDriver =
    FormatDriver::new(FORMAT_NAME, signature::is_vdi, |source, cx| Ok(Box::new(reader::Reader::open(source, cx)?)))
        .extensions(&["vdi"])
        .description("VirtualBox virtual disk, dynamic or static; differencing ones are read")
        .create(|cx| Ok(Box::new(writer::Writer::create(cx)?)), options::OPTIONS)
        .check(check::check)
        .update(|file, cx| Ok(Box::new(update::Update::open(file, cx)?)))
        .repair(update::repair);

const FORMAT_NAME: &str = "vdi";
/// Bytes in a sector of the disk.
const SECTOR: u64 = 512;

/// The fields of this format, for messages.
const FIELDS: Fields = Fields(FORMAT_NAME);
