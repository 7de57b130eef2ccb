//! Another parent of a differencing disk, or none.

use super::{MAX_CHANGED, TABLES, Update};
use crate::driver::SparseUpdate;
use crate::error::{Error, Result};
use crate::format::vhdx::bat::{BlockState, state};
use crate::format::vhdx::locator::ParentLocator;
use crate::format::vhdx::metadata::{LocatorPlace, WithoutParent, place_of_locator, without_parent};
use crate::format::vhdx::options::windows_path;
use crate::format::vhdx::{FORMAT_NAME, locator};
use crate::info::FileReference;

impl Update {
    /// Writes a parent locator with another path, and another identity if the reference has one. It goes through the log, as does the entry of the
    /// metadata table that points to it (2.6.2.6).
    pub(super) fn replace_parent(&mut self, reference: Option<&FileReference>) -> Result<()> {
        let Some(old) = &self.structure.metadata.parent else {
            return match reference {
                None => Ok(()),
                Some(_) => Err(Error::unsupported(FORMAT_NAME, "making a disk differencing in place")),
            };
        };
        let Some(reference) = reference else { return self.remove_parent() };
        let linkage = match reference.identities.as_slice() {
            [] => old.linkage().map(str::to_owned),
            identities => identities.iter().find_map(locator::linkage_of),
        };
        let linkage = linkage.ok_or_else(|| Error::unsupported(FORMAT_NAME, "a parent without a data write GUID"))?;
        let Some((key, path)) = windows_path(&reference.name) else {
            return Err(Error::Usage(format!("{FORMAT_NAME}: '{}' is not a valid Windows path", reference.name)));
        };
        let locator = ParentLocator::new(linkage, key, path);
        let bytes = locator.encode();
        self.begin()?;
        self.flush()?;
        let LocatorPlace { entry_at, offset, region_at } =
            place_of_locator(&*self.file, &self.structure.regions.metadata, bytes.len())?;
        self.pages.write(&bytes, region_at + u64::from(offset), TABLES)?;
        // Offset and Length.
        let fields = [offset.to_le_bytes(), (bytes.len() as u32).to_le_bytes()].concat();
        self.pages.write(&fields, entry_at + 16, TABLES)?;
        self.flush()?;
        self.structure.metadata.parent = Some(locator);
        Ok(())
    }

    /// Makes a disk of its own of a differencing one: partially present blocks become whole, with zeros, and their bitmaps are given up. Then the
    /// flag `HasParent` and the parent locator are removed, by one entry of the log.
    fn remove_parent(&mut self) -> Result<()> {
        self.begin()?;
        self.flush()?;
        for block in 0..self.bat.block_count {
            if let BlockState::PartiallyPresent(host) = self.state(block)? {
                self.fill(block, host)?;
                self.set_entry(block, host | state::FULLY_PRESENT)?;
            }
            self.flush_if_full()?;
        }
        self.flush()?;
        // Nothing needs the bitmaps any more.
        for chunk in 0..self.bat.chunk_count() {
            let (entry, field) = self.entry(self.bat.first_entry(chunk) + self.bat.chunk_ratio)?;
            if entry != state::NOT_PRESENT {
                self.pages.write(&[0; 8], field.at, TABLES)?;
            }
            self.flush_if_full()?;
        }
        self.flush()?;
        let WithoutParent { table, flags, region_at, flags_at } =
            without_parent(&*self.file, &self.structure.regions.metadata)?;
        self.pages.write(&table, region_at, TABLES)?;
        self.pages.write(&flags.to_le_bytes(), flags_at, TABLES)?;
        self.flush()?;
        self.structure.metadata.parent = None;
        self.bat.differencing = false;
        self.next = None;
        Ok(())
    }

    /// Writes zeros to the sectors that a partially present block does not have. They read as zeros by now, also with the parent.
    fn fill(&mut self, block: u64, host: u64) -> Result<()> {
        self.grow_file(host + self.block_size())?;
        let len = self.bat.visible_len(block);
        let mut within = 0;
        while within < len {
            let (is_present, run) = self.present_run(block, within, len - within)?;
            if !is_present {
                let range = host + within..host + within + run;
                self.file.zero_range(range).map_err(Error::io("writing zeros", host + within))?;
            }
            within += run;
        }
        Ok(())
    }

    fn flush_if_full(&mut self) -> Result<()> {
        if self.pages.changed_count() >= MAX_CHANGED { self.flush() } else { Ok(()) }
    }
}
