//! Conversion. Its threads exist only here, and guest data is moved only here.
//!
//! ```text
//! plan   split a bounded work range (never the whole disk) into spans   one thread at a time
//! load   read, decode, detect zeros, encode                             any thread, any order
//! place  allocate host ranges (metadata only)                           in guest order, one thread at a time
//! write  write the payload                                              any thread, any order
//! ```
//!
//! Since host ranges are allocated in guest order, the output does not depend on the number of threads.

mod amount;
mod anew;
mod bitmaps;
mod compressed_raw;
mod digest;
mod directory;
mod existing;
#[cfg(feature = "hash")]
mod file_digest;
#[cfg(feature = "packages")]
mod google;
#[cfg(feature = "hash")]
mod hashing;
#[cfg(feature = "disk")]
mod into_disk;
mod load;
mod measure;
mod output;
#[cfg(feature = "packages")]
mod ova;
mod pipeline;
mod plan;
mod preset;
mod rate;
mod reflink;
mod report;
mod salvage;
mod settings;
#[cfg(test)]
mod tests;
mod verify;

use std::ffi::OsStr;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::available_parallelism;

use crate::driver::WriteSpec;
use crate::driver::{CreateContext, NewBacking, TargetFiles};
use crate::error::{Error, Result};
use crate::format::Format;
#[cfg(feature = "hash")]
use crate::hash::{Digest, HashAlgorithm};
use crate::identifiers::{Identifiers, ImageIdentifiers};
use crate::image::{Image, SourceFile};
use crate::io::{CacheMode, FileIdentity, FileSource, ReadAt, TargetDirectory, WriteAt};
use crate::name::Name;
use crate::options::Options;
use crate::secret::Secret;
use crate::spool::{self, Spool};
pub use bitmaps::BitmapPolicy;
use compressed_raw::Content;
pub use compressed_raw::OutputCompression;
use directory::DirectoryFiles;
#[cfg(feature = "hash")]
pub use file_digest::FileDigest;
#[cfg(feature = "hash")]
use file_digest::HashedPipe;
pub use measure::Measure;
use output::{Output, Rules};
use pipeline::Sums;
pub use preset::Preset;
use rate::Throttle;
pub use reflink::Reflink;
use reflink::Reflinks;
pub use report::{Damage, DamageList, Progress, Report};

/// Guest bytes that one thread loads, places and writes at once. Larger chunks are not faster and take more memory.
const CHUNK_SIZE: u64 = 1 << 20;
/// Default of [`Converter::sparse`], as in qemu-img.
const DEFAULT_SPARSE: u64 = 4096;
/// Largest accepted [`Converter::sparse`], as in qemu-img.
const MAX_SPARSE: u64 = 16 << 20;
/// Largest default number of threads. Each takes some MiB of memory.
const MAX_DEFAULT_THREADS: usize = 16;
/// The size of a disk is a multiple of it in every format but raw.
const SECTOR: u64 = 512;

