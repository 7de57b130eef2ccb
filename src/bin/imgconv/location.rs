//! Where an image is: in a file, or behind an NBD server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use diskimage::nbd::{self, Client};
use diskimage::{CheckReport, Image, Inspection, OpenOptions, Package, Result};

/// A file, or an export of an NBD server with an open connection: some servers end with the first one.
pub enum Location {
    File(PathBuf),
    Nbd(Arc<Client>),
}

impl Location {
    /// The place that an argument of the command line names. Connects to the server of an NBD URI; every other name is that of a file.
    pub fn find(name: impl Into<PathBuf>) -> Result<Location> {
        let name = name.into();
        match name.to_str().filter(|_| nbd::is_uri(&name)) {
            Some(uri) => Ok(Location::Nbd(Arc::new(nbd::connect(uri)?))),
            None => Ok(Location::File(name)),
        }
    }

    /// As [`OpenOptions::open`].
    pub fn open(&self, options: &OpenOptions) -> Result<Image> {
        match self {
            Location::File(path) => options.open(path),
            Location::Nbd(client) => options.open_source(client.clone()),
        }
    }

    /// As [`OpenOptions::inspect`].
    pub fn inspect(&self, options: &OpenOptions) -> Result<Inspection> {
        match self {
            Location::File(path) => options.inspect(path),
            Location::Nbd(client) => options.inspect_source(client.clone()),
        }
    }

    /// As [`OpenOptions::inspect_chain`].
    pub fn inspect_chain(&self, options: &OpenOptions) -> Result<Vec<Inspection>> {
        match self {
            Location::File(path) => options.inspect_chain(path),
            Location::Nbd(client) => options.inspect_chain_source(client.clone()),
        }
    }

    /// As [`OpenOptions::check`].
    pub fn check(&self, options: &OpenOptions) -> Result<CheckReport> {
        match self {
            Location::File(path) => options.check(path),
            Location::Nbd(client) => options.check_source(client.clone()),
        }
    }

    /// As [`OpenOptions::package`].
    pub fn package(&self, options: &OpenOptions) -> Result<Option<Package>> {
        match self {
            Location::File(path) => options.package(path),
            Location::Nbd(client) => options.package_source(client.clone()),
        }
    }
}

/// Whether an argument names a file, and not an export of a server.
pub fn is_file(name: &Path) -> bool {
    !nbd::is_uri(name)
}
