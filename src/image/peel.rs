//! Compressed image files: they are decompressed before their format is detected.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[cfg(feature = "compressed")]
use std::sync::atomic::{AtomicBool, Ordering};

use super::{OpenOptions, SizedFile};
#[cfg(feature = "compressed")]
use crate::compressed;
use crate::compressed::Compression;
use crate::driver::Probe;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::format::shared::signature::Signature;
use crate::format::shared::table;
use crate::info::CompressionLayer;
use crate::io::{FileIdentity, ReadAt};
use crate::limits::{LimitName, Limits};

/// A file without its layers of compression.
#[derive(Clone)]
pub(crate) struct Peeled {
    /// The content: an image or a package.
    pub source: Arc<SizedFile>,
    /// The layers, the outermost first.
    pub layers: Vec<CompressionLayer>,
    /// The path of the file.
    pub path: Option<PathBuf>,
    /// The path without the extensions of the layers.
    pub inner_path: Option<PathBuf>,
    /// Length of the file as it is stored.
    pub file_len: u64,
}

/// A decompressed file, in place of the file that it is stored in.
struct Decompressed {
    content: Arc<dyn ReadAt>,
    stored: Arc<SizedFile>,
}

/// The first bytes of a stream, and the whole of it.
pub(super) fn head_of(mut stream: Box<dyn Read + Send>) -> Result<(Vec<u8>, Box<dyn Read + Send>)> {
    let mut head = Vec::new();
    (&mut stream).take(Probe::HEAD as u64).read_to_end(&mut head).map_err(Error::io("reading", 0))?;
    let whole = io::Cursor::new(head.clone()).chain(stream);
    Ok((head, Box::new(whole)))
}

/// A file whose reads fail when the caller cancels.
#[cfg(feature = "compressed")]
struct Cancellable {
    file: Arc<SizedFile>,
    cancel: Arc<AtomicBool>,
}

#[cfg(feature = "compressed")]
impl ReadAt for Cancellable {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled.into());
        }
        self.file.read_at(buf, offset)
    }
}

/// `content` in place of the file that it is stored in.
pub(super) fn decompressed(content: Arc<dyn ReadAt>, stored: Arc<SizedFile>) -> Arc<dyn ReadAt> {
    Arc::new(Decompressed { content, stored })
}

impl ReadAt for Decompressed {
    fn size(&self) -> io::Result<u64> {
        self.content.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.content.read_at(buf, offset)
    }

    fn identity(&self) -> io::Result<Option<FileIdentity>> {
        self.stored.identity()
    }

    fn allocated(&self) -> io::Result<Option<u64>> {
        self.stored.allocated()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.content.next_data(offset)
    }

    fn verify(&self) -> io::Result<()> {
        self.content.verify()?;
        self.stored.verify()
    }
}

impl OpenOptions {
    /// Removes the layers of compression from a stream.
    #[cfg(feature = "compressed")]
    pub(super) fn peel_stream(&self, stream: Box<dyn Read + Send>) -> Result<PeeledStream> {
        let mut stream = stream;
        let mut is_compressed = false;
        let mut layers = 0;
        loop {
            let head;
            (head, stream) = head_of(stream)?;
            let probe = Probe::new(&head, &[], u64::MAX);
            let compression = self.compression_of(&probe);
            let format = self.format.or_else(|| self.formats.probe(&probe).ok());
            let in_order = format.filter(|format| format.streams(&probe));
            match compression {
                Some(compression) => {
                    self.check_nesting(compression.name(), "number of layers of compression", layers)?;
                    layers += 1;
                    stream = compressed::decoder(compression, stream, &self.limits);
                    is_compressed = true;
                }
                None if is_compressed => return Ok(PeeledStream::Decompressed(stream, in_order)),
                None => break,
            }
        }
        Ok(PeeledStream::Plain(stream))
    }

