//! The settings of a conversion.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::rate::Throttle;
use super::{Backing, Converter, MAX_SPARSE, OutputCompression, Progress, Reflink, SECTOR};
#[cfg(feature = "hash")]
use crate::hash::HashAlgorithm;
use crate::identifiers::Identifiers;
use crate::image::Image;
use crate::io::CacheMode;
use crate::name::Name;
use crate::options::Options;
use crate::secret::Secret;

impl Converter {
    /// Sets the format's options, which [`Format::options`](crate::Format::options) lists.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Whether allocation units are compressed. Default: false.
    #[must_use]
    pub fn compress(mut self, compress: bool) -> Self {
        self.compress = compress;
        self
    }

    /// Compresses the new file as a whole, which has to be raw: "disk.raw.gz". Default: none.
    ///
    /// It consists of independent parts of up to 1 MiB of data, so that it is written and read by all threads, and read at any offset. Every
    /// program that decompresses gzip or zstd reads it.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::MemFile;
    /// use diskimage::{Converter, Format, OpenOptions, OutputCompression};
    ///
    /// let disk = Arc::new(MemFile::from(vec![7; 5 << 20]));
    /// let disk = OpenOptions::new().format(Format::RAW).open_source(disk)?;
    /// let file = Arc::new(MemFile::new());
    /// let zstd = Some(OutputCompression::Zstd);
    /// Converter::new(Format::RAW).compress_output(zstd).convert_to(&disk, file.clone())?;
    /// assert!(file.to_vec().len() < 1000);
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[must_use]
    pub fn compress_output(mut self, compression: Option<OutputCompression>) -> Self {
        self.compress_output = compression;
        self
    }

