//! The inodes that are in use, and their blocks.

use std::ops::Range;
use std::slice;

use super::geometry::{FIRST_INODE, Geometry, INODE_SIZE};
use super::layout::{DIRECT_BLOCKS, INODE_EXTENTS, Layout, MOST_EXTENT};
use super::{Identity, checksum};
use crate::mkfs::disk::{Volume, put};

// Numbers of inodes (special_inodes.rst).
const BAD_BLOCKS: u64 = 1;
const ROOT: u64 = 2;
const RESIZE: u64 = 7;
const JOURNAL: u64 = 8;
const LOST_AND_FOUND: u64 = FIRST_INODE;

const DIRECTORY: u16 = 0o040_000;
const REGULAR: u16 = 0o100_000;
const EXTENTS: u32 = 0x8_0000;

/// The field of an inode that maps its blocks, which the superblock has as well for the journal.
pub(super) type Map = [u8; 60];

/// Writes the first inodes with their blocks, and returns the map of the journal.
pub(super) fn write(geometry: &Geometry, layout: &Layout, identity: &Identity, volume: &mut Volume) -> Map {
    let block_size = geometry.block_size;
    let mut table = vec![0; (FIRST_INODE * INODE_SIZE).next_multiple_of(block_size) as usize];
    let mut add = |number: u64, inode: [u8; INODE_SIZE as usize]| {
        let at = (number - 1) * INODE_SIZE;
        table[at as usize..][..inode.len()].copy_from_slice(&inode);
    };
    add(BAD_BLOCKS, unused(BAD_BLOCKS, identity.time, identity));
    (BAD_BLOCKS + 1..FIRST_INODE).for_each(|number| add(number, unused(number, 0, identity)));

    let root = layout.root..layout.root + 1;
    let entries = [(ROOT, "."), (ROOT, ".."), (LOST_AND_FOUND, "lost+found")];
    volume.put(layout.root * block_size, directory_block(ROOT, &entries, geometry, identity));
    let directory = Inode { flags: EXTENTS, ..Inode::new(DIRECTORY | 0o755, 3, block_size, 1) };
    add(ROOT, Inode { map: extents(slice::from_ref(&root), None).0, ..directory }.encode(ROOT, geometry, identity));

    let blocks: Vec<u64> = layout.lost_and_found.iter().cloned().flatten().collect();
    for (index, block) in blocks.iter().enumerate() {
        let entries = [(LOST_AND_FOUND, "."), (ROOT, "..")];
        let entries = if index == 0 { &entries[..] } else { &[] };
        volume.put(block * block_size, directory_block(LOST_AND_FOUND, entries, geometry, identity));
    }
    let count = blocks.len() as u64;
    let directory = Inode { flags: EXTENTS, ..Inode::new(DIRECTORY | 0o700, 2, count * block_size, count) };
    let map = extents(&layout.lost_and_found, None).0;
    add(LOST_AND_FOUND, Inode { map, ..directory }.encode(LOST_AND_FOUND, geometry, identity));

    if let Some(block) = layout.resize {
        let inode = write_resize(block, geometry, volume);
        add(RESIZE, inode.encode(RESIZE, geometry, identity));
    }

    let (map, leaf) = extents(&layout.journal, layout.journal_extents);
    let blocks = geometry.journal_blocks + u64::from(leaf.is_some());
    if let (Some(block), Some(leaf)) = (layout.journal_extents, leaf) {
        volume.put(block * block_size, extent_block(leaf, JOURNAL, geometry, identity));
    }
    if let Some(first) = layout.journal.first() {
        volume.put(first.start * block_size, journal_superblock(geometry, identity));
    }
    let journal = Inode::new(REGULAR | 0o600, 1, geometry.journal_blocks * block_size, blocks);
    add(JOURNAL, Inode { flags: EXTENTS, map, ..journal }.encode(JOURNAL, geometry, identity));

    if let Some(tables) = layout.tables.first() {
        volume.put(tables.inode_table * block_size, table);
    }
    map
}

/// An inode in use (inodes.rst).
struct Inode {
    mode: u16,
    links: u16,
    /// In bytes.
    size: u64,
    /// Of the file system, those with maps included.
    blocks: u64,
    flags: u32,
    map: Map,
}

