//! Reads, writes and converts virtual disk images: [raw](format::raw), [qcow2](format::qcow2), [VMDK](format::vmdk),
//! [VHD](format::vhd), [VHDX](format::vhdx) and [VDI](format::vdi); with features that are not on by default, LUKS, dmg and old formats.
//!
//! ```no_run
//! use diskimage::{Converter, Format, Image};
//!
//! # fn main() -> diskimage::Result<()> {
//! let disk = Image::open("disk.qcow2")?;
//! let report = Converter::new(Format::RAW).convert(&disk, "disk.raw")?;
//! println!("{report}");
//! # Ok(())
//! # }
//! ```
//!
//! - [`Image`] is an opened disk: [`Image::read_exact_at`] reads at any offset, [`Image::reader`] is `Read + Seek`, and
//!   [`Image::spans`] lists the data, zero and compressed ranges with their host offsets, and [`Image::plot`] sums them up.
//! - [`OpenOptions`] sets the format, snapshot, limits and reference policy.
//! - [`Converter`] writes a new image from an opened one, or an empty one.
//! - With the feature `disk`, `Disk` is an image that a guest writes to, and that is changed in place: resized, committed, rebased.
//! - [`compare`] compares the contents of two disks. [`io`] has the storage traits, [`driver`] those for adding formats.
//! - With the feature `inspect`, `inspect::Policy` judges untrusted images for services that take uploads.
//! - With the feature `mkfs`, new disks have a file system.
//! - With the feature `nbd`, disks are read from and written to NBD servers, and exported by one.
//!
//! # Architecture
//!
//! Drivers handle metadata only; the pipeline moves the payload. A driver maps guest ranges to host offsets when reading, and
//! allocates host ranges when writing. Everything else is implemented once, in the core.
//!
//! ```text
//! path or source -> ReadAt -> probe -> Format -> SparseRead (+ backing chain) -> Image
//! Image::spans -> Data | Compressed | Zero | Hole
//!    plan   cut the disk into bounded ranges, and look up their spans     one worker at a time
//!    load   read, decode, detect zeros, encode                            any worker, any order
//!    place  allocate host ranges: metadata only                           in guest order, one at a time
//!    write  the payload                                                   any worker, any order
//! SparseWrite::finish: tables, header, sync -> Report
//! ```
//!
//! Each layer imports only from the layers below it:
//!
//! ```text
//! bin/imgconv
//! convert/  compare  inspect/  nbd/server   Converter, Preset, the pipeline; verdicts; the NBD server (the only threads, but for connecting)
//! disk/                              Disk, Commit: writing by a guest, and changes in place
//! image/                             Image, spans, reader, OpenOptions, reference policy, overlap tracking
//! guest/  package/  mkfs/            what a disk holds: partitions, file systems; disks in tar and OVF packages; new file systems
//! format/                            the registry; raw, qcow2/, vmdk/, vhd/, vhdx/, vdi/, luks/; qcow/, qed/, parallels/, bochs, cloop, dmg/; shared/
//! driver/                            FormatDriver, SparseRead, SparseWrite, SparseUpdate, Extent, Placement, contexts
//! codec/  compressed/  crypto/  hash  remote/  nbd/client  tls/  spool  info  identifiers  options  limits  secret  error  limit_name  name
//! io/  zero                          ReadAt, WriteAt; files, memory, pipes
//! ```
//!
//! Guarantees:
//!
//! 1. **Deterministic.** The output is the same, byte for byte, for any number of threads. (Encrypted images have random keys.)
//! 2. **Bounded memory.** A few MiB per thread, 8 MiB of decoded units (one for each thread, where they are larger), the metadata budget, two bits per host cluster for overlap tracking (16 MiB at
//!    most), and the read-ahead of a pipe; independent of the size of the disk. [`Limits::peak_memory`] is the formula.
//! 3. **All or nothing.** The header is written last, and files are renamed to their final names at the end. A failed or interrupted
//!    conversion leaves no files; it empties a file written in place. (A stream has its header first; its footer completes it.)
//! 4. **Idempotent.** Converting a result again gives the same bytes.
//! 5. **Proportional.** Cost is proportional to the stored data. An empty disk of 64 TiB converts immediately.
//!
//! [`design`] explains the design decisions.
#![doc = include_str!("guide.md")]
#![deny(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]
// Parts of the core are only for writing, or only for some formats. A build with all of them looks for dead code.
#![cfg_attr(not(feature = "cli"), allow(dead_code, unused_imports))]

// The name that the helpers shared with the integration tests have for this crate.
#[cfg(test)]
extern crate self as diskimage;

pub mod codec;
mod compare;
mod compressed;
#[cfg(feature = "write")]
mod convert;
#[cfg(feature = "crypto")]
mod crypto;
#[cfg(feature = "disk")]
mod disk;
pub mod driver;
#[doc = include_str!("design.md")]
// Tests the README's Rust block.
#[cfg_attr(doctest, doc = include_str!("../README.md"))]
pub mod design {}
mod error;
pub mod format;
mod guest;
#[cfg(feature = "hash")]
mod hash;
mod identifiers;
mod image;
mod info;
#[cfg(feature = "inspect")]
pub mod inspect;
pub mod io;
mod limit_name;
mod limits;
#[cfg(feature = "mkfs")]
pub mod mkfs;
mod name;
#[cfg(feature = "nbd")]
pub mod nbd;
mod options;
#[cfg(feature = "packages")]
mod package;
#[cfg(feature = "remote")]
pub mod remote;
mod secret;
#[cfg(feature = "serde")]
mod serialize;
mod spool;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod testing;
#[cfg(any(feature = "nbd", feature = "remote"))]
#[cfg_attr(not(feature = "nbd"), allow(dead_code, unused_imports))]
mod tls;
pub mod zero;

pub use compare::{Comparison, compare, compare_range};
#[cfg(feature = "hash")]
pub use convert::FileDigest;
#[cfg(feature = "write")]
pub use convert::{
    BitmapPolicy, Converter, Damage, DamageList, Measure, OutputCompression, Preset, Progress, Reflink, Report,
};
#[cfg(feature = "disk")]
pub use disk::{Commit, Disk, DiskStream, Preallocation, RebaseTo};
pub use driver::{CheckKind, CheckMessage, CheckReport, Repair, RepairReport};
pub use error::{Error, ErrorKind, Fault, Problem, ReferenceProblem, Result, SecretProblem};
pub use format::{Format, Formats};
pub use guest::ContentKind;
#[cfg(feature = "sparsify")]
pub use guest::free::GuestVolume;
#[cfg(feature = "hash")]
pub use hash::{Digest, HashAlgorithm};
pub use identifiers::{Identifiers, ImageIdentifiers};
pub use image::{
    Allocation, Image, Inspection, OpenOptions, Plot, Reader, ReferencePolicy, ResolveRequest, Span, Spans,
};
pub use info::{CompressionLayer, FileReference, ImageInfo, Snapshot, Value};
pub use limits::{Budget, LimitName, Limits};
pub use name::Name;
pub use options::{OptionSpec, Options, parse_size};
#[cfg(feature = "packages")]
pub use package::{Package, PackageDisk, PackageMember};
pub use secret::Secret;
