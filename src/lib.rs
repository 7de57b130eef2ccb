//! Reads, writes and converts virtual disk images.

#![cfg_attr(not(feature = "mmap"), forbid(unsafe_code))]
#![warn(missing_docs)]

mod claims;
pub mod codec;
mod compare;
mod convert;
mod error;
pub mod extent;
pub mod format;
mod image;
mod info;
pub mod io;
mod limits;
mod name;
mod open;
mod options;
pub mod sparse;
pub mod zero;

pub use compare::{Comparison, compare};
pub use convert::{Converter, Progress, Report};
pub use error::{Error, Fault, Problem, ReferenceProblem, Result};
pub use format::{CheckReport, Format};
pub use image::{Image, Reader, Span, Spans};
pub use info::{ImageInfo, Reference, Snapshot, Value};
pub use limits::{Budget, Limits};
pub use name::Name;
pub use open::{Inspection, OpenOptions, References};
pub use options::{OptionSpec, Options, parse_size};
