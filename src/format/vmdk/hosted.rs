//! Opens hosted sparse extents, including streams (`streamOptimized`).

use std::borrow::Cow;
use std::cell::OnceCell;
use std::ops::Range;
use std::sync::Arc;

use super::directory::{OnDamage, read_directory, table_at_sector};
use super::footer::Footer;
use super::grains::{EntryFormat, Framing, GrainMap};
use super::header::{Directory, Flags, Header};
use super::{FIELDS, SECTOR};
use crate::driver::FileId;
use crate::driver::OpenContext;
use crate::error::{Error, Problem, Result};
use crate::format::shared::data_runs::DataRuns;
use crate::format::shared::table;
use crate::format::shared::table::Field;
use crate::io::ReadAt;
use crate::limits::LimitName;

/// Warning for an extent that is read by its redundant grain directory.
pub(super) const REDUNDANT_USED: &str = "the grain directory is damaged; using the redundant grain directory";

/// A grain directory: the host offset of each grain table, 0 if unallocated, and the host range of the directory
/// itself.
pub(super) type GrainDirectory = (Vec<u64>, Range<u64>);

/// A hosted sparse extent whose header has been read.
pub(super) struct Hosted {
    file: Arc<dyn ReadAt>,
    id: FileId,
    file_len: u64,
    pub header: Header,
    footer: OnceCell<Footer>,
}

impl Hosted {
    /// Reads the header of `file`.
    pub fn read(file: Arc<dyn ReadAt>, id: FileId, cx: &OpenContext<'_>) -> Result<Hosted> {
        let file_len = table::length(&*file)?;
        FIELDS.at("header", 0).within(0, Header::LEN, file_len)?;
        let mut bytes = [0; Header::LEN as usize];
        table::read(&*file, &mut bytes, 0)?;
        let header = Header::parse(&bytes, 0, cx.limits)?;
        Ok(Hosted { file, id, file_len, header, footer: OnceCell::new() })
    }

    /// Returns the embedded descriptor, if there is one, and its host offset.
    pub fn descriptor(&self, cx: &OpenContext<'_>) -> Result<Option<(Vec<u8>, u64)>> {
        let Some(Range { start, end }) = self.header.descriptor.clone() else { return Ok(None) };
        let len = end - start;
        FIELDS.at("descriptorOffset", 28).within(start, len, self.file_len)?;
        FIELDS.at("descriptorSize", 36).within_limit(LimitName::TextLength, len, cx.limits.text_length)?;
        let text = table::read_table(&*self.file, start, len, FIELDS.at("descriptorOffset", 28), cx.budget)?;
        Ok(has_text(&text).then_some((text, start)))
    }

    /// Reads the grain directory of an extent of `len` guest bytes. Adds a warning if the redundant directory is needed,
    /// or if bytes follow the end of a stream.
    pub fn into_grains(
        self,
        len: u64,
        cx: &OpenContext<'_>,
        warnings: &mut Vec<Cow<'static, str>>,
    ) -> Result<GrainMap> {
        let directories = self.directories(cx, &mut Err);
        warnings.extend(self.footer.get().and_then(Footer::warning).map(Cow::from));
        let directory = match directories {
            // I/O errors and exceeded limits are no reason to use the other directory.
            (Err(error), _) | (_, Some(Err(error))) if !matches!(error.root(), Error::Corrupt(_)) => return Err(error),
            (Err(_), Some(Ok(redundant))) => {
                warnings.push(REDUNDANT_USED.into());
                redundant
            }
            // A table is allocated in both directories or in neither.
            (Ok((tables, range)), Some(Ok((redundant, _)))) => {
                warnings.extend(lacks_tables(&tables, &redundant).then_some(REDUNDANT_USED.into()));
                let grains = self.with_directory(len, (merge_tables(tables, &redundant), range));
                return Ok(GrainMap { redundant_directory: redundant, ..grains });
            }
            (primary, _) => primary?,
        };
        Ok(self.with_directory(len, directory))
    }

    /// Reads the grain directory and, unless this is a stream, the redundant one, if there is one. `on_damage` handles
    /// invalid directory entries.
    pub fn directories(
        &self,
        cx: &OpenContext<'_>,
        on_damage: &mut OnDamage<'_>,
    ) -> (Result<GrainDirectory>, Option<Result<GrainDirectory>>) {
        let (directory, redundant) = match self.header.directory {
            Directory::At(sector) => (Ok((sector, 56)), self.header.redundant_directory_sector()),
            Directory::AtEnd => (self.footer_directory(cx), None),
        };
        let directory =
            directory.and_then(|(sector, at)| self.read_directory(sector, FIELDS.at("gdOffset", at), cx, on_damage));
        (directory, redundant.map(|sector| self.read_directory(sector, FIELDS.at("rgdOffset", 48), cx, on_damage)))
    }

