//! Progress and result of a conversion.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

#[cfg(feature = "hash")]
use super::file_digest::FileDigest;
use crate::error::{Error, ErrorKind};
use crate::format::Format;
#[cfg(feature = "sparsify")]
use crate::guest::free::GuestVolume;
#[cfg(feature = "hash")]
use crate::hash::Digest;
use crate::name::Name;

/// Progress of a conversion.
///
/// ```
/// use diskimage::{Converter, Format};
///
/// let converter = Converter::new(Format::QCOW2).progress(|progress| {
///     let percent = progress.done as f64 * 100.0 / progress.total as f64;
///     eprint!("\r{percent:.1} %");
/// });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Guest bytes done. The last call has `total`.
    pub done: u64,
    /// Guest bytes to convert.
    ///
    /// This is the data of the source by its metadata, with that of the backing image of a new overlay, to which it is compared: what is known to be
    /// zeros takes no time. It is the virtual size of the new image instead if zeros are stored or hashed too, if there is no data, or if a
    /// map of the source would take long: of several hundred thousand fragments, of a file that is not a local one, or of a streamOptimized
    /// VMDK. Of several images in one conversion it is the sum of the virtual sizes, of which the share of each image is done in proportion.
    pub total: u64,
}

impl Progress {
    /// The same share of `size` bytes.
    pub(super) fn scaled_to(self, size: u64) -> u64 {
        let done = u128::from(self.done) * u128::from(size) / u128::from(self.total.max(1));
        u64::try_from(done).unwrap_or(size)
    }
}

/// Result of a conversion, or of the creation of an image.
///
/// ```
/// use std::sync::Arc;
///
/// use diskimage::io::MemFile;
/// use diskimage::{Converter, Format};
///
/// let report = Converter::new(Format::QCOW2).create_to(1000, Arc::new(MemFile::new()))?;
/// assert_eq!(report.source_format, None);
/// assert_eq!((report.virtual_size, report.padding), (1024, 24));
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Format of the source; `None` for a created image.
    pub source_format: Option<Format>,
    /// Format of the new image.
    pub format: Format,
    /// Virtual size in bytes of the new image.
    pub virtual_size: u64,
    /// Bytes of zeros by which the virtual size was rounded up: most formats have whole sectors, some options whole units.
    pub padding: u64,
    /// Guest bytes stored as data, compressed or not.
    pub data_bytes: u64,
    /// Number of blocks stored compressed.
    pub compressed_blocks: u64,
    /// Guest bytes of these blocks.
    pub compressed_bytes: u64,
    /// Number of these blocks that were copied without re-encoding, after a test that they decode.
    pub passthrough_blocks: u64,
    /// Guest bytes of the blocks that were copied so.
    pub passthrough_bytes: u64,
    /// Bytes of payload written.
    pub written_bytes: u64,
    /// Guest bytes whose blocks are shared with the source, so that nothing was written for them. See [`Reflink`](crate::Reflink).
    pub cloned_bytes: u64,
    /// Whether the page cache was used although [`Converter::cache`](crate::Converter::cache) says to bypass it: the file system cannot do that.
    pub cache_refused: bool,
    /// The digests of the guest data for which [`Converter::hash`](crate::Converter::hash) asks, in the same order. None for a created image.
    #[cfg(feature = "hash")]
    pub digests: Vec<Digest>,
    /// The digests of the files for which [`Converter::hash_file`](crate::Converter::hash_file) asks.
    #[cfg(feature = "hash")]
    pub file_digests: Vec<FileDigest>,
    /// What [`Converter::salvage`](crate::Converter::salvage) could not read and has replaced.
    pub unreadable: DamageList,
    /// What it has read from a host range that is also that of metadata or of another guest range: one of them has data that is not
    /// its own. Of several guest ranges with one host range, the first one is not listed.
    pub doubtful: DamageList,
    /// The volumes of the source, if what they do not use was dropped: [`Image::drop_free_space`](crate::Image::drop_free_space).
    #[cfg(feature = "sparsify")]
    pub volumes: Vec<GuestVolume>,
    /// The names of the inconsistent bitmaps that [`BitmapPolicy::SkipInconsistent`](crate::BitmapPolicy::SkipInconsistent) left out.
    pub skipped_bitmaps: Vec<Name>,
}

