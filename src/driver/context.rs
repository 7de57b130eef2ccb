//! Arguments of a driver's entry points.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::identifiers::{Identifiers, ImageIdentifiers};
use crate::info::{FileReference, ImageInfo};
use crate::io::{ReadAt, WriteAt};
use crate::limits::{Budget, LimitName, Limits};
use crate::name::Name;
use crate::options::Options;
use crate::secret::Secret;

/// Opens a referenced file that holds guest data, if the reference policy allows it; `Ok(None)` when the caller inspects the
/// image and opens no referenced file.
pub type FileOpener<'a> = dyn Fn(&FileReference) -> Result<Option<Arc<dyn ReadAt>>> + 'a;

static NO_OPTIONS: Options = Options::new();

/// Arguments for opening an image.
///
/// ```
/// use diskimage::driver::OpenContext;
/// use diskimage::{Budget, Limits};
///
/// // In a test of a driver:
/// let (limits, budget) = (Limits::default(), Budget::new(1 << 20));
/// let cx = OpenContext::new(&limits, &budget);
/// assert!(cx.check_virtual_size("toy", 1 << 30).is_ok());
/// assert!(cx.check_virtual_size("toy", u64::MAX).is_err());
/// ```
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct OpenContext<'a> {
    /// The limits that numbers from the image are checked against.
    pub limits: &'a Limits,
    /// The memory for metadata of the whole chain.
    pub budget: &'a Budget,
    /// Id or name of the internal snapshot to read instead of the active state.
    pub snapshot: Option<&'a str>,
    /// Path of the image file, if it was opened by path, for properties that name files.
    pub path: Option<&'a Path>,
    /// Opens referenced data files and extents.
    pub file: &'a FileOpener<'a>,
    /// Secrets that may unlock an encrypted image. A driver tries each.
    pub secrets: &'a [Secret],
    /// The header, if it is in a file of its own. Only drivers with [`FormatDriver::detached_headers`](super::FormatDriver::detached_headers)
    /// get one.
    pub detached_header: Option<DetachedHeader<'a>>,
    /// The options for reading. Each is one of those that the driver lists: [`FormatDriver::read_options`](super::FormatDriver::read_options).
    pub options: &'a Options,
    /// Whether only the properties of the image are wanted. An encrypted image needs no secret then; otherwise a driver that cannot unlock
    /// it returns [`Error::Secret`].
    pub inspect: bool,
    /// Set when the caller cancels: see [`check_cancelled`](Self::check_cancelled).
    pub cancel: Option<&'a AtomicBool>,
}

impl<'a> OpenContext<'a> {
    /// A context for the active state of an image, with no access to referenced files.
    pub fn new(limits: &'a Limits, budget: &'a Budget) -> Self {
        OpenContext {
            limits,
            budget,
            snapshot: None,
            path: None,
            file: &|_| Ok(None),
            secrets: &[],
            detached_header: None,
            options: &NO_OPTIONS,
            inspect: false,
            cancel: None,
        }
    }

    /// [`Error::Cancelled`] if the caller has cancelled. For drivers that take long to open an image, before each long step.
    pub fn check_cancelled(&self) -> Result<()> {
        match self.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }

    /// [`Error::Unsupported`] if a snapshot is requested. For drivers of formats without internal snapshots.
    pub fn refuse_snapshots(&self, format: &'static str) -> Result<()> {
        match self.snapshot {
            Some(_) => Err(Error::unsupported(format, "internal snapshots")),
            None => Ok(()),
        }
    }

    /// Checks a virtual size in bytes against [`Limits::virtual_size`].
    ///
    /// # Errors
    /// [`Error::Limit`] if it exceeds the limit.
    pub fn check_virtual_size(&self, format: &'static str, size: u64) -> Result<()> {
        let limit = self.limits.virtual_size;
        if size <= limit {
            return Ok(());
        }
        Err(Error::Limit {
            name: Some(LimitName::VirtualSize),
            format,
            field: "virtual size".into(),
            at: None,
            value: size,
            limit,
        })
    }
}

impl fmt::Debug for OpenContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OpenContext { limits, snapshot, .. } = self;
        f.debug_struct("OpenContext").field("limits", limits).field("snapshot", snapshot).finish_non_exhaustive()
    }
}

/// A header in a file of its own; the image file has the guest data.
///
/// ```
/// use diskimage::driver::OpenContext;
/// use diskimage::io::ReadAt;
///
/// /// The file with the header of the image in `file`.
/// fn header<'a>(file: &'a dyn ReadAt, cx: &OpenContext<'a>) -> &'a dyn ReadAt {
///     cx.detached_header.map_or(file, |header| header.file)
/// }
/// ```
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct DetachedHeader<'a> {
    /// The file.
    pub file: &'a dyn ReadAt,
    /// Its path, if it was opened by path, for errors.
    pub path: Option<&'a Path>,
}

