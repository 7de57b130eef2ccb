//! The log, which has to be replayed before the rest of the file is valid (2.3).
//!
//! The log is a ring buffer of entries ([`entry`]). It can hold complete and torn entries of several writers; one sequence of
//! entries is active ([`sequence`]). Its changes are applied to an in-memory overlay of the file ([`overlay`]).

mod entry;
mod overlay;
mod ring;
mod sequence;
mod write;

use std::ops::Range;
use std::sync::Arc;

use self::entry::{Descriptor, LogEntries, LogEntry, Update};
use self::overlay::Content;
pub(super) use self::overlay::Overlay;
use self::ring::Ring;
pub(super) use self::ring::SECTOR;
pub(super) use self::write::{NewEntry, encode};
use super::FIELDS;
use super::header::Header;
use crate::error::{Problem, Result};
use crate::io::ReadAt;
use crate::limits::Budget;

/// The most bytes by which a descriptor can extend the file: a sector of the BAT has entries for 512 blocks of at most 256 MiB.
const GROWTH: u64 = 512 * (256 << 20);

/// A file with its log replayed in memory.
pub(super) struct Replayed {
    pub file: Arc<dyn ReadAt>,
    /// The same, if the log has entries.
    pub overlay: Option<Arc<Overlay>>,
    /// Number of replayed log entries. 0 if the header marks the log as not empty, but its writer was killed before the first one.
    pub entries: u64,
    /// Bytes of the file that they change.
    pub bytes: u64,
    /// Number of valid newer entries, which belong to no complete sequence. Pending writes in a crash leave them; so does damage
    /// to an entry before them.
    pub skipped: u64,
}

/// Replays the log in memory; `None` if the log is empty. `file` is never written to.
///
/// # Errors
/// If the log has entries but no valid sequence of them, or the sequence does not fit the file or writes to a range of `fixed`, each
/// with a description.
pub(super) fn replay(
    file: &Arc<dyn ReadAt>,
    file_len: u64,
    (header, header_at): (&Header, u64),
    fixed: &[(Range<u64>, &'static str)],
    budget: &Budget,
) -> Result<Option<Replayed>> {
    if header.log_guid.is_nil() {
        return Ok(None);
    }
    let mut ring = Ring::new(&**file, header.log.clone());
    let LogEntries { valid: mut entries, has_remains } = LogEntries::read(&mut ring, &header.log_guid, budget)?;
    let active = sequence::active(&mut entries, ring.len());
    let Some(head) = active.last() else {
        if !has_remains {
            return Ok(Some(Replayed { file: file.clone(), overlay: None, entries: 0, bytes: 0, skipped: 0 }));
        }
        let finding = "the log is not empty and has no valid sequence of entries";
        return Err(FIELDS
            .at("LogOffset", header_at + 72)
            .fault(Problem::Conflict { value: header.log.start, finding }));
    };
    let head_at = ring.host_offset(head.offset());
    FIELDS.at("FlushedFileOffset", head_at + 48).within(0, head.flushed_file_offset, file_len)?;

    // An entry without descriptors can also extend the file.
    let descriptors = active.iter().map(LogEntry::descriptor_count).sum::<u64>();
    let max_len = (descriptors + 1).saturating_mul(GROWTH).saturating_add(file_len).min(i64::MAX as u64);
    let mut overlay = Overlay::new(file.clone(), file_len);
    for entry in active {
        entry.descriptors(&mut ring, |descriptor| apply(&descriptor, &mut overlay, max_len, fixed, budget))?;
    }
    FIELDS.at("LastFileOffset", head_at + 56).within(0, head.last_file_offset, max_len)?;
    overlay.grow(head.last_file_offset);
    let (replayed, bytes, newest) = (active.len() as u64, overlay.changed(), head.sequence_number);
    let skipped = entries.iter().filter(|entry| entry.sequence_number > newest).count() as u64;
    let overlay = Arc::new(overlay);
    Ok(Some(Replayed { file: overlay.clone(), overlay: Some(overlay), entries: replayed, bytes, skipped }))
}

/// Applies one descriptor. The file may grow to at most `max_len` bytes, and the `fixed` ranges do not change.
fn apply(
    descriptor: &Descriptor,
    overlay: &mut Overlay,
    max_len: u64,
    fixed: &[(Range<u64>, &'static str)],
    budget: &Budget,
) -> Result<()> {
    let Descriptor { file_offset, at, update } = *descriptor;
    let (len, content) = match update {
        Update::Zero { zero_length } => (zero_length, Content::Zeros),
        Update::Data(data) => (SECTOR, Content::Data(data)),
    };
    let field = FIELDS.at("FileOffset", at + 16);
    field.within(file_offset, len, max_len)?;
    let changed = file_offset..file_offset + len;
    let overlaps = |range: &Range<u64>| len > 0 && changed.start < range.end && range.start < changed.end;
    if let Some((_, with)) = fixed.iter().find(|(range, _)| overlaps(range)) {
        return Err(field.fault(Problem::Overlap { offset: file_offset, with }));
    }
    overlay.put(file_offset, len, content, FIELDS.at("descriptor", at), budget)
}

#[cfg(test)]
mod tests;
