//! VHDX, the format of Hyper-V and Windows: every kind read, with its log replayed, every kind written.
//!
//! # Layout
//!
//! Integers are little-endian, GUIDs have their first three fields in that order too. What is behind the first MiB lies on
//! multiples of a MiB. Sections are those of the document.
//!
//! | where | what | section | file |
//! |---|---|---|---|
//! | 0 | file identifier: signature and creator | 2.2.1 | `header` |
//! | 64 KiB, 128 KiB | two headers, of which the one with the higher sequence number counts: GUIDs, place of the log | 2.2.2 | `header` |
//! | 192 KiB, 256 KiB | two region tables, which say the same: places of the BAT and of the metadata | 2.2.3 | `region` |
//! | in the header | log: a ring of entries, each with copies of what is to be written elsewhere | 2.3 | `log` |
//! | in the region table | metadata: sizes of the disk, its blocks and sectors, its identity, its parent | 2.6 | `metadata`, `locator` |
//! | in the region table | block allocation table (BAT): state and place of each block, and of each sector bitmap block | 2.5 | `bat` |
//! | in the BAT | payload blocks: the bytes of the disk; sector bitmap blocks: which sectors are not the parent's | 2.4 | `reader` |
//!
//! # Support
//!
//! | what | read | written |
//! |---|---|---|
//! | fixed, dynamic | yes | yes |
//! | differencing | yes | yes |
//! | the parent's path: relative, of a volume, absolute | yes, in this order | a relative one, or an absolute one |
//! | the parent's identity: `parent_linkage`, and `parent_linkage2` while it is merged | yes | the first |
//! | blocks of 1 to 256 MiB, disks up to 64 TiB | yes | yes |
//! | a disk of no bytes | yes | refused: neither qemu nor 7-Zip opens it |
//! | sectors of 512 and of 4096 bytes | yes | yes |
//! | a log that has to be replayed | yes, in memory | the log is empty |
//! | a header or a region table damaged | yes, by the other one, with a warning | |
//! | two identical headers (disk2vhd), regions in any order, or that are not marked as required (qemu) | yes | |
//! | a last block that ends with the disk (old versions of qemu) | yes | whole blocks |
//! | regions and metadata items that are not known | passed over, unless they are required | |
//!
//! # The log
//!
//! A program that was killed leaves a log that has to be replayed: until then the rest of the file means nothing. Here it is
//! replayed in memory, over a file that is never written to, and everything, the guest's bytes as well, is read through that.
//! So an image of a machine that crashed, on a medium that cannot be written to, reads as Windows would read it. What
//! replaying adds to the length of the file is zeros and costs nothing. How much that can be is bounded, see `log`.
//!
//! Where the header says that there is something to be replayed and the log has no valid sequence of entries, the file is refused,
//! as the document wants it (2.3.3). qemu leaves that when it is killed before its first entry is written, and reads such a file;
//! but a log that was lost looks the same. Valid entries that are newer than the sequence are told: a crash leaves them, and so
//! does damage to an entry before them.
//!
//! # What a block holds
//!
//! The contents of a block that is not present are undefined by the document, where there is no parent; here they are zeros, as for
//! every other program. `UNDEFINED`, `ZERO` and `UNMAPPED` blocks are zeros, whatever a parent has. Holes of the file inside a
//! block are zeros that need not be read, so that images which lie sparse on their file system cost what they hold.
//!
//! # New images
//!
//! Regions are in the order of Windows: log, metadata, BAT, payload. The creator is that of this crate, since the document
//! wants it to say who made the file, and nothing to depend on it. Blocks have the sizes that Windows gives them: 32 MiB in a
//! dynamic image, whatever the size of the disk, and 2 MiB in others. In a fixed image they have 1 MiB where the disk is no
//! multiple of 2 MiB, so that no file is longer than it has to be.
//!
//! # ReferencePolicy
//!
//! Microsoft, "\[MS-VHDX\]: Virtual Hard Disk v2 (VHDX) File Format", version of 2024-04-23, quoted as the document by the
//! numbers of its sections. Where each of them is implemented:
//!
//! | section | what | read | written |
//! |---|---|---|---|
//! | 2.2 | regions and blocks on a MiB, none in another | `region::parse_range`, `region::check_places`, `check::Places` | `writer::regions` |
//! | 2.2.1 | file type identifier | `header::read_creator` | `header::encode_identifier` |
//! | 2.2.2 | headers, and which is the current one | `Header::parse`, `header::current` | `Header::encode`, `Writer::finish` |
//! | 2.2.3 | region table | `Regions::read`, `region::parse` | `Regions::encode` |
//! | 2.3.1 | log entries | `Entry::read` | |
//! | 2.3.1.1 | entry header | `Entry::parse` | |
//! | 2.3.1.2, 2.3.1.3 | zero and data descriptors | `is_data_descriptor`, `Entry::descriptors` | |
//! | 2.3.1.4 | data sectors | `entry::is_data_sector`, `Overlay::sector` | |
//! | 2.3.2 | log sequences | `sequence::active` | |
//! | 2.3.3 | log replay | `log::replay`, `Overlay::put` | |
//! | 2.4 | payload blocks, sector bitmaps, chunks | `Metadata::chunk_ratio`, `Reader::partial` | `SectorBitmap` |
//! | 2.5 | BAT, and how its entries are interleaved | `Bat::new`, `Bat::piece` | `Table`, `Writer::map` |
//! | 2.5.1 | BAT entries | `bat::split` | `Writer::close` |
//! | 2.5.1.1 | states of payload blocks | `Piece::payload`, `Reader::whole` | `Writer::close` |
//! | 2.5.1.2 | states of sector bitmap blocks | `Bat::sector_bitmap` | `Writer::end_chunk` |
//! | 2.6.1 | metadata table | `metadata::Table` | `Metadata::encode` |
//! | 2.6.2.1 to 2.6.2.5 | file parameters, sizes, identity | `Metadata::read` | `Settings::parse` |
//! | 2.6.2.6 | parent locator | `ParentLocator::parse` | `ParentLocator::encode` |
//! | 2.6.2.6.3 | paths and linkage of a parent | `ParentLocator::reference` | `Parent::of` |

