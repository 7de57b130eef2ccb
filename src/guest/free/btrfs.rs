//! btrfs on one device (btrfs.readthedocs.io, On-disk Format).
//!
//! Everything is in trees of items, at logical addresses. The tree of chunks maps these to the device; the tree of extents has what is in use.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;

use super::volume::{Fields, Found, FreeRanges, Volume, kept};
use super::{Described, FileSystem, uuid_text};

const MAGIC: &[u8; 8] = b"_BHRfS_M";
const SUPERBLOCKS: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
const SUPERBLOCK_LEN: u64 = 4096;
/// Before this offset there is nothing but what boot loaders put there.
const RESERVED: u64 = 1 << 20;

// Types of items.
const ROOT_ITEM: u8 = 132;
const EXTENT_ITEM: u8 = 168;
const METADATA_ITEM: u8 = 169;
const BLOCK_GROUP_ITEM: u8 = 192;
const CHUNK_ITEM: u8 = 228;

// Trees.
const EXTENT_TREE: u64 = 2;
const BLOCK_GROUP_TREE: u64 = 11;

/// mixed_backref, default_subvol, mixed_groups, compress_lzo, compress_zstd, big_metadata, extended_iref, skinny_metadata, no_holes. Not
/// among them: raid56, metadata_uuid, raid1c34, zoned, extent_tree_v2.
const KNOWN_INCOMPATIBLE: u64 = 0x37f;
/// Free-space tree, its validity, verity, block group tree.
const KNOWN_READ_ONLY: u64 = 0xf;
/// Copies of a chunk: single, and two on the same device.
const PROFILE: u64 = 0x7f8;
const DUP: u64 = 0x20;

/// Bytes of a header of a node.
const HEADER: usize = 101;
const LARGEST_NODE: u32 = 64 << 10;
const MOST_CHUNKS: usize = 1 << 20;
/// 16 GiB of metadata with nodes of the usual size.
const MOST_NODES: u32 = 1 << 20;

pub(super) struct Btrfs {
    superblock: Vec<u8>,
    size: u64,
    used: u64,
    node_size: u32,
    /// Nodes that may still be read: trees whose pointers go in circles, or to one place, end.
    nodes: Cell<u32>,
}

/// A chunk: its length, and where its copies are on the device.
struct Chunk {
    len: u64,
    copies: Vec<u64>,
}

#[derive(Clone, Copy)]
struct Key {
    object: u64,
    kind: u8,
    offset: u64,
}

/// Opens the file system, if the volume has one.
pub(super) fn open(volume: &Volume) -> Found<Option<Box<dyn FileSystem>>> {
    let mut newest: Option<(u64, Vec<u8>)> = None;
    for at in SUPERBLOCKS {
        let Some(superblock) = volume.peek::<{ SUPERBLOCK_LEN as usize }>(at)? else { continue };
        let fields = Fields(&superblock);
        let is_valid = superblock[64..].starts_with(MAGIC) && fields.le64(48)? == at && has_checksum(&superblock);
        let generation = fields.le64(72)?;
        if is_valid && newest.as_ref().is_none_or(|(before, _)| generation > *before) {
            newest = Some((generation, superblock.to_vec()));
        } else if !is_valid && superblock[64..].starts_with(MAGIC) {
            return kept("a superblock is damaged");
        }
    }
    let Some((_, superblock)) = newest else { return Ok(None) };
    let fields = Fields(&superblock);
    let (size, used, node_size) = (fields.le64(112)?, fields.le64(120)?, fields.le32(148)?);
    Ok(Some(Box::new(Btrfs { superblock, size, used, node_size, nodes: Cell::new(MOST_NODES) })))
}

impl Btrfs {
    fn check(&self, volume: &Volume) -> Found<()> {
        let fields = Fields(&self.superblock);
        let (incompatible, read_only) = (fields.le64(188)?, fields.le64(180)?);
        if incompatible & !KNOWN_INCOMPATIBLE != 0 || read_only & !KNOWN_READ_ONLY != 0 {
            return kept(format!("it has unknown features: {incompatible:#x}, {read_only:#x}"));
        }
        if fields.le64(136)? != 1 {
            return kept("it is on several devices");
        }
        if fields.le64(96)? != 0 {
            return kept("its log has to be replayed: it was not unmounted");
        }
        if fields.le16(196)? != 0 {
            return kept("its checksums are not CRC-32C");
        }
        // The device may have grown or shrunk without its file system.
        if self.size > volume.len()
            || !self.node_size.is_power_of_two()
            || !(4096..=LARGEST_NODE).contains(&self.node_size)
        {
            return kept("its numbers contradict each other, or it is larger than the volume");
        }
        Ok(())
    }

