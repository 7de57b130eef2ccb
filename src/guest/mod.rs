//! What the bytes of a disk are: a partition table with its partitions, a file system, a kernel, a ramdisk.
//!
//! This is told, and nothing is decided by it: the guest writes these bytes. Only what is free is dropped, where the caller asks for it.

#[cfg(feature = "sparsify")]
pub(crate) mod free;
mod partition;

use crate::error::Result;
use crate::format::shared::table;
use crate::info::Value;
use crate::io::ReadAt;
pub(crate) use partition::{Partition, PartitionTable};

/// What is found on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// In words.
    pub name: &'static str,
    pub kind: ContentKind,
}

/// The kind of the bytes of a raw disk, as clouds tell files apart.
///
/// ```
/// use std::sync::Arc;
///
/// use diskimage::io::MemFile;
/// use diskimage::{ContentKind, OpenOptions};
///
/// let mut disc = vec![0; 64 << 10];
/// disc[0x8001..0x8006].copy_from_slice(b"CD001");
/// let inspection = OpenOptions::new().inspect_source(Arc::new(MemFile::from(disc)))?;
/// assert_eq!(inspection.content, ContentKind::OpticalDisc);
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ContentKind {
    /// A partition table, an encrypted volume, or anything unknown.
    #[default]
    Disk,
    /// A file system on the whole disk, without a partition table: a machine boots it with a kernel from elsewhere.
    FileSystem,
    /// ISO 9660 or UDF.
    OpticalDisc,
    /// A kernel.
    Kernel,
    /// The archive of an initial RAM disk.
    Ramdisk,
}

use ContentKind::{Disk, FileSystem, Kernel, OpticalDisc as Iso, Ramdisk};

/// The name, the kind, the offset of the signature, and its bytes. The first match counts: a disk image of an ISO 9660 file system
/// has a partition table for booting from a USB stick, and boot sectors of FAT and of Linux kernels end as a partition table does.
static CONTENTS: &[(&str, ContentKind, u64, &[u8])] = &[
    ("ISO 9660", Iso, 0x8001, b"CD001"),
    ("UDF", Iso, 0x8001, b"BEA01"),
    ("Linux kernel (bzImage)", Kernel, 0x202, b"HdrS"),
    ("Linux kernel (arm64)", Kernel, 56, b"ARM\x64"),
    ("Linux kernel (RISC-V)", Kernel, 56, b"RSC\x05"),
    ("ELF", Kernel, 0, b"\x7fELF"),
    ("cpio", Ramdisk, 0, b"070701"),
    ("cpio", Ramdisk, 0, b"070702"),
    ("squashfs", FileSystem, 0, b"hsqs"),
    ("XFS", FileSystem, 0, b"XFSB"),
    ("NTFS", FileSystem, 3, b"NTFS    "),
    ("exFAT", FileSystem, 3, b"EXFAT   "),
    ("BitLocker", Disk, 3, b"-FVE-FS-"),
    ("ReFS", FileSystem, 3, b"ReFS\0"),
    ("FAT", FileSystem, 54, b"FAT12   "),
    ("FAT", FileSystem, 54, b"FAT16   "),
    ("FAT", FileSystem, 82, b"FAT32   "),
    ("ext2, ext3 or ext4", FileSystem, 0x438, b"\x53\xef"),
    ("F2FS", FileSystem, 0x400, b"\x10\x20\xf5\xf2"),
    ("EROFS", FileSystem, 0x400, b"\xe2\xe1\xf5\xe0"),
    ("HFS+", FileSystem, 0x400, b"H+\0\x04"),
    ("HFS+", FileSystem, 0x400, b"HX\0\x05"),
    ("APFS", FileSystem, 32, b"NXSB"),
    ("btrfs", FileSystem, 0x10040, b"_BHRfS_M"),
    ("LUKS", Disk, 0, b"LUKS\xba\xbe"),
    ("LVM", Disk, 0x218, b"LVM2 001"),
    ("swap", Disk, 0xff6, b"SWAPSPACE2"),
    ("GPT partition table", Disk, 512, b"EFI PART"),
    ("GPT partition table", Disk, 4096, b"EFI PART"),
    ("MBR partition table", Disk, 510, b"\x55\xaa"),
];

/// Length of a volume descriptor of ISO 9660 and UDF in bytes.
const VOLUME_DESCRIPTOR: u64 = 2048;

