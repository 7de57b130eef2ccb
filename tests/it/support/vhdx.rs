//! Builds VHDX images from the specification [MS-VHDX] alone: blocks in every state, parents, pending logs, and the habits of
//! other programs. It shares no code with the crate, and other programs read its images.

mod log;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::pattern::Random;

pub use log::{Change, Log};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;

/// A GUID in its order of bytes on disk.
pub type Guid = [u8; 16];

const BAT: &str = "2dc27766-f623-4200-9d64-115e9bfd4a08";
const METADATA: &str = "8b7ca206-4790-4b9a-b8fe-575f050f886e";
const FILE_PARAMETERS: &str = "caa16737-fa36-4d43-b3b6-33f0aa44e76b";
const VIRTUAL_DISK_SIZE: &str = "2fa54224-cd1b-4876-b211-5dbed83bf4b8";
const VIRTUAL_DISK_ID: &str = "beca12ab-b2e6-4523-93ef-c309e000c746";
const LOGICAL_SECTOR_SIZE: &str = "8141bf1d-a96f-4709-ba47-f233a8faab5f";
const PHYSICAL_SECTOR_SIZE: &str = "cda348c7-445d-4471-9cc9-e9885251c556";
const PARENT_LOCATOR: &str = "a8d35f2d-b30b-454d-abf7-d3d84834ab0c";
const PARENT_LOCATOR_TYPE: &str = "b04aefb7-d19e-4a81-b789-25b8e9445913";

/// Whose habits an image has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// The log, the metadata, the BAT, the blocks; both regions are required.
    Windows,
    /// The log, the BAT, the metadata, a gap, the blocks; no region is required, and the items come in another order.
    Qemu,
    /// Two headers that are the same, with the number 1.
    Disk2vhd,
}

pub const MAKERS: [Maker; 3] = [Maker::Windows, Maker::Qemu, Maker::Disk2vhd];

/// Bytes at offsets within a block.
pub type Pieces = Vec<(u64, Vec<u8>)>;

/// A payload block.
#[derive(Clone, Debug)]
pub enum Block {
    /// A state that has no payload; the entry points to stale bytes, which must not be read.
    Without(u64),
    /// State 6.
    Full(Pieces),
    /// State 7: the sectors of the block that are here. The others hold junk, which must not be read.
    Partial(Pieces, Vec<Range<u64>>),
    /// An entry as it is.
    Entry(u64),
}

pub const NOT_PRESENT: u64 = 0;
pub const UNDEFINED: u64 = 1;
pub const ZERO: u64 = 2;
pub const UNMAPPED: u64 = 3;
/// What version 0.95 of the document had for it.
pub const OLD_UNMAPPED: u64 = 5;
pub const FULLY_PRESENT: u64 = 6;
pub const PARTIALLY_PRESENT: u64 = 7;

/// An image to be written.
#[derive(Clone, Debug)]
pub struct Vhdx {
    pub maker: Maker,
    pub size: u64,
    pub block_size: u64,
    pub sector_size: u64,
    pub fixed: bool,
    /// Those that are missing at the end are not present.
    pub blocks: Vec<Block>,
    pub data_write_guid: Guid,
    /// The entries of the parent locator, where there is one.
    pub parent: Option<Vec<(&'static str, String)>>,
    /// Further regions of a MiB, and whether they are required.
    pub regions: Vec<(Guid, bool)>,
    /// Further items of metadata, and their flags.
    pub items: Vec<(Guid, u32)>,
    /// The last block ends with the disk, as old versions of qemu had it.
    pub short_tail: bool,
    pub log_len: u64,
}

/// Where things are in a file.
#[derive(Clone, Debug)]
pub struct Places {
    pub log: Range<u64>,
    pub bat: u64,
    pub metadata: u64,
    /// Of each payload block.
    pub blocks: Vec<u64>,
    /// Of each sector bitmap block.
    pub bitmaps: Vec<u64>,
    pub len: u64,
    chunk_ratio: u64,
}

impl Places {
    /// Where the BAT entry of a payload block is.
    pub fn entry(&self, block: u64) -> u64 {
        self.bat + (block + block / self.chunk_ratio) * 8
    }

    /// Where the BAT entry of a sector bitmap block is.
    pub fn bitmap_entry(&self, chunk: u64) -> u64 {
        self.bat + (chunk * (self.chunk_ratio + 1) + self.chunk_ratio) * 8
    }
}

impl Vhdx {
    pub fn new(size: u64, block_size: u64, sector_size: u64) -> Vhdx {
        Vhdx {
            maker: Maker::Windows,
            size,
            block_size,
            sector_size,
            fixed: false,
            blocks: Vec::new(),
            data_write_guid: guid("11111111-2222-4333-8444-555555555555"),
            parent: None,
            regions: Vec::new(),
            items: Vec::new(),
            short_tail: false,
            log_len: MIB,
        }
    }

