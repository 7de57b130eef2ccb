//! Another parent of a differencing disk.

use byteorder::{BigEndian, ByteOrder};

use super::dynamic::Dynamic;
use super::sync;
use crate::error::{Error, Result};
use crate::format::shared::table;
use crate::format::vhd::footer::DATA_OFFSET;
use crate::format::vhd::header::{CHECKSUM_AT, Header};
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
        let Some(parent) = parent.filter(|_| self.blocks.differencing) else {
            let feature = "making a disk differencing, or one that is not, in place";
            return Err(Error::unsupported(FORMAT_NAME, feature));
        };
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

        // Fields that are not known here stay.
        let mut sectors = vec![0; len as usize];
        let (head, rest) = sectors.split_at_mut(Header::LEN as usize);
        table::read(&*self.file, head, self.header_at)?;
        for (new, byte) in header.encode().iter().zip(head.iter_mut()).skip(PARENT_AT) {
            *byte = *new;
        }
        let sum = checksum(head, CHECKSUM_AT);
        BigEndian::write_u32(head.get_mut(CHECKSUM_AT..).unwrap_or_default(), sum);
        rest.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
        self.file.write_all_at(&sectors, at).map_err(Error::io("writing the header", at))?;
        sync(&*self.file)?;
        let mut footer = self.footer.clone();
        footer.set_field(DATA_OFFSET, &at.to_be_bytes());
        self.switch_footer(footer)?;
        self.blocks.metadata.push(at..at + len);
        (self.header, self.header_at) = (header, at);
        self.info.backing = Some(reference(&self.header.parent, &*self.file, &Budget::new(1 << 20))?);
        Ok(())
    }
}
