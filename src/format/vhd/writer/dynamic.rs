//! Dynamic and differencing disks.
//!
//! Layout: the copy of the footer; the header; the block allocation table; the parent's path; the blocks in guest order, each
//! after its bitmap and with guest data aligned to 4 KiB; the footer.

use std::ops::Range;
use std::sync::Arc;

use super::{footer, no_compression, sync, write};
use crate::driver::{CreateContext, Placement, SparseWrite, WriteSpec};
use crate::error::{Error, Result};
use crate::format::vhd::SECTOR;
use crate::format::vhd::blocks::UNALLOCATED;
use crate::format::vhd::footer::{DiskType, Footer};
use crate::format::vhd::header::{self, Header};
use crate::format::vhd::locator::Locator;
use crate::format::vhd::options::{Parent, Settings, limit};
use crate::identifiers::ImageIdentifiers;
use crate::io::WriteAt;
use crate::name::{Name, utf16};

/// Alignment of the guest data in blocks.
const ALIGNMENT: u64 = 4096;
/// Host offset of the table, after the copy of the footer and the header.
const TABLE_OFFSET: u64 = Footer::LEN + Header::LEN;
/// The largest sector number in an entry of an allocated block.
const MAX_SECTOR: u64 = UNALLOCATED as u64 - 1;

pub(super) struct DynamicWriter {
    spec: WriteSpec,
    out: Arc<dyn WriteAt>,
    settings: Settings,
    header: Header,
    /// The encoded path in the parent locator.
    parent_path: Vec<u8>,
    table: Vec<u32>,
    /// In a differencing disk, the index of the block placed last and its sector bitmap.
    bitmap: Option<(u64, Vec<u8>)>,
    /// Host offset of the next block.
    next: u64,
}

impl DynamicWriter {
    pub fn create(
        cx: &CreateContext<'_>,
        settings: Settings,
        block_size: u32,
        parent: Option<&Parent>,
    ) -> Result<DynamicWriter> {
        let out = cx.out.clone();
        // Some programs refuse an empty table.
        let blocks = settings.size.div_ceil(block_size.into()).max(1);
        let mut header = Header {
            table_offset: TABLE_OFFSET,
            max_table_entries: blocks as u32,
            block_size,
            parent: header::Parent::default(),
        };
        let mut next = TABLE_OFFSET + header.table_len().next_multiple_of(SECTOR);
        let mut parent_path = Vec::new();
        if let Some(parent) = parent {
            let (path, platform) = windows_path(&parent.name);
            parent_path = utf16(&path, u16::to_le_bytes);
            let space = (parent_path.len() as u64).next_multiple_of(SECTOR);
            header.parent = header::Parent {
                unique_id: parent.unique_id,
                timestamp: parent.timestamp,
                name: Name::from(path.rsplit('\\').next().unwrap_or_default()),
                // Microsoft's programs count the space in bytes.
                locators: vec![Locator {
                    platform,
                    space: space as u32,
                    len: parent_path.len() as u32,
                    offset: next,
                    at: 0,
                }],
            };
            next += space;
        }
        // Assumes that every block is allocated: an image that can grow too large is refused before hours of writing.
        let stride = (u64::from(block_size) + header.bitmap_len()).next_multiple_of(ALIGNMENT);
        let end = next + ALIGNMENT + blocks * stride;
        limit("image size in sectors", end / SECTOR, MAX_SECTOR)?;
        if !out.starts_zeroed() {
            // The footer copy and the header of an old image must not describe the new one while it is incomplete.
            out.zero_range(0..next).map_err(Error::io("clearing the beginning", 0))?;
        }
        let differencing = parent.is_some();
        let spec = WriteSpec {
            virtual_size: settings.size,
            block_size: block_size.into(),
            // Unplaced parts of a block are holes of a new file, or read from the parent.
            granule: if out.starts_zeroed() { SECTOR } else { block_size.into() },
            over_backing: differencing,
            host_alignment: ALIGNMENT,
            ..WriteSpec::default()
        };
        Ok(DynamicWriter {
            spec,
            out,
            settings,
            header,
            parent_path,
            table: vec![UNALLOCATED; blocks as usize],
            bitmap: None,
            next,
        })
    }

    /// Returns the host offset of the guest data of block `index`, and whether the block was allocated now.
    fn block(&mut self, index: u64) -> Result<(u64, bool)> {
        let Some(entry) = self.table.get_mut(index as usize) else {
            return Err(Error::Usage(format!("block {index} is beyond the end of the disk")));
        };
        let bitmap_len = self.header.bitmap_len();
        if *entry != UNALLOCATED {
            return Ok((u64::from(*entry) * SECTOR + bitmap_len, false));
        }
        let data = (self.next + bitmap_len).next_multiple_of(ALIGNMENT);
        // `create` checked that all blocks fit.
        *entry = ((data - bitmap_len) / SECTOR) as u32;
        self.next = data + u64::from(self.header.block_size);
        Ok((data, true))
    }