    /// Returns the grains of an extent of `len` guest bytes by this grain directory.
    pub fn with_directory(self, len: u64, (directory, range): GrainDirectory) -> GrainMap {
        let mut metadata = vec![0..Header::LEN, range];
        metadata.extend(self.header.descriptor.clone());
        let framing = self
            .header
            .flags
            .contains(Flags::COMPRESSED)
            .then(|| if self.header.flags.contains(Flags::MARKERS) { Framing::Marked } else { Framing::Bare });
        GrainMap {
            data_runs: DataRuns::new(self.file.clone(), self.file_len),
            file: self.file,
            id: self.id,
            file_len: self.file_len,
            len,
            grain_bytes: self.header.grain_bytes(),
            entries_per_table: self.header.entries_per_table.into(),
            entry_format: EntryFormat::Sectors {
                zeroed_grains: self.header.flags.contains(Flags::ZEROED_GRAIN),
                framing,
            },
            directory,
            redundant_directory: Vec::new(),
            metadata,
        }
    }

    /// Reads the grain directory at `sector`, the value of `field`.
    fn read_directory(
        &self,
        sector: u64,
        field: Field,
        cx: &OpenContext<'_>,
        on_damage: &mut OnDamage<'_>,
    ) -> Result<GrainDirectory> {
        let len = self.header.directory_entries().saturating_mul(4);
        let start = sector.saturating_mul(SECTOR);
        if sector == 0 && len > 0 {
            return Err(field.fault(Problem::Overlap { offset: 0, with: "the header" }));
        }
        let table_offset =
            |index, entry, field| table_at_sector(entry, self.header.table_bytes(index), field, self.file_len);
        let entries = self.header.directory_entries();
        Ok((read_directory(&*self.file, start, entries, field, table_offset, cx, on_damage)?, start..start + len))
    }

    /// Returns the sector of the grain directory from the footer, and the file offset of that field.
    fn footer_directory(&self, cx: &OpenContext<'_>) -> Result<(u64, u64)> {
        let at = self.footer()?.at;
        let mut bytes = [0; Header::LEN as usize];
        table::read(&*self.file, &mut bytes, at)?;
        let footer = Header::parse(&bytes, at, cx.limits)?;
        let same = |header: &Header| (header.capacity, header.grain_size, header.entries_per_table);
        if same(&footer) != same(&self.header) {
            let rule = "must match the header, as must grainSize and numGTEsPerGT";
            return Err(FIELDS.at("capacity", at + 12).fault(Problem::Rule { value: footer.capacity, rule }));
        }
        match footer.directory {
            Directory::At(sector) => Ok((sector, at + 56)),
            Directory::AtEnd => {
                let rule = "must be a sector number in the footer";
                Err(FIELDS.at("gdOffset", at + 56).fault(Problem::Rule { value: u64::MAX, rule }))
            }
        }
    }

    /// Returns the footer of a stream, which is searched once.
    pub fn footer(&self) -> Result<&Footer> {
        match self.footer.get() {
            Some(footer) => Ok(footer),
            None => {
                let footer = Footer::find(&*self.file, self.file_len, &self.header)?;
                Ok(self.footer.get_or_init(|| footer))
            }
        }
    }
}

/// Whether the range of the embedded descriptor holds a text. The extents of a split disk have zeros there and the
/// descriptor in a file of its own. A damaged descriptor is not treated as absent, since it may name a parent.
pub(super) fn has_text(text: &[u8]) -> bool {
    text.iter().any(|&byte| byte != 0)
}

/// Whether `primary` lacks a table that `redundant` has.
fn lacks_tables(primary: &[u64], redundant: &[u64]) -> bool {
    primary.iter().zip(redundant).any(|(&primary, &redundant)| primary == 0 && redundant != 0)
}

/// Returns the tables of `primary`, completed by those of `redundant`.
fn merge_tables(primary: Vec<u64>, redundant: &[u64]) -> Vec<u64> {
    primary.iter().zip(redundant).map(|(&primary, &redundant)| if primary == 0 { redundant } else { primary }).collect()
}
