//! Generates sparse extents and records the offsets of their structures.

use std::sync::Arc;

use crate::codec::{Codec, Encoder, Encoding};
use crate::driver::OpenContext;
use crate::format::vmdk::SECTOR;
use crate::format::vmdk::cowd::{self, CowdHeader};
use crate::format::vmdk::grains::Framing;
use crate::format::vmdk::header::{Directory, Flags, Header};
use crate::format::vmdk::marker::{self, Marker};
use crate::info::FileReference;
use crate::io::{MemFile, ReadAt};
use crate::limits::{Budget, Limits};

/// The content and layout of an extent.
#[derive(Clone, Debug)]
pub(in crate::format::vmdk) struct Sparse {
    /// Size of the disk in sectors.
    pub capacity: u64,
    /// Sectors in a grain.
    pub grain: u64,
    pub entries: u32,
    /// One for each grain.
    pub grains: Vec<Content>,
    /// Framing and codec of compressed grains.
    pub framing: Option<(Framing, Codec)>,
    /// Whether the last grain is truncated at the end of the disk.
    pub short: bool,
    pub redundant: bool,
    /// For a stream with a footer, the zero bytes after its end.
    pub footer: Option<usize>,
    pub order: Order,
    /// An embedded descriptor, in one sector.
    pub descriptor: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::format::vmdk) enum Content {
    None,
    Zero,
    /// Data derived from this seed.
    Data(u8),
}

/// The order of the grains in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::format::vmdk) enum Order {
    Ascending,
    Descending,
    /// Grains with an even index, then those with an odd index.
    Interleaved,
}

/// A generated extent with the offsets of its structures.
pub(in crate::format::vmdk) struct Built {
    pub file: Vec<u8>,
    /// The table entry of each grain and the length of its payload.
    pub places: Vec<(u32, usize)>,
    /// File offsets of the grain directory and the redundant one.
    pub directories: [usize; 2],
}

impl Sparse {
    /// An extent of allocated grains of 4 KiB, after tables of 4 entries.
    pub fn plain(grains: u64) -> Sparse {
        Sparse {
            capacity: grains * 8,
            grain: 8,
            entries: 4,
            grains: (0..grains).map(|index| Content::Data(index as u8)).collect(),
            framing: None,
            short: false,
            redundant: true,
            footer: None,
            order: Order::Ascending,
            descriptor: None,
        }
    }

    /// A `streamOptimized` extent.
    pub fn stream(grains: u64) -> Sparse {
        Sparse {
            framing: Some((Framing::Marked, Codec::Zlib)),
            footer: Some(0),
            redundant: false,
            ..Sparse::plain(grains)
        }
    }

    /// Returns the guest data.
    pub fn guest(&self) -> Vec<u8> {
        let mut guest: Vec<u8> = (0..self.grains.len()).flat_map(|index| self.grain_bytes(index)).collect();
        guest.truncate((self.capacity * SECTOR) as usize);
        guest
    }

    fn grain_bytes(&self, index: usize) -> Vec<u8> {
        let len = (self.grain * SECTOR) as usize;
        match self.grains[index] {
            Content::None | Content::Zero => vec![0; len],
            // The data depends on the sector number.
            Content::Data(seed) => (0..len)
                .map(|at| {
                    let sector = index as u64 * self.grain + at as u64 / SECTOR;
                    seed ^ 0xa5 ^ (sector >> (at % 4 * 8)) as u8 ^ (at / 7) as u8
                })
                .collect(),
        }
    }

    /// Returns the grain as stored, with marker and padding, and the length of its payload.
    fn stored(&self, index: usize) -> (Vec<u8>, usize) {
        let mut bytes = self.grain_bytes(index);
        if self.short && index + 1 == self.grains.len() {
            bytes.truncate((self.capacity * SECTOR) as usize - index * (self.grain * SECTOR) as usize);
        }
        let Some((framing, codec)) = self.framing else { return (bytes.clone(), bytes.len()) };
        let payload = Encoder::new(&Encoding::new(codec)).unwrap().encode(&bytes, usize::MAX).unwrap().to_vec();
        let mut stored = match framing {
            Framing::Marked => marker::grain_header(index as u64 * self.grain, payload.len() as u32).to_vec(),
            Framing::Bare => Vec::new(),
        };
        stored.extend(&payload);
        stored.resize(stored.len().next_multiple_of(512).max(Marker::LEN), 0);
        (stored, payload.len())
    }

