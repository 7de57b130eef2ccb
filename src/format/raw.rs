//! raw: the bytes of the disk, without metadata.
//!
//! # Layout
//!
//! Guest offset and host offset are the same. Holes of the file read as zeros.
//!
//! # Support
//!
//! | feature | read | write |
//! |---|---|---|
//! | files of any length in bytes | yes | yes |
//! | holes | yes | yes |
//! | writing into an existing disk | | yes; zeros too, because of old content |
//! | writing by a guest, resizing | | yes; devices keep their size |
//! | block devices | yes | yes; zeros are discarded or written, because of old content |

mod update;

use std::ops::Range;
use std::sync::Arc;

use crate::driver::{CreateContext, Extent, ExtentKind, FileId, FileSize, FormatDriver, Location, OpenContext};
use crate::driver::{Placement, SparseRead, SparseWrite, WriteSpec};
use crate::error::{Error, Result};
use crate::format::shared::table::{self, Fields};
use crate::format::shared::whole_sectors;
use crate::identifiers::ImageIdentifiers;
use crate::info::ImageInfo;
use crate::io::{ReadAt, WriteAt, write_zeros};
use crate::limits::LimitName;
use crate::options::OptionSpec;

pub(crate) static DRIVER: FormatDriver =
    FormatDriver::new(FORMAT_NAME, |_| false, |source, cx| Ok(Box::new(Reader::open(source, cx)?)))
        .aliases(&["img"])
        .extensions(&["raw", "img"])
        .description("the bytes of the disk, without metadata")
        .create(|cx| Ok(Box::new(Writer::create(cx)?)), OPTIONS)
        .measure(measure)
        .open_target(|file, cx| Ok(Box::new(Writer::open(&*file, cx)?)))
        .update(|file, cx| Ok(Box::new(update::Update::open(file, cx)?)));

static OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "preallocation",
        values: "off|falloc|full",
        help: "allocate the space (falloc), or write all zeros (full) [default: off]",
    },
    OptionSpec {
        name: "first_block",
        values: "on|off",
        help: "allocate the first block, for QEMU to probe the alignment of direct I/O [default: off]",
    },
];

const FORMAT_NAME: &str = "raw";
const SECTOR: u64 = 512;
/// Length in bytes of the first block, by which QEMU finds out how direct I/O has to be aligned. A hole accepts any alignment.
const FIRST_BLOCK: u64 = 4096;

/// Names the fields of this format in errors.
const FIELDS: Fields = Fields(FORMAT_NAME);

struct Reader(ImageInfo);

impl Reader {
    fn open(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Self> {
        cx.refuse_snapshots(FORMAT_NAME)?;
        let virtual_size = table::length(&*file)?;
        FIELDS.at("size", 0).within_limit(LimitName::VirtualSize, virtual_size, cx.limits.virtual_size)?;
        let info = ImageInfo { format: FORMAT_NAME, virtual_size, ..ImageInfo::default() };
        Ok(Reader(info))
    }
}

impl SparseRead for Reader {
    fn info(&self) -> &ImageInfo {
        &self.0
    }

    fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
        let location = Location { file: FileId::default(), offset: range.start };
        Ok(Extent::new(range, ExtentKind::Data(location)))
    }

    fn host_alignment(&self) -> Option<u64> {
        None
    }
}

/// Preallocation of zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Preallocation {
    Off,
    Falloc,
    Full,
}

/// Holes count, as in qemu-img: the length of the file.
fn measure(cx: &CreateContext<'_>, _source: Option<&ImageInfo>) -> Result<FileSize> {
    preallocation(cx)?;
    first_block(cx)?;
    let size = whole_sectors(FORMAT_NAME, cx.size)?;
    Ok(FileSize { dense: true, ..FileSize::new(0, size, SECTOR) })
}

fn preallocation(cx: &CreateContext<'_>) -> Result<Preallocation> {
    let modes = [("off", Preallocation::Off), ("falloc", Preallocation::Falloc), ("full", Preallocation::Full)];
    Ok(cx.options.choice(FORMAT_NAME, "preallocation", &modes)?.unwrap_or(Preallocation::Off))
}

fn first_block(cx: &CreateContext<'_>) -> Result<bool> {
    Ok(cx.options.flag(FORMAT_NAME, "first_block")?.unwrap_or(false))
}

