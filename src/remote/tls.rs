//! TLS, with the root certificates of the system.

use ureq::tls::TlsConfig;

use crate::error::{Error, Result};

/// # Errors
/// [`Error::Unsupported`] where there is no TLS, and if the system has no certificates.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) fn config() -> Result<TlsConfig> {
    use std::sync::Arc;

    use ureq::tls::{Certificate, RootCerts};

    if !has_instructions() {
        return Err(Error::unsupported("https", "TLS needs a processor with AES, AVX2 and ADX"));
    }
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err(Error::unsupported("https", "the system has no root certificates"));
    }
    let certificates: Vec<_> = found.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    let provider = Arc::new(rustls_graviola::default_provider());
    let config = TlsConfig::builder().root_certs(RootCerts::Specific(Arc::new(certificates)));
    Ok(config.unversioned_rustls_crypto_provider(provider).build())
}

/// What the crate of the ciphers requires, which ends the process otherwise.
#[cfg(target_arch = "x86_64")]
fn has_instructions() -> bool {
    macro_rules! all {
        ($($name:tt)*) => { $(std::arch::is_x86_feature_detected!($name))&&* };
    }
    all!("aes" "pclmulqdq" "bmi1" "bmi2" "adx" "avx" "avx2")
}

#[cfg(target_arch = "aarch64")]
fn has_instructions() -> bool {
    use std::arch::is_aarch64_feature_detected as has;
    has!("neon") && has!("aes") && has!("pmull") && has!("sha2")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) fn config() -> Result<TlsConfig> {
    Err(Error::unsupported("https", "this build has no TLS for this kind of processor; use http"))
}
