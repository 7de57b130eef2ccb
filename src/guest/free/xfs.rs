//! XFS, versions 4 and 5 (XFS Algorithms & Data Structures, 3rd edition).
//!
//! The disk is divided into allocation groups. Each has a header (AGF) with the roots of two B+trees of its free extents, by block number and by
//! length.

use super::volume::{Fields, Found, FreeRanges, Volume, kept};
use super::{Described, FileSystem, uuid_text};
use crate::format::shared::crc32c_without;

/// No block: the end of a list of leaves.
const NULL: u32 = u32::MAX;
/// Incompatible features (14.1): ftype, sparse inodes, metadata UUID, bigtime, 64-bit extent counts.
const KNOWN_INCOMPATIBLE: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x20;
/// Trees of inodes, of owners and of shared blocks, and counters of inode trees, all of which are in use for the tree of free extents.
const KNOWN_READ_ONLY: u32 = 0x1 | 0x2 | 0x4 | 0x8;
/// A header of log records.
const LOG_RECORD: u32 = 0xfeed_babe;
/// A log of 2 GiB is the largest.
const LARGEST_LOG: u64 = 2 << 30;

pub(super) struct Xfs {
    block_size: u32,
    blocks: u64,
    sector_size: u16,
    log_start: u64,
    log_blocks: u32,
    group_blocks: u32,
    groups: u32,
    /// Bits of a block number that count blocks in a group.
    group_log: u8,
    free_blocks: u64,
    version: u16,
    in_progress: bool,
    has_realtime: bool,
    incompatible: u32,
    read_only: u32,
    uuid: [u8; 16],
    label: [u8; 12],
    checksum_matches: bool,
}

/// The tree of free extents of a group, and what the group says of it.
struct Group {
    blocks: u32,
    /// The roots of the trees of free extents, by number and by length, and their levels.
    roots: [u32; 2],
    levels: [u32; 2],
    free_blocks: u32,
    /// Free, but reserved for the trees.
    reserved: u64,
}

/// The two trees of free extents.
#[derive(Clone, Copy)]
enum Tree {
    ByNumber,
    ByLength,
}

/// Opens the file system, if the volume has one.
pub(super) fn open(volume: &Volume) -> Found<Option<Box<dyn FileSystem>>> {
    let Some(superblock) = volume.peek::<512>(0)?.filter(|bytes| bytes.starts_with(b"XFSB")) else { return Ok(None) };
    Ok(Some(Box::new(Xfs::parse(&superblock, volume)?)))
}

impl Xfs {
    fn parse(superblock: &[u8; 512], volume: &Volume) -> Found<Xfs> {
        let fields = Fields(superblock);
        let version = fields.be16(100)? & 0xf;
        let sector_size = fields.be16(102)?;
        let checksum_matches =
            version < 5 || sector_size.is_power_of_two() && has_checksum(&volume.read(0, sector_size.into())?, 224);
        Ok(Xfs {
            block_size: fields.be32(4)?,
            blocks: fields.be64(8)?,
            sector_size,
            log_start: fields.be64(48)?,
            log_blocks: fields.be32(96)?,
            group_blocks: fields.be32(84)?,
            groups: fields.be32(88)?,
            group_log: fields.u8(124)?,
            free_blocks: fields.be64(144)?,
            version,
            in_progress: fields.u8(126)? != 0,
            has_realtime: fields.be64(16)? != 0,
            incompatible: fields.be32(216)?,
            read_only: fields.be32(212)?,
            uuid: fields.bytes(32)?,
            label: fields.bytes(108)?,
            checksum_matches,
        })
    }

    fn check(&self, volume: &Volume) -> Found<()> {
        if !matches!(self.version, 4 | 5) {
            return kept(format!("version {} of XFS is not known", self.version));
        }
        if !self.checksum_matches {
            return kept("the checksum of the superblock is wrong");
        }
        if self.version == 5 && (self.incompatible & !KNOWN_INCOMPATIBLE != 0 || self.read_only & !KNOWN_READ_ONLY != 0)
        {
            return kept(format!("it has unknown features: {:#x}, {:#x}", self.incompatible, self.read_only));
        }
        if self.in_progress || self.has_realtime || self.log_start == 0 {
            return kept("it was not completed, or has a real-time device or an external log");
        }
        let is_sound = self.block_size.is_power_of_two()
            && (512..=65536).contains(&self.block_size)
            && self.sector_size.is_power_of_two()
            && (512..=32768).contains(&self.sector_size)
            && self.group_blocks > 4
            && self.groups > 0
            && self.group_log < 32
            && u64::from(self.group_blocks) <= 1 << self.group_log
            && u64::from(self.groups - 1) * u64::from(self.group_blocks) < self.blocks
            && u64::from(self.groups) * u64::from(self.group_blocks) >= self.blocks;
        if !is_sound {
            return kept("its numbers contradict each other");
        }
        if self.blocks.checked_mul(self.block_size.into()).is_none_or(|size| size > volume.len()) {
            return kept("it is larger than the volume");
        }
        Ok(())
    }

