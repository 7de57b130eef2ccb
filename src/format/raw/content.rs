//! What a raw disk holds: a file system on the whole disk, or a partition table.

use crate::error::Result;
use crate::format::shared::table;
use crate::io::ReadAt;

/// The name, the offset of the signature, and its bytes. The first match counts: a disk image of an ISO 9660 file system has a
/// partition table for booting from a USB stick, and a boot sector of FAT ends as a partition table does.
static CONTENTS: &[(&str, u64, &[u8])] = &[
    ("ISO 9660", 0x8001, b"CD001"),
    ("UDF", 0x8001, b"BEA01"),
    ("squashfs", 0, b"hsqs"),
    ("XFS", 0, b"XFSB"),
    ("NTFS", 3, b"NTFS    "),
    ("exFAT", 3, b"EXFAT   "),
    ("BitLocker", 3, b"-FVE-FS-"),
    ("ReFS", 3, b"ReFS\0"),
    ("FAT", 54, b"FAT12   "),
    ("FAT", 54, b"FAT16   "),
    ("FAT", 82, b"FAT32   "),
    ("ext2, ext3 or ext4", 0x438, b"\x53\xef"),
    ("F2FS", 0x400, b"\x10\x20\xf5\xf2"),
    ("EROFS", 0x400, b"\xe2\xe1\xf5\xe0"),
    ("HFS+", 0x400, b"H+\0\x04"),
    ("HFS+", 0x400, b"HX\0\x05"),
    ("APFS", 32, b"NXSB"),
    ("btrfs", 0x10040, b"_BHRfS_M"),
    ("LVM", 0x218, b"LVM2 001"),
    ("swap", 0xff6, b"SWAPSPACE2"),
    ("GPT partition table", 512, b"EFI PART"),
    ("GPT partition table", 4096, b"EFI PART"),
    ("MBR partition table", 510, b"\x55\xaa"),
];

/// What the disk in `file` holds, as far as it has one of the known signatures.
pub(crate) fn content(file: &dyn ReadAt) -> Result<Option<&'static str>> {
    // The start, ISO 9660 and UDF, btrfs.
    const READS: [(u64, u64); 3] = [(0, 8192), (0x8000, 512), (0x10000, 512)];
    let len = table::length(file)?;
    let mut parts = Vec::new();
    for (start, most) in READS {
        let mut bytes = vec![0; len.saturating_sub(start).min(most) as usize];
        table::read(file, &mut bytes, start)?;
        parts.push((start, bytes));
    }
    let has = |at: u64, magic: &[u8]| {
        parts.iter().any(|(start, bytes)| {
            let at = at.checked_sub(*start).and_then(|at| bytes.get(at as usize..));
            at.is_some_and(|bytes| bytes.starts_with(magic))
        })
    };
    Ok(CONTENTS.iter().find(|(_, at, magic)| has(*at, magic)).map(|(name, ..)| *name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemFile;

    #[test]
    fn each_signature_is_within_what_is_read() {
        for (name, at, magic) in CONTENTS {
            let mut disk = vec![0; 0x11000];
            disk[*at as usize..][..magic.len()].copy_from_slice(magic);
            assert_eq!(content(&MemFile::from(disk)).unwrap(), Some(*name));
        }
    }

    #[test]
    fn a_bootable_iso_is_no_partition_table() {
        let mut disk = vec![0; 0x9000];
        disk[0x8001..0x8006].copy_from_slice(b"CD001");
        disk[510..512].copy_from_slice(b"\x55\xaa");
        assert_eq!(content(&MemFile::from(disk.clone())).unwrap(), Some("ISO 9660"));
        assert_eq!(content(&MemFile::from(disk[..0x8000].to_vec())).unwrap(), Some("MBR partition table"));
        for len in [0, 1, 511] {
            assert_eq!(content(&MemFile::from(disk[..len].to_vec())).unwrap(), None);
        }
    }
}