/// Configures a conversion, or the creation of an image.
///
/// By default the new image is uncompressed, is written by one thread for each core (16 at most), is durable when the
/// conversion returns, and replaces an existing file.
///
/// ```
/// use std::sync::Arc;
///
/// use diskimage::io::MemFile;
/// use diskimage::{Converter, Format, OpenOptions, Options};
///
/// let disk = Arc::new(MemFile::from(vec![7; 1 << 20]));
/// let disk = OpenOptions::new().format(Format::RAW).open_source(disk)?;
/// let mut options = Options::new();
/// options.set("compression_type", "zstd");
/// let image = Arc::new(MemFile::new());
/// let report = Converter::new(Format::QCOW2)
///     .options(options)
///     .compress(true)
///     .progress(|progress| println!("{} of {} bytes", progress.done, progress.total))
///     .convert_to(&disk, image.clone())?;
/// assert_eq!((report.format, report.source_format), (Format::QCOW2, Some(Format::RAW)));
/// assert_eq!(report.data_bytes, 1 << 20);
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone)]
pub struct Converter {
    format: Format,
    options: Options,
    compress: bool,
    compress_output: Option<OutputCompression>,
    #[cfg(feature = "packages")]
    google_image: bool,
    backing: Option<Backing>,
    secret: Option<Secret>,
    bitmaps: BitmapPolicy,
    /// `None`: the source.
    bitmap_image: Option<Arc<Image>>,
    existing: bool,
    complete: bool,
    /// Smallest run of zeros in bytes that becomes a hole, a power of two; 0 to store all zeros; `None` for the default.
    sparse: Option<u64>,
    reflink: Reflink,
    threads: usize,
    sync: bool,
    cache: CacheMode,
    clobber: bool,
    in_place: bool,
    /// `None`: that of the system.
    temporary_directory: Option<PathBuf>,
    /// `None`: those of the environment.
    identifiers: Option<Identifiers>,
    #[cfg(feature = "hash")]
    hashes: Vec<HashAlgorithm>,
    #[cfg(feature = "hash")]
    file_hashes: Vec<HashAlgorithm>,
    verify: bool,
    salvage: bool,
    /// The byte that replaces what cannot be read.
    salvage_pattern: u8,
    rate: Option<Arc<Throttle>>,
    preset: Option<Preset>,
    progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
    cancel: Option<Arc<AtomicBool>>,
}

/// The backing image of a new overlay.
#[derive(Clone)]
struct Backing {
    image: Arc<Image>,
    /// Its name, as written into the overlay.
    name: Name,
}

impl Converter {
    /// A converter to `format` with the default settings.
    pub fn new(format: Format) -> Self {
        Converter {
            format,
            options: Options::new(),
            compress: false,
            compress_output: None,
            #[cfg(feature = "packages")]
            google_image: false,
            backing: None,
            secret: None,
            bitmaps: BitmapPolicy::Omit,
            bitmap_image: None,
            existing: false,
            complete: false,
            sparse: None,
            reflink: Reflink::default(),
            threads: available_parallelism().map_or(1, usize::from).min(MAX_DEFAULT_THREADS),
            sync: true,
            cache: CacheMode::default(),
            clobber: true,
            in_place: false,
            temporary_directory: None,
            identifiers: None,
            #[cfg(feature = "hash")]
            hashes: Vec::new(),
            #[cfg(feature = "hash")]
            file_hashes: Vec::new(),
            verify: false,
            salvage: false,
            salvage_pattern: 0,
            rate: None,
            preset: None,
            progress: None,
            cancel: None,
        }
    }

    /// Returns the digests for which [`hash`](Self::hash) asks, in the same order, without writing an image. Only the settings for hashes,
    /// threads, progress and cancellation matter.
    ///
    /// # Errors
    /// Errors of the source; [`Error::Cancelled`].
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::MemFile;
    /// use diskimage::{Converter, Format, HashAlgorithm, OpenOptions};
    ///
    /// let disk = Arc::new(MemFile::from(b"abc".to_vec()));
    /// let disk = OpenOptions::new().format(Format::RAW).open_source(disk)?;
    /// let digests = Converter::new(Format::RAW).hash(HashAlgorithm::Blake3).digests(&disk)?;
    /// assert_eq!(digests[0].to_string(), "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85");
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[cfg(feature = "hash")]
    pub fn digests(&self, source: &Image) -> Result<Vec<Digest>> {
        let (_, report) = self.read_all(source, source.virtual_size(), false)?;
        source.check_unchanged()?;
        #[cfg(feature = "packages")]
        source.verify_unless(&|| self.is_cancelled())?;
        Ok(report.digests)
    }

