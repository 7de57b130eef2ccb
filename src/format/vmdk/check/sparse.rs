//! Checks one sparse extent: first its metadata for overlaps, then its redundant grain tables, then its grains.

use std::ops::Range;

use super::sectors::{SectorTracker, SectorUse};
use super::{Findings, Work};
use crate::driver::ExtentKind;
use crate::driver::OpenContext;
use crate::error::{Error, Problem, Result};
use crate::format::shared::table;
use crate::format::vmdk::footer::Footer;
use crate::format::vmdk::grains::{DAMAGED, EntryFormat, Framing, GrainEntry, GrainMap, max_payload_len};
use crate::format::vmdk::header::{Directory, Flags, Header};
use crate::format::vmdk::hosted::{GrainDirectory, Hosted};
use crate::format::vmdk::marker::Marker;
use crate::format::vmdk::{FIELDS, SECTOR};
use crate::zero;

/// Largest part of a table that is read at once, in bytes.
const PAGE_LEN: u64 = 64 << 10;
const NO_END: &str = "the stream has no end-of-stream marker, which programs that read it from a pipe may require";

/// Checks a hosted sparse extent of `len` guest bytes.
pub(super) fn check_hosted(hosted: Hosted, len: u64, cx: &OpenContext<'_>, findings: &mut Findings) -> Result<()> {
    findings.note_unclean(hosted.header.unclean);
    let (primary, redundant) = hosted.directories(cx, &mut |error| findings.note_error(error));
    let primary = findings.usable(primary)?;
    let redundant = match redundant {
        Some(redundant) => findings.usable(redundant)?,
        None => None,
    };
    let ((mut directory, range), redundant) = match (primary, redundant) {
        (Some(primary), redundant) => (primary, redundant),
        (None, Some(redundant)) => (redundant, None),
        (None, None) => {
            findings.report.total_clusters += len.div_ceil(hosted.header.grain_bytes());
            return Ok(());
        }
    };
    let mut metadata = Vec::new();
    let mut redundant_tables = Vec::new();
    if let Some(redundant) = redundant.filter(|redundant| redundant.1 != range) {
        metadata.push(redundant.1.clone());
        redundant_tables = compare_directories((&mut directory, &range), redundant, hosted.header.unclean, findings);
    }
    if hosted.header.directory == Directory::AtEnd {
        let footer = hosted.footer().ok();
        metadata.extend(footer.map(|footer| footer.at - SECTOR..footer.at + Header::LEN));
        footer.and_then(Footer::warning).into_iter().for_each(|warning| findings.note(&warning));
    }
    // The overhead tells where grains begin. Space between compressed grains is too small to be reused.
    let Header { flags, overhead, unclean, .. } = hosted.header;
    let detects_leaks = overhead > 0 && !flags.contains(Flags::COMPRESSED);
    let mut grains = hosted.with_directory(len, (directory, range));
    grains.metadata.extend(metadata);
    let mut check = SparseCheck::new(grains, redundant_tables, findings);
    check.is_unclean = unclean;
    check.unused.from = detects_leaks.then(|| overhead.saturating_mul(SECTOR));
    check.run()
}

/// Checks an extent with one grain directory.
pub(super) fn check_grains(grains: GrainMap, findings: &mut Findings) -> Result<()> {
    SparseCheck::new(grains, Vec::new(), findings).run()
}

/// Compares the two directories. Adds tables that only the redundant one has to `directory`, and returns the redundant
/// copy of each of the other tables, 0 if it has none.
fn compare_directories(
    (directory, range): (&mut [u64], &Range<u64>),
    (redundant, redundant_range): GrainDirectory,
    is_unclean: bool,
    findings: &mut Findings,
) -> Vec<u64> {
    let mut copies = vec![0; directory.len()];
    for (index, ((table, &redundant), copy)) in directory.iter_mut().zip(&redundant).zip(&mut copies).enumerate() {
        let at = index as u64 * 4;
        match (*table, redundant) {
            // A writer may have two directories and one set of tables.
            (table, redundant) if table == redundant => {}
            (0, redundant) => {
                let finding = "the redundant grain directory has a table";
                findings.fault("grain directory entry", range.start + at, Problem::Conflict { value: 0, finding });
                *table = redundant;
            }
            // The copies are written last.
            (_, 0) if is_unclean => {}
            (_, 0) => {
                let finding = "the grain directory has a table";
                let problem = Problem::Conflict { value: 0, finding };
                findings.fault("redundant grain directory entry", redundant_range.start + at, problem);
            }
            (DAMAGED, redundant) => *table = redundant,
            (_, redundant) => *copy = redundant,
        }
    }
    copies
}

