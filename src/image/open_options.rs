//! The settings for opening images.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::ResolveRequest;
use super::detached::HeaderLocation;
#[cfg(feature = "disk")]
use super::references::StorageResolver;
use super::references::{ReferencePolicy, Resolver};
use crate::format::{Format, Formats};
#[cfg(feature = "disk")]
use crate::io::Storage;
use crate::io::{CacheMode, ReadAt};
use crate::limits::Limits;
use crate::options::Options;
use crate::secret::Secret;

/// Configures how images are opened.
///
/// By default the format is detected, no referenced file is opened, and [`Limits`] have their default values.
///
/// ```no_run
/// use diskimage::{Format, OpenOptions, ReferencePolicy};
///
/// let overlay = OpenOptions::new()
///     .format(Format::QCOW2)
///     .reference_policy(ReferencePolicy::Beside)
///     .open("overlay.qcow2")?;
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct OpenOptions {
    pub(super) formats: Formats,
    pub(super) format: Option<Format>,
    pub(super) backing_format: Option<Format>,
    /// Of the top image.
    pub(super) options: Options,
    pub(super) detect_as_qemu: bool,
    pub(super) snapshot: Option<String>,
    pub(super) policy: ReferencePolicy,
    pub(super) resolver: Option<Arc<Resolver>>,
    #[cfg(feature = "disk")]
    pub(super) storage_resolver: Option<Arc<StorageResolver>>,
    pub(super) changed_backing: bool,
    pub(super) without_backing: bool,
    /// The backing file of the top image that the caller names, and its format.
    pub(super) backing_file: Option<(PathBuf, Option<Format>)>,
    pub(super) temporary_directory: Option<PathBuf>,
    pub(super) one_pass: bool,
    pub(super) cancel: Option<Arc<AtomicBool>>,
    pub(super) force_share: bool,
    pub(super) cache: CacheMode,
    /// The disk of a package.
    #[cfg(feature = "packages")]
    pub(super) member: Option<String>,
    /// Whether the backing file of an image that changes is left alone.
    pub(super) alone: bool,
    pub(super) limits: Limits,
    pub(super) secrets: Vec<Secret>,
    pub(super) detached_header: Option<HeaderLocation>,
}

impl OpenOptions {
    /// The defaults.
    pub fn new() -> Self {
        OpenOptions::default()
    }

    /// Sets the formats that are detected and found by name, in place of [`Formats::builtin`].
    #[must_use]
    pub fn formats(mut self, formats: Formats) -> Self {
        self.formats = formats;
        self
    }

    /// States the format, in place of detecting it. This is necessary for raw disks of untrusted guests, which can write the
    /// signature of any format.
    #[must_use]
    pub fn format(mut self, format: Format) -> Self {
        self.format = Some(format);
        self
    }

    /// Detects formats as qemu-img does: a file without the signature of a disk image is a raw disk, also if it is compressed, an archive,
    /// or has the extension of another format; and a backing file whose format the overlay does not state is detected. Default: false.
    ///
    /// This is for programs that replace qemu-img. A guest that can write the start of its raw disk can make it any image, with
    /// references to any file, wherever the format is not stated.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::MemFile;
    /// use diskimage::{Format, OpenOptions};
    ///
    /// let gzip = || Arc::new(MemFile::from([&[0x1f, 0x8b, 8][..], &[0; 1021]].concat()));
    /// assert!(OpenOptions::new().open_source(gzip()).is_err());
    /// let disk = OpenOptions::new().detect_as_qemu(true).open_source(gzip())?;
    /// assert_eq!((disk.format(), disk.virtual_size()), (Format::RAW, 1024));
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[must_use]
    pub fn detect_as_qemu(mut self, as_qemu: bool) -> Self {
        self.detect_as_qemu = as_qemu;
        self
    }

    /// States the format of backing files whose format is not stated by the image, or cannot be the one that it states: there is
    /// none of this name, or the file does not have its signature.
    #[must_use]
    pub fn backing_format(mut self, format: Format) -> Self {
        self.backing_format = Some(format);
        self
    }

    /// Sets options of the format for reading the image; its backing files have none. They are those of [`Format::read_options`]: of a VHD,
    /// `force_size_calc=chs` or `current_size` says which of the two sizes in its footer the disk has.
    ///
    /// ```no_run
    /// use diskimage::{Format, OpenOptions, Options};
    ///
    /// let mut options = Options::new();
    /// options.set("force_size_calc", "current_size");
    /// let disk = OpenOptions::new().format(Format::VHD).options(options).open("disk.vhd")?;
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Opens an internal snapshot, given by id or name, in place of the active state.
    #[must_use]
    pub fn snapshot(mut self, snapshot: impl Into<String>) -> Self {
        self.snapshot = Some(snapshot.into());
        self
    }

