//! Images on http and https servers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::detect::Ends;
use super::{Image, Inspection, OpenOptions};
use crate::error::{Error, Result};
use crate::format::Format;
use crate::format::shared::signature;
use crate::io::ReadAt;
use crate::remote::{self, Remote};

impl OpenOptions {
    /// Opens the image at an http or https URL. Only what is needed of it is fetched.
    ///
    /// A server without range requests is read as a pipe: see [`open_stream`](Self::open_stream). Referenced files are opened as for
    /// [`open_source`](Self::open_source), so not without a resolver. Errors name the URL without user name, password and query.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`remote::open`].
    ///
    /// ```no_run
    /// use diskimage::{Converter, Format, OpenOptions};
    ///
    /// let image = OpenOptions::new().open_url("https://cloud.example.com/disk.qcow2")?;
    /// Converter::new(Format::RAW).convert(&image, "disk.raw")?;
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn open_url(&self, url: &str) -> Result<Image> {
        let path = PathBuf::from(remote::shown(url));
        let open = || match self.remote(url)? {
            Remote::File(file) => {
                let mut image = self.open_source(file.clone())?;
                self.check_extension(&image, &*file, &path)?;
                // For messages: no reference starts from it.
                for file in image.layers.first_mut().into_iter().flat_map(|layer| layer.files.first_mut()) {
                    file.path.get_or_insert_with(|| path.clone());
                }
                Ok(image)
            }
            Remote::Stream(stream) => self.open_stream(stream),
        };
        open().map_err(|e: Error| e.in_file(&path))
    }

    /// The file at a URL, for [`inspect_source`](Self::inspect_source) and other functions that take one.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the server does not answer requests for ranges, and as [`remote::open`].
    ///
    /// ```no_run
    /// use diskimage::OpenOptions;
    ///
    /// let options = OpenOptions::new();
    /// let report = options.check_source(options.url_source("https://cloud.example.com/disk.qcow2")?)?;
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn url_source(&self, url: &str) -> Result<Arc<dyn ReadAt>> {
        let source = self.remote(url).and_then(|remote| match remote {
            Remote::File(file) => Ok(file),
            Remote::Stream(_) => {
                Err(Error::unsupported("http", "reading parts of a file from a server without ranges"))
            }
        });
        source.map_err(|e| e.in_file(Path::new(&remote::shown(url))))
    }

    /// Returns the properties of the image at a URL.
    ///
    /// # Errors
    /// As [`inspect`](Self::inspect) and [`url_source`](Self::url_source).
    ///
    /// ```no_run
    /// use diskimage::OpenOptions;
    ///
    /// println!("{}", OpenOptions::new().inspect_url("https://cloud.example.com/disk.qcow2")?.format);
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn inspect_url(&self, url: &str) -> Result<Inspection> {
        let path = PathBuf::from(remote::shown(url));
        let inspection = self.inspect_source(self.url_source(url)?).map_err(|e| e.in_file(&path))?;
        Ok(Inspection { path: Some(path), ..inspection })
    }

    /// Opens the file at a URL.
    pub(crate) fn remote(&self, url: &str) -> Result<Remote> {
        remote::open(url, self.cancel.clone())
    }

    /// Refuses a raw disk whose name is that of another format: the page of an error, for example.
    fn check_extension(&self, image: &Image, file: &dyn ReadAt, path: &Path) -> Result<()> {
        let expected = self.format_of_extension(Some(path)).filter(|_| self.format.is_none());
        match expected.filter(|name| image.format() == Format::RAW && Format::by_name(name).is_ok()) {
            Some(format) => Err(Error::Extension { format, content: signature::describe(&Ends::read(file)?.probe()) }),
            None => Ok(()),
        }
    }
}