    /// Converts `source` to a new image at the path `target`.
    ///
    /// The image is written to temporary files beside `target`, which are renamed atomically at the end. After a failure they
    /// are removed, and an existing file at `target` is untouched. A block device is overwritten in place: after a failure it has neither
    /// the old content nor the new.
    ///
    /// A new file that replaces another one keeps its owner, its permissions and its extended attributes, as far as the system allows
    /// it, and is never open to more users.
    ///
    /// # Errors
    /// Errors of the source, of the storage and of the options; [`Error::Usage`] if `target` is a file of the source, or is
    /// neither a regular file nor a block device; [`Error::NotReplaceable`], and [`Error::InUse`] if another program has locked it
    /// as QEMU does, before anything is converted; [`Error::Cancelled`].
    ///
    /// ```no_run
    /// use diskimage::{Converter, Format, Image};
    ///
    /// let source = Image::open("disk.vmdk")?;
    /// println!("{}", Converter::new(Format::QCOW2).convert(&source, "disk.qcow2")?);
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn convert(&self, source: &Image, target: impl AsRef<Path>) -> Result<Report> {
        self.make(target.as_ref(), Some(source), source.virtual_size())
    }

    /// Converts each image to a new one at its path. None of these gets its name before all are complete, and all have the settings of this
    /// converter. Returns the reports in the same order.
    ///
    /// # Errors
    /// As [`convert`](Self::convert).
    ///
    /// ```no_run
    /// use std::path::Path;
    ///
    /// use diskimage::{Converter, Format, Image};
    ///
    /// let (system, data) = (Image::open("system.vmdk")?, Image::open("data.vmdk")?);
    /// let targets = [(&system, Path::new("system.qcow2")), (&data, Path::new("data.qcow2"))];
    /// Converter::new(Format::QCOW2).convert_all(&targets)?;
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn convert_all(&self, targets: &[(&Image, &Path)]) -> Result<Vec<Report>> {
        let in_use = || targets.iter().flat_map(|(image, _)| image.files()).filter_map(SourceFile::identity).collect();
        let total: u64 = targets.iter().map(|(image, _)| image.virtual_size()).fold(0, u64::saturating_add);
        let (mut outputs, mut reports, mut done) = (Vec::new(), Vec::new(), 0);
        for (image, target) in targets {
            let output = Output::create(target, self.rules(in_use()))?;
            let size = image.virtual_size();
            let part = self.part_of(done..done.saturating_add(size), total);
            reports.push(part.write(Some(image), size, output.file(), Some(target), Some(&output), None)?);
            done = done.saturating_add(size);
            outputs.push(output);
        }
        outputs.into_iter().try_for_each(Output::commit)?;
        Ok(reports)
    }

    /// The converter of an image that is the part `part` of the `total` bytes of all images.
    fn part_of(&self, part: Range<u64>, total: u64) -> Converter {
        let mut converter = self.clone();
        if let Some(report) = self.progress.clone() {
            converter.progress = Some(Arc::new(move |own: Progress| {
                let own = own.scaled_to(part.end.saturating_sub(part.start));
                report(Progress { done: part.start.saturating_add(own).min(total), total });
            }));
        }
        converter
    }

    /// Creates an empty image of `size` bytes at the path `target`, as [`convert`](Self::convert) does.
    ///
    /// # Errors
    /// As [`convert`](Self::convert).
    pub fn create(&self, size: u64, target: impl AsRef<Path>) -> Result<Report> {
        self.make(target.as_ref(), None, size)
    }

    /// Converts `source` to an image in the single file `out`, which is emptied first unless it is a device.
    ///
    /// Raw disks, fixed VHD and streamOptimized VMDK are written to a pipe in one pass. The beginning of all other images depends on
    /// what follows: to a pipe they are written with the help of a file without a name in the
    /// [temporary directory](Self::temporary_directory), which holds the whole image. Either way a pipe gets the bytes that a file gets,
    /// if identifiers are reproducible; those of a streamOptimized VMDK, which come first, follow from the name of the pipe.
    ///
    /// # Errors
    /// Errors of the source, of the storage and of the options, after which `out` does not hold an image.
    /// [`Error::Unsupported`] for an image of several files.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::{MemFile, PipeTarget};
    /// use diskimage::{Converter, Format, OpenOptions};
    ///
    /// let disk = Arc::new(MemFile::from(vec![7; 1 << 20]));
    /// let disk = OpenOptions::new().format(Format::RAW).open_source(disk)?;
    /// let pipe = Arc::new(PipeTarget::new(std::io::sink()));
    /// assert_eq!(Converter::new(Format::QCOW2).convert_to(&disk, pipe)?.data_bytes, 1 << 20);
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn convert_to(&self, source: &Image, out: Arc<dyn WriteAt>) -> Result<Report> {
        self.check_has_path()?;
        self.write_to(Some(source), source.virtual_size(), out)
    }