    /// The chunks of the superblock, with which the tree of chunks is read.
    fn first_chunks(&self) -> Found<BTreeMap<u64, Chunk>> {
        let fields = Fields(&self.superblock);
        let len = fields.le32(160)? as usize;
        let list = self.superblock.get(0x32b..).and_then(|rest| rest.get(..len)).unwrap_or_default();
        let (mut chunks, mut at) = (BTreeMap::new(), 0);
        while at < list.len() {
            let key = key(Fields(list).from(at))?;
            let item = Fields(list).from(at + 17);
            let (chunk, len) = self.parse_chunk(item)?;
            chunks.insert(key.offset, chunk);
            at += 17 + len;
        }
        Ok(chunks)
    }

    /// Parses a chunk item, and returns it with its length in bytes.
    fn parse_chunk(&self, item: Fields) -> Found<(Chunk, usize)> {
        let (len, profile, stripes) = (item.le64(0)?, item.le64(24)? & PROFILE, usize::from(item.le16(44)?));
        if !matches!((profile, stripes), (0, 1) | (DUP, 2)) {
            return kept("it spreads data over several places in a way that is not known");
        }
        let mut copies = Vec::new();
        for index in 0..stripes {
            let stripe = item.from(48 + index * 32);
            let offset = stripe.le64(8)?;
            if stripe.le64(0)? != Fields(&self.superblock).le64(0xc9)?
                || offset.checked_add(len).is_none_or(|end| end > self.size)
            {
                return kept("a chunk is beyond the end, or on another device");
            }
            copies.push(offset);
        }
        Ok((Chunk { len, copies }, 48 + stripes * 32))
    }

    /// Calls `leaf` with the items of the tree whose root is at a logical address.
    fn walk(
        &self,
        volume: &Volume,
        chunks: &BTreeMap<u64, Chunk>,
        root: u64,
        level: u8,
        item: &mut dyn FnMut(Key, Fields) -> Found<()>,
    ) -> Found<()> {
        let Some(nodes) = self.nodes.get().checked_sub(1).filter(|_| level <= 7) else {
            return kept("it has more metadata than is looked at");
        };
        self.nodes.set(nodes);
        let Some((within, chunk)) = find(chunks, root, self.node_size.into()) else {
            return kept("a node of a tree is in no chunk");
        };
        let at = chunk.copies.first().map_or(0, |copy| copy + within);
        let node = volume.read(at, self.node_size as usize)?;
        let fields = Fields(&node);
        if !has_checksum(&node) || fields.le64(48)? != root || fields.u8(100)? != level {
            return kept("a node of a tree is damaged");
        }
        for index in 0..fields.le32(96)? as usize {
            if level == 0 {
                let entry = fields.from(HEADER + index * 25);
                let data = fields.from(HEADER.saturating_add(entry.le32(17)? as usize));
                let data = Fields(data.0.get(..entry.le32(21)? as usize).unwrap_or_default());
                item(key(entry)?, data)?;
            } else {
                let pointer = fields.from(HEADER + index * 33).le64(17)?;
                self.walk(volume, chunks, pointer, level - 1, item)?;
            }
        }
        Ok(())
    }

    /// All chunks.
    fn chunks(&self, volume: &Volume) -> Found<BTreeMap<u64, Chunk>> {
        let first = self.first_chunks()?;
        let fields = Fields(&self.superblock);
        let mut all = BTreeMap::new();
        self.walk(volume, &first, fields.le64(88)?, fields.u8(199)?, &mut |key, item| {
            if key.kind == CHUNK_ITEM {
                all.insert(key.offset, self.parse_chunk(item)?.0);
            }
            if all.len() > MOST_CHUNKS { kept("it has more chunks than are looked at") } else { Ok(()) }
        })?;
        Ok(all)
    }
}

/// The chunk with `len` bytes from a logical address, and the offset in it.
fn find(chunks: &BTreeMap<u64, Chunk>, address: u64, len: u64) -> Option<(u64, &Chunk)> {
    let (start, chunk) = chunks.range(..=address).next_back()?;
    let within = address - start;
    within.checked_add(len).is_some_and(|end| end <= chunk.len).then_some((within, chunk))
}

fn key(fields: Fields) -> Found<Key> {
    Ok(Key { object: fields.le64(0)?, kind: fields.u8(8)?, offset: fields.le64(9)? })
}

/// The checksum of a superblock or a node, in its first bytes.
fn has_checksum(bytes: &[u8]) -> bool {
    let (Some(stored), Some(covered)) = (bytes.first_chunk::<4>(), bytes.get(32..)) else { return false };
    crc32c::crc32c(covered).to_le_bytes() == *stored
}

