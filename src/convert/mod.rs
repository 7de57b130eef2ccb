//! Conversion: the only place with threads, and the only one that moves guest bytes.
//!
//! ```text
//! plan   a bounded work range (never the whole disk up front) into spans     one thread at a time
//! load   read, decode, find zeros, encode                                   any thread, any order
//! place  metadata only                                                      in guest order, one at a time
//! write  the payload                                                        any thread, any order
//! ```
//!
//! Placing in guest order makes the output the same for any number of threads.

mod load;
mod output;
mod pipeline;
mod plan;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::available_parallelism;

use crate::driver::WriteSpec;
use crate::driver::{CreateContext, NewBacking, TargetFiles};
use crate::error::{Error, Result};
use crate::format::Format;
use crate::identifiers::Identifiers;
use crate::image::Image;
use crate::io::WriteAt;
use crate::name::Name;
use crate::options::Options;
use output::Output;

/// Bytes of guest that are loaded, placed and written at once, by one thread.
const CHUNK_SIZE: u64 = 1 << 20;
/// The largest run of zeros that can be asked to be kept, as with qemu-img.
const MAX_SPARSE: u64 = 16 << 20;
/// Threads by default, on a machine with as many cores. Each takes some MiB; more have to be asked for.
const MAX_DEFAULT_THREADS: usize = 16;
/// A disk has whole sectors in every format but raw.
const SECTOR: u64 = 512;

/// How to make an image.
#[derive(Clone)]
pub struct Converter {
    format: Format,
    options: Options,
    compress: bool,
    backing: Option<Arc<Backing>>,
    /// Smallest run of zeros that is left out, a power of two; 0 to leave nothing out.
    sparse: u64,
    threads: usize,
    sync: bool,
    clobber: bool,
    identifiers: Identifiers,
    progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
    cancel: Option<Arc<AtomicBool>>,
}

/// The image that a new one lies over.
struct Backing {
    image: Image,
    /// Its name, as the new image is to have it.
    name: Name,
}

/// How far a conversion has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Guest bytes that are dealt with. The last report says `total`.
    pub done: u64,
    /// Guest bytes of the disk.
    pub total: u64,
}

/// What a conversion did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Name of the source's format; empty when an empty image was made.
    pub source_format: &'static str,
    /// Name of the new image's format.
    pub format: &'static str,
    /// Size of the new disk in bytes.
    pub virtual_size: u64,
    /// Bytes of zeros by which the disk was rounded up: formats have whole sectors, and some options ask for more.
    pub padding: u64,
    /// Guest bytes that are stored, compressed or not.
    pub data_bytes: u64,
    /// Blocks that are stored compressed.
    pub compressed_blocks: u64,
    /// Of those, the blocks whose payload was taken from the source as it was, after it was found to decode.
    pub passthrough_blocks: u64,
    /// Bytes of payload that were written.
    pub written_bytes: u64,
}

impl Converter {
    /// Makes images of `format` with its default options, uncompressed, with all cores (16 at most), durable, and replacing
    /// what is there.
    pub fn new(format: Format) -> Self {
        Converter {
            format,
            options: Options::new(),
            compress: false,
            backing: None,
            sparse: 4096,
            threads: available_parallelism().map_or(1, usize::from).min(MAX_DEFAULT_THREADS),
            sync: true,
            clobber: true,
            identifiers: Identifiers::from_env(),
            progress: None,
            cancel: None,
        }
    }

    /// Sets the format's options; [`Format::options`] lists them.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Whether to compress.
    #[must_use]
    pub fn compress(mut self, compress: bool) -> Self {
        self.compress = compress;
        self
    }

    /// Makes the new image lie over `image`, and leaves out what is the same there. `name` is what the new image calls it.
    #[must_use]
    pub fn backing(mut self, image: Image, name: impl Into<Name>) -> Self {
        self.backing = Some(Arc::new(Backing { image, name: name.into() }));
        self
    }

