//! Another parent of a differencing disk, or none.

use byteorder::{BigEndian, ByteOrder};
use uuid::Uuid;

use super::dynamic::{Dynamic, TABLES};
use super::{FooterBytes, sync};
use crate::driver::SparseUpdate;
use crate::error::{Error, Result};
use crate::format::shared::bits::{self, BitOrder};
use crate::format::shared::table;
use crate::format::vhd::blocks::BatEntry;
use crate::format::vhd::footer::{DATA_OFFSET, DISK_TYPE_AT, DiskType};
use crate::format::vhd::header::{CHECKSUM_AT, Header, Parent};
use crate::format::vhd::locator::{Locator, reference, unique_id_of};
use crate::format::vhd::writer::windows_path;
use crate::format::vhd::{FORMAT_NAME, SECTOR, checksum};
use crate::info::FileReference;
use crate::limits::Budget;
use crate::name::{Name, utf16};

/// Offset of the UUID, the time, the name and the locators of the parent in the header, in bytes. They are its end.
const PARENT_AT: usize = 40;

impl Dynamic {
    /// Writes a header with another parent, and its locator, after the blocks. A write of the footer and its copy makes it that of the image.
    pub(super) fn replace_parent(&mut self, parent: Option<&FileReference>) -> Result<()> {
        if !self.blocks.differencing {
            return match parent {
                None => Ok(()),
                Some(_) => Err(Error::unsupported(FORMAT_NAME, "making a disk differencing in place")),
            };
        }
        let Some(parent) = parent else { return self.remove_parent() };
        let mut header = self.header.clone();
        if !parent.identities.is_empty() {
            let id = parent.identities.iter().find_map(unique_id_of);
            header.parent.unique_id =
                id.ok_or_else(|| Error::unsupported(FORMAT_NAME, "a parent that is not a VHD with a UUID"))?;
        }
        self.begin()?;
        let (path, platform) = windows_path(&parent.name);
        let bytes = utf16(&path, u16::to_le_bytes);
        let space = (bytes.len() as u64).next_multiple_of(SECTOR);
        let len = Header::LEN + space;
        let (at, _) = self.allocate_space(len, 0)?;
        let offset = at + Header::LEN;
        header.parent.name = Name::from(path.rsplit('\\').next().unwrap_or_default());
        header.parent.locators = vec![Locator { platform, space: space as u32, len: bytes.len() as u32, offset, at }];

        let mut locator = vec![0; space as usize];
        locator.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
        let footer = self.footer.clone();
        self.switch_header(header, footer, at, &locator)?;
        self.blocks.metadata.push(at..at + len);
        self.info.backing = Some(reference(&self.header.parent, &*self.file, &Budget::new(1 << 20))?);
        Ok(())
    }

    /// Makes a dynamic disk of a differencing one. All sectors of its blocks become present, with zeros where they are not yet.
    fn remove_parent(&mut self) -> Result<()> {
        self.begin()?;
        self.flush()?;
        for index in 0..self.header.max_table_entries.into() {
            let entry = self.entry(index)?;
            if let Some(block) = entry.block {
                self.fill(entry, block)?;
            }
            if self.pages.is_full() {
                self.flush()?;
            }
        }
        self.flush()?;
        let parent = Parent { unique_id: Uuid::nil(), timestamp: 0, name: Name::from(""), locators: Vec::new() };
        let header = Header { parent, ..self.header.clone() };
        let (at, _) = self.allocate_space(Header::LEN, 0)?;
        let mut footer = self.footer.clone();
        footer.set_field(DISK_TYPE_AT, &(DiskType::Dynamic as u32).to_be_bytes());
        self.switch_header(header, footer, at, &[])?;
        self.blocks.metadata.push(at..at + Header::LEN);
        self.blocks.differencing = false;
        self.info.backing = None;
        Ok(())
    }

    /// Writes zeros to the sectors that a block does not have, and sets their bits after that. They read as zeros by now, also with the parent.
    fn fill(&mut self, entry: BatEntry, block: u64) -> Result<()> {
        let bitmap = self.bitmap(entry.at, block)?;
        let sectors = self.blocks.used_len(entry.index).div_ceil(SECTOR);
        let (mut at, mut is_filled) = (0, true);
        while at < sectors {
            let (is_present, end) = bits::run(&bitmap, BitOrder::HighestFirst, at, sectors);
            if !is_present {
                let data = block + self.blocks.bitmap_len;
                let range = data + at * SECTOR..data + end * SECTOR;
                self.file.zero_range(range).map_err(Error::io("writing zeros", data + at * SECTOR))?;
                is_filled = false;
            }
            at = end;
        }
        if is_filled {
            return Ok(());
        }
        // A flush syncs before it writes them.
        self.pages.write(&vec![0xff; bitmap.len()], block, TABLES)
    }

    /// Writes a header and a locator at host offset `at`. A write of the footer and its copy makes them those of the image.
    fn switch_header(&mut self, header: Header, mut footer: FooterBytes, at: u64, locator: &[u8]) -> Result<()> {
        // Fields that are not known here stay.
        let mut sectors = vec![0; Header::LEN as usize];
        table::read(&*self.file, &mut sectors, self.header_at)?;
        for (new, byte) in header.encode().iter().zip(sectors.iter_mut()).skip(PARENT_AT) {
            *byte = *new;
        }
        let sum = checksum(&sectors, CHECKSUM_AT);
        BigEndian::write_u32(sectors.get_mut(CHECKSUM_AT..).unwrap_or_default(), sum);
        sectors.extend(locator);
        self.file.write_all_at(&sectors, at).map_err(Error::io("writing the header", at))?;
        sync(&*self.file)?;
        footer.set_field(DATA_OFFSET, &at.to_be_bytes());
        self.switch_footer(footer)?;
        (self.header, self.header_at) = (header, at);
        Ok(())
    }
}