struct Writer {
    spec: WriteSpec,
    out: Arc<dyn WriteAt>,
    preallocation: Preallocation,
    /// What is beyond the disk is not changed.
    existing: bool,
    /// Whether the first block is to be allocated, and is not yet.
    lacks_first_block: bool,
    /// Guest bytes below this offset are placed or filled.
    done: u64,
}

impl Writer {
    fn create(cx: &CreateContext<'_>) -> Result<Self> {
        let preallocation = preallocation(cx)?;
        let lacks_first_block = first_block(cx)? && cx.out.starts_zeroed();
        let writer = Writer { lacks_first_block, ..Writer::new(cx, preallocation)? };
        // A device that is too small is refused before anything is written.
        cx.out.set_len(cx.size).map_err(Error::io("setting the length", cx.size))?;
        if preallocation == Preallocation::Falloc {
            cx.out.allocate(0..cx.size).map_err(Error::io("allocating space", 0))?;
        }
        Ok(writer)
    }

    /// Writes into an existing disk, the same file as the output. A last sector that is not whole is completed, as in qemu.
    fn open(file: &dyn ReadAt, cx: &CreateContext<'_>) -> Result<Self> {
        let len = table::length(file)?;
        let whole = len.checked_next_multiple_of(SECTOR).unwrap_or(len);
        FIELDS.at("size of the source", 0).at_most(cx.size, whole)?;
        if cx.size > len {
            let what = format!("setting the length to {}", cx.size);
            cx.out.set_len(cx.size).map_err(Error::io(what, None))?;
        }
        Ok(Writer { existing: true, ..Writer::new(cx, Preallocation::Off)? })
    }

    fn new(cx: &CreateContext<'_>, preallocation: Preallocation) -> Result<Self> {
        if cx.compress {
            return Err(Error::unsupported(FORMAT_NAME, "compression"));
        }
        if cx.backing.is_some() {
            return Err(Error::unsupported(FORMAT_NAME, "backing files"));
        }
        let spec = WriteSpec {
            virtual_size: cx.size,
            block_size: SECTOR,
            granule: SECTOR,
            // A pipe cannot have holes.
            dense: preallocation == Preallocation::Full || !cx.out.seeks(),
            sequential: true,
            host_alignment: 1 << 63,
            ..WriteSpec::default()
        };
        Ok(Writer { spec, out: cx.out.clone(), preallocation, existing: false, lacks_first_block: false, done: 0 })
    }

    /// Makes the gap from `done` to `until` read as zeros.
    fn fill(&mut self, until: u64) -> Result<()> {
        let gap = self.done..until.max(self.done);
        let filled = if self.preallocation == Preallocation::Full {
            write_zeros(&*self.out, gap)
        } else if !self.out.starts_zeroed() {
            self.out.zero_range(gap)
        } else {
            Ok(())
        };
        filled.map_err(Error::io("writing zeros", self.done))
    }
}

impl SparseWrite for Writer {
    fn spec(&self) -> &WriteSpec {
        &self.spec
    }

    fn place(&mut self, guest: Range<u64>) -> Result<Placement> {
        self.fill(guest.start)?;
        self.lacks_first_block &= guest.start >= FIRST_BLOCK;
        self.done = guest.end;
        let before = Vec::new();
        Ok(Placement { out: self.out.clone(), offset: guest.start, before, len: guest.end - guest.start })
    }

    fn place_compressed(&mut self, _guest: Range<u64>, _stored_len: u32) -> Result<Placement> {
        Err(Error::unsupported(FORMAT_NAME, "compression"))
    }

