//! Pages of the tables of an image that changes: read on demand, and written back in order.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Problem, Result};
use crate::format::shared::table;
use crate::io::Storage;

/// Unit in bytes that storage writes as a whole, also at a power cut, and in which changes are tracked.
const SECTOR: usize = 512;

/// A step of writing tables back. A driver writes the pages of one step, syncs, and goes on with the next one, so that what a table points to is
/// durable before the table. A page of a table that nothing points to yet belongs to an earlier step than tables in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Step(pub u8);

/// The tables of an image file, in pages. Memory is bounded: clean pages are dropped when there are too many, and a driver flushes when
/// there are many [changed ones](Self::is_full).
pub(crate) struct TablePages {
    file: Arc<dyn Storage>,
    /// Name of the format, for errors.
    format: &'static str,
    page_size: usize,
    /// By page number.
    pages: HashMap<u64, Page>,
    /// Counts uses.
    clock: u64,
    /// Number of pages with changes.
    changed: usize,
}

struct Page {
    bytes: Box<[u8]>,
    /// How many bytes the file had when it was read.
    len: usize,
    last_use: u64,
    /// A bit for each sector that differs from the file.
    changed: u64,
    /// When it is written, if it is changed.
    step: Step,
}

impl TablePages {
    /// Most bytes of pages in memory.
    const CAPACITY: usize = 16 << 20;
    /// Most bytes of changed pages before a driver has to flush.
    const CHANGED: usize = 4 << 20;
    /// Largest page in bytes: a bit for each sector.
    const LARGEST_PAGE: usize = 64 * SECTOR;
    /// Longest write in bytes.
    const WRITE: usize = 1 << 20;

    /// Tables of `file` in pages of `page_size` bytes: a multiple of 512, at most 32 KiB. All tables in one page must be written in the same step,
    /// so that a page is not larger than the alignment of tables of different kinds. Only changed sectors are written: payload may share a page
    /// with tables, but not a sector.
    pub fn new(file: Arc<dyn Storage>, format: &'static str, page_size: usize) -> Self {
        debug_assert!(page_size.is_multiple_of(SECTOR) && (SECTOR..=Self::LARGEST_PAGE).contains(&page_size));
        TablePages { file, format, page_size, pages: HashMap::new(), clock: 0, changed: 0 }
    }

