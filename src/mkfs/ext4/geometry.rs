//! Sizes: those of `mke2fs.conf` for ext4, and those that follow from them.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::mkfs::too_large;

/// Size of an inode in bytes.
pub(super) const INODE_SIZE: u64 = 256;
/// Size of a group descriptor in bytes, with the feature 64bit.
pub(super) const DESCRIPTOR_SIZE: u64 = 64;
/// A page of the kernel in bytes.
const PAGE: u64 = 4096;
/// Groups whose bitmaps and tables are together.
pub(super) const FLEX_GROUPS: u64 = 16;
/// The first inode for files: the others are for the file system itself.
pub(super) const FIRST_INODE: u64 = 11;

/// Sizes in blocks, unless they say otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// In bytes: 1024 or 4096.
    pub block_size: u64,
    pub blocks: u64,
    /// The block with the superblock: after the boot sector, if blocks are small.
    pub first_block: u64,
    pub groups: u64,
    pub blocks_per_group: u64,
    pub inodes_per_group: u64,
    /// Of an inode table.
    pub table_blocks: u64,
    /// Of the group descriptors.
    pub descriptor_blocks: u64,
    /// After the group descriptors, for those of a file system that has grown.
    pub reserved_descriptor_blocks: u64,
    pub journal_blocks: u64,
    /// For the superuser.
    pub reserved_blocks: u64,
}

impl Geometry {
    pub fn new(len: u64) -> Result<Geometry> {
        // With more than 2^32 blocks, the journal and the features would have to be others.
        const LARGEST: u64 = 16 << 40;
        const SMALL: u64 = 512 << 20;
        const LARGE: u64 = 4 << 40;
        let (block_size, inode_ratio) = match len {
            ..SMALL => (1024, 4096),
            SMALL..LARGE => (4096, 16384),
            LARGE..LARGEST => (4096, 32768),
            LARGEST => (4096, 65536),
            _ => return Err(too_large("ext4", len, LARGEST)),
        };
        // Whole pages, of which small blocks are parts.
        let blocks = len / PAGE * PAGE / block_size;
        let inodes = blocks * block_size / inode_ratio;
        let reserved_blocks = blocks * 5 / 100;
        let geometry = Geometry::with(block_size, blocks, inodes, reserved_blocks)?;
        // A last group that would have next to no space for files is left out.
        let last = geometry.group(geometry.groups - 1);
        let overhead = geometry.copy_blocks(geometry.groups - 1) + 2 + geometry.table_blocks;
        match last.end - last.start < overhead + 50 {
            true => Geometry::with(block_size, last.start, inodes, reserved_blocks * last.start / blocks),
            false => Ok(geometry),
        }
    }

    fn with(block_size: u64, blocks: u64, inodes: u64, reserved_blocks: u64) -> Result<Geometry> {
        let first_block = if block_size == 1024 { 1 } else { 0 };
        let blocks_per_group = 8 * block_size;
        let groups = (blocks - first_block).div_ceil(blocks_per_group);
        if groups == 0 {
            return Err(Error::Usage("the volume is too small for ext4".into()));
        }
        // Whole blocks of inodes, and whole bytes of a bitmap.
        let inodes_per_block = block_size / INODE_SIZE;
        let inodes_per_group = inodes.div_ceil(groups).next_multiple_of(inodes_per_block) / 8 * 8;
        let descriptors_per_block = block_size / DESCRIPTOR_SIZE;
        let descriptor_blocks = groups.div_ceil(descriptors_per_block);
        // For growth to 1024 times the size, as far as block numbers of 32 bits and one block with their numbers reach.
        let most_blocks = (blocks * 1024).min(u64::from(u32::MAX));
        let most_descriptors = (most_blocks - first_block).div_ceil(blocks_per_group).div_ceil(descriptors_per_block);
        Ok(Geometry {
            block_size,
            blocks,
            first_block,
            groups,
            blocks_per_group,
            inodes_per_group,
            table_blocks: (inodes_per_group * INODE_SIZE).div_ceil(block_size),
            descriptor_blocks,
            reserved_descriptor_blocks: most_descriptors.saturating_sub(descriptor_blocks).min(block_size / 4),
            journal_blocks: journal_blocks(blocks),
            reserved_blocks,
        })
    }

    /// The blocks of a group.
    pub fn group(&self, group: u64) -> Range<u64> {
        let start = self.first_block + group * self.blocks_per_group;
        start..(start + self.blocks_per_group).min(self.blocks)
    }

    /// The group of a block.
    pub fn group_of(&self, block: u64) -> u64 {
        (block - self.first_block) / self.blocks_per_group
    }

    /// Blocks of the superblock with all descriptors at the start of a group: none in most groups.
    pub fn copy_blocks(&self, group: u64) -> u64 {
        match has_copy(group) {
            true => 1 + self.descriptor_blocks + self.reserved_descriptor_blocks,
            false => 0,
        }
    }

    /// The groups with a copy of the superblock, the first one among them.
    pub fn groups_with_copy(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.groups).filter(|group| has_copy(*group))
    }

    /// The groups whose bitmaps and tables are together.
    pub fn flex_groups(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let starts = (0..self.groups).step_by(FLEX_GROUPS as usize);
        starts.map(|start| start..(start + FLEX_GROUPS).min(self.groups))
    }

    /// Whether blocks could be added: their numbers have 32 bits, where the inode for this is concerned.
    pub fn can_grow(&self) -> bool {
        self.blocks <= u64::from(u32::MAX)
    }

    pub fn inodes(&self) -> u64 {
        self.groups * self.inodes_per_group
    }
}

/// Whether a group has a copy of the superblock, with the feature sparse_super: 0, 1, and powers of 3, 5 and 7.
fn has_copy(group: u64) -> bool {
    let is_power = |base: u64| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    group <= 1 || [3, 5, 7].into_iter().any(is_power)
}

fn journal_blocks(blocks: u64) -> u64 {
    match blocks {
        ..0x8000 => 1024,
        0x8000..0x4_0000 => 4096,
        0x4_0000..0x8_0000 => 8192,
        0x8_0000..0x40_0000 => 16384,
        0x40_0000..0x80_0000 => 32768,
        0x80_0000..0x100_0000 => 65536,
        0x100_0000..0x200_0000 => 131_072,
        _ => 262_144,
    }
}
