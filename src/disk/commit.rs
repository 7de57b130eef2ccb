//! Writing the data of an overlay into its backing file.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use super::write::pieces;
use super::{Disk, Use};
use crate::driver::{ExtentKind, FileId};
use crate::error::{Error, ErrorKind, Result};
use crate::image::OpenOptions;
use crate::io::FileStatus;

/// Most guest bytes that are copied at a time.
const CHUNK: u64 = 2 << 20;

/// A function that is called with the number of guest bytes done and their total.
type OnProgress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// Writes the data of an overlay into its backing file, or into one further down.
///
/// The backing file grows if the overlay is larger. Images between the two are not changed, and are no longer valid if data was committed past
/// them. An interrupted commit can be run again.
///
/// ```no_run
/// use diskimage::{Commit, OpenOptions, ReferencePolicy};
///
/// let options = OpenOptions::new().reference_policy(ReferencePolicy::Beside);
/// Commit::new(options).run("overlay.qcow2")?;
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone)]
pub struct Commit {
    options: OpenOptions,
    base: Option<PathBuf>,
    keep: bool,
    progress: Option<OnProgress>,
}

impl Commit {
    /// A commit of an overlay that is opened with these options into its backing file.
    pub fn new(options: OpenOptions) -> Self {
        Commit { options, base: None, keep: false, progress: None }
    }

    /// Sets the image of the backing chain that is written to.
    #[must_use]
    pub fn base(mut self, base: impl Into<PathBuf>) -> Self {
        self.base = Some(base.into());
        self
    }

    /// Whether the overlay keeps its data. By default it is empty afterwards, where its format allows that.
    #[must_use]
    pub fn keep(mut self, keep: bool) -> Self {
        self.keep = keep;
        self
    }

    /// Calls `progress` with the number of guest bytes done and their total.
    #[must_use]
    pub fn progress(mut self, progress: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(progress));
        self
    }

    /// Commits the overlay at `path`.
    ///
    /// # Errors
    /// [`Error::Usage`] if the image has no backing file, or not this one; and as [`OpenOptions::open_disk`] for the overlay and the backing
    /// file.
    pub fn run(&self, path: impl AsRef<Path>) -> Result<()> {
        let top = self.options.open_disk_of_chain(path.as_ref())?;
        let (layer, base, format) = {
            let image = top.image();
            let layer = self.find_base(&top).map_err(|e| e.in_file(path.as_ref()))?;
            let base = image.file_path(layer, FileId::default()).map(Path::to_owned);
            (layer, base, image.format_of(layer))
        };
        let (Some(base), Some(format)) = (base, format) else {
            return Err(Error::Usage("the backing file is not a file".into()));
        };
        // The tables and the length that the reader of the chain knows of the base are out of date with the first write to it.
        top.image.write().unwrap_or_else(PoisonError::into_inner).truncate_layers(layer);
        let base = self.options.clone().for_backing(format).open_disk(base)?;
        self.copy(&top, &base)?;
        // The overlay is emptied when its data is durable elsewhere.
        base.close()?;
        if !self.keep {
            match top.empty() {
                Err(error) if error.kind() == ErrorKind::Unsupported => {}
                emptied => emptied?,
            }
        }
        top.close()
    }

    /// The index of the layer that is written to.
    fn find_base(&self, top: &Disk) -> Result<usize> {
        let image = top.image();
        if image.layer_count() < 2 {
            return Err(Error::Usage("the image has no backing file".into()));
        }
        let Some(base) = &self.base else { return Ok(1) };
        let identity = |path: &Path| FileStatus::from_path(path).ok().flatten().map(|status| status.identity);
        let wanted = identity(base);
        let is_base = |layer: &usize| {
            image.file_path(*layer, FileId::default()).is_some_and(|path| wanted.is_some() && identity(path) == wanted)
        };
        let missing = || Error::Usage(format!("{}: not in the backing chain", base.display()));
        (1..image.layer_count()).find(is_base).ok_or_else(missing)
    }

    /// Writes what `top` and the layers between have to `base`, which is not one of the layers of `top` any more.
    fn copy(&self, top: &Disk, base: &Disk) -> Result<()> {
        let image = top.image();
        let size = image.virtual_size();
        if base.size() < size {
            base.resize(size)?;
        }
        // A layer that is shorter than its overlay hides those below with zeros.
        let hidden_from = image.layers().map(|layer| layer.virtual_size).min().unwrap_or(size);
        let mut buf = Vec::new();
        for span in image.spans(0..size).without_holes() {
            let span = span?;
            self.report(span.offset, size);
            if span.is_zero() {
                let is_hole = span.kind == ExtentKind::Hole;
                let start = if is_hole { span.offset.max(hidden_from).min(span.end()) } else { span.offset };
                base.write_zeros(start..span.end())?;
                continue;
            }
            for chunk in pieces(span.offset..span.end(), CHUNK) {
                buf.resize((chunk.end - chunk.start) as usize, 0);
                image.read_exact_at(&mut buf, chunk.start)?;
                base.write_all_at(&buf, chunk.start)?;
                self.report(chunk.end, size);
            }
        }
        self.report(size, size);
        Ok(())
    }

    fn report(&self, done: u64, total: u64) {
        if let Some(progress) = &self.progress {
            progress(done, total);
        }
    }
}

impl Disk {
    /// Removes all data of the top image, so that its backing file shows through.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the format does not allow it; errors of the storage.
    pub fn empty(&self) -> Result<()> {
        let _alone = self.hold(&(0..u64::MAX), Use::Change);
        self.driver().empty().map_err(|e| self.locate(e))
    }
}
