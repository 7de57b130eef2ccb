//! Detection of the format of a file, and of a backing file.

use std::path::Path;

use super::open::Opened;
use super::references::refusal;
use super::{OpenOptions, SizedFile};
use crate::driver::Probe;
use crate::error::{Error, ReferenceProblem, Result};
use crate::format::Format;
use crate::format::shared::signature::{self, Signature};
use crate::format::shared::table;
use crate::info::FileReference;
use crate::io::ReadAt;
use crate::name::Name;

/// The protocols of qemu whose name stands for the format in some backing files. A protocol without a format is raw.
const PROTOCOLS: [&[u8]; 3] = [b"file", b"host_device", b"host_cdrom"];

/// Whether it is the name of a protocol of qemu that opens a local file.
pub(super) fn is_local_protocol(name: &[u8]) -> bool {
    PROTOCOLS.contains(&name)
}

impl OpenOptions {
    /// Detects the format by the content. A file without a signature is raw, unless its extension is that of another format: it is
    /// then the page of an error, an unfinished download, or the rest of an interrupted conversion, which writes the header last.
    pub(super) fn detect(&self, source: &SizedFile, path: Option<&Path>) -> Result<Format> {
        self.detect_in(&source.ends()?.probe(), path)
    }

    pub(super) fn detect_in(&self, probe: &Probe<'_>, path: Option<&Path>) -> Result<Format> {
        let format = match self.formats.probe(probe) {
            Err(Error::Unreadable { .. }) if self.detect_as_qemu => return Ok(Format::RAW),
            format => format?,
        };
        if self.detect_as_qemu {
            return Ok(format);
        }
        match self.format_of_extension(path).filter(|_| format == Format::RAW) {
            Some(expected) => Err(Error::Extension { format: expected, content: signature::describe(probe) }),
            None => Ok(format),
        }
    }

    /// The format of a backing file.
    pub(super) fn detect_backing(
        &self,
        image: &Opened,
        reference: &FileReference,
        source: &SizedFile,
        path: &Path,
    ) -> Result<Format> {
        match (&reference.format, self.backing_format) {
            (Some(stated), None) => self.stated_format(stated),
            (Some(stated), Some(assumed)) => match self.stated_format(stated) {
                Ok(_) if is_local_protocol(stated.as_bytes()) => Ok(assumed),
                Ok(format) if format == Format::RAW || format.matches(&source.ends()?.probe()) => Ok(format),
                _ => Ok(assumed),
            },
            (None, Some(assumed)) => Ok(assumed),
            (None, None) if self.detect_as_qemu => self.detect(source, Some(path)),
            // A file without a signature can only be raw; one with a signature may be a raw disk whose guest wrote it.
            (None, None) => match self.detect(source, Some(path)) {
                Ok(format) if format == Format::RAW => Ok(format),
                Ok(format) => Err(format.name()),
                Err(Error::Unreadable { format, .. } | Error::Extension { format, .. }) => Err(format),
                Err(error) => return Err(error),
            }
            .map_err(|format| refusal(image.format, reference, ReferenceProblem::FormatNotStated(format))),
        }
    }

    fn stated_format(&self, stated: &Name) -> Result<Format> {
        if is_local_protocol(stated.as_bytes()) { Ok(Format::RAW) } else { self.formats.by_name(&stated.to_text()) }
    }

    /// The image format, other than raw, or the container, for which the extension is typical.
    pub(super) fn format_of_extension(&self, path: Option<&Path>) -> Option<&'static str> {
        let extension = path?.extension()?.to_str()?.to_ascii_lowercase();
        match self.formats.by_extension(&extension).or_else(|| Format::by_extension(&extension)) {
            Some(format) => Some(format.name()).filter(|_| format != Format::RAW),
            None => {
                let image = Signature::of_image(&extension).map(|signature| signature.name);
                image.or_else(|| Signature::of_container(&extension))
            }
        }
    }
}

/// The first and last bytes of a file.
pub(crate) struct Ends {
    head: Vec<u8>,
    tail: Vec<u8>,
    len: u64,
}

impl Ends {
    pub fn read(source: &dyn ReadAt) -> Result<Ends> {
        let len = table::length(source)?;
        let read = |offset: u64, most: usize| {
            let mut bytes = vec![0; (len - offset).min(most as u64) as usize];
            table::read(source, &mut bytes, offset).map(|()| bytes)
        };
        Ok(Ends { head: read(0, Probe::HEAD)?, tail: read(len.saturating_sub(Probe::TAIL as u64), Probe::TAIL)?, len })
    }

    pub fn probe(&self) -> Probe<'_> {
        Probe::new(&self.head, &self.tail, self.len)
    }
}
