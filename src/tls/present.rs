//! TLS by rustls.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::error::{Error, Result};

/// The files of a directory with certificates.
const AUTHORITY: &str = "ca-cert.pem";
const CLIENT: [&str; 2] = ["client-cert.pem", "client-key.pem"];
const SERVER: [&str; 2] = ["server-cert.pem", "server-key.pem"];

/// The settings of a client.
#[derive(Clone)]
pub struct Client(Arc<ClientConfig>);

/// The settings of a server.
#[derive(Clone)]
pub struct Server(Arc<ServerConfig>);

/// A stream with TLS, after the handshake.
pub struct Secured<S: Read + Write>(Side<S>);

enum Side<S: Read + Write> {
    Client(StreamOwned<ClientConnection, S>),
    Server(StreamOwned<ServerConnection, S>),
}

impl Client {
    /// The settings with the certificates of a directory, or with the roots of the system.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a processor without TLS, and errors of the files.
    pub fn new(certificates: Option<&Path>) -> Result<Client> {
        let builder = ClientConfig::builder_with_provider(provider()?).with_safe_default_protocol_versions();
        let builder = builder.map_err(unusable)?;
        if let Some(directory) = certificates {
            // A mistyped name must not mean that other authorities are trusted.
            let read = std::fs::read_dir(directory).map_err(Error::io("reading the directory of certificates", None));
            read.map_err(|e| e.in_file(directory))?;
        }
        let authority = certificates.map(|directory| directory.join(AUTHORITY));
        let roots = match authority.filter(|path| path.exists()) {
            Some(path) => authorities(&path)?,
            None => roots_of_system()?,
        };
        let builder = builder.with_root_certificates(roots);
        let config = match certificates.filter(|directory| directory.join(CLIENT[0]).exists()) {
            None => builder.with_no_client_auth(),
            Some(directory) => {
                let (chain, key) = identity(directory, CLIENT)?;
                builder.with_client_auth_cert(chain, key).map_err(unusable)?
            }
        };
        Ok(Client(Arc::new(config)))
    }

    /// Performs the handshake with the server at the other end, whose certificate must be for `host`.
    pub fn connect<S: Read + Write>(&self, stream: S, host: &str) -> io::Result<Secured<S>> {
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("invalid host '{host}'")))?;
        let connection = ClientConnection::new(self.0.clone(), name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Secured(Side::Client(stream)))
    }
}

impl Server {
    /// The settings with the certificates of a directory. If it has one of an authority, clients have to have a certificate of that.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn new(certificates: &Path) -> Result<Server> {
        let provider = provider()?;
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.map_err(unusable)?;
        let authority = certificates.join(AUTHORITY);
        let builder = match authority.exists() {
            false => builder.with_no_client_auth(),
            true => {
                let roots = Arc::new(authorities(&authority)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
                builder.with_client_cert_verifier(verifier.map_err(unusable)?)
            }
        };
        let (chain, key) = identity(certificates, SERVER)?;
        Ok(Server(Arc::new(builder.with_single_cert(chain, key).map_err(unusable)?)))
    }

    /// Performs the handshake with the client at the other end.
    pub fn accept<S: Read + Write>(&self, stream: S) -> io::Result<Secured<S>> {
        let connection = ServerConnection::new(self.0.clone()).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Secured(Side::Server(stream)))
    }
}

impl<S: Read + Write> Secured<S> {
    /// The stream below.
    pub fn stream(&mut self) -> &mut S {
        match &mut self.0 {
            Side::Client(stream) => &mut stream.sock,
            Side::Server(stream) => &mut stream.sock,
        }
    }
}

impl<S: Read + Write> Read for Secured<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Side::Client(stream) => stream.read(buf),
            Side::Server(stream) => stream.read(buf),
        }
    }
}

impl<S: Read + Write> Write for Secured<S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Side::Client(stream) => stream.write(buf),
            Side::Server(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Side::Client(stream) => stream.flush(),
            Side::Server(stream) => stream.flush(),
        }
    }
}

impl<S: Read + Write> Drop for Secured<S> {
    /// Tells the other side that nothing has been cut off.
    fn drop(&mut self) {
        // It may be gone.
        let _ = match &mut self.0 {
            Side::Client(StreamOwned { conn, sock }) => {
                conn.send_close_notify();
                conn.write_tls(sock)
            }
            Side::Server(StreamOwned { conn, sock }) => {
                conn.send_close_notify();
                conn.write_tls(sock)
            }
        };
    }
}

fn provider() -> Result<Arc<CryptoProvider>> {
    match super::missing() {
        Some(problem) => Err(Error::unsupported("NBD", problem)),
        None => Ok(Arc::new(rustls_graviola::default_provider())),
    }
}

fn roots_of_system() -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    match added {
        0 => Err(Error::unsupported("NBD", "TLS: the system has no root certificates")),
        _ => Ok(roots),
    }
}

/// The certificates in a file, as authorities.
fn authorities(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(unusable).map_err(|e| e.in_file(path))?;
    }
    Ok(roots)
}

/// The certificate in one file and its key in another one.
fn identity(
    directory: &Path,
    [certificate, key]: [&str; 2],
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = certificates(&directory.join(certificate))?;
    let path = directory.join(key);
    let key = PrivateKeyDer::from_pem_file(&path).map_err(unreadable).map_err(|e| e.in_file(&path))?;
    Ok((chain, key))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match all.map_err(unreadable) {
        Ok(all) if all.is_empty() => Err(Error::Usage("there is no certificate in this file".into()).in_file(path)),
        result => result.map_err(|e| e.in_file(path)),
    }
}

fn unreadable(error: pem::Error) -> Error {
    match error {
        pem::Error::Io(cause) => Error::io("reading a certificate", None)(cause),
        other => Error::Usage(format!("this is no certificate or key in PEM: {other}")),
    }
}

fn unusable(error: impl fmt::Display) -> Error {
    Error::Usage(format!("TLS: {error}"))
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Server")
    }
}

impl<S: Read + Write> fmt::Debug for Secured<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secured")
    }
}