/// Tells whether the disk that begins at byte `start` has some bytes at an offset, where signatures are.
fn signatures(file: &dyn ReadAt, start: u64) -> Result<impl Fn(u64, &[u8]) -> bool> {
    // The start, the descriptors of ISO 9660 and UDF, btrfs.
    const READS: [(u64, u64); 3] = [(0, 8192), (0x8000, 16 * VOLUME_DESCRIPTOR), (0x10000, 512)];
    let len = table::length(file)?.saturating_sub(start);
    let mut parts = Vec::new();
    for (at, most) in READS {
        let mut bytes = vec![0; len.saturating_sub(at).min(most) as usize];
        table::read(file, &mut bytes, start.saturating_add(at))?;
        parts.push((at, bytes));
    }
    Ok(move |at: u64, magic: &[u8]| {
        parts.iter().any(|(start, bytes)| {
            let at = at.checked_sub(*start).and_then(|at| bytes.get(at as usize..));
            at.is_some_and(|bytes| bytes.starts_with(magic))
        })
    })
}

/// What the disk in `file` holds, or its partition at byte `start`, as far as it has one of the known signatures.
pub(crate) fn content(file: &dyn ReadAt, start: u64) -> Result<Option<Content>> {
    let has = signatures(file, start)?;
    let found = CONTENTS.iter().find(|(_, _, at, magic)| has(*at, magic));
    // An ISO 9660 file system can be one of UDF too (ECMA-167, 3/9.1), and that of a disk: its MBR has entries then, which may begin at sector 0.
    let is_udf = (0..16).any(|index| {
        let at = 0x8001 + index * VOLUME_DESCRIPTOR;
        has(at, b"NSR02") || has(at, b"NSR03")
    });
    let has_partitions = has(510, b"\x55\xaa") && (0..4).any(|entry| !has(446 + 16 * entry + 4, b"\0"));
    let name = |name| match name {
        "ISO 9660" => match (is_udf, has_partitions) {
            (false, false) => name,
            (true, false) => "ISO 9660 and UDF",
            (false, true) => "ISO 9660, hybrid with partitions",
            (true, true) => "ISO 9660 and UDF, hybrid with partitions",
        },
        "Linux kernel (bzImage)" if has(0, b"MZ") => "Linux kernel (bzImage, EFI)",
        _ => name,
    };
    Ok(found.map(|(found, kind, ..)| Content { name: name(*found), kind: *kind }))
}

/// The names of all optical discs and partition tables whose signature the file has. Readers find the volume descriptors of a disc after others.
#[cfg(feature = "inspect")]
pub(crate) fn media(file: &dyn ReadAt) -> Result<Vec<&'static str>> {
    let has = signatures(file, 0)?;
    let is_medium = |name: &str, kind| kind == Iso || name.ends_with("partition table");
    let descriptors = (0..16).map(|index| index * VOLUME_DESCRIPTOR);
    let mut found: Vec<_> = CONTENTS
        .iter()
        .filter(|(name, kind, at, magic)| {
            is_medium(name, *kind)
                && if *kind == Iso { descriptors.clone().any(|after| has(at + after, magic)) } else { has(*at, magic) }
        })
        .map(|(name, ..)| *name)
        .collect();
    found.dedup();
    Ok(found)
}

/// Whether the file is the archive of an initial RAM disk, before which there may be another one with microcode.
pub(crate) fn is_ramdisk(file: &dyn ReadAt) -> Result<bool> {
    Ok(content(file, 0)?.is_some_and(|content| content.kind == Ramdisk))
}

