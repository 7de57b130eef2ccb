//! The header of a block (section 3.1).

use lzma_rust2::{FilterConfig, FilterType, Lzma2Stream};
use zlib_rs::crc32::crc32;

use super::{ALIGNMENT, Fault};

/// The header of a block.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BlockHeader {
    /// Length of the compressed data in bytes, if stated.
    pub compressed: Option<u64>,
    /// Length of the data in bytes, if stated.
    pub uncompressed: Option<u64>,
    /// Size of the dictionary in bytes.
    pub dictionary: u32,
    /// The filter before LZMA2, with its property.
    filter: Option<(FilterType, u32)>,
}

impl BlockHeader {
    /// The length in bytes of a header that starts with `size`, which is not 0: that would be the index.
    pub fn len(size: u8) -> usize {
        (usize::from(size) + 1) * ALIGNMENT as usize
    }

    /// Parses a whole header, with its checksum.
    pub fn parse(bytes: &[u8]) -> Result<BlockHeader, Fault> {
        const FIELD: &str = "block header";
        const RESERVED: u8 = 0x3c;
        let (covered, stored) = bytes.split_last_chunk().unwrap_or((&[], &[0; 4]));
        let stored = u32::from_le_bytes(*stored);
        if crc32(0, covered) != stored {
            return Err(Fault::Mismatch { field: "CRC32 of the block header", at: covered.len() as u64, stored });
        }
        let invalid = |reason: &'static str| Fault::Invalid { field: FIELD, reason };
        let unsupported = |feature: String| Fault::Unsupported { feature, at: 0 };
        let mut fields = Fields(covered.get(1..).unwrap_or_default());
        let flags = fields.byte().ok_or_else(|| invalid("it has no flags"))?;
        if flags & RESERVED != 0 {
            return Err(Fault::Unsupported { feature: format!("block flags {flags:#04x}"), at: 1 });
        }
        let mut size = |flag: u8, least: u64| {
            if flags & flag == 0 {
                return Ok(None);
            }
            fields.number().filter(|size| *size >= least).map(Some).ok_or_else(|| invalid("a size is not a number"))
        };
        let compressed = size(0x40, 1)?;
        let uncompressed = size(0x80, 0)?;
        let mut filters = Vec::new();
        for _ in 0..=flags & 3 {
            let filter = fields.filter().ok_or_else(|| invalid("a filter is incomplete"))?;
            filters.push(filter);
        }
        if fields.0.iter().any(|byte| *byte != 0) {
            return Err(unsupported("block header with other fields".into()));
        }
        let Some(((LZMA2, &[properties]), before)) = filters.split_last().map(|(last, rest)| (*last, rest)) else {
            return Err(unsupported("block without LZMA2".into()));
        };
        let dictionary = dictionary_size(properties).ok_or_else(|| invalid("the dictionary size is reserved"))?;
        let filter = match before {
            [] => None,
            [(id, properties)] => match filter_property(*id, properties) {
                Some(filter) => Some(filter),
                None => return Err(unsupported(format!("filter {id:#x}"))),
            },
            _ => return Err(unsupported("several filters before LZMA2".into())),
        };
        Ok(BlockHeader { compressed, uncompressed, dictionary, filter })
    }

    /// A decoder of the data, with a dictionary of at most `most` bytes: no match reaches further back than the data has bytes.
    pub fn decoder(&self, most: u32) -> Result<Lzma2Stream, Fault> {
        let mut decoder = Lzma2Stream::new(self.dictionary.min(most));
        if let Some((filter_type, property)) = self.filter {
            let filter = FilterConfig { filter_type, property };
            let unsupported = |error: std::io::Error| Fault::Unsupported { feature: error.to_string(), at: 0 };
            decoder.set_filters(&[filter]).map_err(unsupported)?;
        }
        Ok(decoder)
    }
}

/// Filter ID of LZMA2 (section 5.3.1).
const LZMA2: u64 = 0x21;

/// Dictionary size in bytes from the properties of LZMA2; `None` for reserved values. 40 means 4 GiB less 1.
fn dictionary_size(bits: u8) -> Option<u32> {
    match bits {
        0..40 => Some((2 | u32::from(bits & 1)) << (bits / 2 + 11)),
        40 => Some(u32::MAX),
        _ => None,
    }
}

/// A filter before LZMA2 and its property: the distance of delta, the start offset of the others (sections 5.3.2 and 5.3.3).
fn filter_property(id: u64, properties: &[u8]) -> Option<(FilterType, u32)> {
    match (FilterType::try_from(id).ok()?, properties) {
        (FilterType::Lzma2, _) => None,
        (FilterType::Delta, [distance]) => Some((FilterType::Delta, u32::from(*distance) + 1)),
        (FilterType::Delta, _) => None,
        (filter, []) => Some((filter, 0)),
        (filter, _) => Some((filter, u32::from_le_bytes(properties.try_into().ok()?))),
    }
}

/// The rest of a header.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    /// A number of variable length (section 1.2).
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number).filter(|_| byte != 0 || shift == 0);
            }
        }
        None
    }

    /// Filter flags (section 3.1.5): the ID and the properties.
    fn filter(&mut self) -> Option<(u64, &'a [u8])> {
        let id = self.number()?;
        let len = usize::try_from(self.number()?).ok()?;
        let (properties, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some((id, properties))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dictionary_sizes() {
        assert_eq!([0, 1, 2, 22, 39].map(dictionary_size), [4096, 6144, 8192, 8 << 20, 3 << 30].map(Some));
        assert_eq!((dictionary_size(40), dictionary_size(41)), (Some(u32::MAX), None));
    }

    /// Parses a header with these flags and fields, and the checksum of that.
    fn parse(flags: u8, fields: &[u8]) -> Result<BlockHeader, Fault> {
        let mut bytes = [&[0, flags], fields].concat();
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
        bytes[0] = (bytes.len() / ALIGNMENT as usize) as u8;
        bytes.extend(crc32(0, &bytes).to_le_bytes());
        assert_eq!(BlockHeader::len(bytes[0]), bytes.len());
        BlockHeader::parse(&bytes)
    }

    #[test]
    fn fields_of_block_headers() {
        // The filter LZMA2, with a dictionary of 6 KiB.
        let plain = parse(0, &[0x21, 1, 1]).unwrap();
        assert_eq!((plain.compressed, plain.uncompressed, plain.dictionary), (None, None, 6144));
        let sized = parse(0xc0, &[5, 0, 0x21, 1, 1]).unwrap();
        assert_eq!((sized.compressed, sized.uncompressed), (Some(5), Some(0)));
        for (flags, fields, what) in [
            (0x04, &[0x21, 1, 1][..], "block flags 0x04"),
            (0x20, &[0x21, 1, 1], "block flags 0x20"),
            (0, &[0x21, 1, 1, 0, 0, 1], "other fields"),
            (0, &[0x21, 1, 41], "dictionary size is reserved"),
            (0x40, &[0, 0x21, 1, 1], "a size is not a number"),
            (1, &[0x21, 1, 1], "without LZMA2"),
        ] {
            let fault = format!("{:?}", parse(flags, fields).err());
            assert!(fault.contains(what), "{fault}");
        }
    }

    #[test]
    fn numbers_have_one_encoding() {
        let number = |bytes: &[u8]| Fields(bytes).number();
        assert_eq!(number(&[0]), Some(0));
        assert_eq!(number(&[0x80, 1]), Some(128));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), Some((1 << 63) - 1));
        for wrong in [&[][..], &[0x80], &[0x80, 0], &[0xff; 9]] {
            assert_eq!(number(wrong), None, "{wrong:?}");
        }
    }
}
