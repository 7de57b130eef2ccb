//! Persistent bitmaps (qcow2 specification, "Bitmaps extension" and "Bitmaps"), which track writes between backups. The disk is read
//! without them: an opened image has the directory only, and the [`bits`] are for copies.

mod bits;
mod union;

use std::ops::Range;
use std::sync::Arc;

use bitflags::bitflags;
use byteorder::{BigEndian, ByteOrder};

pub(super) use self::bits::{Bits, Part};
pub(super) use self::union::{Union, set_bits};
use super::extension::BitmapDirectory;
use super::header::{Autoclear, Header};
use super::{FIELDS, FORMAT_NAME, until_nul};
use crate::driver::DirtyBitmap;
use crate::error::{Error, Fault, Problem, Result};
use crate::format::shared::table;
use crate::info::{ImageInfo, Value};
use crate::io::{MemFile, ReadAt};
use crate::limits::Budget;
use crate::name::Name;

/// Largest number of bitmaps in qemu.
pub(super) const MAX_BITMAPS: u64 = 65535;
/// Longest bitmap name in qemu, in bytes.
pub(super) const MAX_NAME: u64 = 1023;
/// Length of a directory entry in bytes, without extra data and name.
pub(super) const FIXED_LENGTH: usize = 24;
/// The only defined bitmap type.
pub(super) const DIRTY_TRACKING: u8 = 1;

bitflags! {
    /// Flags of a bitmap.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(super) struct BitmapFlags: u32 {
        const IN_USE = 1 << 0;
        const AUTO = 1 << 1;
        const EXTRA_DATA_COMPATIBLE = 1 << 2;
        const _ = !0;
    }
}

impl BitmapFlags {
    /// The bits that must be 0.
    pub const RESERVED: BitmapFlags =
        BitmapFlags::IN_USE.union(BitmapFlags::AUTO).union(BitmapFlags::EXTRA_DATA_COMPATIBLE).complement();
}

/// A persistent bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bitmap {
    pub name: Name,
    /// Guest bytes per bit.
    pub granularity: u64,
    pub flags: BitmapFlags,
    pub table_offset: u64,
    /// Number of table entries of 8 bytes.
    pub table_size: u32,
    /// Whether flags and extra data allow its use.
    pub is_usable: bool,
    /// File offset of the directory entry, for errors.
    pub at: u64,
}

/// Reads the bitmap directory, if it is valid. A program that does not support bitmaps clears autoclear bit 0 when it writes to
/// the image; the bitmaps are then out of date.
pub(super) fn read_bitmaps(file: &Arc<dyn ReadAt>, header: &Header, budget: &Budget) -> Result<Vec<Bitmap>> {
    let Some(directory) = valid_directory(header) else { return Ok(Vec::new()) };
    let BitmapDirectory { count, len, offset, at } = directory.map_err(Error::Corrupt)?;
    if !(1..=MAX_BITMAPS).contains(&count.into()) {
        return Err(FIELDS.at("nb_bitmaps", at).fault(Problem::Range {
            value: count.into(),
            min: 1,
            max: MAX_BITMAPS,
        }));
    }
    FIELDS.at("bitmap_directory_offset", at + 16).aligned(offset, header.cluster_size())?;
    let bytes = table::read_table(&**file, offset, len, FIELDS.at("bitmap_directory_size", at + 8), budget)?;

    let mut bitmaps = Vec::new();
    let mut range = 0..0;
    for _ in 0..count {
        let bitmap;
        (bitmap, range) = parse_entry(&bytes, range.end, offset)?;
        bitmaps.push(bitmap);
    }
    if range.end != bytes.len() {
        let finding = "the entries end before this length";
        return Err(FIELDS.at("bitmap_directory_size", at + 8).fault(Problem::Conflict { value: len, finding }));
    }
    Ok(bitmaps)
}

/// Returns the bitmaps extension, if autoclear bit 0 marks it as up to date.
pub(super) fn valid_directory(header: &Header) -> Option<Result<BitmapDirectory, Fault>> {
    header.extensions.bitmaps.clone().filter(|_| header.autoclear.contains(Autoclear::BITMAPS))
}

