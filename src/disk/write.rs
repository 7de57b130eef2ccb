//! Writing guest data.

use std::ops::Range;

use super::{Disk, Use};
use crate::driver::{Allocation, Location};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::io::{Storage, write_zeros};

/// Most guest bytes that a request holds at a time, as far as blocks are smaller.
const PIECE: u64 = 2 << 20;
/// What storage writes as a whole, in bytes.
const SECTOR: u64 = 512;
/// Most bytes of old content that are in memory at a time.
const CHUNK: u64 = 1 << 20;
/// Zeros up to this length in bytes are written; a longer range becomes a hole where the storage has such.
const WRITTEN_ZEROS: u64 = 128 << 10;

/// What a guest range gets.
#[derive(Clone, Copy)]
pub(super) enum Payload<'a> {
    /// The first byte is that of the start of the range.
    Bytes(&'a [u8]),
    Zeros,
}

impl Disk {
    /// Writes guest data from byte `offset` on.
    ///
    /// # Errors
    /// [`Error::Usage`] if the range ends after the disk; errors of the storage and of the image. A part may have been written then.
    pub fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let image = self.image();
        let range = self.range(&image, offset, buf.len() as u64, "write")?;
        let mut rest = buf;
        for piece in pieces(range, PIECE.max(self.spec.block_size)) {
            let (bytes, after) = rest.split_at((piece.end - piece.start) as usize);
            let _alone = self.hold(&piece, Use::Change);
            self.write_piece(&image, piece, Payload::Bytes(bytes))?;
            rest = after;
        }
        Ok(())
    }

    /// Writes a guest range, whose blocks this request has to itself.
    pub(super) fn write_piece(&self, image: &Image, range: Range<u64>, payload: Payload<'_>) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let allocation = self.allocate(at, &range).map_err(|e| self.locate(e))?;
            check_covers(&allocation, at)?;
            let part = at..allocation.guest.end.min(range.end);
            let bytes = match payload {
                Payload::Bytes(all) => {
                    let (from, to) = ((part.start - range.start) as usize, (part.end - range.start) as usize);
                    Payload::Bytes(all.get(from..to).unwrap_or_default())
                }
                Payload::Zeros => Payload::Zeros,
            };
            let end = part.end;
            self.write_to(image, &allocation, part, bytes)?;
            at = end;
        }
        Ok(())
    }

    /// Allocates a host range for guest offset `at` of a range, which is recorded as a whole at its start.
    fn allocate(&self, at: u64, range: &Range<u64>) -> Result<Allocation> {
        let mut driver = self.driver();
        if at == range.start {
            driver.record(range.clone())?;
        }
        driver.allocate(at..range.end)
    }

    /// Writes `part`, which lies within the allocation, fills the rest of a new one, and publishes it.
    fn write_to(&self, image: &Image, allocation: &Allocation, part: Range<u64>, payload: Payload<'_>) -> Result<()> {
        if !allocation.is_new {
            return self.write_payload(allocation, part, payload, false);
        }
        let write = || {
            let sectors = self.sectors_around(allocation, &part);
            self.fill(image, allocation, allocation.guest.start..sectors.start)?;
            self.write_sectors(image, allocation, sectors.clone(), part, payload)?;
            self.fill(image, allocation, sectors.end..allocation.guest.end)?;
            self.driver().publish(allocation).map_err(|e| self.locate(e))
        };
        write().inspect_err(|_| self.driver().release(allocation))
    }

    /// The whole sectors of the allocation that `part` touches. A host range that is new for the format may be in the tables on the storage yet,
    /// with former content, so that a sector is written with its new content only.
    fn sectors_around(&self, allocation: &Allocation, part: &Range<u64>) -> Range<u64> {
        let end = part.end.checked_next_multiple_of(SECTOR).unwrap_or(part.end).min(allocation.guest.end);
        (part.start - part.start % SECTOR).max(allocation.guest.start)..end
    }

    /// Writes `part`, with the old content around it in its first and last sector.
    fn write_sectors(
        &self,
        image: &Image,
        allocation: &Allocation,
        sectors: Range<u64>,
        part: Range<u64>,
        payload: Payload<'_>,
    ) -> Result<()> {
        if sectors == part {
            return self.write_payload(allocation, part, payload, allocation.reads_as_zeros);
        }
        let write = |range: Range<u64>| {
            let mut buf = vec![0; (range.end - range.start) as usize];
            let inner = part.start.max(range.start)..part.end.min(range.end);
            let (head, rest) = buf.split_at_mut((inner.start - range.start) as usize);
            let (middle, tail) = rest.split_at_mut((inner.end - inner.start) as usize);
            read_old(image, head, range.start)?;
            if let Payload::Bytes(bytes) = payload {
                let from = (inner.start - part.start) as usize;
                middle.copy_from_slice(bytes.get(from..from + middle.len()).unwrap_or_default());
            }
            read_old(image, tail, inner.end)?;
            self.write_payload(allocation, range, Payload::Bytes(&buf), false)
        };
        // The parts of a long range of zeros need no memory.
        let zeros = part.start.next_multiple_of(SECTOR)..part.end - part.end % SECTOR;
        if matches!(payload, Payload::Bytes(_)) || zeros.is_empty() {
            return write(sectors);
        }
        if sectors.start < zeros.start {
            write(sectors.start..zeros.start)?;
        }
        self.write_payload(allocation, zeros.clone(), Payload::Zeros, allocation.reads_as_zeros)?;
        if zeros.end < sectors.end { write(zeros.end..sectors.end) } else { Ok(()) }
    }

    fn write_payload(
        &self,
        allocation: &Allocation,
        part: Range<u64>,
        payload: Payload<'_>,
        reads_as_zeros: bool,
    ) -> Result<()> {
        if part.is_empty() {
            return Ok(());
        }
        let at = allocation.at.advance(part.start - allocation.guest.start);
        let file = self.file(at)?;
        let written = match payload {
            Payload::Bytes(bytes) => file.write_all_at(bytes, at.offset),
            Payload::Zeros if reads_as_zeros => Ok(()),
            Payload::Zeros => {
                let range = at.offset..at.offset.saturating_add(part.end - part.start);
                if part.end - part.start <= WRITTEN_ZEROS {
                    write_zeros(&**file, range)
                } else {
                    file.zero_range(range)
                }
            }
        };
        written.map_err(|e| self.locate(Error::io("writing", at.offset)(e)))
    }

    /// Writes the old content of `part` to its new host offset. After the end of the disk it is zeros.
    pub(super) fn fill(&self, image: &Image, allocation: &Allocation, part: Range<u64>) -> Result<()> {
        let zeros = |part| self.write_payload(allocation, part, Payload::Zeros, allocation.reads_as_zeros);
        let old = part.start..part.end.min(image.virtual_size()).max(part.start);
        let spans: Vec<_> = image.spans(old.clone()).without_holes().collect::<Result<_>>()?;
        for span in spans {
            if span.is_zero() {
                zeros(span.offset..span.end())?;
                continue;
            }
            let mut buf = Vec::new();
            for chunk in pieces(span.offset..span.end(), CHUNK) {
                buf.resize((chunk.end - chunk.start) as usize, 0);
                image.read_exact_at(&mut buf, chunk.start)?;
                self.write_payload(allocation, chunk, Payload::Bytes(&buf), false)?;
            }
        }
        zeros(old.end..part.end)
    }

    pub(super) fn file(&self, at: Location) -> Result<&std::sync::Arc<dyn Storage>> {
        let file = self.files.get(at.file.0 as usize);
        file.ok_or_else(|| Error::Usage("a referenced file has not been opened for writing".into()))
    }
}

/// Reads what the disk had at a guest offset; zeros after its end.
fn read_old(image: &Image, buf: &mut [u8], offset: u64) -> Result<()> {
    let len = image.virtual_size().saturating_sub(offset).min(buf.len() as u64) as usize;
    image.read_exact_at(buf.get_mut(..len).unwrap_or_default(), offset.min(image.virtual_size()))
}

/// Cuts a guest range at the multiples of `size`.
pub(super) fn pieces(range: Range<u64>, size: u64) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let start = at;
        at = (start - start % size).saturating_add(size).min(range.end);
        (start < range.end).then_some(start..at)
    })
}

/// Refuses an allocation of a driver of another crate that would make a write loop.
fn check_covers(allocation: &Allocation, at: u64) -> Result<()> {
    let is_part = allocation.is_new || allocation.guest.start == at;
    match allocation.guest.contains(&at) && is_part {
        true => Ok(()),
        false => Err(Error::Usage(format!("the driver returned an invalid allocation for guest offset {at:#x}"))),
    }
}
