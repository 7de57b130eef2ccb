//! Writes images by generated calls, and a simple reader.

use std::io;
use std::sync::Arc;

use proptest::prelude::*;

use super::format;
use crate::driver::{CreateContext, ExtentKind, NewBacking, OpenContext, SparseRead};
use crate::error::Result;
use crate::format::vhd::reader::Reader;
use crate::identifiers::ImageIdentifiers;
use crate::io::{MemFile, ReadAt, WriteAt};
use crate::limits::{Budget, Limits};
use crate::name::Name;
use crate::options::Options;
use crate::testing::noise;

/// A new image: its options and the calls that write it.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub size: u64,
    pub options: String,
    pub differencing: bool,
    pub device: bool,
    pub steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Skip(u64),
    Data(u64),
    Zero(u64),
}

/// The result of a case: the image, and the expected guest data.
pub(super) struct Written {
    pub file: Vec<u8>,
    pub parent: Vec<u8>,
    pub guest: Vec<u8>,
}

pub(super) fn case() -> impl Strategy<Value = Case> {
    let len = || prop_oneof![1u64..5000, 400_000u64..700_000];
    let step = prop_oneof![len().prop_map(Step::Skip), len().prop_map(Step::Data), len().prop_map(Step::Zero)];
    let kind = prop_oneof![Just((false, "")), Just((true, "")), Just((false, "subformat=fixed"))];
    (0u64..2_000_000, kind, any::<bool>(), prop::collection::vec(step, 0..8)).prop_map(
        |(size, (differencing, list), device, steps)| {
            let options = if list.is_empty() { "block_size=512k" } else { list }.to_owned();
            Case { size, device: device && options != "subformat=fixed", options, differencing, steps }
        },
    )
}

impl Case {
    pub fn new(size: u64, options: &str, steps: &[Step]) -> Case {
        Case { size, options: options.to_owned(), differencing: false, device: false, steps: steps.to_vec() }
    }

    /// Runs the steps. Lengths are rounded up to the granule and clipped at the end of the disk.
    pub fn write(&self) -> Written {
        let mut options = Options::new();
        options.add_list(&self.options);
        let parent = open(super::image(super::DiskType::Dynamic, self.size.next_multiple_of(512), &[!0; 512], 4096));
        let parent = parent.unwrap().info().clone();
        let backing = self.differencing.then(|| NewBacking::new(Name::from("base.vhd"), &parent));
        let target = Arc::new(Device::new(self.device));
        let plain = CreateContext::new(self.size, &options, target.clone());
        let mut writer = format().create(&CreateContext { backing, ..plain }).unwrap();
        let spec = writer.spec().clone();
        let granule = if self.device { spec.block_size } else { spec.granule };
        assert_eq!(spec.over_backing, self.differencing);

        let parent = if self.differencing { noise(spec.virtual_size, 99) } else { vec![0; spec.virtual_size as usize] };
        let mut guest = parent.clone();
        let mut at = 0u64;
        for (seed, step) in self.steps.iter().enumerate() {
            let (Step::Skip(len) | Step::Data(len) | Step::Zero(len)) = *step;
            let end = (at + len.next_multiple_of(granule)).min(spec.virtual_size);
            let bytes = &mut guest[at as usize..end as usize];
            match step {
                _ if at == end => {}
                Step::Skip(_) => {}
                Step::Zero(_) => {
                    bytes.fill(0);
                    writer.zero(at..end).unwrap();
                }
                Step::Data(_) => {
                    bytes.copy_from_slice(&noise(end - at, seed as u64));
                    let mut done = at;
                    while done < end {
                        let placement = writer.place(done..end).unwrap();
                        assert!(placement.len > 0 && placement.len.is_multiple_of(512));
                        let part = &bytes[(done - at) as usize..][..placement.len as usize];
                        placement.out.write_all_at(&[&placement.before, part].concat(), placement.offset).unwrap();
                        done += placement.len;
                    }
                }
            }
            at = end;
        }
        writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
        Written { file: target.written(), parent, guest }
    }
}

/// A file, or a device filled with old content.
pub(super) struct Device {
    file: MemFile,
    device: bool,
    /// The length of the image on the device.
    end: std::sync::atomic::AtomicU64,
}

impl Device {
    fn new(device: bool) -> Device {
        let file = if device { MemFile::from(vec![0xd5; 8 << 20]) } else { MemFile::new() };
        Device { file, device, end: 0.into() }
    }

    /// A device of `len` bytes that starts with `bytes`.
    pub fn holding(bytes: &[u8], len: usize) -> Device {
        let mut all = bytes.to_vec();
        all.resize(len, 0xd5);
        Device { file: MemFile::from(all), device: true, end: 0.into() }
    }

    pub fn to_vec(&self) -> Vec<u8> {
        self.file.to_vec()
    }

    /// The bytes of the image.
    fn written(&self) -> Vec<u8> {
        let mut bytes = self.file.to_vec();
        bytes.truncate(self.end.load(std::sync::atomic::Ordering::Relaxed) as usize);
        bytes
    }
}

impl WriteAt for Device {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.end.store(len, std::sync::atomic::Ordering::Relaxed);
        if !self.device {
            return self.file.set_len(len);
        }
        if len <= self.file.size()? { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn starts_zeroed(&self) -> bool {
        !self.device
    }
}

pub(super) fn open(bytes: Vec<u8>) -> Result<Reader> {
    let (limits, budget) = (Limits::default(), Budget::new(1 << 20));
    let cx = OpenContext::new(&limits, &budget);
    Reader::open(Arc::new(MemFile::from(bytes)), &cx)
}

/// Reads the guest data through the extents of the reader.
pub(super) fn read(reader: &Reader, file: &[u8], parent: &[u8]) -> Vec<u8> {
    let mut guest = Vec::new();
    while (guest.len() as u64) < reader.info().virtual_size {
        let extent = reader.extent_at(guest.len() as u64..u64::MAX).unwrap();
        let range = extent.offset as usize..extent.end() as usize;
        match extent.kind {
            ExtentKind::Data(at) => guest.extend(&file[at.offset as usize..][..extent.len as usize]),
            ExtentKind::Zero { .. } => guest.resize(range.end, 0),
            ExtentKind::Hole => guest.extend(&parent[range]),
            ExtentKind::Compressed(_) => panic!("nothing is compressed"),
        }
    }
    guest
}

/// Reads the guest data sector by sector, with all fields at fixed offsets.
pub(super) fn naive_guest(file: &[u8], parent: &[u8]) -> Vec<u8> {
    let u32_at = |at: usize| u32::from_be_bytes(file[at..at + 4].try_into().unwrap());
    let footer = file.len() - 512;
    let size = u32_at(footer + 52) as usize;
    if u32_at(footer + 60) == 2 {
        return file[..size].to_vec();
    }
    let (block_sectors, table) = (u32_at(512 + 32) as usize / 512, u32_at(512 + 20) as usize);
    let mut guest = parent.to_vec();
    for sector in 0..size / 512 {
        let entry = u32_at(table + sector / block_sectors * 4);
        let within = sector % block_sectors;
        if entry != !0 && file[entry as usize * 512 + within / 8] & 0x80 >> (within % 8) != 0 {
            let bitmap_sectors = (block_sectors / 8).div_ceil(512);
            let host_offset = (entry as usize + bitmap_sectors + within) * 512;
            guest[sector * 512..][..512].copy_from_slice(&file[host_offset..][..512]);
        }
    }
    guest
}
