//! Parts of other files as one file.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::{FileIdentity, ReadAt};

/// A range of a file at an offset of the [`Window`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Offset in the window in bytes.
    pub start: u64,
    /// Length in bytes, not 0.
    pub len: u64,
    /// Offset in the file in bytes.
    pub offset: u64,
}

impl Piece {
    /// The offset of its end in the window.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// A file made of ranges of other files; what is between them is holes.
pub(crate) struct Window {
    /// The files, each with its pieces in ascending order. No two pieces overlap, and those of a file precede those of the next.
    parts: Vec<Part>,
    len: u64,
}

struct Part {
    file: Arc<dyn ReadAt>,
    pieces: Vec<Piece>,
}

impl Window {
    #[cfg(any(test, feature = "packages"))]
    /// `len` bytes, of which `pieces` of `file` are data. They are in ascending order, do not overlap, and end at or before `len`.
    pub fn new(file: Arc<dyn ReadAt>, pieces: Vec<Piece>, len: u64) -> Window {
        Window { parts: vec![Part { file, pieces }], len }
    }

    #[cfg(any(test, feature = "packages"))]
    /// The files one after the other, each with its length in bytes.
    pub fn joined(files: Vec<(Arc<dyn ReadAt>, u64)>) -> Window {
        let mut end = 0u64;
        let mut parts = Vec::with_capacity(files.len());
        for (file, len) in files {
            // The search for a piece passes over an empty part only at the start.
            if len == 0 && !parts.is_empty() {
                continue;
            }
            let pieces = if len == 0 { Vec::new() } else { vec![Piece { start: end, len, offset: 0 }] };
            parts.push(Part { file, pieces });
            end = end.saturating_add(len);
        }
        Window { parts, len: end }
    }

    /// The piece at `offset`, or the next one, with its file.
    fn piece_from(&self, offset: u64) -> Option<(&Part, &Piece)> {
        let first = self.parts.partition_point(|part| part.pieces.last().is_none_or(|last| last.end() <= offset));
        self.parts.get(first..)?.iter().find_map(|part| {
            let at = part.pieces.partition_point(|piece| piece.end() <= offset);
            part.pieces.get(at).map(|piece| (part, piece))
        })
    }
}

/// A range of `file` as a file: a disk in a larger file. What is beyond the end of `file` cannot be read.
///
/// ```
/// use std::sync::Arc;
///
/// use diskimage::io::{MemFile, range_of};
/// use diskimage::{Format, OpenOptions};
///
/// let file = Arc::new(MemFile::from([[1; 512], [2; 512], [3; 512]].concat()));
/// let disk = OpenOptions::new().format(Format::RAW).open_source(range_of(file, 512..1024))?;
/// let mut sector = [0; 512];
/// disk.read_exact_at(&mut sector, 0)?;
/// assert_eq!((disk.virtual_size(), sector), (512, [2; 512]));
/// # Ok::<(), diskimage::Error>(())
/// ```
pub fn range_of(file: Arc<dyn ReadAt>, range: Range<u64>) -> Arc<dyn ReadAt> {
    let len = range.end.saturating_sub(range.start);
    let pieces = if len == 0 { Vec::new() } else { vec![Piece { start: 0, len, offset: range.start }] };
    Arc::new(Window { parts: vec![Part { file, pieces }], len })
}

/// A file of `len` zero bytes, which is one hole.
pub fn zeros(len: u64) -> Arc<dyn ReadAt> {
    Arc::new(Window { parts: Vec::new(), len })
}

impl ReadAt for Window {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = self.len.saturating_sub(offset);
        let piece = self.piece_from(offset);
        let most = match piece {
            Some((_, piece)) if piece.start <= offset => piece.end() - offset,
            Some((_, piece)) => piece.start - offset,
            None => rest,
        };
        let most = usize::try_from(most.min(rest)).unwrap_or(usize::MAX).min(buf.len());
        let buf = buf.get_mut(..most).unwrap_or_default();
        match piece {
            Some((part, piece)) if piece.start <= offset => {
                part.file.read_at(buf, piece.offset + (offset - piece.start))
            }
            _ => {
                buf.fill(0);
                Ok(most)
            }
        }
    }

    /// The identity of the file that has the pieces: a target must not be that file.
    fn identity(&self) -> io::Result<Option<FileIdentity>> {
        self.parts.first().map_or(Ok(None), |part| part.file.identity())
    }

