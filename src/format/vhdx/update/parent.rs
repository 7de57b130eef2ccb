//! Another parent of a differencing disk.

use super::{TABLES, Update};
use crate::driver::SparseUpdate;
use crate::error::{Error, Result};
use crate::format::vhdx::locator::ParentLocator;
use crate::format::vhdx::metadata::{LocatorPlace, place_of_locator};
use crate::format::vhdx::options::windows_path;
use crate::format::vhdx::{FORMAT_NAME, locator};
use crate::info::FileReference;

impl Update {
    /// Writes a parent locator with another path, and another identity if the reference has one. It goes through the log, as does the entry of the
    /// metadata table that points to it (2.6.2.6).
    pub(super) fn replace_parent(&mut self, reference: Option<&FileReference>) -> Result<()> {
        let (Some(reference), Some(old)) = (reference, &self.structure.metadata.parent) else {
            let feature = "making a disk differencing, or one that is not, in place";
            return Err(Error::unsupported(FORMAT_NAME, feature));
        };
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
}