    /// Creates an empty image of `size` bytes in the single file `out`, which is emptied first unless it is a device; to a pipe as
    /// [`convert_to`](Self::convert_to).
    ///
    /// # Errors
    /// As [`convert_to`](Self::convert_to).
    pub fn create_to(&self, size: u64, out: Arc<dyn WriteAt>) -> Result<Report> {
        self.write_to(None, size, out)
    }

    /// Converts `source` to the image `name` in `directory`. An image of several files has the others beside it, with names
    /// made from `name`. [`MemDirectory`](crate::io::MemDirectory) has an example.
    ///
    /// # Errors
    /// Errors of the source, of the storage and of the options, after which `directory` does not hold a complete image.
    /// [`Error::Usage`] if `name` is not a plain file name.
    pub fn convert_into(
        &self,
        source: &Image,
        directory: &dyn TargetDirectory,
        name: impl AsRef<OsStr>,
    ) -> Result<Report> {
        self.write_into(Some(source), source.virtual_size(), directory, name.as_ref())
    }

    /// Creates an empty image `name` of `size` bytes in `directory`, as [`convert_into`](Self::convert_into) does.
    ///
    /// # Errors
    /// As [`convert_into`](Self::convert_into).
    pub fn create_into(&self, size: u64, directory: &dyn TargetDirectory, name: impl AsRef<OsStr>) -> Result<Report> {
        self.write_into(None, size, directory, name.as_ref())
    }

    fn write_to(&self, source: Option<&Image>, size: u64, out: Arc<dyn WriteAt>) -> Result<Report> {
        if out.starts_zeroed() && !self.existing {
            // Old content would not be zeros.
            out.set_len(0).map_err(Error::io("emptying the file", None)).map_err(|e| e.in_file_at(out.path()))?;
        }
        #[cfg(feature = "hash")]
        if !self.file_hashes.is_empty() {
            return self.write_hashed(source, size, out);
        }
        self.write(source, size, out, None, None, None)
    }

    /// Writes to a pipe, and adds its digests to the report.
    #[cfg(feature = "hash")]
    fn write_hashed(&self, source: Option<&Image>, size: u64, out: Arc<dyn WriteAt>) -> Result<Report> {
        if out.seeks() {
            return Err(Error::Usage("the digest of a file needs a path or a pipe as target".into()));
        }
        let pipe = Arc::new(HashedPipe::new(out, &self.file_hashes));
        let mut report = self.write(source, size, pipe.clone(), None, None, None)?;
        report.file_digests = pipe.digests();
        Ok(report)
    }

    fn write_into(
        &self,
        source: Option<&Image>,
        size: u64,
        directory: &dyn TargetDirectory,
        name: &OsStr,
    ) -> Result<Report> {
        #[cfg(feature = "hash")]
        if !self.file_hashes.is_empty() {
            return Err(Error::Usage("the digest of a file needs a path or a pipe as target".into()));
        }
        let files = DirectoryFiles::new(directory, name);
        let out = files.add(name)?;
        self.write(source, size, out, Some(Path::new(name)), Some(&files), None)
    }