    /// Offset in bytes of a block of a group.
    fn offset(&self, group: u32, block: u32) -> u64 {
        (u64::from(group) * u64::from(self.group_blocks) + u64::from(block)) * u64::from(self.block_size)
    }

    /// Whether nothing has to be replayed: the record written last is that of an unmount (chapter 10).
    fn check_log(&self, volume: &Volume) -> Found<()> {
        const CHUNK: u64 = 1 << 20;
        let len = u64::from(self.log_blocks) * u64::from(self.block_size);
        let (group, block) = (self.log_start >> self.group_log, self.log_start & ((1 << self.group_log) - 1));
        if group >= self.groups.into() || len == 0 || len > LARGEST_LOG {
            return kept("its log is out of bounds");
        }
        let start = self.offset(group as u32, block as u32);
        // The sequence number of the last record, whether it is an unmount, and its offset in the log.
        let mut last: Option<(u64, u64)> = None;
        for at in (0..len).step_by(CHUNK as usize) {
            let chunk = volume.read(start + at, CHUNK.min(len - at) as usize)?;
            for (index, sector) in chunk.as_chunks::<512>().0.iter().enumerate() {
                let fields = Fields(sector);
                if fields.be32(0)? == LOG_RECORD {
                    let number = fields.be64(16)?;
                    if last.is_none_or(|(before, _)| number > before) {
                        last = Some((number, at + index as u64 * 512));
                    }
                }
            }
        }
        let Some((_, at)) = last else { return kept("its log has no records") };
        let header = volume.read(start + at, 512)?;
        let header = Fields(&header);
        // Version 2 of the log has headers of several blocks: one for each 32 KiB of the record.
        let size = if header.be32(4)? & 0xf == 0 || header.be32(8)? < 2 { 0 } else { header.be32(320)? };
        let headers = u64::from(size).div_ceil(32768).max(1);
        // The log is a ring.
        let operation = volume.read(start + (at + headers * 512) % len, 512)?;
        if header.be32(40)? != 1 || Fields(&operation).u8(9)? & 0x20 == 0 {
            return kept("its log has to be replayed: it was not unmounted");
        }
        Ok(())
    }

    fn group(&self, volume: &Volume, number: u32) -> Found<Group> {
        // Four sectors: the superblock, the AGF, the AGI with the root of the tree of inodes, and the AGFL.
        let (start, sector_size) = (self.offset(number, 0), u64::from(self.sector_size));
        let inodes = volume.read(start + 2 * sector_size, 32)?;
        let root = Fields(&inodes).be32(20)?;
        if !inodes.starts_with(b"XAGI") || root == 0 || root >= self.group_blocks {
            return kept(format!("the header of the inodes of group {number} is damaged"));
        }
        volume.mark_used(start..start + 4 * sector_size)?;
        volume.mark_used(self.offset(number, root)..self.offset(number, root + 1))?;
        let sector = volume.read(self.offset(number, 0) + u64::from(self.sector_size), self.sector_size.into())?;
        let fields = Fields(&sector);
        let blocks = fields.be32(12)?;
        let first = u64::from(number) * u64::from(self.group_blocks);
        let is_sound = fields.be32(0)? == u32::from_be_bytes(*b"XAGF")
            && fields.be32(8)? == number
            && u64::from(blocks) == u64::from(self.group_blocks).min(self.blocks - first);
        if !is_sound || self.version == 5 && !has_checksum(&sector, 216) {
            return kept(format!("the header of group {number} is damaged"));
        }
        Ok(Group {
            blocks,
            roots: [fields.be32(16)?, fields.be32(20)?],
            levels: [fields.be32(28)?, fields.be32(32)?],
            free_blocks: fields.be32(52)?,
            reserved: u64::from(fields.be32(48)?) + u64::from(fields.be32(60)?),
        })
    }

    /// Reads a block of a tree of free extents, which is at `level`.
    fn tree_block(
        &self,
        volume: &Volume,
        number: u32,
        group: &Group,
        tree: Tree,
        block: u32,
        level: u32,
    ) -> Found<Vec<u8>> {
        if block == 0 || block >= group.blocks {
            return kept("a block of the tree of free extents is out of bounds");
        }
        let bytes = volume.read(self.offset(number, block), self.block_size as usize)?;
        let magic = match (tree, self.version) {
            (Tree::ByNumber, 5) => b"AB3B",
            (Tree::ByNumber, _) => b"ABTB",
            (Tree::ByLength, 5) => b"AB3C",
            (Tree::ByLength, _) => b"ABTC",
        };
        let is_sound = bytes.starts_with(magic)
            && u32::from(Fields(&bytes).be16(4)?) == level
            && (self.version < 5 || has_checksum(&bytes, 52));
        if is_sound { Ok(bytes) } else { kept(format!("the tree of free extents of group {number} is damaged")) }
    }

