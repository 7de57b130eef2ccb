//! The examination of an image's metadata: do all tables and grains lie within their file, has each its place for itself, and
//! do the two copies of the tables agree?
//!
//! What the image is, its header or descriptor, has to be sound. Then `sparse` goes through the tables of each sparse extent
//! and notes in `sectors` what is taken. Payloads are not read. Memory is bounded: a file of more than 32 GiB is taken window by window.

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
use super::reader::{self, check_capacity, describe_hosted, exact_len, name_extent};
use super::{FIELDS, FORMAT_NAME, Kind, SECTOR, esxi};
use crate::driver::FileId;
use crate::driver::{CheckReport, OpenContext};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table;
use crate::info::FileReference;
use crate::io::ReadAt;
use crate::name::Name;

/// Examines the metadata of an image and of the extents that it names, but not of its parent.
///
/// # Errors
/// When the header or the descriptor is not that of an image which this crate reads, when an extent may not be opened, and
/// when a file cannot be read.
pub(super) fn check(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<CheckReport> {
    let mut findings = Findings::default();
    let examined = match reader::kind(&*file)? {
        Some(Kind::Hosted) => {
            let hosted = Hosted::read(file, FileId::default(), cx)?;
            let text = hosted.descriptor(cx)?;
            let descriptor = text.map(|(text, at)| Descriptor::parse(&text, at, cx.limits)).transpose()?;
            let len = describe_hosted(&hosted.header, descriptor.as_ref())?.virtual_size;
            check_hosted(hosted, len, cx, &mut findings)
        }
        Some(Kind::Cowd) => {
            // It may lie over another one. Its own tables can be examined.
            let header = esxi::read_cowd(&*file, cx)?;
            check_cowd(file, &header, header.capacity_bytes(), cx, &mut findings)
        }
        Some(Kind::SeSparse) => return Err(esxi::needs_descriptor("a space-efficient sparse extent")),
        None => check_extents(&reader::read_descriptor(&*file, cx)?, cx, &mut findings),
    };
    examined.or_else(|error| findings.note_error(error))?;
    Ok(findings.report)
}

/// Examines one extent after the other, so that few files are open.
fn check_extents(descriptor: &Descriptor, cx: &OpenContext<'_>, findings: &mut Findings) -> Result<()> {
    let mut taken = HashMap::new();
    for line in &descriptor.extents {
        let Some(name) = &line.file else { continue };
        findings.extent = Some(name.clone());
        let place = match line.kind {
            ExtentType::Flat | ExtentType::Vmfs => line.offset * SECTOR..(line.offset + line.sectors) * SECTOR,
            _ => 0..u64::MAX,
        };
        let free = take(taken.entry(name).or_default(), place.clone());
        if !free {
            findings.fault("place", line.at, Problem::Overlap { offset: place.start, with: "another extent" });
        }
        match (cx.file)(&FileReference::new("extent", name.clone(), None))? {
            // What is wrong with it has been said.
            Some(_) if !free => {}
            Some(file) => check_extent(file, line, cx, findings).or_else(|error| findings.note_error(error))?,
            None => findings.not_examined(|| format!("the extent {name}")),
        }
    }
    Ok(())
}

/// Adds a part of a file to those that are taken, and tells whether it was free.
fn take(taken: &mut Vec<Range<u64>>, place: Range<u64>) -> bool {
    let free = place.is_empty() || taken.iter().all(|other| other.end <= place.start || place.end <= other.start);
    taken.push(place);
    free
}

fn check_extent(file: Arc<dyn ReadAt>, line: &ExtentLine, cx: &OpenContext<'_>, findings: &mut Findings) -> Result<()> {
    let len = line.sectors * SECTOR;
    match line.kind {
        ExtentType::Zero => Ok(()),
        ExtentType::Flat | ExtentType::Vmfs => {
            FIELDS.at("place", line.at).within(line.offset * SECTOR, len, table::length(&*file)?)
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
            let mut damaged = |error| findings.note_error(error);
            let grains = esxi::open_sesparse(file, FileId::default(), len, check, cx, &mut damaged)?;
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
    findings.note_state(header.unclean);
    let mut damaged = |error| findings.note_error(error);
    let grains = esxi::cowd_grains(file, FileId::default(), header, len, cx, &mut damaged)?;
    check_grains(grains, findings)
}

/// The report, as it grows.
#[derive(Default)]
struct Findings {
    report: CheckReport,
    /// The extent that is examined, if it is a file of its own.
    extent: Option<Name>,
    work: Work,
}

impl Findings {
    fn note_state(&mut self, unclean: bool) {
        if unclean {
            self.note("it was not closed; what was written last may be missing");
        }
    }

    fn note(&mut self, what: &'static str) {
        let extent = &self.extent;
        self.report.message("Note", || match extent {
            Some(name) => format!("the extent {name}: {what}"),
            None => what.into(),
        });
    }

    fn fault(&mut self, name: impl Into<Cow<'static, str>>, at: u64, problem: Problem) {
        self.corruption(Error::corrupt(FORMAT_NAME, name, at, problem));
    }

    fn corruption(&mut self, error: Error) {
        let extent = &self.extent;
        self.report.corruption(|| match extent {
            Some(name) => name_extent(error, name).to_string(),
            None => error.to_string(),
        });
    }

    /// Space that nothing uses: `blocks` of them at byte `at`.
    fn leak(&mut self, blocks: u64, at: u64) {
        let extent = &self.extent;
        self.report.leaks = self.report.leaks.saturating_add(blocks);
        self.report.message("Leaked", || match extent {
            Some(name) => format!("{blocks} grains at file offset {at:#x} of the extent {name}: nothing uses them"),
            None => format!("{blocks} grains at file offset {at:#x}: nothing uses them"),
        });
    }

    fn not_examined(&mut self, what: impl FnOnce() -> String) {
        self.report.check_errors += 1;
        self.report.message("Not examined", what);
    }

    /// Notes what is wrong with the image, or too much to be looked at; other errors come back.
    fn note_error(&mut self, error: Error) -> Result<()> {
        match error {
            Error::Corrupt(_) => self.corruption(error),
            Error::Limit { .. } => self.not_examined(|| error.to_string()),
            other => return Err(other),
        }
        Ok(())
    }

    /// What was read, or nothing if the image is at fault.
    fn usable<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => self.note_error(error).map(|()| None),
        }
    }
}

/// How much was looked at: table entries and sectors. Small images can name the same things again and again.
#[derive(Default)]
struct Work(u64);

impl Work {
    /// Some ten seconds. A sound image of 16 TiB stays below.
    const LIMIT: u64 = 1 << 32;
    /// What a read costs, in entries.
    const READ: u64 = 128;

    /// # Errors
    /// [`Error::Limit`] when it becomes too much.
    fn spend(&mut self, entries: u64) -> Result<()> {
        self.0 = self.0.saturating_add(entries);
        FIELDS.at("number of table entries to be examined", 0).at_most(self.0, Self::LIMIT)
    }
}
