//! A fixed disk: its bytes, and then the footer.

use std::ops::Range;
use std::sync::Arc;

use super::{footer, no_compression, sync, write};
use crate::error::{Error, Result};
use crate::format::CreateContext;
use crate::format::vhd::SECTOR;
use crate::format::vhd::footer::{DiskType, Footer};
use crate::format::vhd::options::Settings;
use crate::io::WriteAt;
use crate::sparse::{Placement, SparseWrite, WriteSpec};

pub(super) struct FixedWriter {
    spec: WriteSpec,
    out: Arc<dyn WriteAt>,
    footer: Footer,
    /// Everything before it is placed or dealt with.
    done: u64,
}

impl FixedWriter {
    pub fn create(cx: &CreateContext<'_>, settings: &Settings) -> Result<FixedWriter> {
        let (out, size) = (cx.out.clone(), settings.size);
        // A device that is too small is found before the first byte is written to it. In a pipe the footer comes by itself.
        let len = if out.seeks() { size + Footer::LEN } else { size };
        out.set_len(len).map_err(Error::io("setting the length", len))?;
        if !out.starts_zeroed() {
            // What was there may be a footer, and until the new one is there nothing shall take it for that of this disk.
            out.zero_range(size..len).map_err(Error::io("clearing the footer", size))?;
        }
        let spec = WriteSpec {
            virtual_size: size,
            block_size: SECTOR,
            granule: SECTOR,
            sequential: true,
            // A pipe has no holes.
            dense: !out.seeks(),
            ..WriteSpec::default()
        };
        Ok(FixedWriter { spec, out, footer: footer(settings, DiskType::Fixed, 0), done: 0 })
    }

    /// Sees to it that what no call mentioned reads as zeros.
    fn fill(&mut self, until: u64) -> Result<()> {
        let gap = self.done..until.max(self.done);
        if self.out.starts_zeroed() || gap.is_empty() {
            return Ok(());
        }
        self.out.zero_range(gap).map_err(Error::io("writing zeros", self.done))
    }
}

impl SparseWrite for FixedWriter {
    fn spec(&self) -> &WriteSpec {
        &self.spec
    }

    fn place(&mut self, guest: Range<u64>) -> Result<Placement> {
        self.fill(guest.start)?;
        self.done = guest.end;
        let before = Vec::new();
        Ok(Placement { out: self.out.clone(), offset: guest.start, before, len: guest.end - guest.start })
    }

    fn place_compressed(&mut self, _guest: Range<u64>, _stored_len: u32) -> Result<Placement> {
        Err(no_compression())
    }

    fn zero(&mut self, _guest: Range<u64>) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        let size = self.spec.virtual_size;
        self.fill(size)?;
        sync(&*self.out)?;
        write(&*self.out, &self.footer.encode(), size, "writing the footer")?;
        sync(&*self.out)
    }
}