    /// Sets which referenced files may be opened. Default: [`ReferencePolicy::Deny`].
    #[must_use]
    pub fn reference_policy(mut self, policy: ReferencePolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Opens referenced files with `resolve` in place of the file system. The reference policy decides first; `resolve` is
    /// called only for names that it allows.
    ///
    /// An error of kind [`NotFound`](std::io::ErrorKind::NotFound) makes the next name of the reference be tried. A loop of
    /// references is detected at once if `resolve` returns the same `Arc` for the same file, else by [`Limits::chain_depth`].
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use std::io;
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::{MemFile, ReadAt};
    /// use diskimage::{OpenOptions, ReferencePolicy};
    ///
    /// let mut bucket: HashMap<String, Arc<dyn ReadAt>> = HashMap::new();
    /// bucket.insert("disk-flat.vmdk".into(), Arc::new(MemFile::from(vec![7; 512])));
    /// let descriptor = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
    ///     createType=\"monolithicFlat\"\nRW 1 FLAT \"disk-flat.vmdk\" 0\n";
    /// let image = OpenOptions::new()
    ///     .reference_policy(ReferencePolicy::Beside)
    ///     .resolver(move |request| {
    ///         let name = request.path.to_string_lossy();
    ///         bucket.get(&*name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    ///     })
    ///     .open_source(Arc::new(MemFile::from(descriptor.as_bytes().to_vec())))?;
    /// let mut sector = [0; 512];
    /// image.read_exact_at(&mut sector, 0)?;
    /// assert_eq!(sector, [7; 512]);
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[must_use]
    pub fn resolver(
        mut self,
        resolve: impl Fn(&ResolveRequest<'_>) -> std::io::Result<Arc<dyn ReadAt>> + Send + Sync + 'static,
    ) -> Self {
        self.resolver = Some(Arc::new(resolve));
        self
    }

    /// Opens the data files and extents of a disk that is written with `resolve`, after the [`resolver`](Self::resolver) has found them. Without it
    /// they have to be at paths. It is called with the name that was found.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::MemFile;
    /// use diskimage::{OpenOptions, ReferencePolicy};
    ///
    /// let extent = Arc::new(MemFile::from(vec![7; 512]));
    /// let (found, written) = (extent.clone(), extent.clone());
    /// let descriptor = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
    ///     createType=\"monolithicFlat\"\nRW 1 FLAT \"disk-flat.vmdk\" 0\n";
    /// let disk = OpenOptions::new()
    ///     .reference_policy(ReferencePolicy::Beside)
    ///     .resolver(move |_| Ok(found.clone()))
    ///     .storage_resolver(move |_| Ok(written.clone()))
    ///     .open_disk_in(Arc::new(MemFile::from(descriptor.as_bytes().to_vec())))?;
    /// disk.write_all_at(&[8; 512], 0)?;
    /// disk.close()?;
    /// assert_eq!(extent.to_vec(), [8; 512]);
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[cfg(feature = "disk")]
    #[must_use]
    pub fn storage_resolver(
        mut self,
        resolve: impl Fn(&ResolveRequest<'_>) -> std::io::Result<Arc<dyn Storage>> + Send + Sync + 'static,
    ) -> Self {
        self.storage_resolver = Some(Arc::new(resolve));
        self
    }

    /// Whether a backing file is accepted that was changed after the overlay was created, as far as the overlay records its
    /// identity. The guest then sees a mix of old and new data. Default: false.
    #[must_use]
    pub fn allow_changed_backing(mut self, allow: bool) -> Self {
        self.changed_backing = allow;
        self
    }

    /// Whether the backing file is left out: what the image itself does not hold reads as zeros then. Default: false.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::MemFile;
    /// use diskimage::{Converter, Format, OpenOptions, Options};
    ///
    /// let mut options = Options::new();
    /// options.add_list("backing_file=base.raw,backing_fmt=raw");
    /// let overlay = Arc::new(MemFile::new());
    /// Converter::new(Format::QCOW2).options(options).create_to(512, overlay.clone())?;
    ///
    /// let alone = OpenOptions::new().without_backing(true).open_source(overlay)?;
    /// let mut bytes = [7; 512];
    /// alone.read_exact_at(&mut bytes, 0)?;
    /// assert_eq!(bytes, [0; 512]);
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[must_use]
    pub fn without_backing(mut self, without: bool) -> Self {
        self.without_backing = without;
        self
    }

    /// Opens the file at `path` as the backing file of the image, in place of the one that the image names. `format` is its format; without one it
    /// is the format that the image states, or detected as for any backing file.
    ///
    /// The caller names the file, so that the reference policy does not apply to it, only to what it references. An image without a backing file is
    /// refused.
    ///
    /// ```no_run
    /// use diskimage::{Format, OpenOptions};
    ///
    /// let disk = OpenOptions::new().backing_file("moved/base.qcow2", Some(Format::QCOW2)).open("overlay.qcow2")?;
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[must_use]
    pub fn backing_file(mut self, path: impl Into<PathBuf>, format: Option<Format>) -> Self {
        self.backing_file = Some((path.into(), format));
        self
    }

    /// Whether a compressed image may be opened for one conversion, which reads its guest data once and in order. Default: false.
    ///
    /// A raw disk or a stream-optimized VMDK in a gzip file, or in another one that has to be decoded from its beginning, is then not
    /// decoded to a temporary file first. The size of such a disk may be known for certain only at its end: a conversion can
    /// fail with [`Error::NotOnePass`](crate::Error::NotOnePass), and should be tried again without this option.
    ///
    /// ```no_run
    /// use diskimage::{Converter, Error, Format, OpenOptions};
    ///
    /// let converter = Converter::new(Format::QCOW2);
    /// let convert = |one_pass| {
    ///     let disk = OpenOptions::new().one_pass(one_pass).open("disk.raw.gz")?;
    ///     converter.convert(&disk, "disk.qcow2")
    /// };
    /// let report = match convert(true) {
    ///     Err(error) if matches!(error.root(), Error::NotOnePass { .. }) => convert(false)?,
    ///     result => result?,
    /// };
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[must_use]
    pub fn one_pass(mut self, one_pass: bool) -> Self {
        self.one_pass = one_pass;
        self
    }

    /// Stops decompressing a file with [`Error::Cancelled`](crate::Error::Cancelled) soon after `cancel` becomes true.
    #[must_use]
    pub fn cancel(mut self, cancel: Arc<AtomicBool>) -> Self {
        self.cancel = Some(cancel);
        self
    }

    /// Sets the directory for the copy of an image from a pipe, and for what is decompressed. Default: that of the system ([`std::env::temp_dir`]).
    #[must_use]
    pub fn temporary_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.temporary_directory = Some(directory.into());
        self
    }

    /// Whether an image is opened that another program has opened for writing. What is read may be inconsistent then.
    /// Default: false.
    ///
    /// It applies to files that are opened by path, on Linux. QEMU locks the images that it has opened. By default its locks are
    /// heeded, and taken: no virtual machine can be started that would write to an opened image, and no [`Converter`](crate::Converter)
    /// replaces it. An image that is opened for writing is locked in any case.
    ///
    /// ```no_run
    /// use diskimage::{ErrorKind, Image, OpenOptions};
    ///
    /// let refused = Image::open("running.qcow2").unwrap_err();
    /// assert_eq!(refused.kind(), ErrorKind::InUse);
    /// println!("{}", OpenOptions::new().force_share(true).inspect("running.qcow2")?.info.virtual_size);
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[must_use]
    pub fn force_share(mut self, force: bool) -> Self {
        self.force_share = force;
        self
    }

    /// Sets how files that are opened by path are read: bypassing the page cache or through it, as far as their file systems can do that; see
    /// [`Image::bypasses_cache`](crate::Image::bypasses_cache). Default: through it.
    ///
    /// ```no_run
    /// use diskimage::OpenOptions;
    /// use diskimage::io::CacheMode;
    ///
    /// let image = OpenOptions::new().cache(CacheMode::None).open("disk.qcow2")?;
    /// if !image.bypasses_cache() {
    ///     println!("read through the page cache");
    /// }
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[must_use]
    pub fn cache(mut self, cache: CacheMode) -> Self {
        self.cache = cache;
        self
    }

    /// Adds a secret that may unlock encrypted images. Each image of a chain tries all of them, in this order, so that images with different
    /// secrets can be opened. Each try takes about a second or two, as the creator of the image has chosen.
    ///
    /// The legacy AES encryption of qcow and qcow2 does not tell a wrong secret from the right one: the first secret is taken, and with a wrong
    /// one the disk is garbage. [`ImageInfo::warnings`](crate::ImageInfo::warnings) says so.
    ///
    /// Properties ([`inspect`](Self::inspect)) and checks need no secret.
    ///
    /// ```no_run
    /// use diskimage::{OpenOptions, Secret};
    ///
    /// let passphrase = Secret::new(std::fs::read("passphrase")?);
    /// let disk = OpenOptions::new().secret(passphrase).open("disk.luks")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn secret(mut self, secret: Secret) -> Self {
        self.secrets.push(secret);
        self
    }

    /// Sets the limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }
}

impl OpenOptions {
    /// Whether the backing file of an image that changes is not opened, so that holes read as zeros.
    #[must_use]
    pub(crate) fn alone(mut self, alone: bool) -> Self {
        self.alone = alone;
        self
    }

    /// The options for a backing file that is opened as an image of its own, in this format.
    #[must_use]
    pub(crate) fn for_backing(mut self, format: Format) -> Self {
        self.backing_file = None;
        self.options(Options::new()).format(format)
    }
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OpenOptions { format, snapshot, policy, limits, detached_header, .. } = self;
        f.debug_struct("OpenOptions")
            .field("format", format)
            .field("snapshot", snapshot)
            .field("policy", policy)
            .field("limits", limits)
            .field("detached_header", detached_header)
            .finish_non_exhaustive()
    }
}
