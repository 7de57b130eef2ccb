//! System calls without a safe wrapper: the only `unsafe` code of the crate.

#[cfg(any(unix, target_os = "wasi"))]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(any(unix, target_os = "wasi"))]
pub(super) use unix::*;
#[cfg(windows)]
pub(super) use windows::*;

/// Length and sector size of a disk, in bytes.
#[cfg(any(unix, windows))]
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk {
    pub size: u64,
    pub sector: usize,
}
