//! The settings of the C library's allocator.

/// Buffers of a MiB and more go back to the system when they are freed.
///
/// Once one was freed, glibc takes the next ones from its heaps (mallopt(3), `M_MMAP_THRESHOLD`), of which each thread has its own, and where the
/// dictionaries of decoders leave holes: half as much memory again.
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
#[allow(unsafe_code, reason = "a call without a safe wrapper")]
pub fn return_large_buffers() {
    const SIZE: libc::c_int = 1 << 20;
    // SAFETY: it sets a number, before any other thread starts.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, SIZE) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64")))]
pub fn return_large_buffers() {}
