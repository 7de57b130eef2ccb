//! Writes the metadata of an image in one pass, while the caller writes guest data.
//!
//! Order of the clusters in the file: header; first refcount block; LUKS header, if the image is encrypted; L2 tables, guest clusters, compressed payloads and further
//! refcount blocks as needed; bits of bitmaps; L1 table; tables and directory of bitmaps; refcount table; refcount blocks of the end of the file. Every byte is written once.
//! The L1 table, the refcount table, one L2 table and one refcount block are in memory.

mod alloc;
mod bitmaps;
mod data_file;
#[cfg(feature = "crypto")]
mod encrypted;
mod mapping;
mod measure;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use self::alloc::Allocator;
use self::bitmaps::Bitmaps;
#[cfg(feature = "crypto")]
use self::encrypted::Encrypted;
use self::mapping::Mapping;
pub(crate) use self::measure::measure;
use super::FORMAT_NAME;
use super::entry::{SUBCLUSTERS, ZERO, compressed_offset_limit, encode_compressed};
use super::extension::{Extensions, Feature};
use super::header::{Autoclear, Compatible, Encryption, Header, Incompatible, V2_LENGTH, V3_WRITTEN_LENGTH};
use super::options::{Preallocation, Settings};
use crate::driver::{CreateContext, DirtyBitmap};
use crate::driver::{Placement, SparseWrite, WriteSpec};
use crate::error::{Error, Result};
use crate::identifiers::ImageIdentifiers;
use crate::io::{WriteAt, write_zeros};
use crate::options::wrong;

/// The feature name table is written with clusters above this size in bytes.
const FEATURE_NAMES_ABOVE: u64 = 4096;
const SECTOR: u64 = 512;

/// A new image.
pub(crate) struct Writer {
    out: Arc<dyn WriteAt>,
    /// The file for guest data: the data file, or the same file, which encrypts it if the image is encrypted. It is always the same one: writes
    /// are merged where the file is.
    data: Arc<dyn WriteAt>,
    #[cfg(feature = "crypto")]
    encryption: Option<Encrypted>,
    spec: WriteSpec,
    preallocation: Preallocation,
    /// The header to write; table offsets are set last.
    header: Header,
    alloc: Allocator,
    mapping: Mapping,
    bitmaps: Bitmaps,
    /// With preallocation, all guest clusters below this one have host clusters.
    preallocated: u64,
    /// End of the last compressed payload, if it is within a cluster. The next payload may follow it.
    open_end: Option<u64>,
}

impl Writer {
    pub fn create(cx: &CreateContext<'_>) -> Result<Writer> {
        let settings = Settings::parse(cx)?;
        #[cfg_attr(not(feature = "crypto"), expect(unused_mut, reason = "only encryption changes it"))]
        let mut header = header(&settings)?;
        let cluster_size = settings.cluster_size();
        let out = cx.out.clone();
        #[cfg_attr(not(feature = "crypto"), expect(unused_mut, reason = "only encryption changes it"))]
        let mut alloc = Allocator::new(out.clone(), settings.cluster_bits, settings.refcount_order);
        #[cfg(feature = "crypto")]
        let encryption =
            settings.encryption.as_ref().map(|it| Encrypted::new(it, cx, &mut alloc, &mut header)).transpose()?;
        #[cfg(feature = "crypto")]
        let data = match &encryption {
            Some(Encrypted::Luks(luks)) => luks.data.clone(),
            Some(Encrypted::Aes(_)) | None => out.clone(),
        };
        #[cfg(not(feature = "crypto"))]
        let data = out.clone();
        // What is encrypted is not the guest data.
        let host_alignment = if header.encryption == Encryption::None { cluster_size } else { 0 };
        let data = match &settings.data_file {
            Some(file) => data_file::create(file, cx)?,
            None => data,
        };
        if !out.starts_zeroed() {
            // An old header must not be taken for the new one if writing is interrupted.
            out.zero_range(0..cluster_size).map_err(Error::io("clearing the header", 0))?;
        }
        Ok(Writer {
            spec: WriteSpec {
                virtual_size: settings.virtual_size,
                block_size: cluster_size,
                granule: granule(&settings, data.starts_zeroed() && header.encryption == Encryption::None),
                encoding: settings.encoding.clone(),
                dense: settings.preallocation == Preallocation::Full,
                over_backing: settings.backing.is_some(),
                host_alignment,
                bitmaps: settings.version >= 3,
                ..WriteSpec::default()
            },
            preallocation: settings.preallocation,
            alloc,
            data,
            #[cfg(feature = "crypto")]
            encryption,
            mapping: Mapping::new(out.clone(), &header),
            bitmaps: Bitmaps::default(),
            header,
            preallocated: 0,
            open_end: None,
            out,
        })
    }

