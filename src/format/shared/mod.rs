//! What several drivers use.

/// The backing file of a new image.
pub(crate) mod backing;
/// Runs of equal bits in a bitmap, and bit sets.
pub(crate) mod bits;
/// Data and holes of a file.
pub(crate) mod data_runs;
/// Decryption of guest data.
pub(crate) mod decryption;
/// LUKS version 1.
pub(crate) mod luks;
/// Tables of fixed-size entries, read page by page.
pub(crate) mod paged_table;
/// Merging table entries into extents.
pub(crate) mod run;
/// Signatures of disk images, and of files that are taken for no disk.
pub(crate) mod signature;
/// Bounded reads of tables, and the errors of a field.
pub(crate) mod table;
/// The table parts read last.
pub(crate) mod table_cache;
/// Pages of tables that change.
pub(crate) mod table_pages;
/// Maps of an L1 table and L2 tables.
pub(crate) mod two_level;
/// Zeros between what a writer places.
pub(crate) mod written;
/// XML of untrusted files.
#[cfg(any(feature = "dmg", feature = "packages"))]
pub(crate) mod xml;

use crate::error::{Error, Result};
use crate::identifiers::Identifiers;
use crate::options::Options;

/// The error for making a disk smaller whose end is allocated: the space would be lost.
pub(crate) fn end_is_allocated(format: &'static str) -> Error {
    Error::unsupported(format, "making a disk smaller in place that has data after the new end")
}

/// The CRC-32C of a structure in which the checksum itself, 4 bytes at offset `at`, counts as zeros.
#[cfg(any(feature = "vhdx", feature = "sparsify"))]
pub(crate) fn crc32c_without(bytes: &[u8], at: usize) -> u32 {
    let (before, rest) = bytes.split_at(bytes.len().min(at));
    let crc = crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]);
    crc32c::crc32c_append(crc, rest.get(4..).unwrap_or_default())
}

/// A new identifier of an image whose content changes, in place of the `old` one.
pub(crate) fn new_identifier(format: &'static str, old: &[u8]) -> [u8; 16] {
    Identifiers::Random.for_image(format, 0, &Options::new()).with(old).bytes("modification")
}

/// Rounds the size of a new disk up to sectors.
///
/// # Errors
/// [`Error::Limit`] if it is above the largest file offset then.
pub(crate) fn whole_sectors(format: &'static str, size: u64) -> Result<u64> {
    whole_sectors_of(format, size, 512, i64::MAX as u64)
}

/// Rounds the size of a new disk up to sectors of `sector` bytes.
///
/// # Errors
/// [`Error::Limit`] if it is above `most` bytes then.
pub(crate) fn whole_sectors_of(format: &'static str, size: u64, sector: u64, most: u64) -> Result<u64> {
    let limit = most - most % sector;
    let rounded = size.checked_next_multiple_of(sector).filter(|rounded| *rounded <= limit);
    rounded.ok_or_else(|| Error::limit(format, "virtual size", size, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_to_the_largest_file() {
        let largest = i64::MAX as u64 - 511;
        let rounded = [0, 1, 512, 513, largest - 1, largest].map(|size| whole_sectors("raw", size).unwrap());
        assert_eq!(rounded, [0, 512, 512, 1024, largest, largest]);
        for size in [largest + 1, u64::MAX] {
            assert!(matches!(whole_sectors("raw", size), Err(Error::Limit { limit, .. }) if limit == largest));
        }
    }
}