/// The check of a sparse extent.
struct SparseCheck<'a> {
    grains: GrainMap,
    /// Host offset of the redundant copy of each grain table, 0 if there is none to compare.
    redundant_directory: Vec<u64>,
    /// Whether the extent was not closed, so that the copies may lack what was written last.
    is_unclean: bool,
    unused: UnusedSpace,
    used: SectorTracker,
    findings: &'a mut Findings,
}

impl<'a> SparseCheck<'a> {
    fn new(grains: GrainMap, redundant_directory: Vec<u64>, findings: &'a mut Findings) -> Self {
        findings.report.total_clusters += grains.len.div_ceil(grains.grain_bytes);
        let used = SectorTracker::new(grains.file_len, SectorTracker::WINDOW);
        let unused = UnusedSpace { from: None, grain_bytes: grains.grain_bytes };
        SparseCheck { grains, redundant_directory, is_unclean: false, unused, used, findings }
    }

    fn run(mut self) -> Result<()> {
        self.check_metadata()?;
        self.compare_redundant_tables()?;
        let end = self.check_grains()?;
        if self.findings.extent.is_none() {
            self.findings.report.image_end_offset = end;
        }
        self.check_end_marker(end)
    }

    /// Finds overlapping metadata. An overlapping table is recorded as damaged and not read, because a small image can
    /// use one table for each part of a large disk.
    fn check_metadata(&mut self) -> Result<()> {
        for range in &self.grains.metadata {
            let field = FIELDS.at("header, descriptor or directory", range.start);
            if let Err(error) = field.within(range.start, range.end - range.start, self.grains.file_len) {
                self.findings.note_error(error)?;
            }
        }
        loop {
            self.findings.work.spend(self.used.scan_cost())?;
            for range in &self.grains.metadata {
                if self.used.mark(range, SectorUse::Metadata).is_some() {
                    let problem = Problem::Overlap { offset: range.start, with: "other metadata" };
                    self.findings.fault("header, descriptor or directory", range.start, problem);
                }
            }
            for is_redundant in [false, true] {
                let tables = if is_redundant { self.redundant_directory.len() } else { self.grains.directory.len() };
                self.findings.work.spend(tables as u64)?;
                for index in 0..tables {
                    let Some(range) = self.table_range(is_redundant, index) else { continue };
                    if self.used.mark(&range, SectorUse::Metadata).is_none() {
                        continue;
                    }
                    let name = if is_redundant { "redundant grain table" } else { "grain table" };
                    let problem = Problem::Overlap { offset: range.start, with: "other metadata" };
                    self.findings.fault(format!("offset of {name} {index}"), range.start, problem);
                    let tables = if is_redundant { &mut self.redundant_directory } else { &mut self.grains.directory };
                    tables.get_mut(index).into_iter().for_each(|table| *table = DAMAGED);
                }
            }
            match self.used.beyond() {
                Some(offset) => self.used.move_to(offset),
                None => break,
            }
        }
        self.used.move_to(0);
        Ok(())
    }

    /// Returns the host range of grain table `index` or of its redundant copy, if it is allocated and not damaged.
    fn table_range(&self, is_redundant: bool, index: usize) -> Option<Range<u64>> {
        let tables = if is_redundant { &self.redundant_directory } else { &self.grains.directory };
        let offset = tables.get(index).copied().filter(|offset| ![0, DAMAGED].contains(offset))?;
        Some(offset..offset + self.grains.table_entries(index) * self.grains.entry_size())
    }

