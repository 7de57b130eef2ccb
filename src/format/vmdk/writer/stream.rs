//! Writes `streamOptimized`: compressed grains in ascending order, sequentially.
//!
//! A stream ("Virtual Disk Format 5.0", "Stream-Optimized Compressed Sparse Extents") consists of the header, whose
//! `gdOffset` refers to the footer, the descriptor, the grains, each grain table after its last grain, the grain
//! directory, the footer, which is the header with the sector of the grain directory, and the end-of-stream marker. A
//! marker precedes each grain, table, directory and footer. The header comes first because a pipe cannot seek; a
//! truncated stream has no footer.

use std::ops::Range;
use std::sync::Arc;

use super::{DESCRIPTOR_SECTORS, ENTRIES_PER_TABLE, GRAIN_SECTORS, descriptor, extent_line, sector_entry};
use crate::driver::CreateContext;
use crate::driver::{Frame, Placement, SparseWrite, WriteSpec};
use crate::error::{Error, Result};
use crate::format::vmdk::descriptor::{Access, ExtentLine, ExtentType};
use crate::format::vmdk::header::{Directory, Flags, Header};
use crate::format::vmdk::marker::{self, Marker};
use crate::format::vmdk::options::Settings;
use crate::format::vmdk::{FORMAT_NAME, SECTOR, pad_descriptor};
use crate::identifiers::ImageIdentifiers;
use crate::io::WriteAt;
use crate::name::Name;

/// File name in the embedded descriptor, as VMware's tools write it. Readers ignore it, since files are renamed and a
/// stream may not be a file.
const EXTENT_NAME: &str = "generated-stream.vmdk";
/// Sector of the first grain.
const OVERHEAD: u64 = 128;

/// A new image.
pub(super) struct StreamWriter {
    out: Arc<dyn WriteAt>,
    spec: WriteSpec,
    settings: Settings,
    header: Header,
    /// Metadata that precedes the next grain.
    pending: Vec<u8>,
    /// End of the data that was written or allocated, the offset of `pending`.
    end: u64,
    /// Index and entries of the current grain table.
    table: (u64, Vec<u32>),
    /// Sector of each grain table, 0 for one without grains.
    directory: Vec<u32>,
}

impl StreamWriter {
    pub fn create(cx: &CreateContext<'_>, settings: Settings) -> Result<StreamWriter> {
        if !cx.out.starts_zeroed() {
            // Readers search the footer from the end of the file: old data of a device could contain another one.
            let feature = "streamOptimized on a device".into();
            return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: None });
        }
        let header = Header {
            version: 3,
            flags: Flags::NEWLINE_TEST | Flags::COMPRESSED | Flags::MARKERS,
            capacity: settings.sectors,
            grain_size: GRAIN_SECTORS,
            descriptor: Some(DESCRIPTOR_SECTORS.start * SECTOR..DESCRIPTOR_SECTORS.end * SECTOR),
            entries_per_table: ENTRIES_PER_TABLE,
            redundant_directory: None,
            directory: Directory::AtEnd,
            overhead: OVERHEAD,
            unclean: false,
        };
        let mut pending = header.encode().to_vec();
        pending.extend(padded_descriptor(&settings, &cx.identifiers)?);
        pending.resize((OVERHEAD * SECTOR) as usize, 0);
        let spec = WriteSpec {
            virtual_size: settings.sectors * SECTOR,
            block_size: GRAIN_SECTORS * SECTOR,
            granule: GRAIN_SECTORS * SECTOR,
            encoding: Some(settings.encoding.clone()),
            always_encoded: true,
            frame: Some(Frame { header_len: Marker::GRAIN_HEADER, header: frame_header, alignment: SECTOR as usize }),
            sequential: true,
            ..WriteSpec::default()
        };
        let table = (0, vec![0; ENTRIES_PER_TABLE as usize]);
        let directory = vec![0; header.directory_entries() as usize];
        Ok(StreamWriter { out: cx.out.clone(), spec, settings, header, pending, end: 0, table, directory })
    }

    /// Returns the sector after the pending metadata as a table entry.
    fn next_sector(&self) -> Result<u32> {
        sector_entry((self.end + self.pending.len() as u64) / SECTOR)
    }

    /// Appends the current table, if it has grains, and begins table `index`.
    fn open_table(&mut self, index: u64) -> Result<()> {
        let (current, entries) = &mut self.table;
        if *current == index {
            return Ok(());
        }
        let (current, entries) =
            (std::mem::replace(current, index), std::mem::replace(entries, vec![0; entries.len()]));
        if entries.iter().any(|&entry| entry != 0) {
            let sector = self.append_table(marker::GRAIN_TABLE, &entries)?;
            if let Some(entry) = self.directory.get_mut(current as usize) {
                *entry = sector;
            }
        }
        Ok(())
    }

    /// Appends a marker and a table. Returns the sector of the table.
    fn append_table(&mut self, kind: u32, entries: &[u32]) -> Result<u32> {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        let sectors = (bytes.len() as u64).div_ceil(SECTOR);
        self.pending.extend(marker::metadata_marker(kind, sectors));
        let sector = self.next_sector()?;
        self.pending.extend(&bytes);
        self.pending.resize(self.pending.len().next_multiple_of(SECTOR as usize), 0);
        Ok(sector)
    }
}

