//! Headers in a file of their own.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::open::cannot_open;
use super::{OpenOptions, SizedFile, SourceFile};
use crate::driver::DetachedHeader;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::io::ReadAt;

/// Where the caller has the header.
#[derive(Clone)]
pub(super) enum HeaderLocation {
    Path(PathBuf),
    Source(Arc<dyn ReadAt>),
}

/// The file of a header.
pub(crate) struct HeaderFile {
    source: Arc<SizedFile>,
    path: Option<PathBuf>,
}

impl OpenOptions {
    /// States the file with the header of the image, whose own file has the guest data only: a detached header of LUKS
    /// (`cryptsetup --header`). Unless the format is stated, it is detected by the header.
    ///
    /// It applies to the opened image, not to its backing files. An image of a format without such headers is refused.
    ///
    /// ```no_run
    /// use diskimage::{OpenOptions, Secret};
    ///
    /// let passphrase = Secret::new(std::fs::read("passphrase")?);
    /// let disk = OpenOptions::new().detached_header("header.luks").secret(passphrase).open("payload.img")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn detached_header(mut self, path: impl Into<PathBuf>) -> Self {
        self.detached_header = Some(HeaderLocation::Path(path.into()));
        self
    }

    /// States the header of the image as [`detached_header`](Self::detached_header) does, in storage other than the file system.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::OpenOptions;
    /// use diskimage::io::MemFile;
    ///
    /// let (header, payload) = (Arc::new(MemFile::from(b"LUKS".to_vec())), Arc::new(MemFile::new()));
    /// assert!(OpenOptions::new().detached_header_source(header).open_source(payload).is_err());
    /// ```
    #[must_use]
    pub fn detached_header_source(mut self, source: Arc<dyn ReadAt>) -> Self {
        self.detached_header = Some(HeaderLocation::Source(source));
        self
    }

    /// Opens the detached header, if there is one.
    pub(super) fn open_header(&self) -> Result<Option<HeaderFile>> {
        let (source, path): (Arc<dyn ReadAt>, _) = match &self.detached_header {
            None => return Ok(None),
            Some(HeaderLocation::Source(source)) => (source.clone(), None),
            Some(HeaderLocation::Path(path)) => {
                let opened = self.open_locked(path);
                let file = opened.map_err(cannot_open("opening the header")).map_err(|e| e.in_file(path))?;
                (Arc::new(file), Some(path.clone()))
            }
        };
        let source = SizedFile::new(source).map_err(|e| e.in_file_at(path.as_deref()))?;
        Ok(Some(HeaderFile { source: Arc::new(source), path }))
    }

    /// Refuses a detached header of a format that has none.
    pub(super) fn check_has_headers(&self, format: Format) -> Result<()> {
        match self.detached_header.is_some() && !format.has_detached_headers() {
            true => Err(Error::unsupported(format.name(), "detached headers")),
            false => Ok(()),
        }
    }

    /// The format of which the header is. `file` has the guest data, and must not be an image of another format.
    pub(super) fn detect_by_header(&self, header: &HeaderFile, file: &SizedFile) -> Result<Format> {
        let detected = self.detect(&header.source, header.path());
        let checked = detected.and_then(|format| self.check_has_headers(format).map(|()| format));
        let format = checked.map_err(|e| e.in_file_at(header.path()))?;
        match self.formats.probe(&file.ends()?.probe()) {
            Ok(own) if own != Format::RAW && own != format => {
                let problem =
                    format!("the header is that of a {format} volume, but the file is a {own} image of its own");
                Err(Error::Usage(problem))
            }
            _ => Ok(format),
        }
    }
}

impl HeaderFile {
    fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// For the driver.
    pub fn for_driver(&self) -> DetachedHeader<'_> {
        DetachedHeader::new(&*self.source, self.path())
    }

    /// The file as one of those that the image consists of, none of which may be replaced while it is read.
    pub fn as_source_file(&self) -> SourceFile {
        SourceFile::new(self.source.clone(), self.path.clone())
    }
}

impl fmt::Debug for HeaderLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeaderLocation::Path(path) => path.fmt(f),
            HeaderLocation::Source(_) => f.write_str("source"),
        }
    }
}
