//! VHDX, the format of Hyper-V and Windows. Reads every type of image and replays the log; writes every type.
//!
//! # Layout
//!
//! Integers are little-endian, as are the first three fields of GUIDs. Everything after the first MiB is aligned to 1 MiB.
//! Sections are those of the document.
//!
//! | offset | content | section | module |
//! |---|---|---|---|
//! | 0 | file identifier: signature and creator | 2.2.1 | `header` |
//! | 64 KiB, 128 KiB | two headers; the one with the higher sequence number is current: GUIDs, range of the log | 2.2.2 | `header` |
//! | 192 KiB, 256 KiB | two identical region tables: ranges of the BAT and the metadata | 2.2.3 | `region` |
//! | in the header | log: a ring buffer of entries with copies of sectors to be written elsewhere | 2.3 | `log` |
//! | in the region table | metadata: sizes of the disk, its blocks and its sectors, disk ID, parent | 2.6 | `metadata`, `locator` |
//! | in the region table | block allocation table (BAT): state and host offset of each payload block and sector bitmap block | 2.5 | `bat` |
//! | in the BAT | payload blocks: guest data; sector bitmap blocks: the sectors present in this file | 2.4 | `reader` |
//!
//! # Support
//!
//! | feature | read | written |
//! |---|---|---|
//! | fixed, dynamic | yes | yes |
//! | differencing | yes | yes |
//! | paths of the parent: relative, volume, absolute | yes, in this order | relative or absolute |
//! | identity of the parent: `parent_linkage`, and `parent_linkage2` during a merge | yes | the first |
//! | blocks of 1 to 256 MiB, disks up to 64 TiB | yes | yes |
//! | empty disks | yes | no: neither qemu nor 7-Zip opens them |
//! | sectors of 512 and of 4096 bytes | yes | yes |
//! | a log to replay | yes, in memory | the log is empty |
//! | writing in place, by a guest | | yes, with the log; disks grow, and shrink where they have no data; another parent |
//! | a damaged header or region table | yes, from the other one, with a warning | |
//! | two identical headers (disk2vhd), regions in any order or not marked as required (qemu) | yes | |
//! | a last block truncated at the end of the disk (old versions of qemu) | yes | whole blocks |
//! | unknown regions and metadata items | ignored unless required | |
//!
//! # The log
//!
//! A killed writer leaves a log that has to be replayed; until then the rest of the file is not valid. The log is replayed in
//! memory over a file that is never written to, and everything, guest data included, is read through this overlay. An image of a
//! crashed machine on a read-only medium therefore reads as it would in Windows. Bytes that the replay adds at the end of the file are
//! a hole; their number is bounded, see `log`.
//!
//! If the header marks the log as not empty, and the log has no valid sequence of entries, the file is refused, as the document
//! requires (2.3.3), unless the log has no trace of an entry with its GUID: all its sectors are zeros or belong to entries of earlier
//! logs. A writer that is killed before it writes its first entry leaves such a file. Then there is nothing to replay, which a warning
//! says. Valid entries that are newer than the sequence cause a warning: a crash leaves them, and so does damage to an entry before
//! them.
//!
//! A log that writes to the headers or to itself is corrupt, and so is one that damages a region table. One that writes a valid region
//! table is not: tables are updated through the log only (2.2.3).
//!
//! # Block contents
//!
//! Without a parent, the document leaves the content of blocks that are not present undefined; here they read as zeros, as in
//! every other program. `UNDEFINED`, `ZERO` and `UNMAPPED` blocks read as zeros, with or without a parent. Holes of the file
//! inside a block are zeros and are not read.
//!
//! # New images
//!
//! Regions are in the order of Windows: log, metadata, BAT, payload. The creator is the name of this crate: the document says that it
//! identifies the program, and readers must not depend on it. Block sizes are the defaults of Windows: 32 MiB in a dynamic image,
//! 2 MiB in others. In a fixed image, blocks are 1 MiB if the disk size is not a multiple of 2 MiB, which keeps the file small.
//!
//! # References
//!
//! Microsoft, "\[MS-VHDX\]: Virtual Hard Disk v2 (VHDX) File Format", version of 2024-04-23, cited as "the document" by section
//! number. The sections are implemented in:
//!
//! | section | content | read | written |
//! |---|---|---|---|
//! | 2.2 | alignment to 1 MiB, no overlaps | `region::parse_range`, `region::check_overlaps`, `check::Allocations` | `writer::regions` |
//! | 2.2.1 | file type identifier | `header::read_creator` | `header::encode_identifier` |
//! | 2.2.2 | headers, the current header | `Header::parse`, `header::current` | `Header::encode`, `Writer::finish`, `update::journal` |
//! | 2.2.3 | region table | `Regions::read`, `region::parse` | `Regions::encode` |
//! | 2.3.1 | log entries | `LogEntry::read` | `log::encode` |
//! | 2.3.1.1 | entry header | `LogEntry::parse` | `log::encode` |
//! | 2.3.1.2, 2.3.1.3 | zero and data descriptors | `is_data_descriptor`, `LogEntry::descriptors` | `log::encode` |
//! | 2.3.1.4 | data sectors | `entry::is_data_sector`, `Overlay::sector` | `log::encode` |
//! | 2.3.2 | log sequences | `sequence::active` | `Update::flush` |
//! | 2.3.3 | log replay | `log::replay`, `Overlay::put` | `Overlay::write_to` |
//! | 2.4 | payload blocks, sector bitmaps, chunks | `Metadata::chunk_ratio`, `Reader::partial` | `SectorBitmap` |
//! | 2.5 | BAT, interleaved entries | `Bat::new`, `Bat::page` | `Table`, `Writer::map` |
//! | 2.5.1 | BAT entries | `bat::split` | `Writer::close` |
//! | 2.5.1.1 | states of payload blocks | `Bat::parse`, `Bat::kind` | `Writer::close` |
//! | 2.5.1.2 | states of sector bitmap blocks | `Bat::parse_sector_bitmap` | `Writer::end_chunk` |
//! | 2.6.1 | metadata table | `metadata::Table` | `Metadata::encode` |
//! | 2.6.2.1 to 2.6.2.5 | file parameters, sizes, identity | `Metadata::read` | `Settings::parse` |
//! | 2.6.2.6 | parent locator | `ParentLocator::parse` | `ParentLocator::encode` |
//! | 2.6.2.6.3 | paths and linkage of a parent | `ParentLocator::reference` | `Parent::from_context` |

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
mod update;
mod writer;

