//! VHD, the format of Virtual PC, Hyper-V, Azure and XenServer: every kind read, every kind written.
//!
//! # Layout
//!
//! Integers are big-endian. Offsets are in bytes, but for those in the table, which are in sectors of 512 bytes.
//!
//! | where | what | file |
//! |---|---|---|
//! | the last 512 bytes (511 before Virtual PC 2004) | footer: kind, size and geometry of the disk | `footer`, `geometry` |
//! | fixed: from 0 on | the bytes of the disk | |
//! | else: 0 | a copy of the footer | `footer` |
//! | `data offset` of the footer | header: size of blocks, place of the table, the parent | `header` |
//! | `platform data offset` of the header | parent locators: the name of the parent, for each kind of system | `locator` |
//! | `table offset` of the header | block allocation table (BAT): the sector of each block | `blocks` |
//! | from the table | block: a bitmap with a bit for each sector, and the sectors | `blocks` |
//!
//! # Support
//!
//! | what | read | written |
//! |---|---|---|
//! | fixed, of any length | yes | yes, to files and to pipes, not to devices |
//! | dynamic | yes | yes, up to 2040 GiB |
//! | differencing, the parent by its locators W2ru, W2ku, Wi2r, Wi2k and MacX or by its name | yes | yes |
//! | a footer or its copy damaged or missing | yes, by the other one, with a warning | |
//! | footers of 511 bytes | yes | no |
//! | blocks of any power of two up to 256 MiB, in any order | yes | of 512 KiB to 16 MiB, in guest order |
//! | bitmaps of blocks | yes: what is not written is zeros, or the parent's | all ones, and exact in differencing disks |
//! | the batmap of XenServer | passed over | no |
//! | the saved state of a machine | told | no |
//!
//! What other programs do and this module does not: qemu takes a fixed disk for raw unless it is told the format, takes
//! differencing disks for dynamic ones, and the bitmaps for all ones; 7-Zip, libvhdi and others read what lies behind the end
//! of the file as zeros.
//!
//! # Sizes
//!
//! A footer states the size of the disk twice: as `current size`, and as a geometry, which was rounded down to a whole
//! cylinder when the one was made of the other. Which one the guest saw depends on the program that ran it: Virtual PC, and qemu
//! before 2.5, showed it the geometry. So for the creators `vpc ` and `qemu` it is the geometry, as it is for qemu, unless that
//! is the largest there is, of 127.5 GiB, which stands for everything above. For all others it is `current size`. But nothing
//! that was stored is left out: where rounding does not explain that the geometry is smaller, it is `current size` too, with a
//! warning. `info` shows both.
//!
//! New images have the exact size, the geometry by the document's algorithm, and `win ` as their creator. An own one would be
//! right by the document, but qemu before 10.0 goes by the geometry where it does not know the creator, and would cut off the
//! end of the disk.
//!
//! # ReferencePolicy
//!
//! Microsoft, "Virtual Hard Disk Image Format Specification" 1.0 (2006), quoted as the document with its section. Where it is
//! silent or others agree on something else, that is followed and said so in the place.

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
mod writer;

use crate::driver::{FormatDriver, Probe};
use crate::format::shared::table::Fields;

pub(crate) static DRIVER: FormatDriver =
    FormatDriver::new(FORMAT_NAME, probe, |source, cx| Ok(Box::new(reader::Reader::open(source, cx)?)))
        .aliases(&["vhd"])
        .extensions(&["vhd", "vpc"])
        .description("virtual hard disk of Virtual PC, Hyper-V, Azure and XenServer")
        .create(writer::create, options::OPTIONS)
        .check(check::check);

const FORMAT_NAME: &str = "vpc";
/// Bytes in a sector.
const SECTOR: u64 = 512;
/// Times are counted from the beginning of 2000 (UTC) on, which is so many seconds after that of 1970.
const EPOCH: u64 = 946_684_800;

/// A fixed disk has its footer at the end only.
fn probe(probe: &Probe<'_>) -> bool {
    // What is seen of the end is 512 bytes, of which an old footer is the last 511.
    let tail = |at: usize| probe.tail.get(at..).unwrap_or_default();
    [probe.head, tail(0), tail(1)].iter().any(|bytes| bytes.starts_with(footer::COOKIE))
}

/// The fields of this format, for messages.
const FIELDS: Fields = Fields(FORMAT_NAME);

/// The complement of the sum of all bytes, as for the checksums of this format (the document, "Checksum"). Those of the field
/// itself, 4 bytes at `at`, do not count.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().fold(0, |sum: u32, &byte| sum.wrapping_add(byte.into()));
    !sum(bytes).wrapping_sub(sum(bytes.get(at..at + 4).unwrap_or_default()))
}