    pub fn header(&self) -> Header {
        let mut flags = Flags::NEWLINE_TEST;
        flags.set(Flags::REDUNDANT, self.redundant);
        flags.set(Flags::ZEROED_GRAIN, self.grains.contains(&Content::Zero));
        flags.set(Flags::COMPRESSED, self.framing.is_some());
        flags.set(Flags::MARKERS, matches!(self.framing, Some((Framing::Marked, _))));
        Header {
            version: if self.framing.is_some() { 3 } else { 1 },
            flags,
            capacity: self.capacity,
            grain_size: self.grain,
            descriptor: self.descriptor.as_ref().map(|_| SECTOR..2 * SECTOR),
            entries_per_table: self.entries,
            redundant_directory: self.redundant.then_some(Directory::AtEnd),
            directory: Directory::AtEnd,
            overhead: 0,
            unclean: false,
        }
    }

    fn order(&self) -> Vec<usize> {
        let all = 0..self.grains.len();
        match self.order {
            Order::Ascending => all.collect(),
            Order::Descending => all.rev().collect(),
            Order::Interleaved => all.clone().step_by(2).chain(all.skip(1).step_by(2)).collect(),
        }
    }

    pub fn build(&self) -> Built {
        assert_eq!(self.grains.len() as u64, self.capacity.div_ceil(self.grain));
        let mut header = self.header();
        let mut file = header.encode().to_vec();
        file.extend(self.descriptor.iter().flat_map(|text| text.as_bytes()));
        // The first grain must not be in sector 1, the entry of a zeroed grain.
        file.resize(1024, 0);
        match self.footer {
            Some(padding) => self.build_stream(header, file, padding),
            None => {
                let mut directories = [0; 2];
                // The space is reserved first; tables are written after the grains.
                let copies = if self.redundant { 1..=2 } else { 1..=1 };
                for copy in copies.clone().rev() {
                    directories[copy - 1] = file.len();
                    self.put_tables(&mut file, &vec![2; self.grains.len()]);
                }
                let overhead = file.len() as u64 / SECTOR;
                let mut entries: Vec<_> = self.grains.iter().map(|grain| u32::from(*grain == Content::Zero)).collect();
                let mut lens = vec![0; self.grains.len()];
                for index in self.order() {
                    if let Content::Data(_) = self.grains[index] {
                        file.resize(file.len().next_multiple_of(512), 0);
                        entries[index] = (file.len() / 512) as u32;
                        let (stored, len) = self.stored(index);
                        file.extend(stored);
                        lens[index] = len;
                    }
                }
                for copy in copies {
                    let mut tables = file[..directories[copy - 1]].to_vec();
                    self.put_tables(&mut tables, &entries);
                    file[..tables.len()].copy_from_slice(&tables);
                }
                header.directory = Directory::At(directories[0] as u64 / SECTOR);
                header.redundant_directory = self.redundant.then_some(Directory::At(directories[1] as u64 / SECTOR));
                header.overhead = overhead;
                file[..512].copy_from_slice(&header.encode());
                Built { file, places: entries.into_iter().zip(lens).collect(), directories }
            }
        }
    }

    /// Appends a grain directory and the tables with allocated grains.
    fn put_tables(&self, file: &mut Vec<u8>, entries: &[u32]) {
        let tables: Vec<_> = entries.chunks(self.entries as usize).collect();
        let directory = file.len();
        file.resize(directory + (tables.len() * 4).next_multiple_of(512), 0);
        for (number, table) in tables.iter().enumerate() {
            let there = (0..table.len()).any(|at| self.grains[number * self.entries as usize + at] != Content::None);
            let sector = if there { file.len() as u32 / 512 } else { 0 };
            file[directory + number * 4..][..4].copy_from_slice(&sector.to_le_bytes());
            if there {
                file.extend(table.iter().flat_map(|entry| entry.to_le_bytes()));
                file.resize(file.len().next_multiple_of(512), 0);
            }
        }
    }