    /// Reads `buf.len()` bytes at `offset`.
    ///
    /// # Errors
    /// If the file ends before, and errors of the storage.
    pub fn read(&mut self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            let (number, within) = self.locate(offset);
            let len = (self.page_size - within).min(buf.len());
            let (part, rest) = std::mem::take(&mut buf).split_at_mut(len);
            let page = self.page(number, (within + len) as u64)?;
            part.copy_from_slice(page.bytes.get(within..within + len).unwrap_or_default());
            (buf, offset) = (rest, offset + len as u64);
        }
        Ok(())
    }

    /// Reads `N` bytes at `offset`.
    pub fn read_array<const N: usize>(&mut self, offset: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(&mut bytes, offset).map(|()| bytes)
    }

    /// Changes the bytes at `offset`, which [`write_back`](Self::write_back) writes in `step`, or in an earlier one if the page was
    /// changed for that before.
    ///
    /// # Errors
    /// As [`read`](Self::read): the bytes are those of an existing table.
    pub fn write(&mut self, mut bytes: &[u8], mut offset: u64, step: Step) -> Result<()> {
        while !bytes.is_empty() {
            let (number, within) = self.locate(offset);
            let len = (self.page_size - within).min(bytes.len());
            let (part, rest) = bytes.split_at(len);
            let page = self.page(number, (within + len) as u64)?;
            let is_new = page.changed == 0;
            page.step = if is_new { step } else { page.step.min(step) };
            page.mark(within..within + len);
            if let Some(place) = page.bytes.get_mut(within..within + len) {
                place.copy_from_slice(part);
            }
            self.changed += usize::from(is_new);
            (bytes, offset) = (rest, offset + len as u64);
        }
        Ok(())
    }

    /// Adds a new table of zeros, whatever the file has there. The range consists of whole pages.
    pub fn create(&mut self, range: Range<u64>, step: Step) {
        let size = self.page_size as u64;
        self.forget(&range);
        for number in range.start / size..range.end.div_ceil(size) {
            self.clock += 1;
            let mut page = Page {
                bytes: vec![0; self.page_size].into(),
                len: self.page_size,
                last_use: self.clock,
                changed: 0,
                step,
            };
            page.mark(0..self.page_size);
            self.pages.insert(number, page);
            self.changed += 1;
        }
        self.drop_oldest();
    }

    /// Drops the pages of a table that is no longer used, with their changes.
    pub fn forget(&mut self, range: &Range<u64>) {
        let size = self.page_size as u64;
        for number in range.start / size..range.end.div_ceil(size) {
            self.changed -= usize::from(self.pages.remove(&number).is_some_and(|page| page.changed != 0));
        }
    }

    /// Whether there are so many changes that they have to be written back before the next one.
    pub fn is_full(&self) -> bool {
        self.changed * self.page_size >= Self::CHANGED
    }

    /// The number of changed pages.
    pub fn changed_count(&self) -> usize {
        self.changed
    }

    /// The changed pages with their offsets, for a log.
    pub fn changed_pages(&self) -> Vec<(u64, &[u8])> {
        let changed = self.pages.iter().filter(|(_, page)| page.changed != 0);
        let mut pages: Vec<_> = changed.map(|(number, page)| (number * self.page_size as u64, &*page.bytes)).collect();
        pages.sort_unstable_by_key(|(at, _)| *at);
        pages
    }

    /// Writes the changes of a step to the file, adjacent ones at once. Returns whether there were any.
    ///
    /// # Errors
    /// Errors of the storage. What was not written stays changed.
    pub fn write_back(&mut self, step: Step) -> Result<bool> {
        if self.changed == 0 {
            return Ok(false);
        }
        let due = |page: &Page| page.changed != 0 && page.step == step;
        let mut numbers: Vec<_> = self.pages.iter().filter(|(_, page)| due(page)).map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        let (mut start, mut run) = (0, Vec::new());
        for number in &numbers {
            let Some(page) = self.pages.get(number) else { continue };
            for (index, sector) in page.bytes.chunks(SECTOR).enumerate() {
                if page.changed >> index & 1 == 0 {
                    continue;
                }
                let at = number * self.page_size as u64 + (index * SECTOR) as u64;
                if run.is_empty() || start + run.len() as u64 != at || run.len() >= Self::WRITE {
                    write(&*self.file, &run, start)?;
                    run.clear();
                    start = at;
                }
                run.extend_from_slice(sector);
            }
        }
        write(&*self.file, &run, start)?;
        for number in &numbers {
            if let Some(page) = self.pages.get_mut(number) {
                page.changed = 0;
            }
        }
        self.changed -= numbers.len();
        Ok(!numbers.is_empty())
    }

    fn locate(&self, offset: u64) -> (u64, usize) {
        (offset / self.page_size as u64, (offset % self.page_size as u64) as usize)
    }

    /// The page, of which the file must have the first `needed` bytes unless it was created.
    fn page(&mut self, number: u64, needed: u64) -> Result<&mut Page> {
        self.clock += 1;
        match self.pages.get(&number) {
            Some(page) if page.len as u64 >= needed => {}
            // The file has grown meanwhile.
            Some(old) => {
                let mut page = self.load(number, needed)?;
                for (new, old) in page.bytes.iter_mut().zip(old.bytes.iter().take(old.len)) {
                    *new = *old;
                }
                (page.changed, page.step) = (old.changed, old.step);
                self.pages.insert(number, page);
            }
            None => {
                let page = self.load(number, needed)?;
                self.drop_oldest();
                self.pages.insert(number, page);
            }
        }
        let clock = self.clock;
        let page = self.pages.get_mut(&number).ok_or_else(|| Error::Usage("a page was dropped".into()))?;
        page.last_use = clock;
        Ok(page)
    }

    fn load(&self, number: u64, needed: u64) -> Result<Page> {
        let start = number.saturating_mul(self.page_size as u64);
        let file_len = table::length(&*self.file)?;
        let len = file_len.saturating_sub(start).min(self.page_size as u64);
        if len < needed {
            let problem = Problem::OutOfBounds { offset: start, len: needed, file_len };
            return Err(Error::corrupt(self.format, "table", start, problem));
        }
        let mut bytes = vec![0; self.page_size];
        table::read(&*self.file, bytes.get_mut(..len as usize).unwrap_or_default(), start)?;
        Ok(Page { bytes: bytes.into(), len: len as usize, last_use: self.clock, changed: 0, step: Step(0) })
    }

    /// Drops the half of the unchanged pages that was not used for longest, if there are too many.
    fn drop_oldest(&mut self) {
        if self.pages.len() * self.page_size < Self::CAPACITY {
            return;
        }
        let mut uses: Vec<_> = self.pages.values().filter(|page| page.changed == 0).map(|page| page.last_use).collect();
        if uses.is_empty() {
            return;
        }
        let middle = uses.len() / 2;
        let oldest = *uses.select_nth_unstable(middle).1;
        self.pages.retain(|_, page| page.changed != 0 || page.last_use > oldest);
    }
}

