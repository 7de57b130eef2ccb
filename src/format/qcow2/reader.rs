//! Maps guest ranges to host offsets by the L1 and L2 tables.

use std::ops::Range;
use std::sync::Arc;

use super::bitmap::{Bitmap, open_bitmaps, read_bitmaps};
use super::entry::{SUBCLUSTERS, parse_l1_entry};
use super::extension::CryptoHeader;
use super::extent::{Bounds, IMAGE};
use super::header::{Autoclear, Compatible, Encryption, Header, Incompatible};
use super::refcount::count_at;
use super::snapshot::{SnapshotEntry, read_snapshots};
use super::{FIELDS, FORMAT_NAME, luks};
use crate::driver::OpenContext;
use crate::driver::SparseRead;
use crate::driver::{DirtyBitmap, Extent, ExtentKind, FileId, Location};
use crate::error::{Error, Problem, Result};
use crate::format::shared::decryption::{Decryption, LEGACY_AES_WARNING};
use crate::format::shared::table::Field;
use crate::format::shared::table_cache::{CachedTable, TableCache};
use crate::format::shared::{run, table};
use crate::info::{FileReference, ImageInfo, Value};
use crate::io::ReadAt;
use crate::limits::{Budget, LimitName};
use crate::name::Name;
use crate::zero;

/// QEMU does not open such an image.
const RAW_WITHOUT_DATA_FILE: &str = "autoclear bit 1, for a raw data file, is ignored: the image has no data file";

/// An opened image.
pub(crate) struct Reader {
    pub(super) info: ImageInfo,
    pub(super) header: Header,
    file: Arc<dyn ReadAt>,
    file_len: u64,
    /// Length of the external data file in bytes, if it is open.
    data_file_len: Option<u64>,
    /// If the image is encrypted and unlocked.
    pub(super) decryption: Option<Decryption>,
    pub(super) l1: Vec<u64>,
    l1_table_offset: u64,
    /// Whether this is the state of a snapshot.
    is_snapshot: bool,
    /// Memory for the directory and the tables of bitmaps, in bytes.
    metadata_limit: u64,
    table_cache: TableCache,
}

