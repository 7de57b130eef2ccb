//! Images at http and https URLs, in place of names of files.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use diskimage::{CheckReport, Image, Inspection, OpenOptions, Package, Result, remote};

/// The URL, if the name is one. A file with such a name is `./http://name`.
pub fn url(name: &Path) -> Option<&str> {
    name.to_str().filter(|text| remote::is_url(text))
}

/// The name for messages and results: a URL without secrets.
pub fn shown(name: &Path) -> Cow<'_, Path> {
    url(name).map_or(Cow::Borrowed(name), |url| PathBuf::from(remote::shown(url)).into())
}

pub fn open(options: &OpenOptions, name: &Path) -> Result<Image> {
    url(name).map_or_else(|| options.open(name), |url| options.open_url(url))
}

pub fn inspect(options: &OpenOptions, name: &Path) -> Result<Inspection> {
    url(name).map_or_else(|| options.inspect(name), |url| options.inspect_url(url))
}

pub fn package(options: &OpenOptions, name: &Path) -> Result<Option<Package>> {
    let Some(url) = url(name) else { return options.package(name) };
    options.package_source(options.url_source(url)?).map_err(|e| e.in_file(&shown(name)))
}

pub fn check(options: &OpenOptions, name: &Path) -> Result<CheckReport> {
    let Some(url) = url(name) else { return options.check(name) };
    options.check_source(options.url_source(url)?).map_err(|e| e.in_file(&shown(name)))
}