    fn payload_blocks(&self) -> u64 {
        self.size.div_ceil(self.block_size)
    }

    /// Payload blocks that one sector bitmap block describes (2.4).
    fn chunk_ratio(&self) -> u64 {
        (self.sector_size << 23) / self.block_size
    }

    fn chunks(&self) -> u64 {
        self.payload_blocks().div_ceil(self.chunk_ratio())
    }

    /// Bytes of the BAT, with an entry for the sector bitmap block of the last chunk, which a disk without a parent could
    /// do without (2.5).
    fn bat_len(&self) -> u64 {
        (self.chunks() * (self.chunk_ratio() + 1) * 8).next_multiple_of(MIB)
    }

    /// Writes the image.
    pub fn write(&self, path: &Path) -> Places {
        let places = self.places();
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        file.set_len(places.len).unwrap();
        let write = |bytes: &[u8], at: u64| file.write_all_at(bytes, at).unwrap();
        let creator = match self.maker {
            Maker::Windows => "Microsoft Windows 10.0.19041.0",
            Maker::Qemu => "QEMU v10.0.2",
            Maker::Disk2vhd => "d2v",
        };
        write(&[b"vhdxfile", &*utf16(creator)].concat(), 0);
        for (number, at) in [64 * KIB, 128 * KIB].into_iter().enumerate() {
            let sequence = if self.maker == Maker::Disk2vhd { 1 } else { 7 + number as u64 };
            write(&header(sequence, &self.data_write_guid, &[0; 16], &places.log), at);
        }
        let table = self.region_table(&places);
        write(&table, 192 * KIB);
        write(&table, 256 * KIB);
        write(&self.metadata(), places.metadata);
        for (index, block) in self.blocks.iter().enumerate() {
            self.write_block(&write, &places, index as u64, block);
        }
        for (chunk, at) in places.bitmaps.iter().enumerate().filter(|(_, at)| **at != 0) {
            write(&(at | FULLY_PRESENT).to_le_bytes(), places.bitmap_entry(chunk as u64));
        }
        places
    }

    /// What comes where. Blocks are stored from the last to the first, as no reader expects them.
    fn places(&self) -> Places {
        let bat_len = self.bat_len();
        let log = MIB..MIB + self.log_len;
        let (metadata, bat) = match self.maker {
            Maker::Qemu => (log.end + bat_len, log.end),
            _ => (log.end, log.end + MIB),
        };
        let mut len = log.end + bat_len + MIB + self.regions.len() as u64 * MIB;
        if self.maker == Maker::Qemu {
            len = len.max(8 * MIB);
        }
        let mut bitmaps = vec![0; self.chunks() as usize];
        let mut blocks = vec![0; self.blocks.len()];
        let mut order: Vec<_> = (0..blocks.len()).collect();
        if !self.short_tail {
            order.reverse();
        }
        for index in order {
            let stored = match &self.blocks[index] {
                Block::Partial(..) => {
                    let bitmap = &mut bitmaps[index / self.chunk_ratio() as usize];
                    if *bitmap == 0 {
                        *bitmap = len;
                        len += MIB;
                    }
                    true
                }
                Block::Full(_) => true,
                Block::Without(state) => !matches!(*state, NOT_PRESENT | ZERO),
                Block::Entry(_) => false,
            };
            if stored {
                blocks[index] = len;
                len += self.block_size;
            }
        }
        if self.short_tail {
            len -= self.payload_blocks() * self.block_size - self.size;
        }
        Places { log, bat, metadata, blocks, bitmaps, len, chunk_ratio: self.chunk_ratio() }
    }

    fn write_block(&self, write: &dyn Fn(&[u8], u64), places: &Places, index: u64, block: &Block) {
        let at = places.blocks[index as usize];
        let junk = || Random::new(index + 99).bytes(4 * KIB as usize);
        let entry = match block {
            Block::Entry(entry) => *entry,
            Block::Without(state) => {
                if at != 0 {
                    write(&junk(), at);
                }
                at | state
            }
            Block::Full(pieces) => {
                pieces.iter().for_each(|(offset, bytes)| write(bytes, at + offset));
                at | FULLY_PRESENT
            }
            Block::Partial(pieces, present) => {
                let (sectors, junk) = (self.block_size / self.sector_size, junk());
                for sector in (0..sectors.min(4096)).filter(|sector| !present.iter().any(|run| run.contains(sector))) {
                    write(&junk[..self.sector_size as usize], at + sector * self.sector_size);
                }
                pieces.iter().for_each(|(offset, bytes)| write(bytes, at + offset));
                // The first sector has the lowest bit of the first byte (2.4).
                let mut bits = vec![0; sectors as usize / 8];
                for sector in present.iter().cloned().flatten() {
                    bits[sector as usize / 8] |= 1 << (sector % 8);
                }
                let chunk = index / places.chunk_ratio;
                write(&bits, places.bitmaps[chunk as usize] + index % places.chunk_ratio * sectors / 8);
                at | PARTIALLY_PRESENT
            }
        };
        write(&entry.to_le_bytes(), places.entry(index));
    }