    /// Compares each grain table with its redundant copy.
    fn compare_redundant_tables(&mut self) -> Result<()> {
        let (mut tables, mut redundant_tables) = (PageReader::default(), PageReader::default());
        for index in 0..self.redundant_directory.len() {
            let (Some(table), Some(copy)) = (self.table_range(false, index), self.table_range(true, index)) else {
                continue;
            };
            let len = table.end - table.start;
            let (mut differing, mut first) = (0, 0);
            for at in (0..len).step_by(PAGE_LEN as usize) {
                let page_len = PAGE_LEN.min(len - at);
                self.findings.work.spend(page_len / 4)?;
                let (table, copy) = (
                    tables.read(&self.grains, table.start + at, page_len)?,
                    redundant_tables.read(&self.grains, copy.start + at, page_len)?,
                );
                if table == copy {
                    continue;
                }
                let entries = |page: &[u8]| page.as_chunks::<4>().0.to_vec();
                let zeros = vec![0; page_len as usize];
                let [table, copy] = [table, copy].map(|page| entries(page.unwrap_or(&zeros)));
                let is_wrong = |entry: &[u8; 4], copy: &[u8; 4]| entry != copy && !(self.is_unclean && *copy == [0; 4]);
                for (index, _) in table.iter().zip(&copy).enumerate().filter(|(_, (entry, copy))| is_wrong(entry, copy))
                {
                    if differing == 0 {
                        first = at + index as u64 * 4;
                    }
                    differing += 1;
                }
            }
            if differing > 0 {
                let name = format!("number of entries of grain table {index} that differ from the redundant copy");
                let rule = "must be 0";
                self.findings.fault(name, table.start + first, Problem::Rule { value: differing, rule });
            }
        }
        Ok(())
    }

    /// Checks the grains. Returns the end of the last range in use.
    fn check_grains(&mut self) -> Result<u64> {
        let mut pages = PageReader::default();
        let (mut end, mut is_first_window) = (0, true);
        loop {
            self.findings.work.spend(self.used.scan_cost())?;
            self.mark_metadata()?;
            let mut next = None;
            for index in 0..self.grains.directory.len() {
                let table = self.table_range(false, index).or_else(|| self.table_range(true, index));
                if let Some(range) = table {
                    let grain = index as u64 * self.grains.entries_per_table;
                    self.check_table(&mut pages, range, grain, is_first_window, &mut next)?;
                }
            }
            for run in self.used.used_runs() {
                self.unused.report(end..run.start, self.findings);
                end = run.end.max(end);
            }
            is_first_window = false;
            match self.used.beyond() {
                Some(offset) => self.used.move_to(offset),
                None => break,
            }
        }
        self.unused.report(end..self.grains.file_len, self.findings);
        Ok(end)
    }

    /// Marks the metadata in the current window.
    fn mark_metadata(&mut self) -> Result<()> {
        for range in &self.grains.metadata {
            self.used.mark(range, SectorUse::Metadata);
        }
        for is_redundant in [false, true] {
            let tables = if is_redundant { self.redundant_directory.len() } else { self.grains.directory.len() };
            self.findings.work.spend(tables as u64)?;
            for index in 0..tables {
                if let Some(range) = self.table_range(is_redundant, index) {
                    self.used.mark(&range, SectorUse::Metadata);
                }
            }
        }
        Ok(())
    }

    /// Checks the grain table at the host range `range`, whose first entry maps grain `grain`.
    fn check_table(
        &mut self,
        pages: &mut PageReader,
        range: Range<u64>,
        grain: u64,
        is_first_window: bool,
        next: &mut Option<u64>,
    ) -> Result<()> {
        let size = self.grains.entry_size();
        for at in range.clone().step_by(PAGE_LEN as usize) {
            self.findings.work.spend(1)?;
            let Some(page) = pages.read(&self.grains, at, PAGE_LEN.min(range.end - at))? else { continue };
            self.findings.work.spend(page.len() as u64 / size)?;
            for (at, entry) in (at..).step_by(size as usize).zip(page.chunks_exact(size as usize)) {
                if entry.iter().any(|&byte| byte != 0) {
                    let grain = grain + (at - range.start) / size;
                    self.check_entry(entry, at, grain * self.grains.grain_bytes, is_first_window, next)?;
                }
            }
        }
        Ok(())
    }

