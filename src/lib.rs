//! Reads, writes and converts virtual disk images: [raw](format::raw), [qcow2](format::qcow2), [VMDK](format::vmdk),
//! [VHD](format::vhd), [VHDX](format::vhdx) and [VDI](format::vdi).
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
//!   [`Image::spans`] tells which ranges are data, zero or compressed, and where they are stored.
//! - [`OpenOptions`] states format, snapshot, limits, and which referenced files may be opened.
//! - [`Converter`] writes a new image from an opened one, or an empty one.
//! - [`compare`] compares the contents of two disks.
//! - [`io`] has the traits for storage of any kind, [`driver`] those for formats of any kind.
//!
//! # Architecture
//!
//! Drivers are metadata; only the pipeline moves payload. A driver maps guest ranges to host offsets when reading, and
//! allocates host ranges when writing. Everything else exists once, in the core.
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
//! Imports point down only:
//!
//! ```text
//! bin/imgconv
//! convert/  compare                  Converter, the pipeline (the only threads)
//! image/                             Image, spans, reader, OpenOptions, reference policy, overlap tracking
//! format/                            the registry; raw, qcow2/, vmdk/, vhd/, vhdx/, vdi/; shared/
//! driver/                            FormatDriver, SparseRead, SparseWrite, Extent, Placement, contexts
//! codec/  info  identifiers  options  limits  error  name
//! io/  zero                          ReadAt, WriteAt; files, memory, pipes
//! ```
//!
//! What this guarantees:
//!
//! 1. **Deterministic.** The output is the same, byte for byte, for any number of threads.
//! 2. **Bounded memory.** A few MiB per thread, the metadata budget, two bits per host cluster for overlap tracking (16 MiB at
//!    most), and the read-ahead of a pipe; independent of the size of the disk.
//! 3. **All or nothing.** The header is written last, and files get their names at the very end. A failed or interrupted
//!    conversion leaves nothing behind. (A stream has its header first; its footer marks it complete.)
//! 4. **Idempotent.** Converting a result again gives the same bytes.
//! 5. **Proportional.** Cost follows the data that is stored. An empty disk of 64 TiB converts at once.
//!
//! [`design`] has the decisions with their reasons.
//!
//! # Untrusted images
//!
//! - Referenced files (backing files, data files, extents) are opened only as the [`ReferencePolicy`] allows. A refusal
//!   reads the same whether the file exists or not. Drivers cannot open files.
//! - Each number from an image is checked against the file length and the [`Limits`] before it is used in arithmetic or as
//!   an allocation size.
//! - Missing bytes are an [`Error`], never zeros. Errors name format, field, offset, value and rule.
//! - During a conversion, guest ranges that share a host range without being counted as shared are an error. This is
//!   corruption, and also how a file of a few KiB expands to a disk of many TiB.
//! - Text from an image is escaped when displayed ([`Name`]).
//! - A backing file of unstated format is opened only if it has no signature: the guest of a raw disk can write one. State
//!   the format of raw disks ([`OpenOptions::format`]) for the same reason.
//!
//! # Features
//!
//! On by default; take a few of them with `default-features = false`:
//!
//! | feature | brings |
//! |---|---|
//! | `qcow2`, `vmdk`, `vhd`, `vhdx`, `vdi` | the driver of this format; raw is in every build |
//! | `deflate`, `zstd` | the codec of compressed clusters and grains |
//! | `write` | [`Converter`], creating images, and encoding |
//!
//! A format or codec that was left out is refused with the feature to enable; its images are not taken for raw disks.
//! Not on by default: `cli` is for the program `imgconv`, `mmap` for [`io`] over a memory map, `serde`
//! implements `Serialize` for reports and properties.
//!
#![doc = include_str!("examples.md")]
#![deny(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]
// Parts of the core are only for writing, or only for some formats. A build with all of them looks for dead code.
#![cfg_attr(
    not(all(
        feature = "write",
        feature = "qcow2",
        feature = "vmdk",
        feature = "vhd",
        feature = "vhdx",
        feature = "vdi"
    )),
    allow(dead_code, unused_imports)
)]

// The name that the helpers shared with the integration tests have for this crate.
#[cfg(test)]
extern crate self as diskimage;

pub mod codec;
mod compare;
#[cfg(feature = "write")]
mod convert;
pub mod driver;
#[doc = include_str!("design.md")]
pub mod design {}
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
#[path = "../tests/support/mod.rs"]
mod testing;
pub mod zero;

pub use compare::{Comparison, compare};
#[cfg(feature = "write")]
pub use convert::{Converter, Progress, Report};
pub use driver::CheckReport;
pub use error::{Error, ErrorKind, Fault, Problem, ReferenceProblem, Result};
pub use format::{Format, Formats};
pub use identifiers::{Identifiers, ImageIdentifiers};
pub use image::{Image, Inspection, OpenOptions, Reader, ReferencePolicy, ResolveRequest, Span, Spans};
pub use info::{FileReference, ImageInfo, Snapshot, Value};
pub use limits::{Budget, Limits};
pub use name::Name;
pub use options::{OptionSpec, Options, parse_size};

/// The README's Rust block.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
