//! The superblock and its copies (super.rst).

use super::geometry::{DESCRIPTOR_SIZE, FIRST_INODE, FLEX_GROUPS, Geometry, INODE_SIZE};
use super::group::Groups;
use super::inode::Map;
use super::{Identity, checksum};
use crate::mkfs::disk::{Volume, put};

const SIZE: usize = 1024;
/// Offset in bytes of that of the first group.
const OFFSET: u64 = 1024;

/// has_journal, ext_attr, dir_index.
const COMPATIBLE: u32 = 0x4 | 0x8 | 0x20;
/// resize_inode.
const CAN_GROW: u32 = 0x10;
/// filetype, extent, 64bit, flex_bg.
const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x80 | 0x200;
/// sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum.
const READ_ONLY: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;
/// Default mount options user_xattr and acl.
const MOUNT_OPTIONS: u32 = 0x4 | 0x8;

/// Writes the superblock, and a copy into each group that has one.
pub(super) fn write(geometry: &Geometry, identity: &Identity, groups: &Groups, journal_map: &Map, volume: &mut Volume) {
    let mut superblock = encode(geometry, identity, groups, journal_map);
    for group in geometry.groups_with_copy() {
        // A copy does not say that the file system was unmounted.
        put(&mut superblock, 0x3a, u16::from(group == 0).to_le_bytes());
        put(&mut superblock, 0x5a, u16::try_from(group).unwrap_or(u16::MAX).to_le_bytes());
        let sum = checksum(!0, &superblock[..SIZE - 4]);
        put(&mut superblock, SIZE - 4, sum.to_le_bytes());
        let offset = if group == 0 { OFFSET } else { geometry.group(group).start * geometry.block_size };
        volume.put(offset, superblock.clone());
    }
}

fn encode(geometry: &Geometry, identity: &Identity, groups: &Groups, journal_map: &Map) -> Vec<u8> {
    let mut superblock = vec![0; SIZE];
    let s = &mut superblock;
    let block_log = geometry.block_size.trailing_zeros() - 10;
    let time = identity.time as u32;
    let overhead = overhead(geometry);
    let fields = [
        (0x00, geometry.inodes() as u32),
        (0x04, geometry.blocks as u32),
        (0x08, geometry.reserved_blocks as u32),
        (0x0c, groups.free_blocks as u32),
        (0x10, (geometry.inodes() - FIRST_INODE) as u32),
        (0x14, geometry.first_block as u32),
        (0x18, block_log),
        (0x1c, block_log),
        (0x20, geometry.blocks_per_group as u32),
        (0x24, geometry.blocks_per_group as u32),
        (0x28, geometry.inodes_per_group as u32),
        (0x30, time),
        (0x40, time),
        // Revision 1, with inodes of any size.
        (0x4c, 1),
        (0x54, FIRST_INODE as u32),
        (0x5c, COMPATIBLE | if geometry.can_grow() { CAN_GROW } else { 0 }),
        (0x60, INCOMPATIBLE),
        (0x64, READ_ONLY),
        (0xe0, 8),
        (0x100, MOUNT_OPTIONS),
        (0x108, time),
        (0x150, (geometry.blocks >> 32) as u32),
        (0x154, (geometry.reserved_blocks >> 32) as u32),
        (0x158, (groups.free_blocks >> 32) as u32),
        // Hashes of names are of signed characters.
        (0x160, 1),
        (0x248, overhead as u32),
    ];
    for (at, field) in fields {
        put(s, at, u32::to_le_bytes(field));
    }
    let fields = [
        // The file system is never checked because of a number of mounts.
        (0x36, u16::MAX),
        (0x38, 0xef53),
        // After an error, continue.
        (0x3c, 1),
        (0x58, INODE_SIZE as u16),
        (0xce, geometry.reserved_descriptor_blocks as u16),
        (0xfe, DESCRIPTOR_SIZE as u16),
        // Of the part of an inode that is beyond 128 bytes.
        (0x15c, 32),
        (0x15e, 32),
    ];
    for (at, field) in fields {
        put(s, at, u16::to_le_bytes(field));
    }
    // Times beyond 32 bits: of the last write, of creation, of the last check.
    for at in [0x274, 0x276, 0x277] {
        s[at] = (identity.time >> 32) as u8;
    }
    put(s, 0x68, identity.uuid);
    s[0x78..][..identity.label.len()].copy_from_slice(identity.label);
    put(s, 0xec, identity.hash_seed);
    // Hashes of names are half MD4, checksums CRC-32C.
    s[0xfc] = 1;
    s[0x175] = 1;
    s[0x174] = FLEX_GROUPS.trailing_zeros() as u8;
    // A copy of what the inode of the journal says of its blocks and its size.
    s[0xfd] = 1;
    put(s, 0x10c, *journal_map);
    let journal_size = geometry.journal_blocks * geometry.block_size;
    put(s, 0x148, ((journal_size >> 32) as u32).to_le_bytes());
    put(s, 0x14c, (journal_size as u32).to_le_bytes());
    superblock
}

/// Blocks that files can never have.
fn overhead(geometry: &Geometry) -> u64 {
    let copies: u64 = geometry.groups_with_copy().map(|group| geometry.copy_blocks(group)).sum();
    geometry.first_block + copies + geometry.groups * (2 + geometry.table_blocks) + geometry.journal_blocks
}