/// Damage of an image, in ascending order of the guest ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DamageList {
    /// Guest bytes in all ranges.
    pub bytes: u64,
    /// The ranges, at most [`DamageList::RANGES`] of them.
    pub ranges: Vec<Damage>,
}

/// A damaged guest range.
///
/// ```
/// use diskimage::Report;
///
/// fn print(report: &Report) {
///     for lost in &report.unreadable.ranges {
///         println!("{:#x} to {:#x}: {}", lost.range.start, lost.range.end, lost.message);
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// Guest offsets in bytes.
    pub range: Range<u64>,
    /// The kind of the error.
    pub kind: ErrorKind,
    /// The file in which it occurred, where it is known.
    pub path: Option<PathBuf>,
    /// The error in words. For adjacent ranges with errors of one kind in one file, the first of these errors.
    pub message: String,
}

impl Damage {
    pub(super) fn new(range: Range<u64>, error: Error) -> Self {
        let (kind, path) = (error.kind(), error.path().map(Into::into));
        let error = if let Error::Guest { cause, .. } = error { *cause } else { error };
        Damage { range, kind, path, message: error.to_string() }
    }
}

impl DamageList {
    /// Largest number of ranges that are listed; further ones are only counted.
    pub const RANGES: usize = 1000;

    /// Adds a range that is not before the last one.
    pub(super) fn add(&mut self, damage: Damage) {
        let Damage { range, kind, path, .. } = &damage;
        self.bytes += range.end - range.start;
        let listed = self.ranges.len();
        match self.ranges.last_mut() {
            Some(last) if last.range.end == range.start && (last.kind, &last.path) == (*kind, path) => {
                last.range.end = range.end;
            }
            _ if listed < Self::RANGES => self.ranges.push(damage),
            _ => {}
        }
    }
}

impl Report {
    /// Whether the new image has other data than the disk had before the source was damaged, as far as that is known.
    pub fn has_damage(&self) -> bool {
        self.unreadable.bytes > 0 || self.doubtful.bytes > 0
    }

    /// Guest bytes that are not stored as data: zeros, and what an overlay has in common with its backing file.
    pub fn zero_bytes(&self) -> u64 {
        self.virtual_size.saturating_sub(self.data_bytes)
    }

    pub(super) fn new(source_format: Option<Format>, format: Format, virtual_size: u64, padding: u64) -> Self {
        Report {
            source_format,
            format,
            virtual_size,
            padding,
            data_bytes: 0,
            compressed_blocks: 0,
            compressed_bytes: 0,
            passthrough_blocks: 0,
            passthrough_bytes: 0,
            written_bytes: 0,
            cloned_bytes: 0,
            cache_refused: false,
            #[cfg(feature = "hash")]
            digests: Vec::new(),
            #[cfg(feature = "hash")]
            file_digests: Vec::new(),
            unreadable: DamageList::default(),
            doubtful: DamageList::default(),
            #[cfg(feature = "sparsify")]
            volumes: Vec::new(),
            skipped_bitmaps: Vec::new(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { source_format, format, virtual_size, data_bytes, written_bytes, cloned_bytes, .. } = self;
        match source_format {
            None => write!(f, "created an empty {format} image of {virtual_size} bytes")?,
            Some(source) => write!(
                f,
                "converted {source} to {format}: virtual size {virtual_size} bytes, {data_bytes} bytes of data, \
                 {written_bytes} bytes written"
            )?,
        }
        if *cloned_bytes > 0 {
            write!(f, ", {cloned_bytes} bytes shared")?;
        }
        if self.padding > 0 {
            write!(f, "; padded with {} bytes of zeros", self.padding)?;
        }
        if self.unreadable.bytes > 0 {
            write!(f, "; {} bytes could not be read", self.unreadable.bytes)?;
        }
        if self.doubtful.bytes > 0 {
            write!(f, "; {} bytes are doubtful", self.doubtful.bytes)?;
        }
        Ok(())
    }
}
