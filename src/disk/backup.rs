//! Backups: the old content of what a repair changes.
//!
//! All numbers are big-endian, and in bytes. The header is written last, so that an incomplete file is not a backup.
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 16 | `imgconv backup 1` |
//! | 16 | 8 | length of the image before the repair |
//! | 24 | 8 | length of the image after it |
//! | 32 | 8 | length of the backup |
//! | 40 | | records: offset in the image (8), length (8), old content, new content |
//!
//! The records are in the order of their offsets, do not overlap, and end at or before the former end of the image. What the image no longer has after the
//! repair is zeros in the new content. An image is restored only if each of its sectors in a record is the old or the new one, so that it was not
//! changed by anything else.

use std::fs;
use std::ops::Range;
use std::path::Path;

use super::trial::Trial;
use crate::error::{Error, Problem, Result};
use crate::format::shared::table::{self, Fields};
use crate::io::{FileSource, FileTarget, ReadAt, Storage, WriteAt, directory_of, sync_directory};

const FIELDS: Fields = Fields("backup");
const SIGNATURE: [u8; 16] = *b"imgconv backup 1";
const HEADER: usize = 40;
const RECORD: usize = 16;
/// Bytes that are written at once, or not.
const SECTOR: usize = 512;
/// Bytes that are copied at once.
const CHUNK: u64 = 256 << 10;

/// The header of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    old_len: u64,
    new_len: u64,
    backup_len: u64,
}

/// Writes a new file at `path` with the old content of what has changed in `trial`, from the image `file`.
pub(super) fn write(file: &dyn ReadAt, trial: &Trial, path: &Path) -> Result<()> {
    let target = FileTarget::create_new(path).map_err(Error::io("creating the backup", None))?;
    let written = write_to(file, trial, &target).and_then(|()| {
        target.close().map_err(Error::io("closing the backup", None))?;
        sync_directory(directory_of(path)).map_err(Error::io("syncing the directory", None))
    });
    if written.is_err() {
        // It has no header.
        let _ = fs::remove_file(path);
    }
    written
}

fn write_to(file: &dyn ReadAt, trial: &Trial, target: &dyn WriteAt) -> Result<()> {
    let put = |bytes: &[u8], at: u64| target.write_all_at(bytes, at).map_err(Error::io("writing the backup", at));
    let sync = || target.sync().map_err(Error::io("syncing the backup", None));
    let mut at = HEADER as u64;
    for range in trial.changed() {
        put(&[range.start.to_be_bytes(), (range.end - range.start).to_be_bytes()].concat(), at)?;
        at += RECORD as u64;
        let len = range.end - range.start;
        copy(file, range.clone(), target, at)?;
        let new_len = table::length(trial)?.clamp(range.start, range.end);
        copy(trial, range.start..new_len, target, at + len)?;
        at += 2 * len;
        target.set_len(at).map_err(Error::io("writing the backup", at))?;
    }
    sync()?;
    let header = Header { old_len: table::length(file)?, new_len: table::length(trial)?, backup_len: at };
    put(&header.encode(), 0)?;
    sync()
}

/// Gives the image `file` the content that it had before the repair.
pub(super) fn restore(backup: &Path, file: &dyn Storage) -> Result<()> {
    let backup =
        fs::File::open(backup).and_then(FileSource::try_from).map_err(Error::io("opening the backup", None))?;
    restore_from(&backup, file)
}

fn restore_from(backup: &dyn ReadAt, file: &dyn Storage) -> Result<()> {
    let header = Header::read(backup)?;
    let len = table::length(file)?;
    let possible = header.old_len.min(header.new_len)..=header.old_len.max(header.new_len);
    if !possible.contains(&len) {
        return Err(changed(&format!("its length is {len}, not {}", header.new_len)));
    }
    // All records are looked at before one is put back.
    header.each_record(backup, &mut |range, at| {
        compare(backup, at, file, range.start..range.end.min(len), range.end - range.start)
    })?;
    header.each_record(backup, &mut |range, at| copy(backup, at..at + (range.end - range.start), file, range.start))?;
    file.set_len(header.old_len).map_err(Error::io("setting the length", header.old_len))?;
    file.sync().map_err(Error::io("syncing", None))
}

