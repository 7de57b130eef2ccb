//! VHDX images built from the specification, which no available program writes: every block state, chains of differencing
//! images.

mod hostile;
mod logs;
mod parents;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::support::pattern::Random;
use crate::support::vhdx::{
    Block, FULLY_PRESENT, Guid, KIB, MAKERS, MIB, Maker, NOT_PRESENT, OLD_UNMAPPED, PARTIALLY_PRESENT, Places,
    UNDEFINED, UNMAPPED, Vhdx, ZERO, guid, seal,
};
use crate::support::{TempDir, assert_same, content, open_beside, qcow2, raw};
use diskimage::{Comparison, Error, Image, OpenOptions, compare};

const SECTORS: [u64; 2] = [512, 4096];

/// The guest data of an overlay of these bytes.
pub fn over(mut guest: Vec<u8>, image: &Vhdx) -> Vec<u8> {
    guest.resize(image.size as usize, 0);
    for (index, block) in image.blocks.iter().enumerate() {
        let start = index * image.block_size as usize;
        let end = (start + image.block_size as usize).min(guest.len());
        let block_bytes = |pieces: &[(u64, Vec<u8>)]| {
            let mut bytes = vec![0; image.block_size as usize];
            for (at, piece) in pieces {
                bytes[*at as usize..][..piece.len()].copy_from_slice(piece);
            }
            bytes
        };
        match block {
            Block::Without(NOT_PRESENT) => {}
            Block::Without(_) => guest[start..end].fill(0),
            Block::Full(pieces) => guest[start..end].copy_from_slice(&block_bytes(pieces)[..end - start]),
            Block::Partial(pieces, present) => {
                let bytes = block_bytes(pieces);
                for sector in present.iter().cloned().flatten() {
                    let at = (sector * image.sector_size) as usize;
                    if start + at < end {
                        let len = image.sector_size as usize;
                        guest[start + at..][..len].copy_from_slice(&bytes[at..][..len]);
                    }
                }
            }
            Block::Entry(entry) => panic!("{entry:#x}"),
        }
    }
    guest
}

/// Random data at random offsets of a block.
fn pieces(random: &mut Random, block_size: u64) -> Vec<(u64, Vec<u8>)> {
    let count = 1 + random.below(4);
    (0..count)
        .map(|_| {
            let at = random.below(block_size / 512) * 512;
            let len = (1 << random.below(18)).min(block_size - at) as usize;
            (at, random.bytes(len))
        })
        .collect()
}

/// Runs of sectors of a block that do not touch.
fn runs(random: &mut Random, sectors: u64) -> Vec<std::ops::Range<u64>> {
    let mut at = random.below(3);
    let mut runs = Vec::new();
    while at < sectors {
        let [len, gap] = [(); 2].map(|()| 1 << random.below(12)).map(|most| 1 + random.below(most));
        let end = (at + len).min(sectors);
        runs.push(at..end);
        at = end + gap;
    }
    runs
}

/// An image with random block states.
pub fn layer(random: &mut Random, size: u64, block_size: u64, sector_size: u64, with_parent: bool) -> Vhdx {
    let mut image = Vhdx::new(size, block_size, sector_size);
    image.maker = MAKERS[random.below(3) as usize];
    for _ in 0..size.div_ceil(block_size) {
        image.blocks.push(match random.below(if with_parent { 12 } else { 6 }) {
            0 => Block::Without([NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, OLD_UNMAPPED][random.below(5) as usize]),
            1 | 2 => Block::Without(NOT_PRESENT),
            3..=5 => Block::Full(pieces(random, block_size)),
            _ => {
                // Data in the whole block; the bitmap selects the sectors.
                let bytes = random.bytes(block_size as usize);
                Block::Partial(vec![(0, bytes)], runs(random, block_size / sector_size))
            }
        });
    }
    image
}

/// A parent locator with this GUID and relative path.
pub fn parent_of(linkage: &str, relative_path: &str) -> Option<Vec<(&'static str, String)>> {
    Some(vec![("parent_linkage", format!("{{{linkage}}}")), ("relative_path", relative_path.to_owned())])
}

