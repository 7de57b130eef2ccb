//! Log entries (2.3.1).

use byteorder::{ByteOrder, LittleEndian};
use uuid::Uuid;

use super::super::{FIELDS, FORMAT_NAME, checksum};
use super::ring::{Ring, SECTOR};
use crate::error::{Problem, Result};
use crate::limits::Budget;
use crate::zero;

type Sector = [u8; SECTOR as usize];

pub(super) const SIGNATURE: &[u8; 4] = b"loge";
pub(super) const ZERO_SIGNATURE: &[u8; 4] = b"zero";
pub(super) const DATA_SIGNATURE: &[u8; 4] = b"desc";
pub(super) const SECTOR_SIGNATURE: &[u8; 4] = b"data";

/// Bytes of an entry header, before the first descriptor (2.3.1.1).
pub(super) const HEADER_LEN: u64 = 64;
pub(super) const DESCRIPTOR_LEN: u64 = 32;

/// A valid entry. A log can have a million entries, so the fields have their on-disk size.
#[derive(Clone, Debug)]
pub(super) struct LogEntry {
    /// Offset in the log.
    offset: u32,
    entry_length: u32,
    /// Offset in the log of the first entry of the sequence that ends with this one.
    tail: u32,
    descriptor_count: u32,
    pub sequence_number: u64,
    /// Minimum length of the file when the entry was written, in bytes.
    pub flushed_file_offset: u64,
    /// End of the last structure of the file, in bytes.
    pub last_file_offset: u64,
}

/// A change of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    /// Host offset of the change.
    pub file_offset: u64,
    /// Host offset of the descriptor.
    pub at: u64,
    pub update: Update,
}

/// The new content of a change.
#[derive(Clone, Copy, Debug)]
pub(super) enum Update {
    Zero { zero_length: u64 },
    Data(Data),
}

/// The new content of a sector.
#[derive(Clone, Copy, Debug)]
pub(super) struct Data {
    /// Host offset of the data sector.
    pub host_offset: u64,
    /// Sequence number of its entry.
    pub sequence_number: u64,
    /// The bytes that the data sector replaces by its signature and sequence number (2.3.1.3).
    pub leading_bytes: [u8; 8],
    pub trailing_bytes: [u8; 4],
}

/// The entries of a log.
pub(super) struct LogEntries {
    /// The valid entries, in the order of their offsets.
    pub valid: Vec<LogEntry>,
    /// Whether the log has traces of entries with its GUID, valid or damaged.
    pub has_remains: bool,
}

impl LogEntries {
    /// Reads all entries with this GUID.
    ///
    /// Sectors have signatures by their role, so an entry cannot start within another one. After an invalid entry the search
    /// continues after its last valid sector, so every sector is read a bounded number of times.
    pub fn read(ring: &mut Ring<'_>, log_guid: &Uuid, budget: &Budget) -> Result<LogEntries> {
        // A growing vector has up to twice the capacity.
        const COST: u64 = 2 * size_of::<LogEntry>() as u64;
        let mut entries = LogEntries { valid: Vec::new(), has_remains: false };
        let mut offset = 0;
        while offset < ring.len() {
            let at = ring.host_offset(offset);
            entries.has_remains |= is_remains(ring.sector(offset)?, log_guid);
            if let Some(entry) = LogEntry::read(ring, &mut offset, log_guid)? {
                budget.take(COST, FORMAT_NAME, "log entries", at)?;
                entries.valid.push(entry);
            }
        }
        Ok(entries)
    }
}

/// Whether a sector that starts no valid entry is left of one with this GUID, as opposed to an unused sector or a part of an earlier
/// log, which the writer does not clear. Content of no known role may be anything.
fn is_remains(sector: &Sector, log_guid: &Uuid) -> bool {
    let is_header = sector.starts_with(SIGNATURE);
    let is_other =
        [DATA_SIGNATURE, ZERO_SIGNATURE, SECTOR_SIGNATURE].iter().any(|signature| sector.starts_with(*signature));
    match sector[32..48] == log_guid.to_bytes_le() {
        true => !is_other,
        false => !is_header && !is_other && !zero::is_zero(sector),
    }
}

impl LogEntry {
    /// Returns the entry at `offset` if it is valid. Advances `offset` over the sectors of the entry, or over the valid sectors
    /// of an invalid one.
    fn read(ring: &mut Ring<'_>, offset: &mut u64, log_guid: &Uuid) -> Result<Option<LogEntry>> {
        let (start, log_len) = (*offset, ring.len());
        *offset += SECTOR;
        let first = ring.sector(start)?;
        let on_disk = LittleEndian::read_u32(&first[4..]);
        let Some(entry) = LogEntry::parse(first, start, log_len, log_guid) else { return Ok(None) };

        let mut crc = 0;
        let mut data_descriptors = 0;
        for index in 0..entry.sectors() {
            let sector = ring.sector(start + index * SECTOR)?;
            if index < entry.descriptor_sectors() {
                let Some(count) = entry.count_data_descriptors(index, sector) else { return Ok(None) };
                data_descriptors += count;
            } else if !is_data_sector(sector, entry.sequence_number) {
                return Ok(None);
            }
            *offset = start + (index + 1) * SECTOR;
            crc = if index == 0 { checksum(sector) } else { crc32c::crc32c_append(crc, sector) };
        }
        let complete = entry.sectors() == entry.descriptor_sectors() + data_descriptors;
        // Fuzzing skips the checksum.
        Ok((complete && (cfg!(fuzzing) || crc == on_disk)).then_some(entry))
    }

