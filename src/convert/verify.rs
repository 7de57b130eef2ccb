//! Reading a new image back, before it gets its name.
//!
//! It is converted to nothing, so that all threads read it, and the digests of the contents are compared. The source is not needed for it: it
//! may be a pipe, or damaged.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::measure::Length;
use super::output::Output;
use super::{Converter, Job, Report, pipeline};
use crate::driver::{Placement, SparseWrite, WriteSpec};
use crate::error::{Error, Result};
use crate::identifiers::ImageIdentifiers;
use crate::image::{Image, OpenOptions, ReferencePolicy};
use crate::io::{FileSource, ReadAt, WriteAt};

impl Converter {
    /// Fails for what cannot be read back as an image.
    pub(super) fn check_verifiable(&self) -> Result<()> {
        #[cfg(feature = "packages")]
        let is_compressed = self.google_image || self.compress_output.is_some();
        #[cfg(not(feature = "packages"))]
        let is_compressed = self.compress_output.is_some();
        match is_compressed {
            true => Err(Error::Usage("a file that is compressed as a whole cannot be verified".into())),
            false => Ok(()),
        }
    }

    /// Reads `virtual_size` bytes of the complete image in `output`, whose contents must have the digest `content`.
    pub(super) fn verify_output(&self, output: &Output, target: &Path, virtual_size: u64, content: u128) -> Result<()> {
        let read_back = || {
            let image = self.reopen(output)?;
            let is_same = image.virtual_size() >= virtual_size && self.content_of(&image, virtual_size)? == content;
            let cause = || io::Error::new(io::ErrorKind::InvalidData, "other data than was written");
            if is_same { Ok(()) } else { Err(Error::io("reading the new image back", None)(cause())) }
        };
        read_back().map_err(|error| error.in_file(target))
    }

    /// Opens the new image, whose files may still have temporary names.
    fn reopen(&self, output: &Output) -> Result<Image> {
        let names = output.current_names();
        let open = move |path: &Path| {
            let current = names.iter().find(|(name, _)| name == path).map_or(path, |(_, current)| current);
            FileSource::open(current)
        };
        let image = open(output.path()).map_err(Error::io("opening the new image", None))?;
        let directory = output.path().with_file_name("");
        let mut options = OpenOptions::new()
            .format(self.format)
            .reference_policy(ReferencePolicy::Any)
            .resolver(move |request| open(&directory.join(request.path)).map(|file| Arc::new(file) as Arc<dyn ReadAt>));
        if let Some(secret) = &self.secret {
            options = options.secret(secret.clone());
        }
        if let Some(cancel) = &self.cancel {
            options = options.cancel(cancel.clone());
        }
        options.open_source(Arc::new(image))
    }

    /// The digest of the first `virtual_size` bytes of `image`.
    fn content_of(&self, image: &Image, virtual_size: u64) -> Result<u128> {
        let mut nothing = Nothing { spec: WriteSpec::new(virtual_size, 4096), out: Arc::new(Length::default()) };
        let job = Job {
            source: image,
            base: None,
            spec: nothing.spec.clone(),
            sparse: 4096,
            starts_zeroed: true,
            digests: false,
            verifies: true,
            #[cfg(feature = "hash")]
            hashes: &[],
            salvage: None,
            target: None,
        };
        let settings = Converter { progress: None, ..self.clone() };
        let mut report = Report::new(None, self.format, virtual_size, 0);
        let out = nothing.out.clone();
        Ok(pipeline::run(&job, &settings, &*out, &mut nothing, &mut report)?.content)
    }
}

/// An image of which nothing is kept.
struct Nothing {
    spec: WriteSpec,
    out: Arc<dyn WriteAt>,
}

impl SparseWrite for Nothing {
    fn spec(&self) -> &WriteSpec {
        &self.spec
    }

    fn place(&mut self, guest: Range<u64>) -> Result<Placement> {
        Ok(Placement::new(self.out.clone(), guest.start, guest.end - guest.start))
    }

    fn place_compressed(&mut self, guest: Range<u64>, _stored_len: u32) -> Result<Placement> {
        self.place(guest)
    }

    fn zero(&mut self, _guest: Range<u64>) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self, _identifiers: &ImageIdentifiers) -> Result<()> {
        Ok(())
    }
}
