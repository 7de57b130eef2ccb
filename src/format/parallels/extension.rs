//! The format extension, which has dirty bitmaps (Parallels specification, "Format Extension").

use byteorder::{ByteOrder, LittleEndian};

use super::header::Header;
use super::{FIELDS, SECTOR};
use crate::error::{Problem, Result};
use crate::format::shared::table;
use crate::info::Value;
use crate::io::ReadAt;
use crate::name::Name;

const MAGIC: u64 = 0xab23_4cef_23dc_ea87;
/// Bytes before the first section: the magic and a checksum.
const START: u64 = 24;
/// The section of a dirty bitmap. 0 ends the list.
const BITMAP: u64 = 0x2038_5fae_252c_b34a;
/// Bytes of a section before its data.
const SECTION: u64 = 24;
/// Bytes of a bitmap before its L1 table.
const BITMAP_LEN: u64 = 32;
/// Largest number of sections. Parallels keeps one bitmap.
const MAX_SECTIONS: u64 = 1000;

/// A dirty bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bitmap {
    /// Its size in sectors of the disk.
    pub sectors: u64,
    pub id: [u8; 16],
    /// Sectors for each bit.
    pub granularity: u32,
}

impl Bitmap {
    pub fn to_value(&self) -> Value {
        let id: String = self.id.iter().map(|byte| format!("{byte:02x}")).collect();
        Value::Map(vec![
            ("id", Value::Text(Name::from(id))),
            ("granularity", (u64::from(self.granularity) * SECTOR).into()),
            ("size", self.sectors.saturating_mul(SECTOR).into()),
        ])
    }
}

