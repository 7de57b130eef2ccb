//! The examination of one sparse extent: first where its metadata is, then its two copies of the tables, then its grains.

use std::ops::Range;
use std::sync::Arc;

use super::sectors::{Sectors, Use};
use super::{Findings, Work};
use crate::driver::ExtentKind;
use crate::driver::OpenContext;
use crate::error::{Error, Problem, Result};
use crate::format::shared::table;
use crate::format::vmdk::grains::{DAMAGED, Entries, Entry, Grains, Packing, max_payload};
use crate::format::vmdk::header::{Directory, Flags, Header};
use crate::format::vmdk::hosted::{GrainDirectory, Hosted};
use crate::format::vmdk::marker::Marker;
use crate::format::vmdk::{FIELDS, SECTOR};
use crate::io::ReadAt;

/// Bytes of a table that are read at once, unless it is smaller.
const PIECE: u64 = 64 << 10;
const NO_END: &str = "the stream ends without an end marker, which programs that read it from a pipe may need";

/// Examines a hosted sparse extent of which `len` bytes belong to the disk.
pub(super) fn check_hosted(hosted: Hosted, len: u64, cx: &OpenContext<'_>, findings: &mut Findings) -> Result<()> {
    findings.note_state(hosted.header.unclean);
    let (primary, redundant) = hosted.directories(cx, &mut |error| findings.note_error(error));
    let primary = findings.usable(primary)?;
    let redundant = match redundant {
        Some(redundant) => findings.usable(redundant)?,
        None => None,
    };
    let ((mut directory, place), redundant) = match (primary, redundant) {
        (Some(primary), redundant) => (primary, redundant),
        (None, Some(redundant)) => (redundant, None),
        (None, None) => {
            findings.report.total_clusters += len.div_ceil(hosted.header.grain_bytes());
            return Ok(());
        }
    };
    let mut metadata = Vec::new();
    let mut copies = Vec::new();
    if let Some(redundant) = redundant.filter(|redundant| redundant.1 != place) {
        match_directories((&mut directory, &place), redundant, findings, &mut metadata, &mut copies);
    }
    if hosted.header.directory == Directory::AtEnd {
        metadata.extend(hosted.footer_offset().ok().map(|at| at - SECTOR..at + Header::LEN));
    }
    // The hint says where grains begin. An extent whose grains are compressed has no room for others.
    let Header { flags, overhead, .. } = hosted.header;
    let spare = overhead > 0 && !flags.contains(Flags::COMPRESSED);
    let mut grains = hosted.with_directory(len, (directory, place));
    grains.metadata.extend(metadata);
    let mut examination = Examination::new(grains, copies, findings);
    examination.spare.from = spare.then(|| overhead.saturating_mul(SECTOR));
    examination.run()
}

/// Examines an extent that has one directory.
pub(super) fn check_grains(grains: Grains, findings: &mut Findings) -> Result<()> {
    Examination::new(grains, Vec::new(), findings).run()
}

/// Compares the two directories. A table that only the redundant one has is used; the others are copies.
fn match_directories(
    (directory, place): (&mut [u64], &Range<u64>),
    redundant: GrainDirectory,
    findings: &mut Findings,
    metadata: &mut Vec<Range<u64>>,
    copies: &mut Vec<u64>,
) {
    let (tables, redundant_place) = redundant;
    for (index, (table, &copy)) in directory.iter_mut().zip(&tables).enumerate() {
        let at = index as u64 * 4;
        copies.push(0);
        match (*table, copy) {
            // A writer may have two directories and one set of tables.
            (table, copy) if table == copy => {}
            (0, copy) => {
                let rule = "the redundant directory has a grain table there";
                findings.fault("grain directory entry", place.start + at, Problem::Rule { value: 0, rule });
                *table = copy;
            }
            (_, 0) => {
                let rule = "the grain directory has a grain table there";
                let problem = Problem::Rule { value: 0, rule };
                findings.fault("redundant grain directory entry", redundant_place.start + at, problem);
            }
            (DAMAGED, copy) => *table = copy,
            (_, copy) => copies.last_mut().into_iter().for_each(|last| *last = copy),
        }
    }
    metadata.push(redundant_place);
}

