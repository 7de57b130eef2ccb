//! NTFS (Russon and Fledel, NTFS Documentation; libfsntfs, New Technologies File System format).
//!
//! Everything is a file: the bitmap of used clusters, the log, and the table of the files (MFT) itself. A record of the table has the
//! attributes of a file, with their data or the runs of clusters that hold it.

use super::volume::{Fields, Found, FreeRanges, Volume, clear_runs, kept};
use super::{Described, FileSystem};

// Numbers of records.
const MFT: u64 = 0;
const LOG: u64 = 2;
const VOLUME: u64 = 3;
const ROOT: u64 = 5;
const BITMAP: u64 = 6;

// Types of attributes.
const ATTRIBUTE_LIST: u32 = 0x20;
const VOLUME_NAME: u32 = 0x60;
const VOLUME_INFORMATION: u32 = 0x70;
const DATA: u32 = 0x80;
const INDEX_ROOT: u32 = 0x90;
const INDEX_ALLOCATION: u32 = 0xa0;

/// Bytes at which a structure has the number of its last update in place of two of its own.
const STRIDE: usize = 512;
/// Largest number of clusters, as in Windows.
const MOST_CLUSTERS: u64 = u32::MAX as u64;
/// Largest table that is looked at, in bytes: 16 million files.
const LARGEST_TABLE: u64 = 16 << 30;
/// Largest index of a directory that is searched, in bytes.
const LARGEST_INDEX: u64 = 16 << 20;

pub(super) struct Ntfs {
    sectors: u64,
    sector_size: u64,
    cluster_size: u64,
    clusters: u64,
    record_size: usize,
    serial: [u8; 8],
    label: Vec<u8>,
    flags: u16,
    table: Data,
}

/// The data of an attribute.
enum Data {
    Resident(Vec<u8>),
    Runs {
        /// Numbers of clusters on the disk, in the order of the file; `None` where it is sparse.
        runs: Vec<(Option<u64>, u64)>,
        len: u64,
    },
}

/// Opens the file system, if the volume has one.
pub(super) fn open(volume: &Volume) -> Found<Option<Box<dyn FileSystem>>> {
    match volume.peek::<512>(0)?.filter(|sector| sector[3..].starts_with(b"NTFS    ")) {
        Some(sector) => Ok(Some(Box::new(Ntfs::parse(&sector, volume)?))),
        None => Ok(None),
    }
}

impl Ntfs {
    fn parse(sector: &[u8; 512], volume: &Volume) -> Found<Ntfs> {
        let fields = Fields(sector);
        let sector_size = u64::from(fields.le16(11)?);
        let per_cluster = match fields.u8(13)? {
            count @ 0..=0x80 => u64::from(count),
            // 2 to the power of the negated number.
            log => 1_u64.checked_shl((256 - u32::from(log)).min(63)).unwrap_or_default(),
        };
        let cluster_size = sector_size.saturating_mul(per_cluster);
        let record_size = match fields.u8(64)?.cast_signed() {
            log @ ..0 => 1_u64.checked_shl(u32::from(log.unsigned_abs())).unwrap_or_default(),
            clusters => u64::from(clusters.unsigned_abs()).saturating_mul(cluster_size),
        };
        let sectors = fields.le64(40)?;
        let table = fields.le64(48)?;
        let is_sound = sector_size.is_power_of_two()
            && (512..=4096).contains(&sector_size)
            && cluster_size.is_power_of_two()
            && (512..=2 << 20).contains(&cluster_size)
            && record_size.is_power_of_two()
            && (1024..=4096).contains(&record_size)
            && sectors.checked_mul(sector_size).is_some_and(|size| size <= volume.len())
            && table.checked_mul(cluster_size).is_some_and(|at| at < volume.len());
        if !is_sound {
            return kept("the numbers in its boot sector are not valid");
        }
        let mut ntfs = Ntfs {
            sectors,
            sector_size,
            cluster_size,
            clusters: sectors / per_cluster,
            record_size: record_size as usize,
            serial: fields.bytes(72)?,
            label: Vec::new(),
            flags: 0,
            table: Data::Runs { runs: vec![(Some(table), record_size.div_ceil(cluster_size))], len: record_size },
        };
        // The table describes itself.
        ntfs.table =
            ntfs.attribute(&ntfs.record(volume, MFT)?, DATA)?.map_or_else(|| kept("its table has no data"), Ok)?;
        let own = ntfs.record(volume, VOLUME)?;
        if let Some(Data::Resident(name)) = ntfs.attribute(&own, VOLUME_NAME)? {
            let units = name.as_chunks().0.iter().map(|unit| u16::from_le_bytes(*unit));
            ntfs.label =
                char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect::<String>().into();
        }
        ntfs.flags = match ntfs.attribute(&own, VOLUME_INFORMATION)? {
            Some(Data::Resident(information)) => Fields(&information).le16(10)?,
            _ => return kept("it does not tell its version"),
        };
        Ok(ntfs)
    }

