//! The interface between format drivers and the core. Other crates add formats by implementing it.
//!
//! A driver is metadata only. For reading it maps guest ranges to host offsets ([`SparseRead::extent_at`]); for writing it
//! allocates host ranges for guest ranges ([`SparseWrite::place`]). Payload is read, decoded, encoded and written by the
//! core, which implements zero detection, compression, backing chains, threads, progress and limits for all formats.
//!
//! A driver is a static [`FormatDriver`]. [`Format::from_driver`](crate::Format::from_driver) makes a [`Format`](crate::Format)
//! of it, and [`Formats::with`](crate::Formats::with) adds it to the formats that [`OpenOptions`](crate::OpenOptions) probes.
//!
//! # A reader
//!
//! ```
//! use std::sync::Arc;
//!
//! use diskimage::driver::{Extent, ExtentKind, FileId, FormatDriver, Location, OpenContext, Probe, SparseRead};
//! use diskimage::io::{MemFile, ReadAt};
//! use diskimage::{Error, Format, Formats, ImageInfo, OpenOptions};
//!
//! /// "TOY\0", then the bytes of the disk.
//! static TOY: FormatDriver = FormatDriver::new("toy", probe, open);
//!
//! fn probe(probe: &Probe<'_>) -> bool {
//!     probe.head.starts_with(b"TOY\0")
//! }
//!
//! fn open(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> diskimage::Result<Box<dyn SparseRead>> {
//!     let size = file.size().map_err(Error::io("reading the file length", None))?.saturating_sub(4);
//!     cx.check_virtual_size("toy", size)?;
//!     Ok(Box::new(Toy(ImageInfo::new("toy", size))))
//! }
//!
//! struct Toy(ImageInfo);
//!
//! impl SparseRead for Toy {
//!     fn info(&self) -> &ImageInfo {
//!         &self.0
//!     }
//!
//!     fn extent_at(&self, range: std::ops::Range<u64>) -> diskimage::Result<Extent> {
//!         let kind = ExtentKind::Data(Location { file: FileId(0), offset: range.start + 4 });
//!         Ok(Extent { offset: range.start, len: range.end - range.start, kind })
//!     }
//!
//!     fn host_alignment(&self) -> Option<u64> {
//!         None
//!     }
//! }
//!
//! let formats = Formats::builtin().with(Format::from_driver(&TOY));
//! let file = Arc::new(MemFile::from(b"TOY\0guest".to_vec()));
//! let image = OpenOptions::new().formats(formats).open_source(file)?;
//! let mut guest = [0; 5];
//! image.read_exact_at(&mut guest, 0)?;
//! assert_eq!(&guest, b"guest");
//! # Ok::<(), diskimage::Error>(())
//! ```
//!
//! # A writer
//!
//! ```
//! use std::ops::Range;
//! use std::sync::Arc;
//!
//! use diskimage::driver::{CreateContext, FormatDriver, Placement, SparseWrite, WriteSpec};
//! use diskimage::io::{MemFile, WriteAt};
//! use diskimage::{Converter, Error, Format, ImageIdentifiers, OpenOptions, Result};
//! # use diskimage::driver::{OpenContext, SparseRead};
//! # fn open(_: Arc<dyn diskimage::io::ReadAt>, _: &OpenContext<'_>) -> Result<Box<dyn SparseRead>> {
//! #     unreachable!()
//! # }
//!
//! /// "TOY\0", then the bytes of the disk.
//! static TOY: FormatDriver = FormatDriver::new("toy", |probe| probe.head.starts_with(b"TOY\0"), open).create(create, &[]);
//!
//! fn create(cx: &CreateContext<'_>) -> Result<Box<dyn SparseWrite>> {
//!     if cx.compress || cx.backing.is_some() {
//!         return Err(Error::unsupported("toy", "compression and backing files"));
//!     }
//!     // The header is written last.
//!     cx.out.set_len(cx.size + 4).map_err(Error::io("setting the file length", None))?;
//!     Ok(Box::new(Toy { out: cx.out.clone(), spec: WriteSpec::new(cx.size, 512) }))
//! }
//!
//! struct Toy {
//!     out: Arc<dyn WriteAt>,
//!     spec: WriteSpec,
//! }
//!
//! impl SparseWrite for Toy {
//!     fn spec(&self) -> &WriteSpec {
//!         &self.spec
//!     }
//!
//!     fn place(&mut self, guest: Range<u64>) -> Result<Placement> {
//!         Ok(Placement::new(self.out.clone(), guest.start + 4, guest.end - guest.start))
//!     }
//!
//!     fn place_compressed(&mut self, _guest: Range<u64>, _stored_len: u32) -> Result<Placement> {
//!         Err(Error::unsupported("toy", "compression"))
//!     }
//!
//!     fn zero(&mut self, _guest: Range<u64>) -> Result<()> {
//!         Ok(())
//!     }
//!
//!     fn finish(&mut self, _identifiers: &ImageIdentifiers) -> Result<()> {
//!         self.out.sync().map_err(Error::io("syncing", None))?;
//!         self.out.write_all_at(b"TOY\0", 0).map_err(Error::io("writing the signature", 0))?;
//!         self.out.sync().map_err(Error::io("syncing", None))
//!     }
//! }
//!
//! let disk = Arc::new(MemFile::from(vec![7; 512]));
//! let disk = OpenOptions::new().format(Format::RAW).open_source(disk)?;
//! let file = Arc::new(MemFile::new());
//! Converter::new(Format::from_driver(&TOY)).convert_to(&disk, file.clone())?;
//! assert_eq!(file.to_vec(), [&b"TOY\0"[..], &[7; 512]].concat());
//! # Ok::<(), diskimage::Error>(())
//! ```
//!
//! # Images that change
//!
//! A guest that writes, and every change in place, goes through [`SparseUpdate`] and `Disk` (feature `disk`). The driver answers where a write goes
//! and makes its tables point there afterwards; the core moves the payload in between.
//!
//! ```text
//! write 512 bytes             allocate(guest) -> Allocation { guest: the whole block, at, is_new: true, .. }
//!                             the core writes the 512 bytes, and around them what extent_at() still tells of the block
//!                             publish(allocation): the entry of the table, in memory
//! write to the same block     allocate(guest) -> Allocation { guest, at, is_new: false, .. }, and that is all
//! flush                       what counts uses; sync; tables; sync; then what is no longer used becomes free
//! ```
//!
//! A driver of this crate has an `update` module, with `Update::open` in its [`FormatDriver::update`], and keeps changed tables in
//! `format::shared::table_pages`: `write` changes bytes of a table for a step, and `flush` writes the steps in order, with a sync after each. What
//! the tables on the storage may still point to must not be allocated again before `flush` has written them.

