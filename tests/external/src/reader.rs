//! Reading toy images.

use std::ops::Range;
use std::sync::Arc;

use diskimage::driver::{Extent, ExtentKind, FileId, Location, OpenContext, SparseRead};
use diskimage::io::ReadAt;
use diskimage::{Error, ImageInfo, Problem, Result};

use crate::NAME;
use crate::header::{HEADER_LEN, Header, file_len};

struct Reader {
    header: Header,
    table: Vec<u32>,
    file_len: u64,
    info: ImageInfo,
}

pub fn open(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Box<dyn SparseRead>> {
    cx.refuse_snapshots(NAME)?;
    let header = Header::read(&*file, cx)?;
    let table = header.read_table(&*file, cx)?;
    let mut info = ImageInfo::new(NAME, header.virtual_size);
    info.block_size = Some(header.cluster_size as u32);
    info.specific = vec![("table-offset", header.table_offset.into())];
    Ok(Box::new(Reader { file_len: file_len(&*file)?, header, table, info }))
}

impl Reader {
    fn kind(&self, cluster: u64) -> Result<ExtentKind> {
        let entry = self.table.get(cluster as usize).copied().unwrap_or_default();
        if entry == 0 {
            return Ok(ExtentKind::Hole);
        }
        let (offset, len) = (u64::from(entry) * self.header.cluster_size, self.header.guest_len(cluster));
        if offset + len > self.file_len {
            let problem = Problem::OutOfBounds { offset, len, file_len: self.file_len };
            return Err(Error::corrupt(NAME, "table entry", self.header.entry_offset(cluster), problem));
        }
        Ok(ExtentKind::Data(Location { file: FileId(0), offset }))
    }
}

impl SparseRead for Reader {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
        let size = self.header.cluster_size;
        let kind = self.kind(range.start / size)?.advance(range.start % size);
        let mut end = (range.start / size + 1) * size;
        while end < range.end && kind.continues(end - range.start, self.kind(end / size)?) {
            end += size;
        }
        Ok(Extent::new(range.start..end.min(range.end), kind))
    }

    fn host_alignment(&self) -> Option<u64> {
        Some(self.header.cluster_size)
    }

    fn metadata(&self, claim: &mut dyn FnMut(FileId, Range<u64>) -> bool) -> Result<()> {
        let (offset, len) = (self.header.table_offset, self.header.table_len());
        if len > 0 && offset < HEADER_LEN as u64 {
            return Err(Error::corrupt(NAME, "table offset", 24, Problem::Overlap { offset, with: "the header" }));
        }
        // Both may be in one cluster, so that the second claim may find it taken.
        claim(FileId(0), 0..HEADER_LEN as u64);
        if len > 0 {
            claim(FileId(0), offset..offset + len);
        }
        Ok(())
    }
}