impl Reader {
    pub fn open(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Reader> {
        // The start of a download has the properties; the tables may be missing yet.
        let header =
            if cx.inspect { Header::read_for_check(&file, cx.limits) } else { Header::read(&file, cx.limits) }?;
        let file_len = table::length(&*file)?;
        let mut info = describe(&header);
        let load_snapshots = || cx.budget.attempt(|budget| read_snapshots(&file, &header, cx.limits, budget));
        let mut loaded = None;
        let (l1_table_offset, at) = match cx.snapshot {
            None => (header.l1_table_offset, 40),
            Some(wanted) => {
                let snapshots = loaded.insert(load_snapshots()?);
                let snapshot = find_snapshot(snapshots, wanted)?;
                snapshot.check(&header, file_len)?;
                let at = snapshot.range.start;
                FIELDS.at("snapshot disk size", at).within_limit(
                    LimitName::VirtualSize,
                    snapshot.info.virtual_size,
                    cx.limits.virtual_size,
                )?;
                info.virtual_size = snapshot.info.virtual_size;
                (snapshot.l1_table_offset, header.snapshots_offset)
            }
        };
        let entries = header.l1_entries_for(info.virtual_size);
        let l1 = match l1_table_offset.checked_add(entries.saturating_mul(8)).filter(|end| *end <= file_len) {
            None if cx.inspect => {
                info.warnings.push("the file ends before the L1 table: it is incomplete".into());
                Vec::new()
            }
            _ => table::read_table_u64_be(&*file, l1_table_offset, entries, FIELDS.at("L1 table", at), cx.budget)?,
        };
        // The disk can be read without these, whatever is wrong with them and however large they are.
        let snapshots = loaded.map_or_else(load_snapshots, Ok);
        info.snapshots_unreadable = snapshots.is_err();
        let snapshots = or_warning(snapshots, "internal snapshots are not listed", &mut info)?;
        info.snapshots = snapshots.into_iter().map(|snapshot| snapshot.info).collect();
        let bitmaps = cx.budget.attempt(|budget| read_bitmaps(&file, &header, budget));
        let bitmaps = or_warning(bitmaps, "bitmaps are not listed", &mut info)?;
        let luks = or_warning(luks::read(&*file, &header), "the LUKS header is not valid", &mut info)?;
        let encryption = luks.as_ref().map(|(luks, _)| luks.describe(false)).unwrap_or_default();
        describe_details(&bitmaps, encryption, &mut info);
        let decryption = match info.encryption {
            Some(_) if !cx.inspect => Some(unlock(file.clone(), &header, cx)?),
            _ => None,
        };

        let data_file = info.files.first().map_or(Ok(None), cx.file)?;
        let data_file_len = data_file.map(|file| table::length(&*file)).transpose()?;
        Ok(Reader {
            info,
            header,
            file,
            file_len,
            data_file_len,
            decryption,
            l1,
            l1_table_offset,
            is_snapshot: cx.snapshot.is_some(),
            metadata_limit: cx.limits.metadata,
            table_cache: TableCache::new(cx.budget),
        })
    }

    /// Returns the hole at `offset`, up to `end` or the next L1 entry that is not empty.
    fn hole(&self, offset: u64, l1_index: usize, end: u64) -> Extent {
        let most = end.div_ceil(self.header.l2_coverage()) as usize - l1_index;
        let entries = self.l1.iter().skip(l1_index).take(most);
        let empty = entries.take_while(|entry| parse_l1_entry(**entry, &self.header) == Ok(None)).count();
        let end = (l1_index + empty) as u64 * self.header.l2_coverage();
        Extent { offset, len: end.min(self.info.virtual_size) - offset, kind: ExtentKind::Hole }
    }

    /// Returns the extent at `offset` by a single L2 entry; it ends at the end of the cluster at the latest.
    fn extent_in_cluster(&self, slice: &L2Slice, index: u64, offset: u64) -> Result<Extent> {
        let at = slice.0.offset() + index * self.header.l2_entry_size();
        let bounds = Bounds {
            header: &self.header,
            virtual_size: self.info.virtual_size,
            file_len: self.file_len,
            data_file_len: self.data_file_len,
        };
        bounds.extent(slice.entry(index, &self.header), at, offset)
    }

    fn l1_field(&self, index: usize) -> Field {
        FIELDS.at("L1 entry", self.l1_table_offset + index as u64 * 8)
    }

    /// Host offset of the L2 table of L1 entry `index`, if allocated.
    fn l2_table(&self, index: usize) -> Result<Option<u64>> {
        let Some(&entry) = self.l1.get(index) else { return Ok(None) };
        let field = self.l1_field(index);
        let table = parse_l1_entry(entry, &self.header).map_err(|problem| field.fault(problem))?;
        if let Some(offset) = table {
            field.within(offset, self.header.cluster_size(), self.file_len)?;
        }
        Ok(table)
    }
}

impl SparseRead for Reader {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn bitmaps(&self) -> Result<Vec<DirtyBitmap>> {
        if self.is_snapshot {
            return Err(Error::Usage("the bitmaps of an image are not those of its snapshots".into()));
        }
        open_bitmaps(&self.file, &self.header, &Budget::new(self.metadata_limit))
    }

    fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
        self.info.check_offset(range.start)?;
        let (offset, end) = (range.start, range.end.min(self.info.virtual_size));
        let l1_index = (offset / self.header.l2_coverage()) as usize;
        let Some(table) = self.l2_table(l1_index)? else {
            return Ok(self.hole(offset, l1_index, end));
        };
        let l2_index = offset / self.header.cluster_size() % self.header.l2_entries();
        let slice = self.slice(table, l2_index)?;
        let entries = slice.entries(&self.header);
        let mut index = l2_index % entries;
        let first = self.extent_in_cluster(&slice, index, offset)?;
        Ok(run::merge(first, end, |at| {
            // With subclusters, an extent may end within a cluster.
            if !at.is_multiple_of(self.header.cluster_size()) {
                return None;
            }
            index += 1;
            if index >= entries {
                return None;
            }
            // Fast path: most entries of most disks are unallocated.
            let wanted = (end - at).div_ceil(self.header.cluster_size());
            match slice.unallocated(index, wanted, &self.header) {
                0 => {}
                count => {
                    index += count - 1;
                    let len = count * self.header.cluster_size();
                    return Some((ExtentKind::Hole, len.min(self.info.virtual_size - at)));
                }
            }
            self.extent_in_cluster(&slice, index, at).ok().map(|next| (next.kind, next.len))
        }))
    }

    fn image_file(&self) -> Option<Arc<dyn ReadAt>> {
        self.decryption.as_ref().map(Decryption::image_file)
    }

    fn decrypted_file(&self, guest: u64, at: Location) -> Option<Arc<dyn ReadAt>> {
        self.decryption.as_ref().and_then(|decryption| decryption.decrypted_file(guest, at))
    }

    fn host_alignment(&self) -> Option<u64> {
        let subclusters = if self.header.extended_l2() { SUBCLUSTERS.into() } else { 1 };
        Some(self.header.cluster_size() / subclusters)
    }

