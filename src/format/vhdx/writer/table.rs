//! The block allocation table of a new image, written sequentially in parts: it can have half a GiB.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format::vhdx::bat::ENTRY_LEN;
use crate::io::WriteAt;

/// Number of entries written at once.
pub(super) const FLUSH: usize = 64 << 10;

/// Bytes of zeros above which they are not written.
const GAP: u64 = 4096;

/// A table written entry by entry, into a region that reads as zeros.
pub(super) struct Table {
    out: Arc<dyn WriteAt>,
    /// Host offset of the first entry not yet written.
    at: u64,
    /// Encoded entries not yet written.
    entries: Vec<u8>,
}

impl Table {
    pub fn new(out: Arc<dyn WriteAt>, at: u64) -> Table {
        Table { out, at, entries: Vec::new() }
    }

    /// Adds the next entry.
    pub fn push(&mut self, entry: u64) -> Result<()> {
        if entry == 0 && self.entries.is_empty() {
            // The region reads as zeros already.
            self.at += ENTRY_LEN;
            return Ok(());
        }
        self.entries.extend(entry.to_le_bytes());
        if self.entries.len() >= FLUSH * ENTRY_LEN as usize { self.flush() } else { Ok(()) }
    }

    /// Adds `entry` `count` times.
    pub fn repeat(&mut self, entry: u64, count: u64) -> Result<()> {
        let len = count * ENTRY_LEN;
        if entry == 0 && (self.entries.is_empty() || len > GAP) {
            self.flush()?;
            // The region reads as zeros already.
            self.at += len;
        } else {
            for _ in 0..count {
                self.push(entry)?;
            }
        }
        Ok(())
    }

    pub fn flush(&mut self) -> Result<()> {
        let action = "writing the block allocation table";
        self.out.write_all_at(&self.entries, self.at).map_err(Error::io(action, self.at))?;
        self.at += self.entries.len() as u64;
        self.entries.clear();
        Ok(())
    }
}