    /// Creates an overlay backed by `image`, in which data that equals the backing image is not stored. `name` is the name of
    /// `image` that is written into the overlay.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::{MemDirectory, MemFile};
    /// use diskimage::{Converter, Format, OpenOptions, ReferencePolicy};
    ///
    /// let base = Arc::new(MemFile::from(vec![7; 1 << 20]));
    /// let directory = Arc::new(MemDirectory::new());
    /// directory.insert("base.raw", base.clone());
    /// let base = OpenOptions::new().format(Format::RAW).open_source(base)?;
    ///
    /// let size = base.virtual_size();
    /// Converter::new(Format::QCOW2).backing(base, "base.raw").create_into(size, &*directory, "overlay.qcow2")?;
    ///
    /// let overlay = directory.open("overlay.qcow2")?;
    /// let overlay = OpenOptions::new()
    ///     .reference_policy(ReferencePolicy::Beside)
    ///     .resolver(move |request| directory.open(request.path))
    ///     .open_source(overlay)?;
    /// let mut byte = [0];
    /// overlay.read_exact_at(&mut byte, 4096)?;
    /// assert_eq!((byte, overlay.layer_count()), ([7], 2));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn backing(mut self, image: Image, name: impl Into<Name>) -> Self {
        self.backing = Some(Backing { image: Arc::new(image), name: name.into() });
        self
    }

    /// Sets the secret with which an encrypted image is created. Formats without encryption ignore it.
    ///
    /// The key of the image and its salts are random, whatever [`identifiers`](Self::identifiers) says: no two encrypted images are the same.
    #[must_use]
    pub fn secret(mut self, secret: Secret) -> Self {
        self.secret = Some(secret);
        self
    }

    /// Whether the guest data is written into the existing image at the target, whose parameters remain, instead of into a new image.
    /// Default: false.
    ///
    /// The image is at a path, or else see [`convert_into_existing`](Self::convert_into_existing), and at least as large as the source. A LUKS volume or a raw disk keeps what is beyond the end of the source; a
    /// volume is unlocked with the [`secret`](Self::secret). An image of another format is written anew in the same file, with the parameters and,
    /// as far as the format has it, the identity that it has: it must be a single file without snapshots, bitmaps, encryption and data beyond the end
    /// of the source, and the [backing image](Self::backing) of an overlay must be given; for others see
    /// `convert_into_disk`, with the feature `disk`. A failure leaves a part of the new data in a raw disk
    /// or a volume. Another image is untouched, unless the last step fails, the copy into its file, which is empty then.
    #[must_use]
    pub fn existing(mut self, existing: bool) -> Self {
        self.existing = existing;
        self
    }

    /// Whether an overlay holds all guest data of the source itself, so that it reads the same with another [backing image](Self::backing), or
    /// without one. Data that the backing image has too is stored then, and zeros are stored as zero clusters where the format has them.
    /// Default: false.
    #[must_use]
    pub fn complete(mut self, complete: bool) -> Self {
        self.complete = complete;
        self
    }

    /// Sets the smallest run of zeros in bytes that becomes a hole, where the format has smaller units than that. It is rounded
    /// down to a power of two from 512 to 16 MiB. Default: 4096.
    ///
    /// 0 turns zero detection off: all zeros are stored, and new files have no holes. For a file of the caller, see
    /// [`FileTarget::without_holes`](crate::io::FileTarget::without_holes).
    ///
    /// In a compressed image only whole blocks of zeros become holes.
    ///
    /// Data is looked at for zeros only where it is read: see [`Reflink::Auto`](crate::Reflink::Auto).
    #[must_use]
    pub fn sparse(mut self, bytes: u64) -> Self {
        self.sparse = Some(match bytes {
            0 => 0,
            bytes => 1 << bytes.clamp(SECTOR, MAX_SPARSE).ilog2(),
        });
        self
    }

    /// Whether the new image shares blocks with its source. Default: where that is possible.
    ///
    /// ```no_run
    /// use std::path::Path;
    ///
    /// use diskimage::{Converter, Format, OpenOptions, Reflink};
    ///
    /// let disk = OpenOptions::new().open("disk.qcow2")?;
    /// let report = Converter::new(Format::RAW).reflink(Reflink::Always).convert(&disk, Path::new("disk.raw"))?;
    /// println!("{} of {} bytes are shared", report.cloned_bytes, report.data_bytes);
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[must_use]
    pub fn reflink(mut self, reflink: Reflink) -> Self {
        self.reflink = reflink;
        self
    }

    /// Sets the number of threads, at least 1. The new image does not depend on it. Default: one for each core, 16 at most.
    ///
    /// Under a limit of address space (`ulimit -v`), no more threads are started than fit into it.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Whether the new image is durable when the conversion returns. Default: true.
    #[must_use]
    pub fn sync(mut self, sync: bool) -> Self {
        self.sync = sync;
        self
    }

    /// Sets how files are written: bypassing the page cache or through it, and whether each write is durable when it returns. Where the file system
    /// cannot bypass it, it is not bypassed, and [`Report::cache_refused`](crate::Report::cache_refused) says so. [`CacheMode::Unsafe`] is the same as
    /// not to [sync](Self::sync). Default: [`CacheMode::Writeback`].
    ///
    /// ```no_run
    /// use diskimage::io::CacheMode;
    /// use diskimage::{Converter, Format, Image};
    ///
    /// let image = Image::open("disk.qcow2")?;
    /// let report = Converter::new(Format::RAW).cache(CacheMode::None).convert(&image, "disk.raw")?;
    /// println!("through the page cache: {}", report.cache_refused);
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[must_use]
    pub fn cache(mut self, cache: CacheMode) -> Self {
        self.cache = cache;
        self
    }

    /// Whether existing files are replaced, or written [in place](Self::in_place), and devices overwritten. Default: true.
    #[must_use]
    pub fn clobber(mut self, clobber: bool) -> Self {
        self.clobber = clobber;
        self
    }

    /// Whether existing files are written in place instead of being replaced: truncated, then written, with the header last. Such a
    /// file keeps its inode with all its names, its owner and its permissions. A failure leaves it empty, or as it was if nothing had
    /// been written. A new file has its name from the start, and is removed after a failure. Default: false.
    ///
    /// This is for files that cannot be replaced, because they are mount points or their directory is not writable
    /// ([`Error::NotReplaceable`](crate::Error::NotReplaceable)), and for those that must remain the same file. An existing file that is empty and cannot be replaced is
    /// written in place by default. Of an image of several files each one that exists is written in place; the others are created.
    ///
    /// ```
    /// use diskimage::{Converter, Format, Image};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let path = std::env::temp_dir().join(format!("diskimage-doc-in-place-{}", std::process::id()));
    /// # let second_name = path.with_extension("link");
    /// std::fs::write(&path, "content")?;
    /// std::fs::hard_link(&path, &second_name)?;
    /// Converter::new(Format::QCOW2).in_place(true).create(1 << 30, &path)?;
    /// assert_eq!(Image::open(&second_name)?.virtual_size(), 1 << 30);
    /// # std::fs::remove_file(&second_name)?;
    /// # std::fs::remove_file(&path)?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn in_place(mut self, in_place: bool) -> Self {
        self.in_place = in_place;
        self
    }

    /// Sets the directory for the temporary file of an image that is written to a pipe, but not in one pass. It needs free space for the whole image.
    /// Default: [`std::env::temp_dir`].
    #[must_use]
    pub fn temporary_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.temporary_directory = Some(directory.into());
        self
    }

    /// Sets the source of identifiers and timestamps. Default: [`Identifiers::from_env`].
    #[must_use]
    pub fn identifiers(mut self, identifiers: Identifiers) -> Self {
        self.identifiers = Some(identifiers);
        self
    }

    /// Adds a digest of the guest data to the [report](super::Report::digests): that of a raw disk of the size of the source, whatever the formats are. Each
    /// algorithm is computed once.
    ///
    /// It is computed in the same pass, from the bytes that are written. Zeros are part of it and have to be hashed as well, at the speed of
    /// the algorithm, also those of holes. BLAKE3 is computed by all threads; any other algorithm by one thread at a time, beside the copying.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::MemFile;
    /// use diskimage::{Converter, Format, HashAlgorithm, OpenOptions};
    ///
    /// let disk = Arc::new(MemFile::from(b"abc".to_vec()));
    /// let disk = OpenOptions::new().format(Format::RAW).open_source(disk)?;
    /// let converter = Converter::new(Format::QCOW2).hash(HashAlgorithm::Md5);
    /// let report = converter.convert_to(&disk, Arc::new(MemFile::new()))?;
    /// assert_eq!(report.digests[0].to_string(), "900150983cd24fb0d6963f7d28e17f72");
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[cfg(feature = "hash")]
    #[must_use]
    pub fn hash(mut self, algorithm: HashAlgorithm) -> Self {
        if !self.hashes.contains(&algorithm) {
            self.hashes.push(algorithm);
        }
        self
    }

    /// Adds a digest of each file that is written to the [report](super::Report::file_digests). Each algorithm is computed once.
    ///
    /// A pipe is hashed while it is written. Another file is not written in order: it is read back when it is complete, before it gets
    /// its name. It must be at a path, and is read by one thread.
    ///
    /// ```no_run
    /// use diskimage::{Converter, Format, HashAlgorithm, Image};
    ///
    /// let source = Image::open("disk.raw")?;
    /// let report = Converter::new(Format::QCOW2).hash_file(HashAlgorithm::Sha256).convert(&source, "disk.qcow2")?;
    /// println!("{}  disk.qcow2", report.file_digests[0].digest);
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[cfg(feature = "hash")]
    #[must_use]
    pub fn hash_file(mut self, algorithm: HashAlgorithm) -> Self {
        if !self.file_hashes.contains(&algorithm) {
            self.file_hashes.push(algorithm);
        }
        self
    }

    /// Whether the new image at a path is read back before it gets its name, by the reader of its format, and its guest data is compared
    /// with what was written, by a digest of 128 bits. Other data, or an error of the reader, is an error of the conversion. Default: false.
    ///
    /// This finds faults of the storage, as far as the system reads from it and not from memory, and of this crate. It applies to
    /// [`convert`](Self::convert). The source is not read again, and need not be a file.
    ///
    /// ```no_run
    /// use diskimage::{Converter, Format, Image};
    ///
    /// let source = Image::open("disk.vmdk")?;
    /// Converter::new(Format::QCOW2).verify(true).convert(&source, "disk.qcow2")?;
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[must_use]
    pub fn verify(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Whether what can be read of a damaged source is read. The [pattern](Self::salvage_pattern) replaces the rest, which the
    /// report [lists](super::Report::unreadable). Default: false, a source that cannot be read is an error.
    ///
    /// What cannot be read is a sector, a compressed unit, or the guest range that a damaged part of the metadata maps. Guest
    /// ranges that share a host range are read as the metadata says, and listed as [doubtful](super::Report::doubtful). An image that cannot be opened, or whose backing file
    /// or extents are missing, is an error, and one from a pipe is read up to its first fault.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::MemFile;
    /// use diskimage::{Converter, Format, OpenOptions};
    ///
    /// # fn main() -> diskimage::Result<()> {
    /// let raw = OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(vec![7; 3 << 20])))?;
    /// let file = Arc::new(MemFile::new());
    /// Converter::new(Format::VDI).convert_to(&raw, file.clone())?;
    /// let mut bytes = file.to_vec();
    /// bytes.truncate(bytes.len() - (1 << 20));
    ///
    /// let damaged = OpenOptions::new().open_source(Arc::new(MemFile::from(bytes)))?;
    /// let converter = Converter::new(Format::RAW);
    /// assert!(converter.convert_to(&damaged, Arc::new(MemFile::new())).is_err());
    /// let report = converter.salvage(true).convert_to(&damaged, Arc::new(MemFile::new()))?;
    /// assert_eq!(report.unreadable.ranges[0].range, 2 << 20..3 << 20);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn salvage(mut self, salvage: bool) -> Self {
        self.salvage = salvage;
        self
    }

    /// Sets the byte that replaces what [`salvage`](Self::salvage) cannot read. Default: 0.
    #[must_use]
    pub fn salvage_pattern(mut self, byte: u8) -> Self {
        self.salvage_pattern = byte;
        self
    }

    /// Limits the rate at which guest data is written, in bytes per second; 0 for no limit, the default.
    ///
    /// Zeros that are not stored are free, and compressed data counts with its guest length. All threads share the rate, as do clones of
    /// the converter. A chunk of 1 MiB, or a block of the format if that is larger, is written at once. A target without a clock,
    /// such as `wasm32-unknown-unknown`, ignores the limit.
    ///
    /// ```no_run
    /// use diskimage::{Converter, Format, Image};
    ///
    /// // A quarter of a link of 1 Gbit/s.
    /// let converter = Converter::new(Format::QCOW2).rate(30_000_000);
    /// converter.convert(&Image::open("disk.vmdk")?, "/mnt/nfs/disk.qcow2")?;
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[must_use]
    pub fn rate(mut self, bytes_per_second: u64) -> Self {
        self.rate = Throttle::new(bytes_per_second).map(Arc::new);
        self
    }

    /// Calls `progress` from time to time with ascending numbers, from any thread but never from two at once.
    #[must_use]
    pub fn progress(mut self, progress: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(progress));
        self
    }

    /// Stops with [`Error::Cancelled`](crate::Error::Cancelled) soon after `cancel` becomes true.
    #[must_use]
    pub fn cancel(mut self, cancel: Arc<AtomicBool>) -> Self {
        self.cancel = Some(cancel);
        self
    }
}
