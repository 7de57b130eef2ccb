//! The location of an image: a file, an NBD export, or a URL on an http server.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use diskimage::nbd::{self, Client, Connector};
use diskimage::{CheckReport, Image, Inspection, OpenOptions, Package, Result, remote};

use crate::signals;

/// Connects to a server. A signal that ends the program also ends waiting for the server.
pub fn connect(uri: &str) -> Result<Arc<Client>> {
    Connector::new().cancel(signals::cancelled()).connect(uri).map(Arc::new)
}

/// As [`connect`], for the states in a metadata context instead of the data.
pub fn connect_for(uri: &str, context: &str) -> Result<Client> {
    Connector::new().cancel(signals::cancelled()).context(context).connect(uri)
}

/// The place of an image.
pub enum Location {
    File(PathBuf),
    /// An export, with an open connection: some servers end with the first one.
    Nbd(Arc<Client>),
    Url(String),
}

impl Location {
    /// The place that an argument of the command line names. Connects to the server of an NBD URI; a name that is neither that nor a
    /// URL is that of a file, as in `./http://name`.
    pub fn find(name: impl Into<PathBuf>) -> Result<Location> {
        let name = name.into();
        match name.to_str() {
            Some(uri) if nbd::is_uri(uri) => Ok(Location::Nbd(connect(uri)?)),
            Some(url) if remote::is_url(url) => Ok(Location::Url(url.to_owned())),
            _ => Ok(Location::File(name)),
        }
    }

    /// As [`OpenOptions::open`].
    pub fn open(&self, options: &OpenOptions) -> Result<Image> {
        match self {
            Location::File(path) => options.open(path),
            Location::Nbd(client) => options.open_source(client.clone()),
            Location::Url(url) => options.open_url(url),
        }
    }

    /// As [`OpenOptions::inspect`].
    pub fn inspect(&self, options: &OpenOptions) -> Result<Inspection> {
        match self {
            Location::File(path) => options.inspect(path),
            Location::Nbd(client) => options.inspect_source(client.clone()),
            Location::Url(url) => options.inspect_url(url),
        }
    }

    /// As [`OpenOptions::inspect_chain`].
    pub fn inspect_chain(&self, options: &OpenOptions) -> Result<Vec<Inspection>> {
        match self {
            Location::File(path) => options.inspect_chain(path),
            Location::Nbd(client) => options.inspect_chain_source(client.clone()),
            // No file is beside it.
            Location::Url(_) => Ok(vec![self.inspect(options)?]),
        }
    }

    /// As [`OpenOptions::check`].
    pub fn check(&self, options: &OpenOptions) -> Result<CheckReport> {
        match self {
            Location::File(path) => options.check(path),
            Location::Nbd(client) => options.check_source(client.clone()),
            Location::Url(url) => {
                options.check_source(options.url_source(url)?).map_err(|e| e.in_file(remote::shown(url).as_ref()))
            }
        }
    }

    /// As [`OpenOptions::package`].
    pub fn package(&self, options: &OpenOptions) -> Result<Option<Package>> {
        match self {
            Location::File(path) => options.package(path),
            Location::Nbd(client) => options.package_source(client.clone()),
            Location::Url(url) => {
                options.package_source(options.url_source(url)?).map_err(|e| e.in_file(remote::shown(url).as_ref()))
            }
        }
    }
}

/// Whether an argument names a file, and not an export or a URL.
pub fn is_file(name: &Path) -> bool {
    !nbd::is_uri(name) && !name.to_str().is_some_and(remote::is_url)
}

/// The name for messages and results: a URL without secrets.
pub fn shown(name: &Path) -> Cow<'_, Path> {
    match name.to_str().filter(|text| remote::is_url(text)) {
        Some(url) => PathBuf::from(remote::shown(url)).into(),
        None => name.into(),
    }
}