    /// Parses the header of an entry in the `sector` at `offset` (2.3.1.1).
    ///
    /// The two file offsets are not checked for multiples of 1 MiB: files of old programs violate that.
    fn parse(sector: &Sector, offset: u64, log_len: u64, log_guid: &Uuid) -> Option<LogEntry> {
        let u32_at = |at: usize| LittleEndian::read_u32(&sector[at..]);
        let u64_at = |at: usize| LittleEndian::read_u64(&sector[at..]);
        let entry = LogEntry {
            offset: offset.try_into().ok()?,
            entry_length: u32_at(8),
            tail: u32_at(12),
            descriptor_count: u32_at(24),
            sequence_number: u64_at(16),
            flushed_file_offset: u64_at(48),
            last_file_offset: u64_at(56),
        };
        let valid = sector.starts_with(SIGNATURE)
            && sector[32..48] == log_guid.to_bytes_le()
            && entry.sequence_number > 0
            && u32_at(28) == 0
            && entry.len().is_multiple_of(SECTOR)
            && entry.len() <= log_len
            && entry.sectors() >= entry.descriptor_sectors();
        valid.then_some(entry)
    }

    /// Returns the number of data descriptors in sector `index` of the entry; `None` if a descriptor is invalid.
    fn count_data_descriptors(&self, index: u64, sector: &Sector) -> Option<u64> {
        self.descriptors_in(index, sector)
            .try_fold(0, |count, (_, bytes)| Some(count + u64::from(is_data_descriptor(bytes, self.sequence_number)?)))
    }

    /// The descriptors in sector `index` of the entry, with their offsets in the sector.
    fn descriptors_in<'s>(
        &self,
        index: u64,
        sector: &'s Sector,
    ) -> impl Iterator<Item = (u64, &'s [u8; DESCRIPTOR_LEN as usize])> + use<'s> {
        let end = (HEADER_LEN + self.descriptor_count() * DESCRIPTOR_LEN).saturating_sub(index * SECTOR);
        let from = if index == 0 { HEADER_LEN } else { 0 };
        let slots = (0..SECTOR).step_by(DESCRIPTOR_LEN as usize).zip(sector.as_chunks().0);
        slots.filter(move |(at, _)| (from..end).contains(at))
    }

    /// Calls `each` with the descriptors, in their order.
    pub fn descriptors(&self, ring: &mut Ring<'_>, mut each: impl FnMut(Descriptor) -> Result<()>) -> Result<()> {
        let mut data_offset = self.offset() + self.descriptor_sectors() * SECTOR;
        for index in 0..self.descriptor_sectors() {
            let sector_at = ring.host_offset(self.offset() + index * SECTOR);
            let sector = *ring.sector(self.offset() + index * SECTOR)?;
            for (in_sector, bytes) in self.descriptors_in(index, &sector) {
                let at = sector_at + in_sector;
                let Some(is_data) = is_data_descriptor(bytes, self.sequence_number) else {
                    let value = LittleEndian::read_u64(&bytes[24..]);
                    let finding = "the log changed while it was read";
                    return Err(FIELDS.at("SequenceNumber", at + 24).fault(Problem::Conflict { value, finding }));
                };
                let update = if is_data {
                    let host_offset = ring.host_offset(data_offset);
                    data_offset += SECTOR;
                    let (leading_bytes, trailing_bytes) = (part(bytes, 8), part(bytes, 4));
                    let sequence_number = self.sequence_number;
                    Update::Data(Data { host_offset, sequence_number, leading_bytes, trailing_bytes })
                } else {
                    Update::Zero { zero_length: LittleEndian::read_u64(&bytes[8..]) }
                };
                each(Descriptor { file_offset: LittleEndian::read_u64(&bytes[16..]), at, update })?;
            }
        }
        Ok(())
    }

    /// Offset in the log.
    pub fn offset(&self) -> u64 {
        self.offset.into()
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.entry_length.into()
    }

    /// Offset in the log of the first entry of the sequence that ends with this one.
    pub fn tail(&self) -> u64 {
        self.tail.into()
    }

    pub fn descriptor_count(&self) -> u64 {
        self.descriptor_count.into()
    }

    fn sectors(&self) -> u64 {
        self.len() / SECTOR
    }

    fn descriptor_sectors(&self) -> u64 {
        (HEADER_LEN + self.descriptor_count() * DESCRIPTOR_LEN).div_ceil(SECTOR)
    }
}

/// Whether a sector is a data sector of the entry with this sequence number (2.3.1.4).
pub(super) fn is_data_sector(sector: &Sector, sequence_number: u64) -> bool {
    let (high, low) = (LittleEndian::read_u32(&sector[4..]), LittleEndian::read_u32(&sector[4092..]));
    sector.starts_with(SECTOR_SIGNATURE) && sequence_number == u64::from(high) << 32 | u64::from(low)
}

/// Whether a descriptor is a data descriptor, not a zero descriptor; `None` if it is invalid or belongs to an entry with another
/// sequence number (2.3.1.2, 2.3.1.3).
fn is_data_descriptor(bytes: &[u8; DESCRIPTOR_LEN as usize], sequence_number: u64) -> Option<bool> {
    let u64_at = |at: usize| LittleEndian::read_u64(&bytes[at..]);
    let aligned = |at: usize| u64_at(at).is_multiple_of(SECTOR);
    let data = bytes.starts_with(DATA_SIGNATURE);
    let zero = bytes.starts_with(ZERO_SIGNATURE) && LittleEndian::read_u32(&bytes[4..]) == 0 && aligned(8);
    ((data || zero) && aligned(16) && u64_at(24) == sequence_number).then_some(data)
}

fn part<const N: usize>(bytes: &[u8; DESCRIPTOR_LEN as usize], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}