    /// Maps a first part of `guest` to contiguous host clusters, which are allocated as needed. Returns the host range.
    fn map(&mut self, guest: &Range<u64>) -> Result<Range<u64>> {
        let bits = self.header.cluster_bits;
        let first = guest.start >> bits;
        self.preallocate(first)?;
        self.mapping.open(first, &mut self.alloc)?;
        let last = self.clusters_end(guest.end).min(self.mapping.mapped().end);
        if self.header.has_data_file() {
            return self.map_in_data_file(guest, first..last);
        }
        let mut host_start = None;
        let mut at = first;
        while at < last {
            let expected = host_start.map(|host: u64| host + ((at - first) << bits));
            let is_contiguous = |host| expected.is_none_or(|expected| expected == host);
            match self.mapping.host(at) {
                Some(host) if is_contiguous(host) => {
                    host_start.get_or_insert(host);
                    at += 1;
                }
                None if is_contiguous(self.alloc.next_offset()) => {
                    let missing = (at..last).take_while(|&cluster| self.mapping.host(cluster).is_none()).count();
                    let run = self.take_data(missing as u64)?;
                    host_start.get_or_insert(run.start);
                    self.mapping.set_run(at, run.clone());
                    at += (run.end - run.start) >> bits;
                }
                _ => break,
            }
        }
        self.preallocated = self.preallocated.max(at);
        let start = host_start.unwrap_or_default() + guest.start % self.spec.block_size;
        Ok(start..start + (guest.end.min(at << bits) - guest.start))
    }

    /// Allocates at most `wanted` contiguous host clusters for guest data.
    fn take_data(&mut self, wanted: u64) -> Result<Range<u64>> {
        let run = self.alloc.take(wanted)?;
        self.reserve(&run)?;
        Ok(run)
    }

    fn reserve(&self, run: &Range<u64>) -> Result<()> {
        if self.preallocation == Preallocation::Falloc {
            let what = format!("allocating {} bytes", run.end - run.start);
            self.data.allocate(run.clone()).map_err(Error::io(what, run.start))?;
        }
        Ok(())
    }

    /// With preallocation, allocates host clusters for all guest clusters below `until` that have none.
    fn preallocate(&mut self, until: u64) -> Result<()> {
        while self.preallocation != Preallocation::Off && self.preallocated < until {
            let cluster = self.preallocated;
            self.mapping.open(cluster, &mut self.alloc)?;
            let end = until.min(self.mapping.mapped().end);
            let run = match self.header.has_data_file() {
                true => self.take_in_data_file(cluster..end)?,
                false => self.take_data(end - cluster)?,
            };
            // Guests read the content of the cluster, unless an extended entry marks no subcluster as allocated.
            if self.preallocation == Preallocation::Full {
                let data = self.data_at(cluster << self.header.cluster_bits, run.start);
                write_zeros(&*data, run.clone()).map_err(Error::io("writing zeros", run.start))?;
            } else if !self.header.extended_l2() {
                self.clear(cluster << self.header.cluster_bits, run.clone())?;
            }
            self.mapping.set_run(cluster, run.clone());
            self.preallocated += (run.end - run.start) >> self.header.cluster_bits;
        }
        Ok(())
    }

    /// The file for guest data from byte `guest` on, which is at byte `host` of it.
    fn data_at(&self, guest: u64, host: u64) -> Arc<dyn WriteAt> {
        #[cfg(feature = "crypto")]
        if let Some(Encrypted::Aes(aes)) = &self.encryption {
            return aes.view(self.data.clone(), host, guest);
        }
        let _ = (guest, host);
        self.data.clone()
    }

    /// Zeroes a range of the data from byte `guest` on that has not been written.
    fn clear(&self, guest: u64, bytes: Range<u64>) -> Result<()> {
        let data = self.data_at(guest, bytes.start);
        if bytes.is_empty() || data.starts_zeroed() {
            return Ok(());
        }
        let (what, at) = (format!("clearing {} bytes", bytes.end - bytes.start), bytes.start);
        data.zero_range(bytes).map_err(Error::io(what, at))
    }

    /// Allocates a host offset for a payload of `len` bytes, at most a cluster, and counts it in its one or two clusters.
    /// Payloads are packed without gaps, as far as the refcount width allows.
    fn take_payload(&mut self, len: u64) -> Result<u64> {
        let cluster_size = self.spec.block_size;
        let start = match self.open_end.take() {
            Some(end) => {
                let room = end.next_multiple_of(cluster_size) - end;
                let is_contiguous = len <= room || self.alloc.next_offset() == end + room;
                if is_contiguous && self.alloc.share(end) {
                    if len > room {
                        self.alloc.take(1)?;
                    }
                    end
                } else {
                    self.alloc.take(1)?.start
                }
            }
            None => self.alloc.take(1)?.start,
        };
        self.open_end = Some(start + len).filter(|end| !end.is_multiple_of(cluster_size));
        Ok(start)
    }

