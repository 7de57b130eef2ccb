//! The active sequence of the log (2.3.2, 2.3.3).

use super::entry::Entry;

/// The entries that are to be replayed, in their order; none when the log has no valid sequence. `entries` are all valid ones
/// of a log of `log_len` bytes, in the order of their offsets.
///
/// The document searches from every sector of the log for a sequence that begins there. That finds the same: entries do not
/// overlap, so that those which were written one after the other are neighbours, and a sequence that can be continued is
/// continued. Entries before the one that the last one names as the tail have reached the file, and are not replayed.
pub(super) fn active(entries: &mut [Entry], log_len: u64) -> &[Entry] {
    let continues = |entry: &Entry, next: &Entry| {
        entry.sequence_number.checked_add(1) == Some(next.sequence_number)
            && (entry.offset() + entry.len()).checked_rem(log_len) == Some(next.offset())
    };
    // A run may go on over the end of the log. The numbers rise, so that there is a place where none does.
    let before = entries.iter().cycle().skip(entries.len().saturating_sub(1));
    let start = before.zip(entries.iter()).position(|(before, entry)| !continues(before, entry));
    entries.rotate_left(start.unwrap_or_default());
    entries.chunk_by(continues).filter_map(sequence).max_by_key(|sequence| last_number(sequence)).unwrap_or_default()
}

/// The sequence that the last entry of a run states, if all of it is there.
fn sequence(run: &[Entry]) -> Option<&[Entry]> {
    let head = run.last()?;
    let tail = run.iter().position(|entry| entry.offset() == head.tail())?;
    run.get(tail..)
}

/// Sequences are ordered by the numbers of their last entries (2.3.2).
fn last_number(sequence: &[Entry]) -> Option<u64> {
    sequence.last().map(|head| head.sequence_number)
}