    fn refcount(&self, offset: u64) -> u64 {
        self.read_refcount(offset >> self.header.cluster_bits).unwrap_or(1)
    }

    fn metadata(&self, claim: &mut dyn FnMut(FileId, Range<u64>) -> bool) -> Result<()> {
        let cluster_size = self.header.cluster_size();
        let mut claim = |offset: u64, len: u64| claim(IMAGE, offset..offset.saturating_add(len));
        claim(0, cluster_size);
        claim(self.l1_table_offset, self.l1.len() as u64 * 8);
        for index in 0..self.l1.len() {
            // Other faults of an entry are reported when its guest range is read.
            let Ok(Some(offset)) = self.l2_table(index) else { continue };
            if !claim(offset, cluster_size) {
                return Err(self.l1_field(index).fault(Problem::Overlap { offset, with: "other metadata" }));
            }
        }
        if let Ok(Some(CryptoHeader { offset, len, .. })) = luks::location(&self.header) {
            claim(offset, len);
        }
        // Refcount structures are not needed for reading, but must not overlap guest data.
        let refcount_table = u64::from(self.header.refcount_table_clusters) * cluster_size;
        claim(self.header.refcount_table_offset, refcount_table);
        self.refcount_blocks(&mut |offset| {
            claim(offset, cluster_size);
        })
    }
}

impl Reader {
    /// Refcount of a host cluster, if it can be read.
    fn read_refcount(&self, cluster: u64) -> Option<u64> {
        let per_block = self.header.refcount_block_entries();
        let table_entries = u64::from(self.header.refcount_table_clusters) * (self.header.cluster_size() / 8);
        let table_index = Some(cluster / per_block).filter(|index| *index < table_entries)?;
        let mut entry = [0; 8];
        self.file.read_exact_at(&mut entry, self.header.refcount_table_offset + table_index * 8).ok()?;
        let block = Some(u64::from_be_bytes(entry)).filter(|block| *block != 0)?;
        let order = self.header.refcount_order;
        let bit = (cluster % per_block) << order;
        let mut bytes = [0; 8];
        let width = (1usize << order).div_ceil(8);
        self.file.read_exact_at(bytes.get_mut(..width)?, block.checked_add(bit / 8)?).ok()?;
        count_at(&bytes, order, ((bit % 8) >> order) as usize)
    }

    /// Calls `found` with the host offset of each refcount block. Ignores a refcount table beyond the end of the file, which
    /// readers do not need.
    fn refcount_blocks(&self, found: &mut dyn FnMut(u64)) -> Result<()> {
        let start = self.header.refcount_table_offset;
        let len = u64::from(self.header.refcount_table_clusters) * self.header.cluster_size();
        let end = start.saturating_add(len).min(self.file_len);
        let mut bytes = vec![0; (64 << 10).min(end.saturating_sub(start)) as usize];
        let mut at = start;
        while at < end {
            bytes.truncate((end - at) as usize);
            table::read(&*self.file, &mut bytes, at)?;
            for entry in bytes.as_chunks().0 {
                match u64::from_be_bytes(*entry) & !511 {
                    0 => {}
                    block => found(block),
                }
            }
            at += bytes.len() as u64;
        }
        Ok(())
    }

    fn slice(&self, table: u64, l2_index: u64) -> Result<L2Slice> {
        let len = L2Slice::LEN.min(self.header.cluster_size());
        let offset = table + l2_index * self.header.l2_entry_size() / len * len;
        self.table_cache.get(&*self.file, Location { file: IMAGE, offset }, len as usize).map(L2Slice)
    }
}

/// A slice of an L2 table.
struct L2Slice(Arc<CachedTable>);

impl L2Slice {
    /// Length of a slice in bytes, unless the table is smaller: 2048 entries, or 128 MiB of the disk with 64 KiB clusters.
    const LEN: u64 = 16 << 10;

    fn entries(&self, header: &Header) -> u64 {
        self.0.bytes.len() as u64 / header.l2_entry_size()
    }

    /// How many of `count` entries from number `index` on, which is in the slice, are unallocated, up to one that is not.
    fn unallocated(&self, index: u64, count: u64, header: &Header) -> u64 {
        let size = header.l2_entry_size() as usize;
        let entries = self.0.bytes.get(index as usize * size..).unwrap_or_default();
        let wanted = (count.min(entries.len() as u64) as usize).saturating_mul(size).min(entries.len());
        (zero::leading_zeros(entries.get(..wanted).unwrap_or_default()) / size) as u64
    }

    /// Entry number `index` and its subcluster bitmap, 0 for standard entries.
    fn entry(&self, index: u64, header: &Header) -> (u64, u64) {
        let at = (index * header.l2_entry_size()) as usize;
        let word = |at: usize| {
            self.0.bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
        };
        (word(at), if header.extended_l2() { word(at + 8) } else { 0 })
    }
}