    /// First guest cluster at or after guest offset `end`.
    fn clusters_end(&self, end: u64) -> u64 {
        end.div_ceil(self.spec.block_size)
    }

    fn check_range(&self, guest: &Range<u64>) -> Result<()> {
        let (granule, size) = (self.spec.granule, self.spec.virtual_size);
        let end_fits = guest.end.is_multiple_of(granule) || guest.end == size;
        if guest.start < guest.end && guest.end <= size && guest.start.is_multiple_of(granule) && end_fits {
            return Ok(());
        }
        let Range { start, end } = guest;
        Err(Error::Usage(format!(
            "invalid guest range {start}..{end}: expected multiples of {granule}, at most {size}"
        )))
    }
}

impl SparseWrite for Writer {
    fn spec(&self) -> &WriteSpec {
        &self.spec
    }

    fn place(&mut self, guest: Range<u64>) -> Result<Placement> {
        self.check_range(&guest)?;
        let host = self.map(&guest)?;
        let len = host.end - host.start;
        if self.header.extended_l2() {
            self.mapping.set_allocated(guest.start..guest.start + len);
        }
        if guest.start + len == self.spec.virtual_size {
            // The caller does not write the rest of the last cluster.
            self.clear(guest.start + len, host.end..host.end.next_multiple_of(self.spec.block_size))?;
        }
        Ok(Placement { out: self.data_at(guest.start, host.start), offset: host.start, before: Vec::new(), len })
    }

    fn place_compressed(&mut self, guest: Range<u64>, stored_len: u32) -> Result<Placement> {
        self.check_range(&guest)?;
        let len = u64::from(stored_len);
        if len == 0
            || len > self.spec.block_size
            || self.clusters_end(guest.end) - guest.start / self.spec.block_size != 1
        {
            let Range { start, end } = guest;
            return Err(Error::Usage(format!(
                "invalid payload of {len} bytes for guest range {start}..{end}: expected one cluster"
            )));
        }
        let bits = self.header.cluster_bits;
        self.mapping.open(guest.start >> bits, &mut self.alloc)?;
        let offset = self.take_payload(len)?;
        if offset >= compressed_offset_limit(bits) {
            let feature = "compressed cluster at this host offset with this cluster size".into();
            return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(offset) });
        }
        self.mapping.set(guest.start >> bits, encode_compressed(offset, len, bits));
        Ok(Placement { out: self.out.clone(), offset, before: Vec::new(), len })
    }

    fn zero(&mut self, guest: Range<u64>) -> Result<()> {
        self.check_range(&guest)?;
        let bits = self.header.cluster_bits;
        let mut guest = guest;
        if self.header.backing_file.is_none() {
            let allocates = self.preallocation != Preallocation::Off || self.header.has_data_file();
            if self.header.version < 3 || allocates {
                // Unallocated and preallocated clusters read as zeros.
                return Ok(());
            }
            // So does what is not placed of a cluster with data.
            guest.start = guest.start.next_multiple_of(1 << bits);
            if guest.end < self.spec.virtual_size {
                guest.end = guest.end >> bits << bits;
            }
        }
        let mut at = guest.start;
        while at < guest.end {
            if self.header.version < 3 {
                // Version 2 has no zero clusters.
                let host = self.map(&(at..guest.end))?;
                self.clear(at, host.start..host.end.next_multiple_of(self.spec.block_size))?;
                at += host.end - host.start;
                continue;
            }
            self.preallocate(at >> bits)?;
            self.mapping.open(at >> bits, &mut self.alloc)?;
            let part = at..guest.end.min(self.mapping.mapped().end << bits);
            self.preallocate(self.clusters_end(part.end))?;
            at = part.end;
            if self.header.extended_l2() {
                self.mapping.set_zero(part);
            } else {
                (part.start >> bits..self.clusters_end(part.end)).for_each(|cluster| self.mapping.set(cluster, ZERO));
            }
        }
        Ok(())
    }

    fn add_bitmap(&mut self, bitmap: &DirtyBitmap) -> Result<()> {
        let (size, bits) = (self.spec.virtual_size, self.header.cluster_bits);
        self.bitmaps.add(bitmap, size, bits, &mut self.alloc, &*self.out)
    }

    fn finish(&mut self, _identifiers: &ImageIdentifiers) -> Result<()> {
        self.preallocate(self.clusters_end(self.spec.virtual_size))?;
        self.mapping.flush()?;
        let l1_clusters = self.alloc.entries_in_clusters(self.mapping.l1_len());
        let bits = self.header.cluster_bits;
        let tail = self.alloc.close(l1_clusters + self.bitmaps.clusters(bits))?;
        self.mapping.write_l1(tail.l1_offset, l1_clusters << bits)?;
        if !self.bitmaps.is_empty() {
            let directory = self.bitmaps.write(tail.l1_offset + (l1_clusters << bits), bits, &*self.out)?;
            self.header.extensions.bitmaps = Some(Ok(directory));
            self.header.autoclear |= Autoclear::BITMAPS;
            check_header_len(&self.header)?;
        }
        let what = format!("setting the length to {}", tail.file_len);
        self.out.set_len(tail.file_len).map_err(Error::io(what, None))?;
        #[cfg(feature = "crypto")]
        if let Some(Encrypted::Luks(luks)) = &self.encryption {
            luks.write(&*self.out)?;
        }
        self.finish_data_file()?;
        self.sync()?;
        self.header.l1_table_offset = tail.l1_offset;
        self.header.refcount_table_offset = tail.table_offset;
        self.header.refcount_table_clusters = tail.table_clusters as u32;
        write(&*self.out, &self.header.encode(), 0)?;
        self.sync()
    }
}