    fn region_table(&self, places: &Places) -> Vec<u8> {
        let required = u32::from(self.maker != Maker::Qemu);
        let bat_len = self.bat_len();
        let mut regions =
            vec![(guid(BAT), places.bat, bat_len, required), (guid(METADATA), places.metadata, MIB, required)];
        let others = (places.bat + bat_len).max(places.metadata + MIB);
        for (number, (guid, required)) in self.regions.iter().enumerate() {
            regions.push((*guid, others + number as u64 * MIB, MIB, u32::from(*required)));
        }
        let mut table = [&b"regi"[..], &[0; 4], &(regions.len() as u32).to_le_bytes(), &[0; 4]].concat();
        for (guid, at, len, required) in regions {
            let fields = [&guid[..], &at.to_le_bytes(), &(len as u32).to_le_bytes(), &required.to_le_bytes()];
            table.extend(fields.concat());
        }
        table.resize(64 << 10, 0);
        seal(table)
    }

    fn metadata(&self) -> Vec<u8> {
        let physical = if self.maker == Maker::Windows { 4096 } else { self.sector_size as u32 };
        let flags = u32::from(self.fixed) | u32::from(self.parent.is_some()) << 1;
        let parameters = [(self.block_size as u32).to_le_bytes(), flags.to_le_bytes()].concat();
        let mut items = vec![
            (guid(FILE_PARAMETERS), 4, parameters),
            (guid(VIRTUAL_DISK_SIZE), 6, self.size.to_le_bytes().to_vec()),
            (guid(LOGICAL_SECTOR_SIZE), 6, (self.sector_size as u32).to_le_bytes().to_vec()),
            (guid(PHYSICAL_SECTOR_SIZE), 6, physical.to_le_bytes().to_vec()),
            (guid(VIRTUAL_DISK_ID), 6, guid("99999999-8888-4777-8666-555555555555").to_vec()),
        ];
        if self.maker == Maker::Qemu {
            let id = items.pop().unwrap();
            items.insert(2, id);
        }
        items.extend(self.parent.iter().map(|entries| (guid(PARENT_LOCATOR), 4, locator(entries))));
        items.extend(self.items.iter().map(|(guid, flags)| (*guid, *flags, b"what it is".to_vec())));
        let mut table = [&b"metadata"[..], &[0; 2], &(items.len() as u16).to_le_bytes(), &[0; 20]].concat();
        let mut values = Vec::new();
        for (guid, flags, value) in items {
            let fields = [64 * KIB as u32 + values.len() as u32, value.len() as u32, flags, 0];
            table.extend(guid);
            table.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
            values.extend(value);
        }
        table.resize(64 << 10, 0);
        [table, values].concat()
    }
}

/// A parent locator (2.6.2.6): the entries, then what they point to.
fn locator(entries: &[(&str, String)]) -> Vec<u8> {
    let mut item = [&guid(PARENT_LOCATOR_TYPE)[..], &[0; 2], &(entries.len() as u16).to_le_bytes()].concat();
    let mut texts = Vec::new();
    for (key, value) in entries {
        let (key, value) = (utf16(key), utf16(value));
        let at = (20 + entries.len() * 12 + texts.len()) as u32;
        item.extend(at.to_le_bytes());
        item.extend((at + key.len() as u32).to_le_bytes());
        item.extend((key.len() as u16).to_le_bytes());
        item.extend((value.len() as u16).to_le_bytes());
        texts.extend([key, value].concat());
    }
    [item, texts].concat()
}

fn header(sequence: u64, data_write_guid: &Guid, log_guid: &Guid, log: &Range<u64>) -> Vec<u8> {
    let file_write_guid = guid("aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee");
    let mut header =
        [&b"head"[..], &[0; 4], &sequence.to_le_bytes(), &file_write_guid, data_write_guid, log_guid].concat();
    header.extend([0, 0, 1, 0]);
    header.extend(((log.end - log.start) as u32).to_le_bytes());
    header.extend(log.start.to_le_bytes());
    header.resize(4096, 0);
    seal(header)
}

/// A GUID as it is on disk: the first three groups are numbers, with the lowest byte first.
pub fn guid(text: &str) -> Guid {
    let digits: String = text.chars().filter(|digit| *digit != '-').collect();
    let mut bytes: Guid = u128::from_str_radix(&digits, 16).unwrap().to_be_bytes();
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// With the checksum at offset 4, which counts as zeros in it.
pub fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[4..8].fill(0);
    let sum = crc32c(&bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// CRC-32C, a byte at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut crc = index as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[index] = crc;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}