    /// Sets the smallest run of zeros in bytes that is left out, where the format can. It is rounded down to a power of two
    /// from 512 to 16 MiB. Default 4096. 0 turns the search off, and everything is stored. Compressed, whole blocks of zeros
    /// are left out and nothing else.
    #[must_use]
    pub fn sparse(mut self, bytes: u64) -> Self {
        self.sparse = match bytes {
            0 => 0,
            bytes => 1 << bytes.clamp(SECTOR, MAX_SPARSE).ilog2(),
        };
        self
    }

    /// Sets the number of threads, at least 1. The new image does not depend on it.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Whether the new image has reached stable storage when the conversion returns. Default true.
    #[must_use]
    pub fn sync(mut self, sync: bool) -> Self {
        self.sync = sync;
        self
    }

    /// Whether a file at the target may be replaced. Default true.
    #[must_use]
    pub fn clobber(mut self, clobber: bool) -> Self {
        self.clobber = clobber;
        self
    }

    /// Sets where the identifiers in the new image come from. Default [`Identifiers::from_env`].
    #[must_use]
    pub fn identifiers(mut self, identifiers: Identifiers) -> Self {
        self.identifiers = identifiers;
        self
    }

    /// Calls `progress` now and then, from any of the threads but one at a time, with growing numbers.
    #[must_use]
    pub fn progress(mut self, progress: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(progress));
        self
    }

    /// Gives up with [`Error::Cancelled`] soon after `cancel` becomes true.
    #[must_use]
    pub fn cancel(mut self, cancel: Arc<AtomicBool>) -> Self {
        self.cancel = Some(cancel);
        self
    }

    /// Writes what the guest of `source` sees to a new image at `target`.
    ///
    /// The image is written beside `target` under a hidden name and takes its place at the end. When anything fails,
    /// nothing is left behind and what was at `target` is untouched. A block device is written in place.
    ///
    /// # Errors
    /// Whatever reading and writing meets, [`Error::Usage`] when `target` is a file of the source or nothing that can be
    /// replaced by a file, and [`Error::Cancelled`].
    pub fn convert(&self, source: &Image, target: impl AsRef<Path>) -> Result<Report> {
        self.make(target.as_ref(), Some(source), source.virtual_size())
    }

    /// Makes an empty image of `size` bytes at `target`, in the same way.
    ///
    /// # Errors
    /// As [`convert`](Self::convert).
    pub fn create(&self, size: u64, target: impl AsRef<Path>) -> Result<Report> {
        self.make(target.as_ref(), None, size)
    }

    /// Writes what the guest of `source` sees to an image in `out`, which is emptied unless it is a device.
    ///
    /// # Errors
    /// Whatever reading and writing meets. What `out` then holds is not an image. [`Error::Unsupported`] for an image that
    /// consists of several files, and for one that cannot be written in order when `out` is a pipe.
    pub fn convert_to(&self, source: &Image, out: Arc<dyn WriteAt>) -> Result<Report> {
        self.write(Some(source), source.virtual_size(), out, None)
    }

    fn make(&self, target: &Path, source: Option<&Image>, size: u64) -> Result<Report> {
        let backing = self.backing.as_ref().map(|backing| &backing.image);
        let in_use: Vec<_> =
            source.into_iter().chain(backing).flat_map(Image::files).filter_map(|file| file.identity).collect();
        let output = Output::create(target, &in_use, self.sync, self.clobber)?;
        let report = self.write(source, size, output.file(), Some((target, &output)))?;
        output.commit()?;
        Ok(report)
    }

    fn write(
        &self,
        source: Option<&Image>,
        size: u64,
        out: Arc<dyn WriteAt>,
        named: Option<(&Path, &Output)>,
    ) -> Result<Report> {
        let format = self.format;
        let target = named.map(|(target, _)| target).or(out.path());
        let backing = self.backing.as_ref();
        if out.starts_zeroed() {
            // It does so only if nothing is left in it.
            out.set_len(0).map_err(Error::io("emptying the file", None)).map_err(|e| e.in_file_at(target))?;
        }
        let mut writer = format
            .create(&CreateContext {
                size,
                options: &self.options,
                compress: self.compress,
                backing: backing.map(|backing| NewBacking { name: backing.name.clone(), info: backing.image.info() }),
                // A disk that gets its last sector filled is the same image when it is converted again.
                identifiers: self.identifiers.for_image(format.name(), size.next_multiple_of(SECTOR), &self.options),
                out: out.clone(),
                files: named.map(|(_, output)| output as &dyn TargetFiles),
            })
            .map_err(|e| e.in_file_at(target))?;
        if !out.seeks() && !writer.spec().sequential {
            let feature = "writing this kind of image to a pipe".into();
            let error = Error::Unsupported { format: format.name(), feature, at: None };
            return Err(error.in_file_at(target));
        }
        let virtual_size = writer.spec().virtual_size;
        let mut report =
            Report { format: format.name(), virtual_size, padding: virtual_size - size, ..Report::default() };
        if let Some(source) = source {
            report.source_format = source.format().name();
            if writer.spec().over_backing && backing.is_none() {
                let problem = "a disk is converted over a backing file only if that is opened too, to see what differs";
                return Err(Error::Usage(problem.into()));
            }
            let job = Job {
                source,
                base: backing.map(|backing| &backing.image),
                spec: writer.spec().clone(),
                sparse: self.sparse,
                starts_zeroed: out.starts_zeroed(),
                target,
            };
            pipeline::run(&job, self, &*out, &mut *writer, &mut report)?;
            source.check_unchanged()?;
            job.base.map_or(Ok(()), Image::check_unchanged)?;
        }
        writer.finish().map_err(|e| e.in_file_at(target))?;
        if self.is_cancelled() {
            return Err(Error::Cancelled);
        }
        Ok(report)
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.as_ref().is_some_and(|cancel| cancel.load(std::sync::atomic::Ordering::Relaxed))
    }
}