/// A sparse extent under examination.
struct Examination<'a> {
    grains: Grains,
    /// A copy of each grain table; 0 where there is none.
    copies: Vec<u64>,
    spare: Spare,
    taken: Sectors,
    findings: &'a mut Findings,
}

impl<'a> Examination<'a> {
    fn new(grains: Grains, copies: Vec<u64>, findings: &'a mut Findings) -> Self {
        findings.report.total_clusters += grains.len.div_ceil(grains.grain);
        let taken = Sectors::new(grains.file_len, Sectors::WINDOW);
        let spare = Spare { from: None, grain: grains.grain };
        Examination { grains, copies, spare, taken, findings }
    }

    fn run(mut self) -> Result<()> {
        self.check_metadata()?;
        self.compare_copies()?;
        let end = self.check_grains()?;
        if self.findings.extent.is_none() {
            self.findings.report.image_end_offset = end;
        }
        self.check_end(end)
    }

    /// Finds metadata that overlaps other metadata. A table that does is not used: small images can name one table for all of
    /// a large disk.
    fn check_metadata(&mut self) -> Result<()> {
        for place in &self.grains.metadata {
            let field = FIELDS.at("header, descriptor or directory", place.start);
            if let Err(error) = field.within(place.start, place.end - place.start, self.grains.file_len) {
                self.findings.note_error(error)?;
            }
        }
        loop {
            self.findings.work.spend(self.taken.cost())?;
            for place in &self.grains.metadata {
                if self.taken.take(place, Use::Metadata).is_some() {
                    let problem = Problem::Overlap { offset: place.start, with: "other metadata" };
                    self.findings.fault("header, descriptor or directory", place.start, problem);
                }
            }
            for is_copy in [false, true] {
                let tables = if is_copy { self.copies.len() } else { self.grains.directory.len() };
                self.findings.work.spend(tables as u64)?;
                for index in 0..tables {
                    let Some(place) = self.table_place(is_copy, index) else { continue };
                    if self.taken.take(&place, Use::Metadata).is_none() {
                        continue;
                    }
                    let name = if is_copy { "redundant grain table" } else { "grain table" };
                    let problem = Problem::Overlap { offset: place.start, with: "other metadata" };
                    self.findings.fault(format!("place of {name} {index}"), place.start, problem);
                    let tables = if is_copy { &mut self.copies } else { &mut self.grains.directory };
                    tables.get_mut(index).into_iter().for_each(|table| *table = DAMAGED);
                }
            }
            match self.taken.beyond() {
                Some(offset) => self.taken.restart(offset),
                None => break,
            }
        }
        self.taken.restart(0);
        Ok(())
    }

    /// The bytes of a grain table, or of its copy, if it exists and is where it can be.
    fn table_place(&self, is_copy: bool, index: usize) -> Option<Range<u64>> {
        let tables = if is_copy { &self.copies } else { &self.grains.directory };
        let offset = tables.get(index).copied().filter(|offset| ![0, DAMAGED].contains(offset))?;
        Some(offset..offset + self.grains.table_entries(index) * self.grains.entry_size())
    }

    /// Compares each table with its copy.
    fn compare_copies(&mut self) -> Result<()> {
        let (mut tables, mut copies) = (Pieces::new(&self.grains), Pieces::new(&self.grains));
        for index in 0..self.copies.len() {
            let (Some(table), Some(copy)) = (self.table_place(false, index), self.table_place(true, index)) else {
                continue;
            };
            let len = table.end - table.start;
            let (mut differing, mut first) = (0, 0);
            for at in (0..len).step_by(PIECE as usize) {
                let piece_len = PIECE.min(len - at);
                self.findings.work.spend(piece_len / 4)?;
                let (table, copy) =
                    (tables.read(table.start + at, piece_len)?, copies.read(copy.start + at, piece_len)?);
                if table == copy {
                    continue;
                }
                let entries = |piece: &[u8]| piece.as_chunks::<4>().0.to_vec();
                let none = vec![0; piece_len as usize];
                let [table, copy] = [table, copy].map(|piece| entries(piece.unwrap_or(&none)));
                for (index, _) in table.iter().zip(&copy).enumerate().filter(|(_, (entry, copy))| entry != copy) {
                    if differing == 0 {
                        first = at + index as u64 * 4;
                    }
                    differing += 1;
                }
            }
            if differing > 0 {
                let name = format!("number of entries in which grain table {index} differs from its copy");
                let rule = "they must be the same";
                self.findings.fault(name, table.start + first, Problem::Rule { value: differing, rule });
            }
        }
        Ok(())
    }

