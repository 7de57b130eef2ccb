//! raw: the bytes of the disk and nothing else.
//!
//! # Layout
//!
//! Guest byte N is file byte N. Runs that were never written are holes of the file system and read as zeros.
//!
//! # Support
//!
//! | what | read | written |
//! |---|---|---|
//! | files of any length, to the byte | yes | yes |
//! | holes, by `SEEK_DATA` and `SEEK_HOLE` | yes | yes, by leaving out what is zero |
//! | block devices | yes | yes: zeros are discarded or written, since old content is there |

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::extent::{Extent, ExtentKind, FileId, Location};
use crate::format::{CreateContext, Entry, OpenContext};
use crate::info::ImageInfo;
use crate::io::table::Field;
use crate::io::{ReadAt, WriteAt, write_zeros};
use crate::options::OptionSpec;
use crate::sparse::{Placement, SparseRead, SparseWrite, WriteSpec};

pub(crate) static FORMAT: Entry = Entry {
    name: FORMAT_NAME,
    aliases: &["img"],
    extensions: &["raw", "img"],
    description: "the bytes of the disk, without metadata",
    options: &[OptionSpec {
        name: "preallocation",
        values: "off|falloc|full",
        help: "set space aside (falloc) or write every byte (full); default off",
    }],
    probe: |_| false,
    open: |source, cx| Ok(Box::new(Reader::open(source, cx)?)),
    create: |cx| Ok(Box::new(Writer::create(cx)?)),
    check: None,
};

const FORMAT_NAME: &str = "raw";

struct Reader {
    info: ImageInfo,
    file: Arc<dyn ReadAt>,
    /// The run of data found last: looking for its end again can cost as much as reading it.
    run: Mutex<Range<u64>>,
}

impl Reader {
    fn open(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Self> {
        if cx.snapshot.is_some() {
            let feature = "snapshots".into();
            return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: None });
        }
        let virtual_size = file.size().map_err(Error::io("asking for the length", None))?;
        Field { format: FORMAT_NAME, name: "size", at: 0 }.at_most(virtual_size, cx.limits.virtual_size)?;
        let info = ImageInfo { format: FORMAT_NAME, virtual_size, ..ImageInfo::default() };
        Ok(Reader { info, file, run: Mutex::default() })
    }
}

impl SparseRead for Reader {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let end = self.info.virtual_size;
        let mut run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        if !run.contains(&offset) {
            let next = self.file.next_data(offset).map_err(Error::io("looking for data", offset))?;
            *run = next.unwrap_or(end..end);
        }
        let place = Location { file: FileId::default(), offset };
        Ok(if run.start > offset {
            Extent { offset, len: run.start.min(end) - offset, kind: ExtentKind::Zero { allocated: Some(place) } }
        } else {
            let kind = ExtentKind::Data(place);
            Extent { offset, len: run.end.min(end).max(offset + 1) - offset, kind }
        })
    }

    fn map_unit(&self) -> Option<u64> {
        None
    }

    fn references(&self, _offset: u64) -> u64 {
        1
    }

    fn metadata(&self, _claim: &mut dyn FnMut(Range<u64>) -> bool) -> Result<()> {
        Ok(())
    }
}

/// How space is set aside for bytes that are zero.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Preallocation {
    Off,
    Falloc,
    Full,
}

struct Writer {
    spec: WriteSpec,
    out: Arc<dyn WriteAt>,
    preallocation: Preallocation,
    /// Everything before it is placed or dealt with.
    done: u64,
}

impl Writer {
    fn create(cx: &CreateContext<'_>) -> Result<Self> {
        let preallocation = cx
            .options
            .choice(
                FORMAT_NAME,
                "preallocation",
                &[("off", Preallocation::Off), ("falloc", Preallocation::Falloc), ("full", Preallocation::Full)],
            )?
            .unwrap_or(Preallocation::Off);
        if cx.compress {
            return Err(Error::Unsupported { format: FORMAT_NAME, feature: "compression".into(), at: None });
        }
        if cx.backing.is_some() {
            return Err(Error::Unsupported { format: FORMAT_NAME, feature: "a backing file".into(), at: None });
        }
        let spec = WriteSpec {
            virtual_size: cx.size,
            block_size: 512,
            granule: 512,
            encoding: None,
            dense: preallocation == Preallocation::Full,
            over_backing: false,
        };
        // A device that is too small is found before the first byte is written to it.
        cx.out.set_len(cx.size).map_err(Error::io("setting the length", cx.size))?;
        if preallocation == Preallocation::Falloc {
            cx.out.allocate(0..cx.size).map_err(Error::io("setting space aside", 0))?;
        }
        Ok(Writer { spec, out: cx.out.clone(), preallocation, done: 0 })
    }

    /// Sees to it that what no call mentioned reads as zeros.
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
        self.done = guest.end;
        Ok(Placement { out: self.out.clone(), offset: guest.start, len: guest.end - guest.start })
    }

    fn place_compressed(&mut self, _guest: Range<u64>, _stored_len: u32) -> Result<Placement> {
        Err(Error::Unsupported { format: FORMAT_NAME, feature: "compression".into(), at: None })
    }

    fn zero(&mut self, _guest: Range<u64>) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        let sectors = self.spec.virtual_size.next_multiple_of(512);
        self.fill(if self.out.starts_zeroed() { self.spec.virtual_size } else { sectors })?;
        self.out.sync().map_err(Error::io("syncing", None))
    }
}
