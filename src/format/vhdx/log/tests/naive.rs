//! A literal implementation of the replay steps of the document, with the whole file in memory (2.3.3).

use std::ops::Range;

use super::super::GROWTH;
use super::build::LOG_GUID;

struct Entry {
    offset: usize,
    tail: usize,
    sequence_number: u64,
    flushed_file_offset: u64,
    last_file_offset: u64,
    updates: Vec<(u64, Update)>,
    len: usize,
}

enum Update {
    Zero(u64),
    Data(Vec<u8>),
}

/// The file with its log replayed; `None` if it must be refused.
///
/// Three steps deviate from the text. A log without remains of entries has nothing to replay. A log sequence is the range between tail and head (2.3.2), so entries before the tail are
/// removed from the active sequence. And a sequence that fills the log ends at its own start.
pub(super) fn replay(file: &[u8], log: Range<u64>) -> Option<Vec<u8>> {
    let log = &file[log.start as usize..log.end as usize];
    let (mut candidate, mut candidate_number) = (Vec::new(), 0);
    let (mut tail, mut old_tail) = (0, 0);
    loop {
        // Steps 2 and 3.
        let (mut current, mut number, mut head): (Vec<Entry>, u64, usize) = (Vec::new(), 0, tail);
        while let Some(entry) = evaluate(log, head)
            && (current.is_empty() || Some(entry.sequence_number) == number.checked_add(1))
        {
            number = entry.sequence_number;
            head = (head + entry.len) % log.len();
            current.push(entry);
        }
        // Step 4.
        let tail_index = current.last().and_then(|last| current.iter().position(|entry| entry.offset == last.tail));
        let valid = tail_index.is_some();
        // Step 5.
        if let Some(index) = tail_index
            && number > candidate_number
        {
            (candidate, candidate_number) = (current.split_off(index), number);
        }
        // Steps 6 and 7.
        tail = if valid { head } else { (tail + 4096) % log.len() };
        if tail <= old_tail {
            break;
        }
        old_tail = tail;
    }

    let Some(head) = candidate.last() else {
        let has_remains = log.chunks(4096).any(|sector| {
            let signature = &sector[..4];
            let is_foreign = signature == b"loge" && sector[32..48] != LOG_GUID.to_bytes_le();
            let is_unused = sector.iter().all(|byte| *byte == 0);
            !is_foreign && !is_unused && ![&b"desc"[..], b"zero", b"data"].contains(&signature)
        });
        return (!has_remains).then(|| file.to_vec());
    };
    if (file.len() as u64) < head.flushed_file_offset {
        return None;
    }
    let descriptors: usize = candidate.iter().map(|entry| entry.updates.len()).sum();
    let max_len = file.len() as u64 + (descriptors as u64 + 1) * GROWTH;
    let mut replayed = file.to_vec();
    let extend = |replayed: &mut Vec<u8>, len: Option<u64>| {
        let len = len.filter(|len| *len <= max_len)? as usize;
        replayed.resize(replayed.len().max(len), 0);
        Some(())
    };
    for (offset, update) in candidate.iter().flat_map(|entry| &entry.updates) {
        let zeros;
        let bytes = match update {
            Update::Zero(len) => {
                extend(&mut replayed, offset.checked_add(*len))?;
                zeros = vec![0; *len as usize];
                &zeros
            }
            Update::Data(bytes) => {
                extend(&mut replayed, offset.checked_add(4096))?;
                bytes
            }
        };
        replayed[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }
    extend(&mut replayed, Some(head.last_file_offset))?;
    Some(replayed)
}

/// The entry at an offset of the log, if its header, descriptors and data sectors are valid (2.3.1).
fn evaluate(log: &[u8], offset: usize) -> Option<Entry> {
    let log = [&log[offset..], &log[..offset]].concat();
    let u32_at = |at: usize| u32::from_le_bytes(log[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(log[at..at + 8].try_into().unwrap());
    let len = u32_at(8) as usize;
    let sequence_number = u64_at(16);
    let count = u32_at(24) as usize;
    if &log[..4] != b"loge" || len == 0 || !len.is_multiple_of(4096) || len > log.len() || sequence_number == 0 {
        return None;
    }
    if u32_at(28) != 0 || log[32..48] != LOG_GUID.to_bytes_le() {
        return None;
    }
    let zeroed = [&log[..4], &[0; 4], &log[8..len]].concat();
    if crc32c::crc32c(&zeroed) != u32_at(4) {
        return None;
    }
    // No entry holds more descriptors than bytes; of any more, the product may exceed 32 bits.
    if count > len {
        return None;
    }
    let first_data_sector = (64 + count * 32).div_ceil(4096) * 4096;
    if first_data_sector > len {
        return None;
    }
    let mut data_sector = first_data_sector;
    let mut updates = Vec::new();
    for at in (0..count).map(|index| 64 + index * 32) {
        let file_offset = u64_at(at + 16);
        if !file_offset.is_multiple_of(4096) || u64_at(at + 24) != sequence_number {
            return None;
        }
        let update = match &log[at..at + 4] {
            b"zero" if u32_at(at + 4) == 0 && u64_at(at + 8).is_multiple_of(4096) => Update::Zero(u64_at(at + 8)),
            b"desc" if data_sector < len => {
                let number = u64::from(u32_at(data_sector + 4)) << 32 | u64::from(u32_at(data_sector + 4092));
                if &log[data_sector..data_sector + 4] != b"data" || number != sequence_number {
                    return None;
                }
                let middle = &log[data_sector + 8..data_sector + 4092];
                data_sector += 4096;
                Update::Data([&log[at + 8..at + 16], middle, &log[at + 4..at + 8]].concat())
            }
            _ => return None,
        };
        updates.push((file_offset, update));
    }
    let tail = u32_at(12) as usize;
    let (flushed_file_offset, last_file_offset) = (u64_at(48), u64_at(56));
    let entry = Entry { offset, tail, sequence_number, flushed_file_offset, last_file_offset, updates, len };
    (data_sector == len).then_some(entry)
}
