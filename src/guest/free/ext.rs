//! ext2, ext3 and ext4 (Linux kernel, Documentation/filesystems/ext4).
//!
//! The disk is divided into block groups. Each has a descriptor, with the location of its bitmap of used blocks and the number of
//! free ones. All of them, and the superblock, have checksums where the features say so.

use std::ops::Range;

use super::volume::{Fields, Found, FreeRanges, Volume, clear_runs, kept};
use super::{Described, FileSystem, uuid_text};

// Incompatible features (super.rst, "Superblock Incompatible features").
const JOURNAL_DIRTY: u32 = 0x4;
const META_BG: u32 = 0x10;
const BIT64: u32 = 0x80;
const CHECKSUM_SEED: u32 = 0x2000;
/// Those that change nothing about which blocks are in use, or what is understood here: filetype, meta_bg, extents, 64bit, flex_bg, ea_inode,
/// metadata_csum_seed, large_dir, inline_data, encrypt, casefold.
const KNOWN_INCOMPATIBLE: u32 =
    0x2 | META_BG | 0x40 | BIT64 | 0x200 | 0x400 | CHECKSUM_SEED | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000;

// Features that only matter to programs that write.
const SPARSE_SUPER: u32 = 0x1;
const GROUP_CHECKSUMS: u32 = 0x10;
const BIGALLOC: u32 = 0x200;
const METADATA_CHECKSUMS: u32 = 0x400;
/// sparse_super, large_file, btree_dir, huge_file, gdt_csum, dir_nlink, extra_isize, quota, bigalloc, metadata_csum, readonly, project,
/// verity. Not among them: snapshots, blocks that files share, an orphan file with entries.
const KNOWN_READ_ONLY: u32 = SPARSE_SUPER
    | 0x2
    | 0x4
    | 0x8
    | GROUP_CHECKSUMS
    | 0x20
    | 0x40
    | 0x100
    | BIGALLOC
    | METADATA_CHECKSUMS
    | 0x1000
    | 0x2000
    | 0x8000;

// Compatible features.
const HAS_JOURNAL: u32 = 0x4;
const SPARSE_SUPER2: u32 = 0x200;

/// The block bitmap of the group has not been written: everything but metadata is free.
const BLOCK_UNINIT: u16 = 0x2;

pub(super) struct Ext {
    block_size: u64,
    blocks: u64,
    first_block: u64,
    /// Blocks in a bit of a bitmap.
    cluster_blocks: u64,
    blocks_per_group: u64,
    inodes_per_group: u64,
    inode_size: u64,
    descriptor_size: u64,
    first_meta_group: u64,
    reserved_descriptor_blocks: u64,
    backup_groups: [u64; 2],
    compatible: u32,
    incompatible: u32,
    read_only: u32,
    state: u16,
    free_blocks: u64,
    orphans: u32,
    uuid: [u8; 16],
    label: [u8; 16],
    checksum_seed: u32,
    checksum_matches: bool,
}

/// The descriptor of a group.
#[derive(Clone, Copy)]
struct Group {
    block_bitmap: u64,
    inode_bitmap: u64,
    inode_table: u64,
    free_clusters: u64,
    is_uninit: bool,
    bitmap_checksum: u32,
}

/// Opens the file system, if the volume has one.
pub(super) fn open(volume: &Volume) -> Found<Option<Box<dyn FileSystem>>> {
    let Some(superblock) = volume.peek::<1024>(1024)?.filter(|bytes| bytes[0x38..0x3a] == [0x53, 0xef]) else {
        return Ok(None);
    };
    Ok(Some(Box::new(Ext::parse(&superblock)?)))
}

