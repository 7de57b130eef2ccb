//! Bitmaps and group descriptors (group_descr.rst, bitmaps.rst).

use std::iter;
use std::sync::Arc;

use super::geometry::{DESCRIPTOR_SIZE, FIRST_INODE, Geometry};
use super::layout::Layout;
use super::{Identity, checksum};
use crate::mkfs::disk::{Volume, put};

// Flags: bitmaps that are not on the disk because they follow from the layout, and an inode table of zeros.
const INODE_BITMAP_ABSENT: u16 = 1;
const BLOCK_BITMAP_ABSENT: u16 = 2;
const TABLE_ZEROED: u16 = 4;

/// Sums of all groups.
pub(super) struct Groups {
    pub free_blocks: u64,
}

/// Writes the bitmaps, and the descriptors with their copies.
pub(super) fn write(geometry: &Geometry, layout: &Layout, identity: &Identity, volume: &mut Volume) -> Groups {
    let mut descriptors = vec![0; (geometry.descriptor_blocks * geometry.block_size) as usize];
    let mut free_blocks = 0;
    let mut bitmap = None;
    let seed = identity.seed();
    for (group, descriptor) in descriptors.chunks_exact_mut(DESCRIPTOR_SIZE as usize).enumerate() {
        let (group, Some(tables)) = (group as u64, layout.tables.get(group)) else { break };
        let blocks = geometry.group(group);
        let used = layout.used_in(geometry, group);
        let free = blocks.end - blocks.start - used;
        free_blocks += free;
        let mut flags = TABLE_ZEROED;
        // That of the last group is always there, as it has bits beyond the end of the disk.
        if used == geometry.copy_blocks(group) && group + 1 < geometry.groups {
            flags |= BLOCK_BITMAP_ABSENT;
        } else {
            let bits = shared(block_bitmap(geometry, layout, group), &mut bitmap);
            set(descriptor, 0x18, 0x38, checksum(seed, &bits));
            volume.put(tables.block_bitmap * geometry.block_size, bits);
        }
        let inodes = geometry.inodes_per_group;
        let used_inodes = if group == 0 { FIRST_INODE } else { 0 };
        if group == 0 {
            let bits = inode_bitmap(geometry);
            set(descriptor, 0x1a, 0x3a, checksum(seed, &bits[..inodes as usize / 8]));
            volume.put(tables.inode_bitmap * geometry.block_size, bits);
            // The root directory and lost+found.
            set(descriptor, 0x10, 0x30, 2);
        } else {
            flags |= INODE_BITMAP_ABSENT;
        }
        for (at, block) in [(0, tables.block_bitmap), (4, tables.inode_bitmap), (8, tables.inode_table)] {
            put(descriptor, at, (block as u32).to_le_bytes());
            put(descriptor, at + 0x20, ((block >> 32) as u32).to_le_bytes());
        }
        set(descriptor, 0xc, 0x2c, free as u32);
        set(descriptor, 0xe, 0x2e, (inodes - used_inodes) as u32);
        // Inodes at the end of the table that were never in use.
        set(descriptor, 0x1c, 0x32, (inodes - used_inodes) as u32);
        put(descriptor, 0x12, flags.to_le_bytes());
        let sum = checksum(checksum(seed, &(group as u32).to_le_bytes()), descriptor);
        put(descriptor, 0x1e, (sum as u16).to_le_bytes());
    }
    let descriptors: Arc<[u8]> = descriptors.into();
    for group in geometry.groups_with_copy() {
        volume.put((geometry.group(group).start + 1) * geometry.block_size, descriptors.clone());
    }
    Groups { free_blocks }
}

/// Sets a field of which the two halves are apart.
fn set(descriptor: &mut [u8], low: usize, high: usize, field: u32) {
    put(descriptor, low, (field as u16).to_le_bytes());
    put(descriptor, high, ((field >> 16) as u16).to_le_bytes());
}

/// The bitmap, in the memory of the previous one if they are the same: those of most groups are.
fn shared(bitmap: Vec<u8>, previous: &mut Option<Arc<[u8]>>) -> Arc<[u8]> {
    match previous {
        Some(previous) if **previous == bitmap => previous.clone(),
        _ => previous.insert(bitmap.into()).clone(),
    }
}

fn block_bitmap(geometry: &Geometry, layout: &Layout, group: u64) -> Vec<u8> {
    let mut bitmap = vec![0; geometry.block_size as usize];
    let blocks = geometry.group(group);
    let beyond = blocks.start + geometry.blocks_per_group;
    for used in layout.used.within(blocks.clone()).chain(iter::once(blocks.end..beyond)) {
        for bit in used.start - blocks.start..used.end - blocks.start {
            bitmap[bit as usize / 8] |= 1 << (bit % 8);
        }
    }
    bitmap
}

/// The inode bitmap of the first group. The rest of its block is set.
fn inode_bitmap(geometry: &Geometry) -> Vec<u8> {
    let mut bitmap = vec![0; geometry.block_size as usize];
    for bit in (0..FIRST_INODE).chain(geometry.inodes_per_group..8 * geometry.block_size) {
        bitmap[bit as usize / 8] |= 1 << (bit % 8);
    }
    bitmap
}