    /// Calls `extent` with the start and the end of each free extent of a group.
    fn walk(
        &self,
        volume: &Volume,
        number: u32,
        group: &Group,
        tree: Tree,
        mut extent: impl FnMut(u32, u32) -> Found<()>,
    ) -> Found<()> {
        let header = if self.version == 5 { 56 } else { 16 };
        let most = (self.block_size as usize - header) / 12;
        let [levels, root] = match tree {
            Tree::ByNumber => [group.levels[0], group.roots[0]],
            Tree::ByLength => [group.levels[1], group.roots[1]],
        };
        if !(1..=8).contains(&levels) {
            return kept("the tree of free extents has an absurd number of levels");
        }
        // The first leaf is below the first pointers; leaves are linked.
        let mut block = root;
        for level in (1..levels).rev() {
            let bytes = self.tree_block(volume, number, group, tree, block, level)?;
            block = Fields(&bytes).be32(header + most * 8)?;
        }
        // A loop of leaves ends.
        let mut left = group.blocks;
        while block != NULL {
            let bytes = self.tree_block(volume, number, group, tree, block, 0)?;
            let fields = Fields(&bytes);
            let count = usize::from(fields.be16(6)?);
            if count > (self.block_size as usize - header) / 8 || count == 0 && levels > 1 {
                return kept("a leaf of the tree of free extents has an absurd length");
            }
            for index in 0..count {
                let entry = fields.from(header + index * 8);
                let (start, len) = (entry.be32(0)?, entry.be32(4)?);
                let end = start.checked_add(len).filter(|end| *end <= group.blocks && len > 0);
                let (Some(end), Some(rest)) = (end, left.checked_sub(len)) else {
                    return kept(format!("the free extents of group {number} are out of bounds"));
                };
                left = rest;
                extent(start, end)?;
            }
            block = fields.be32(12)?;
        }
        Ok(())
    }

    /// Adds the free extents of a group. Returns how many blocks they have.
    fn add_free(&self, volume: &Volume, number: u32, group: &Group, free: &mut FreeRanges) -> Found<u64> {
        // Number of blocks, and sums over the extents of both trees, which no change leaves as they are but one of both.
        let (mut total, mut sums, mut last) = (0, [0_u64; 2], 0);
        self.walk(volume, number, group, Tree::ByNumber, |start, end| {
            if start < last {
                return kept(format!("the free extents of group {number} overlap"));
            }
            last = end;
            total += u64::from(end - start);
            sums[0] = sums[0].wrapping_add(mixed(start, end));
            free.add(self.offset(number, start)..self.offset(number, end));
            Ok(())
        })?;
        self.walk(volume, number, group, Tree::ByLength, |start, end| {
            sums[1] = sums[1].wrapping_add(mixed(start, end));
            Ok(())
        })?;
        if sums[0] == sums[1] { Ok(total) } else { kept(format!("the trees of free extents of group {number} differ")) }
    }

    /// Compares the numbers that do not change with those of the second superblock, for version 4.
    fn check_backup(&self, volume: &Volume) -> Found<()> {
        let numbers = |superblock: Vec<u8>| -> Found<([u8; 12], [u8; 8])> {
            let fields = Fields(&superblock);
            Ok((fields.bytes(4)?, fields.bytes(84)?))
        };
        if self.version == 5 || self.groups == 1 {
            return Ok(());
        }
        match numbers(volume.read(0, 512)?)? == numbers(volume.read(self.offset(1, 0), 512)?)? {
            true => Ok(()),
            false => kept("the copies of its superblock differ"),
        }
    }
}

impl FileSystem for Xfs {
    fn describe(&self) -> Described {
        let block_size = u64::from(self.block_size);
        Described {
            name: "XFS",
            label: self.label.to_vec(),
            uuid: Some(uuid_text(&self.uuid)),
            size: self.blocks.saturating_mul(block_size),
            free: Some(self.free_blocks.saturating_mul(block_size)),
        }
    }

    fn free(&self, volume: &Volume, free: &mut FreeRanges) -> Found<()> {
        self.check(volume)?;
        self.check_backup(volume)?;
        self.check_log(volume)?;
        let mut all = 0;
        for number in 0..self.groups {
            let group = self.group(volume, number)?;
            let total = self.add_free(volume, number, &group, free)?;
            if total != u64::from(group.free_blocks) {
                return kept(format!("group {number} has another number of free blocks than its header"));
            }
            all += total + group.reserved;
        }
        if all != self.free_blocks {
            return kept("the groups have another number of free blocks than the superblock");
        }
        Ok(())
    }
}

/// A number of an extent, for a sum that does not depend on the order (the finalizer of MurmurHash3).
fn mixed(start: u32, end: u32) -> u64 {
    let number = u64::from(start) << 32 | u64::from(end);
    let number = (number ^ number >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let number = (number ^ number >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    number ^ number >> 33
}

/// Whether the CRC-32C at byte `at`, which itself counts as zeros, matches.
fn has_checksum(bytes: &[u8], at: usize) -> bool {
    let stored = bytes.get(at..).and_then(<[u8]>::first_chunk).map(|stored| u32::from_le_bytes(*stored));
    stored == Some(crc32c_without(bytes, at))
}