/// Parses the entry at byte `start` of the directory and returns it with its byte range. `offset` is the file offset of the
/// directory, for errors.
fn parse_entry(directory: &[u8], start: usize, offset: u64) -> Result<(Bitmap, Range<usize>)> {
    let at = offset + start as u64;
    let rest = directory.get(start..).unwrap_or_default();
    FIELDS.at("bitmap directory entry", at).within(0, FIXED_LENGTH as u64, rest.len() as u64)?;
    let (granularity_bits, name_len) = (rest[17], BigEndian::read_u16(&rest[18..]));
    if rest[16] != DIRTY_TRACKING {
        let rule = "must be 1 (dirty tracking)";
        return Err(FIELDS.at("bitmap type", at + 16).fault(Problem::Rule { value: rest[16].into(), rule }));
    }
    if !(9..=31).contains(&granularity_bits) {
        let problem = Problem::Range { value: granularity_bits.into(), min: 9, max: 31 };
        return Err(FIELDS.at("bitmap granularity_bits", at + 17).fault(problem));
    }
    if !(1..=MAX_NAME).contains(&name_len.into()) {
        let problem = Problem::Range { value: name_len.into(), min: 1, max: MAX_NAME };
        return Err(FIELDS.at("bitmap name_size", at + 18).fault(problem));
    }
    let extra_len = BigEndian::read_u32(&rest[20..]);
    let name_start = FIXED_LENGTH as u64 + u64::from(extra_len);
    let len = (name_start + u64::from(name_len)).next_multiple_of(8);
    FIELDS.at("bitmap directory entry", at).within(0, len, rest.len() as u64)?;
    let name = &rest[name_start as usize..][..name_len.into()];
    let flags = BitmapFlags::from_bits_retain(BigEndian::read_u32(&rest[12..]));
    let is_usable = (flags & BitmapFlags::RESERVED).is_empty()
        && (extra_len == 0 || flags.contains(BitmapFlags::EXTRA_DATA_COMPATIBLE));
    let bitmap = Bitmap {
        name: Name::from(until_nul(name)),
        granularity: 1 << granularity_bits,
        flags,
        is_usable,
        table_offset: BigEndian::read_u64(rest),
        table_size: BigEndian::read_u32(&rest[8..]),
        at,
    };
    Ok((bitmap, start..start + len as usize))
}

/// The bitmaps with their bits, which are read on demand.
pub(super) fn open_bitmaps(file: &Arc<dyn ReadAt>, header: &Header, budget: &Budget) -> Result<Vec<DirtyBitmap>> {
    let open = |bitmap: Bitmap| {
        let name = bitmap.name.clone();
        let inconsistent = bitmap.flags.contains(BitmapFlags::IN_USE);
        let bits: Arc<dyn ReadAt> = match inconsistent {
            true => Arc::new(MemFile::new()),
            false if !bitmap.is_usable => {
                let feature = format!("bitmap '{name}' with unknown flags or extra data").into();
                return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(bitmap.at) });
            }
            false => Arc::new(Bits::open(file, header, &bitmap, budget)?),
        };
        let recording = bitmap.flags.contains(BitmapFlags::AUTO);
        Ok(DirtyBitmap { recording, inconsistent, ..DirtyBitmap::new(name, bitmap.granularity, bits) })
    };
    read_bitmaps(file, header, budget)?.into_iter().map(open).collect()
}