impl Ext {
    fn parse(superblock: &[u8; 1024]) -> Found<Ext> {
        let fields = Fields(superblock);
        let (log_block, log_cluster) = (fields.le32(0x18)?, fields.le32(0x1c)?);
        if log_block > 6 || log_cluster > 20 {
            return kept("the block size is out of range");
        }
        let (compatible, incompatible, read_only) = (fields.le32(0x5c)?, fields.le32(0x60)?, fields.le32(0x64)?);
        let is_64bit = incompatible & BIT64 != 0;
        let high = |at| if is_64bit { fields.le32(at).map(|high| u64::from(high) << 32) } else { Ok(0) };
        let block_size = 1024 << log_block;
        let cluster_blocks = if read_only & BIGALLOC == 0 { 1 } else { (1024 << log_cluster) / block_size };
        let uuid = fields.bytes(0x68)?;
        let revision = fields.le32(0x4c)?;
        Ok(Ext {
            block_size,
            blocks: u64::from(fields.le32(0x4)?) | high(0x150)?,
            first_block: fields.le32(0x14)?.into(),
            cluster_blocks,
            blocks_per_group: fields.le32(0x20)?.into(),
            inodes_per_group: fields.le32(0x28)?.into(),
            inode_size: if revision == 0 { 128 } else { fields.le16(0x58)?.into() },
            descriptor_size: if is_64bit { fields.le16(0xfe)?.into() } else { 32 },
            first_meta_group: fields.le32(0x104)?.into(),
            reserved_descriptor_blocks: fields.le16(0xce)?.into(),
            backup_groups: [fields.le32(0x24c)?.into(), fields.le32(0x250)?.into()],
            compatible,
            incompatible,
            read_only,
            state: fields.le16(0x3a)?,
            free_blocks: u64::from(fields.le32(0xc)?) | high(0x158)?,
            orphans: fields.le32(0xe8)?,
            uuid,
            label: fields.bytes(0x78)?,
            checksum_seed: if incompatible & CHECKSUM_SEED == 0 { checksum(!0, &uuid) } else { fields.le32(0x270)? },
            checksum_matches: read_only & METADATA_CHECKSUMS == 0
                || fields.le32(0x3fc)? == checksum(!0, &superblock[..0x3fc]),
        })
    }

    /// Checks that the file system is clean and has no other features than are known here, and that its numbers fit together.
    fn check(&self, volume: &Volume) -> Found<()> {
        if self.incompatible & JOURNAL_DIRTY != 0 {
            return kept("its journal has to be replayed: it was not unmounted");
        }
        let unknown = [self.incompatible & !KNOWN_INCOMPATIBLE, self.read_only & !KNOWN_READ_ONLY];
        if unknown != [0, 0] {
            return kept(format!("it has unknown features: {:#x}, {:#x}", unknown[0], unknown[1]));
        }
        // Bit 0: it was unmounted; bit 1: it has errors; bit 2: orphans are being recovered.
        if self.state & 7 != 1 || self.orphans != 0 {
            return kept("it was not unmounted, or has errors");
        }
        if !self.checksum_matches {
            return kept("the checksum of the superblock is wrong");
        }
        let bits = self.block_size * 8;
        let is_sound = self.blocks > self.first_block
            && self.first_block == u64::from(self.block_size == 1024 && self.read_only & BIGALLOC == 0)
            && self.cluster_blocks.is_power_of_two()
            && self.blocks_per_group > 0
            && self.blocks_per_group.is_multiple_of(8 * self.cluster_blocks)
            && self.clusters_per_group() <= bits
            && self.inodes_per_group > 0
            && self.inodes_per_group <= bits
            && self.inode_size.is_power_of_two()
            && (128..=self.block_size).contains(&self.inode_size)
            && self.descriptor_size.is_power_of_two()
            && (32..=self.block_size.min(1024)).contains(&self.descriptor_size);
        if !is_sound {
            return kept("its numbers contradict each other");
        }
        if self.blocks.checked_mul(self.block_size).is_none_or(|size| size > volume.len()) {
            return kept("it is larger than the volume");
        }
        self.check_backup(volume)
    }

    /// Compares the numbers that do not change with those of the first copy of the superblock, for file systems without checksums.
    fn check_backup(&self, volume: &Volume) -> Found<()> {
        let Some(group) = (1..self.groups()).find(|group| self.has_super(*group)) else { return Ok(()) };
        let numbers = |superblock: Vec<u8>| -> Found<([u8; 4], [u8; 24], [u8; 2])> {
            let fields = Fields(&superblock);
            Ok((fields.bytes(0x4)?, fields.bytes(0x14)?, fields.bytes(0x58)?))
        };
        let own = numbers(volume.read(1024, 1024)?)?;
        match own == numbers(volume.read(self.blocks_of(group).start * self.block_size, 1024)?)? {
            true => Ok(()),
            false => kept("the copies of its superblock differ"),
        }
    }

    fn clusters_per_group(&self) -> u64 {
        self.blocks_per_group / self.cluster_blocks
    }

    fn groups(&self) -> u64 {
        (self.blocks - self.first_block).div_ceil(self.blocks_per_group)
    }

    fn descriptors_per_block(&self) -> u64 {
        self.block_size / self.descriptor_size
    }

    /// The blocks of a group.
    fn blocks_of(&self, group: u64) -> Range<u64> {
        let start = self.first_block + group * self.blocks_per_group;
        start..(start + self.blocks_per_group).min(self.blocks)
    }