impl<'a> DetachedHeader<'a> {
    /// The header in `file`.
    pub fn new(file: &'a dyn ReadAt, path: Option<&'a Path>) -> Self {
        DetachedHeader { file, path }
    }
}

impl fmt::Debug for DetachedHeader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DetachedHeader").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Arguments for creating an image.
///
/// ```
/// use std::sync::Arc;
///
/// use diskimage::Options;
/// use diskimage::driver::CreateContext;
/// use diskimage::io::MemFile;
///
/// // In a test of a driver:
/// let options = Options::new();
/// let cx = CreateContext::new(1 << 20, &options, Arc::new(MemFile::new()));
/// assert!(cx.backing.is_none() && cx.files.is_none());
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CreateContext<'a> {
    /// Virtual size in bytes. A driver may round it up and states the result in [`WriteSpec`](super::WriteSpec).
    pub size: u64,
    /// The options. Each is one of those that the driver lists.
    pub options: &'a Options,
    /// Whether allocation units are compressed.
    pub compress: bool,
    /// Whether no guest data follows: the image is created empty, for its owner to write to.
    pub empty: bool,
    /// The backing image of an overlay.
    pub backing: Option<NewBacking<'a>>,
    /// The secret that unlocks the image, if it is encrypted.
    pub secret: Option<&'a Secret>,
    /// Timestamps, and identifiers for what is written before the content. A driver has no other source of them.
    pub identifiers: ImageIdentifiers,
    /// The image file.
    pub out: Arc<dyn WriteAt>,
    /// Creates the other files of the image; `None` if the image has to be a single file.
    pub files: Option<&'a dyn TargetFiles>,
}

impl<'a> CreateContext<'a> {
    /// A context for an uncompressed image in the single file `out`, with reproducible identifiers.
    pub fn new(size: u64, options: &'a Options, out: Arc<dyn WriteAt>) -> Self {
        let identifiers = Identifiers::Reproducible { time: 0 }.for_image("", size, options);
        let (compress, empty, backing, secret, files) = (false, false, None, None, None);
        CreateContext { size, options, compress, empty, backing, secret, identifiers, out, files }
    }
}

/// The backing image of a new overlay.
///
/// ```
/// use diskimage::driver::NewBacking;
/// use diskimage::{ImageInfo, Name};
///
/// // In a test of a driver:
/// let info = ImageInfo::new("raw", 1 << 20);
/// let backing = NewBacking::new(Name::from("base.raw"), &info);
/// assert_eq!(backing.info.virtual_size, 1 << 20);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NewBacking<'a> {
    /// Its name, as it is written into the overlay.
    pub name: Name,
    /// Its properties.
    pub info: &'a ImageInfo,
}

impl<'a> NewBacking<'a> {
    /// The image with the properties `info`, written into the overlay as `name`.
    pub fn new(name: Name, info: &'a ImageInfo) -> Self {
        NewBacking { name, info }
    }
}

/// Creates the additional files of an image, whose names a driver derives from that of the image file. Callers implement
/// [`TargetDirectory`](crate::io::TargetDirectory) instead.
///
/// ```
/// use std::ffi::OsString;
/// use std::path::Path;
/// use std::sync::Arc;
///
/// use diskimage::Error;
/// use diskimage::driver::CreateContext;
/// use diskimage::io::WriteAt;
///
/// /// Creates `disk-data.toy` for the image `disk.toy`.
/// fn create_data_file(cx: &CreateContext<'_>) -> diskimage::Result<Arc<dyn WriteAt>> {
///     let files = cx.files.ok_or_else(|| Error::unsupported("toy", "images of several files to this target"))?;
///     let mut name = OsString::from(Path::new(files.image_name()).file_stem().unwrap_or_default());
///     name.push("-data.toy");
///     files.add(&name)
/// }
/// ```
pub trait TargetFiles {
    /// File name of the image itself, without a directory.
    fn image_name(&self) -> &OsStr;

    /// Creates a file called `name` beside the image.
    ///
    /// # Errors
    /// Errors of the storage, and [`Error::Usage`] if the name is taken or is not a plain file name.
    fn add(&self, name: &OsStr) -> Result<Arc<dyn WriteAt>>;

    /// Creates a file whose path the caller has given in an option. A relative one starts at the directory of the image. By default it has to be
    /// a plain file name, as for [`add`](Self::add).
    ///
    /// # Errors
    /// As [`add`](Self::add).
    fn add_at(&self, path: &Path) -> Result<Arc<dyn WriteAt>> {
        self.add(path.as_os_str())
    }
}

impl fmt::Debug for dyn TargetFiles + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.image_name().fmt(f)
    }
}
