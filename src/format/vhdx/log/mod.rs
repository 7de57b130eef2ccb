//! The log: what has to be replayed before anything else of the file means something (2.3).
//!
//! It is a ring of sectors, and entries stand in it one behind the other: [`entry`]. Of what is left of several writers,
//! complete or torn, one sequence of entries counts: [`sequence`]. What its entries change is laid over the file: [`overlay`].

mod entry;
mod overlay;
mod ring;
mod sequence;

use std::sync::Arc;

use self::entry::{Descriptor, Entry, Update};
use self::overlay::{Content, Overlay};
use self::ring::{Ring, SECTOR};
use super::FIELDS;
use super::header::Header;
use crate::error::{Problem, Result};
use crate::io::ReadAt;
use crate::limits::Budget;

/// How much longer a descriptor can make a file: a sector of the BAT has entries for 512 blocks of at most 256 MiB.
const GROWTH: u64 = 512 * (256 << 20);

/// A file as replaying its log would leave it.
pub(super) struct Replayed {
    pub file: Arc<dyn ReadAt>,
    /// Log entries that were replayed.
    pub entries: u64,
    /// Bytes of the file that they change.
    pub bytes: u64,
    /// Valid entries that are newer, and of no complete sequence. Writes that were under way in a crash leave them; so does
    /// damage to an entry before them, which cannot be told from that.
    pub left_out: u64,
}

/// Replays the log in memory, where the header says that there is something to be replayed. `file` is never written to.
///
/// # Errors
/// When there is no valid sequence of entries, or it does not fit the file.
pub(super) fn replay(
    file: &Arc<dyn ReadAt>,
    file_len: u64,
    header: &Header,
    header_at: u64,
    budget: &Budget,
) -> Result<Option<Replayed>> {
    if header.log_guid.is_nil() {
        return Ok(None);
    }
    let mut ring = Ring::new(&**file, header.log.clone());
    let mut entries = Entry::all(&mut ring, &header.log_guid, budget)?;
    let active = sequence::active(&mut entries, ring.len());
    let Some(head) = active.last() else {
        let rule = "the log there has to be replayed and has no valid sequence of entries";
        return Err(FIELDS.at("LogOffset", header_at + 72).fault(Problem::Rule { value: header.log.start, rule }));
    };
    let head_at = ring.place(head.offset());
    FIELDS.at("FlushedFileOffset", head_at + 48).within(0, head.flushed_file_offset, file_len)?;

    // An entry without descriptors may say that the file has grown, too.
    let descriptors = active.iter().map(Entry::descriptor_count).sum::<u64>();
    let max_len = (descriptors + 1).saturating_mul(GROWTH).saturating_add(file_len).min(i64::MAX as u64);
    let mut overlay = Overlay::new(file.clone(), file_len);
    for entry in active {
        entry.descriptors(&mut ring, |descriptor| apply(&descriptor, &mut overlay, max_len, budget))?;
    }
    FIELDS.at("LastFileOffset", head_at + 56).within(0, head.last_file_offset, max_len)?;
    overlay.grow(head.last_file_offset);
    let (replayed, bytes, newest) = (active.len() as u64, overlay.changed(), head.sequence_number);
    let left_out = entries.iter().filter(|entry| entry.sequence_number > newest).count() as u64;
    Ok(Some(Replayed { file: Arc::new(overlay), entries: replayed, bytes, left_out }))
}

/// Does to the file what one descriptor says, if that leaves it with no more than `max_len` bytes.
fn apply(descriptor: &Descriptor, overlay: &mut Overlay, max_len: u64, budget: &Budget) -> Result<()> {
    let Descriptor { file_offset, at, update } = *descriptor;
    let (len, content) = match update {
        Update::Zero { zero_length } => (zero_length, Content::Zeros),
        Update::Data(data) => (SECTOR, Content::Data(data)),
    };
    FIELDS.at("FileOffset", at + 16).within(file_offset, len, max_len)?;
    overlay.put(file_offset, len, content, FIELDS.at("descriptor", at), budget)
}

#[cfg(test)]
mod tests;