impl Page {
    fn mark(&mut self, bytes: Range<usize>) {
        for sector in bytes.start / SECTOR..bytes.end.div_ceil(SECTOR) {
            self.changed |= 1 << sector;
        }
    }
}

fn write(file: &dyn Storage, bytes: &[u8], offset: u64) -> Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    file.write_all_at(bytes, offset).map_err(Error::io("writing a table", offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemFile;

    const TABLES: Step = Step(1);

    fn pages(len: usize) -> (Arc<MemFile>, TablePages) {
        let file = Arc::new(MemFile::from(vec![7; len]));
        (file.clone(), TablePages::new(file, "toy", 4096))
    }

    #[test]
    fn only_changed_sectors_are_written_step_by_step() {
        let (file, mut pages) = pages(12_288);
        pages.write(&[1; 8], 4096 + 508, TABLES).unwrap();
        pages.write(&[2; 8], 8192, Step(0)).unwrap();
        assert_eq!(pages.read_array(4096 + 507).unwrap(), [7, 1, 1]);
        // Meanwhile, payload is written beside the table.
        crate::io::WriteAt::write_all_at(&*file, &[5; 512], 4096 + 1024).unwrap();
        assert!(file.to_vec()[4096..5120] == [7; 1024]);
        assert!(pages.write_back(Step(0)).unwrap() && !pages.write_back(Step(0)).unwrap());
        assert!(
            file.to_vec()[4096..5120] == [7; 1024]
                && file.to_vec()[8192..8201] == *b"\x02\x02\x02\x02\x02\x02\x02\x02\x07"
        );
        assert!(pages.write_back(TABLES).unwrap() && !pages.write_back(TABLES).unwrap());
        let bytes = file.to_vec();
        assert_eq!((&bytes[4096 + 507..4096 + 517], bytes[4096 + 1024]), (&[7, 1, 1, 1, 1, 1, 1, 1, 1, 7][..], 5));
    }

    #[test]
    fn a_new_table_is_written_before_those_in_use_whatever_is_added_to_it() {
        let (file, mut pages) = pages(4096);
        pages.create(4096..12_288, Step(0));
        pages.write(&[3], 4100, TABLES).unwrap();
        assert!(!pages.write_back(TABLES).unwrap() && pages.write_back(Step(0)).unwrap());
        let mut expected = vec![0; 8192];
        expected[4] = 3;
        assert!(file.to_vec()[4096..] == expected);
        pages.write(&[4], 4100, TABLES).unwrap();
        pages.forget(&(4096..12_288));
        assert!(!pages.write_back(TABLES).unwrap());
        assert_eq!(pages.read_array(4100).unwrap(), [3]);
    }

    #[test]
    fn missing_bytes_are_an_error() {
        let (file, mut pages) = pages(5000);
        assert_eq!(pages.read_array(4999).unwrap(), [7]);
        assert_eq!(pages.read_array::<2>(4999).unwrap_err().kind().as_str(), "out-of-bounds");
        assert_eq!(pages.write(&[1], 5000, TABLES).unwrap_err().kind().as_str(), "out-of-bounds");
        crate::io::WriteAt::write_all_at(&*file, &[8; 10], 5000).unwrap();
        pages.write(&[1], 4999, TABLES).unwrap();
        assert_eq!(pages.read_array(4999).unwrap(), [1, 8]);
        assert_eq!(pages.read_array::<1>(u64::MAX).unwrap_err().kind().as_str(), "out-of-bounds");
    }

    #[test]
    fn memory_is_bounded_and_changes_are_kept() {
        let len = 2 * TablePages::CAPACITY;
        let (_, mut pages) = pages(len);
        pages.write(&[9], 0, TABLES).unwrap();
        for at in (0..len as u64).step_by(4096) {
            assert!(pages.read_array::<1>(at).is_ok());
            assert!(pages.pages.len() * 4096 <= TablePages::CAPACITY);
        }
        assert_eq!(pages.read_array(0).unwrap(), [9]);
        for at in (0..TablePages::CHANGED as u64).step_by(4096) {
            assert!(!pages.is_full());
            pages.write(&[1], at, TABLES).unwrap();
        }
        assert!(pages.is_full());
    }
}
