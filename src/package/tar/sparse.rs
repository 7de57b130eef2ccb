//! Sparse members: those of old GNU tar, and the three versions of PAX.

use std::ops::Range;

use super::header::{self, Header, encode_gnu, encode_number, number, put, seal};
use super::pax::{self, Pax, decimal};
use super::{Archive, BLOCK, FIELDS, FORMAT_NAME};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table;
use crate::io::Piece;

/// The map: offset in the file and number of bytes of each run of data.
struct Map {
    entries: Vec<(u64, u64)>,
    /// Length of the file in bytes.
    size: u64,
    /// Offset of the header in the archive.
    at: u64,
}

/// Length of an entry: two numbers of 12 bytes.
const ENTRY: usize = 24;
/// Offset of the entries in a header, and their number there and in a block that follows it.
const FIRST: usize = 386;
const IN_HEADER: usize = 4;
const IN_BLOCK: usize = 21;
/// Memory for an entry in bytes.
const MEMORY: u64 = 32;

impl Archive<'_> {
    /// A member of type `S`: 4 entries in the header, more in blocks of 21 after it, which the size does not count.
    pub(super) fn old_sparse(&mut self, header: &Header, stored: u64) -> Result<(u64, Vec<Piece>)> {
        let at = header.at;
        let size = number(header.field(483..495)).ok_or_else(|| header::invalid("real size", at + 483))?;
        let mut map = Map { entries: Vec::new(), size, at };
        let mut more = header.block[482] != 0;
        self.add_entries(&mut map, header.field(386..482))?;
        while more {
            let mut block = [0; BLOCK as usize];
            FIELDS.at("sparse map", at).within(self.at, BLOCK, self.len)?;
            table::read(self.file, &mut block, self.at)?;
            self.at += BLOCK;
            self.add_entries(&mut map, block.get(..21 * ENTRY).unwrap_or_default())?;
            more = block[21 * ENTRY] != 0;
        }
        self.place(header, map, stored)
    }

    /// Adds entries up to the first empty one.
    fn add_entries(&self, map: &mut Map, fields: &[u8]) -> Result<()> {
        for entry in fields.as_chunks::<ENTRY>().0 {
            let (offset, len) = entry.split_at(ENTRY / 2);
            if entry.iter().all(|byte| *byte == 0) {
                break;
            }
            let invalid = || header::invalid("sparse map", map.at);
            let entry = (number(offset).ok_or_else(invalid)?, number(len).ok_or_else(invalid)?);
            self.budget.take(MEMORY, FORMAT_NAME, "sparse map", map.at)?;
            map.entries.push(entry);
        }
        Ok(())
    }

    /// A file with `GNU.sparse` records: version 1.0 has the map before the data, the others have it in the records.
    pub(super) fn pax_sparse(&mut self, pax: &Pax, header: &Header, stored: u64) -> Result<(u64, Vec<Piece>)> {
        let at = header.at;
        let missing = || pax::invalid("size of the sparse file", at);
        let (version, minor) = (pax.sparse_number("major", at)?.unwrap_or(0), pax.sparse_number("minor", at)?);
        if version == 1 && minor == Some(0) {
            let size = pax.sparse_number("realsize", at)?.ok_or_else(missing)?;
            let before = self.at;
            let map = Map { entries: Vec::new(), size, at };
            let map = self.map_in_data(map, stored)?;
            return self.place(header, map, stored - (self.at - before));
        }
        if version != 0 {
            let feature = format!("sparse files of version {version}.{}", minor.unwrap_or(0)).into();
            return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(at) });
        }
        let size = pax.sparse_number("size", at)?.or(pax.sparse_number("realsize", at)?).ok_or_else(missing)?;
        let numbers = match pax.sparse("map") {
            Some(map) => map
                .split(|byte| *byte == b',')
                .map(|number| decimal(number).ok_or_else(|| pax::invalid("sparse map", at)))
                .collect::<Result<Vec<_>>>()?,
            None => pax.sparse_list(at)?,
        };
        let (pairs, rest) = numbers.as_chunks::<2>();
        let count = pax.sparse_number("numblocks", at)?.unwrap_or(pairs.len() as u64);
        if !rest.is_empty() || count != pairs.len() as u64 {
            let finding = "the sparse map has another number of entries";
            return Err(FIELDS.at("GNU.sparse.numblocks", at).fault(Problem::Conflict { value: count, finding }));
        }
        self.budget.take(MEMORY.saturating_mul(count), FORMAT_NAME, "sparse map", at)?;
        let entries = pairs.iter().map(|[offset, len]| (*offset, *len)).collect();
        self.place(header, Map { entries, size, at }, stored)
    }

    /// Reads a map at the current offset: decimal numbers, each ended by a newline, first their count, padded to a block. Moves after
    /// it.
    fn map_in_data(&mut self, mut map: Map, stored: u64) -> Result<Map> {
        let field = FIELDS.at("sparse map", map.at);
        field.within(self.at, stored, self.len)?;
        let end = self.at + stored;
        let mut lines = Lines { block: Vec::new(), text: Vec::new() };
        let mut next = |archive: &mut Self| loop {
            if let Some(line) = lines.next() {
                return decimal(&line).ok_or_else(|| pax::invalid("sparse map", map.at));
            }
            if lines.text.len() > BLOCK as usize {
                return Err(pax::invalid("sparse map", map.at));
            }
            field.within(archive.at, BLOCK, end)?;
            let mut block = vec![0; BLOCK as usize];
            table::read(archive.file, &mut block, archive.at)?;
            archive.at += BLOCK;
            block.reverse();
            lines.block = block;
        };
        let count = next(self)?;
        // Each entry has at least four bytes.
        field.at_most(count, stored / 4)?;
        self.budget.take(MEMORY.saturating_mul(count), FORMAT_NAME, "sparse map", map.at)?;
        for _ in 0..count {
            map.entries.push((next(self)?, next(self)?));
        }
        Ok(map)
    }

    /// Moves after the data of the member, and finds the offset of each run in the archive.
    fn place(&mut self, header: &Header, map: Map, stored: u64) -> Result<(u64, Vec<Piece>)> {
        let field = FIELDS.at("sparse map", map.at);
        let (mut end, mut offset, mut pieces) = (0, self.at, Vec::new());
        self.skip(header, stored)?;
        field.fits_u63(0, map.size)?;
        let mut left = stored;
        for (start, len) in map.entries {
            field.within(start, len, map.size)?;
            if start < end {
                return Err(field.fault(Problem::Overlap { offset: start, with: "the previous entry" }));
            }
            left = left.checked_sub(len).ok_or_else(|| {
                field.fault(Problem::OutOfBounds { offset, len, file_len: offset.saturating_add(left) })
            })?;
            if len > 0 {
                pieces.push(Piece { start, len, offset });
            }
            end = start + len;
            offset += len;
        }
        if left != 0 {
            return Err(field.fault(Problem::Conflict { value: stored, finding: "the sparse map has fewer bytes" }));
        }
        Ok((map.size, pieces))
    }
}

