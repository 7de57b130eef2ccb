//! Output files that record the calls of writers.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use diskimage::ImageIdentifiers;
use diskimage::driver::SparseWrite;
use diskimage::io::{MemFile, ReadAt, WriteAt};

/// A target in memory, a file or a device full of old content, that records the calls it receives.
pub struct RecordingTarget {
    pub mem: MemFile,
    device: bool,
    pub events: Mutex<Vec<TargetEvent>>,
}

/// A call of [`WriteAt`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetEvent {
    Write(Range<u64>),
    Allocate(Range<u64>),
    SetLen(u64),
    Sync,
}

impl RecordingTarget {
    pub fn file() -> Arc<RecordingTarget> {
        Arc::new(RecordingTarget { mem: MemFile::new(), device: false, events: Mutex::default() })
    }

    /// A device of `len` bytes, none of which is zero.
    pub fn device(len: u64) -> Arc<RecordingTarget> {
        let mem = MemFile::from(vec![0xee; len as usize]);
        Arc::new(RecordingTarget { mem, device: true, events: Mutex::default() })
    }

    /// The writes by their offsets, as `("write", offset)`, and the syncs, as `("sync", 0)`.
    pub fn writes_and_syncs(&self) -> Vec<(&'static str, u64)> {
        let step = |event: &TargetEvent| match event {
            TargetEvent::Write(range) => Some(("write", range.start)),
            TargetEvent::Sync => Some(("sync", 0)),
            TargetEvent::Allocate(_) | TargetEvent::SetLen(_) => None,
        };
        self.events.lock().unwrap().iter().filter_map(step).collect()
    }

    fn record(&self, event: TargetEvent) {
        self.events.lock().unwrap().push(event);
    }
}

impl ReadAt for RecordingTarget {
    fn size(&self) -> io::Result<u64> {
        self.mem.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.mem.read_at(buf, offset)
    }
}

impl WriteAt for RecordingTarget {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.record(TargetEvent::Write(offset..offset + buf.len() as u64));
        self.mem.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.record(TargetEvent::SetLen(len));
        match self.device {
            true if len > self.mem.size()? => Err(io::ErrorKind::StorageFull.into()),
            true => Ok(()),
            false => self.mem.set_len(len),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.record(TargetEvent::Sync);
        Ok(())
    }

    fn starts_zeroed(&self) -> bool {
        !self.device
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.record(TargetEvent::Allocate(range));
        Ok(())
    }
}

/// Places and writes `bytes` at guest offset `at`, for writers without metadata between blocks.
pub fn place(writer: &mut dyn SparseWrite, mut at: u64, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let placement = writer.place(at..at + bytes.len() as u64).unwrap();
        assert!(placement.before.is_empty() && placement.len > 0);
        let (now, later) = bytes.split_at(placement.len as usize);
        placement.out.write_all_at(now, placement.offset).unwrap();
        (at, bytes) = (at + placement.len, later);
    }
}

/// Fills `guest[range]`, whole sectors, with bytes that are not zero, and places it.
pub fn place_filled(writer: &mut dyn SparseWrite, guest: &mut [u8], range: Range<u64>) {
    let part = &mut guest[range.start as usize..range.end as usize];
    for (sector, number) in part.chunks_mut(512).zip(range.start / 512..) {
        sector.fill((number % 200) as u8 + 1);
    }
    place(writer, range.start, part);
}

/// Asserts that a writer of a disk of 3 MiB writes the header last, between two syncs, to a file and to a device of `device_len` bytes, whose
/// old header is zeroed first.
pub fn assert_header_is_last(device_len: u64, create: impl Fn(Arc<RecordingTarget>) -> Box<dyn SparseWrite>) {
    for device in [false, true] {
        let target = if device { RecordingTarget::device(device_len) } else { RecordingTarget::file() };
        let mut writer = create(target.clone());
        place_filled(&mut *writer, &mut vec![0; 3 << 20], 1 << 20..2 << 20);
        writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
        let events = target.writes_and_syncs();
        assert_eq!(events[events.len() - 3..], [("sync", 0), ("write", 0), ("sync", 0)]);
        let early = events[..events.len() - 3].iter().filter(|event| **event == ("write", 0)).count();
        assert_eq!(early, usize::from(device), "a device is zeroed first");
    }
}
