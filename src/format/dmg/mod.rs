//! dmg: Apple's disk images (UDIF), uncompressed and compressed. Read only.
//!
//! # Layout
//!
//! All integers are big-endian. The trailer is the last 512 bytes of the file:
//!
//! | offset | content |
//! |---|---|
//! | 0 | `koly`, version (4), length of the trailer |
//! | 24 | offset of the data fork, to which all data is relative; its length |
//! | 40 | offset of the resource fork; its length |
//! | 60 | number of segments |
//! | 216 | offset of the property list; its length |
//! | 492 | number of sectors of the disk |
//!
//! The property list is XML. In the dictionary `resource-fork`, the array `blkx` has a dictionary for each partition, whose `Data` is a block
//! table in base64:
//!
//! | offset | content |
//! |---|---|
//! | 0 | `mish`, version (1) |
//! | 8 | first sector, number of sectors |
//! | 24 | offset of the data in the data fork |
//! | 200 | number of runs |
//! | 204 | runs of 40 bytes: type, comment, first sector in the partition, number of sectors, offset, length |
//!
//! | type | run |
//! |---|---|
//! | 0, 2 | zeros; not used, which reads as zeros |
//! | 1 | sectors as they are |
//! | 0x80000004 to 0x80000008 | compressed as a whole: ADC, zlib, bzip2, LZFSE, LZMA2 in an xz stream |
//! | 0x7ffffffe, 0xffffffff | comment; end of the table |
//!
//! # Support
//!
//! | feature | read |
//! |---|---|
//! | runs of all types, compressed ones of up to 64 MiB | yes |
//! | block tables in the property list, or in the resource fork of old images; up to 32 MiB | yes |
//! | uncompressed images whose trailer names no block tables (UDRW) | yes |
//! | images without a trailer | they are raw disks; with the extension `dmg` the format has to be stated, since a truncated image has none either |
//! | images from a pipe | yes, but those that begin with a payload of bzip2 or xz: without the trailer, these are compressed files |
//! | segments (`.dmgpart`), encryption, sparse images and bundles | refused |
//!
//! The largest run that hdiutil writes has 1 MiB. 64 MiB is the limit of qemu-img. Each thread that
//! converts holds a run and its payload in memory.
//! A sector without a run is an error where it is read, not zeros. Runs that share sectors or bytes of the file are corruption: such an image
//! expands to a disk of any size.
//!
//! Of the property list, no document type is read: `<!DOCTYPE plist …>` is skipped, and refused if it declares anything.
//!
//! The payloads of zlib and bzip2 have checksums, which are verified when they are read; those of xz have none as hdiutil writes them. The trailer has the CRC-32 of the data fork, which a
//! check verifies: it takes a pass over the file. Each block table has the CRC-32 of the sectors of its partition, which is verified by no one: it
//! would take a pass over the disk, in order.
//!
//! # References
//!
//! No specification exists. The layout is that of the documentation of Keramics ("Universal Disk Image Format (UDIF)") and libmodi ("Mac OS
//! disk image types"), and of "UDIF-format Disk Images" (mothersruin.com); the largest run is that of qemu-img.

mod check;
mod plist;
mod reader;
mod resources;
mod run;
mod trailer;

use crate::driver::{FormatDriver, Probe};
use crate::format::shared::signature;
use crate::format::shared::table::Fields;
use reader::Reader;

pub(crate) static DRIVER: FormatDriver =
    FormatDriver::new(FORMAT_NAME, probe, |source, cx| Ok(Box::new(Reader::open(source, cx)?)))
        .extensions(&["dmg"])
        .check(check::check)
        .description("disk image of macOS (UDIF)");

const FORMAT_NAME: &str = "dmg";
/// The fields of this format, for messages.
const FIELDS: Fields = Fields(FORMAT_NAME);

const SECTOR: u64 = 512;

/// Encrypted images too, which are refused by name when they are opened.
fn probe(probe: &Probe<'_>) -> bool {
    signature::is_dmg(probe) || signature::is_encrypted_dmg(probe)
}

#[cfg(test)]
mod tests;