/// Finds a snapshot by ID or, if no ID matches, by name.
fn find_snapshot<'a>(snapshots: &'a [SnapshotEntry], wanted: &str) -> Result<&'a SnapshotEntry> {
    let by = |name: fn(&SnapshotEntry) -> &Name| {
        snapshots.iter().find(move |snapshot| name(snapshot).as_bytes() == wanted.as_bytes())
    };
    by(|snapshot| &snapshot.info.id).or_else(|| by(|snapshot| &snapshot.info.name)).ok_or_else(|| {
        let names: Vec<_> = snapshots.iter().map(|snapshot| snapshot.info.name.to_string()).collect();
        let available = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Error::Usage(format!("{FORMAT_NAME}: unknown snapshot {wanted:?}; available: {available}"))
    })
}

#[cfg(feature = "crypto")]
use super::crypt::unlock;

#[cfg(not(feature = "crypto"))]
fn unlock(_: Arc<dyn ReadAt>, _: &Header, _: &OpenContext<'_>) -> Result<Decryption> {
    Err(Error::unsupported(FORMAT_NAME, "encryption; enable the feature `crypto`"))
}

/// Returns what was loaded, or nothing and a warning that begins with `effect` if the image is to blame.
fn or_warning<T: Default>(loaded: Result<T>, effect: &str, info: &mut ImageInfo) -> Result<T> {
    loaded.or_else(|error| match error {
        Error::Corrupt(_) | Error::Limit { .. } => {
            info.warnings.push(format!("{effect}: {error}").into());
            Ok(T::default())
        }
        other => Err(other),
    })
}

/// Describes the header with the keys of qemu-img info.
pub(super) fn describe(header: &Header) -> ImageInfo {
    let extensions = &header.extensions;
    let backing = header
        .backing_file
        .clone()
        .map(|name| FileReference::new("backing file", name, extensions.backing_format.clone()));
    let mut files = Vec::new();
    if header.has_data_file() {
        files.push(FileReference::new("data file", extensions.data_file.clone().unwrap_or_default(), None));
    }
    let encryption = match header.encryption {
        Encryption::None => None,
        Encryption::Aes => Some("AES"),
        Encryption::Luks => Some("LUKS"),
    };
    let corrupt = header.incompatible.contains(Incompatible::CORRUPT);

    let version_3 = header.version >= 3;
    let mut specific = vec![
        ("compat", if version_3 { "1.1" } else { "0.10" }.into()),
        ("compression-type", if header.compression == crate::codec::Codec::Zstd { "zstd" } else { "zlib" }.into()),
    ];
    if version_3 {
        specific.push(("lazy-refcounts", header.compatible.contains(Compatible::LAZY_REFCOUNTS).into()));
    }
    specific.push(("refcount-bits", (1u64 << header.refcount_order).into()));
    if version_3 {
        specific.push(("corrupt", corrupt.into()));
        specific.push(("extended-l2", header.extended_l2().into()));
    }
    if let Some(name) = &extensions.data_file {
        specific.push(("data-file", Value::Text(name.clone())));
        specific.push(("data-file-raw", header.autoclear.contains(Autoclear::RAW_DATA_FILE).into()));
    }
    let has_stray_bit = !header.has_data_file() && header.autoclear.contains(Autoclear::RAW_DATA_FILE);
    let warnings =
        [(encryption == Some("AES")).then_some(LEGACY_AES_WARNING), has_stray_bit.then_some(RAW_WITHOUT_DATA_FILE)];
    ImageInfo {
        format: FORMAT_NAME,
        virtual_size: header.size,
        block_size: Some(header.cluster_size() as u32),
        backing,
        files,
        encryption,
        warnings: warnings.into_iter().flatten().map(Into::into).collect(),
        dirty: header.incompatible.contains(Incompatible::DIRTY),
        corrupt,
        specific,
        ..ImageInfo::default()
    }
}

/// Adds the bitmaps, and the parameters of the encryption in the LUKS header.
fn describe_details(bitmaps: &[Bitmap], mut luks: Vec<(&'static str, Value)>, info: &mut ImageInfo) {
    if let Some(method) = info.encryption {
        luks.push(("format", method.to_ascii_lowercase().as_str().into()));
        info.specific.push(("encrypt", Value::Map(luks)));
    }
    if !bitmaps.is_empty() {
        info.specific.push(("bitmaps", Value::List(bitmaps.iter().map(Bitmap::to_value).collect())));
    }
}

#[cfg(test)]
mod tests;