    /// Checks that one more container can be opened after `opened` of them.
    pub(super) fn check_nesting(&self, format: &'static str, field: &'static str, opened: usize) -> Result<()> {
        let (limit, value) = (self.limits.nesting, opened as u64 + 1);
        if value <= limit {
            return Ok(());
        }
        Err(Error::Limit { name: Some(LimitName::Nesting), format, field: field.into(), at: None, value, limit })
    }

    /// Removes the layers of compression from a file, for reads at any offset.
    pub(crate) fn peel(&self, file: Arc<SizedFile>, path: Option<&Path>) -> Result<Peeled> {
        let mut limits = self.limits.clone();
        let mut peeled = Peeled::new(file, path)?;
        while let Some(compression) = self.compression_in(&peeled.source)? {
            self.check_nesting(compression.name(), "number of layers of compression", peeled.layers.len())?;
            let content = self.decompress(peeled.source.clone(), compression, &limits)?;
            peeled.push(compression, content)?;
            // That of all layers together is limited.
            let most = peeled.file_len.saturating_mul(self.limits.decompression_ratio);
            limits.decompression_ratio = most / table::length(&*peeled.source)?.max(1);
        }
        Ok(peeled)
    }

    /// The first bytes of a compressed file without its compression; `None` if it is not compressed.
    #[cfg(all(feature = "compressed", feature = "packages"))]
    pub(super) fn decompressed_head(&self, file: &Arc<SizedFile>) -> Result<Option<Vec<u8>>> {
        if self.compression_in(file)?.is_none() {
            return Ok(None);
        }
        let stream = compressed::Sequential::new(self.cancellable(file.clone()));
        match self.peel_stream(Box::new(stream))? {
            PeeledStream::Decompressed(stream, _) => head_of(stream).map(|(head, _)| Some(head)),
            PeeledStream::Plain(_) => Ok(None),
        }
    }

    /// No build without the feature `compressed` decompresses.
    #[cfg(all(not(feature = "compressed"), feature = "packages"))]
    pub(super) fn decompressed_head(&self, _file: &Arc<SizedFile>) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    /// The compression of a file. Where the format is stated, no more is read than a signature, unless the file has one: more of a damaged
    /// disk may be unreadable.
    pub(crate) fn compression_in(&self, file: &SizedFile) -> Result<Option<Compression>> {
        const SIGNATURE: u64 = 16;
        if self.format == Some(Format::RAW) || self.detect_as_qemu {
            return Ok(None);
        }
        if self.format.is_some() {
            let mut head = vec![0; table::length(file)?.min(SIGNATURE) as usize];
            table::read(file, &mut head, 0)?;
            if Compression::of(&head).is_none() {
                return Ok(None);
            }
        }
        Ok(self.compression_of(&file.ends()?.probe()))
    }

    /// The compression of a file that is not an image itself, unless its bytes are to be taken as they are. The guest data of an image
    /// can start with anything.
    pub(super) fn compression_of(&self, probe: &Probe<'_>) -> Option<Compression> {
        if self.detached_header.is_some() || self.detect_as_qemu {
            // Guest data without a header, which can start with anything too.
            return None;
        }
        let compression = Compression::of(probe.head).filter(|_| cfg!(feature = "compressed"))?;
        let is_compressed = match self.format {
            Some(format) => format != Format::RAW && !format.matches(probe),
            None => {
                matches!(self.formats.probe(probe), Err(Error::Unreadable { format, .. }) if format == compression.name())
            }
        };
        is_compressed.then_some(compression)
    }

    /// The file, whose reads fail when the caller cancels.
    #[cfg(feature = "compressed")]
    fn cancellable(&self, file: Arc<SizedFile>) -> Arc<dyn ReadAt> {
        match &self.cancel {
            Some(cancel) => Arc::new(Cancellable { file, cancel: cancel.clone() }),
            None => file,
        }
    }

    #[cfg(feature = "compressed")]
    fn decompress(&self, source: Arc<SizedFile>, compression: Compression, limits: &Limits) -> Result<Arc<dyn ReadAt>> {
        compressed::open(self.cancellable(source), compression, &self.spool_directory(), limits)
    }

