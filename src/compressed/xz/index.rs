//! The index of a stream (section 4), and from those of all streams the blocks of a file.

use std::io;
use std::sync::Arc;

use super::block::read_padding;
use super::{Input, read_number};
use crate::codec::xz::{ALIGNMENT, STREAM_HEADER, stream_header};
use crate::compressed::Compression;
use crate::compressed::index::{Index, Range, Unit};
use crate::error::Problem;
use crate::io::ReadAt;
use crate::limits::Limits;

/// Reads the records of an index in order.
pub(super) struct IndexReader {
    start: u64,
    crc: u32,
    count: u64,
    left: u64,
}

impl IndexReader {
    /// Reads the start of the index at the current offset.
    pub fn new(input: &mut Input) -> io::Result<IndexReader> {
        let start = input.at();
        let indicator: [u8; 1] = input.array()?;
        if indicator != [0] {
            let problem = Problem::Rule { value: indicator[0].into(), rule: "must be 0" };
            return Err(input.corrupt("index indicator", start, problem));
        }
        let mut crc = zlib_rs::crc32::crc32(0, &indicator);
        let count = read_number(input, &mut crc)?;
        Ok(IndexReader { start, crc, count, left: count })
    }

    /// The stated number of records.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The next record: the unpadded size and the uncompressed size of a block; `None` at the end, with padding and checksum verified.
    pub fn next_record(&mut self, input: &mut Input) -> io::Result<Option<(u64, u64)>> {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                let unpadded = read_number(input, &mut self.crc)?;
                let uncompressed = read_number(input, &mut self.crc)?;
                Ok(Some((unpadded, uncompressed)))
            }
            None => {
                let len = input.at() - self.start;
                read_padding(input, len)?;
                // The CRC covers the padding, whose bytes are zeros.
                let padding = [0; 3];
                let padding_len = (input.at() - self.start - len) as usize;
                let crc = zlib_rs::crc32::crc32(self.crc, padding.get(..padding_len).unwrap_or_default());
                let at = input.at();
                let stored = u32::from_le_bytes(input.array()?);
                if stored != crc {
                    return Err(input.mismatch("CRC32 of the index", at, stored.into()));
                }
                Ok(None)
            }
        }
    }
}

/// Streams of a file, at most: each one costs some reads.
const MAX_STREAMS: usize = 1 << 16;

/// Finds the blocks of a file of `file_len` bytes by the indexes of its streams, from the last one to the first (section 2.1.2.2).
/// `None` for a file that is not valid, or whose index exceeds the limits.
pub(in crate::compressed) fn read(file: &Arc<dyn ReadAt>, file_len: u64, limits: &Limits) -> Option<Index> {
    let mut streams = Vec::new();
    let mut end = file_len;
    let mut left = limits.metadata;
    while end > 0 {
        end = before_padding(&**file, end)?;
        let (stream, start) = read_stream(file, end, left, limits)?;
        left = left.checked_sub(size_of_val(stream.units()) as u64)?;
        streams.push(stream);
        end = start;
        if streams.len() > MAX_STREAMS {
            return None;
        }
    }
    Index::joined(streams.into_iter().rev(), limits)
}

/// The end of the stream before the padding that ends at `end`.
fn before_padding(file: &dyn ReadAt, mut end: u64) -> Option<u64> {
    let mut buf = [0; 4096];
    loop {
        let len = end.min(buf.len() as u64);
        let bytes = buf.get_mut(..len as usize)?;
        file.read_exact_at(bytes, end - len).ok()?;
        let data = bytes.iter().rposition(|byte| *byte != 0);
        match data {
            None if end == len => return None,
            None => end -= len,
            // The footer ends with its magic.
            Some(last) => return Some(end - len + last as u64 + 1),
        }
    }
}

/// The blocks of the stream that ends at `end`, and where it starts.
fn read_stream(file: &Arc<dyn ReadAt>, end: u64, memory: u64, limits: &Limits) -> Option<(Index, u64)> {
    let array = |at: u64| {
        let mut bytes = [0; STREAM_HEADER as usize];
        file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
    };
    let input = |at: u64, end: u64| Input::new(Compression::Xz, Box::new(Range::new(file.clone(), at, end)), at);
    let index_end = end.checked_sub(STREAM_HEADER)?;
    let footer = array(index_end)?;
    let flags = [*footer.get(8)?, *footer.get(9)?];
    let index_len = super::stream_footer(&footer, flags, &input(index_end, end), index_end).ok()?;
    let index_start = index_end.checked_sub(index_len)?;
    let mut index = input(index_start, index_end);
    let mut reader = IndexReader::new(&mut index).ok()?;
    // A record has at least two bytes.
    if reader.count() > index_len / 2 || reader.count() > memory / size_of::<Unit>() as u64 {
        return None;
    }
    let mut records = Vec::new();
    let mut blocks_len = 0_u64;
    while let Some((unpadded, uncompressed)) = reader.next_record(&mut index).ok()? {
        let stored = unpadded.checked_next_multiple_of(ALIGNMENT)?;
        blocks_len = blocks_len.checked_add(stored)?;
        records.push((stored, uncompressed));
    }
    if index.at() != index_end {
        return None;
    }
    let mut at = index_start.checked_sub(blocks_len)?;
    let start = at.checked_sub(STREAM_HEADER)?;
    let (header_flags, check) = stream_header(&array(start)?).ok()?;
    if header_flags != flags {
        return None;
    }
    let mut stream = Index::default();
    for (stored, uncompressed) in records {
        stream.push(at, stored, uncompressed, Some(check), limits)?;
        at += stored;
    }
    Some((stream, start))
}
