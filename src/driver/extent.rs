//! Extents: the host location and the kind of a guest range.
//!
//! The structs are exhaustive, for drivers to build them by their fields; a new kind of mapping is a new [`ExtentKind`].

use std::ops::Range;

use crate::codec::Codec;

/// A guest range of one kind in one layer of an image.
///
/// ```
/// use diskimage::driver::{Extent, ExtentKind, FileId, Location};
///
/// let at = Location { file: FileId(0), offset: 0x10000 };
/// let extent = Extent::new(0x4000..0x8000, ExtentKind::Data(at));
/// assert_eq!(extent.clip(0x5000, 0x6000), Extent::new(0x5000..0x6000, ExtentKind::Data(at.advance(0x1000))));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Guest offset in bytes.
    pub offset: u64,
    /// Length in bytes, at least 1.
    pub len: u64,
    /// How the range is stored.
    pub kind: ExtentKind,
}

/// How a guest range is stored in one layer of an image.
///
/// ```
/// use diskimage::driver::{ExtentKind, FileId, Location};
///
/// let at = Location { file: FileId(0), offset: 0x10000 };
/// let next = ExtentKind::Data(at.advance(512));
/// // Table entries are merged while the host offsets are contiguous.
/// assert!(ExtentKind::Data(at).continues(512, next));
/// assert!(!ExtentKind::Data(at).continues(1024, next));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExtentKind {
    /// Stored uncompressed, contiguous from this location on.
    Data(Location),
    /// Part of a compressed unit.
    Compressed(Compressed),
    /// Zeros, whatever a parent holds.
    Zero {
        /// Host location that is allocated for the range, if any.
        allocated: Option<Location>,
    },
    /// The data of the parent, or zeros without a parent.
    Hole,
}

/// A compressed unit: a cluster of qcow2, a grain of VMDK.
///
/// ```
/// use diskimage::codec::Codec;
/// use diskimage::driver::{Compressed, ExtentKind, FileId, Location};
///
/// // Guest bytes 0x20000..0x30000 are one deflate payload of at most 1024 bytes.
/// let at = Location { file: FileId(0), offset: 0x50000 };
/// let unit = Compressed {
///     at,
///     stored_len: 1024,
///     codec: Codec::Deflate,
///     unit: 0x20000,
///     unit_len: 0x10000,
///     min_len: 0x10000,
/// };
/// // Every part of the unit has the same kind.
/// assert_eq!(ExtentKind::Compressed(unit).advance(512), ExtentKind::Compressed(unit));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed {
    /// Host location of the payload.
    pub at: Location,
    /// Upper bound of the length of the payload in bytes. Data of other units may follow it.
    pub stored_len: u32,
    /// The codec.
    pub codec: Codec,
    /// Guest offset of the unit in bytes.
    pub unit: u64,
    /// Guest length of the unit in bytes. The last unit of a disk may end after the disk.
    pub unit_len: u32,
    /// Least number of bytes that the payload must decode to: `unit_len`, less for a last unit that ends after the
    /// disk.
    pub min_len: u32,
}

/// A byte in one of the files of an image.
///
/// ```
/// use diskimage::driver::{FileId, Location};
///
/// let at = Location { file: FileId(1), offset: 512 };
/// assert_eq!(at.advance(512), Location { file: FileId(1), offset: 1024 });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// The file.
    pub file: FileId,
    /// Byte offset in the file.
    pub offset: u64,
}

/// Index of a file of an image: 0 is the image file, 1 the first of [`ImageInfo::files`](crate::ImageInfo::files), and so on.
///
/// ```
/// use diskimage::driver::FileId;
///
/// assert_eq!(FileId::default(), FileId(0));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FileId(pub u32);

impl Extent {
    /// The extent for the guest offsets `range`, which is not empty.
    pub fn new(range: Range<u64>, kind: ExtentKind) -> Self {
        Extent { offset: range.start, len: range.end - range.start, kind }
    }

    /// Guest offset of the end.
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// The part in the guest range `start..end`, which must overlap the extent.
    #[must_use]
    pub fn clip(self, start: u64, end: u64) -> Extent {
        let (from, to) = (self.offset.max(start), self.end().min(end));
        Extent { offset: from, len: to - from, kind: self.kind.advance(from - self.offset) }
    }
}

impl ExtentKind {
    /// The kind for guest bytes `by` bytes further on in the same extent.
    #[must_use]
    pub fn advance(self, by: u64) -> ExtentKind {
        match self {
            ExtentKind::Data(at) => ExtentKind::Data(at.advance(by)),
            ExtentKind::Zero { allocated } => ExtentKind::Zero { allocated: allocated.map(|at| at.advance(by)) },
            unit @ (ExtentKind::Compressed(_) | ExtentKind::Hole) => unit,
        }
    }

    /// Whether guest bytes of kind `next` after `len` bytes of this kind belong to the same extent. Compressed units are
    /// never merged.
    pub fn continues(self, len: u64, next: ExtentKind) -> bool {
        match self {
            ExtentKind::Compressed(_) => false,
            kind => kind.advance(len) == next,
        }
    }
}

impl Location {
    /// The location `by` bytes further on in the file.
    #[must_use]
    pub fn advance(self, by: u64) -> Location {
        Location { offset: self.offset.saturating_add(by), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Location = Location { file: FileId(0), offset: 0x5000 };

    #[test]
    fn clipping_moves_the_location() {
        let extent = Extent { offset: 0x1000, len: 0x2000, kind: ExtentKind::Data(AT) };
        let clipped = extent.clip(0x1800, 0x9000);
        assert_eq!(clipped, Extent { offset: 0x1800, len: 0x1800, kind: ExtentKind::Data(AT.advance(0x800)) });
    }

    #[test]
    fn runs_continue_only_where_the_file_does() {
        assert!(ExtentKind::Data(AT).continues(512, ExtentKind::Data(AT.advance(512))));
        assert!(!ExtentKind::Data(AT).continues(512, ExtentKind::Data(AT.advance(1024))));
        assert!(ExtentKind::Hole.continues(1, ExtentKind::Hole));
        assert!(!ExtentKind::Zero { allocated: None }.continues(512, ExtentKind::Hole));
    }
}
