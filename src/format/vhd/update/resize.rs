//! The size of a dynamic or differencing disk, and its table.

use byteorder::{BigEndian, ByteOrder};

use super::dynamic::{Dynamic, NEW};
use super::{FooterBytes, sync};
use crate::driver::SparseUpdate;
use crate::error::{Error, Result};
use crate::format::shared::{end_is_allocated, table, whole_sectors};
use crate::format::vhd::blocks::UNALLOCATED;
use crate::format::vhd::footer::Footer;
use crate::format::vhd::header::{CHECKSUM_AT, Header};
use crate::format::vhd::reader::describe;
use crate::format::vhd::{FORMAT_NAME, SECTOR, checksum};
use crate::info::ImageInfo;
use crate::io::write_zeros;

impl Dynamic {
    /// Makes the disk larger, or smaller where it has no data. Lower layers have `below` bytes.
    pub(super) fn set_size(&mut self, size: u64, below: u64) -> Result<()> {
        let (size, old) = (whole_sectors(FORMAT_NAME, size)?, self.blocks.size);
        if size == old {
            return Ok(());
        }
        for index in size.div_ceil(self.blocks.block_size)..old.div_ceil(self.blocks.block_size) {
            if self.entry(index)?.block.is_some() {
                return Err(end_is_allocated(FORMAT_NAME));
            }
        }
        if size > old && old < below {
            return Err(Error::unsupported(FORMAT_NAME, "making a differencing disk larger whose parent is larger"));
        }
        let needed = size.div_ceil(self.blocks.block_size);
        let most = u64::from(UNALLOCATED) / (self.blocks.block_size / SECTOR).max(1);
        if needed > most {
            let limit = most.saturating_mul(self.blocks.block_size);
            return Err(Error::limit(FORMAT_NAME, "virtual size", size, limit));
        }
        if needed > self.header.max_table_entries.into() {
            self.grow_table(needed as u32)?;
        }
        for index in old.div_ceil(self.blocks.block_size)..needed {
            if self.pages.is_full() {
                self.flush()?;
            }
            let entry = self.entry(index)?;
            // What is beyond the end of a disk is not its data.
            if entry.block.is_some() {
                self.pages.write(&UNALLOCATED.to_be_bytes(), entry.at, NEW)?;
            }
        }
        self.flush()?;
        self.write_size(size)
    }

    /// Gives the table this many entries: where it is, or after the blocks, where it can grow. The header then has its offset and
    /// length, in one sector.
    fn grow_table(&mut self, entries: u32) -> Result<()> {
        self.flush()?;
        let (old_at, old_len) = (self.header.table_offset, self.header.table_len());
        let len = (u64::from(entries) * 4).next_multiple_of(SECTOR);
        let offset = if old_at + len <= self.end_of_room()? {
            old_at
        } else {
            self.allocate_space((len + len / 2).next_multiple_of(SECTOR), 0)?.0
        };
        self.pages.forget(&(offset..offset + len));
        let mut bytes = vec![0xff; len as usize];
        let kept = bytes.get_mut(..old_len as usize).unwrap_or_default();
        table::read(&*self.file, kept, old_at)?;
        self.file.write_all_at(&bytes, offset).map_err(Error::io("writing the block allocation table", offset))?;
        sync(&*self.file)?;

        let mut header = [0; Header::LEN as usize];
        table::read(&*self.file, &mut header, self.header_at)?;
        BigEndian::write_u64(&mut header[16..], offset);
        BigEndian::write_u32(&mut header[28..], entries);
        let sum = checksum(&header, CHECKSUM_AT);
        BigEndian::write_u32(&mut header[CHECKSUM_AT..], sum);
        let sector = header.get(..SECTOR as usize).unwrap_or_default();
        self.file.write_all_at(sector, self.header_at).map_err(Error::io("writing the header", self.header_at))?;
        sync(&*self.file)?;
        (self.header.table_offset, self.header.max_table_entries) = (offset, entries);
        Ok(())
    }

    /// Host offset of what follows the table.
    fn end_of_room(&mut self) -> Result<u64> {
        let table_at = self.header.table_offset;
        let mut used: Vec<u64> = self.header.parent.locators.iter().map(|locator| locator.offset).collect();
        used.extend([self.header_at, self.footer_at]);
        used.extend(&self.released);
        let mut end = used.into_iter().filter(|at| *at >= table_at).min().unwrap_or(table_at);
        for index in 0..self.header.max_table_entries.into() {
            end = self.entry(index)?.block.filter(|block| *block >= table_at).map_or(end, |block| end.min(block));
        }
        Ok(end)
    }

    /// Writes the size of the disk.
    fn write_size(&mut self, size: u64) -> Result<()> {
        let mut footer = self.footer.clone();
        footer.set_size(size);
        self.switch_footer(footer)?;
        self.blocks.size = size;
        let described = describe(&Footer::parse(&self.footer.0, self.footer_at, &self.limits)?, size, None);
        let (block_size, backing) = (self.info.block_size, self.info.backing.take());
        self.info = ImageInfo { block_size, backing, ..described };
        Ok(())
    }

    /// Replaces the footer and its copy. They must not contradict each other, so that the footer is missing meanwhile.
    pub(super) fn switch_footer(&mut self, footer: FooterBytes) -> Result<()> {
        let at = self.footer_at;
        write_zeros(&*self.file, at..at + Footer::LEN).map_err(Error::io("clearing the footer", at))?;
        sync(&*self.file)?;
        footer.write(&*self.file, 0)?;
        sync(&*self.file)?;
        self.footer = footer;
        self.write_footer(at)?;
        sync(&*self.file)
    }
}