    /// Data of the pieces, without the holes that their file has there.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let mut at = offset;
        while let Some((part, piece)) = self.piece_from(at) {
            let from = at.max(piece.start);
            let in_file = piece.offset + (from - piece.start);
            let in_file_end = piece.offset + piece.len;
            match part.file.next_data(in_file)? {
                Some(data) if data.start < in_file_end => {
                    let start = data.start.max(in_file);
                    let end = data.end.clamp(start, in_file_end);
                    let shift = |offset: u64| offset - piece.offset + piece.start;
                    return Ok(Some(shift(start)..shift(end)));
                }
                _ => at = piece.end(),
            }
        }
        Ok(None)
    }

    fn verify(&self) -> io::Result<()> {
        self.parts.iter().try_for_each(|part| part.file.verify())
    }

    /// What the pieces take, unless their file has holes.
    fn allocated(&self) -> io::Result<Option<u64>> {
        for part in &self.parts {
            match part.file.allocated()? {
                Some(allocated) if allocated >= part.file.size()? => {}
                _ => return Ok(None),
            }
        }
        Ok(Some(self.parts.iter().flat_map(|part| &part.pieces).map(|piece| piece.len).sum()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::io::MemFile;

    fn file(len: u64) -> Arc<dyn ReadAt> {
        Arc::new(MemFile::from((0..len).map(|at| (at % 251 + 1) as u8).collect::<Vec<_>>()))
    }

    /// Gaps and lengths as pieces of a file of 100 bytes.
    fn pieces(list: &[(u64, u64, u64)]) -> (Vec<Piece>, u64) {
        let mut end = 0;
        let mut pieces = Vec::new();
        for (gap, len, offset) in list {
            pieces.push(Piece { start: end + gap, len: *len, offset: *offset });
            end += gap + len;
        }
        (pieces, end)
    }

    proptest! {
        #[test]
        fn a_window_reads_as_its_copy(
            first in prop::collection::vec((0u64..5, 1u64..30, 0u64..70), 0..6),
            second in prop::option::of(0u64..40),
            tail in 0u64..9,
            reads in prop::collection::vec((0u64..300, 0usize..80), 1..20),
        ) {
            let (pieces, end) = pieces(&first);
            let mut copy = vec![0; (end + tail) as usize];
            for piece in &pieces {
                for at in 0..piece.len {
                    copy[(piece.start + at) as usize] = ((piece.offset + at) % 251 + 1) as u8;
                }
            }
            let mut window: Arc<dyn ReadAt> = Arc::new(Window::new(file(100), pieces, end + tail));
            if let Some(len) = second {
                copy.extend((0..len).map(|at| (at % 251 + 1) as u8));
                window = Arc::new(Window::joined(vec![(window, end + tail), (file(len), len)]));
            }
            prop_assert_eq!(window.size().unwrap(), copy.len() as u64);
            for (offset, len) in reads {
                let mut buf = vec![9; len];
                let expected = copy.get(offset as usize..offset as usize + len);
                prop_assert_eq!(window.read_exact_at(&mut buf, offset).is_ok(), expected.is_some() || len == 0);
                if let Some(expected) = expected {
                    prop_assert_eq!(&buf, expected);
                }
            }
            // All data is in the runs, in ascending order.
            let (mut at, mut found) = (0, vec![false; copy.len()]);
            while let Some(run) = window.next_data(at).unwrap() {
                prop_assert!(run.start >= at && !run.is_empty());
                at = run.end;
                found[run.start as usize..run.end as usize].fill(true);
            }
            prop_assert!(copy.iter().zip(found).all(|(byte, found)| *byte == 0 || found));
        }
    }

    #[test]
    fn holes_of_the_file_are_holes_of_the_window() {
        struct Sparse;
        impl ReadAt for Sparse {
            fn size(&self) -> io::Result<u64> {
                Ok(1000)
            }

            fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
                Err(io::ErrorKind::Unsupported.into())
            }

            fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
                Ok((offset < 600).then(|| offset.max(500)..600))
            }
        }
        let pieces = vec![Piece { start: 0, len: 50, offset: 0 }, Piece { start: 60, len: 200, offset: 450 }];
        let window = Window::new(Arc::new(Sparse), pieces, 300);
        assert_eq!(window.next_data(0).unwrap(), Some(110..210));
        assert_eq!(window.next_data(150).unwrap(), Some(150..210));
        assert_eq!(window.next_data(210).unwrap(), None);
        assert_eq!(window.allocated().unwrap(), None);
    }
}
