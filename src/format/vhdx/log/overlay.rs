//! A file with changes that are not written to it.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::entry::{Data, is_data_sector};
use super::ring::SECTOR;
use crate::error::Result;
use crate::io::ReadAt;
use crate::io::table::Field;
use crate::limits::Budget;

/// A file, and over it zeros and sectors from its log. Behind the end of what is stored there are zeros.
pub(super) struct Overlay {
    file: Arc<dyn ReadAt>,
    /// Bytes that are stored.
    stored_len: u64,
    /// Bytes that there are with the changes.
    len: u64,
    /// By the offsets where they begin; they do not overlap.
    pieces: BTreeMap<u64, Piece>,
    /// How many pieces the budget has been asked for.
    paid: usize,
}

/// What changes.
#[derive(Clone, Copy)]
struct Piece {
    end: u64,
    content: Content,
}

/// What it changes to.
#[derive(Clone, Copy)]
pub(super) enum Content {
    Zeros,
    /// One sector.
    Data(Data),
}

impl Overlay {
    /// `file`, of which `stored_len` bytes are stored, without changes.
    pub fn new(file: Arc<dyn ReadAt>, stored_len: u64) -> Overlay {
        Overlay { file, stored_len, len: stored_len, pieces: BTreeMap::new(), paid: 0 }
    }

    /// Changes `len` bytes at `offset`, whatever they were changed to before. Both are multiples of a sector, and their sum
    /// is an offset. `field` is what says so.
    pub fn put(&mut self, offset: u64, len: u64, content: Content, field: Field, budget: &Budget) -> Result<()> {
        // The nodes of the tree are at least half full.
        const COST: u64 = 2 * size_of::<(u64, Piece)>() as u64;
        let range = offset..offset.saturating_add(len);
        self.grow(range.end);
        if range.is_empty() {
            return Ok(());
        }
        self.cut(range.start);
        self.cut(range.end);
        self.pieces.extract_if(range.clone(), |_, _| true).for_each(drop);
        self.pieces.insert(range.start, Piece { end: range.end, content });
        if self.pieces.len() > self.paid {
            budget.take((self.pieces.len() - self.paid) as u64 * COST, field.format, "log descriptors", field.at)?;
            self.paid = self.pieces.len();
        }
        Ok(())
    }

    /// Lets no piece reach over `at`. Only one of zeros can: everything is in whole sectors.
    fn cut(&mut self, at: u64) {
        if let Some((_, piece)) = self.pieces.range_mut(..at).next_back()
            && piece.end > at
        {
            let rest = *piece;
            piece.end = at;
            self.pieces.insert(at, rest);
        }
    }

    /// Makes the file at least `len` bytes long.
    pub fn grow(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    /// How many bytes change.
    pub fn changed(&self) -> u64 {
        self.pieces.iter().map(|(start, piece)| piece.end - start).sum()
    }

    /// The piece that `offset` lies in, with its offset.
    fn piece(&self, offset: u64) -> Option<(u64, Piece)> {
        let (start, piece) = self.pieces.range(..=offset).next_back()?;
        (piece.end > offset).then_some((*start, *piece))
    }

    /// Where the first piece behind `offset` begins, or the file ends.
    fn next_piece(&self, offset: u64) -> u64 {
        self.pieces.range(offset..).next().map_or(self.len, |(start, _)| *start)
    }

    /// The sector of the file that a data sector stands for. A program that replays the log meanwhile may use its place again.
    fn sector(&self, data: Data) -> io::Result<[u8; SECTOR as usize]> {
        let mut sector = [0; SECTOR as usize];
        self.file.read_exact_at(&mut sector, data.place)?;
        if !is_data_sector(&sector, data.sequence_number) {
            return Err(io::Error::other(format!("the log has changed at file offset {:#x}", data.place)));
        }
        sector[..8].copy_from_slice(&data.leading_bytes);
        sector[4092..].copy_from_slice(&data.trailing_bytes);
        Ok(sector)
    }
}

impl ReadAt for Overlay {
    /// That of the file when it was replayed: whoever asks whether it has changed has to ask the stored file.
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let piece = self.piece(offset);
        let end = match piece {
            Some((_, piece)) => piece.end,
            None if offset < self.stored_len => self.next_piece(offset).min(self.stored_len),
            None => self.next_piece(offset),
        };
        let len = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let buf = buf.get_mut(..len).unwrap_or_default();
        match piece {
            Some((start, Piece { content: Content::Data(data), .. })) => {
                let sector = self.sector(data)?;
                let from = (offset - start) as usize;
                buf.iter_mut().zip(sector.iter().skip(from)).for_each(|(byte, stored)| *byte = *stored);
            }
            None if offset < self.stored_len => return self.file.read_at(buf, offset),
            Some((_, Piece { content: Content::Zeros, .. })) | None => buf.fill(0),
        }
        Ok(len)
    }

    /// Zeros of the log are holes, as is what lies behind the stored file. But a hostile log has a million pieces of zeros, and
    /// each block of the disk may ask what follows: after a few pieces the next one counts as data.
    fn next_data(&self, mut offset: u64) -> io::Result<Option<Range<u64>>> {
        const PIECES: usize = 32;
        // What is stored from `offset` on, once that has been asked for.
        let mut stored: Option<Range<u64>> = None;
        for _ in 0..PIECES {
            match self.piece(offset) {
                Some((_, Piece { end, content: Content::Data(_) })) => return Ok(Some(offset..end)),
                Some((_, Piece { end, content: Content::Zeros })) => offset = end,
                None if offset >= self.len => return Ok(None),
                None => {
                    let run = match stored.take() {
                        Some(run) if run.end > offset => run,
                        _ => self.file.next_data(offset)?.unwrap_or(u64::MAX..u64::MAX),
                    };
                    let data = run.start.max(offset)..run.end.min(self.next_piece(offset)).min(self.stored_len);
                    if !data.is_empty() {
                        return Ok(Some(data));
                    }
                    offset = self.next_piece(offset);
                    stored = Some(run);
                }
            }
        }
        let end = self.piece(offset).map_or_else(|| self.next_piece(offset), |(_, piece)| piece.end);
        Ok((offset < self.len).then_some(offset..end))
    }
}
