//! The core over the raw driver; the integration tests have the other formats.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::convert::Converter;
use crate::disk::{Disk, Preallocation};
use crate::format::Format;
use crate::image::OpenOptions;
use crate::io::{MemFile, ReadAt, WriteAt};

fn raw(bytes: Vec<u8>) -> (Arc<MemFile>, Disk) {
    let file = Arc::new(MemFile::from(bytes));
    let disk = OpenOptions::new().format(Format::RAW).open_disk_in(file.clone()).unwrap();
    (file, disk)
}

#[test]
fn a_raw_disk_is_written_where_it_is() {
    let (file, disk) = raw((0..=255).cycle().take(2000).collect());
    let mut expected = file.to_vec();
    disk.write_all_at(b"some text", 1000).unwrap();
    expected[1000..1009].copy_from_slice(b"some text");
    disk.write_zeros(100..700).unwrap();
    expected[100..700].fill(0);
    disk.discard(1500..2000).unwrap();
    expected[1500..2000].fill(0);
    disk.flush().unwrap();
    assert!(file.to_vec() == expected);
    disk.resize(2500).unwrap();
    disk.write_all_at(&[9], 2499).unwrap();
    expected.resize(2499, 0);
    expected.push(9);
    assert!(file.to_vec() == expected);
    disk.resize(10).unwrap();
    disk.close().unwrap();
    assert!(file.to_vec() == expected[..10]);
}

#[test]
fn requests_beyond_the_end_are_refused() {
    let (file, disk) = raw(vec![7; 1000]);
    for offset in [1, 1000, u64::MAX] {
        assert_eq!(disk.write_all_at(&[0; 1000], offset).unwrap_err().kind().as_str(), "usage");
        assert_eq!(disk.read_exact_at(&mut [0; 1000], offset).unwrap_err().kind().as_str(), "usage");
        assert_eq!(disk.write_zeros(offset..u64::MAX).unwrap_err().kind().as_str(), "usage");
        assert_eq!(disk.discard(offset..u64::MAX).unwrap_err().kind().as_str(), "usage");
    }
    #[expect(clippy::reversed_empty_ranges)]
    disk.write_zeros(1000..999).unwrap();
    disk.write_all_at(&[], 1000).unwrap();
    assert_eq!(file.to_vec(), [7; 1000]);
}

/// Storage without space for more than `len` bytes.
struct Full {
    file: Arc<MemFile>,
    len: u64,
}

impl ReadAt for Full {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
}

impl WriteAt for Full {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        match offset + buf.len() as u64 <= self.len {
            true => self.file.write_all_at(buf, offset),
            false => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        if range.end <= self.len { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }
}

#[test]
fn a_disk_that_cannot_be_allocated_keeps_its_size() {
    for format in [Format::RAW, Format::QCOW2] {
        for how in [Preallocation::Full, Preallocation::Space] {
            let file = Arc::new(MemFile::new());
            Converter::new(format).create_to(1 << 20, file.clone()).unwrap();
            let len = file.size().unwrap();
            let storage = Arc::new(Full { file: file.clone(), len: len + (3 << 20) });
            let disk = OpenOptions::new().format(format).open_disk_in(storage).unwrap();
            let error = disk.grow_allocated(16 << 20, how).unwrap_err();
            assert_eq!(error.kind().as_str(), "io", "{format} {how:?}: {error}");
            assert_eq!(disk.size(), 1 << 20, "{format} {how:?}");
            disk.close().unwrap();
            let report = OpenOptions::new().format(format).open_source(file.clone()).unwrap();
            assert_eq!(report.virtual_size(), 1 << 20);
            assert!(file.size().unwrap() < 16 << 20, "{format} {how:?}");
            if format.can_check() {
                let report = OpenOptions::new().format(format).check_source(file).unwrap();
                assert_eq!((report.corruptions, report.leaks), (0, 0), "{how:?}: {:?}", report.messages);
            }
        }
    }
}
