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
