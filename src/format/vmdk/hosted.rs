//! Opening hosted sparse extents, and those of `streamOptimized`.

use std::ops::Range;
use std::sync::Arc;

use super::directory::{Damaged, read_directory, table_at_sector};
use super::grains::{Entries, Grains, Packing};
use super::header::{Directory, Flags, Header};
use super::marker::Marker;
use super::reader::MAX_DESCRIPTOR;
use super::{FIELDS, SECTOR};
use crate::driver::FileId;
use crate::driver::OpenContext;
use crate::error::{Error, Problem, Result};
use crate::format::shared::table;
use crate::format::shared::table::Field;
use crate::io::ReadAt;

/// Said of an extent that is read by its second directory.
const REDUNDANT_USED: &str = "the grain directory is damaged, and the redundant one is used";
/// Zeros that may follow the end of a stream: tapes and object stores round up.
const MAX_PADDING: u64 = 1 << 20;
/// Bytes that are read at once to find a stream's end: whole sectors.
const FOOTER_PIECE: usize = 16 << 10;

/// A grain directory: the place of each grain table, 0 for none, and the directory's own place.
pub(super) type GrainDirectory = (Vec<u64>, Range<u64>);

/// A hosted sparse extent whose header has been read.
pub(super) struct Hosted {
    file: Arc<dyn ReadAt>,
    id: FileId,
    file_len: u64,
    pub header: Header,
}

impl Hosted {
    /// Reads the header of `file`.
    pub fn read(file: Arc<dyn ReadAt>, id: FileId, cx: &OpenContext<'_>) -> Result<Hosted> {
        let file_len = table::length(&*file)?;
        FIELDS.at("header", 0).within(0, Header::LEN, file_len)?;
        let mut bytes = [0; Header::LEN as usize];
        table::read(&*file, &mut bytes, 0)?;
        let header = Header::parse(&bytes, 0, cx.limits)?;
        Ok(Hosted { file, id, file_len, header })
    }

    /// The embedded descriptor, if there is one, with its place in the file.
    pub fn descriptor(&self, cx: &OpenContext<'_>) -> Result<Option<(Vec<u8>, u64)>> {
        let Some(Range { start, end }) = self.header.descriptor.clone() else { return Ok(None) };
        let len = end - start;
        FIELDS.at("descriptorOffset", 28).within(start, len, self.file_len)?;
        FIELDS.at("descriptorSize", 36).at_most(len, MAX_DESCRIPTOR)?;
        let text = table::read_table(&*self.file, start, len, FIELDS.at("descriptorOffset", 28), cx.budget)?;
        Ok(is_there(&text).then_some((text, start)))
    }

    /// Reads the directory, for an extent of which `len` bytes belong to the disk. Says what is worth a warning.
    pub fn grains(self, len: u64, cx: &OpenContext<'_>) -> Result<(Grains, Option<&'static str>)> {
        let (directory, warning) = match self.directories(cx, &mut Err) {
            // What cannot be read at all may be read at another time, or is too much.
            (Err(error), _) | (_, Some(Err(error))) if !matches!(error.root(), Error::Corrupt(_)) => return Err(error),
            (Err(_), Some(Ok(redundant))) => (redundant, Some(REDUNDANT_USED)),
            // Each table exists in both or in none.
            (Ok((tables, place)), Some(Ok((redundant, _)))) => {
                let warning = lacks(&tables, &redundant).then_some(REDUNDANT_USED);
                let grains = self.with_directory(len, (filled_in(tables, &redundant), place));
                return Ok((Grains { copies: redundant, ..grains }, warning));
            }
            (primary, _) => (primary?, None),
        };
        Ok((self.with_directory(len, directory), warning))
    }

    /// Reads the directory and the redundant one, which a stream has not. What is said of `damaged` entries comes back as
    /// the error, or they are [`DAMAGED`].
    pub fn directories(
        &self,
        cx: &OpenContext<'_>,
        damaged: &mut Damaged<'_>,
    ) -> (Result<GrainDirectory>, Option<Result<GrainDirectory>>) {
        let (directory, redundant) = match self.header.directory {
            Directory::At(sector) => (Ok((sector, 56)), self.header.redundant_directory_sector()),
            Directory::AtEnd => (self.footer_directory(cx), None),
        };
        let directory =
            directory.and_then(|(sector, at)| self.read_directory(sector, FIELDS.at("gdOffset", at), cx, damaged));
        (directory, redundant.map(|sector| self.read_directory(sector, FIELDS.at("rgdOffset", 48), cx, damaged)))
    }

