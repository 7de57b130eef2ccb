//! VHD, the format of Virtual PC, Hyper-V, Azure and XenServer. Reads and writes every type of image.
//!
//! # Layout
//!
//! Integers are big-endian. Offsets are in bytes, except in the block allocation table, which counts sectors of 512 bytes.
//!
//! | offset | content | module |
//! |---|---|---|
//! | the last 512 bytes (511 before Virtual PC 2004) | footer: type, size and geometry of the disk | `footer`, `geometry` |
//! | 0, fixed | guest data | |
//! | 0, dynamic and differencing | a copy of the footer | `footer` |
//! | `data offset` of the footer | header: block size, offset of the table, the parent | `header` |
//! | `platform data offset` of the header | parent locators: the path of the parent, for each platform | `locator` |
//! | `table offset` of the header | block allocation table (BAT): the sector of each block | `blocks` |
//! | in the table | block: a bitmap with a bit for each sector, then the sectors | `blocks` |
//!
//! # Support
//!
//! | feature | read | written |
//! |---|---|---|
//! | fixed, of any length | yes | yes, to files and pipes, not to devices |
//! | dynamic | yes | yes, up to 2040 GiB |
//! | differencing, with the parent locators W2ru, W2ku, Wi2r, Wi2k and MacX or the parent name | yes | yes, W2ru and W2ku |
//! | a damaged or missing footer, or copy of it | yes, from the other one, with a warning | |
//! | footers of 511 bytes | yes | no |
//! | block sizes: powers of two up to 256 MiB; blocks in any order | yes | 512 KiB to 16 MiB, in guest order |
//! | sector bitmaps | yes: sectors that are not set read as zeros or from the parent | all ones; exact in differencing disks |
//! | writing in place, by a guest | | yes; disks grow and shrink, those with blocks only where they have no data; another parent |
//! | the batmap of XenServer | ignored | no |
//! | saved machine state | a warning | no |
//!
//! Other programs differ: qemu detects a fixed disk as raw, reads differencing disks as dynamic ones and ignores the bitmaps, so that a
//! check warns of data in sectors that are not set;
//! 7-Zip, libvhdi and others read missing data beyond the end of the file as zeros.
//!
//! # Sizes
//!
//! A footer has two disk sizes: `current size`, and a geometry, which is rounded down to a whole cylinder. The size that the
//! guest saw depends on the program: Virtual PC, and qemu before 2.5, used the geometry. As in qemu, the size is therefore the
//! geometry for the creators `vpc ` and `qemu`, and `current size` for all others. The largest geometry, 127.5 GiB, is also
//! stored for larger disks, so it is ignored. No data is lost: if the geometry is smaller than rounding explains, `current size` is used,
//! with a warning, and `inspect` refuses the image. The option `force_size_calc` for reading states the field.
//! `info` shows both sizes.
//!
//! New images have the exact size, the geometry of the document's algorithm, and the creator `win `. A creator of our own would
//! conform to the document, but qemu before 10.0 uses the geometry for unknown creators and would cut off the end of the disk.
//!
//! # References
//!
//! Microsoft, "Virtual Hard Disk Image Format Specification" 1.0 (2006), cited as "the document" with its section. Deviations,
//! where it is silent or other programs agree on something else, are noted in the code.

mod blocks;
mod check;
mod footer;
mod geometry;
mod header;
mod locator;
mod options;
mod reader;
#[cfg(test)]
mod tests;
mod update;
mod writer;

use crate::driver::FormatDriver;
use crate::format::shared::signature;
use crate::format::shared::table::Fields;

pub(crate) static DRIVER: FormatDriver =
    FormatDriver::new(FORMAT_NAME, signature::is_vhd, |source, cx| Ok(Box::new(reader::Reader::open(source, cx)?)))
        .aliases(&["vhd"])
        .extensions(&["vhd", "vpc"])
        .description("virtual hard disk of Virtual PC, Hyper-V, Azure and XenServer")
        .create(writer::create, options::OPTIONS)
        .read_options(geometry::READ_OPTIONS)
        .check(check::check)
        .update(update::open)
        .repair(update::repair);

const FORMAT_NAME: &str = "vpc";
/// Bytes in a sector.
const SECTOR: u64 = 512;
/// Start of timestamps, 2000-01-01 UTC, in seconds since 1970.
const EPOCH: u64 = 946_684_800;

/// The fields of this format, for messages.
const FIELDS: Fields = Fields(FORMAT_NAME);

/// The one's complement of the sum of all bytes, without the checksum field, 4 bytes at `at` (the document, "Checksum").
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().fold(0, |sum: u32, &byte| sum.wrapping_add(byte.into()));
    !sum(bytes).wrapping_sub(sum(bytes.get(at..at + 4).unwrap_or_default()))
}
