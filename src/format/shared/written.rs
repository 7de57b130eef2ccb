//! Zeros between what a writer places, on a target that holds old content.

use crate::error::{Error, Result};
use crate::io::WriteAt;

/// How far a file is written by a writer that places data in ascending order: a host offset.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Written(u64);

impl Written {
    /// Zeroes the file from there up to `until`, unless it was zeros from the start.
    pub fn zero_until(&mut self, out: &dyn WriteAt, until: u64) -> Result<()> {
        if !out.starts_zeroed() && until > self.0 {
            out.zero_range(self.0..until).map_err(Error::io("writing zeros", self.0))?;
        }
        self.advance(until);
        Ok(())
    }

    /// Notes that data is placed up to `end`.
    pub fn advance(&mut self, end: u64) {
        self.0 = self.0.max(end);
    }
}
