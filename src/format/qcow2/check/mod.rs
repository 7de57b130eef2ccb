//! The examination of an image's metadata: is every cluster of the file used as often as its reference count says?
//!
//! `layout` says what there is, `walk` goes through it and counts the uses of clusters (`counts`), which are then compared
//! with the counts that the image has of itself (`stored`). Memory is bounded: the file is taken window by window, and a file of at most
//! 256 GiB (at the usual cluster size) is a single one.

mod counts;
mod layout;
mod stored;
#[cfg(test)]
mod tests;
mod walk;

use std::sync::Arc;

use self::counts::{Counts, Uses};
use self::layout::Layout;
use self::stored::Stored;
use self::walk::{GuestCluster, Walk};
use super::header::{Header, Incompatible};
use super::{FIELDS, FORMAT_NAME};
use crate::driver::{CheckReport, OpenContext};
use crate::error::{Error, Fault, Problem, Result};
use crate::io::ReadAt;

/// Clusters whose uses are counted at once: 32 MiB of counts.
const WINDOW: u64 = 8 << 20;
/// Clusters among which L2 tables are sought at once. They are few, and to look for them costs little.
const L2_WINDOW: u64 = 1 << 20;

/// Examines the metadata of an image.
///
/// # Errors
/// When the header is not that of an image which this crate reads, and when the file cannot be read.
pub(super) fn check(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<CheckReport> {
    let header = Header::read(&file, cx.limits)?;
    let mut findings = Findings::default();
    findings.report.total_clusters = header.size.div_ceil(header.cluster_size());
    findings.note_state(&header);
    match examine(file, &header, cx, &mut findings) {
        Err(error @ Error::Limit { .. }) => findings.not_examined(&error),
        other => other?,
    }
    Ok(findings.report)
}

fn examine(file: Arc<dyn ReadAt>, header: &Header, cx: &OpenContext<'_>, findings: &mut Findings) -> Result<()> {
    let layout = Layout::collect(file, header, cx, findings)?;
    let stored = Stored::read(&layout.file, layout.file_len, header, cx.budget, findings)?;
    let clusters = layout.file_len.div_ceil(layout.header.cluster_size());
    let mut work = Work::default();
    // A payload may end in a cluster past the end of the file.
    let mut counts = Counts::new(clusters.saturating_add(1), WINDOW);
    let mut l2_tables = Counts::new(clusters, L2_WINDOW);
    let mut first = true;
    loop {
        Walk::new(&layout, first, findings, &mut work).run(&stored, &mut counts, &mut l2_tables)?;
        compare(&layout, &stored, &counts, findings, &mut work)?;
        first = false;
        let counted = stored.next_counted(counts.window().end).filter(|cluster| *cluster < clusters);
        match counts.beyond().into_iter().chain(counted).min() {
            Some(cluster) => counts.restart(cluster),
            None => return Ok(()),
        }
    }
}

/// Compares the uses that were counted with the counts that are stored.
fn compare(
    layout: &Layout<'_>,
    stored: &Stored,
    counts: &Counts,
    findings: &mut Findings,
    work: &mut Work,
) -> Result<()> {
    let cluster_size = layout.header.cluster_size();
    stored.for_each(counts.window(), work, |cluster, stored| {
        let uses = counts.get(cluster).unwrap_or_default();
        let count = u64::from(uses.count());
        let offset = cluster.saturating_mul(cluster_size);
        // What is counted past the end of the file and not used will be overwritten; nothing is lost.
        if count == 0 && (stored == 0 || offset >= layout.file_len) {
            return;
        }
        findings.report.image_end_offset = offset.saturating_add(cluster_size);
        if let Some(conflict) = uses.conflict() {
            findings.report.corruption(|| format!("cluster at file offset {offset:#x}: {conflict}"));
        }
        if count > stored {
            findings.report.corruption(|| {
                format!("cluster at file offset {offset:#x}: {count} uses, but a reference count of {stored}")
            });
        } else if stored > count && uses.count() < Uses::MAX_COUNT {
            findings.report.leak(|| {
                format!("cluster at file offset {offset:#x}: {count} uses, but a reference count of {stored}")
            });
        }
    })
}

/// The report, as it grows.
#[derive(Default)]
struct Findings {
    report: CheckReport,
}

impl Findings {
    fn note_state(&mut self, header: &Header) {
        if header.incompatible.contains(Incompatible::DIRTY) {
            self.report.message("Note", || "the image was not closed; its reference counts may be out of date".into());
        }
        if header.incompatible.contains(Incompatible::CORRUPT) {
            self.report.message("Note", || "the image is marked as corrupt".into());
        }
    }

    fn fault(&mut self, name: &'static str, at: u64, problem: Problem) {
        self.report.corruption(|| Fault { format: FORMAT_NAME, field: name.into(), at, problem }.to_string());
    }

    fn not_examined(&mut self, why: &Error) {
        self.report.check_errors += 1;
        self.report.message("Not examined", || why.to_string());
    }

    /// What was read, or nothing if the image is at fault.
    fn usable<T: Default>(&mut self, result: Result<T>) -> Result<T> {
        match result {
            Err(error @ Error::Corrupt(_)) => self.report.corruption(|| error.to_string()),
            Err(error @ Error::Limit { .. }) => self.not_examined(&error),
            other => return other,
        }
        Ok(T::default())
    }

    /// Counts an allocated cluster of the disk; `next` is where it would be if it followed the one before.
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

/// How much was looked at: table entries and clusters. Small images can name the same things again and again.
#[derive(Default)]
struct Work(u64);

impl Work {
    /// Some ten seconds, or several times that where files are slow. A sound image of 10 TiB stays below.
    const LIMIT: u64 = 1 << 32;
    /// What a read costs, in entries.
    const READ: u64 = 256;

    /// # Errors
    /// [`Error::Limit`] when it becomes too much.
    fn spend(&mut self, entries: u64) -> Result<()> {
        self.0 = self.0.saturating_add(entries);
        FIELDS.at("number of references to be examined", 0).at_most(self.0, Self::LIMIT)
    }
}
