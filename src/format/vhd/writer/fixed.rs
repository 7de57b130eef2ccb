//! Fixed disks: guest data, then the footer.

use std::ops::Range;
use std::sync::Arc;

use super::{footer, no_compression, sync, write};
use crate::driver::{CreateContext, Placement, SparseWrite, WriteSpec};
use crate::error::{Error, Result};
use crate::format::vhd::footer::{DiskType, Footer};
use crate::format::vhd::options::Settings;
use crate::format::vhd::{FORMAT_NAME, SECTOR};
use crate::identifiers::ImageIdentifiers;
use crate::io::WriteAt;

pub(super) struct FixedWriter {
    spec: WriteSpec,
    out: Arc<dyn WriteAt>,
    settings: Settings,
}

impl FixedWriter {
    pub fn create(cx: &CreateContext<'_>, settings: Settings) -> Result<FixedWriter> {
        let (out, size) = (cx.out.clone(), settings.size);
        if !out.starts_zeroed() {
            // Programs look for the footer at the end of a device, where an old image may have left one.
            let feature = "a fixed disk on a device".into();
            return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: None });
        }
        // In a pipe, writing the footer sets the final length.
        let len = if out.seeks() { size + Footer::LEN } else { size };
        out.set_len(len).map_err(Error::io("setting the length", len))?;
        let spec = WriteSpec {
            virtual_size: size,
            block_size: SECTOR,
            granule: SECTOR,
            sequential: true,
            // A pipe has no holes.
            dense: !out.seeks(),
            host_alignment: 1 << 63,
            ..WriteSpec::default()
        };
        Ok(FixedWriter { spec, out, settings })
    }
}

impl SparseWrite for FixedWriter {
    fn spec(&self) -> &WriteSpec {
        &self.spec
    }

    fn place(&mut self, guest: Range<u64>) -> Result<Placement> {
        let before = Vec::new();
        Ok(Placement { out: self.out.clone(), offset: guest.start, before, len: guest.end - guest.start })
    }

    fn place_compressed(&mut self, _guest: Range<u64>, _payload_len: u32) -> Result<Placement> {
        Err(no_compression())
    }

    fn zero(&mut self, _guest: Range<u64>) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self, identifiers: &ImageIdentifiers) -> Result<()> {
        sync(&*self.out)?;
        let footer = footer(&self.settings, DiskType::Fixed, 0, identifiers);
        write(&*self.out, &footer.encode(), self.spec.virtual_size, "writing the footer")?;
        sync(&*self.out)
    }
}
