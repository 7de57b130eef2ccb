//! Reads, writes and converts virtual disk images: [raw](format::raw), [qcow2](format::qcow2),
//! [vmdk](format::vmdk), [vpc](format::vhd) (VHD), [vhdx](format::vhdx) and [vdi](format::vdi).
//!
//! ```no_run
//! # fn main() -> diskimage::Result<()> {
//! use diskimage::{Converter, Format, Image};
//!
//! let disk = Image::open("disk.qcow2")?;
//! let report = Converter::new(Format::RAW).convert(&disk, "disk.raw")?;
//! println!("{report}");
//! # Ok(())
//! # }
//! ```
//!
//! [`Image::read_at`] reads guest bytes at any offset, [`Image::reader`] reads them as a stream, and [`Image::spans`] tells
//! where they live. [`OpenOptions`] states a format, a snapshot, limits, and which other files may be opened. [`compare`]
//! compares what two guests see.
//!
//! # The one idea
//!
//! **Formats are metadata; only the pipeline touches payload bytes.** A reader answers "where do the bytes of guest offset X
//! live?", a writer answers "where shall they go?". So skipping zeros, passing compressed blocks through, backing chains,
//! threads, progress, cancelling and memory bounds exist once, in the core, and not once for each format.
//!
//! ```text
//! path -> ReadAt -> probe -> Format -> SparseRead (+ parents) -> Image
//! Image::spans -> Data | Compressed | Zero | Hole
//!    plan   a bounded work range (never the whole disk up front) into spans
//!    load   read, decode, find zeros, encode            any thread, any order
//!    place  metadata only                               in guest order, one at a time
//!    write  payload                                     any thread, any order
//! SparseWrite::finish: tables, then the header, then sync -> Report
//! ```
//!
//! What follows from it:
//!
//! 1. The output is the same to the byte for any number of threads.
//! 2. Memory is bounded by the number of threads, the budget for metadata, two bits for each block of the file (8 MiB twice
//!    at most) and what is read ahead from a pipe, whatever the size of the disk.
//! 3. The header is written last, after a sync: what a broken conversion leaves is never taken for an image. With a path as
//!    the target there is not even that, since the files get their names at the very end, the one that names the others
//!    last. (A stream for a pipe has its header first; its end is what it is known by.)
//! 4. Converting a result again gives the same bytes again.
//! 5. Cost follows the data that is there, not the size of the disk: an empty disk of 64 TiB converts at once.
//!
//! # Layers
//!
//! Arrows point down only.
//!
//! ```text
//! bin/imgconv     other crates     fuzz     benches
//!       \            |             |        /
//! lib.rs      the paved path
//! convert/    Converter -> plan -> load -> pipeline (the only threads)      compare.rs
//! image.rs    open.rs (chains, policy)      claims.rs
//! format/     registry, raw, qcow2/, vmdk/, vhd/, vhdx/, vdi/  (know nothing of each other, of convert, of Image)
//! sparse.rs   extent.rs   info.rs   options.rs   identifiers.rs   limits.rs   codec.rs   zero.rs
//! io/         ReadAt WriteAt  file mem pipe  table slices runs          name.rs   error.rs   bits.rs
//! ```
//!
//! A format is one folder and two lines in `format/mod.rs`.
//!
//! # Images from strangers
//!
//! * An image names other files: its backing file, its data file, its extents. None is opened unless [`ReferencePolicy`] says so, and a
//!   refusal reads the same whether the file exists or not. A format module cannot open files at all; it asks its caller.
//! * Every number from an image is checked against the file's length and the [`Limits`] before it is used in arithmetic or
//!   as the size of an allocation. The crate has no `unsafe` code.
//! * Bytes that are missing are an [`Error`], never zeros. Errors say which field at which offset breaks which rule.
//! * Guest ranges that share one place of a file, though the image does not count it as shared, are an error during a
//!   conversion. It is corruption, and also how a file of a few KiB becomes a disk of many TiB.
//! * Compressed blocks that are passed through are decoded all the same, so that a conversion that succeeds has read
//!   every guest byte.
//! * Text from an image is escaped when it is displayed ([`Name`]).
//! * Backing files whose format is not stated are opened only if they carry no signature, or if the caller states it: a
//!   guest could have written a signature into a raw disk.
//!
//! # Decisions
//!
//! * **Positioned reads, not a memory map.** Copying the data of a disk on a tmpfs with two threads, plain reads and writes
//!   were as fast as any other way (map, `copy_file_range`), and a mapped file kills the process when somebody
//!   truncates it. [`io`] has an adapter for callers who bring a map (feature `mmap`).
//! * **One error for what is wrong with an image**, [`Fault`], with a [`Problem`] that all formats share, where one type for
//!   each format had been planned: callers tell a value out of range from an overlap without knowing the format.
//! * **A reader is handed the files that its image names through a callback** while it opens, instead of after: formats
//!   exist that have to look into those files first.
//! * **`nix` rather than `rustix`** for the few system calls that `std` lacks: it has a `close` that tells its error, and a
//!   file whose `close` failed may not be what was written.
//! * **Default levels of compression**: deflate 5 with the full window of 32 KiB, which qemu reads and does not write; zstd
//!   1 with a larger hash table. They are the best that still compress several times as fast as qemu-img on two cores.
//! * **Cells of 1 MiB** are what a thread loads, places and writes at once: larger ones are not faster and take more memory.
//! * **A resolver of the caller's** for the files that an image names was planned and is left out until somebody needs it;
//!   [`OpenOptions::open_source`] opens images that name none.
//! * **Passing compressed blocks through goes across formats**: a cluster of qcow2 and a grain of VMDK hold the same deflate
//!   stream, with the header and checksum of zlib around it or without; a frame and padding are the writer's to state
//!   ([`sparse::Frame`]), so that the pipeline still writes large runs.
//! * **Metadata between blocks travels with a placement** ([`sparse::Placement::before`]) where each write has to follow the
//!   one before it. A writer that wrote it itself, in its turn, would wait in a pipe for bytes that its own thread still has.
//! * **A log is replayed in memory**, by the format: its reader gives the file as it is to be read
//!   ([`sparse::SparseRead::image_file`]), so that tables and payload are read with the changes in the log. The file itself is
//!   evidence, or another program's to repair, and is never written to.
//! * **An image of several files takes its names one after the other**, the descriptor last, and gives them back when one
//!   fails. Only a crash between two renames leaves a mix: no file system renames several files at once.
//!
//! # Features
//!
//! None is on by default. `cli` is for the program `imgconv` and what only it needs. `mmap` is for [`io`] over a memory map. `serde`
//! implements `Serialize` for reports and properties.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod codec;
mod compare;
mod convert;
pub mod driver;
mod error;
pub mod format;
mod identifiers;
mod image;
mod info;
pub mod io;
mod limits;
mod name;
mod options;
#[cfg(feature = "serde")]
mod serialize;
#[cfg(test)]
mod tempdir;
pub mod zero;

pub use compare::{Comparison, compare};
pub use convert::{Converter, Progress, Report};
pub use driver::CheckReport;
pub use error::{Error, ErrorKind, Fault, Problem, ReferenceProblem, Result};
pub use format::{Format, Formats};
pub use identifiers::{Identifiers, ImageIdentifiers};
pub use image::{Image, Inspection, OpenOptions, Reader, ReferencePolicy, Span, Spans};
pub use info::{FileReference, ImageInfo, Snapshot, Value};
pub use limits::{Budget, Limits};
pub use name::Name;
pub use options::{OptionSpec, Options, parse_size};