/// The image is not what a repair makes of the one that the backup is of.
fn changed(how: &str) -> Error {
    Error::Usage(format!("it is the backup of another image, or the image was changed after the repair: {how}"))
}

/// Compares the sectors of the image in `range` with the old and the new content of a record of `len` bytes at `at` in the backup.
fn compare(backup: &dyn ReadAt, at: u64, file: &dyn Storage, range: Range<u64>, len: u64) -> Result<()> {
    let mut parts = [const { Vec::new() }; 3];
    for start in range.clone().step_by(CHUNK as usize) {
        let part = (range.end - start).min(CHUNK) as usize;
        let [now, old, new] = &mut parts;
        [&mut *now, &mut *old, &mut *new].into_iter().for_each(|bytes| bytes.resize(part, 0));
        table::read(file, now, start)?;
        let at = at + (start - range.start);
        table::read(backup, old, at)?;
        table::read(backup, new, at + len)?;
        let mut sectors = now.chunks(SECTOR).zip(old.chunks(SECTOR)).zip(new.chunks(SECTOR));
        if let Some(index) = sectors.position(|((now, old), new)| now != old && now != new) {
            return Err(changed(&format!("at offset {:#x}", start + (index * SECTOR) as u64)));
        }
    }
    Ok(())
}

/// Copies a range of `from` to the offset `at`.
fn copy<T: WriteAt + ?Sized>(from: &dyn ReadAt, range: Range<u64>, to: &T, at: u64) -> Result<()> {
    let mut bytes = vec![0; CHUNK.min(range.end - range.start) as usize];
    for start in range.clone().step_by(CHUNK as usize) {
        bytes.truncate((range.end - start) as usize);
        table::read(from, &mut bytes, start)?;
        let at = at + (start - range.start);
        to.write_all_at(&bytes, at).map_err(Error::io(format!("writing {} bytes", bytes.len()), at))?;
    }
    Ok(())
}

impl Header {
    fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let fields = [self.old_len, self.new_len, self.backup_len].map(u64::to_be_bytes);
        bytes[..SIGNATURE.len()].copy_from_slice(&SIGNATURE);
        bytes[SIGNATURE.len()..].copy_from_slice(fields.as_flattened());
        bytes
    }

    fn read(backup: &dyn ReadAt) -> Result<Header> {
        let (bytes, len) = FIELDS.read_header::<HEADER>(backup)?;
        let [first, second, old_len, new_len, backup_len] = words(&bytes);
        if [first, second].map(u64::to_be_bytes).as_flattened() != SIGNATURE {
            return Err(Error::Usage("it is not a backup of a repair, or was not completed".into()));
        }
        let field = FIELDS.at("length of the backup", 32);
        field.within(0, backup_len, len)?;
        match backup_len == len {
            true => Ok(Header { old_len, new_len, backup_len }),
            false => Err(field.fault(Problem::Range { value: backup_len, min: len, max: len })),
        }
    }

    /// Calls `each` with the range of the image of each record, and where its content is in the backup.
    fn each_record(&self, backup: &dyn ReadAt, each: &mut dyn FnMut(Range<u64>, u64) -> Result<()>) -> Result<()> {
        let (mut at, mut end) = (HEADER as u64, 0);
        while at < self.backup_len {
            FIELDS.at("record", at).within(at, RECORD as u64, self.backup_len)?;
            let mut record = [0; RECORD];
            table::read(backup, &mut record, at)?;
            let [start, len] = words(&record);
            let field = FIELDS.at("range of a record", at);
            field.within(start, len, self.old_len)?;
            if start < end || len == 0 {
                return Err(field.fault(Problem::Range { value: start, min: end, max: self.old_len }));
            }
            at += RECORD as u64;
            // The old content and the new one.
            FIELDS.at("content of a record", at).within(at, len.saturating_mul(2), self.backup_len)?;
            end = start + len;
            each(start..end, at)?;
            at += 2 * len;
        }
        Ok(())
    }
}