use crate::driver::FormatDriver;
use crate::format::shared::crc32c_without;
use crate::format::shared::signature;
use crate::format::shared::table::Fields;

pub(crate) static DRIVER: FormatDriver =
    FormatDriver::new(FORMAT_NAME, signature::is_vhdx, |source, cx| Ok(Box::new(reader::Reader::open(source, cx)?)))
        .extensions(&["vhdx", "avhdx"])
        .description("virtual hard disk of Hyper-V and Windows, fixed, dynamic or differencing")
        .create(writer::create, options::OPTIONS)
        .check(check::check)
        .update(|file, cx| Ok(Box::new(update::Update::open(file, cx)?)))
        .repair(update::repair);

const FORMAT_NAME: &str = "vhdx";
/// Alignment of all structures after the header section (2.2).
const MIB: u64 = 1 << 20;
/// Bytes of the header section at the start of the file (2.2).
const HEADER_SECTION: u64 = MIB;

/// The fields of this format, for messages.
const FIELDS: Fields = Fields(FORMAT_NAME);

/// Whether the checksum of a structure, 4 bytes at offset 4, is correct. Fuzzing skips it.
fn checksum_matches(bytes: &[u8]) -> bool {
    let on_disk = bytes.get(4..).and_then(<[u8]>::first_chunk).map(|on_disk| u32::from_le_bytes(*on_disk));
    cfg!(fuzzing) || on_disk == Some(checksum(bytes))
}

/// The CRC-32C of a structure with its checksum field, 4 bytes at offset 4, as zeros.
fn checksum(bytes: &[u8]) -> u32 {
    crc32c_without(bytes, 4)
}