    /// Goes through the grains, and returns the end of the last thing in use.
    fn check_grains(&mut self) -> Result<u64> {
        let mut pieces = Pieces::new(&self.grains);
        let (mut end, mut first) = (0, true);
        loop {
            self.findings.work.spend(self.taken.cost())?;
            self.take_metadata()?;
            let mut next = None;
            for index in 0..self.grains.directory.len() {
                let table = self.table_place(false, index).or_else(|| self.table_place(true, index));
                if let Some(place) = table {
                    let grain = index as u64 * self.grains.entries_per_table;
                    self.check_table(&mut pieces, place, grain, first, &mut next)?;
                }
            }
            for run in self.taken.taken() {
                self.spare.note(end..run.start, self.findings);
                end = run.end.max(end);
            }
            first = false;
            match self.taken.beyond() {
                Some(offset) => self.taken.restart(offset),
                None => break,
            }
        }
        self.spare.note(end..self.grains.file_len, self.findings);
        Ok(end)
    }

    fn take_metadata(&mut self) -> Result<()> {
        for place in &self.grains.metadata {
            self.taken.take(place, Use::Metadata);
        }
        for is_copy in [false, true] {
            let tables = if is_copy { self.copies.len() } else { self.grains.directory.len() };
            self.findings.work.spend(tables as u64)?;
            for index in 0..tables {
                if let Some(place) = self.table_place(is_copy, index) {
                    self.taken.take(&place, Use::Metadata);
                }
            }
        }
        Ok(())
    }

    /// Goes through the table at `place`, whose first entry is for grain number `grain`.
    fn check_table(
        &mut self,
        pieces: &mut Pieces,
        place: Range<u64>,
        grain: u64,
        first: bool,
        next: &mut Option<u64>,
    ) -> Result<()> {
        let size = self.grains.entry_size();
        for at in place.clone().step_by(PIECE as usize) {
            self.findings.work.spend(1)?;
            let Some(piece) = pieces.read(at, PIECE.min(place.end - at))? else { continue };
            self.findings.work.spend(piece.len() as u64 / size)?;
            for (at, entry) in (at..).step_by(size as usize).zip(piece.chunks_exact(size as usize)) {
                if entry.iter().any(|&byte| byte != 0) {
                    let grain = grain + (at - place.start) / size;
                    self.check_entry(entry, at, grain * self.grains.grain, first, next)?;
                }
            }
        }
        Ok(())
    }