    /// Number of the block that holds the superblock in group 0.
    fn super_block(&self) -> u64 {
        1024 / self.block_size
    }

    /// Whether a group begins with the superblock or a copy of it.
    fn has_super(&self, group: u64) -> bool {
        let is_power =
            |base: u64| std::iter::successors(Some(base), |n| Some(n * base)).find(|n| *n >= group) == Some(group);
        match group {
            0 => true,
            _ if self.compatible & SPARSE_SUPER2 != 0 => self.backup_groups.contains(&group),
            _ if self.read_only & SPARSE_SUPER == 0 => true,
            1 => true,
            _ => is_power(3) || is_power(5) || is_power(7),
        }
    }

    /// Number of the block with the descriptors of the groups from `index` times those in a block.
    fn descriptor_block(&self, index: u64) -> u64 {
        if self.incompatible & META_BG == 0 || index < self.first_meta_group {
            return self.super_block() + 1 + index;
        }
        let group = index * self.descriptors_per_block();
        let start = if group == 0 { self.super_block() } else { self.blocks_of(group).start };
        start + u64::from(self.has_super(group))
    }

    /// Number of blocks at the start of a group for the superblock and the descriptors.
    fn base_blocks(&self, group: u64) -> u64 {
        let per_block = self.descriptors_per_block();
        let has_super = u64::from(self.has_super(group));
        let meta = self.incompatible & META_BG != 0;
        if !meta || group < self.first_meta_group * per_block {
            let all = if meta { self.first_meta_group } else { self.groups().div_ceil(per_block) };
            return has_super * (1 + all + self.reserved_descriptor_blocks);
        }
        let within = group % per_block;
        has_super + u64::from(within == 0 || within == 1 || within == per_block - 1)
    }

    /// Reads the descriptors of all groups.
    fn read_groups(&self, volume: &Volume) -> Found<Vec<Group>> {
        // 64 MiB: the descriptors of 160 TiB with the usual groups.
        const MOST: u64 = 1 << 20;
        let groups = self.groups();
        if groups > MOST {
            return kept("it has more groups than are looked at");
        }
        let mut found = Vec::new();
        for index in 0..groups.div_ceil(self.descriptors_per_block()) {
            let block = volume.read(self.descriptor_block(index) * self.block_size, self.block_size as usize)?;
            for descriptor in block.chunks_exact(self.descriptor_size as usize) {
                let number = found.len() as u64;
                if number < groups {
                    found.push(self.parse_group(descriptor, number)?);
                }
            }
        }
        Ok(found)
    }

    fn parse_group(&self, descriptor: &[u8], number: u64) -> Found<Group> {
        let fields = Fields(descriptor);
        let is_wide = self.descriptor_size >= 64;
        let high32 = |at| if is_wide { fields.le32(at).map(|high| u64::from(high) << 32) } else { Ok(0) };
        let high16 = |at| if is_wide { fields.le16(at).map(|high| u32::from(high) << 16) } else { Ok(0) };
        let (before, after) = (descriptor.get(..0x1e).unwrap_or_default(), descriptor.get(0x20..).unwrap_or_default());
        let number = (number as u32).to_le_bytes();
        let has_checksums = self.read_only & (METADATA_CHECKSUMS | GROUP_CHECKSUMS) != 0;
        let expected = if self.read_only & METADATA_CHECKSUMS != 0 {
            let seed = checksum(self.checksum_seed, &number);
            checksum(checksum(checksum(seed, before), &[0, 0]), after) as u16
        } else {
            let seed = crc16(crc16(!0, &self.uuid), &number);
            crc16(crc16(seed, before), after)
        };
        if has_checksums && expected != fields.le16(0x1e)? {
            return kept("the checksum of a group descriptor is wrong");
        }
        Ok(Group {
            block_bitmap: u64::from(fields.le32(0)?) | high32(0x20)?,
            inode_bitmap: u64::from(fields.le32(4)?) | high32(0x24)?,
            inode_table: u64::from(fields.le32(8)?) | high32(0x28)?,
            free_clusters: (u32::from(fields.le16(0xc)?) | high16(0x2c)?).into(),
            is_uninit: has_checksums && fields.le16(0x12)? & BLOCK_UNINIT != 0,
            bitmap_checksum: u32::from(fields.le16(0x18)?) | high16(0x38)?,
        })
    }