    /// The grains by this directory, of an extent of which `len` bytes belong to the disk.
    pub fn with_directory(self, len: u64, (directory, place): GrainDirectory) -> Grains {
        let mut metadata = vec![0..Header::LEN, place];
        metadata.extend(self.header.descriptor.clone());
        let packing = self
            .header
            .flags
            .contains(Flags::COMPRESSED)
            .then(|| if self.header.flags.contains(Flags::MARKERS) { Packing::Marked } else { Packing::Bare });
        Grains {
            file: self.file,
            id: self.id,
            file_len: self.file_len,
            len,
            grain: self.header.grain_bytes(),
            entries_per_table: self.header.entries_per_table.into(),
            entries: Entries::Sectors { zeroed_grains: self.header.flags.contains(Flags::ZEROED_GRAIN), packing },
            directory,
            copies: Vec::new(),
            metadata,
        }
    }

    /// The place of each grain table by the directory at `sector`, and the directory's own place.
    fn read_directory(
        &self,
        sector: u64,
        field: Field,
        cx: &OpenContext<'_>,
        damaged: &mut Damaged<'_>,
    ) -> Result<GrainDirectory> {
        let len = self.header.directory_entries().saturating_mul(4);
        let start = sector.saturating_mul(SECTOR);
        if sector == 0 && len > 0 {
            return Err(field.fault(Problem::Overlap { offset: 0, with: "the header" }));
        }
        let place = |index, entry, field| table_at_sector(entry, self.header.table_bytes(index), field, self.file_len);
        let entries = self.header.directory_entries();
        Ok((read_directory(&*self.file, start, entries, field, place, cx, damaged)?, start..start + len))
    }

    /// The sector of the directory, by the footer, and the byte offset of the field that says so.
    fn footer_directory(&self, cx: &OpenContext<'_>) -> Result<(u64, u64)> {
        let at = self.footer_offset()?;
        let mut bytes = [0; Header::LEN as usize];
        table::read(&*self.file, &mut bytes, at)?;
        let footer = Header::parse(&bytes, at, cx.limits)?;
        let same = |header: &Header| (header.capacity, header.grain_size, header.entries_per_table);
        if same(&footer) != same(&self.header) {
            let rule = "the footer is not a copy of the header";
            return Err(FIELDS.at("capacity", at + 12).fault(Problem::Rule { value: footer.capacity, rule }));
        }
        match footer.directory {
            Directory::At(sector) => Ok((sector, at + 56)),
            Directory::AtEnd => {
                let rule = "the footer has to say where the grain directory is";
                Err(FIELDS.at("gdOffset", at + 56).fault(Problem::Rule { value: u64::MAX, rule }))
            }
        }
    }

    /// The footer is the last sector that is not zeros: the marker of the stream's end is zeros, and so is padding.
    pub fn footer_offset(&self) -> Result<u64> {
        let end = self.file_len / SECTOR * SECTOR;
        let mut piece = [0; FOOTER_PIECE];
        let mut at = end;
        while at > Header::LEN && end - at <= MAX_PADDING {
            let len = (at - Header::LEN).min(FOOTER_PIECE as u64);
            at -= len;
            let bytes = piece.get_mut(..len as usize).unwrap_or_default();
            table::read(&*self.file, bytes, at)?;
            if let Some(last) = bytes.iter().rposition(|&byte| byte != 0) {
                let at = at + last as u64 / SECTOR * SECTOR;
                let marker_at = at - SECTOR;
                let mut marker = [0; Marker::LEN];
                table::read(&*self.file, &mut marker, marker_at)?;
                if let Ok(Marker::Footer { .. }) = Marker::parse(&marker, marker_at) {
                    return Ok(at);
                }
                break;
            }
        }
        let rule = "the grain directory is at the end, and the file ends without a footer";
        Err(FIELDS.at("gdOffset", 56).fault(Problem::Rule { value: u64::MAX, rule }))
    }
}

/// Whether there is a descriptor in the room that is set aside for it. A split disk has zeros there, and its descriptor
/// elsewhere. A damaged one is not the same as none: what it says of a parent would be lost.
pub(super) fn is_there(text: &[u8]) -> bool {
    text.iter().any(|&byte| byte != 0)
}

/// Whether a table is missing in `primary` that is there in `redundant`.
fn lacks(primary: &[u64], redundant: &[u64]) -> bool {
    primary.iter().zip(redundant).any(|(&primary, &redundant)| primary == 0 && redundant != 0)
}

/// The tables of `primary` and, where it has none, those of `redundant`.
fn filled_in(primary: Vec<u64>, redundant: &[u64]) -> Vec<u64> {
    primary.iter().zip(redundant).map(|(&primary, &redundant)| if primary == 0 { redundant } else { primary }).collect()
}
