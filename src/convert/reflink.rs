//! Shared blocks: ranges of the new image's file become clones of ranges of the source's files, and no data moves.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;

use super::{Converter, Job};
use crate::driver::FileId;
use crate::error::{Error, Result};
use crate::image::{Image, Span};
use crate::io::WriteAt;

/// The smallest blocks of file systems that share them, in bytes.
const SMALLEST_UNIT: u64 = 4096;

/// Whether a new image shares blocks with its source, as `cp --reflink` says it.
///
/// Blocks are shared by XFS, btrfs, bcachefs and others on Linux, between files of one file system, if a format stores its data uncompressed
/// and at multiples of the file system's block size.
///
/// ```
/// use diskimage::{Converter, Format, Reflink};
///
/// // Fails on a file system that cannot share blocks.
/// let converter = Converter::new(Format::QCOW2).reflink(Reflink::Always);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reflink {
    /// Where that is possible, and [`Converter::sparse`] is not set: what is cloned is not looked at, so that zeros in it remain data.
    #[default]
    Auto,
    /// An error where the file system cannot do it. What is not aligned is copied, metadata and the last bytes of a disk for instance.
    Always,
    /// Everything is copied.
    Never,
}

/// A file of the source: its layer, and its index there.
pub(super) type SystemFile = (usize, FileId);

/// The files of the source whose blocks the new file can share.
pub(super) struct Reflinks<'a> {
    source: &'a Image,
    files: Cloneable<'a>,
    /// Guest ranges begin and end at multiples of it, in bytes.
    unit: u64,
    /// Host ranges too, at multiples of this, which divides the unit.
    block: u64,
    pub always: bool,
}

/// A part of a segment, as a guest range.
#[derive(Debug)]
pub(super) enum Part {
    Copy(Range<u64>),
    /// Its data begins at a byte of the file.
    Clone(Range<u64>, SystemFile, u64),
}

/// The files of the operating system among those of the source, with the units in bytes in which they can be cloned.
pub(super) type Cloneable<'a> = HashMap<SystemFile, (&'a File, u64)>;

impl Converter {
    /// The files of `source` whose blocks `out`, to which nothing has been written, can share.
    pub(super) fn cloneable<'a>(&self, source: &'a Image, out: &dyn WriteAt) -> Cloneable<'a> {
        let wanted = match self.reflink {
            Reflink::Auto => self.sparse.is_none(),
            Reflink::Always => true,
            Reflink::Never => false,
        };
        let files = source.system_files().filter(|_| wanted);
        files.filter_map(|(key, file)| Some((key, (file, out.clone_unit(file)?)))).collect()
    }
}

impl<'a> Reflinks<'a> {
    /// `None` if everything is copied.
    pub fn new(settings: &Converter, job: &Job<'a>, files: Cloneable<'a>) -> Result<Option<Self>> {
        let block = files.values().fold(SMALLEST_UNIT, |unit, (_, block)| unit.max(*block));
        let obstacle = if files.is_empty() {
            "the file system does not do that for these files"
        } else if job.spec.encoding.is_some() || job.base.is_some() || job.dense() || job.salvage.is_some() {
            "data is compressed, compared, salvaged or stored with its zeros"
        } else if job.digests || job.fills_gaps() {
            "a digest of the data is needed"
        } else if job.spec.host_alignment < block {
            "the format does not align its data"
        } else {
            let always = settings.reflink == Reflink::Always;
            return Ok(Some(Reflinks { source: job.source, unit: job.unit().max(block), block, files, always }));
        };
        match settings.reflink {
            Reflink::Always => {
                Err(Error::Usage(format!("the new image cannot share blocks with its source: {obstacle}")))
            }
            Reflink::Auto | Reflink::Never => Ok(None),
        }
    }

    /// The file with this key, which is one of a [part](Part::Clone).
    pub fn file(&self, key: SystemFile) -> Option<&'a File> {
        self.files.get(&key).map(|(file, _)| *file)
    }

    /// Splits `segment`, whose spans are in `spans`, in ascending order.
    pub fn split(&self, spans: &[Span], segment: &Range<u64>) -> Vec<Part> {
        let (mut parts, mut at) = (Vec::new(), segment.start);
        for (guest, file, offset) in self.runs(spans, segment) {
            let start = guest.start.next_multiple_of(self.unit);
            let end = guest.end - guest.end % self.unit;
            let offset = offset + (start - guest.start);
            if start < end && offset.is_multiple_of(self.block) {
                if at < start {
                    parts.push(Part::Copy(at..start));
                }
                parts.push(Part::Clone(start..end, file, offset));
                at = end;
            }
        }
        if at < segment.end {
            parts.push(Part::Copy(at..segment.end));
        }
        parts
    }

    /// The guest ranges whose data is contiguous in one of the files, and the offset in it.
    fn runs(&self, spans: &[Span], segment: &Range<u64>) -> Vec<(Range<u64>, SystemFile, u64)> {
        let mut runs: Vec<(Range<u64>, SystemFile, u64)> = Vec::new();
        let first = spans.partition_point(|span| span.end() <= segment.start);
        for span in spans[first..].iter().take_while(|span| span.offset < segment.end) {
            let span = span.clip(segment.start, segment.end);
            let Some(at) = self.source.stored_at(&span) else { continue };
            let file = (span.layer, at.file);
            if !self.files.contains_key(&file) {
                continue;
            }
            match runs.last_mut() {
                Some((guest, last, offset))
                    if guest.end == span.offset
                        && *last == file
                        && *offset + (guest.end - guest.start) == at.offset =>
                {
                    guest.end = span.end();
                }
                _ => runs.push((span.offset..span.end(), file, at.offset)),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests;