/// The kind of the disk in `file`, and its properties `content` and `partitions`.
pub(crate) fn properties(file: &dyn ReadAt) -> Result<(ContentKind, Vec<(&'static str, Value)>)> {
    let mut properties = Vec::new();
    let content = content(file, 0)?;
    let kind = content.as_ref().map(|content| content.kind).unwrap_or_default();
    properties.extend(content.map(|content| ("content", content.name.into())));
    if let Some(table) = PartitionTable::read(file)? {
        let partitions = table.partitions.iter().map(|partition| describe(file, partition));
        properties.push(("partitions", Value::List(partitions.collect::<Result<_>>()?)));
    }
    Ok((kind, properties))
}

fn describe(file: &dyn ReadAt, partition: &Partition) -> Result<Value> {
    let mut map = vec![
        ("number", Value::Number(partition.number.into())),
        ("start", partition.range.start.into()),
        ("length", (partition.range.end - partition.range.start).into()),
        ("type", Value::Text(partition.type_name())),
    ];
    if !partition.label.as_bytes().is_empty() {
        map.push(("label", Value::Text(partition.label.clone())));
    }
    // An extended partition has no content of its own.
    let content = if partition.is_extended() { None } else { content(file, partition.range.start)? };
    map.extend(content.map(|content| ("content", content.name.into())));
    Ok(Value::Map(map))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemFile;

    fn name(disk: &[u8]) -> Option<&'static str> {
        content(&MemFile::from(disk.to_vec()), 0).unwrap().map(|content| content.name)
    }

    #[test]
    fn each_signature_is_within_what_is_read() {
        for (name, kind, at, magic) in CONTENTS {
            for start in [0, 1 << 20] {
                let mut disk = vec![0; start + 0x11000];
                disk[start + *at as usize..][..magic.len()].copy_from_slice(magic);
                let found = content(&MemFile::from(disk), start as u64).unwrap();
                assert_eq!(found, Some(Content { name, kind: *kind }));
            }
        }
    }

    #[test]
    fn what_looks_like_a_partition_table_and_is_none() {
        let mut disk = vec![0; 0x9000];
        disk[0x8001..0x8006].copy_from_slice(b"CD001");
        disk[510..512].copy_from_slice(b"\x55\xaa");
        // After the four entries.
        disk[446 + 16 * 4 + 4] = 1;
        assert_eq!(name(&disk), Some("ISO 9660"));
        assert_eq!(name(&disk[..0x8000]), Some("MBR partition table"));
        disk[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(name(&disk[..0x8000]), Some("Linux kernel (bzImage)"));
        for len in [0, 1, 511] {
            assert_eq!(name(&disk[..len]), None);
        }
        assert_eq!(content(&MemFile::from(disk), u64::MAX).unwrap(), None);
    }

    #[test]
    fn discs_and_kernels_of_several_kinds() {
        let mut disc = vec![0; 0x9000];
        disc[0x8001..0x8006].copy_from_slice(b"CD001");
        disc[0x8801..0x8806].copy_from_slice(b"NSR03");
        assert_eq!(name(&disc), Some("ISO 9660 and UDF"));
        disc[446 + 16 + 4] = 0x17;
        disc[510..512].copy_from_slice(b"\x55\xaa");
        assert_eq!(name(&disc), Some("ISO 9660 and UDF, hybrid with partitions"));
        disc[0x8801] = 0;
        assert_eq!(name(&disc), Some("ISO 9660, hybrid with partitions"));
        let mut kernel = vec![0; 0x400];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[..2].copy_from_slice(b"MZ");
        assert_eq!(name(&kernel), Some("Linux kernel (bzImage, EFI)"));
    }

    #[test]
    fn partitions_are_listed_with_their_content() {
        let mut disk = vec![0; 3 << 20];
        for at in [510, (2 << 20) + 510] {
            disk[at..at + 2].copy_from_slice(b"\x55\xaa");
        }
        for (entry, kind, first_high) in [(446, 0x83, 8), (446 + 16, 0x05, 16)] {
            disk[entry + 4] = kind;
            disk[entry + 8..][..8].copy_from_slice(&[0, first_high, 0, 0, 0, 8, 0, 0]);
        }
        disk[(1 << 20) + 0x438..][..2].copy_from_slice(b"\x53\xef");
        let found = properties(&MemFile::from(disk)).unwrap();
        let partition = Value::Map(vec![
            ("number", 1.into()),
            ("start", (1 << 20).into()),
            ("length", (1 << 20).into()),
            ("type", "Linux (0x83)".into()),
            ("content", "ext2, ext3 or ext4".into()),
        ]);
        let extended = Value::Map(vec![
            ("number", 2.into()),
            ("start", (2 << 20).into()),
            ("length", (1 << 20).into()),
            ("type", "extended (0x05)".into()),
        ]);
        let list = Value::List(vec![partition, extended]);
        assert_eq!(found, (Disk, vec![("content", "MBR partition table".into()), ("partitions", list)]));
    }
}