    fn zero(&mut self, _guest: Range<u64>) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self, _identifiers: &ImageIdentifiers) -> Result<()> {
        let sectors = self.spec.virtual_size.next_multiple_of(SECTOR);
        self.fill(if self.out.starts_zeroed() || self.existing { self.spec.virtual_size } else { sectors })?;
        if self.lacks_first_block {
            write_zeros(&*self.out, 0..FIRST_BLOCK.min(self.spec.virtual_size))
                .map_err(Error::io("writing zeros", 0))?;
        }
        self.out.sync().map_err(Error::io("syncing", None))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::driver::NewBacking;
    use crate::format::Format;
    use crate::io::{FileSource, FileTarget, MemFile};
    use crate::limits::{Budget, Limits};
    use crate::name::Name;
    use crate::options::Options;
    use crate::testing::TempDir;

    fn create(size: u64, list: &str, out: Arc<dyn WriteAt>) -> Result<Box<dyn SparseWrite>> {
        let mut options = Options::new();
        options.add_list(list);
        Format::RAW.create(&CreateContext::new(size, &options, out))
    }

    #[test]
    fn preallocation_modes() {
        const SIZE: u64 = (1 << 20) + 100;
        let dir = TempDir::new();
        for (preallocation, dense) in [("off", false), ("falloc", false), ("full", true)] {
            let path = dir.join(preallocation);
            let target = Arc::new(FileTarget::create_new(&path).unwrap());
            let mut writer = create(SIZE, &format!("preallocation={preallocation}"), target.clone()).unwrap();
            assert_eq!(writer.spec().dense, dense);
            let placement = writer.place(4096..8192).unwrap();
            assert_eq!((placement.offset, placement.len), (4096, 4096));
            target.write_all_at(&[7; 4096], 4096).unwrap();
            writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
            let source = FileSource::open(&path).unwrap();
            let mut bytes = vec![1; SIZE as usize];
            source.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(source.size().unwrap(), SIZE);
            assert!(bytes.iter().enumerate().all(|(at, &byte)| byte == if at / 4096 == 1 { 7 } else { 0 }));
            let allocated = source.allocated().unwrap();
            assert_eq!(allocated >= SIZE, preallocation != "off", "{preallocation}: {allocated}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_first_block_is_allocated_on_request() {
        for (options, size, placed, expected) in
            [("first_block=on", 1 << 20, None, 4096), ("first_block=on", 1000, None, 4096), ("", 1 << 20, None, 0)]
                .into_iter()
                .chain([("first_block=on", 1 << 20, Some(0..512), 0)])
        {
            let dir = TempDir::new();
            let path = dir.join("disk");
            let out = Arc::new(FileTarget::create_new(&path).unwrap());
            let mut writer = create(size, options, out).unwrap();
            if let Some(guest) = placed {
                // The block is that of its data, which is not written here.
                writer.place(guest).unwrap();
            }
            writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
            let file = FileSource::open(&path).unwrap();
            assert_eq!(ReadAt::size(&file).unwrap(), size);
            assert_eq!(file.allocated().unwrap(), expected, "{options} {size}");
        }
    }

    /// A device with old content.
    struct Device(MemFile);

    impl WriteAt for Device {
        fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
            self.0.write_all_at(buf, offset)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            if len <= self.0.size()? { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }

        fn starts_zeroed(&self) -> bool {
            false
        }
    }

    #[test]
    fn old_content_is_zeroed_where_nothing_is_placed() {
        let device = Arc::new(Device(MemFile::from(vec![9; 4096])));
        let mut writer = create(3000, "", device.clone()).unwrap();
        writer.zero(0..512).unwrap();
        for guest in [512..1024, 1024..1536, 2560..3000] {
            writer.place(guest).unwrap();
        }
        writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
        let kept: Vec<_> = device.0.to_vec().iter().map(|&byte| byte == 9).collect();
        // The rest of the last sector is zeroed, but nothing beyond it.
        let expected: Vec<_> =
            (0..4096).map(|at| (512..1536).contains(&at) || (2560..3000).contains(&at) || at >= 3072).collect();
        assert_eq!(kept, expected);
        assert_eq!(create(4097, "", device).err().unwrap().kind().as_str(), "io");
    }

    #[test]
    fn unsupported_features_are_refused() {
        let out = Arc::new(MemFile::new());
        let options = Options::new();
        let plain = CreateContext::new(512, &options, out);
        let kind = |cx: CreateContext<'_>| Format::RAW.create(&cx).err().unwrap().kind().as_str();
        assert_eq!(kind(CreateContext { compress: true, ..plain.clone() }), "unsupported");
        let info = ImageInfo::default();
        let backing = Some(NewBacking::new(Name::from("base"), &info));
        assert_eq!(kind(CreateContext { backing, ..plain.clone() }), "unsupported");
        assert_eq!(create(512, "preallocation=metadata", plain.out).err().unwrap().kind().as_str(), "option");

        let (limits, budget) = (Limits { virtual_size: 100, ..Limits::default() }, Budget::new(0));
        let open = |len: usize, snapshot| {
            let cx = OpenContext { snapshot, ..OpenContext::new(&limits, &budget) };
            Format::RAW
                .open(Arc::new(MemFile::from(vec![0; len])), &cx)
                .map(drop)
                .map_err(|error| error.kind().as_str())
        };
        assert_eq!(open(100, None), Ok(()));
        assert_eq!(open(101, None), Err("limit"));
        assert_eq!(open(100, Some("1")), Err("unsupported"));
    }
}
