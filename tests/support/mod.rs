//! Helpers that the unit tests (as `crate::testing`) and the integration tests share.
//!
//! Both include these files by path. A separate crate would depend on `diskimage` for [`RecordingTarget`], and the unit
//! tests would then have two distinct `WriteAt` traits, their own and the dependency's. The files name the crate
//! `diskimage` in both places; the unit tests declare that name for the crate itself.

#![allow(dead_code, unused_imports, reason = "no test program uses all of it")]

mod counted_file;
pub mod dmg;
mod random;
mod sparse_file;
mod target;
mod tempdir;

pub use counted_file::CountedFile;
pub use random::{Random, noise};
pub use sparse_file::{Calls, SparseFile};
pub use target::{RecordingTarget, TargetEvent, assert_header_is_last, place, place_filled};
pub use tempdir::TempDir;
