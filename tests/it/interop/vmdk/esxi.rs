//! Generated sparse extents of ESXi, read by this crate and by `qemu-img`. No available program writes them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::descriptors::descriptor;
use crate::support::pattern::Random;
use crate::support::tools::{find, read_with_qemu};
use crate::support::{TempDir, assert_same, content, open_beside, raw, vmdk};
use diskimage::{Image, OpenOptions, Result, format::Format};

const SECTOR: u64 = 512;

/// The state of a grain in an extent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Grain {
    /// Reads from the parent.
    Absent,
    Zero,
    /// Reads as zeros, with another entry.
    Unmapped,
    Data,
}

/// The content of an extent.
struct Delta {
    sectors: u64,
    grain_bytes: usize,
    grains: Vec<Grain>,
    /// Random bytes, from which the data of each grain is taken.
    pool: Vec<u8>,
}

const POOL: usize = 1 << 20;

impl Delta {
    /// Creates runs of grains of all states. The grains of the range `absent` are not allocated.
    fn new(seed: u64, sectors: u64, grain_bytes: usize, zeros: bool, absent: std::ops::Range<usize>) -> Delta {
        let mut random = Random::new(seed);
        let count = (sectors * SECTOR).div_ceil(grain_bytes as u64) as usize;
        let mut grains = Vec::new();
        while grains.len() < count {
            let grain = match random.below(4) {
                0 if zeros => Grain::Zero,
                1 if zeros => Grain::Unmapped,
                2 => Grain::Data,
                _ => Grain::Absent,
            };
            grains.resize((grains.len() + 1 + random.below(200) as usize).min(count), grain);
        }
        let absent = absent.start.min(count)..absent.end.min(count);
        grains[absent].fill(Grain::Absent);
        // The last grain may be partial.
        grains[count - 1] = Grain::Data;
        Delta { sectors, grain_bytes, grains, pool: random.bytes(POOL + grain_bytes) }
    }

    fn grain(&self, index: usize) -> &[u8] {
        &self.pool[index * 7919 % POOL..][..self.grain_bytes]
    }

    /// Returns the stored grains in file order, which is descending.
    fn stored(&self) -> Vec<usize> {
        (0..self.grains.len()).rev().filter(|&index| self.grains[index] == Grain::Data).collect()
    }

    /// Returns the guest data over a parent with this data.
    fn over(&self, base: &[u8]) -> Vec<u8> {
        let mut guest = base.to_vec();
        guest.resize((self.sectors * SECTOR) as usize, 0);
        for (index, part) in guest.chunks_mut(self.grain_bytes).enumerate() {
            match self.grains[index] {
                Grain::Absent => {}
                Grain::Zero | Grain::Unmapped => part.fill(0),
                Grain::Data => part.copy_from_slice(&self.grain(index)[..part.len()]),
            }
        }
        guest
    }

