//! Encodes log entries (2.3.1).

use byteorder::{ByteOrder, LittleEndian};
use uuid::Uuid;

use super::super::redundant_copy::seal;
use super::entry::{DATA_SIGNATURE, DESCRIPTOR_LEN, HEADER_LEN, SECTOR_SIGNATURE, SIGNATURE, ZERO_SIGNATURE};
use super::ring::SECTOR;
use crate::zero;

/// An entry to be written.
pub(in super::super) struct NewEntry<'a> {
    /// Identifies the log.
    pub log_guid: Uuid,
    pub sequence_number: u64,
    /// Offset in the log of the first entry of the sequence.
    pub tail: u32,
    /// Length of the file in bytes.
    pub file_len: u64,
    /// Sectors of 4 KiB with their host offsets.
    pub sectors: &'a [(u64, &'a [u8])],
}

/// Encodes an entry: its header and descriptors, then the sectors, except those that are zeros.
pub(in super::super) fn encode(entry: &NewEntry<'_>) -> Vec<u8> {
    let sector_len = SECTOR as usize;
    let descriptors = HEADER_LEN + entry.sectors.len() as u64 * DESCRIPTOR_LEN;
    let mut bytes = vec![0; descriptors.next_multiple_of(SECTOR) as usize];
    for (index, (file_offset, sector)) in entry.sectors.iter().enumerate() {
        let is_zero = zero::is_zero(sector);
        let at = HEADER_LEN as usize + index * DESCRIPTOR_LEN as usize;
        if let Some(descriptor) = bytes.get_mut(at..at + DESCRIPTOR_LEN as usize) {
            descriptor[..4].copy_from_slice(if is_zero { ZERO_SIGNATURE } else { DATA_SIGNATURE });
            if is_zero {
                LittleEndian::write_u64(&mut descriptor[8..], SECTOR);
            } else {
                descriptor[4..8].copy_from_slice(sector.last_chunk().unwrap_or(&[0; 4]));
                descriptor[8..16].copy_from_slice(sector.first_chunk().unwrap_or(&[0; 8]));
            }
            LittleEndian::write_u64(&mut descriptor[16..], *file_offset);
            LittleEndian::write_u64(&mut descriptor[24..], entry.sequence_number);
        }
        if !is_zero {
            let start = bytes.len();
            bytes.extend(SECTOR_SIGNATURE);
            bytes.extend(((entry.sequence_number >> 32) as u32).to_le_bytes());
            bytes.extend(sector.get(8..sector_len - 4).unwrap_or_default());
            bytes.resize(start + sector_len - 4, 0);
            bytes.extend((entry.sequence_number as u32).to_le_bytes());
        }
    }
    let len = bytes.len() as u32;
    if let Some(header) = bytes.first_chunk_mut::<{ HEADER_LEN as usize }>() {
        header[..4].copy_from_slice(SIGNATURE);
        LittleEndian::write_u32(&mut header[8..], len);
        LittleEndian::write_u32(&mut header[12..], entry.tail);
        LittleEndian::write_u64(&mut header[16..], entry.sequence_number);
        LittleEndian::write_u32(&mut header[24..], entry.sectors.len() as u32);
        header[32..48].copy_from_slice(&entry.log_guid.to_bytes_le());
        // Everything is in the file, and the file has its length, before an entry is written.
        LittleEndian::write_u64(&mut header[48..], entry.file_len);
        LittleEndian::write_u64(&mut header[56..], entry.file_len);
    }
    seal(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;
    use crate::format::vhdx::MIB;
    use crate::format::vhdx::header::Header;
    use crate::format::vhdx::log::replay;
    use crate::io::{MemFile, ReadAt, WriteAt};
    use crate::limits::Budget;

    fn sector() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![Just(vec![0; 4096]), vec(any::<u8>(), 4096)]
    }

    fn header(log_guid: Uuid) -> Header {
        let (file_write_guid, data_write_guid) = (Uuid::nil(), Uuid::nil());
        Header { sequence_number: 1, file_write_guid, data_write_guid, log_guid, log: MIB..2 * MIB }
    }

    /// 126 descriptors fit into the first sector.
    #[test]
    fn zeros_need_a_descriptor_only() {
        let (log_guid, sequence_number) = (Uuid::from_u128(7), 5 << 32 | 9);
        let (zeros, data) = ([0; SECTOR as usize], [7; SECTOR as usize]);
        let sectors: Vec<_> = (0..127)
            .map(|number| (2 * MIB + number * SECTOR, if number == 100 { &zeros[..] } else { &data[..] }))
            .collect();
        let entry = encode(&NewEntry { log_guid, sequence_number, tail: 0, file_len: 4 << 20, sectors: &sectors });
        assert_eq!(entry.len() as u64, (2 + 126) * SECTOR);
        let file = Arc::new(MemFile::from(vec![0xdd; 4 << 20]));
        file.write_all_at(&entry, MIB).unwrap();
        let source: Arc<dyn ReadAt> = file;
        let replayed = replay(&source, 4 << 20, (&header(log_guid), 0), &[], &Budget::new(1 << 20)).unwrap().unwrap();
        for (at, expected) in sectors {
            let mut found = [0xee; SECTOR as usize];
            replayed.file.read_exact_at(&mut found, at).unwrap();
            assert!(found == expected, "{at:#x}");
        }
    }

    proptest! {
        /// Entries that are written one after the other, also around the end of the log: a replay applies the last one.
        #[test]
        fn the_last_entry_is_replayed(
            start in 0_u64..256,
            entries in vec(btree_map(0_u64..512, sector(), 0..5), 1..4),
        ) {
            let log_guid = Uuid::from_u128(7);
            let file = Arc::new(MemFile::from(vec![0xdd; 4 << 20]));
            let mut expected = file.to_vec();
            let mut offset = start * SECTOR;
            for (sequence_number, changes) in (1..).zip(&entries) {
                let sectors: Vec<_> = changes.iter().map(|(at, bytes)| (2 * MIB + at * SECTOR, &bytes[..])).collect();
                let entry = encode(&NewEntry { log_guid, sequence_number, tail: offset as u32, file_len: 4 << 20, sectors: &sectors });
                for (piece, at) in entry.chunks(SECTOR as usize).zip((offset..).step_by(SECTOR as usize)) {
                    file.write_all_at(piece, MIB + at % MIB).unwrap();
                }
                offset = (offset + entry.len() as u64) % MIB;
            }
            for (at, bytes) in entries.last().unwrap() {
                let at = (2 * MIB + at * SECTOR) as usize;
                expected[at..at + 4096].copy_from_slice(bytes);
            }
            let source: Arc<dyn ReadAt> = file.clone();
            let replayed = replay(&source, 4 << 20, (&header(log_guid), 0), &[], &Budget::new(1 << 20)).unwrap().unwrap();
            prop_assert_eq!(replayed.entries, 1);
            let mut bytes = vec![0; 2 << 20];
            replayed.file.read_exact_at(&mut bytes, 2 * MIB).unwrap();
            prop_assert!(bytes == expected[2 << 20..]);
            replayed.overlay.unwrap().write_to(&*file).unwrap();
            prop_assert!(file.to_vec()[2 << 20..] == expected[2 << 20..]);
        }
    }
}
