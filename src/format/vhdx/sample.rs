//! Images for tests, built from BAT entries, sector bitmaps, and a sparse file of any length.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use uuid::Uuid;

use super::MIB;
use super::header::Header;
use super::locator::ParentLocator;
use super::metadata::Metadata;
use super::region::{Region, Regions};
use super::structure::Structure;
use crate::io::ReadAt;
use crate::name::Name;

/// Host offset of the metadata region.
pub(super) const METADATA: u64 = 2 * MIB;
/// Host offset of the BAT region.
pub(super) const BAT: u64 = 3 * MIB;

/// A description of an image.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// Size of the disk in bytes.
    pub size: u64,
    pub block_size: u32,
    pub sector_size: u32,
    pub differencing: bool,
    /// Entries of payload blocks.
    pub blocks: Vec<u64>,
    /// Entries of sector bitmap blocks, one for each chunk.
    pub bitmaps: Vec<u64>,
    /// Data of the file outside the table, with host offsets.
    pub bytes: Vec<(u64, Vec<u8>)>,
    pub file_len: u64,
}

impl Sample {
    /// An image whose disk has the size of these blocks, and no data in the file.
    pub fn new(block_size: u64, differencing: bool, blocks: &[u64], file_len: u64) -> Sample {
        let sample = Sample {
            size: blocks.len() as u64 * block_size,
            block_size: block_size as u32,
            sector_size: 512,
            differencing,
            blocks: blocks.to_vec(),
            bitmaps: Vec::new(),
            bytes: Vec::new(),
            file_len,
        };
        let chunks = blocks.len().div_ceil(sample.chunk_ratio());
        Sample { bitmaps: vec![0; chunks], ..sample }
    }

    /// The entry of a block in this state at this host offset.
    pub fn entry(state: u64, host_offset: u64) -> u64 {
        assert!(host_offset.is_multiple_of(MIB));
        host_offset | state
    }

    pub fn chunk_ratio(&self) -> usize {
        self.metadata().chunk_ratio() as usize
    }

    fn metadata(&self) -> Metadata {
        let linkage = ("parent_linkage".to_owned(), Uuid::from_u128(7).braced().to_string());
        Metadata {
            block_size: self.block_size,
            leave_block_allocated: false,
            virtual_disk_size: self.size,
            virtual_disk_id: Uuid::from_u128(1),
            logical_sector_size: self.sector_size,
            physical_sector_size: 4096,
            parent: self.differencing.then(|| ParentLocator { entries: vec![linkage] }),
            ignores_locator: false,
            block_size_at: 0,
            virtual_disk_size_at: 0,
        }
    }

    /// The file and its metadata.
    pub fn structure(&self) -> Structure {
        let ratio = self.chunk_ratio();
        let mut bat = Vec::new();
        for (chunk, bitmap) in self.blocks.chunks(ratio).zip(&self.bitmaps) {
            bat.extend_from_slice(chunk);
            if chunk.len() == ratio || self.differencing {
                bat.resize(bat.len() + ratio - chunk.len(), 0);
                bat.push(*bitmap);
            }
        }
        let mut pieces: BTreeMap<_, _> = self.bytes.iter().cloned().collect();
        let bat_len = (bat.len() as u64 * 8).next_multiple_of(MIB).max(MIB);
        pieces.insert(BAT, bat.iter().flat_map(|entry| entry.to_le_bytes()).collect());
        let file = Pieces { len: self.file_len, pieces };
        let header = Header {
            sequence_number: 1,
            file_write_guid: Uuid::from_u128(2),
            data_write_guid: Uuid::from_u128(3),
            log_guid: Uuid::nil(),
            log: MIB..2 * MIB,
        };
        let regions = Regions {
            bat: Region { range: BAT..BAT + bat_len, at: 0x3_0010 },
            metadata: Region { range: METADATA..METADATA + MIB, at: 0x3_0030 },
            others: Vec::new(),
        };
        Structure {
            file: Arc::new(file),
            file_len: self.file_len,
            creator: Name::from("a test"),
            header,
            header_at: super::header::HEADERS_AT[0],
            regions,
            metadata: self.metadata(),
            replay: None,
            overlay: None,
            header_warning: None,
            table_warning: None,
        }
    }
}

/// A file of a few pieces of data with zeros between them.
struct Pieces {
    len: u64,
    pieces: BTreeMap<u64, Vec<u8>>,
}

impl ReadAt for Pieces {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = self.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        buf[..len].fill(0);
        for (start, bytes) in &self.pieces {
            let from = offset.max(*start);
            let to = (offset + len as u64).min(start + bytes.len() as u64);
            if from < to {
                let source = &bytes[(from - start) as usize..(to - start) as usize];
                buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
            }
        }
        Ok(len)
    }
}

/// The bytes in `hex`, padded with zeros to `len`.
pub(super) fn from_hex(hex: &str, len: usize) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    let mut bytes: Vec<u8> = digits.as_chunks().0.iter().map(|[high, low]| high << 4 | low).collect();
    assert!(bytes.len() <= len);
    bytes.resize(len, 0);
    bytes
}
