//! TLS for NBD, by rustls: handshakes over any stream, with certificates from files as QEMU and libnbd have them.
//!
//! | file in the directory | |
//! |---|---|
//! | `ca-cert.pem` | who signs the certificates of the other side; without it, a client trusts the roots of the system |
//! | `client-cert.pem`, `client-key.pem` | a client that the server has to know |
//! | `server-cert.pem`, `server-key.pem` | a server |

#[cfg(not(all(feature = "tls", any(target_arch = "x86_64", target_arch = "aarch64"), not(target_family = "wasm"))))]
#[path = "absent.rs"]
mod implementation;
#[cfg(all(feature = "tls", any(target_arch = "x86_64", target_arch = "aarch64"), not(target_family = "wasm")))]
#[path = "present.rs"]
mod implementation;

pub use implementation::{Client, Server};

/// Why there is no TLS: the crate of the ciphers requires these instructions, and would end the process without them.
#[cfg(target_arch = "x86_64")]
pub fn missing() -> Option<&'static str> {
    use std::arch::is_x86_feature_detected as has;

    let all = has!("aes") && has!("pclmulqdq") && has!("bmi1") && has!("bmi2") && has!("adx") && has!("avx2");
    (!all).then_some("TLS on a processor without AES, ADX and AVX2")
}

#[cfg(target_arch = "aarch64")]
pub fn missing() -> Option<&'static str> {
    use std::arch::is_aarch64_feature_detected as has;

    let all = has!("neon") && has!("aes") && has!("pmull") && has!("sha2");
    (!all).then_some("TLS on a processor without AES and SHA-2")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn missing() -> Option<&'static str> {
    Some("TLS on this kind of processor")
}