/// The GUID with this number, in binary and as text.
pub fn numbered(number: u64) -> (Guid, String) {
    let text = format!("{number:08x}-1234-4321-8abc-0123456789ab");
    (guid(&text), text)
}

/// A chain of images from the base to the top, and the guest data of the top.
pub struct Chain {
    pub paths: Vec<PathBuf>,
    pub guest: Vec<u8>,
    images: Vec<(Vhdx, Places)>,
}

pub fn chain(dir: &TempDir, layers: Vec<Vhdx>) -> Chain {
    let mut chain = Chain { paths: Vec::new(), guest: Vec::new(), images: Vec::new() };
    for (number, mut image) in layers.into_iter().enumerate() {
        image.data_write_guid = numbered(number as u64).0;
        if let Some(parent) = chain.paths.last() {
            let name = parent.file_name().unwrap().to_str().unwrap();
            image.parent = parent_of(&numbered(number as u64 - 1).1, &format!(".\\{name}"));
        }
        let path = dir.join(&format!("{number}.vhdx"));
        let places = image.write(&path);
        chain.guest = over(chain.guest, &image);
        chain.paths.push(path);
        chain.images.push((image, places));
    }
    chain
}

impl Chain {
    pub fn top(&self) -> &Path {
        self.paths.last().unwrap()
    }
}

/// Checks the guest data, read at once, in parts, and through conversions.
#[track_caller]
fn assert_reads(path: &Path, guest: &[u8], what: &str) {
    let image = open_beside(path).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!((image.format().name(), image.virtual_size()), ("vhdx", guest.len() as u64), "{what}");
    assert_same(&content(&image).unwrap(), guest, what);
    let mut random = Random::new(guest.len() as u64);
    for _ in 0..50 {
        let at = random.below(guest.len() as u64) as usize;
        let most = 1 << random.below(17);
        let len = (random.below(most) as usize).min(guest.len() - at);
        let mut bytes = vec![0xee; len];
        image.read_exact_at(&mut bytes, at as u64).unwrap();
        assert_same(&bytes, &guest[at..at + len], &format!("{what}, {len} bytes at {at:#x}"));
    }
    for converter in [raw(), qcow2("")] {
        let copy = path.with_extension("copy");
        converter.convert(&image, &copy).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(compare(&image, &Image::open(&copy).unwrap()).unwrap(), Comparison::Identical, "{what}");
        fs::remove_file(copy).unwrap();
    }
}

/// Checks that our own check finds nothing.
#[track_caller]
fn assert_sound(path: &Path, what: &str) {
    let report = OpenOptions::new().check(path).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!((report.corruptions, report.check_errors), (0, 0), "{what}: {:?}", report.messages);
}

#[track_caller]
fn error(path: &Path) -> Error {
    let result = open_beside(path).and_then(|image| content(&image));
    result.err().unwrap_or_else(|| panic!("{} is read", path.display()))
}

#[test]
fn every_block_state() {
    let dir = TempDir::new();
    for sector_size in SECTORS {
        for maker in MAKERS {
            for fixed in [false, true] {
                let what = format!("sectors of {sector_size}, {maker:?}, fixed: {fixed}");
                let mut random = Random::new(sector_size + maker as u64);
                let mut image = Vhdx::new(9 * MIB + 4096, MIB, sector_size);
                image.maker = maker;
                image.fixed = fixed;
                let states = [NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, OLD_UNMAPPED];
                image.blocks = states.map(Block::Without).to_vec();
                image.blocks.extend((0..5).map(|_| Block::Full(pieces(&mut random, MIB))));
                let path = dir.join("image.vhdx");
                image.write(&path);
                assert_reads(&path, &over(Vec::new(), &image), &what);
                assert_sound(&path, &what);
                let opened = Image::open(&path).unwrap();
                assert_eq!((opened.info().dirty, opened.info().warnings.len()), (false, 0), "{:?}", opened.info());
            }
        }
    }
}

