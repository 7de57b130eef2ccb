//! Where the bytes of a guest range live.

use crate::codec::Codec;

/// A run of guest bytes that all live in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Guest offset in bytes.
    pub offset: u64,
    /// Length in bytes, at least 1.
    pub len: u64,
    /// How they live.
    pub kind: ExtentKind,
}

/// How a run of guest bytes lives in one layer of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExtentKind {
    /// Stored as they are, from this place on.
    Data(Location),
    /// A part of a unit that is stored compressed.
    Compressed(Compressed),
    /// Zeros, whatever a parent holds. `allocated` says that space in the file is set aside for them.
    Zero {
        /// Where, if it is.
        allocated: Option<Location>,
    },
    /// The parent's bytes, or zeros where there is no parent.
    Hole,
}

/// A compressed unit, and where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed {
    /// Where the payload begins.
    pub at: Location,
    /// At most this many bytes belong to the payload; what follows it may be another's.
    pub stored_len: u32,
    /// How it is compressed.
    pub codec: Codec,
    /// Guest offset of the unit.
    pub unit: u64,
    /// Guest bytes in the unit. The last unit of a disk may reach beyond the disk's end.
    pub unit_len: u32,
    /// The payload has to give at least so many of them: all, but for a last unit whose end no guest sees.
    pub min_len: u32,
}

/// A place in one of the files of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// The file.
    pub file: FileId,
    /// Byte offset in it.
    pub offset: u64,
}

/// One of the files of an image, by its number: 0 is the image itself, the others are those it names, in its order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FileId(pub u32);

impl Extent {
    /// Guest offset of the first byte after it.
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// The part of it that lies in `start..end`, which must have at least one byte in common with it.
    #[must_use]
    pub fn clip(self, start: u64, end: u64) -> Extent {
        let (from, to) = (self.offset.max(start), self.end().min(end));
        Extent { offset: from, len: to - from, kind: self.kind.advance(from - self.offset) }
    }
}

impl ExtentKind {
    /// The same kind for bytes that lie `by` bytes further on in the same run.
    #[must_use]
    pub fn advance(self, by: u64) -> ExtentKind {
        match self {
            ExtentKind::Data(at) => ExtentKind::Data(at.advance(by)),
            ExtentKind::Zero { allocated } => ExtentKind::Zero { allocated: allocated.map(|at| at.advance(by)) },
            unit @ (ExtentKind::Compressed(_) | ExtentKind::Hole) => unit,
        }
    }

    /// Whether bytes of kind `next` that follow `len` bytes of this kind continue the same run.
    pub fn continues(self, len: u64, next: ExtentKind) -> bool {
        match self {
            ExtentKind::Compressed(_) => false,
            kind => kind.advance(len) == next,
        }
    }
}

impl Location {
    /// The place `by` bytes further on.
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