impl Writer {
    fn sync(&self) -> Result<()> {
        self.out.sync().map_err(Error::io("syncing", None))
    }
}

/// Smallest range in bytes that can be placed: a subcluster with extended L2 entries. Otherwise a cluster, if the rest of it
/// could show old content or the backing file, or else a sector.
fn granule(settings: &Settings, starts_zeroed: bool) -> u64 {
    if settings.extended_l2 {
        settings.cluster_size() / u64::from(SUBCLUSTERS)
    } else if settings.backing.is_some() || !starts_zeroed {
        settings.cluster_size()
    } else {
        SECTOR
    }
}

/// Returns the header without table offsets.
fn header(settings: &Settings) -> Result<Header> {
    let mut incompatible = Incompatible::empty();
    incompatible.set(Incompatible::COMPRESSION_TYPE, settings.codec != crate::codec::Codec::Deflate);
    incompatible.set(Incompatible::EXTENDED_L2, settings.extended_l2);
    let mut compatible = Compatible::empty();
    compatible.set(Compatible::LAZY_REFCOUNTS, settings.lazy_refcounts);
    incompatible.set(Incompatible::DATA_FILE, settings.data_file.is_some());
    let mut autoclear = Autoclear::empty();
    autoclear.set(Autoclear::RAW_DATA_FILE, settings.data_file.as_ref().is_some_and(|file| file.raw));
    let names_features = settings.version >= 3 && settings.cluster_size() > FEATURE_NAMES_ABOVE;
    let mut header = Header {
        version: settings.version,
        backing_file: settings.backing.as_ref().map(|backing| backing.file.clone()),
        cluster_bits: settings.cluster_bits,
        size: settings.virtual_size,
        encryption: Encryption::None,
        l1_size: 0,
        l1_table_offset: 0,
        refcount_table_offset: 0,
        refcount_table_clusters: 0,
        nb_snapshots: 0,
        snapshots_offset: 0,
        incompatible,
        compatible,
        autoclear,
        refcount_order: settings.refcount_order,
        header_length: if settings.version >= 3 { V3_WRITTEN_LENGTH } else { V2_LENGTH },
        compression: settings.codec,
        extensions: Extensions {
            backing_format: settings.backing.as_ref().map(|backing| backing.format.clone()),
            data_file: settings.data_file.as_ref().map(|file| file.name.clone()),
            features: if names_features { Feature::known() } else { Vec::new() },
            ..Extensions::default()
        },
    };
    // The settings limit this to `MAX_L1_ENTRIES`.
    header.l1_size = header.l1_entries_for(header.size) as u32;
    check_header_len(&header)?;
    Ok(header)
}

/// Checks that the header fits into its cluster.
fn check_header_len(header: &Header) -> Result<()> {
    let (len, room) = (header.encode().len() as u64, header.cluster_size());
    if len <= room {
        return Ok(());
    }
    let problem =
        format!("the header with this name has {len} bytes, a cluster only {room}; use a larger cluster_size");
    Err(wrong(FORMAT_NAME, "backing_file", problem))
}

fn write(out: &dyn WriteAt, bytes: &[u8], offset: u64) -> Result<()> {
    out.write_all_at(bytes, offset).map_err(|e| Error::io(format!("writing {} bytes", bytes.len()), offset)(e))
}

/// Writes the big-endian `entries` at `offset`, zero-padded to `len` bytes.
fn write_table(out: &dyn WriteAt, entries: &[u64], offset: u64, len: u64) -> Result<()> {
    const ENTRIES: usize = 8 << 10;
    let mut at = offset;
    for chunk in entries.chunks(ENTRIES) {
        let bytes: Vec<u8> = chunk.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        write(out, &bytes, at)?;
        at += bytes.len() as u64;
    }
    write_zeros(out, at..offset + len).map_err(Error::io("writing zeros", at))
}