/// The embedded descriptor.
fn padded_descriptor(settings: &Settings, identifiers: &ImageIdentifiers) -> Result<Vec<u8>> {
    let line = extent_line(settings.sectors, ExtentType::Sparse, Name::from(EXTENT_NAME));
    let line = ExtentLine { access: Access::RdOnly, ..line };
    pad_descriptor(&descriptor(settings, vec![line], identifiers).encode()?, DESCRIPTOR_SECTORS)
}

/// Writes the marker of a grain.
fn frame_header(bytes: &mut [u8], guest: u64, len: u32) {
    bytes.copy_from_slice(&marker::grain_header(guest / SECTOR, len));
}

impl SparseWrite for StreamWriter {
    fn spec(&self) -> &WriteSpec {
        &self.spec
    }

    fn place(&mut self, _guest: Range<u64>) -> Result<Placement> {
        let feature = "uncompressed grains in streamOptimized".into();
        Err(Error::Unsupported { format: FORMAT_NAME, feature, at: None })
    }

    fn place_compressed(&mut self, guest: Range<u64>, stored_len: u32) -> Result<Placement> {
        let grain = guest.start / self.spec.block_size;
        let entries = u64::from(ENTRIES_PER_TABLE);
        self.open_table(grain / entries)?;
        let sector = self.next_sector()?;
        if let Some(entry) = self.table.1.get_mut((grain % entries) as usize) {
            *entry = sector;
        }
        let (offset, before) = (self.end, std::mem::take(&mut self.pending));
        self.end += before.len() as u64 + u64::from(stored_len);
        Ok(Placement { out: self.out.clone(), offset, before, len: guest.end - guest.start })
    }

    fn zero(&mut self, _guest: Range<u64>) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self, identifiers: &ImageIdentifiers) -> Result<()> {
        self.open_table(u64::MAX)?;
        let directory = std::mem::take(&mut self.directory);
        let sector = self.append_table(marker::GRAIN_DIRECTORY, &directory)?;
        let footer = Header { directory: Directory::At(sector.into()), ..self.header.clone() };
        self.out.write_all_at(&self.pending, self.end).map_err(Error::io("writing the directory", self.end))?;
        self.end += self.pending.len() as u64;
        if self.out.seeks() {
            let (text, at) = (padded_descriptor(&self.settings, identifiers)?, DESCRIPTOR_SECTORS.start * SECTOR);
            self.out.write_all_at(&text, at).map_err(Error::io("writing the descriptor", at))?;
            // The footer marks the stream complete, so the data must be durable first.
            self.out.sync().map_err(Error::io("syncing", None))?;
        }
        let end = [
            marker::metadata_marker(marker::FOOTER, 1),
            footer.encode(),
            marker::metadata_marker(marker::END_OF_STREAM, 0),
        ];
        self.out.write_all_at(&end.concat(), self.end).map_err(Error::io("writing the footer", self.end))?;
        self.out.sync().map_err(Error::io("syncing", None))
    }
}
