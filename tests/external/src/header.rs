//! The header and the table.

use std::ops::RangeInclusive;

use diskimage::driver::OpenContext;
use diskimage::io::ReadAt;
use diskimage::{Error, Problem, Result};

use crate::NAME;

pub const SIGNATURE: &[u8] = b"TOY\x01";
pub const HEADER_LEN: usize = 4096;
pub const ENTRY_LEN: u64 = 4;
pub const CLUSTER_SIZES: RangeInclusive<u64> = 4 << 10..=2 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub virtual_size: u64,
    pub cluster_size: u64,
    pub table_offset: u64,
}

impl Header {
    /// Number of guest clusters, the last of which may be partial.
    pub fn cluster_count(&self) -> u64 {
        self.virtual_size.div_ceil(self.cluster_size)
    }

    pub fn table_len(&self) -> u64 {
        self.cluster_count() * ENTRY_LEN
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = [SIGNATURE, &[0; 4]].concat();
        bytes.extend(self.virtual_size.to_le_bytes());
        bytes.extend((self.cluster_size as u32).to_le_bytes());
        bytes.extend((self.cluster_count() as u32).to_le_bytes());
        bytes.extend(self.table_offset.to_le_bytes());
        bytes.resize(HEADER_LEN, 0);
        let checksum = checksum(&bytes);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub fn read(file: &dyn ReadAt, cx: &OpenContext<'_>) -> Result<Header> {
        let mut bytes = [0; HEADER_LEN];
        file.read_exact_at(&mut bytes, 0).map_err(Error::io("reading the header", 0))?;
        let stored = u32_at(&bytes, 4);
        if stored != checksum(&bytes) {
            let problem = Problem::Conflict { value: stored.into(), finding: "the checksum of the header is different" };
            return Err(Error::corrupt(NAME, "checksum", 4, problem));
        }
        let header = Header {
            virtual_size: u64_at(&bytes, 8),
            cluster_size: u32_at(&bytes, 16).into(),
            table_offset: u64_at(&bytes, 24),
        };
        cx.check_virtual_size(NAME, header.virtual_size)?;
        let size = header.cluster_size;
        if !CLUSTER_SIZES.contains(&size) || !size.is_power_of_two() {
            let problem = Problem::Rule { value: size, rule: "must be a power of two from 4 KiB to 2 MiB" };
            return Err(Error::corrupt(NAME, "cluster size", 16, problem));
        }
        let entries = u32_at(&bytes, 20).into();
        if entries != header.cluster_count() {
            let problem = Problem::Rule { value: entries, rule: "must be the number of clusters of the disk" };
            return Err(Error::corrupt(NAME, "number of table entries", 20, problem));
        }
        Ok(header)
    }

    /// Reads the table, whose size the caller's limits bound.
    pub fn read_table(&self, file: &dyn ReadAt, cx: &OpenContext<'_>) -> Result<Vec<u32>> {
        let (offset, len) = (self.table_offset, self.table_len());
        let file_len = file_len(file)?;
        if offset.checked_add(len).is_none_or(|end| end > file_len) {
            return Err(Error::corrupt(NAME, "table offset", 24, Problem::OutOfBounds { offset, len, file_len }));
        }
        cx.budget.take(len, NAME, "table", 24)?;
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, offset).map_err(Error::io("reading the table", offset))?;
        Ok(bytes.as_chunks().0.iter().map(|entry| u32::from_le_bytes(*entry)).collect())
    }

    /// Host offset of the table entry of a guest cluster.
    pub fn entry_offset(&self, cluster: u64) -> u64 {
        self.table_offset + cluster * ENTRY_LEN
    }

    /// Guest bytes in a cluster. The last one may be partial.
    pub fn guest_len(&self, cluster: u64) -> u64 {
        (self.virtual_size - cluster * self.cluster_size).min(self.cluster_size)
    }
}

pub fn file_len(file: &dyn ReadAt) -> Result<u64> {
    file.size().map_err(Error::io("reading the file length", None))
}

fn checksum(header: &[u8]) -> u32 {
    header.iter().enumerate().filter(|(at, _)| !(4..8).contains(at)).map(|(_, byte)| u32::from(*byte)).sum()
}

fn u32_at(bytes: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|index| bytes[at + index]))
}

fn u64_at(bytes: &[u8; HEADER_LEN], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]))
}