/// Only blocks and sectors that are not present read from the parent.
#[test]
fn every_block_state_over_a_parent() {
    let dir = TempDir::new();
    for sector_size in SECTORS {
        let size = 8 * MIB;
        let mut random = Random::new(sector_size);
        let mut base = Vhdx::new(size, 2 * MIB, sector_size);
        base.blocks = (0..4).map(|_| Block::Full(vec![(0, random.bytes(2 << 20))])).collect();
        let mut child = Vhdx::new(size, MIB, sector_size);
        let states = [NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, OLD_UNMAPPED];
        child.blocks = states.map(Block::Without).to_vec();
        let sectors = MIB / sector_size;
        let last = sectors - 1;
        // Sectors at both ends of the block and of a byte of the bitmap.
        child.blocks.push(Block::Partial(vec![(0, random.bytes(1 << 20))], vec![0..1, 8..9, 15..16, last..sectors]));
        child.blocks.push(Block::Partial(vec![(0, random.bytes(1 << 20))], vec![1..9, 9..last]));
        child.blocks.push(Block::Full(vec![(4096, random.bytes(4096))]));
        let chain = chain(&dir, vec![base, child]);
        assert_reads(chain.top(), &chain.guest, &format!("sectors of {sector_size}"));
        assert_sound(chain.top(), "child");
        assert_eq!(open_beside(chain.top()).unwrap().layer_count(), 2);
    }
}

/// Layers with different block sizes and random block states.
#[test]
fn chains_of_three() {
    for seed in 0..8 {
        let dir = TempDir::new();
        let mut random = Random::new(seed + 1);
        let sector_size = SECTORS[seed as usize % 2];
        let size = 5 * MIB + 3 * 4096;
        let sizes = [MIB, 2 * MIB, 4 * MIB];
        let layers = (0..3u64).map(|depth| {
            let block_size = sizes[random.below(3) as usize];
            layer(&mut random, size, block_size, sector_size, depth > 0)
        });
        let chain = chain(&dir, layers.collect());
        let what = format!("seed {seed}, sectors of {sector_size}");
        assert_reads(chain.top(), &chain.guest, &what);
        assert_eq!(open_beside(chain.top()).unwrap().layer_count(), 3, "{what}");
        chain.paths.iter().for_each(|path| assert_sound(path, &what));
    }
}

/// With blocks of 256 MiB, a sector bitmap block covers 16 or 128 of them.
#[test]
fn chunk_boundaries() {
    const BLOCK: u64 = 256 * MIB;
    for sector_size in SECTORS {
        let dir = TempDir::new();
        let chunk = sector_size << 23;
        let ratio = chunk / BLOCK;
        let size = chunk + 2 * BLOCK + 4096;
        let mut random = Random::new(sector_size);
        let sectors = BLOCK / sector_size;
        // The last block before the boundary, and the three after it.
        let mut blocks = |partial: bool| {
            let mut blocks = vec![Block::Without(NOT_PRESENT); ratio as usize - 1];
            for _ in 0..4 {
                let pieces = vec![(0, random.bytes(64 << 10)), (BLOCK - 64 * KIB, random.bytes(64 << 10))];
                blocks.push(match partial {
                    true => Block::Partial(pieces, vec![1..3, 6..7, sectors - 3..sectors - 1]),
                    false => Block::Full(pieces),
                });
            }
            blocks
        };
        let mut base = Vhdx::new(size, BLOCK, sector_size);
        base.blocks = blocks(false);
        let mut child = base.clone();
        child.blocks = blocks(true);
        child.blocks[0] = Block::Without(ZERO);
        let chain_guest = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            for (number, byte) in bytes.iter_mut().enumerate() {
                let at = at + number as u64;
                let (block, within) = (at / BLOCK, at % BLOCK);
                let byte_in = |pieces: &[(u64, Vec<u8>)]| {
                    let piece =
                        pieces.iter().find(|(start, piece)| (*start..*start + piece.len() as u64).contains(&within));
                    piece.map_or(0, |(start, piece)| piece[(within - start) as usize])
                };
                *byte = match (&child.blocks[block as usize], &base.blocks[block as usize]) {
                    (Block::Partial(pieces, present), _)
                        if present.iter().any(|run| run.contains(&(within / sector_size))) =>
                    {
                        byte_in(pieces)
                    }
                    (_, Block::Full(pieces)) => byte_in(pieces),
                    _ => 0,
                };
            }
            bytes
        };
        // The guest data is too large to be held in memory.
        let (base_path, child_path) = (dir.join("0.vhdx"), dir.join("1.vhdx"));
        let mut written = [base.clone(), child.clone()];
        written[0].data_write_guid = numbered(0).0;
        written[1].parent = parent_of(&numbered(0).1, "0.vhdx");
        written[0].write(&base_path);
        written[1].write(&child_path);
        let image = open_beside(&child_path).unwrap();
        assert_eq!(image.virtual_size(), size);
        for (at, len) in [
            (0, 4096),
            (chunk - BLOCK, 40 << 10),
            (chunk - 40 * KIB, 80 << 10),
            (chunk + BLOCK - 40 * KIB, 80 << 10),
            (chunk + 2 * BLOCK - 40 * KIB, 44 << 10),
        ] {
            let mut bytes = vec![0xee; len];
            image.read_exact_at(&mut bytes, at).unwrap();
            assert_same(&bytes, &chain_guest(at, len), &format!("sectors of {sector_size}, at {at:#x}"));
        }
        assert_sound(&child_path, "child");
        assert_sound(&base_path, "base");
    }
}