mod bitmap;
mod check;
mod context;
mod extent;
mod measure;
mod read;
mod update;
mod write;

use std::io::Read;
use std::sync::Arc;

pub use bitmap::DirtyBitmap;
pub use check::{CheckKind, CheckMessage, CheckReport, Repair, RepairReport};
pub use context::{CreateContext, DetachedHeader, FileOpener, NewBacking, OpenContext, TargetFiles};
pub use extent::{Compressed, Extent, ExtentKind, FileId, Location};
pub use measure::FileSize;
pub use read::SparseRead;
pub use update::{
    Allocation, BitmapChange, KeyChange, SnapshotUpdate, SparseUpdate, StorageOpener, UpdateContext, UpdateSpec, Zeroed,
};
pub use write::{Frame, Placement, SparseWrite, WriteSpec};

use crate::error::Result;
use crate::info::ImageInfo;
use crate::io::{ReadAt, Storage};
use crate::options::OptionSpec;

/// The first and last bytes of a file, from which drivers detect their format.
///
/// ```
/// use diskimage::Formats;
/// use diskimage::driver::Probe;
///
/// let format = Formats::builtin().probe(&Probe::new(b"QFI\xfb\0\0\0\x03", b"", 65536))?;
/// assert_eq!(format.name(), "qcow2");
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Probe<'a> {
    /// The first bytes, up to [`Probe::HEAD`].
    pub head: &'a [u8],
    /// The last bytes, up to [`Probe::TAIL`].
    pub tail: &'a [u8],
    /// File length in bytes.
    pub len: u64,
}