    /// Reads a record of the table.
    fn record(&self, volume: &Volume, number: u64) -> Found<Vec<u8>> {
        let mut record = vec![0; self.record_size];
        self.read(volume, &self.table, number.saturating_mul(self.record_size as u64), &mut record)?;
        if !record.starts_with(b"FILE") || Fields(&record).le16(22)? & 1 == 0 {
            return kept(format!("record {number} of its table is damaged"));
        }
        fix_up(&mut record)?;
        Ok(record)
    }

    /// The data of the attribute of this type, of a record, that has no name, or the name of an index of file names.
    fn attribute(&self, record: &[u8], kind: u32) -> Found<Option<Data>> {
        let mut found = None;
        each_attribute(record, |own, attribute| {
            if own == ATTRIBUTE_LIST && kind == DATA {
                return kept("a file of its own is described by several records");
            }
            let name = attribute.from(attribute.le16(10)?.into());
            let is_meant = match attribute.u8(9)? {
                0 => !matches!(kind, INDEX_ROOT | INDEX_ALLOCATION),
                4 => name.bytes::<8>(0)? == *b"$\0I\x003\x000\0",
                _ => false,
            };
            if own == kind && is_meant && found.is_none() {
                found = Some(self.data(attribute)?);
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn data(&self, attribute: Fields) -> Found<Data> {
        if is_resident(attribute)? {
            let (len, at) = (attribute.le32(16)? as usize, usize::from(attribute.le16(20)?));
            return match attribute.0.get(at..).and_then(|rest| rest.get(..len)) {
                Some(value) => Ok(Data::Resident(value.to_vec())),
                None => kept("the value of an attribute is cut off"),
            };
        }
        if attribute.le16(12)? & 0xff != 0 {
            return kept("a file of its own is compressed");
        }
        Ok(Data::Runs { runs: self.runs(attribute)?, len: attribute.le64(48)? })
    }

    /// The runs of an attribute that is not resident.
    fn runs(&self, attribute: Fields) -> Found<Vec<(Option<u64>, u64)>> {
        self.parse_runs(attribute.from(attribute.le16(32)?.into()).0)
    }

    /// Parses a list of runs: for each, the sizes of two numbers in a byte, its length, and how far it is from the run before.
    fn parse_runs(&self, mut list: &[u8]) -> Found<Vec<(Option<u64>, u64)>> {
        let (mut runs, mut cluster) = (Vec::new(), 0_i64);
        while let Some((sizes, rest)) = list.split_first().filter(|(sizes, _)| **sizes != 0) {
            let (len_size, distance_size) = (usize::from(sizes & 0xf), usize::from(sizes >> 4));
            let numbers = rest
                .split_at_checked(len_size)
                .and_then(|(len, rest)| Some((len, rest.split_at_checked(distance_size)?)));
            let Some((len, (distance, rest))) = numbers.filter(|_| len_size <= 8 && distance_size <= 8) else {
                return kept("a list of runs is cut off");
            };
            let len = len.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
            let sign = distance.last().map_or(0, |byte| if byte & 0x80 == 0 { 0 } else { -1_i64 });
            let distance = distance.iter().rev().fold(sign, |number, byte| number << 8 | i64::from(*byte));
            cluster = cluster.wrapping_add(distance);
            let start = (distance_size > 0).then_some(cluster.cast_unsigned());
            let is_sound = start.is_none_or(|start| start.checked_add(len).is_some_and(|end| end <= self.clusters));
            if !is_sound || len == 0 {
                return kept("a list of runs leaves the volume");
            }
            runs.push((start, len));
            list = rest;
        }
        Ok(runs)
    }

    /// Fills `bytes` from an offset of the data of a file.
    fn read(&self, volume: &Volume, data: &Data, offset: u64, bytes: &mut [u8]) -> Found<()> {
        let cut = || kept("a file of its own is cut off");
        let (runs, len) = match data {
            Data::Resident(all) => {
                let part = all.get(offset as usize..).and_then(|rest| rest.get(..bytes.len()));
                return part.map_or_else(cut, |part| {
                    bytes.copy_from_slice(part);
                    Ok(())
                });
            }
            Data::Runs { runs, len } => (runs, *len),
        };
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > len) {
            return cut();
        }
        let (mut start, mut done) = (0, 0);
        for (cluster, count) in runs {
            let Some(size) = count.checked_mul(self.cluster_size) else { return cut() };
            let at = offset + done as u64;
            if let Some(within) = at.checked_sub(start).filter(|within| *within < size) {
                let part = (size - within).min((bytes.len() - done) as u64) as usize;
                let target = bytes.get_mut(done..done + part).unwrap_or_default();
                match cluster {
                    Some(cluster) => volume.read_into(cluster * self.cluster_size + within, target)?,
                    None => target.fill(0),
                }
                done += part;
                if done == bytes.len() {
                    return Ok(());
                }
            }
            start = start.saturating_add(size);
        }
        cut()
    }

    /// Whether the log has nothing to be redone.
    fn check_log(&self, volume: &Volume) -> Found<()> {
        let log = self.attribute(&self.record(volume, LOG)?, DATA)?.map_or_else(|| kept("its log has no data"), Ok)?;
        let mut newest: Option<(u64, bool)> = None;
        let mut at = 0;
        // Two pages describe the log, in turns.
        for _ in 0..2 {
            let mut page = vec![0; 4096];
            self.read(volume, &log, at, &mut page)?;
            if page.iter().all(|byte| *byte == 0xff) {
                continue;
            }
            let fields = Fields(&page);
            if !page.starts_with(b"RSTR") {
                return kept("its log is not one of Windows");
            }
            at = fields.le32(16)?.into();
            let area = fields.from(fields.le16(24)?.into());
            // No client uses it, or it says that it was closed.
            let is_clean = area.le16(12)? == u16::MAX || area.le16(14)? & 2 != 0;
            let number = area.le64(0)?;
            if newest.is_none_or(|(before, _)| number > before) {
                newest = Some((number, is_clean));
            }
        }
        if newest.is_some_and(|(_, is_clean)| !is_clean) {
            return kept("its log has to be replayed: it was not unmounted");
        }
        Ok(())
    }

    /// Whether Windows is asleep and comes back to its caches.
    fn check_hibernation(&self, volume: &Volume) -> Found<()> {
        let root = self.record(volume, ROOT)?;
        let Some(Data::Resident(index)) = self.attribute(&root, INDEX_ROOT)? else {
            return kept("the index of its root directory is damaged");
        };
        let mut found = find_hibernation(Fields(&index).from(16))?;
        if let Some(blocks) = self.attribute(&root, INDEX_ALLOCATION)? {
            let Data::Runs { len, .. } = blocks else { return kept("the index of its root directory is damaged") };
            let size = Fields(&index).le32(8)? as usize;
            if !(512..=65536).contains(&size) || len > LARGEST_INDEX {
                return kept("the index of its root directory has an absurd size");
            }
            let mut block = vec![0; size];
            for at in (0..len / size as u64).map(|number| number * size as u64) {
                self.read(volume, &blocks, at, &mut block)?;
                // Blocks that are not in use keep what they had.
                if block.starts_with(b"INDX") {
                    fix_up(&mut block)?;
                    found = find_hibernation(Fields(&block).from(24))?.or(found);
                }
            }
        }
        let Some(number) = found else { return Ok(()) };
        let mut magic = [0; 4];
        if let Some(data) = self.attribute(&self.record(volume, number)?, DATA)? {
            match &data {
                Data::Runs { len, .. } if *len >= 4 => self.read(volume, &data, 0, &mut magic)?,
                _ => {}
            }
        }
        if magic.eq_ignore_ascii_case(b"hibr") {
            return kept("Windows is hibernated, or was shut down by its fast start-up");
        }
        Ok(())
    }
}

/// Undoes what protects a structure against being written in part.
fn fix_up(bytes: &mut [u8]) -> Found<()> {
    let fields = Fields(bytes);
    let (at, count) = (usize::from(fields.le16(4)?), usize::from(fields.le16(6)?));
    let list = bytes.get(at..).and_then(|rest| rest.get(..count * 2)).map(<[u8]>::to_vec);
    let Some((number, own)) = list.as_deref().and_then(<[u8]>::split_first_chunk::<2>) else {
        return kept("a structure has no update sequence");
    };
    let strides = bytes.chunks_exact_mut(STRIDE);
    if strides.len() != own.len() / 2 {
        return kept("a structure has another update sequence than its length needs");
    }
    for (stride, own) in strides.zip(own.as_chunks::<2>().0) {
        let Some(end) = stride.last_chunk_mut::<2>() else { continue };
        if end != number {
            return kept("a structure was written in part");
        }
        *end = *own;
    }
    Ok(())
}

/// Calls `attribute` with the type and the fields of each attribute of a record.
fn each_attribute(record: &[u8], mut attribute: impl FnMut(u32, Fields) -> Found<()>) -> Found<()> {
    let mut at = usize::from(Fields(record).le16(20)?);
    loop {
        let rest = Fields(record).from(at);
        let kind = rest.le32(0)?;
        if kind == u32::MAX {
            return Ok(());
        }
        let len = rest.le32(4)? as usize;
        let Some(own) = rest.0.get(..len).filter(|_| len >= 16 && len.is_multiple_of(8)) else {
            return kept("an attribute has an absurd length");
        };
        attribute(kind, Fields(own))?;
        at += len;
    }
}

fn is_resident(attribute: Fields) -> Found<bool> {
    attribute.u8(8).map(|flag| flag == 0)
}

/// Finds the record of `hiberfil.sys` in the entries after the header of an index.
fn find_hibernation(header: Fields) -> Found<Option<u64>> {
    const NAME: &[u8] = b"hiberfil.sys";
    let (mut at, end) = (header.le32(0)? as usize, header.le32(4)? as usize);
    while at < end {
        let entry = header.from(at);
        let (len, key) = (usize::from(entry.le16(8)?), usize::from(entry.le16(10)?));
        if entry.le16(12)? & 2 != 0 || len < 16 {
            break;
        }
        if key >= 66 + NAME.len() * 2 && usize::from(entry.u8(16 + 64)?) == NAME.len() {
            let name = entry.bytes::<24>(16 + 66)?;
            let is_name = name
                .as_chunks::<2>()
                .0
                .iter()
                .zip(NAME)
                .all(|([low, high], own)| *high == 0 && low.eq_ignore_ascii_case(own));
            if is_name {
                return Ok(Some(entry.le64(0)? & 0xffff_ffff_ffff));
            }
        }
        at += len;
    }
    Ok(None)
}

impl FileSystem for Ntfs {
    fn describe(&self) -> Described {
        let size = self.sectors * self.sector_size;
        let uuid = Some(self.serial.iter().rev().map(|byte| format!("{byte:02X}")).collect());
        Described { name: "NTFS", label: self.label.clone(), uuid, size, free: None }
    }

    fn free(&self, volume: &Volume, free: &mut FreeRanges) -> Found<()> {
        const CHUNK: u64 = 1 << 20;
        let table_len = match self.table {
            Data::Runs { len, .. } => len,
            Data::Resident(_) => return kept("its table has no clusters"),
        };
        if self.clusters > MOST_CLUSTERS || table_len > LARGEST_TABLE {
            return kept("it has more metadata than is looked at");
        }
        if self.flags & 1 != 0 {
            return kept("it is marked as dirty");
        }
        self.check_backup(volume)?;
        self.check_log(volume)?;
        self.check_hibernation(volume)?;
        let bitmap = self.attribute(&self.record(volume, BITMAP)?, DATA)?;
        let Some(bitmap @ Data::Runs { .. }) = bitmap else { return kept("its bitmap has no data") };
        let mut clear = 0;
        let bytes = self.clusters.div_ceil(8);
        for at in (0..bytes).step_by(CHUNK as usize) {
            let mut chunk = vec![0; CHUNK.min(bytes - at) as usize];
            self.read(volume, &bitmap, at, &mut chunk)?;
            let first = at * 8;
            clear += clear_runs(&chunk, self.clusters - first, |run| {
                free.add((first + run.start) * self.cluster_size..(first + run.end) * self.cluster_size);
            });
        }
        volume.mark_used(0..self.cluster_size)?;
        // It has no count of free clusters.
        match self.clusters - clear == self.clusters_of_files(volume, table_len, free)? {
            true => Ok(()),
            false => kept("its files have another number of clusters than its bitmap"),
        }
    }
}

impl Ntfs {
    /// Compares the boot sector with its copy, which follows the last cluster.
    fn check_backup(&self, volume: &Volume) -> Found<()> {
        match volume.read(0, 84)? == volume.read(self.sectors * self.sector_size, 84)? {
            true => Ok(()),
            false => kept("the copies of its boot sector differ"),
        }
    }

    /// The number of clusters of all files, none of which may be free.
    fn clusters_of_files(&self, volume: &Volume, table_len: u64, free: &FreeRanges) -> Found<u64> {
        const CHUNK: usize = 1 << 18;
        let mut count = 0_u64;
        for at in (0..table_len).step_by(CHUNK) {
            let mut chunk = vec![0; (table_len - at).min(CHUNK as u64) as usize];
            self.read(volume, &self.table, at, &mut chunk)?;
            for record in chunk.chunks_exact_mut(self.record_size) {
                // Of no file, or of one that was deleted.
                if !record.starts_with(b"FILE") || Fields(record).le16(22)? & 1 == 0 {
                    continue;
                }
                fix_up(record)?;
                count = count.saturating_add(self.clusters_of(record, free)?);
            }
        }
        Ok(count)
    }

    /// The number of clusters of all attributes in a record.
    fn clusters_of(&self, record: &[u8], free: &FreeRanges) -> Found<u64> {
        let mut count = 0_u64;
        each_attribute(record, |_, attribute| {
            if is_resident(attribute)? {
                return Ok(());
            }
            for (start, len) in self.runs(attribute)? {
                let Some(start) = start else { continue };
                free.check_used(start * self.cluster_size..(start + len) * self.cluster_size)?;
                count = count.saturating_add(len);
            }
            Ok(())
        })?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry of the index of a directory: the record of the file, the flags, and its name.
    fn entry(record: u64, flags: u16, name: &[u16]) -> Vec<u8> {
        let key = 66 + name.len() * 2;
        let mut bytes = vec![0; (16 + key).next_multiple_of(8)];
        let len = bytes.len() as u16;
        // The number of times that the record was used is above its own.
        bytes[..8].copy_from_slice(&(record | 5 << 48).to_le_bytes());
        bytes[8..10].copy_from_slice(&len.to_le_bytes());
        bytes[10..12].copy_from_slice(&(key as u16).to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[16 + 64] = name.len() as u8;
        let name = name.iter().flat_map(|unit| unit.to_le_bytes());
        bytes.iter_mut().skip(16 + 66).zip(name).for_each(|(byte, own)| *byte = own);
        bytes
    }

    /// Looks for the file in an index with these entries.
    fn found(entries: &[Vec<u8>]) -> Option<u64> {
        let entries = entries.concat();
        let mut index = vec![0; 16];
        index[..4].copy_from_slice(&16_u32.to_le_bytes());
        index[4..8].copy_from_slice(&(16 + entries.len() as u32).to_le_bytes());
        index.extend(entries);
        find_hibernation(Fields(&index)).ok().unwrap()
    }

    #[test]
    fn the_file_of_hibernation_is_found_by_its_name() {
        let units = |name: &str| name.encode_utf16().collect::<Vec<_>>();
        let (other, last) = (entry(40, 0, &units("bootmgr")), entry(0, 2, &[]));
        for name in ["hiberfil.sys", "HiberFil.SYS"] {
            assert_eq!(found(&[other.clone(), entry(70, 0, &units(name)), last.clone()]), Some(70));
        }
        let mut wide = units("hiberfil.sys");
        wide[0] |= 0x100;
        for name in [units("hiberfil.syt"), units("hiberfil.sy"), units("hiberfil.sys1"), wide] {
            assert_eq!(found(&[entry(70, 0, &name), last.clone()]), None);
        }
    }

    #[test]
    fn an_index_ends_with_its_last_entry() {
        let file = entry(70, 0, &"hiberfil.sys".encode_utf16().collect::<Vec<_>>());
        assert_eq!(found(std::slice::from_ref(&file)), Some(70));
        assert_eq!(found(&[entry(0, 2, &[]), file.clone()]), None);
        // A length of 0 would not come to an end.
        assert_eq!(found(&[vec![0; 16], file.clone()]), None);
        // What is after the end of the index does not count.
        let mut index = [16_u32, 16, 0, 0].map(u32::to_le_bytes).concat();
        index.extend(file);
        assert_eq!(find_hibernation(Fields(&index)).ok().unwrap(), None);
    }
}