    fn make(&self, target: &Path, source: Option<&Image>, size: u64) -> Result<Report> {
        if self.existing && !self.format.opens_targets() {
            let (anew, size) = self.anew(target, size)?;
            return anew.rewrite(target, source, size);
        }
        let in_use = self.in_use(source);
        let image = self.existing.then(|| self.open_existing(target)).transpose()?;
        let output = Output::create(target, self.rules(in_use))?;
        if self.verify && source.is_some() {
            self.check_verifiable()?;
        }
        let (mut report, content) =
            self.write_content(source, size, output.file(), Some(target), Some(&output), image)?;
        report.cache_refused = self.cache.bypasses() && !output.bypasses_cache();
        if self.verify && source.is_some() {
            self.verify_output(&output, target, report.virtual_size, content)?;
        }
        #[cfg(feature = "hash")]
        for (name, current) in output.current_names() {
            report.file_digests.extend(self.digests_of_file(&current, &name)?);
        }
        output.commit()?;
        Ok(report)
    }

    /// The files that must not be written.
    fn in_use(&self, source: Option<&Image>) -> Vec<FileIdentity> {
        let backing = self.backing.as_ref().map(|backing| &*backing.image);
        source.into_iter().chain(backing).flat_map(Image::files).filter_map(SourceFile::identity).collect()
    }

    /// The rules for the files of new images.
    fn rules(&self, in_use: Vec<FileIdentity>) -> Rules {
        Rules {
            in_use,
            sync: self.sync && self.cache != CacheMode::Unsafe,
            cache: self.cache,
            clobber: self.clobber,
            in_place: self.in_place || self.existing,
            existing: self.existing,
            holes: self.sparse != Some(0),
        }
    }

    /// The file of the image into which guest data is written.
    fn open_existing(&self, target: &Path) -> Result<Arc<dyn ReadAt>> {
        let file = FileSource::open(target).map_err(Error::io("opening", None)).map_err(|e| e.in_file(target))?;
        Ok(Arc::new(file))
    }

    fn write(
        &self,
        source: Option<&Image>,
        size: u64,
        out: Arc<dyn WriteAt>,
        target: Option<&Path>,
        files: Option<&dyn TargetFiles>,
        existing: Option<Arc<dyn ReadAt>>,
    ) -> Result<Report> {
        self.write_content(source, size, out, target, files, existing).map(|(report, _)| report)
    }

