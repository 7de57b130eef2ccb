//! TLS, with the root certificates of the system.

use ureq::config::ConfigBuilder;
use ureq::typestate::AgentScope;

use crate::error::{Error, Result};
use crate::tls::missing;

/// Adds TLS to the settings of connections. A server can redirect from http to https, so that it is not only for https.
///
/// # Errors
/// [`Error::Unsupported`] for https where there is no TLS, and if the system has no certificates.
pub(super) fn add(config: ConfigBuilder<AgentScope>, is_https: bool) -> Result<ConfigBuilder<AgentScope>> {
    match missing() {
        Some(problem) if is_https => Err(Error::unsupported("https", format!("{problem}; use http"))),
        Some(_) => Ok(config),
        None => with_tls(config, is_https),
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn with_tls(config: ConfigBuilder<AgentScope>, is_https: bool) -> Result<ConfigBuilder<AgentScope>> {
    use std::sync::Arc;

    use ureq::tls::{Certificate, RootCerts, TlsConfig};

    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() && is_https {
        return Err(Error::unsupported("https", "the system has no root certificates"));
    }
    let certificates: Vec<_> = found.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(certificates)))
        .unversioned_rustls_crypto_provider(Arc::new(rustls_graviola::default_provider()));
    Ok(config.tls_config(tls.build()))
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn with_tls(config: ConfigBuilder<AgentScope>, _is_https: bool) -> Result<ConfigBuilder<AgentScope>> {
    Ok(config)
}