    /// The blocks of metadata in groups without a bitmap, in ascending order. Those of all groups are marked as in use.
    fn metadata_of_uninit(&self, volume: &Volume, groups: &[Group]) -> Found<Vec<Range<u64>>> {
        let mark_used = |start: u64, len: u64| {
            let offset = |block: u64| (block * self.block_size).min(volume.len());
            volume.mark_used(offset(start)..offset(start.saturating_add(len)))
        };
        let table_blocks = (self.inodes_per_group * self.inode_size).div_ceil(self.block_size);
        let mut used = Vec::new();
        for (number, group) in (0..).zip(groups) {
            let (start, base_blocks) = (self.blocks_of(number).start, self.base_blocks(number));
            mark_used(start, base_blocks)?;
            if group.is_uninit {
                used.push(start..start + base_blocks);
            }
            for (block, len) in [(group.block_bitmap, 1), (group.inode_bitmap, 1), (group.inode_table, table_blocks)] {
                let within = block >= self.first_block && block.checked_add(len).is_some_and(|end| end <= self.blocks);
                if !within {
                    return kept("metadata of a group is beyond the end");
                }
                mark_used(block, len)?;
                let owner = (block - self.first_block) / self.blocks_per_group;
                let last = (block + len - 1 - self.first_block) / self.blocks_per_group;
                if (owner..=last).any(|owner| groups.get(owner as usize).is_none_or(|owner| owner.is_uninit)) {
                    used.push(block..block + len);
                }
            }
        }
        used.sort_unstable_by_key(|range| range.start);
        Ok(used)
    }

    /// The bitmap of a group, as it would be on the disk.
    fn bitmap(&self, volume: &Volume, number: u64, group: &Group, metadata: &[Range<u64>]) -> Found<Vec<u8>> {
        let len = (self.clusters_per_group() / 8) as usize;
        if !group.is_uninit {
            let bitmap = volume.read(group.block_bitmap * self.block_size, len)?;
            let mask = if self.descriptor_size >= 64 { u32::MAX } else { 0xffff };
            let expected = checksum(self.checksum_seed, &bitmap) & mask;
            if self.read_only & METADATA_CHECKSUMS != 0 && expected != group.bitmap_checksum {
                return kept(format!("the checksum of the bitmap of group {number} is wrong"));
            }
            return Ok(bitmap);
        }
        if number == 0 {
            return kept("group 0 has no bitmap");
        }
        let mut bitmap = vec![0; len];
        let blocks = self.blocks_of(number);
        let first = metadata.partition_point(|range| range.end <= blocks.start);
        for range in metadata.get(first..).unwrap_or_default().iter().take_while(|range| range.start < blocks.end) {
            for block in range.start.max(blocks.start)..range.end.min(blocks.end) {
                let bit = (block - blocks.start) / self.cluster_blocks;
                if let Some(byte) = bitmap.get_mut((bit / 8) as usize) {
                    *byte |= 1 << (bit % 8);
                }
            }
        }
        Ok(bitmap)
    }
}

impl FileSystem for Ext {
    fn describe(&self) -> Described {
        let name = match (self.compatible & HAS_JOURNAL, self.incompatible & 0x40) {
            (0, 0) => "ext2",
            (_, 0) => "ext3",
            _ => "ext4",
        };
        Described {
            name,
            label: self.label.to_vec(),
            uuid: Some(uuid_text(&self.uuid)),
            size: self.blocks.saturating_mul(self.block_size),
            free: Some(self.free_blocks.saturating_mul(self.block_size)),
        }
    }

    fn free(&self, volume: &Volume, free: &mut FreeRanges) -> Found<()> {
        self.check(volume)?;
        let groups = self.read_groups(volume)?;
        let metadata = self.metadata_of_uninit(volume, &groups)?;
        let mut all_clear = 0;
        for (number, group) in (0..).zip(&groups) {
            let blocks = self.blocks_of(number);
            let clusters = (blocks.end - blocks.start).div_ceil(self.cluster_blocks);
            let bitmap = self.bitmap(volume, number, group, &metadata)?;
            let block_of = |cluster: u64| (blocks.start + cluster * self.cluster_blocks).min(self.blocks);
            let clear = clear_runs(&bitmap, clusters, |run| {
                free.add(block_of(run.start) * self.block_size..block_of(run.end) * self.block_size);
            });
            if clear != group.free_clusters {
                return kept(format!(
                    "the bitmap of group {number} has another number of free blocks than its descriptor"
                ));
            }
            all_clear += clear;
        }
        if all_clear * self.cluster_blocks != self.free_blocks {
            return kept("the groups have another number of free blocks than the superblock");
        }
        Ok(())
    }
}

/// The CRC-32C of the kernel: without the inversion at both ends that is usual elsewhere.
fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// The CRC-16 of group descriptors: reflected 0x8005.
fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xa001 } else { crc >> 1 })
    })
}