/// Splits blocks into lines.
struct Lines {
    /// The rest of the block, reversed.
    block: Vec<u8>,
    /// The beginning of a line.
    text: Vec<u8>,
}

impl Lines {
    fn next(&mut self) -> Option<Vec<u8>> {
        while let Some(byte) = self.block.pop() {
            if byte == b'\n' {
                return Some(std::mem::take(&mut self.text));
            }
            self.text.push(byte);
        }
        None
    }
}

/// The headers of a file of `size` bytes as old GNU tar writes it: sparse, if `runs` are not the whole of it. Only they are stored, one after the other.
/// They are in ascending order, are not empty, and do not touch. `name` has at most 100 bytes.
pub(crate) fn encode_file(name: &str, size: u64, runs: &[Range<u64>], time: u64) -> Vec<u8> {
    let stored = runs.iter().map(|run| run.end - run.start).sum();
    if stored == size {
        return seal(encode_gnu(name, size, time, b'0')).to_vec();
    }
    let mut entries: Vec<_> = runs.iter().map(|run| (run.start, run.end - run.start)).collect();
    // A hole at the end is in no other field.
    if runs.last().is_none_or(|last| last.end < size) {
        entries.push((size, 0));
    }
    let (first, rest) = entries.split_at(entries.len().min(IN_HEADER));
    let mut block = encode_gnu(name, stored, time, b'S');
    put(&mut block, FIRST, &encode_entries(first));
    put(&mut block, 482, &[u8::from(!rest.is_empty())]);
    put(&mut block, 483, &encode_number(size));
    let mut bytes = seal(block).to_vec();
    let mut blocks = rest.chunks(IN_BLOCK).peekable();
    while let Some(entries) = blocks.next() {
        let mut block = [0; BLOCK as usize];
        put(&mut block, 0, &encode_entries(entries));
        put(&mut block, IN_BLOCK * ENTRY, &[u8::from(blocks.peek().is_some())]);
        bytes.extend(block);
    }
    bytes
}

fn encode_entries(entries: &[(u64, u64)]) -> Vec<u8> {
    entries.iter().flat_map(|(start, len)| [encode_number(*start), encode_number(*len)].concat()).collect()
}