    /// Builds a COWD extent ("Virtual Disk Format 5.0", "ESXi Host Sparse Extents").
    fn cowd(&self, root: bool) -> Vec<u8> {
        const ENTRIES: usize = 4096;
        let sectors_per_grain = self.grain_bytes / 512;
        let tables = self.grains.len().div_ceil(ENTRIES);
        let directory_sectors = (tables * 4).div_ceil(512);
        let mut bytes = vec![0; (4 + directory_sectors) * 512];
        let put = |bytes: &mut Vec<u8>, at: usize, value: usize| {
            bytes[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
        };
        bytes[..4].copy_from_slice(b"COWD");
        let fields = [1, if root { 3 } else { 2 }, self.sectors as usize, sectors_per_grain, 4, tables];
        for (index, value) in fields.into_iter().enumerate() {
            put(&mut bytes, 4 + index * 4, value);
        }
        let mut grain_sectors = vec![0; self.grains.len()];
        let mut table_sectors = vec![0; tables];
        for index in self.stored() {
            // A table is allocated with its first grain.
            if table_sectors[index / ENTRIES] == 0 {
                table_sectors[index / ENTRIES] = bytes.len() / 512;
                bytes.resize(bytes.len() + ENTRIES * 4, 0);
            }
            grain_sectors[index] = bytes.len() / 512;
            bytes.extend(self.grain(index));
        }
        for (table, &sector) in table_sectors.iter().enumerate() {
            put(&mut bytes, 4 * 512 + table * 4, sector);
        }
        for (index, &sector) in grain_sectors.iter().enumerate().filter(|(_, sector)| **sector != 0) {
            put(&mut bytes, table_sectors[index / ENTRIES] * 512 + index % ENTRIES * 4, sector);
        }
        bytes
    }

    /// Builds a space-efficient sparse extent in the layout reported for ESXi.
    fn sesparse(&self) -> Parts {
        const ENTRIES: usize = 4096;
        const MIB: u64 = 2048;
        assert_eq!(self.grain_bytes, 4096);
        let tables = self.grains.len().div_ceil(ENTRIES);
        let table_sectors = (tables as u64 * 64).next_multiple_of(MIB);
        let mut fields = vec![0xcafe_babe, 0x2_0000_0001, self.sectors, 8, 64, 0, 0, 0, 0, 0, 1, 1, 2, 2, MIB, MIB];
        let mut end = 2 * MIB;
        for size in [MIB, table_sectors, MIB, table_sectors, self.sectors.next_multiple_of(8)] {
            fields.extend([end, size]);
            end += size;
        }
        let (directory_at, tables_at, grains_at) = (fields[16] * SECTOR, fields[18] * SECTOR, fields[24] * SECTOR);
        let mut directory = vec![0_u64; tables];
        let mut entries = vec![0_u64; tables * ENTRIES];
        let mut numbers = 0..;
        let mut data = Vec::new();
        for (table, grains) in self.grains.chunks(ENTRIES).enumerate().rev() {
            if grains.iter().all(|&grain| grain == Grain::Absent) {
                continue;
            }
            // Tables are numbered in the order of allocation.
            let number = numbers.next().unwrap();
            directory[table] = 0x1000_0000 << 32 | number as u64;
            for (index, grain) in grains.iter().enumerate() {
                entries[number * ENTRIES + index] = match grain {
                    Grain::Absent => 0,
                    Grain::Unmapped => 1 << 60,
                    Grain::Zero => 2 << 60,
                    Grain::Data => {
                        let number = data.len() as u64 / 4096;
                        data.extend(self.grain(table * ENTRIES + index));
                        3 << 60 | (number & 0xfff) << 48 | number >> 12
                    }
                };
            }
        }
        Parts {
            len: end * SECTOR,
            parts: vec![
                (0, words(&fields)),
                (SECTOR, words(&[0xcafe_cafe, 0, 1, 0])),
                (directory_at, words(&directory)),
                (tables_at, words(&entries)),
                (grains_at, data),
            ],
            grains_at,
        }
    }
}

/// A sparse file.
struct Parts {
    len: u64,
    parts: Vec<(u64, Vec<u8>)>,
    grains_at: u64,
}

impl Parts {
    fn write(&self, dir: &TempDir, name: &str) -> PathBuf {
        let path = dir.join(name);
        let file = File::create(&path).unwrap();
        file.set_len(self.len).unwrap();
        for (at, bytes) in &self.parts {
            file.write_all_at(bytes, *at).unwrap();
        }
        path
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Returns the descriptor of a delta, with or without the parent `base.vmdk`.
fn child(kind: &str, extent: &str, sectors: u64, over: bool) -> String {
    let text = descriptor(kind, &format!("RW {sectors} {extent} \"delta-s.vmdk\""));
    if over {
        text.replace("parentCID=ffffffff", "parentCID=12345678\nparentFileNameHint=\"base.vmdk\"").replacen(
            "CID=12345678",
            "CID=9abcdef0",
            1,
        )
    } else {
        text
    }
}

/// Reads a delta without and with a flat parent, also by `qemu-img` if it is installed.
fn assert_read(dir: &TempDir, delta: &Delta, kind: &str, extent: &str, what: &str) {
    let len = (delta.sectors * SECTOR) as usize;
    let mut base_guest = Random::new(99).bytes(POOL).repeat(len.div_ceil(POOL));
    base_guest.truncate(len);
    dir.file("base-flat.raw", &base_guest);
    dir.file(
        "base.vmdk",
        descriptor("monolithicFlat", &format!("RW {} FLAT \"base-flat.raw\" 0", delta.sectors)).as_bytes(),
    );
    for over in [false, true] {
        let path = dir.file("delta.vmdk", child(kind, extent, delta.sectors, over).as_bytes());
        let expected = delta.over(if over { &base_guest } else { &[] });
        let opened = open_beside(&path).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(opened.layer_count(), 1 + usize::from(over), "{what}");
        assert_same(&content(&opened).unwrap(), &expected, what);
        let copy = dir.join("copy.raw");
        raw().convert(&opened, &copy).unwrap();
        assert_same(&std::fs::read(&copy).unwrap(), &expected, what);
        vmdk("").convert(&opened, dir.join("copy.vmdk")).unwrap();
        assert_same(&content(&Image::open(dir.join("copy.vmdk")).unwrap()).unwrap(), &expected, what);
        if find("the sparse extents of ESXi", &["qemu-img"]).is_some() {
            assert_same(&read_with_qemu(&path, &["-f", "vmdk"]), &expected, &format!("{what}, by qemu-img"));
        }
    }
}

#[test]
fn cowd() {
    for (seed, sectors, grain_sectors) in [(1, 4096 * 3 + 5, 1), (2, 4096 * 8 + 3, 8), (3, 10_001, 128), (4, 1, 1)] {
        let dir = TempDir::new();
        let what = format!("COWD, {sectors} sectors in grains of {grain_sectors}");
        let delta = Delta::new(seed, sectors, grain_sectors * 512, false, 4096..8192);
        dir.file("delta-s.vmdk", &delta.cowd(false));
        assert_read(&dir, &delta, "vmfsSparse", "VMFSSPARSE", &what);
    }
}

#[test]
fn a_cowd_extent_without_its_descriptor() {
    let dir = TempDir::new();
    let delta = Delta::new(7, 9000, 512, false, 0..0);
    let root = Image::open(dir.file("root.vmdk", &delta.cowd(true))).unwrap();
    assert_eq!(root.info().warnings.len(), 1);
    assert_same(&content(&root).unwrap(), &delta.over(&[]), "a root");
    // Its parent is unknown.
    let error = Image::open(dir.file("child.vmdk", &delta.cowd(false))).err().unwrap();
    assert_eq!(error.kind().as_str(), "unsupported", "{error}");
}

#[test]
fn sesparse() {
    for (seed, sectors) in [(1, 33 * 2048 + 1), (2, 17 * 2048), (3, 8)] {
        let dir = TempDir::new();
        let delta = Delta::new(seed, sectors, 4096, true, 4096..8192);
        delta.sesparse().write(&dir, "delta-s.vmdk");
        assert_read(&dir, &delta, "seSparse", "SESPARSE", &format!("seSparse, {sectors} sectors"));
        let error = Image::open(dir.join("delta-s.vmdk")).err().unwrap();
        assert_eq!(error.kind().as_str(), "unsupported", "{error}");
    }
}

/// Reads a COWD extent with one changed field.
fn read_changed_cowd(at: usize, value: u32) -> Result<Vec<u8>> {
    let delta = Delta::new(7, 9000, 512, false, 0..0);
    let mut bytes = delta.cowd(true);
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let dir = TempDir::new();
    OpenOptions::new()
        .format(Format::by_name("vmdk")?)
        .open(dir.file("root.vmdk", &bytes))
        .and_then(|image| content(&image))
}

#[test]
fn invalid_fields_are_refused() {
    for (at, value, kind) in [
        (12, 0xffff_ffff, "invalid-field"),
        (16, 0, "invalid-field"),
        (20, 0xffff_ffff, "out-of-bounds"),
        (2048, 0x00ff_ffff, "out-of-bounds"),
        (2052, 0x7fff_ffff, "out-of-bounds"),
    ] {
        let error = read_changed_cowd(at, value).unwrap_err();
        assert_eq!(error.kind().as_str(), kind, "{value:#x} at {at}: {error}");
    }
    // The first entry of the table that was allocated first.
    let first_table = 5 * 512;
    assert_eq!(read_changed_cowd(first_table, 0x7fff_ffff).unwrap_err().kind().as_str(), "out-of-bounds");

    let dir = TempDir::new();
    let delta = Delta::new(1, 33 * 2048 + 1, 4096, true, 0..0);
    let parts = delta.sesparse();
    parts.write(&dir, "delta-s.vmdk");
    let path = dir.file("delta.vmdk", child("seSparse", "SESPARSE", delta.sectors, false).as_bytes());
    let table = parts.parts[3].0;
    let (directory, journal) = (parts.parts[2].0, SECTOR + 24);
    let grains = (parts.len - parts.grains_at) / 4096;
    for (at, value, kind) in [
        (table, 4 << 60, "invalid-field"),
        (table, 3 << 60 | (grains & 0xfff) << 48 | grains >> 12, "out-of-bounds"),
        (table, 3 << 60 | 0xffff_ffff_ffff, "out-of-bounds"),
        (directory, 0x1000_0000 << 32 | 100_000, "invalid-field"),
        (directory, 5, "invalid-field"),
        (journal, 1, "unsupported"),
    ] {
        parts.write(&dir, "delta-s.vmdk");
        let file = File::options().write(true).open(dir.join("delta-s.vmdk")).unwrap();
        file.write_all_at(&u64::to_le_bytes(value), at).unwrap();
        let error = open_beside(&path).and_then(|image| content(&image)).unwrap_err();
        assert_eq!(error.kind().as_str(), kind, "{value:#x} at {at:#x}: {error}");
    }
}