impl Inode {
    fn new(mode: u16, links: u16, size: u64, blocks: u64) -> Inode {
        Inode { mode, links, size, blocks, flags: 0, map: [0; 60] }
    }

    fn encode(&self, number: u64, geometry: &Geometry, identity: &Identity) -> [u8; INODE_SIZE as usize] {
        const EXTRA_SIZE: u16 = 32;
        let mut inode = [0; INODE_SIZE as usize];
        let time = (identity.time as u32).to_le_bytes();
        // Bits beyond 32, of which the last one is a sign.
        let epoch = ((identity.time + (1 << 31)) >> 32) as u32;
        put(&mut inode, 0, self.mode.to_le_bytes());
        put(&mut inode, 4, (self.size as u32).to_le_bytes());
        put(&mut inode, 0x6c, ((self.size >> 32) as u32).to_le_bytes());
        for at in [0x8, 0xc, 0x10, 0x90] {
            put(&mut inode, at, time);
        }
        for at in [0x84, 0x88, 0x8c, 0x94] {
            put(&mut inode, at, epoch.to_le_bytes());
        }
        put(&mut inode, 0x1a, self.links.to_le_bytes());
        let sectors = self.blocks * (geometry.block_size / 512);
        put(&mut inode, 0x1c, (sectors as u32).to_le_bytes());
        put(&mut inode, 0x20, self.flags.to_le_bytes());
        put(&mut inode, 0x28, self.map);
        put(&mut inode, 0x80, EXTRA_SIZE.to_le_bytes());
        let sum = checksum(seed_of(number, identity), &inode).to_le_bytes();
        put(&mut inode, 0x7c, [sum[0], sum[1]]);
        put(&mut inode, 0x82, [sum[2], sum[3]]);
        inode
    }
}

/// An inode without anything but times. That of bad blocks is such a one, as there are none.
fn unused(number: u64, time: u64, identity: &Identity) -> [u8; INODE_SIZE as usize] {
    let mut inode = [0; INODE_SIZE as usize];
    for at in [0x8, 0xc, 0x10] {
        put(&mut inode, at, (time as u32).to_le_bytes());
    }
    let sum = checksum(seed_of(number, identity), &inode).to_le_bytes();
    put(&mut inode, 0x7c, [sum[0], sum[1]]);
    inode
}

/// The start of the checksums of an inode and its blocks. Its generation is 0.
fn seed_of(number: u64, identity: &Identity) -> u32 {
    let mut bytes = [0; 8];
    put(&mut bytes, 0, (number as u32).to_le_bytes());
    checksum(identity.seed(), &bytes)
}

/// A block of a directory, with a checksum in what looks like a last entry (directory.rst).
fn directory_block(number: u64, entries: &[(u64, &str)], geometry: &Geometry, identity: &Identity) -> Vec<u8> {
    const TAIL: usize = 12;
    const TYPE_DIRECTORY: u8 = 2;
    let mut block = vec![0; geometry.block_size as usize];
    let end = block.len() - TAIL;
    let mut at = 0;
    for (index, (inode, name)) in entries.iter().enumerate() {
        let len = match index + 1 == entries.len() {
            true => end - at,
            false => (8 + name.len()).next_multiple_of(4),
        };
        put(&mut block, at, (*inode as u32).to_le_bytes());
        put(&mut block, at + 4, (len as u16).to_le_bytes());
        put(&mut block, at + 6, [name.len() as u8, TYPE_DIRECTORY]);
        block[at + 8..][..name.len()].copy_from_slice(name.as_bytes());
        at += len;
    }
    if entries.is_empty() {
        put(&mut block, 4, (end as u16).to_le_bytes());
    }
    let sum = checksum(seed_of(number, identity), &block[..end]);
    put(&mut block, end + 4, [TAIL as u8, 0, 0, 0xde]);
    put(&mut block, end + 8, sum.to_le_bytes());
    block
}