    #[cfg(not(feature = "compressed"))]
    fn decompress(
        &self,
        _source: Arc<SizedFile>,
        compression: Compression,
        _limits: &Limits,
    ) -> Result<Arc<dyn ReadAt>> {
        Err(Error::unsupported(
            compression.name(),
            "this build cannot decompress files; enable the feature `compressed`",
        ))
    }

    /// Opens the raw disk in a file with one layer of compression for one pass, or the stream of an image that can be read in order.
    /// `None` if the file is to be opened for reads at any offset.
    #[cfg(feature = "compressed")]
    pub(super) fn peel_once(&self, source: &Arc<SizedFile>, path: Option<&Path>) -> Result<Option<OnePass>> {
        let Some(compression) = self.compression_in(source)? else { return Ok(None) };
        let Some(stream) = compressed::OneStream::open(self.cancellable(source.clone()), compression, &self.limits)?
        else {
            return Ok(None);
        };
        let inner = inner_path(path);
        // What the end of the file says is looked at when it has been decoded.
        let head = stream.head.get(..stream.head.len().min(Probe::HEAD)).unwrap_or_default().to_vec();
        let probe = Probe::new(&head, &[], u64::MAX);
        let format = match self.format {
            Some(format) => format,
            None => match self.detect_in(&probe, inner.as_deref()) {
                Ok(format) => format,
                // Another layer, or an error that depends on the end.
                Err(_) => return Ok(None),
            },
        };
        if format.streams(&probe) {
            return Ok(Some(OnePass::Stream(format, stream.into_stream())));
        }
        if format != Format::RAW {
            return Ok(None);
        }
        let options = self.clone();
        let check_end = move |end: &[u8]| match options.formats.probe(&Probe::new(&head, end, u64::MAX)) {
            Ok(format) if format == Format::RAW => Ok(()),
            _ => Err(Error::NotOnePass { format: compression.name(), finding: "its end is that of a disk image" }),
        };
        let content = stream.into_file(&self.spool_directory(), &self.limits, Box::new(check_end))?;
        let Some(content) = content else { return Ok(None) };
        let mut peeled = Peeled::new(source.clone(), path)?;
        peeled.push(compression, content)?;
        Ok(Some(OnePass::Disk(peeled)))
    }
}

/// A stream without its layers of compression.
#[cfg(feature = "compressed")]
pub(super) enum PeeledStream {
    /// It was not compressed.
    Plain(Box<dyn Read + Send>),
    /// Its format, if it has one that can be read in order.
    Decompressed(Box<dyn Read + Send>, Option<Format>),
}

/// An image that can be read once, in order.
#[cfg(feature = "compressed")]
pub(super) enum OnePass {
    /// A raw disk.
    Disk(Peeled),
    Stream(Format, Box<dyn Read + Send>),
}

impl Peeled {
    fn new(file: Arc<SizedFile>, path: Option<&Path>) -> Result<Peeled> {
        let (file_len, path) = (table::length(&*file)?, path.map(Path::to_owned));
        Ok(Peeled { source: file, layers: Vec::new(), inner_path: path.clone(), path, file_len })
    }

    /// Replaces the file by its content.
    fn push(&mut self, compression: Compression, content: Arc<dyn ReadAt>) -> Result<()> {
        let decompressed_len = table::length(&*content)?;
        self.layers.push(CompressionLayer { name: compression.name(), decompressed_len });
        self.inner_path = inner_path(self.inner_path.as_deref());
        self.source = Arc::new(SizedFile::new(decompressed(content, self.source.clone()))?);
        Ok(())
    }
}

/// The path without the extension of a compressed file, which need not be that of its compression.
fn inner_path(path: Option<&Path>) -> Option<PathBuf> {
    let path = path?;
    let extension = path.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase);
    let is_outer = extension.is_some_and(|own| Signature::of_container(&own).is_some_and(|name| name != "tar"));
    Some(if is_outer { path.with_extension("") } else { path.to_owned() })
}