/// Reads the bitmaps of the format extension. The checksum is not verified, and the content of bitmaps is not read.
pub(super) fn read_bitmaps(file: &dyn ReadAt, header: &Header) -> Result<Vec<Bitmap>> {
    let mut bitmaps = Vec::new();
    if header.extension_sector == 0 {
        return Ok(bitmaps);
    }
    let file_len = table::length(file)?;
    let field = FIELDS.at("ext_off", 56);
    let start = header.extension_sector.saturating_mul(SECTOR);
    field.within(start, header.cluster_size(), file_len)?;
    let end = start + header.cluster_size();
    let mut bytes = [0; BITMAP_LEN as usize];
    table::read(file, bytes.get_mut(..8).unwrap_or_default(), start)?;
    let magic = LittleEndian::read_u64(&bytes);
    if magic != MAGIC {
        let rule = "must be 0xab234cef23dcea87";
        return Err(FIELDS.at("magic of the format extension", start).fault(Problem::Rule { value: magic, rule }));
    }
    let mut at = start + START;
    for _ in 0..MAX_SECTIONS {
        let section = FIELDS.at("section of the format extension", at);
        section.within(at, SECTION, end)?;
        table::read(file, bytes.get_mut(..SECTION as usize).unwrap_or_default(), at)?;
        let (magic, len) = (LittleEndian::read_u64(&bytes), u64::from(LittleEndian::read_u32(&bytes[16..])));
        section.within(at + SECTION, len, end)?;
        match magic {
            0 => return Ok(bitmaps),
            BITMAP => {
                section.within(0, BITMAP_LEN, len)?;
                table::read(file, &mut bytes, at + SECTION)?;
                bitmaps.push(Bitmap {
                    sectors: LittleEndian::read_u64(&bytes),
                    id: bytes[8..].first_chunk().copied().unwrap_or_default(),
                    granularity: LittleEndian::read_u32(&bytes[24..]),
                });
            }
            // Other sections are not needed for reading.
            _ => {}
        }
        at = (at + SECTION + len).next_multiple_of(8);
    }
    field.at_most(MAX_SECTIONS + 1, MAX_SECTIONS)?;
    Ok(bitmaps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{MemFile, WriteAt};

    const AT: u64 = 4096;

    /// An image of clusters of 4 KiB with an extension of these sections: a magic and data.
    fn read(sections: &[(u64, &[u8])]) -> Result<Vec<Bitmap>> {
        read_within(sections, 2 * AT, MAGIC)
    }

    fn read_within(sections: &[(u64, &[u8])], file_len: u64, magic: u64) -> Result<Vec<Bitmap>> {
        let file = MemFile::new();
        file.set_len(AT + 4096).unwrap();
        let mut bytes = [magic.to_le_bytes().as_slice(), &[0xcc; 16]].concat();
        for (magic, data) in sections {
            bytes.extend(magic.to_le_bytes());
            bytes.extend(1u64.to_le_bytes());
            bytes.extend((data.len() as u64).to_le_bytes());
            bytes.extend(*data);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes.truncate(4096);
        file.write_all_at(&bytes, AT).unwrap();
        file.set_len(file_len).unwrap();
        let header = Header { extension_sector: AT / 512, ..Header::new(8, 8, 1, 8) };
        read_bitmaps(&file, &header)
    }

    fn bitmap(sectors: u64, granularity: u32) -> Vec<u8> {
        [&sectors.to_le_bytes()[..], &[7; 16], &granularity.to_le_bytes(), &1u32.to_le_bytes(), &[0; 8]].concat()
    }

    #[test]
    fn bitmaps_are_listed() {
        let (first, second) = (bitmap(4096, 128), bitmap(8, 8));
        let other = [1, 2, 3];
        let bitmaps = read(&[(BITMAP, &first), (5, &other), (BITMAP, &second), (0, &[])]).unwrap();
        let expected = |sectors, granularity| Bitmap { sectors, id: [7; 16], granularity };
        assert_eq!(bitmaps, [expected(4096, 128), expected(8, 8)]);
        let Value::Map(map) = bitmaps[0].to_value() else { panic!() };
        assert_eq!(map[0].1, Value::Text(Name::from("07".repeat(16))));
        assert_eq!((&map[1].1, &map[2].1), (&Value::Number(65536), &Value::Number(2 << 20)));
        assert_eq!(read(&[(0, &[])]).unwrap(), []);
    }

    #[test]
    fn damaged_extensions_are_refused() {
        let whole = bitmap(8, 8);
        let large = vec![0; 4096];
        for (sections, kind) in [
            (&[(BITMAP, &whole[..31]), (0, &[])][..], "out-of-bounds"),
            (&[(5, &large), (0, &[])], "out-of-bounds"),
            (&[(5, &large[..4096 - 24 - 24])], "out-of-bounds"),
        ] {
            assert_eq!(read(sections).unwrap_err().kind().as_str(), kind);
        }
        assert_eq!(read_within(&[], 2 * AT, MAGIC + 1).unwrap_err().kind().as_str(), "invalid-field");
        assert_eq!(read_within(&[(0, &[])], 2 * AT - 1, MAGIC).unwrap_err().kind().as_str(), "out-of-bounds");
        let header = Header { extension_sector: u64::MAX, ..Header::new(8, 8, 1, 8) };
        let error = read_bitmaps(&MemFile::from(vec![0; 100]), &header).unwrap_err();
        assert_eq!(error.kind().as_str(), "out-of-bounds");
        // More sections than any program writes. The one of zeros at the end counts.
        let of_sections = |count| {
            let mut bytes = vec![0; 512];
            bytes.extend([MAGIC, 0, 0].map(u64::to_le_bytes).concat());
            (0..count).for_each(|_| bytes.extend([5, 0, 0u64].map(u64::to_le_bytes).concat()));
            bytes.resize(33 << 10, 0);
            let header = Header { extension_sector: 1, ..Header::new(64, 8, 1, 8) };
            read_bitmaps(&MemFile::from(bytes), &header).map_err(|error| error.kind().as_str())
        };
        assert_eq!((of_sections(999), of_sections(1000)), (Ok(Vec::new()), Err("limit")));
    }
}