    /// Writes an image, and returns the digest of its contents as well, if it is going to be verified.
    fn write_content(
        &self,
        source: Option<&Image>,
        size: u64,
        out: Arc<dyn WriteAt>,
        target: Option<&Path>,
        files: Option<&dyn TargetFiles>,
        existing: Option<Arc<dyn ReadAt>>,
    ) -> Result<(Report, u128)> {
        let format = self.format;
        let identifiers = self.source_of_identifiers()?;
        self.preset.map_or(Ok(()), |preset| preset.check_size(size))?;
        if self.existing && existing.is_none() {
            return Err(Error::Usage("an existing image to write into must be at a path".into()));
        }
        let target = target.or(out.path());
        let backing = self.backing.as_ref();
        let cloneable = source.map(|source| self.cloneable(source, &*out)).unwrap_or_default();
        let cx = CreateContext {
            size,
            options: &self.options,
            compress: self.compress,
            empty: source.is_none(),
            backing: backing.map(|backing| NewBacking { name: backing.name.clone(), info: backing.image.info() }),
            secret: self.secret.as_ref(),
            identifiers: self.early_identifiers(identifiers, size, &*out, target),
            out: out.clone(),
            files,
        };
        let writer = match (self.compressed_content(source, size, &*out)?, existing) {
            (None, None) => format.create(&cx),
            (None, Some(image)) => format.open_target(image, &cx),
            (Some(_), Some(_)) => Err(Error::Usage("a compressed file cannot be written into".into())),
            (Some((compression, content)), None) if format == Format::RAW => {
                compressed_raw::create(&cx, compression, content)
            }
            (Some((compression, _)), None) => {
                Err(Error::unsupported(format.name(), format!("{} output", compression.name())))
            }
        };
        let mut writer = writer.map_err(|e| e.in_file_at(target))?;
        if !out.seeks() && !writer.spec().sequential {
            // Nothing has been written to the pipe.
            drop(writer);
            return self.write_spooled(source, size, &*out).map(|report| (report, 0));
        }
        let virtual_size = writer.spec().virtual_size;
        let source_format = source.map(Image::format);
        let mut report = Report::new(source_format, format, virtual_size, virtual_size - size);
        #[cfg(feature = "sparsify")]
        {
            report.volumes = source.map(|source| source.dropped_volumes().to_vec()).unwrap_or_default();
        }
        let mut sums = Sums::default();
        if let Some(source) = source {
            if writer.spec().over_backing && backing.is_none() {
                let problem =
                    "the backing file must be opened to convert to an overlay: data that equals it is not stored";
                return Err(Error::Usage(problem.into()));
            }
            let mut job = Job {
                source,
                base: backing.map(|backing| &*backing.image).filter(|_| !self.complete),
                complete: self.complete,
                spec: writer.spec().clone(),
                sparse: self.sparse_size(),
                starts_zeroed: out.starts_zeroed(),
                digests: identifiers != Identifiers::Random,
                verifies: self.verify,
                #[cfg(feature = "hash")]
                hashes: &self.hashes,
                salvage: self.salvage.then_some(self),
                reflinks: None,
                target,
            };
            job.reflinks = Reflinks::new(self, &job, cloneable).map_err(|e| e.in_file_at(target))?;
            let bitmaps = self.bitmaps_of(source, writer.spec(), &mut report)?;
            sums = pipeline::run(&job, self, &*out, &mut *writer, &mut report)?;
            for bitmap in &bitmaps {
                if self.is_cancelled() {
                    return Err(Error::Cancelled);
                }
                writer.add_bitmap(bitmap).map_err(|e| e.in_file_at(target))?;
            }
            source.check_unchanged()?;
            #[cfg(feature = "packages")]
            source.verify_unless(&|| self.is_cancelled())?;
            job.base.map_or(Ok(()), Image::check_unchanged)?;
        }
        // Of the padded size: converting the padded disk again gives the same image.
        let identifiers = self.identifiers_of(identifiers, virtual_size).with(&sums.digest.to_le_bytes());
        writer.finish(&identifiers).map_err(|e| e.in_file_at(target))?;
        if self.is_cancelled() {
            return Err(Error::Cancelled);
        }
        Ok((report, sums.content))
    }

    /// Writes an image whose beginning depends on what follows: to a temporary file, which is then copied to the pipe `out`.
    fn write_spooled(&self, source: Option<&Image>, size: u64, out: &dyn WriteAt) -> Result<Report> {
        let directory = self.temporary_directory.clone().unwrap_or_else(spool::default_directory);
        self.write_by_copy(source, size, out, Spool::create(&directory)?)
    }

    fn write_by_copy(&self, source: Option<&Image>, size: u64, out: &dyn WriteAt, spooled: Spool) -> Result<Report> {
        let report = self.write(source, size, spooled.file(), None, None, None)?;
        spooled.copy_to(out, &|| self.is_cancelled())?;
        Ok(report)
    }

    /// What is compressed as a whole, if the new file is.
    fn compressed_content(
        &self,
        source: Option<&Image>,
        size: u64,
        out: &dyn WriteAt,
    ) -> Result<Option<(OutputCompression, Content)>> {
        #[cfg(feature = "packages")]
        if self.google_image {
            if self.compress_output.is_some() {
                return Err(Error::Usage("an image of Google Compute Engine has its own compression".into()));
            }
            let content = self.google_content(source, size, out.seeks())?;
            return Ok(Some((OutputCompression::Gzip, content)));
        }
        let _ = (source, out);
        Ok(self.compress_output.map(|compression| (compression, Content::disk(size))))
    }

    fn source_of_identifiers(&self) -> Result<Identifiers> {
        self.identifiers.map_or_else(Identifiers::from_env, Ok)
    }