/// What is converted into what.
struct Job<'a> {
    source: &'a Image,
    base: Option<&'a Image>,
    spec: WriteSpec,
    sparse: u64,
    starts_zeroed: bool,
    /// Where the new image will be, for messages.
    target: Option<&'a Path>,
}

impl Job<'_> {
    /// Bytes of guest in a work range: whole blocks.
    fn cell(&self) -> u64 {
        CHUNK_SIZE.max(self.spec.block_size).max(self.sparse)
    }

    /// Length in bytes that an encoded block must stay below.
    fn encoded_limit(&self) -> usize {
        let block = self.spec.block_size as usize;
        match &self.spec.encoding {
            // A copied one too shall not be longer than the encoder would make it: some readers have no room for more.
            Some(encoding) if self.spec.always_encoded => encoding.max_len(block).saturating_add(1),
            _ => block,
        }
    }

    /// Whether everything is stored, zeros too.
    fn dense(&self) -> bool {
        self.spec.dense || self.sparse == 0
    }

    /// Smallest range that is stored or left out by itself.
    fn unit(&self) -> u64 {
        let whole_blocks = self.spec.encoding.is_some() || !self.starts_zeroed;
        let format = if whole_blocks { self.spec.block_size } else { self.spec.granule };
        format.max(self.sparse).max(SECTOR)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { source_format, format, virtual_size, data_bytes, written_bytes, .. } = self;
        if source_format.is_empty() {
            return write!(f, "{format}: an empty disk of {virtual_size} bytes");
        }
        write!(
            f,
            "{source_format} to {format}: {virtual_size} bytes of disk, {data_bytes} of them stored in {written_bytes}"
        )?;
        if self.padding > 0 {
            write!(f, "; the disk was rounded up by {} bytes of zeros", self.padding)?;
        }
        Ok(())
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