impl FileSystem for Btrfs {
    fn describe(&self) -> Described {
        let fields = Fields(&self.superblock);
        let label = self.superblock.get(0x12b..0x22b).unwrap_or_default().to_vec();
        let free = Some(self.size.saturating_sub(self.used));
        Described {
            name: "btrfs",
            label,
            uuid: fields.bytes(32).ok().map(|uuid| uuid_text(&uuid)),
            size: self.size,
            free,
        }
    }

    fn free(&self, volume: &Volume, free: &mut FreeRanges) -> Found<()> {
        self.check(volume)?;
        let chunks = self.chunks(volume)?;
        let fields = Fields(&self.superblock);
        let mut roots = BTreeMap::new();
        self.walk(volume, &chunks, fields.le64(80)?, fields.u8(198)?, &mut |key, item| {
            if key.kind != ROOT_ITEM {
                return Ok(());
            }
            let root = item.le64(176)?;
            if matches!(key.object, EXTENT_TREE | BLOCK_GROUP_TREE) {
                roots.insert(key.object, (root, item.u8(238)?));
            }
            match find(&chunks, root, self.node_size.into()) {
                Some((within, chunk)) => chunk
                    .copies
                    .iter()
                    .try_for_each(|copy| volume.mark_used(copy + within..copy + within + u64::from(self.node_size))),
                // A tree that is being deleted has none.
                None => Ok(()),
            }
        })?;
        let Some((root, level)) = roots.get(&EXTENT_TREE) else { return kept("it has no tree of extents") };
        let (mut extents, mut groups) = (Used::new(&chunks), 0_u64);
        self.walk(volume, &chunks, *root, *level, &mut |key, item| {
            let len = match key.kind {
                EXTENT_ITEM => key.offset,
                METADATA_ITEM => self.node_size.into(),
                BLOCK_GROUP_ITEM => {
                    groups = groups.saturating_add(item.le64(0)?);
                    return Ok(());
                }
                _ => return Ok(()),
            };
            extents.add(key.object, len)
        })?;
        if let Some((root, level)) = roots.get(&BLOCK_GROUP_TREE) {
            self.walk(volume, &chunks, *root, *level, &mut |key, item| {
                if key.kind == BLOCK_GROUP_ITEM {
                    groups = groups.saturating_add(item.le64(0)?);
                }
                Ok(())
            })?;
        }
        // Each counts an extent once, whether it has copies or not.
        if groups != extents.used || self.used != extents.used {
            return kept("its extents have another number of bytes than its superblock and its block groups");
        }
        let mut in_use = extents.device_ranges()?;
        in_use.push(0..RESERVED);
        in_use.extend(SUPERBLOCKS.map(|at| at..at + (64 << 10)));
        in_use.sort_unstable_by_key(|range| range.start);
        let mut end = 0;
        for range in in_use.iter().chain([&(self.size..self.size)]) {
            let start = range.start.min(self.size);
            if start > end {
                free.add(end..start);
            }
            end = end.max(range.end);
        }
        Ok(())
    }
}

/// Collects the extents in use, which come in ascending order of their logical addresses.
struct Used<'a> {
    chunks: &'a BTreeMap<u64, Chunk>,
    /// Merged, in logical addresses.
    extents: Vec<Range<u64>>,
    used: u64,
}

impl<'a> Used<'a> {
    fn new(chunks: &'a BTreeMap<u64, Chunk>) -> Self {
        Used { chunks, extents: Vec::new(), used: 0 }
    }

    fn add(&mut self, address: u64, len: u64) -> Found<()> {
        const MOST: usize = 2 << 20;
        let Some(end) = address.checked_add(len).filter(|_| find(self.chunks, address, len).is_some()) else {
            return kept("an extent is in no chunk");
        };
        self.used = self.used.saturating_add(len);
        let is_full = self.extents.len() == MOST;
        match self.extents.last_mut() {
            Some(last) if address < last.end => return kept("extents overlap"),
            // Not over the end of a chunk, since the next one is elsewhere on the device.
            Some(last) if address == last.end && !self.chunks.contains_key(&address) => last.end = end,
            _ if is_full => return kept("it has more extents than are looked at"),
            _ => self.extents.push(address..end),
        }
        Ok(())
    }

    /// Where the extents are on the device, with all copies.
    fn device_ranges(&self) -> Found<Vec<Range<u64>>> {
        let mut ranges = Vec::new();
        for extent in &self.extents {
            let len = extent.end - extent.start;
            let Some((within, chunk)) = find(self.chunks, extent.start, len) else {
                return kept("an extent is in no chunk");
            };
            ranges.extend(chunk.copies.iter().map(|copy| copy + within..copy + within + len));
        }
        Ok(ranges)
    }
}
