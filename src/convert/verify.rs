//! Reading without writing: of a new image, before it gets its name, and for digests alone.
//!
//! The image is converted to nothing, so that all threads read it. A new image is compared by the digest of its contents: the source is not
//! needed for it, and may be a pipe, or damaged.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::measure::Length;
use super::output::Output;
use super::pipeline::{self, Sums};
use super::{Converter, Job, Report};
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

    /// Fails if the new image, which has no path, would have to be read back.
    pub(super) fn check_has_path(&self) -> Result<()> {
        match self.verify {
            true => Err(Error::Usage("only a new image at a path can be verified".into())),
            false => Ok(()),
        }
    }

    /// Reads `virtual_size` bytes of the complete image in `output`, whose contents must have the digest `content`.
    pub(super) fn verify_output(&self, output: &Output, target: &Path, virtual_size: u64, content: u128) -> Result<()> {
        let read_back = || {
            let image = self.reopen(output)?;
            let silent = Converter { progress: None, ..self.clone() };
            let is_same = image.virtual_size() >= virtual_size
                && silent.read_all(&image, virtual_size, true)?.0.content == content;
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

    /// Reads the first `size` bytes of `image`, of which nothing is kept but the digests: that of the contents, or those of
    /// [`hash`](Self::hash).
    pub(super) fn read_all(&self, image: &Image, size: u64, verifies: bool) -> Result<(Sums, Report)> {
        let mut nothing = Nothing { spec: WriteSpec::new(size, 4096), out: Arc::new(Length::default()) };
        let job = Job {
            source: image,
            base: None,
            complete: false,
            spec: nothing.spec.clone(),
            sparse: 4096,
            starts_zeroed: true,
            digests: false,
            verifies,
            #[cfg(feature = "hash")]
            hashes: if verifies { &[] } else { &self.hashes },
            salvage: None,
            reflinks: None,
            target: None,
        };
        let mut report = Report::new(Some(image.format()), self.format, size, 0);
        let out = nothing.out.clone();
        let sums = pipeline::run(&job, self, &*out, &mut nothing, &mut report)?;
        Ok((sums, report))
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
