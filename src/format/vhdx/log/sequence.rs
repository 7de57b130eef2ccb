//! The active sequence of the log (2.3.2, 2.3.3).

use super::entry::LogEntry;

/// Returns the entries to replay, in their order; none if the log has no valid sequence. `entries` are all valid entries of a
/// log of `log_len` bytes, in the order of their offsets.
///
/// The document searches for a sequence from every sector of the log. The result is the same: entries do not overlap, so
/// consecutive entries are adjacent, and a sequence is extended as far as possible. Entries before the tail of the last entry
/// have been applied to the file and are not replayed.
pub(super) fn active(entries: &mut [LogEntry], log_len: u64) -> &[LogEntry] {
    let continues = |entry: &LogEntry, next: &LogEntry| {
        entry.sequence_number.checked_add(1) == Some(next.sequence_number)
            && (entry.offset() + entry.len()).checked_rem(log_len) == Some(next.offset())
    };
    // A run can wrap around at the end of the log. Sequence numbers increase, so at least one entry starts a run.
    let before = entries.iter().cycle().skip(entries.len().saturating_sub(1));
    let start = before.zip(entries.iter()).position(|(before, entry)| !continues(before, entry));
    entries.rotate_left(start.unwrap_or_default());
    entries.chunk_by(continues).filter_map(sequence).max_by_key(|sequence| last_number(sequence)).unwrap_or_default()
}

/// The sequence from the tail of the last entry of a run, if the run contains the tail.
fn sequence(run: &[LogEntry]) -> Option<&[LogEntry]> {
    let head = run.last()?;
    let tail = run.iter().position(|entry| entry.offset() == head.tail())?;
    run.get(tail..)
}

/// The sequence number of the last entry, which orders sequences (2.3.2).
fn last_number(sequence: &[LogEntry]) -> Option<u64> {
    sequence.last().map(|head| head.sequence_number)
}