/// The big-endian numbers that `bytes` is made of.
fn words<const LEN: usize>(bytes: &[u8]) -> [u64; LEN] {
    let mut words = bytes.as_chunks().0.iter().map(|word| u64::from_be_bytes(*word));
    std::array::from_fn(|_| words.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::io::MemFile;
    use crate::testing::{Random, TempDir};

    /// An image, and the backup of some changes of it.
    fn repaired(seed: u64) -> (Vec<u8>, Arc<Trial>, Vec<u8>) {
        let dir = TempDir::new();
        let mut random = Random::new(seed);
        let old = random.bytes(60_000);
        let file = Arc::new(MemFile::from(old.clone()));
        let trial = Arc::new(Trial::new(file.clone(), dir.path()).unwrap());
        for _ in 0..4 {
            trial.write_all_at(&[7; 20], random.below(70_000)).unwrap();
        }
        if seed.is_multiple_of(2) {
            trial.set_len(50_000).unwrap();
        }
        let backup = MemFile::new();
        write_to(&*file, &trial, &backup).unwrap();
        (old, trial, backup.to_vec())
    }

    #[test]
    fn a_backup_has_all_that_was_changed() {
        for seed in 0..20 {
            let (old, trial, backup) = repaired(seed);
            let mut new = vec![0; trial.size().unwrap() as usize];
            trial.read_exact_at(&mut new, 0).unwrap();
            assert!(new != old);
            let image = MemFile::from(new.clone());
            restore_from(&backup, &image).unwrap();
            assert!(image.to_vec() == old, "seed {seed}");
            restore_from(&backup, &image).unwrap();
            assert!(image.to_vec() == old, "seed {seed}, again");
            // Of a repair that was interrupted, some sectors are there.
            let mut random = Random::new(seed);
            let common = old.len().min(new.len()) / SECTOR;
            let mut mixed = new;
            for sector in (0..common).filter(|_| random.below(2) == 0).map(|index| index * SECTOR..(index + 1) * SECTOR)
            {
                mixed[sector.clone()].copy_from_slice(&old[sector]);
            }
            let image = MemFile::from(mixed);
            restore_from(&backup, &image).unwrap();
            assert!(image.to_vec() == old, "seed {seed}, interrupted");
        }
    }

    #[test]
    fn an_image_that_was_changed_after_the_repair_is_refused() {
        let (_, trial, backup) = repaired(1);
        let mut new = vec![0; trial.size().unwrap() as usize];
        trial.read_exact_at(&mut new, 0).unwrap();
        for range in trial.changed() {
            let mut used = new.clone();
            used[range.end as usize - 1] ^= 1;
            let image = MemFile::from(used.clone());
            let error = restore_from(&backup, &image).unwrap_err().to_string();
            assert!(error.contains("changed after the repair") && image.to_vec() == used, "{error}");
        }
    }

    #[test]
    fn a_damaged_backup_changes_nothing() {
        let (old, _, backup) = repaired(1);
        let refused = |backup: Vec<u8>| {
            let image = MemFile::from(old.clone());
            let error = restore_from(&backup, &image).unwrap_err();
            assert!(image.to_vec() == old, "{error}");
        };
        (0..backup.len()).step_by(11).for_each(|len| refused(backup[..len].to_vec()));
        // The signature, the length of the backup, and an offset beyond the end.
        for at in (0..16).chain(32..46) {
            let mut damaged = backup.clone();
            damaged[at] ^= 0x80;
            refused(damaged);
        }
        refused([&backup[..], &[0; 16]].concat());
        let other = MemFile::from(vec![0; old.len() + 100_000]);
        assert!(restore_from(&backup, &other).unwrap_err().to_string().contains("its length is"));
    }
}