/// Old versions of qemu truncate the last block at the end of the disk.
#[test]
fn a_partial_last_block() {
    let dir = TempDir::new();
    let path = dir.join("image.vhdx");
    for sector_size in SECTORS {
        let mut image = Vhdx::new(8 * MIB + 5 * 4096, 8 * MIB, sector_size);
        image.maker = Maker::Qemu;
        image.short_tail = true;
        image.blocks = vec![Block::Full(vec![(0, vec![1; 4096])]), Block::Full(vec![(0, vec![2; 5 * 4096])])];
        let places = image.write(&path);
        assert_eq!(places.len, places.blocks[1] + 5 * 4096);
        assert_reads(&path, &over(Vec::new(), &image), "short");
        // Bytes of the disk must not be missing.
        File::options().write(true).open(&path).unwrap().set_len(places.len - 1).unwrap();
        let error = error(&path);
        assert_eq!(error.kind().as_str(), "out-of-bounds", "{error}");
        assert!(error.to_string().contains(&format!("file offset {:#x}", places.entry(1))), "{error}");
    }
}

#[test]
fn an_empty_disk() {
    let dir = TempDir::new();
    let path = dir.join("image.vhdx");
    Vhdx::new(0, MIB, 512).write(&path);
    let image = Image::open(&path).unwrap();
    assert_eq!((image.virtual_size(), image.spans(0..1).count()), (0, 0));
    assert_eq!(OpenOptions::new().check(&path).unwrap().corruptions, 0);
}

#[test]
fn invalid_block_states_are_refused() {
    let dir = TempDir::new();
    let path = dir.join("image.vhdx");
    for (entry, with_parent, kind) in [
        (4, false, "invalid-field"),
        (PARTIALLY_PRESENT + 4 * MIB, false, "invalid-field"),
        // Its sector bitmap block is not present.
        (PARTIALLY_PRESENT + 4 * MIB, true, "invalid-field"),
        (FULLY_PRESENT, false, "overlap"),
        (FULLY_PRESENT + (1 << 10) + 4 * MIB, false, "invalid-field"),
        (FULLY_PRESENT | 1 << 40, false, "out-of-bounds"),
        (FULLY_PRESENT | !0xf_ffff, false, "out-of-bounds"),
    ] {
        let mut base = Vhdx::new(2 * MIB, MIB, 512);
        base.data_write_guid = numbered(1).0;
        base.write(&dir.join("base.vhdx"));
        let mut image = Vhdx::new(2 * MIB, MIB, 512);
        image.blocks = vec![Block::Without(ZERO), Block::Entry(entry), Block::Full(vec![(0, vec![1; 512])])];
        image.size += MIB;
        image.parent = if with_parent { parent_of(&numbered(1).1, "base.vhdx") } else { None };
        let places = image.write(&path);
        let error = error(&path);
        assert_eq!(error.kind().as_str(), kind, "{entry:#x}: {error}");
        let text = error.to_string();
        let at = [places.entry(1), places.bitmap_entry(0)].map(|at| format!("file offset {at:#x}"));
        assert!(at.iter().any(|at| text.contains(at)), "{entry:#x}: {text}");
        let report = OpenOptions::new().check(&path).unwrap();
        assert!(report.corruptions > 0, "{entry:#x}: {report:?}");
    }
}

