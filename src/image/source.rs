//! The files that hold the guest data of an image.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::detect::Ends;
use crate::driver::SparseRead;
use crate::error::{Error, Result};
use crate::format::shared::data_runs::DataRuns;
use crate::format::shared::table;
use crate::io::{FileIdentity, ReadAt};

/// A file whose length, identity and ends are queried once: each query of an object store is a request, and a long chain compares
/// each file with all others.
pub(crate) struct SizedFile {
    file: Arc<dyn ReadAt>,
    len: u64,
    identity: Option<FileIdentity>,
    ends: OnceLock<Ends>,
}

impl SizedFile {
    pub fn new(file: Arc<dyn ReadAt>) -> Result<SizedFile> {
        let len = table::length(&*file)?;
        let identity = file.identity().map_err(Error::io("reading the file identity", None))?;
        Ok(SizedFile { file, len, identity, ends: OnceLock::new() })
    }

    /// The first and last bytes, from which its compression, a package and its format are detected.
    pub fn ends(&self) -> Result<&Ends> {
        match self.ends.get() {
            Some(ends) => Ok(ends),
            None => Ends::read(self).map(|ends| self.ends.get_or_init(|| ends)),
        }
    }
}

impl ReadAt for SizedFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let data = self.file.next_data(offset)?;
        // An empty run does not say that a hole follows: the caller decides.
        Ok(data.filter(|data| data.start < self.len).map(|data| data.start..data.end.min(self.len)))
    }

    fn identity(&self) -> io::Result<Option<FileIdentity>> {
        Ok(self.identity)
    }

    fn allocated(&self) -> io::Result<Option<u64>> {
        self.file.allocated()
    }

    fn verify(&self) -> io::Result<()> {
        self.file.verify()
    }

    fn name(&self) -> Option<&Path> {
        self.file.name()
    }

    fn bypasses_cache(&self) -> bool {
        self.file.bypasses_cache()
    }

    fn as_file(&self) -> Option<&File> {
        self.file.as_file()
    }
}

/// A file that holds guest data.
pub(crate) struct SourceFile {
    /// The file with pending log entries applied.
    pub source: Arc<dyn ReadAt>,
    /// The path with which it was opened, or else the name of the storage.
    pub path: Option<PathBuf>,
    /// Length of `source` in bytes.
    pub len: u64,
    /// Data and holes of `source`.
    pub data_runs: DataRuns,
    /// The file as stored, with its length when it was opened.
    stored: Arc<SizedFile>,
}

impl SourceFile {
    /// Wraps a file whose length is not known yet.
    pub fn from_file(file: Arc<dyn ReadAt>, path: Option<PathBuf>) -> Result<SourceFile> {
        Ok(SourceFile::new(Arc::new(SizedFile::new(file)?), path))
    }

    pub fn new(file: Arc<SizedFile>, path: Option<PathBuf>) -> SourceFile {
        let data_runs = DataRuns::new(file.clone(), file.len);
        let path = path.or_else(|| file.name().map(Path::to_owned));
        SourceFile { source: file.clone(), path, len: file.len, data_runs, stored: file }
    }

    pub fn identity(&self) -> Option<FileIdentity> {
        self.stored.identity
    }

    /// The file as the driver sees it: decrypted, or with the pending log entries applied.
    pub fn seen_by(self, reader: &dyn SparseRead) -> Result<SourceFile> {
        match reader.image_file() {
            Some(source) => {
                let len = table::length(&*source)?;
                Ok(SourceFile { len, data_runs: DataRuns::new(source.clone(), len), source, ..self })
            }
            None => Ok(self),
        }
    }

    /// Whether both are the same file: by the system's identity, or for other storage, the same object.
    pub fn is_same(&self, other: &SizedFile) -> bool {
        match (self.stored.identity, other.identity) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => Arc::ptr_eq(&self.stored.file, &other.file),
        }
    }

    /// Checks that the file has neither grown nor shrunk since it was opened, and what it can verify at the end only.
    pub fn check_unchanged(&self) -> Result<()> {
        self.verify()?;
        let before = self.stored.len;
        let after = table::length(&*self.stored.file)?;
        if after == before {
            return Ok(());
        }
        Err(Error::Changed { before, after }.in_file_at(self.path.as_deref()))
    }

    /// Checks what can be verified at the end only.
    pub fn verify(&self) -> Result<()> {
        self.stored.verify().map_err(Error::io("reading", None)).map_err(|e| e.in_file_at(self.path.as_deref()))
    }

    /// Whether it is stored in a file of the operating system.
    pub fn is_local(&self) -> bool {
        self.stored.as_file().is_some()
    }

    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}
