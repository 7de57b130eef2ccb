//! A physical volume: its label and header, and the metadata area with the text that describes the volume group (libvslvm, Logical
//! Volume Manager (LVM) format, "Physical volume label" and "Metadata area").

use std::ops::Range;

use super::super::volume::{Fields, Found, Volume, kept};
use zlib_rs::crc32::crc32;

const SECTOR: u64 = 512;
const AREA_MAGIC: &[u8; 16] = b" LVM2 x[5A%r0N*>";

/// Bytes of a text that are read at most: enough for a thousand volumes. By default an area has 1 MiB, and room for two texts.
const MOST_TEXT: u64 = 4 << 20;

/// Data and metadata areas of a physical volume.
const MOST_AREAS: usize = 8;

/// A physical volume of LVM.
#[derive(Debug)]
pub(in super::super) struct Physical {
    /// Its UUID as the text has it.
    pub id: String,
    /// Length in bytes.
    pub len: u64,
    /// Offset of the first extent.
    pub data: u64,
    /// The metadata areas, in offsets.
    pub areas: Vec<Range<u64>>,
    /// What the metadata areas say; `None` if none has a text.
    pub text: Option<Vec<u8>>,
}

/// Opens the physical volume, if there is one: its label is in one of the first four sectors.
pub(in super::super) fn open(volume: &Volume) -> Found<Option<Physical>> {
    let mut found = None;
    for sector in 0..4 {
        match volume.peek::<512>(sector * SECTOR)? {
            Some(label) if label.starts_with(b"LABELONE") => match found {
                None => found = Some((sector, label)),
                Some(_) => return kept("it has several labels of LVM"),
            },
            _ => {}
        }
    }
    found.map(|(sector, label)| Physical::parse(volume, sector, &label)).transpose()
}

/// CRC-32 without the final inversion, from a start value of LVM's.
fn checksum(bytes: &[u8]) -> u32 {
    !crc32(!0xf597_a6cf, bytes)
}

impl Physical {
    fn parse(volume: &Volume, sector: u64, label: &[u8; 512]) -> Found<Physical> {
        let fields = Fields(label);
        let header = fields.le32(20)? as usize;
        let covered = label.get(20..).unwrap_or_default();
        if fields.bytes(24)? != *b"LVM2 001" || fields.le64(8)? != sector || fields.le32(16)? != checksum(covered) {
            return kept("the label of LVM is not valid");
        }
        let header = fields.from(header);
        let id = dashed(&header.bytes(0)?);
        // Two lists of offsets and lengths, each up to an offset of 0: of data, whose length is the rest, and of metadata.
        let mut at = 40;
        let mut list = || {
            let mut list = Vec::new();
            while list.len() <= MOST_AREAS {
                let (offset, len) = (header.le64(at)?, header.le64(at + 8)?);
                at += 16;
                match offset {
                    0 => return Ok(list),
                    _ => list.push((offset, len)),
                }
            }
            kept("the label of LVM is not valid")
        };
        let (data, areas) = (list()?, list()?);
        let &[(data, _)] = data.as_slice() else { return kept("it has several data areas of LVM") };
        let mut physical = Physical { id, len: header.le64(32)?, data, areas: Vec::new(), text: None };
        for (offset, len) in areas {
            let end = offset.checked_add(len).filter(|end| *end <= volume.len() && len >= 2 * SECTOR);
            let Some(end) = end else { return kept("a metadata area of LVM is not in the volume") };
            physical.areas.push(offset..end);
            match (read_area(volume, offset..end)?, &physical.text) {
                (Some(text), None) => physical.text = Some(text),
                (Some(text), Some(other)) if text != *other => return kept("its metadata areas of LVM differ"),
                _ => {}
            }
        }
        Ok(physical)
    }
}

/// Reads the text of the metadata area; `None` if there is none, or if it is not kept up to date.
fn read_area(volume: &Volume, area: Range<u64>) -> Found<Option<Vec<u8>>> {
    const IGNORED: u32 = 1;
    let header = volume.read(area.start, SECTOR as usize)?;
    let fields = Fields(&header);
    let len = area.end - area.start;
    let is_valid = fields.le32(0)? == checksum(header.get(4..).unwrap_or_default())
        && fields.bytes(4)? == *AREA_MAGIC
        && fields.le32(20)? == 1
        && (fields.le64(24)?, fields.le64(32)?) == (area.start, len);
    if !is_valid {
        return kept("the header of a metadata area of LVM is not valid");
    }
    // The text that counts, and one that was about to.
    let (text, next) = (fields.from(40), fields.from(64));
    if next.le64(0)? != 0 {
        return kept("a change of the LVM metadata was not completed");
    }
    let (offset, text_len, flags) = (text.le64(0)?, text.le64(8)?, text.le32(20)?);
    if offset == 0 || flags & IGNORED != 0 {
        return Ok(None);
    }
    if flags != 0 || !(SECTOR..len).contains(&offset) || text_len > (len - SECTOR).min(MOST_TEXT) {
        return kept("the text of the LVM metadata is not in its area");
    }
    // It goes on after the header.
    let first = text_len.min(len - offset);
    let mut bytes = volume.read(area.start + offset, first as usize)?;
    bytes.extend(volume.read(area.start + SECTOR, (text_len - first) as usize)?);
    if checksum(&bytes) != text.le32(16)? {
        return kept("the checksum of the LVM metadata is wrong");
    }
    Ok(Some(bytes))
}

/// A UUID of LVM in its usual form: groups of 6, 4, 4, 4, 4, 4 and 6 characters.
fn dashed(id: &[u8; 32]) -> String {
    let char = |(at, byte): (usize, &u8)| {
        let dash = ((6..30).contains(&at) && (at - 6).is_multiple_of(4)).then_some('-');
        dash.into_iter().chain([char::from(*byte)])
    };
    id.iter().enumerate().flat_map(char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_written_as_in_the_text() {
        assert_eq!(dashed(b"USmnDsh5Kijp9WU5zTMI9CRLI3PTWvd8"), "USmnDs-h5Ki-jp9W-U5zT-MI9C-RLI3-PTWvd8");
    }

    /// Of the header of an area that vgcreate made.
    #[test]
    fn checksum_of_lvm() {
        let mut header = vec![0; 512];
        header[4..20].copy_from_slice(AREA_MAGIC);
        (header[20], header[25], header[33], header[34]) = (1, 0x10, 0xf0, 0x0f);
        header[41] = 0x18;
        header[48..50].copy_from_slice(&[0x79, 0x04]);
        header[56..60].copy_from_slice(&[0x3c, 0xad, 0xed, 0x3e]);
        assert_eq!(checksum(&header[4..]), 0x83b2_ed92);
    }
}
