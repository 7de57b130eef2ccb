//! The integration tests: one program, so that it links once.
//!
//! `interop` compares with other programs. Where one is missing, its tests print `SKIPPED` to standard error and pass;
//! with `DISKIMAGE_INTEROP=required` in the environment they fail.

#[cfg(feature = "cli")]
mod bitmaps;
mod cache;
mod cli;
#[cfg(feature = "compressed")]
mod compressed;
mod concatenation;
mod corpus;
mod counts;
mod data_files;
mod detection;
mod determinism;
#[cfg(feature = "disk")]
mod disk;
mod faults;
mod fuzzing;
#[cfg(feature = "hash")]
mod hashes;
mod hostile;
mod huge;
mod identifiers;
mod interop;
mod limits;
mod measure;
#[cfg(feature = "mmap")]
mod mmap;
#[cfg(all(unix, feature = "cli"))]
mod nbd;
#[cfg(feature = "cli")]
mod old_formats;
#[cfg(all(unix, feature = "cli"))]
mod openstack;
mod output;
#[cfg(feature = "packages")]
mod packages;
#[cfg(feature = "cli")]
mod pipes;
#[cfg(all(unix, feature = "cli"))]
mod qemu_img;
mod references;
#[cfg(target_os = "linux")]
mod reflink;
#[cfg(feature = "remote")]
mod remote;
mod salvage;
mod support;
mod vdi;
mod vhdx;