    /// Builds a stream: grains, tables, the directory, the footer and the end-of-stream marker.
    fn build_stream(&self, mut header: Header, mut file: Vec<u8>, padding: usize) -> Built {
        header.overhead = file.len() as u64 / 512;
        file[..512].copy_from_slice(&header.encode());
        let mut places = vec![(0, 0); self.grains.len()];
        let mut directory = Vec::new();
        for index in self.order() {
            match self.grains[index] {
                Content::None => {}
                Content::Zero => places[index] = (1, 0),
                Content::Data(_) => {
                    let sector = (file.len() / 512) as u32;
                    let (stored, len) = self.stored(index);
                    file.extend(stored);
                    places[index] = (sector, len);
                }
            }
        }
        for table in places.chunks(self.entries as usize) {
            if table.iter().all(|place| place.0 == 0) {
                directory.push(0);
                continue;
            }
            file.extend(marker::metadata_marker(marker::GRAIN_TABLE, (table.len() as u64 * 4).div_ceil(512)));
            directory.push(file.len() as u32 / 512);
            file.extend(table.iter().flat_map(|place| place.0.to_le_bytes()));
            file.resize(file.len().next_multiple_of(512), 0);
        }
        file.extend(marker::metadata_marker(marker::GRAIN_DIRECTORY, (directory.len() as u64 * 4).div_ceil(512)));
        let directory_at = file.len();
        file.extend(directory.iter().flat_map(|entry| entry.to_le_bytes()));
        file.resize(file.len().next_multiple_of(512), 0);
        file.extend(marker::metadata_marker(marker::FOOTER, 1));
        file.extend(Header { directory: Directory::At(directory_at as u64 / 512), ..header }.encode());
        file.extend(marker::metadata_marker(marker::END_OF_STREAM, 0));
        file.resize(file.len() + padding, 0);
        Built { file, places, directories: [directory_at, 0] }
    }

    /// Builds a COWD extent with the same grains.
    pub fn build_cowd(&self) -> Built {
        let header = CowdHeader {
            flags: cowd::Flags::ROOT,
            capacity: self.capacity,
            grain_size: self.grain,
            directory: 4,
            unclean: false,
        };
        let mut file = header.encode().to_vec();
        let cowd = Sparse { entries: cowd::TABLE_ENTRIES as u32, ..self.clone() };
        cowd.put_tables(&mut file, &vec![2; self.grains.len()]);
        let mut places = vec![(0, 0); self.grains.len()];
        for index in self.order() {
            if let Content::Data(_) = self.grains[index] {
                places[index] = ((file.len() / 512) as u32, (self.grain * SECTOR) as usize);
                file.extend(self.stored(index).0);
            }
        }
        let mut tables = file[..2048].to_vec();
        cowd.put_tables(&mut tables, &places.iter().map(|place| place.0).collect::<Vec<_>>());
        file[..tables.len()].copy_from_slice(&tables);
        Built { file, places, directories: [2048, 0] }
    }
}

/// Calls `act` with a context that opens these files.
pub(in crate::format::vmdk) fn with_files<T>(
    files: &[(&str, Arc<dyn ReadAt>)],
    act: impl FnOnce(&OpenContext<'_>) -> T,
) -> T {
    let find = |reference: &FileReference| {
        let found = files.iter().find(|(name, _)| name.as_bytes() == reference.name.as_bytes());
        Ok(Some(found.expect("a name that the image was given").1.clone()))
    };
    let (limits, budget) = (Limits::default(), Budget::new(64 << 20));
    act(&OpenContext { file: &find, ..OpenContext::new(&limits, &budget) })
}

pub(in crate::format::vmdk) fn file(bytes: &[u8]) -> Arc<dyn ReadAt> {
    Arc::new(MemFile::from(bytes.to_vec()))
}
