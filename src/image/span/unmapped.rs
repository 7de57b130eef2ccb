//! Spans of a damaged image: ranges that cannot be mapped are passed over.

use std::ops::Range;

use super::{Span, Spans};
use crate::error::Error;

/// Smallest guest range that one fault covers, in bytes.
const SECTOR: u64 = 512;

/// A guest range that cannot be mapped because of one fault of the metadata.
pub(crate) struct Unmapped {
    pub range: Range<u64>,
    pub error: Error,
}

impl Spans<'_> {
    /// As [`next`](Iterator::next), but does not end after an error.
    pub(crate) fn next_or_unmapped(&mut self) -> Option<Result<Span, Unmapped>> {
        let start = self.at;
        if start >= self.end {
            return None;
        }
        let resolved = self.resolve_used();
        Some(match resolved {
            Ok(span) => {
                self.at = span.end();
                Ok(span)
            }
            Err(error) => {
                // The search only looks: what it finds is claimed when the iteration gets there.
                let (cached, trackers) = (self.cached.clone(), self.trackers.take());
                let end = self.end_of_fault(start, &error);
                (self.at, self.cached, self.trackers) = (end, cached, trackers);
                Err(Unmapped { range: start..self.at, error })
            }
        })
    }

    /// Returns the end of the fault that begins at guest offset `start`: of an allocation unit, or of all that an unreadable table
    /// maps. It is searched in steps that double, since a table can map terabytes. The first step after the end of a table is
    /// within what the next table maps, so that no other table is passed over.
    fn end_of_fault(&mut self, start: u64, error: &Error) -> u64 {
        let block_sizes = self.image.layers.iter().filter_map(|layer| layer.reader.info().block_size);
        let unit = block_sizes.min().map_or(64 << 10, u64::from).max(SECTOR);
        // No fault goes on in the next disk of a concatenation.
        let limit = self.image.part_at(start).map_or(self.end, |part| part.guest.end.min(self.end));
        let (first, end) = (start / unit, limit.div_ceil(unit));
        let (mut faulty, mut step) = (first, 1);
        let other = loop {
            let next = (faulty + step).min(end - 1);
            if next == faulty {
                break end;
            }
            if !self.has_fault(next * unit, error) {
                break next;
            }
            (faulty, step) = (next, step * 2);
        };
        let faulty = self.last_with_fault(faulty..other, unit, error);
        // Units of several layers or extents need not have common boundaries.
        let end = ((faulty + 1) * unit).min(limit);
        let (first, last) = (start.max(faulty * unit) / SECTOR, (end - 1) / SECTOR);
        if self.has_fault(last * SECTOR, error) {
            return end;
        }
        match self.last_with_fault(first..last, SECTOR, error) {
            // The error is another one for each offset. Only whole units make the number of steps bounded.
            sector if sector == start / SECTOR => end,
            sector => (sector + 1) * SECTOR,
        }
    }

    /// Returns the last of the `units` that has the fault, of which the first one has it.
    fn last_with_fault(&mut self, units: Range<u64>, size: u64, error: &Error) -> u64 {
        let Range { start: mut faulty, end: mut other } = units;
        while other - faulty > 1 {
            let middle = faulty + (other - faulty) / 2;
            if self.has_fault(middle * size, error) { faulty = middle } else { other = middle }
        }
        faulty
    }

    /// Whether mapping guest offset `at` fails by the same fault as `error`.
    fn has_fault(&mut self, at: u64, error: &Error) -> bool {
        self.at = at;
        self.resolve().is_err_and(|other| is_same_fault(&other, error))
    }
}

/// Whether both are errors of one field or of one read. The value in the message may depend on the guest offset.
fn is_same_fault(one: &Error, other: &Error) -> bool {
    match (one.root(), other.root()) {
        (Error::Corrupt(a), Error::Corrupt(b)) => (&a.field, a.at) == (&b.field, b.at) && one.path() == other.path(),
        _ => one.to_string() == other.to_string(),
    }
}
