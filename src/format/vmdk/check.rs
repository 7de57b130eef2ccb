//! Checks the metadata of an image: tables and grains are within their file and do not overlap, and the redundant grain
//! tables are equal.
//!
//! The header or the descriptor must be valid. `sparse` then walks the tables of each sparse extent and marks the
//! sectors in use in `sectors`. Payloads are not read. Memory is bounded: files larger than 32 GiB are checked window
//! by window.

mod sectors;
mod sparse;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use self::sparse::{check_grains, check_hosted};
use super::cowd::CowdHeader;
use super::descriptor::{Descriptor, ExtentLine, ExtentType};
use super::hosted::Hosted;
use super::reader::{self, check_capacity, describe_hosted, exact_len, in_extent};
use super::{FIELDS, FORMAT_NAME, SECTOR, SparseKind, esxi};
use crate::driver::FileId;
use crate::driver::{CheckKind, CheckReport, OpenContext};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table;
use crate::info::FileReference;
use crate::io::ReadAt;
use crate::name::Name;

/// Checks the metadata of an image and its extents, but not of its parent.
///
/// # Errors
/// When the header or the descriptor is invalid or not supported, when the reference policy denies an extent, and when
/// a file cannot be read.
pub(super) fn check(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<CheckReport> {
    let mut findings = Findings::default();
    let result = match reader::sparse_kind(&*file)? {
        Some(SparseKind::Hosted) => {
            let hosted = Hosted::read(file, FileId::default(), cx)?;
            let text = hosted.descriptor(cx)?;
            let descriptor = text.map(|(text, at)| Descriptor::parse(&text, at, cx.limits)).transpose()?;
            let len = describe_hosted(&hosted.header, descriptor.as_ref(), cx)?.virtual_size;
            check_hosted(hosted, len, cx, &mut findings)
        }
        Some(SparseKind::Cowd) => {
            // Without the descriptor its parent is unknown, but its own tables can be checked.
            let header = esxi::read_cowd(&*file, cx)?;
            check_cowd(file, &header, header.capacity_bytes(), cx, &mut findings)
        }
        Some(SparseKind::SeSparse) => return Err(esxi::needs_descriptor("a space-efficient sparse extent")),
        None => check_extents(&reader::read_descriptor(&*file, cx)?, cx, &mut findings),
    };
    result.or_else(|error| findings.note_error(error))?;
    Ok(findings.report)
}

/// Checks the extents one by one, so that few files are open at a time.
fn check_extents(descriptor: &Descriptor, cx: &OpenContext<'_>, findings: &mut Findings) -> Result<()> {
    let mut used = HashMap::new();
    for line in &descriptor.extents {
        let Some(name) = &line.file else { continue };
        findings.extent = Some(name.clone());
        let range = match line.kind {
            ExtentType::Flat | ExtentType::Vmfs => line.offset * SECTOR..(line.offset + line.sectors) * SECTOR,
            _ => 0..u64::MAX,
        };
        let free = add_range(used.entry(name).or_default(), range.clone());
        if !free {
            findings.fault("file range", line.at, Problem::Overlap { offset: range.start, with: "another extent" });
        }
        match (cx.file)(&FileReference::new("extent", name.clone(), None).in_any_case())? {
            // Already reported.
            Some(_) if !free => {}
            Some(file) => check_extent(file, line, cx, findings).or_else(|error| findings.note_error(error))?,
            None => findings.report.not_checked(|| format!("extent {name}")),
        }
    }
    Ok(())
}

/// Adds a range to the ranges in use of a file. Returns whether it was free.
fn add_range(used: &mut Vec<Range<u64>>, range: Range<u64>) -> bool {
    let free = range.is_empty() || used.iter().all(|other| other.end <= range.start || range.end <= other.start);
    used.push(range);
    free
}

fn check_extent(file: Arc<dyn ReadAt>, line: &ExtentLine, cx: &OpenContext<'_>, findings: &mut Findings) -> Result<()> {
    let len = line.sectors * SECTOR;
    match line.kind {
        ExtentType::Zero => Ok(()),
        ExtentType::Flat | ExtentType::Vmfs => {
            FIELDS.at("file range", line.at).within(line.offset * SECTOR, len, table::length(&*file)?)
        }
        ExtentType::Sparse => {
            let hosted = Hosted::read(file, FileId::default(), cx)?;
            check_capacity(hosted.header.capacity, line)?;
            let len = exact_len(hosted.header.capacity, hosted.header.grain_size, line);
            check_hosted(hosted, len, cx, findings)
        }
        ExtentType::VmfsSparse => {
            let header = esxi::read_cowd(&*file, cx)?;
            check_capacity(header.capacity, line)?;
            check_cowd(file, &header, exact_len(header.capacity, header.grain_size, line), cx, findings)
        }
        ExtentType::SeSparse => {
            let check = |capacity| check_capacity(capacity, line);
            let mut on_damage = |error| findings.note_error(error);
            let grains = esxi::open_sesparse(file, FileId::default(), len, check, cx, &mut on_damage)?;
            check_grains(grains, findings)
        }
    }
}

fn check_cowd(
    file: Arc<dyn ReadAt>,
    header: &CowdHeader,
    len: u64,
    cx: &OpenContext<'_>,
    findings: &mut Findings,
) -> Result<()> {
    findings.note_unclean(header.unclean);
    let mut on_damage = |error| findings.note_error(error);
    let grains = esxi::open_cowd(file, FileId::default(), header, len, cx, &mut on_damage)?;
    check_grains(grains, findings)
}

/// The report under construction.
#[derive(Default)]
struct Findings {
    report: CheckReport,
    /// The file name of the current extent, if it is not the image file.
    extent: Option<Name>,
    work: Work,
}

impl Findings {
    fn note_unclean(&mut self, unclean: bool) {
        if unclean {
            self.note("not closed cleanly; the last writes may be missing");
        }
    }

    fn note(&mut self, what: &str) {
        let extent = &self.extent;
        self.report.message(CheckKind::Note, || match extent {
            Some(name) => format!("extent {name}: {what}"),
            None => what.to_owned(),
        });
    }

    fn fault(&mut self, name: impl Into<Cow<'static, str>>, at: u64, problem: Problem) {
        self.corruption(Error::corrupt(FORMAT_NAME, name, at, problem));
    }

    fn corruption(&mut self, error: Error) {
        let extent = &self.extent;
        self.report.corruption(|| match extent {
            Some(name) => in_extent(error, name).to_string(),
            None => error.to_string(),
        });
    }

    /// Reports space for `grains` unreferenced grains at host offset `at`.
    fn leak(&mut self, grains: u64, at: u64) {
        let extent = &self.extent;
        self.report.leaks = self.report.leaks.saturating_add(grains);
        self.report.message(CheckKind::Leak, || match extent {
            Some(name) => format!("extent {name}: unreferenced grains at file offset {at:#x}: {grains}"),
            None => format!("unreferenced grains at file offset {at:#x}: {grains}"),
        });
    }

    /// Reports corruption and exceeded limits; returns other errors.
    fn note_error(&mut self, error: Error) -> Result<()> {
        match error {
            Error::Corrupt(_) => self.corruption(error),
            Error::Limit { .. } => self.report.limit(&error),
            other => return Err(other),
        }
        Ok(())
    }

    /// Returns the value, or `None` after reporting the error.
    fn usable<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => self.note_error(error).map(|()| None),
        }
    }
}

/// The amount of work done, counted in table entries. A small image can reference the same data any number of times.
#[derive(Default)]
struct Work(u64);

impl Work {
    /// About ten seconds. A valid image of 16 TiB stays below.
    const LIMIT: u64 = 1 << 32;
    /// Cost of one read in entries.
    const READ: u64 = 128;

    /// # Errors
    /// [`Error::Limit`] above [`Work::LIMIT`].
    fn spend(&mut self, entries: u64) -> Result<()> {
        self.0 = self.0.saturating_add(entries);
        FIELDS.at("number of table entries to check", 0).at_most(self.0, Self::LIMIT)
    }
}