    /// Checks the entry at file offset `at`, which maps the grain at offset `offset` of the extent. `next` is the host
    /// offset after the preceding grain, if it is known.
    fn check_entry(
        &mut self,
        bytes: &[u8],
        at: u64,
        offset: u64,
        is_first_window: bool,
        next: &mut Option<u64>,
    ) -> Result<()> {
        let host_offset = match self.grains.entry(bytes, at) {
            Ok(GrainEntry::Allocated(host_offset)) => host_offset,
            Ok(GrainEntry::Unallocated | GrainEntry::Zero) => return Ok(()),
            // Reported once: an invalid entry belongs to no window.
            Err(error) => return if is_first_window { self.findings.note_error(error) } else { Ok(()) },
        };
        let window = self.used.window();
        let in_file = host_offset < self.grains.file_len;
        let in_window = if in_file { window.contains(&host_offset) } else { is_first_window };
        let max_len = SECTOR + max_payload_len(self.grains.grain_bytes);
        if !in_window && (host_offset >= window.end || host_offset.saturating_add(max_len) <= window.start) {
            if in_file {
                self.used.note_beyond(&(host_offset..host_offset + 1));
            }
            *next = None;
            return Ok(());
        }
        // A marker is read once, however many entries point to it.
        let compressed = matches!(self.grains.entry_format, EntryFormat::Sectors { framing: Some(_), .. });
        if compressed && in_window {
            self.findings.work.spend(Work::READ)?;
            if in_file && let Some(with) = self.used.mark(&(host_offset..host_offset + 1), SectorUse::Grain) {
                self.overlap(at, host_offset, with);
                return Ok(());
            }
        }
        let len = match self.grains.grain_extent(bytes, at, offset) {
            Ok((ExtentKind::Compressed(payload), _)) if payload.at.offset > host_offset => {
                payload.at.offset - host_offset + u64::from(payload.stored_len)
            }
            // The length of a payload without a marker is not stored.
            Ok((ExtentKind::Compressed(_), _)) => 1,
            Ok((_, len)) => len,
            Err(Error::Corrupt(_)) if !in_window => return Ok(()),
            Err(error) => return self.findings.note_error(error),
        };
        let end = (host_offset + len).next_multiple_of(SECTOR);
        if in_window {
            let report = &mut self.findings.report;
            report.allocated_clusters += 1;
            report.compressed_clusters += u64::from(compressed);
            report.fragmented_clusters += u64::from(next.is_some_and(|next| next != host_offset));
        }
        *next = Some(end);
        let unmarked = if compressed && in_window { host_offset + SECTOR } else { host_offset };
        if let Some(with) = self.used.mark(&(unmarked.min(end)..end), SectorUse::Grain) {
            self.overlap(at, host_offset, with);
        }
        Ok(())
    }

    fn overlap(&mut self, at: u64, offset: u64, with: SectorUse) {
        let with = match with {
            SectorUse::Metadata => "metadata",
            SectorUse::Grain => "another grain",
        };
        self.findings.fault("grain table entry", at, Problem::Overlap { offset, with });
    }

    /// Checks that a stream ends with an end-of-stream marker. Reading from a file does not need it.
    fn check_end_marker(&mut self, end: u64) -> Result<()> {
        let marked = matches!(self.grains.entry_format, EntryFormat::Sectors { framing: Some(Framing::Marked), .. });
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

/// Detects unreferenced grains.
struct UnusedSpace {
    /// Host offset of the first grain; `None` if it is unknown, then nothing is reported.
    from: Option<u64>,
    /// Bytes in a grain.
    grain_bytes: u64,
}

impl UnusedSpace {
    /// Reports the grains that fit in a gap between ranges in use.
    fn report(&self, gap: Range<u64>, findings: &mut Findings) {
        let Some(from) = self.from else { return };
        let start = gap.start.max(from);
        let grains = gap.end.saturating_sub(start) / self.grain_bytes;
        if grains > 0 {
            findings.leak(grains, start);
        }
    }
}

/// Reads pages of grain tables.
#[derive(Default)]
struct PageReader {
    bytes: Vec<u8>,
}

impl PageReader {
    /// Reads `len` bytes at `offset` of the extent's file, at most [`PAGE_LEN`] and within the file; `None` if all are zero.
    /// Holes are not read: a sparse file can have terabytes of empty tables.
    fn read(&mut self, grains: &GrainMap, offset: u64, len: u64) -> Result<Option<&[u8]>> {
        let (in_data, run_end) = grains.data_runs.run_at(offset)?;
        if !in_data && offset + len <= run_end {
            return Ok(None);
        }
        self.bytes.resize(len as usize, 0);
        table::read(&*grains.file, &mut self.bytes, offset)?;
        Ok(if zero::is_zero(&self.bytes) { None } else { Some(&self.bytes) })
    }
}
