//! Files on http and https servers, read in place by range requests.
//!
//! A server that answers ranges gives a [`ReadAt`] whose reads fetch and keep blocks; reads of several threads are answered by several
//! connections, and the thread that has to wait for a block fetches what comes after it. Another server gives a stream.
//!
//! Each answer must be of the file that was opened: its length and validators (ETag, Last-Modified) are compared, and changes are errors.
//! A connection that is cut is tried again from where it ended.

#[cfg(not(target_family = "wasm"))]
mod client;
#[cfg(not(target_family = "wasm"))]
mod file;
#[cfg(not(target_family = "wasm"))]
mod tls;
mod url;

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

#[cfg(target_family = "wasm")]
use crate::error::Error;
use crate::error::Result;
use crate::io::ReadAt;
pub use url::{is_url, shown};

/// A file on a server.
#[non_exhaustive]
pub enum Remote {
    /// The server answers requests for ranges.
    File(Arc<dyn ReadAt>),
    /// It does not: the file is read once, from its beginning to its end. An end before the length that the server stated is an error.
    Stream(Box<dyn Read + Send>),
}

/// Opens the file at an http or https URL. User name and password are those of the URL, if it has them. The environment sets a proxy
/// (`HTTPS_PROXY`, `NO_PROXY` and so on). Requests, and the pauses before they are repeated, end soon after `cancel` becomes true.
///
/// [`OpenOptions::open_url`](crate::OpenOptions::open_url) opens the image in it.
///
/// # Errors
/// [`Error::Usage`](crate::Error::Usage) for another URL; [`Error::Unsupported`](crate::Error::Unsupported) for https on a processor without TLS;
/// errors of the connection and of the server.
///
/// ```no_run
/// use diskimage::OpenOptions;
/// use diskimage::remote::{self, Remote};
///
/// # fn main() -> diskimage::Result<()> {
/// let image = match remote::open("https://cloud.example.com/disk.qcow2", None)? {
///     Remote::File(file) => OpenOptions::new().open_source(file)?,
///     Remote::Stream(stream) => OpenOptions::new().open_stream(stream)?,
///     _ => unreachable!(),
/// };
/// println!("{} bytes", image.virtual_size());
/// # Ok(())
/// # }
/// ```
pub fn open(url: &str, cancel: Option<Arc<AtomicBool>>) -> Result<Remote> {
    #[cfg(not(target_family = "wasm"))]
    return file::open(client::Client::new(url::Url::parse(url)?, cancel)?);
    #[cfg(target_family = "wasm")]
    {
        let _ = (cancel, url::Url::parse(url)?);
        Err(Error::unsupported("http", "this target has no sockets"))
    }
}
