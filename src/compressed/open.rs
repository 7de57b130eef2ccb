//! A compressed file as a file that is read at offsets.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use super::{Compression, decoder};
use crate::error::Result;
use crate::io::ReadAt;
use crate::limits::Limits;
use crate::spool::spool;

/// Opens a compressed file for reads at any offset: the decoded file, with its length.
///
/// It is decoded to a sparse file without a name in `directory`.
///
/// # Errors
/// Those of [`decoder`], and errors of the temporary file.
pub(crate) fn open(
    file: Arc<dyn ReadAt>,
    compression: Compression,
    directory: &Path,
    limits: &Limits,
) -> Result<Arc<dyn ReadAt>> {
    let stream = Box::new(Sequential { file, at: 0 });
    let decoded = decoder(compression, stream, limits);
    Ok(Arc::new(spool(decoded, directory, compression.name(), limits.decompressed)?))
}

/// A file from its beginning to its end.
pub(crate) struct Sequential {
    file: Arc<dyn ReadAt>,
    at: u64,
}

impl Sequential {
    pub fn new(file: Arc<dyn ReadAt>) -> Sequential {
        Sequential { file, at: 0 }
    }
}

impl Read for Sequential {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buf, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