    /// The identifiers of a disk of `size` bytes without content.
    fn identifiers_of(&self, identifiers: Identifiers, size: u64) -> ImageIdentifiers {
        let identifiers = identifiers.for_image(self.format.name(), size, &self.options);
        let Some(Backing { image, name }) = &self.backing else { return identifiers };
        let info = image.info();
        identifiers.with(format!("{name:?} {} {:?}", info.format, info.identities).as_bytes())
    }

    /// The identifiers of what is written before the content. A pipe keeps them, so that its name has to tell images apart.
    fn early_identifiers(
        &self,
        identifiers: Identifiers,
        size: u64,
        out: &dyn WriteAt,
        target: Option<&Path>,
    ) -> ImageIdentifiers {
        let identifiers = self.identifiers_of(identifiers, size.checked_next_multiple_of(SECTOR).unwrap_or(size));
        match target.and_then(Path::file_name) {
            Some(name) if !out.seeks() => identifiers.with(name.as_encoded_bytes()),
            _ => identifiers,
        }
    }

    /// Smallest run of zeros in bytes that becomes a hole.
    fn sparse_size(&self) -> u64 {
        self.sparse.unwrap_or(DEFAULT_SPARSE)
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.as_ref().is_some_and(|cancel| cancel.load(std::sync::atomic::Ordering::Relaxed))
    }
}

/// The parameters of one conversion.
struct Job<'a> {
    source: &'a Image,
    /// The backing image, unless its data is stored as well.
    base: Option<&'a Image>,
    /// Whether zeros are placed too, so that they are independent of a backing image.
    complete: bool,
    spec: WriteSpec,
    sparse: u64,
    starts_zeroed: bool,
    /// Whether identifiers follow from the content.
    digests: bool,
    /// Whether the digest of the contents is needed.
    verifies: bool,
    #[cfg(feature = "hash")]
    hashes: &'a [HashAlgorithm],
    /// The settings, if damage of the source is not an error.
    salvage: Option<&'a Converter>,
    /// What is shared with the source instead of being copied.
    reflinks: Option<Reflinks<'a>>,
    /// Path of the new image, for messages.
    target: Option<&'a Path>,
}

impl Job<'_> {
    /// Length of a work range in bytes: whole blocks.
    fn chunk_size(&self) -> u64 {
        CHUNK_SIZE.max(self.spec.block_size).max(self.sparse)
    }

    /// Exclusive limit in bytes for the length of an encoded block.
    fn encoded_limit(&self) -> usize {
        let block = self.spec.block_size as usize;
        match &self.spec.encoding {
            // Also for passthrough: some readers do not take more than an encoder would write.
            Some(encoding) if self.spec.always_encoded => encoding.max_len(block).saturating_add(1),
            _ => block,
        }
    }

    /// Whether all of the disk is hashed, so that no zeros are skipped.
    fn hashes(&self) -> bool {
        #[cfg(feature = "hash")]
        return !self.hashes.is_empty();
        #[cfg(not(feature = "hash"))]
        false
    }

    /// Whether all bytes of a work range are needed in memory, zeros too.
    fn fills_gaps(&self) -> bool {
        self.verifies || self.hashes()
    }

    /// Whether zeros are stored too.
    fn dense(&self) -> bool {
        self.spec.dense || self.sparse == 0
    }

    /// Smallest range in bytes that is stored, or becomes a hole, separately.
    fn unit(&self) -> u64 {
        let whole_blocks = self.spec.encoding.is_some() || !self.starts_zeroed || self.complete;
        let format = if whole_blocks { self.spec.block_size } else { self.spec.granule };
        format.max(self.sparse).max(SECTOR)
    }
}

impl fmt::Debug for Converter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Converter { format, options, compress, sparse, threads, .. } = self;
        f.debug_struct("Converter")
            .field("format", format)
            .field("options", options)
            .field("compress", compress)
            .field("sparse", sparse)
            .field("threads", threads)
            .finish_non_exhaustive()
    }
}