    /// Examines the entry at byte `at`, which is for the grain at byte `offset` of the extent. `next` is where the grain
    /// would be if it followed the one before.
    fn check_entry(&mut self, bytes: &[u8], at: u64, offset: u64, first: bool, next: &mut Option<u64>) -> Result<()> {
        let place = match self.grains.entry(bytes, at) {
            Ok(Entry::At(place)) => place,
            Ok(Entry::None | Entry::Zero) => return Ok(()),
            // It belongs to no window.
            Err(error) => return if first { self.findings.note_error(error) } else { Ok(()) },
        };
        let window = self.taken.window();
        let here = if place < self.grains.file_len { window.contains(&place) } else { first };
        let longest = SECTOR + max_payload(self.grains.grain);
        if !here && (place >= window.end || place.saturating_add(longest) <= window.start) {
            if place < self.grains.file_len {
                self.taken.leave(&(place..place + 1));
            }
            *next = None;
            return Ok(());
        }
        // A marker is read once, however many entries lead there.
        let compressed = matches!(self.grains.entries, Entries::Sectors { packing: Some(_), .. });
        if compressed && here {
            self.findings.work.spend(Work::READ)?;
            if place < self.grains.file_len
                && let Some(with) = self.taken.take(&(place..place + 1), Use::Grain)
            {
                self.overlap(at, place, with);
                return Ok(());
            }
        }
        let len = match self.grains.stored(bytes, at, offset) {
            Ok((ExtentKind::Compressed(payload), _)) if payload.at.offset > place => {
                payload.at.offset - place + u64::from(payload.stored_len)
            }
            // Nothing says how long it is.
            Ok((ExtentKind::Compressed(_), _)) => 1,
            Ok((_, len)) => len,
            Err(Error::Corrupt(_)) if !here => return Ok(()),
            Err(error) => return self.findings.note_error(error),
        };
        let end = (place + len).next_multiple_of(SECTOR);
        if here {
            let report = &mut self.findings.report;
            report.allocated_clusters += 1;
            report.compressed_clusters += u64::from(compressed);
            report.fragmented_clusters += u64::from(next.is_some_and(|next| next != place));
        }
        *next = Some(end);
        let rest = if compressed && here { place + SECTOR } else { place };
        if let Some(with) = self.taken.take(&(rest.min(end)..end), Use::Grain) {
            self.overlap(at, place, with);
        }
        Ok(())
    }

    fn overlap(&mut self, at: u64, offset: u64, with: Use) {
        let with = match with {
            Use::Metadata => "metadata",
            Use::Grain => "another grain",
        };
        self.findings.fault("grain table entry", at, Problem::Overlap { offset, with });
    }

    /// Looks for the marker that a stream ends with. Tables tell where grains are, so that it is not missed here.
    fn check_end(&mut self, end: u64) -> Result<()> {
        let marked = matches!(self.grains.entries, Entries::Sectors { packing: Some(Packing::Marked), .. });
        if !marked {
            return Ok(());
        }
        let mut marker = [0; Marker::LEN];
        if FIELDS.at("marker", end).within(end, SECTOR, self.grains.file_len).is_ok() {
            table::read(&*self.grains.file, &mut marker, end)?;
            if let Ok(Marker::EndOfStream) = Marker::parse(&marker, end) {
                return Ok(());
            }
        }
        self.findings.note(NO_END);
        Ok(())
    }
}

/// Where in a file there is room for grains that nothing uses.
struct Spare {
    /// Byte offset from which on all should be grains in use; nothing is known of an extent without it.
    from: Option<u64>,
    /// Bytes in a grain.
    grain: u64,
}

impl Spare {
    /// Notes how many grains could be in a gap between things in use.
    fn note(&self, gap: Range<u64>, findings: &mut Findings) {
        let Some(from) = self.from else { return };
        let start = gap.start.max(from);
        let grains = gap.end.saturating_sub(start) / self.grain;
        if grains > 0 {
            findings.leak(grains, start);
        }
    }
}

/// Pieces of tables, as they are read.
struct Pieces {
    file: Arc<dyn ReadAt>,
    bytes: Vec<u8>,
    /// A hole of the file. Sparse files can have more tables than anybody wants to read.
    hole: Range<u64>,
}

impl Pieces {
    fn new(grains: &Grains) -> Pieces {
        Pieces { file: grains.file.clone(), bytes: Vec::new(), hole: 0..0 }
    }

    /// The `len` bytes at `offset`, at most [`PIECE`], which are within the file; nothing if they are zeros.
    fn read(&mut self, offset: u64, len: u64) -> Result<Option<&[u8]>> {
        if self.hole.start <= offset && offset + len <= self.hole.end {
            return Ok(None);
        }
        self.bytes.resize(len as usize, 0);
        table::read(&*self.file, &mut self.bytes, offset)?;
        if self.bytes.iter().any(|&byte| byte != 0) {
            return Ok(Some(&self.bytes));
        }
        let data = self.file.next_data(offset).map_err(Error::io("looking for data", offset))?;
        self.hole = offset..data.map_or(u64::MAX, |data| data.start);
        Ok(None)
    }
}
