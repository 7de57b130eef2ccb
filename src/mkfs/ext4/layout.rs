//! Where everything is: the places that mke2fs chooses.

use std::collections::BTreeMap;
use std::iter;
use std::ops::Range;

use super::geometry::{FLEX_GROUPS, Geometry};
use crate::error::{Error, Result};

/// Blocks of the longest extent that is initialized.
pub(super) const MOST_EXTENT: u64 = 32768;
/// Extents that are stored in an inode.
pub(super) const INODE_EXTENTS: u64 = 4;
/// Blocks of a file that its inode names, if it has no extents.
pub(super) const DIRECT_BLOCKS: u64 = 12;
/// Size of the directory lost+found in bytes, unless it takes more blocks than an inode names.
const LOST_AND_FOUND: u64 = 16 << 10;

/// Blocks of the bitmaps and the inode table of a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tables {
    pub block_bitmap: u64,
    pub inode_bitmap: u64,
    /// The first block.
    pub inode_table: u64,
}

/// Blocks in use.
#[derive(Debug)]
pub(super) struct Layout {
    pub used: Used,
    /// By group.
    pub tables: Vec<Tables>,
    pub root: u64,
    pub lost_and_found: Vec<Range<u64>>,
    /// The block with the numbers of the blocks that are reserved for descriptors, if the file system can grow.
    pub resize: Option<u64>,
    pub journal: Vec<Range<u64>>,
    /// The block with the extents of the journal, if there are too many for its inode.
    pub journal_extents: Option<u64>,
}

impl Layout {
    pub fn new(geometry: &Geometry) -> Result<Layout> {
        let mut used = Used::default();
        for group in geometry.groups_with_copy() {
            let start = geometry.group(group).start;
            used.add(start..start + geometry.copy_blocks(group));
        }
        let mut tables = Vec::with_capacity(geometry.groups as usize);
        for groups in geometry.flex_groups() {
            place_tables(geometry, groups, &mut used, &mut tables)?;
        }
        let all = geometry.first_block..geometry.blocks;
        let one = |runs: Vec<Range<u64>>| runs.first().map_or(0, |run| run.start);
        let root = one(used.take(all.clone(), 1)?);
        let lost_and_found = used.take(all.clone(), (LOST_AND_FOUND / geometry.block_size).min(DIRECT_BLOCKS))?;
        let resize = match geometry.can_grow() {
            false => None,
            true => {
                let after_table = tables.first().map_or(0, |tables| tables.inode_table) + geometry.table_blocks;
                Some(one(used.take(after_table..geometry.blocks, 1)?))
            }
        };
        let start = geometry.group(journal_group(geometry, &used)).start;
        let journal = used.take(start..geometry.blocks, geometry.journal_blocks)?;
        let extents: u64 = journal.iter().map(|run| (run.end - run.start).div_ceil(MOST_EXTENT)).sum();
        let journal_extents = match extents > INODE_EXTENTS {
            true => Some(used.take_last(one(journal.clone()))?),
            false => None,
        };
        Ok(Layout { used, tables, root, lost_and_found, resize, journal, journal_extents })
    }

    /// Blocks of a group in use.
    pub fn used_in(&self, geometry: &Geometry, group: u64) -> u64 {
        self.used.count(geometry.group(group))
    }
}

/// Places the bitmaps and tables of a flex group: all block bitmaps, all inode bitmaps, all tables.
fn place_tables(geometry: &Geometry, groups: Range<u64>, used: &mut Used, tables: &mut Vec<Tables>) -> Result<()> {
    let blocks = geometry.group(groups.start).start..geometry.group(groups.end - 1).end;
    let count = groups.end - groups.start;
    // A single group leaves space for bitmaps of the others.
    let slots = if count == 1 { FLEX_GROUPS } else { count };
    let block_bitmaps = used.first_gap(blocks.clone(), 2 * slots)?;
    let inode_bitmaps = block_bitmaps + slots;
    let mut table = inode_bitmaps + slots;
    for bitmap in [block_bitmaps, inode_bitmaps] {
        used.add(bitmap..bitmap + count);
    }
    let size = geometry.table_blocks;
    for index in 0..count {
        if !used.is_free(table..table + size) || table + size > blocks.end {
            // A gap for all that are left, or a quarter of a group at least.
            let wanted = ((count - index) * size).min(geometry.blocks_per_group / 4).max(size);
            table = used.first_gap(blocks.clone(), wanted).or_else(|_| used.first_gap(blocks.clone(), size))?;
        }
        used.add(table..table + size);
        tables.push(Tables {
            block_bitmap: block_bitmaps + index,
            inode_bitmap: inode_bitmaps + index,
            inode_table: table,
        });
        table += size;
    }
    Ok(())
}