impl<'a> Probe<'a> {
    /// Largest number of bytes in [`head`](Self::head): those before the second header of LUKS, and a sector of that.
    pub const HEAD: usize = (16 << 10) + 512;
    /// Largest number of bytes in [`tail`](Self::tail).
    pub const TAIL: usize = 512;

    /// The first bytes `head` and the last bytes `tail` of a file of `len` bytes.
    pub fn new(head: &'a [u8], tail: &'a [u8], len: u64) -> Self {
        Probe { head, tail, len }
    }
}

/// Returns whether the bytes are an image of the driver's format. It does no I/O and sees untrusted bytes.
pub type ProbeFn = fn(&Probe<'_>) -> bool;

/// Opens an image file.
pub type OpenFn = fn(Arc<dyn ReadAt>, &OpenContext<'_>) -> Result<Box<dyn SparseRead>>;

/// Opens an image that is read sequentially, once, and returns it with the file that its extents refer to.
pub type OpenStreamFn = fn(Box<dyn Read + Send>, &OpenContext<'_>) -> Result<(Box<dyn SparseRead>, Arc<dyn ReadAt>)>;

/// Creates an image.
pub type CreateFn = fn(&CreateContext<'_>) -> Result<Box<dyn SparseWrite>>;

/// Opens an existing image for guest data to be written into it. The first argument is the same file as the output of the context. The virtual
/// size in [`WriteSpec`] is that of the context, rounded up, not that of the image.
pub type OpenTargetFn = fn(Arc<dyn ReadAt>, &CreateContext<'_>) -> Result<Box<dyn SparseWrite>>;

/// Measures an image without creating it. The context is that of creating it, except that there may be no secret. The second argument is the
/// source whose data is going to be written, if there is one.
pub type MeasureFn = fn(&CreateContext<'_>, Option<&ImageInfo>) -> Result<FileSize>;

/// Opens an existing image for a guest that writes to it.
pub type OpenUpdateFn = fn(Arc<dyn Storage>, &UpdateContext<'_>) -> Result<Box<dyn SparseUpdate>>;

/// Checks the metadata of an image file.
pub type CheckFn = fn(Arc<dyn ReadAt>, &OpenContext<'_>) -> Result<CheckReport>;

/// Repairs the metadata of an image file, and makes that durable.
pub type RepairFn = fn(Arc<dyn Storage>, &UpdateContext<'_>, Repair) -> Result<RepairReport>;

/// A format: its names, its options and its entry points.
///
/// Opening is mandatory; creating, streams and checks are optional.
///
/// ```
/// use diskimage::OptionSpec;
/// use diskimage::driver::{CreateFn, FormatDriver, OpenFn};
///
/// static OPTIONS: &[OptionSpec] = &[OptionSpec { name: "level", values: "1..=9", help: "compression level" }];
///
/// const fn driver(open: OpenFn, create: CreateFn) -> FormatDriver {
///     FormatDriver::new("toy", |probe| probe.head.starts_with(b"TOY\0"), open)
///         .aliases(&["toyimage"])
///         .extensions(&["toy"])
///         .description("an example")
///         .create(create, OPTIONS)
/// }
/// ```
#[derive(Clone, Debug)]
pub struct FormatDriver {
    pub(crate) name: &'static str,
    pub(crate) aliases: &'static [&'static str],
    pub(crate) extensions: &'static [&'static str],
    pub(crate) description: &'static str,
    pub(crate) options: &'static [OptionSpec],
    pub(crate) read_options: &'static [OptionSpec],
    pub(crate) probe: ProbeFn,
    pub(crate) open: OpenFn,
    pub(crate) create: Option<CreateFn>,
    pub(crate) open_stream: Option<(ProbeFn, OpenStreamFn)>,
    pub(crate) check: Option<CheckFn>,
    pub(crate) open_target: Option<OpenTargetFn>,
    pub(crate) measure: Option<MeasureFn>,
    pub(crate) open_update: Option<OpenUpdateFn>,
    pub(crate) repair: Option<RepairFn>,
    pub(crate) detached_headers: bool,
}

impl FormatDriver {
    /// A driver that detects and opens images of the format called `name`.
    pub const fn new(name: &'static str, probe: ProbeFn, open: OpenFn) -> Self {
        FormatDriver {
            name,
            aliases: &[],
            extensions: &[],
            description: "",
            options: &[],
            read_options: &[],
            probe,
            open,
            create: None,
            open_stream: None,
            check: None,
            open_target: None,
            measure: None,
            open_update: None,
            repair: None,
            detached_headers: false,
        }
    }

    /// Sets other names of the format.
    #[must_use]
    pub const fn aliases(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    /// Sets the file name extensions of the format, in lower case and without the dot.
    #[must_use]
    pub const fn extensions(mut self, extensions: &'static [&'static str]) -> Self {
        self.extensions = extensions;
        self
    }

    /// Sets a description of one line.
    #[must_use]
    pub const fn description(mut self, description: &'static str) -> Self {
        self.description = description;
        self
    }

    /// Adds writing. `options` are the options that `create` takes; an unknown one is refused before `create` is called.
    ///
    /// Without the feature `write` it does nothing. Since a driver is a constant, `create` is then neither compiled nor linked.
    #[must_use]
    pub const fn create(mut self, create: CreateFn, options: &'static [OptionSpec]) -> Self {
        if cfg!(feature = "write") {
            self.create = Some(create);
            self.options = options;
        }
        self
    }

    /// Adds measuring. A format without it is measured by creating an image without a file. Without the feature `write` it does nothing.
    #[must_use]
    pub const fn measure(mut self, measure: MeasureFn) -> Self {
        if cfg!(feature = "write") {
            self.measure = Some(measure);
        }
        self
    }

    /// Adds writing into existing images, for a format whose images are written without a change of metadata. Without the feature `write` it
    /// does nothing.
    #[must_use]
    pub const fn open_target(mut self, open_target: OpenTargetFn) -> Self {
        if cfg!(feature = "write") {
            self.open_target = Some(open_target);
        }
        self
    }

    /// Adds changing existing images in place, for `Disk`. Without the feature `disk` it does nothing.
    #[must_use]
    pub const fn update(mut self, open_update: OpenUpdateFn) -> Self {
        if cfg!(feature = "disk") {
            self.open_update = Some(open_update);
        }
        self
    }

    /// Adds repairs of the metadata. Without the feature `disk` it does nothing.
    #[must_use]
    pub const fn repair(mut self, repair: RepairFn) -> Self {
        if cfg!(feature = "disk") {
            self.repair = Some(repair);
        }
        self
    }

    /// Adds reading from a pipe, for a format whose images can be read in the order in which they are stored: those for which `probe` returns true,
    /// which sees the start of the stream only. All others are copied to a file first.
    #[must_use]
    pub const fn open_stream(mut self, probe: ProbeFn, open_stream: OpenStreamFn) -> Self {
        self.open_stream = Some((probe, open_stream));
        self
    }

    /// Sets the options for reading an image: [`OpenContext::options`]. An unknown one is refused before the image is opened.
    #[must_use]
    pub const fn read_options(mut self, options: &'static [OptionSpec]) -> Self {
        self.read_options = options;
        self
    }

    /// Adds headers in a file of their own: [`OpenContext::detached_header`].
    #[must_use]
    pub const fn detached_headers(mut self) -> Self {
        self.detached_headers = true;
        self
    }

    /// Adds checks of the metadata.
    #[must_use]
    pub const fn check(mut self, check: CheckFn) -> Self {
        self.check = Some(check);
        self
    }
}