    /// Returns the host offset of the guest data of block `index` of a differencing disk, and marks the bytes `within` as
    /// present.
    fn mark_present(&mut self, index: u64, within: Range<u64>) -> Result<u64> {
        if self.bitmap.as_ref().is_none_or(|(open, _)| *open != index) {
            self.flush_bitmap()?;
            self.bitmap = Some((index, vec![0; self.header.bitmap_len() as usize]));
        }
        if let Some((_, bitmap)) = &mut self.bitmap {
            for sector in within.start / SECTOR..within.end.div_ceil(SECTOR) {
                if let Some(byte) = bitmap.get_mut((sector / 8) as usize) {
                    *byte |= 0x80 >> (sector % 8);
                }
            }
        }
        Ok(self.block(index)?.0)
    }

    fn flush_bitmap(&mut self) -> Result<()> {
        let Some((index, bitmap)) = self.bitmap.take() else { return Ok(()) };
        let (data, _) = self.block(index)?;
        write(&*self.out, &bitmap, data - bitmap.len() as u64, "writing a bitmap")
    }

    /// The index of the first block of `guest`, and the part of `guest` in it, relative to the block.
    fn first_block(&self, guest: &Range<u64>) -> (u64, Range<u64>) {
        let size = self.spec.block_size;
        let index = guest.start / size;
        let start = index * size;
        (index, guest.start - start..guest.end.min(start + size) - start)
    }

    fn clear(&self, range: Range<u64>) -> Result<()> {
        if self.out.starts_zeroed() || range.is_empty() {
            return Ok(());
        }
        let start = range.start;
        self.out.zero_range(range).map_err(Error::io("clearing a block", start))
    }

    /// Writes the table, padded to a sector with unallocated entries.
    fn write_table(&self) -> Result<()> {
        const CHUNK: usize = 16 << 10;
        let mut at = self.header.table_offset;
        for chunk in self.table.chunks(CHUNK) {
            let mut bytes: Vec<u8> = chunk.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0xff);
            write(&*self.out, &bytes, at, "writing the block allocation table")?;
            at += bytes.len() as u64;
        }
        Ok(())
    }
}

impl SparseWrite for DynamicWriter {
    fn spec(&self) -> &WriteSpec {
        &self.spec
    }

    fn place(&mut self, guest: Range<u64>) -> Result<Placement> {
        let (index, within) = self.first_block(&guest);
        let len = within.end - within.start;
        let out = self.out.clone();
        if self.spec.over_backing {
            let offset = self.mark_present(index, within.clone())? + within.start;
            return Ok(Placement { out, offset, before: Vec::new(), len });
        }
        let (data, new) = self.block(index)?;
        let offset = data + within.start;
        if !new {
            return Ok(Placement { out, offset, before: Vec::new(), len });
        }
        // The last block can extend beyond the disk.
        self.clear(data + within.end..data + self.spec.block_size)?;
        let bitmap = vec![0xff; self.header.bitmap_len() as usize];
        let bitmap_at = data - self.header.bitmap_len();
        if within.start == 0 {
            return Ok(Placement { out, offset: bitmap_at, before: bitmap, len });
        }
        write(&*self.out, &bitmap, bitmap_at, "writing a bitmap")?;
        Ok(Placement { out, offset, before: Vec::new(), len })
    }

    fn place_compressed(&mut self, _guest: Range<u64>, _payload_len: u32) -> Result<Placement> {
        Err(no_compression())
    }

    fn zero(&mut self, guest: Range<u64>) -> Result<()> {
        if !self.spec.over_backing {
            return Ok(());
        }
        // Zeros hide the parent: their sectors are present, and holes of the file.
        let mut at = guest.start;
        while at < guest.end {
            let (index, within) = self.first_block(&(at..guest.end));
            let data = self.mark_present(index, within.clone())?;
            self.clear(data + within.start..data + within.end)?;
            at += within.end - within.start;
        }
        Ok(())
    }

    /// Writes the footers last: they mark the image complete.
    fn finish(&mut self, identifiers: &ImageIdentifiers) -> Result<()> {
        self.flush_bitmap()?;
        self.write_table()?;
        if let Some(locator) = self.header.parent.locators.first() {
            write(&*self.out, &self.parent_path, locator.offset, "writing the path of the parent")?;
        }
        write(&*self.out, &self.header.encode(), Footer::LEN, "writing the header")?;
        let len = self.next + Footer::LEN;
        self.out.set_len(len).map_err(Error::io("setting the length", len))?;
        sync(&*self.out)?;
        let disk_type = if self.spec.over_backing { DiskType::Differencing } else { DiskType::Dynamic };
        let footer = footer(&self.settings, disk_type, Footer::LEN, identifiers).encode();
        write(&*self.out, &footer, 0, "writing the copy of the footer")?;
        write(&*self.out, &footer, self.next, "writing the footer")?;
        sync(&*self.out)
    }
}

/// The Windows form of a path, and the platform code of its locator.
pub(in crate::format::vhd) fn windows_path(name: &Name) -> (String, [u8; 4]) {
    let path = name.to_text().replace('/', "\\");
    if path.starts_with('\\') {
        (path, Locator::W2KU)
    } else {
        (format!(".\\{}", path.strip_prefix(".\\").unwrap_or(&path)), Locator::W2RU)
    }
}