/// The group where the journal begins: in the middle of the disk, and of a few there, the first with the most free blocks.
fn journal_group(geometry: &Geometry, used: &Used) -> u64 {
    let free = |group: u64| {
        let blocks = geometry.group(group);
        (blocks.end - blocks.start) - used.count(blocks)
    };
    let middle = geometry.group_of(((geometry.blocks - geometry.first_block) / 2).max(geometry.first_block));
    let first = match middle > FLEX_GROUPS {
        true => (middle / FLEX_GROUPS * FLEX_GROUPS..geometry.groups).find(|group| free(*group) > 0).unwrap_or(0),
        false => middle.saturating_sub(1),
    };
    let last = match middle > FLEX_GROUPS {
        true => first + 1,
        false => middle + 1,
    };
    let candidates = first..=last.min(geometry.groups - 1);
    candidates.rev().max_by_key(|group| free(*group)).unwrap_or(first)
}

/// Ranges of blocks in use, which do not touch each other.
#[derive(Debug, Default)]
pub(super) struct Used(BTreeMap<u64, u64>);

impl Used {
    /// Marks blocks that are free.
    fn add(&mut self, blocks: Range<u64>) {
        let Range { mut start, mut end } = blocks;
        if let Some((before, _)) = self.0.range(..=start).next_back().filter(|(_, end)| **end == start) {
            start = *before;
        }
        if let Some(next) = self.0.remove(&end) {
            end = next;
        }
        self.0.insert(start, end);
    }

    /// The parts of `blocks` that are in use, in ascending order.
    pub fn within(&self, blocks: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let before = self.0.range(..=blocks.start).next_back().filter(|(_, end)| **end > blocks.start);
        let first = before.map_or(blocks.start, |(start, _)| *start);
        let Range { start, end } = blocks;
        self.0.range(first..end).map(move |(from, to)| (*from).max(start)..(*to).min(end))
    }

    pub fn count(&self, blocks: Range<u64>) -> u64 {
        self.within(blocks).map(|used| used.end - used.start).sum()
    }

    fn is_free(&self, blocks: Range<u64>) -> bool {
        self.within(blocks).next().is_none()
    }

    /// The parts of `blocks` that are free, in ascending order.
    fn gaps(&self, blocks: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let end = blocks.end;
        let mut at = blocks.start;
        let used = self.within(blocks).chain(iter::once(end..end));
        used.filter_map(move |used| {
            let gap = at..used.start;
            at = used.end;
            (!gap.is_empty()).then_some(gap)
        })
    }

    /// The first block of the first gap of `len` blocks.
    fn first_gap(&self, blocks: Range<u64>, len: u64) -> Result<u64> {
        let found = self.gaps(blocks).find(|gap| gap.end - gap.start >= len);
        found.map(|gap| gap.start).ok_or_else(no_space)
    }

    /// Marks the first `count` free blocks of `blocks`, and returns them.
    fn take(&mut self, blocks: Range<u64>, count: u64) -> Result<Vec<Range<u64>>> {
        let mut left = count;
        let mut runs = Vec::new();
        for gap in self.gaps(blocks) {
            if left == 0 {
                break;
            }
            let run = gap.start..gap.end.min(gap.start + left);
            left -= run.end - run.start;
            runs.push(run);
        }
        if left > 0 {
            return Err(no_space());
        }
        runs.iter().for_each(|run| self.add(run.clone()));
        Ok(runs)
    }

    /// Marks the last free block before `end`, and returns it.
    fn take_last(&mut self, end: u64) -> Result<u64> {
        let block = self.gaps(0..end).last().map(|gap| gap.end - 1).ok_or_else(no_space)?;
        self.add(block..block + 1);
        Ok(block)
    }
}

fn no_space() -> Error {
    Error::Usage("the volume is too small for ext4".into())
}