/// The map of an inode with these blocks, and the extents of the block `leaf` if they are there instead (ifork.rst).
fn extents(runs: &[Range<u64>], leaf: Option<u64>) -> (Map, Option<Vec<u8>>) {
    let mut entries = Vec::new();
    let mut logical = 0_u64;
    for run in runs {
        for start in run.clone().step_by(MOST_EXTENT as usize) {
            let len = (run.end - start).min(MOST_EXTENT);
            entries.extend((logical as u32).to_le_bytes());
            entries.extend((len as u16).to_le_bytes());
            entries.extend(((start >> 32) as u16).to_le_bytes());
            entries.extend((start as u32).to_le_bytes());
            logical += len;
        }
    }
    let mut map = [0; 60];
    let Some(leaf) = leaf else {
        put(&mut map, 0, extent_header(entries.len() / 12, INODE_EXTENTS, 0));
        map[12..][..entries.len()].copy_from_slice(&entries);
        return (map, None);
    };
    put(&mut map, 0, extent_header(1, INODE_EXTENTS, 1));
    put(&mut map, 16, (leaf as u32).to_le_bytes());
    put(&mut map, 20, ((leaf >> 32) as u16).to_le_bytes());
    (map, Some(entries))
}

fn extent_header(count: usize, most: u64, depth: u16) -> [u8; 12] {
    let mut header = [0; 12];
    for (at, field) in [(0, 0xf30a), (2, count as u16), (4, most as u16), (6, depth)] {
        put(&mut header, at, field.to_le_bytes());
    }
    header
}

/// A block with extents, of which the checksum comes after space for the last one.
fn extent_block(entries: Vec<u8>, number: u64, geometry: &Geometry, identity: &Identity) -> Vec<u8> {
    let most = (geometry.block_size - 12) / 12;
    let mut block = vec![0; geometry.block_size as usize];
    put(&mut block, 0, extent_header(entries.len() / 12, most, 0));
    block[12..][..entries.len()].copy_from_slice(&entries);
    let end = 12 + 12 * most as usize;
    let sum = checksum(seed_of(number, identity), &block[..end]);
    put(&mut block, end, sum.to_le_bytes());
    block
}

/// Writes the blocks that hold the numbers of blocks which are reserved for group descriptors, and returns the inode that has all of them.
///
/// The reserved blocks at the start of the disk have the numbers of those in the other groups.
fn write_resize(double_indirect: u64, geometry: &Geometry, volume: &mut Volume) -> Inode {
    let (block_size, reserved) = (geometry.block_size, geometry.reserved_descriptor_blocks);
    let numbers = block_size / 4;
    let mut first = vec![0; block_size as usize];
    for index in 0..reserved {
        let in_copy = 1 + geometry.descriptor_blocks + index;
        let block = geometry.first_block + in_copy;
        let slot = (geometry.descriptor_blocks + index) % numbers;
        put(&mut first, 4 * slot as usize, (block as u32).to_le_bytes());
        let mut copies = vec![0; block_size as usize];
        for (slot, group) in geometry.groups_with_copy().skip(1).enumerate() {
            put(&mut copies, 4 * slot, ((geometry.group(group).start + in_copy) as u32).to_le_bytes());
        }
        volume.put(block * block_size, copies);
    }
    volume.put(double_indirect * block_size, first);
    let copies = geometry.groups_with_copy().count() as u64;
    let size = (DIRECT_BLOCKS + numbers + numbers * numbers) * block_size;
    let mut inode = Inode::new(REGULAR | 0o600, 1, size, 1 + reserved * copies);
    put(&mut inode.map, 4 * (DIRECT_BLOCKS as usize + 1), (double_indirect as u32).to_le_bytes());
    inode
}

/// The superblock of an empty journal, in big-endian order (journal.rst).
fn journal_superblock(geometry: &Geometry, identity: &Identity) -> Vec<u8> {
    let mut block = vec![0; geometry.block_size as usize];
    // The signature, the type of the block; sizes, the first block of the log, the first sequence number; one user.
    let fields = [
        (0, 0xc03b_3998),
        (4, 4),
        (12, geometry.block_size as u32),
        (16, geometry.journal_blocks as u32),
        (20, 1),
        (24, 1),
        (64, 1),
    ];
    for (at, field) in fields {
        put(&mut block, at, field.to_be_bytes());
    }
    put(&mut block, 48, identity.uuid);
    block
}