impl Bitmap {
    /// Encodes the directory entry.
    pub fn encode(&self) -> Vec<u8> {
        let name = self.name.as_bytes();
        let mut bytes = vec![0; FIXED_LENGTH];
        BigEndian::write_u64(&mut bytes, self.table_offset);
        BigEndian::write_u32(&mut bytes[8..], self.table_size);
        BigEndian::write_u32(&mut bytes[12..], self.flags.bits());
        bytes[16] = DIRTY_TRACKING;
        bytes[17] = self.granularity.ilog2() as u8;
        BigEndian::write_u16(&mut bytes[18..], name.len() as u16);
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    /// The bitmap with the keys of qemu-img info.
    pub fn to_value(&self) -> Value {
        let named = [(BitmapFlags::IN_USE, "in-use"), (BitmapFlags::AUTO, "auto")];
        let set = named.iter().filter(|(flag, _)| self.flags.contains(*flag));
        let mut properties = vec![
            ("flags", Value::List(set.map(|(_, name)| Value::from(*name)).collect())),
            ("name", Value::Text(self.name.clone())),
            ("granularity", Value::Number(self.granularity)),
        ];
        let unknown = self.flags & BitmapFlags::RESERVED;
        properties.extend((!unknown.is_empty()).then(|| ("unknown-flags", u64::from(unknown.bits()).into())));
        Value::Map(properties)
    }
}

/// Returns the bytes that the bitmaps of the image `source` take in an image with clusters of `cluster_size` bytes: the bits and the
/// table of each bitmap are whole clusters, and so is the directory. `None` if the image cannot have bitmaps: it is not qcow2
/// of version 3.
pub(super) fn lengths_of_bitmaps(source: &ImageInfo, cluster_size: u64) -> Option<u64> {
    if source.format != FORMAT_NAME || source.property("compat") != Some(&Value::from("1.1")) {
        return None;
    }
    let bitmaps = match source.property("bitmaps") {
        Some(Value::List(bitmaps)) => bitmaps.as_slice(),
        _ => &[],
    };
    let (mut len, mut directory) = (0, 0);
    for bitmap in bitmaps {
        let Value::Map(properties) = bitmap else { continue };
        let property = |name: &str| properties.iter().find(|(key, _)| *key == name).map(|(_, value)| value);
        let (Some(Value::Text(name)), Some(&Value::Number(granularity))) = (property("name"), property("granularity"))
        else {
            continue;
        };
        let bits = source.virtual_size.div_ceil(granularity);
        let clusters = bits.div_ceil(8).div_ceil(cluster_size);
        len += clusters * cluster_size + (clusters * 8).next_multiple_of(cluster_size);
        directory += (FIXED_LENGTH as u64 + name.as_bytes().len() as u64).next_multiple_of(8);
    }
    Some(len + directory.next_multiple_of(cluster_size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemFile;
    use crate::limits::Limits;

    /// An entry of 32 bytes for the bitmap "name".
    fn entry() -> Vec<u8> {
        let mut bytes = vec![0; 32];
        bytes[..8].copy_from_slice(&0x4000u64.to_be_bytes());
        bytes[8..12].copy_from_slice(&3u32.to_be_bytes());
        bytes[12..16].copy_from_slice(&3u32.to_be_bytes());
        bytes[16..20].copy_from_slice(&[1, 16, 0, 4]);
        bytes[24..28].copy_from_slice(b"name");
        bytes
    }

    /// Reads a directory of an image with this bitmaps extension.
    fn read(directory: &[u8], count: u32, len: u64, autoclear: Autoclear) -> Result<Vec<Bitmap>> {
        let mut bytes = vec![0; 1024];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        bytes[20..24].copy_from_slice(&9u32.to_be_bytes());
        bytes[88..96].copy_from_slice(&autoclear.bits().to_be_bytes());
        bytes[100..104].copy_from_slice(&104u32.to_be_bytes());
        bytes[104..112].copy_from_slice(&[0x23, 0x85, 0x28, 0x75, 0, 0, 0, 24]);
        bytes[112..116].copy_from_slice(&count.to_be_bytes());
        bytes[120..128].copy_from_slice(&len.to_be_bytes());
        bytes[128..136].copy_from_slice(&1024u64.to_be_bytes());
        bytes.extend(directory);
        let file: Arc<dyn ReadAt> = Arc::new(MemFile::from(bytes));
        let header = Header::read(&file, &Limits::default()).unwrap();
        read_bitmaps(&file, &header, &Budget::new(1 << 20))
    }

    #[test]
    fn directory() {
        let mut with_extra = entry();
        with_extra[19] = 6;
        with_extra[20..24].copy_from_slice(&8u32.to_be_bytes());
        with_extra.splice(24.., *b"(extra)\0second\0\0");
        let directory = [entry(), with_extra].concat();
        let bitmaps = read(&directory, 2, 72, Autoclear::BITMAPS).unwrap();
        let flags = BitmapFlags::IN_USE | BitmapFlags::AUTO;
        let first = Bitmap {
            name: "name".into(),
            granularity: 65536,
            flags,
            table_offset: 0x4000,
            table_size: 3,
            is_usable: true,
            at: 1024,
        };
        let second = Bitmap { name: "second".into(), is_usable: false, at: 1024 + 32, ..first.clone() };
        assert_eq!(bitmaps, [first, second]);
        let expected = Value::Map(vec![
            ("flags", Value::List(vec!["in-use".into(), "auto".into()])),
            ("name", "name".into()),
            ("granularity", 65536u64.into()),
        ]);
        assert_eq!(bitmaps[0].to_value(), expected);
    }

    #[test]
    fn entries_round_trip() {
        for name in ["a", "seven..", "eight...", &"x".repeat(1023)] {
            let flags = BitmapFlags::AUTO;
            let bitmap = Bitmap {
                name: name.into(),
                granularity: 1 << 31,
                flags,
                table_offset: 1 << 55,
                table_size: 7,
                is_usable: true,
                at: 1024,
            };
            let bytes = bitmap.encode();
            assert_eq!(read(&bytes, 1, bytes.len() as u64, Autoclear::BITMAPS).unwrap(), [bitmap]);
        }
    }

    #[test]
    fn errors_name_the_field_of_the_second_entry() {
        for (change, name, at) in [
            ((16, 2), "bitmap type", 1056 + 16),
            ((17, 8), "bitmap granularity_bits", 1056 + 17),
            ((19, 0), "bitmap name_size", 1056 + 18),
        ] {
            let mut directory = [entry(), entry()].concat();
            directory[32 + change.0] = change.1;
            let Error::Corrupt(fault) = read(&directory, 2, 64, Autoclear::BITMAPS).unwrap_err() else { panic!() };
            assert_eq!((&*fault.field, fault.at), (name, at));
        }
    }

    const PATTERN: [u8; 512] = {
        let mut bytes = [0; 512];
        let mut at = 0;
        while at < 512 {
            bytes[at] = (at * 7 / 3) as u8;
            at += 1;
        }
        bytes
    };

    /// The bits of a bitmap of granularity 512 on a disk of 4 MiB: 1024 bytes in two clusters of 512.
    fn bits(entries: [u64; 2], table_size: u32) -> Result<Vec<u8>, String> {
        let mut image = vec![0; 2048];
        image[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        image[20..24].copy_from_slice(&9u32.to_be_bytes());
        image[24..32].copy_from_slice(&(4u64 << 20).to_be_bytes());
        image[36..40].copy_from_slice(&128u32.to_be_bytes());
        image[40..48].copy_from_slice(&1536u64.to_be_bytes());
        image[100..104].copy_from_slice(&104u32.to_be_bytes());
        image[512..528].copy_from_slice(&entries.map(u64::to_be_bytes).concat());
        image[1024..1536].copy_from_slice(&PATTERN);
        let file: Arc<dyn ReadAt> = Arc::new(MemFile::from(image));
        let header = Header::read_for_check(&file, &Limits::default()).unwrap();
        let flags = BitmapFlags::empty();
        let bitmap =
            Bitmap { name: "a".into(), granularity: 512, flags, table_offset: 512, table_size, is_usable: true, at: 0 };
        let bits = Bits::open(&file, &header, &bitmap, &Budget::new(1 << 20)).map_err(|error| error.to_string())?;
        let mut found = vec![0xee; bits.size().unwrap() as usize];
        // Parts of a cluster, and reads of two clusters.
        for (part, at) in found.chunks_mut(300).zip((0..).step_by(300)) {
            bits.read_exact_at(part, at).unwrap();
        }
        assert_eq!(bits.read_at(&mut [0], 1024).unwrap(), 0);
        Ok(found)
    }

    #[test]
    fn bits_with_and_without_data() {
        assert_eq!(bits([0, 1], 2).unwrap(), [[0; 512], [0xff; 512]].concat());
        assert_eq!(bits([1024, 0], 2).unwrap(), [PATTERN, [0; 512]].concat());
        assert_eq!(bits([1, 1024], 2).unwrap(), [[0xff; 512], PATTERN].concat());
        for (entries, table_size, part) in [
            ([0, 0], 1, "bitmap_table_size is out of bounds"),
            ([1025, 0], 2, "reserved bits 0x1"),
            ([2, 0], 2, "reserved bits 0x2"),
            ([0, 1 << 56], 2, "0x208: bitmap table entry is 0x100000000000000, with the reserved bits"),
            ([0, 2048], 2, "0x208: bitmap table entry is out of bounds"),
        ] {
            let error = bits(entries, table_size).unwrap_err();
            assert!(error.contains(part), "{entries:?}: {error}");
        }
    }

    #[test]
    fn unknown_flags_are_named() {
        let mut entry = entry();
        entry[12..16].copy_from_slice(&0x8000_000du32.to_be_bytes());
        let bitmap = read(&entry, 1, 32, Autoclear::BITMAPS).unwrap().remove(0);
        let expected = Value::Map(vec![
            ("flags", Value::List(vec!["in-use".into()])),
            ("name", "name".into()),
            ("granularity", 65536u64.into()),
            ("unknown-flags", 0x8000_0008u64.into()),
        ]);
        assert_eq!(bitmap.to_value(), expected);
    }

    #[test]
    fn outdated_bitmaps_are_not_listed() {
        assert_eq!(read(&entry(), 1, 32, Autoclear::empty()).unwrap(), []);
        // The extension is ignored.
        assert_eq!(read(&[], u32::MAX, u64::MAX, Autoclear::empty()).unwrap(), []);
    }

    #[test]
    fn invalid_directories() {
        let kind = |change: fn(&mut Vec<u8>), count, len| {
            let mut directory = entry();
            change(&mut directory);
            read(&directory, count, len, Autoclear::BITMAPS).map_err(|error| error.kind().as_str())
        };
        assert!(kind(|_| (), 1, 32).is_ok());
        assert_eq!(kind(|_| (), 0, 32), Err("invalid-field"));
        assert_eq!(kind(|_| (), 65535, 32), Err("out-of-bounds"));
        assert_eq!(kind(|_| (), 65536, 32), Err("invalid-field"));
        assert_eq!(kind(|_| (), 1, 33), Err("out-of-bounds"));
        assert_eq!(kind(|_| (), 1, u64::MAX), Err("out-of-bounds"));
        assert_eq!(kind(|_| (), 1, 31), Err("out-of-bounds"));
        assert_eq!(kind(|_| (), 1, 0), Err("out-of-bounds"));
        assert_eq!(kind(|_| (), 2, 32), Err("out-of-bounds"));
        assert_eq!(kind(|bytes| bytes.resize(64, 0), 1, 64), Err("invalid-field"));
        assert_eq!(kind(|bytes| bytes[16] = 2, 1, 32), Err("invalid-field"));
        assert_eq!(kind(|bytes| bytes[17] = 8, 1, 32), Err("invalid-field"));
        assert_eq!(kind(|bytes| bytes[17] = 32, 1, 32), Err("invalid-field"));
        assert_eq!(kind(|bytes| bytes[19] = 0, 1, 32), Err("invalid-field"));
        assert_eq!(kind(|bytes| bytes[18..20].copy_from_slice(&[4, 0]), 1, 32), Err("invalid-field"));
        assert_eq!(kind(|bytes| bytes[19] = 9, 1, 32), Err("out-of-bounds"));
        assert_eq!(kind(|bytes| bytes[20..24].fill(0xff), 1, 32), Err("out-of-bounds"));
    }
}
