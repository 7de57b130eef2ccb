//! Moving the BAT to a larger region.

use super::{TABLES, Update};
use crate::driver::SparseUpdate;
use crate::error::{Error, Result};
use crate::format::shared::table;
use crate::format::vhdx::bat::ENTRY_LEN;
use crate::format::vhdx::region::{Region, TABLE_LEN, TABLES_AT, move_region};
use crate::format::vhdx::{FIELDS, MIB, log};
use crate::io::write_zeros;

impl Update {
    /// Moves the BAT to a region for this number of entries, after all blocks. The new region is durable before the region tables change, which
    /// they do through the log (2.2.3), both in one entry. The old region is no longer used.
    pub(super) fn move_bat(&mut self, entries: u64) -> Result<()> {
        self.flush()?;
        let Region { range: old, at } = self.structure.regions.bat.clone();
        let len = (entries * ENTRY_LEN).next_multiple_of(MIB);
        FIELDS.at("Length", at + 24).at_most(len, u32::MAX.into())?;
        let start = self.end()?;
        let new = start..start.saturating_add(len);
        let zeroed = write_zeros(&*self.file, start..self.bat.file_len.clamp(start, new.end));
        zeroed.map_err(Error::io("writing zeros", start))?;
        self.grow_file(new.end)?;
        let used = self.bat.entry_count() * ENTRY_LEN;
        for done in (0..used).step_by(MIB as usize) {
            let mut bytes = vec![0; MIB.min(used - done) as usize];
            table::read(&*self.file, &mut bytes, old.start + done)?;
            let at = start + done;
            self.file.write_all_at(&bytes, at).map_err(Error::io("writing the BAT", at))?;
        }
        self.sync()?;

        // Both tables are the same, and the log has been applied to them.
        let mut bytes = vec![0; TABLE_LEN];
        table::read(&*self.file, &mut bytes, TABLES_AT[0])?;
        let before = bytes.clone();
        let table_at = if at < TABLES_AT[1] { TABLES_AT[0] } else { TABLES_AT[1] };
        move_region(&mut bytes, (at - table_at) as usize, &new);
        let sector = log::SECTOR as usize;
        for (index, (old, new)) in before.chunks(sector).zip(bytes.chunks(sector)).enumerate() {
            for table in TABLES_AT.iter().filter(|_| old != new) {
                self.pages.write(new, table + (index * sector) as u64, TABLES)?;
            }
        }
        self.structure.regions.bat.range = new.clone();
        self.next = Some(new.end);
        self.flush()
    }
}
