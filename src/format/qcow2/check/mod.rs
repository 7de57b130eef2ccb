//! Checks the metadata of an image: the refcount of each host cluster must equal the number of its uses.
//!
//! `layout` collects the tables, `walk` counts the uses of host clusters (`counts`), which are then compared with the refcounts
//! in the image (`refcounts`). Memory is bounded: the file is checked in windows of 512 GiB with 64 KiB clusters.

mod counts;
mod layout;
mod refcounts;
#[cfg(test)]
mod tests;
mod walk;

use std::borrow::Cow;
use std::sync::Arc;

use self::counts::{Counts, Uses};
use self::layout::Layout;
use self::refcounts::Refcounts;
use self::walk::{GuestCluster, Walk};
use super::header::{Header, Incompatible};
use super::{FIELDS, FORMAT_NAME};
use crate::driver::{CheckKind, CheckReport, OpenContext};
use crate::error::{Error, Fault, Problem, Result};
use crate::io::ReadAt;

/// Host clusters per window; 32 MiB of use counts.
const WINDOW: u64 = 8 << 20;
/// Host clusters per window of the search for L2 tables, which are few.
const L2_WINDOW: u64 = 1 << 20;

/// Checks the metadata of an image.
///
/// # Errors
/// When the header is invalid or not supported, or when the file cannot be read.
pub(super) fn check(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<CheckReport> {
    check_with(file, cx, &mut |_| ()).map(|checked| checked.report)
}

/// A host cluster whose refcount is not the number of its uses, which do not contradict each other.
pub(super) struct WrongCount {
    pub cluster: u64,
    pub refcount: u64,
    pub uses: u64,
}

/// The result of a check, with the faults whose repair is known.
pub(super) struct Checked {
    pub report: CheckReport,
    /// Number of clusters with a refcount that is too low.
    pub low: u64,
    /// Number of entries in which only bit 63 is wrong.
    pub flags: u64,
    /// Number of clusters that are metadata, refcounts for example, and something else.
    pub overlaps: u64,
}

/// As [`check`]. Calls `wrong` with each wrong refcount.
pub(super) fn check_with(
    file: Arc<dyn ReadAt>,
    cx: &OpenContext<'_>,
    wrong: &mut dyn FnMut(WrongCount),
) -> Result<Checked> {
    let header = Header::read_for_check(&file, cx.limits)?;
    let mut findings = Findings::default();
    findings.report.total_clusters = header.size.div_ceil(header.cluster_size());
    findings.note_state(&header);
    match check_layout(file, &header, cx, &mut findings, wrong) {
        Err(error @ Error::Limit { .. }) => findings.report.limit(&error),
        other => other?,
    }
    let Findings { report, low, flags, overlaps, .. } = findings;
    Ok(Checked { report, low, flags, overlaps })
}

fn check_layout(
    file: Arc<dyn ReadAt>,
    header: &Header,
    cx: &OpenContext<'_>,
    findings: &mut Findings,
    wrong: &mut dyn FnMut(WrongCount),
) -> Result<()> {
    let layout = Layout::collect(file, header, cx, findings)?;
    let refcounts = Refcounts::read(&layout.file, layout.file_len, header, cx.budget, findings)?;
    let clusters = layout.file_len.div_ceil(layout.header.cluster_size());
    let mut work = Work::default();
    // The last payload may end in a cluster beyond the end of the file.
    let mut counts = Counts::new(clusters.saturating_add(1), WINDOW);
    let mut l2_tables = Counts::new(clusters, L2_WINDOW);
    let mut first = true;
    loop {
        Walk::new(&layout, first, findings, &mut work).run(&refcounts, &mut counts, &mut l2_tables)?;
        compare(&layout, &refcounts, &counts, findings, wrong, &mut work)?;
        first = false;
        let counted = refcounts.next_covered(counts.window().end).filter(|cluster| *cluster < clusters);
        match counts.beyond().into_iter().chain(counted).min() {
            Some(cluster) => counts.restart(cluster),
            None => return Ok(()),
        }
    }
}

/// Compares the counted uses with the refcounts.
fn compare(
    layout: &Layout<'_>,
    refcounts: &Refcounts,
    counts: &Counts,
    findings: &mut Findings,
    wrong: &mut dyn FnMut(WrongCount),
    work: &mut Work,
) -> Result<()> {
    let cluster_size = layout.header.cluster_size();
    refcounts.for_each(counts.window(), work, |cluster, refcount| {
        let uses = counts.get(cluster).unwrap_or_default();
        let count = u64::from(uses.count());
        let offset = cluster.saturating_mul(cluster_size);
        // Unused clusters beyond the end of the file with a refcount are not leaks.
        if count == 0 && (refcount == 0 || offset >= layout.file_len) {
            return;
        }
        findings.report.image_end_offset = offset.saturating_add(cluster_size);
        let differs = || format!("cluster at host offset {offset:#x}: refcount is {refcount}, expected {count}");
        findings.overlaps += u64::from(uses.overlaps_metadata());
        match uses.conflict() {
            Some(conflict) if count > refcount => findings.report.corruption(|| format!("{}: {conflict}", differs())),
            Some(conflict) => {
                findings.report.corruption(|| format!("cluster at host offset {offset:#x}: {conflict}"));
            }
            None if count > refcount => {
                findings.report.corruption(differs);
                findings.low += 1;
                wrong(WrongCount { cluster, refcount, uses: count });
            }
            None if refcount > count && uses.count() < Uses::MAX_COUNT && !findings.uses_unknown => {
                findings.report.leak(differs);
                wrong(WrongCount { cluster, refcount, uses: count });
            }
            None => {}
        }
    })
}

/// Collects the report.
#[derive(Default)]
struct Findings {
    report: CheckReport,
    /// Whether clusters may be in use by a structure that cannot be read. Nothing is called leaked then: freeing it could lose data.
    uses_unknown: bool,
    /// Refcounts that are too low, and entries in which only bit 63 is wrong, among the corruptions.
    low: u64,
    flags: u64,
    /// Clusters that are metadata and something else.
    overlaps: u64,
}

impl Findings {
    fn note_state(&mut self, header: &Header) {
        if header.incompatible.contains(Incompatible::DIRTY) {
            self.report.message(CheckKind::Note, || {
                "the image was not closed cleanly; its refcounts may be out of date".into()
            });
        }
        if header.incompatible.contains(Incompatible::CORRUPT) {
            self.report.message(CheckKind::Note, || "the image is marked as corrupt".into());
        }
    }

    fn fault(&mut self, name: impl Into<Cow<'static, str>>, at: u64, problem: Problem) {
        self.report.corrupt(|| Error::Corrupt(Fault { format: FORMAT_NAME, field: name.into(), at, problem }));
    }

    /// As [`usable`](Self::usable), for the `entries` that list structures with host clusters of their own.
    fn list_of_uses<T: Default>(&mut self, result: Result<T>, entries: &str) -> Result<T> {
        if let Err(Error::Corrupt(_) | Error::Limit { .. }) = &result {
            self.uses_unknown = true;
            if let Err(Error::Corrupt(_)) = &result {
                self.report.not_checked(|| format!("the clusters of {entries}"));
            }
        }
        self.usable(result)
    }

    /// Reports an error of the image and returns an empty value for it. Other errors are passed on.
    fn usable<T: Default>(&mut self, result: Result<T>) -> Result<T> {
        match result {
            Err(error @ Error::Corrupt(_)) => self.report.corrupt(|| error),
            Err(error @ Error::Limit { .. }) => self.report.limit(&error),
            other => return other,
        }
        Ok(T::default())
    }

    /// Counts an allocated guest cluster. `next` is its host offset if it is not fragmented.
    fn count_cluster(&mut self, cluster: &GuestCluster, next: &mut Option<u64>, cluster_size: u64) {
        self.report.allocated_clusters += 1;
        if cluster.compressed {
            self.report.compressed_clusters += 1;
            self.report.fragmented_clusters += 1;
        } else {
            self.report.fragmented_clusters += u64::from(next.is_some_and(|next| next != cluster.host));
            *next = cluster.host.checked_add(cluster_size);
        }
    }
}

/// Work done, in table entries and clusters. Crafted images can reference the same tables many times.
#[derive(Default)]
struct Work(u64);

impl Work {
    /// Limit: some ten seconds, or more with slow storage. A valid image of 10 TiB stays below.
    const LIMIT: u64 = 1 << 32;
    /// Cost of a read, in entries.
    const READ: u64 = 256;

    /// # Errors
    /// [`Error::Limit`] beyond [`Work::LIMIT`].
    fn spend(&mut self, entries: u64) -> Result<()> {
        self.0 = self.0.saturating_add(entries);
        FIELDS.at("number of table entries to check", 0).at_most(self.0, Self::LIMIT)
    }
}
