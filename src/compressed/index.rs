//! The independent parts of a compressed file, where it tells them: blocks of xz, frames of zstd, members of gzip with their lengths.

use std::io::{self, Read};
use std::sync::Arc;

use super::gzip::Gzip;
use super::input::Input;
use super::meter::{Decode, RATIO};
use super::zstd::Zstd;
use super::{Compression, gzip, xz, zstd};
use crate::error::{Error, Problem};
use crate::io::ReadAt;
use crate::limits::{LimitName, Limits, RATIO_FROM};

/// A part that is decoded on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    /// Offset and length in the compressed file in bytes.
    pub at: u64,
    pub stored: u64,
    /// Offset and length in the decompressed file in bytes.
    pub offset: u64,
    pub len: u64,
    /// The check of an xz block.
    pub check: Option<xz::Check>,
}

/// The units of a file that have data, in order and without gaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    units: Vec<Unit>,
    size: u64,
}

impl Index {
    /// Adds a unit of `len` bytes, stored in `stored` bytes at `at`. `None` if there is no memory for it within the limits, or the
    /// size overflows.
    pub fn push(&mut self, at: u64, stored: u64, len: u64, check: Option<xz::Check>, limits: &Limits) -> Option<()> {
        let most = limits.metadata / size_of::<Unit>() as u64;
        let size = self.size.checked_add(len).filter(|size| *size <= i64::MAX as u64)?;
        if len > 0 {
            if self.units.len() as u64 >= most {
                return None;
            }
            self.units.push(Unit { at, stored, offset: self.size, len, check });
        }
        self.size = size;
        Some(())
    }

    /// The index of `parts` in file order, each made with its own offsets.
    pub fn joined(parts: impl IntoIterator<Item = Index>, limits: &Limits) -> Option<Index> {
        let mut all = Index::default();
        for unit in parts.into_iter().flat_map(|part| part.units) {
            all.push(unit.at, unit.stored, unit.len, unit.check, limits)?;
        }
        Some(all)
    }

    /// Length of the decompressed file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn units(&self) -> &[Unit] {
        &self.units
    }

    /// Number of the unit with the byte at `offset`, and the offset in it; `None` at the end.
    pub fn locate(&self, offset: u64) -> Option<(usize, u64)> {
        let number = self.units.partition_point(|unit| unit.offset + unit.len <= offset);
        let unit = self.units.get(number)?;
        Some((number, offset - unit.offset))
    }
}

/// Reads the index of a file of `file_len` bytes; `None` if it has none, or one that is not valid: decoding the file tells why.
pub(super) fn read(file: &Arc<dyn ReadAt>, file_len: u64, compression: Compression, limits: &Limits) -> Option<Index> {
    match compression {
        Compression::Xz => xz::read_index(file, file_len, limits),
        Compression::Zstd => zstd::read_index(&**file, file_len, limits),
        Compression::Gzip => gzip::read_index(&**file, file_len, limits),
        Compression::Bzip2 => None,
    }
}

/// A stream of the data of one unit. The end of the data is reported when its length and its checksum have been verified.
pub(super) fn open_unit(
    file: &Arc<dyn ReadAt>,
    unit: &Unit,
    compression: Compression,
    limits: &Limits,
) -> io::Result<UnitReader> {
    let range = Range { file: file.clone(), at: unit.at, end: unit.at + unit.stored };
    let input = Input::new(compression, Box::new(range), unit.at);
    let decoder: Box<dyn Decode> = match unit.check {
        Some(check) => Box::new(xz::BlockReader::open(input, check, unit, limits)?),
        None if compression == Compression::Gzip => Box::new(Gzip::new(input)),
        None => Box::new(Zstd::new(input, limits)),
    };
    Ok(UnitReader { decoder, unit: *unit, done: 0 })
}

pub(super) struct UnitReader {
    decoder: Box<dyn Decode>,
    unit: Unit,
    done: u64,
}

impl Read for UnitReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = if buf.is_empty() { 0 } else { self.decoder.decode(buf)? };
        self.done += len as u64;
        let ended = len == 0 && !buf.is_empty();
        if self.done > self.unit.len || ended && self.done < self.unit.len {
            let problem = Problem::Conflict { value: self.unit.len, finding: "the data has another length" };
            let input = self.decoder.input();
            return Err(input.corrupt("uncompressed size in the index", self.unit.at, problem));
        }
        Ok(len)
    }
}

/// A range of a file as a stream.
pub(super) struct Range<F> {
    file: F,
    at: u64,
    end: u64,
}

impl<F: ReadAt> Range<F> {
    pub fn new(file: F, at: u64, end: u64) -> Self {
        Range { file, at, end }
    }
}

impl<F: ReadAt> Read for Range<F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = (self.end - self.at).min(buf.len() as u64) as usize;
        let n = self.file.read_at(buf.get_mut(..len).unwrap_or_default(), self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// Checks the size of the decompressed file against the limits.
pub(super) fn check_size(size: u64, file_len: u64, compression: Compression, limits: &Limits) -> Result<(), Error> {
    let ratio = if size > RATIO_FROM { size / file_len.max(1) } else { 0 };
    for (name, field, value, limit) in [
        (LimitName::Decompressed, "decompressed size", size, limits.decompressed),
        (LimitName::DecompressionRatio, RATIO, ratio, limits.decompression_ratio),
    ] {
        if value > limit {
            let (format, field, at) = (compression.name(), field.into(), Some(file_len));
            return Err(Error::Limit { name: Some(name), format, field, at, value, limit });
        }
    }
    Ok(())
}