#[test]
fn overlapping_blocks_are_refused() {
    let dir = TempDir::new();
    let path = dir.join("image.vhdx");
    // The log, the metadata, the BAT, and another block.
    for at in [1, 2, 3, 4] {
        let mut image = Vhdx::new(2 * MIB, MIB, 512);
        image.blocks = vec![Block::Entry(FULLY_PRESENT + at * MIB), Block::Full(vec![(0, vec![1; 512])])];
        image.write(&path);
        // The log is a hole of the file: no data is read there.
        if at > 1 {
            let error = raw().convert(&Image::open(&path).unwrap(), dir.join("copy")).unwrap_err();
            assert_eq!(error.kind().as_str(), "overlap", "{at}: {error}");
        }
        let report = OpenOptions::new().check(&path).unwrap();
        assert!(report.corruptions > 0, "{at}: {report:?}");
    }
}

#[test]
fn unknown_optional_items_are_ignored() {
    let dir = TempDir::new();
    let path = dir.join("image.vhdx");
    let unrelated = numbered(77);
    for (regions, items) in [
        (vec![(unrelated.0, false)], vec![]),
        (vec![(unrelated.0, true)], vec![]),
        (vec![], vec![(unrelated.0, 0)]),
        (vec![], vec![(unrelated.0, 1), (unrelated.0, 2)]),
        (vec![], vec![(unrelated.0, 4)]),
        (vec![(numbered(78).0, false)], vec![(unrelated.0, 5)]),
    ] {
        let mut image = Vhdx::new(2 * MIB, MIB, 512);
        image.blocks = vec![Block::Full(vec![(0, vec![1; 512])])];
        let required = regions.iter().any(|(_, required)| *required) || items.iter().any(|(_, flags)| flags & 4 != 0);
        image.regions = regions;
        image.items = items;
        image.write(&path);
        if !required {
            assert_reads(&path, &over(Vec::new(), &image), "not required");
            assert_sound(&path, "not required");
            continue;
        }
        let error = error(&path);
        assert_eq!(error.kind().as_str(), "unsupported", "{error}");
        assert!(error.to_string().contains(&unrelated.1), "{error}");
    }
}

/// Headers and region tables have a redundant copy.
#[test]
fn one_valid_copy_is_enough() {
    let dir = TempDir::new();
    let path = dir.join("image.vhdx");
    let damage = |at: u64| File::options().write(true).open(&path).unwrap().write_all_at(&[0x5a], at).unwrap();
    for maker in MAKERS {
        let mut image = Vhdx::new(MIB, MIB, 512);
        image.maker = maker;
        image.blocks = vec![Block::Full(vec![(0, vec![3; 1 << 20])])];
        for pair in [[64 * KIB, 128 * KIB], [192 * KIB, 256 * KIB]] {
            for (damaged, other) in [(pair[0], pair[1]), (pair[1], pair[0])] {
                image.write(&path);
                damage(damaged + 20);
                let opened = Image::open(&path).unwrap();
                assert_same(&content(&opened).unwrap(), &[3; 1 << 20], "one copy is damaged");
                assert_eq!(opened.info().warnings.len(), 1, "{maker:?}: {:?}", opened.info().warnings);
                damage(other + 20);
                let error = error(&path);
                assert_eq!(error.kind().as_str(), "invalid-field", "{error}");
            }
        }
    }
    // Two different headers with the same sequence number.
    let image = Vhdx { maker: Maker::Disk2vhd, ..Vhdx::new(MIB, MIB, 512) };
    image.write(&path);
    let mut file = fs::read(&path).unwrap();
    file[(64 << 10) + 16] ^= 1;
    let header = seal(file[64 << 10..68 << 10].to_vec());
    file[64 << 10..68 << 10].copy_from_slice(&header);
    fs::write(&path, file).unwrap();
    assert_eq!(error(&path).kind().as_str(), "invalid-field");
}
