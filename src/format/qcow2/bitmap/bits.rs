//! The bits of a bitmap (qcow2 specification, "Bitmap table" and "Bitmap data").

use std::io;
use std::sync::Arc;

use super::Bitmap;
use crate::error::{Problem, Result};
use crate::format::qcow2::FIELDS;
use crate::format::qcow2::entry::OFFSET_MASK;
use crate::format::qcow2::header::Header;
use crate::format::shared::table;
use crate::io::ReadAt;
use crate::limits::Budget;
use crate::zero::is_zero;

/// A cluster of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::format::qcow2) enum Part {
    /// All bits have this value.
    Same(bool),
    /// Host offset.
    At(u64),
}

impl Part {
    /// Parses an entry of the bitmap table.
    pub fn parse(entry: u64, cluster_size: u64) -> Result<Part, Problem> {
        let offset = entry & OFFSET_MASK;
        // Without data, bit 0 is the value of all bits.
        let reserved = entry & !OFFSET_MASK & !u64::from(offset == 0);
        if reserved != 0 {
            return Err(Problem::Reserved { value: entry, bits: reserved });
        }
        if !offset.is_multiple_of(cluster_size) {
            return Err(Problem::Misaligned { value: entry, alignment: cluster_size });
        }
        Ok(if offset == 0 { Part::Same(entry == 1) } else { Part::At(offset) })
    }

    /// How this cluster of bits is stored without data; `None` if it needs data.
    pub fn of(bits: &[u8]) -> Option<Part> {
        match bits {
            bits if is_zero(bits) => Some(Part::Same(false)),
            bits if bits.iter().all(|byte| *byte == 0xff) => Some(Part::Same(true)),
            _ => None,
        }
    }

    /// Encodes an entry of the bitmap table.
    pub fn encode(self) -> u64 {
        match self {
            Part::Same(value) => value.into(),
            Part::At(offset) => offset,
        }
    }
}

/// The bits of a bitmap as a file.
pub(in crate::format::qcow2) struct Bits {
    file: Arc<dyn ReadAt>,
    cluster_size: u64,
    /// Valid entries.
    table: Vec<u64>,
    /// In bytes.
    len: u64,
}

impl Bits {
    pub fn open(file: &Arc<dyn ReadAt>, header: &Header, bitmap: &Bitmap, budget: &Budget) -> Result<Bits> {
        let cluster_size = header.cluster_size();
        let len = header.size.div_ceil(bitmap.granularity).div_ceil(8);
        let clusters = len.div_ceil(cluster_size);
        FIELDS.at("bitmap_table_size", bitmap.at + 8).within(0, clusters, bitmap.table_size.into())?;
        let field = FIELDS.at("bitmap_table_offset", bitmap.at);
        field.aligned(bitmap.table_offset, cluster_size)?;
        let table = table::read_table_u64_be(&**file, bitmap.table_offset, clusters, field, budget)?;
        let file_len = table::length(&**file)?;
        for (entry, at) in table.iter().zip((0..len).step_by(cluster_size as usize)) {
            let field = FIELDS.at("bitmap table entry", bitmap.table_offset + at / cluster_size * 8);
            match Part::parse(*entry, cluster_size) {
                Ok(Part::Same(_)) => {}
                Ok(Part::At(offset)) => field.within(offset, cluster_size.min(len - at), file_len)?,
                Err(problem) => return Err(field.fault(problem)),
            }
        }
        Ok(Bits { file: file.clone(), cluster_size, table, len })
    }
}

impl ReadAt for Bits {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some(entry) = self.table.get((offset / self.cluster_size) as usize).filter(|_| offset < self.len) else {
            return Ok(0);
        };
        let within = offset % self.cluster_size;
        let most = (self.cluster_size - within).min(self.len - offset);
        let len = usize::try_from(most).map_or(buf.len(), |most| most.min(buf.len()));
        let (buf, _) = buf.split_at_mut(len);
        match Part::parse(*entry, self.cluster_size) {
            Ok(Part::Same(value)) => buf.fill(if value { 0xff } else { 0 }),
            Ok(Part::At(host)) => self.file.read_exact_at(buf, host + within)?,
            Err(_) => return Err(io::ErrorKind::InvalidData.into()),
        }
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_the_bitmap_table() {
        for (entry, part) in [(0, Part::Same(false)), (1, Part::Same(true)), (0x3000, Part::At(0x3000))] {
            assert_eq!((Part::parse(entry, 4096), part.encode()), (Ok(part), entry));
        }
        assert_eq!(Part::parse(0x3200, 4096), Err(Problem::Misaligned { value: 0x3200, alignment: 4096 }));
        assert_eq!(Part::parse(0x3001, 4096), Err(Problem::Reserved { value: 0x3001, bits: 1 }));
    }

    #[test]
    fn equal_bits_need_no_data() {
        assert_eq!((Part::of(&[0; 512]), Part::of(&[0xff; 512])), (Some(Part::Same(false)), Some(Part::Same(true))));
        let mut bits = [0xff; 512];
        bits[511] = 0xfe;
        assert_eq!(Part::of(&bits), None);
    }
}