mod bat;
mod check;
mod header;
mod locator;
mod log;
mod metadata;
mod options;
mod reader;
mod redundant_copy;
mod region;
#[cfg(test)]
mod sample;
mod structure;
mod writer;

use crate::driver::{FormatDriver, Probe};
use crate::format::shared::table::Fields;

pub(crate) static DRIVER: FormatDriver =
    FormatDriver::new(FORMAT_NAME, probe, |source, cx| Ok(Box::new(reader::Reader::open(source, cx)?)))
        .extensions(&["vhdx", "avhdx"])
        .description("virtual hard disk of Hyper-V and Windows, fixed, dynamic or differencing")
        .create(writer::create, options::OPTIONS)
        .check(check::check);

const FORMAT_NAME: &str = "vhdx";
/// What everything in a file is aligned to (2.2).
const MIB: u64 = 1 << 20;
/// The header section, before which nothing else may be (2.2).
const HEADER_SECTION: u64 = MIB;

fn probe(probe: &Probe<'_>) -> bool {
    probe.head.starts_with(header::FILE_SIGNATURE)
}

/// The fields of this format, for messages.
const FIELDS: Fields = Fields(FORMAT_NAME);

/// Whether the checksum of a structure holds, which is its 4 bytes at offset 4. Fuzzers are let past it.
fn checksum_holds(bytes: &[u8]) -> bool {
    let stored = bytes.get(4..).and_then(<[u8]>::first_chunk).map(|stored| u32::from_le_bytes(*stored));
    cfg!(fuzzing) || stored == Some(checksum(bytes))
}

/// The CRC-32C of a structure whose own checksum, 4 bytes at offset 4, counts as zeros.
fn checksum(bytes: &[u8]) -> u32 {
    let (before, rest) = bytes.split_at(bytes.len().min(4));
    let crc = crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]);
    crc32c::crc32c_append(crc, rest.get(4..).unwrap_or_default())
}
