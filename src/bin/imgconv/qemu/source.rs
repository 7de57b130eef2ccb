//! The images that a command reads.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use diskimage::io::{self, CacheMode, FileSource, ReadAt};
use diskimage::nbd::{self, Client};
use diskimage::{CheckReport, Disk, Error, Format, Image, Inspection, OpenOptions, ReferencePolicy};

use serde_json::json;

use super::getopt::Parsed;
use super::message::{self, Failed};
use crate::location::{self, Location};
use crate::node::{Backing, Node, Storage};
use crate::secrets::SecretArgs;

/// The size of a raw disk is a multiple of it, in qemu.
pub const SECTOR: u64 = 512;

/// How the images of a command line are opened.
pub struct Sources {
    secrets: SecretArgs,
    force_share: bool,
    image_opts: bool,
    cache: CacheMode,
}

/// An image that can be opened.
pub struct Source {
    options: OpenOptions,
    at: At,
    /// As in messages.
    name: String,
    /// The same as on the command line, with all options.
    given: String,
    /// Whether the format is detected.
    is_probed: bool,
    /// The ID of its secret.
    secret: Option<String>,
    /// The same, if there is no secret with it. Properties can be read without one.
    unknown_secret: Option<String>,
}

enum At {
    Location(Location),
    /// A part of it, or what is in no file.
    Storage(Arc<dyn ReadAt>),
    /// The states of the export in a metadata context, which are no image.
    States(Client),
}

impl Sources {
    pub fn new(parsed: &Parsed) -> Sources {
        let image_opts = parsed.flag("image-opts") || parsed.flag("source-image-opts");
        Sources {
            secrets: SecretArgs::of_objects(parsed.all("object")),
            force_share: parsed.flag("force-share"),
            image_opts,
            cache: CacheMode::default(),
        }
    }

    /// The same, with images read as `cache` says.
    pub fn cached(self, cache: CacheMode) -> Sources {
        Sources { cache, ..self }
    }

    pub fn secrets(&self) -> &SecretArgs {
        &self.secrets
    }

    /// The image called `name`, in this format unless it is to be detected.
    pub fn source(&self, name: &OsStr, format: Option<&str>) -> Result<Source, Failed> {
        let node = match self.image_opts {
            true if format.is_some() => return Err(Failed::new("--image-opts and --format are mutually exclusive")),
            true => Node::from_list(name),
            false => Node::named(name),
        };
        let node = node.map_err(|invalid| {
            let problem = format!("Could not open '{}': {invalid}", name.to_string_lossy());
            Failed::new(problem)
        })?;
        self.of_node(node, name, format)
    }

    /// The node with the certificates in the URI of an NBD server.
    pub fn secured(&self, mut node: Node) -> Result<Node, Failed> {
        if let (Some((id, hostname)), Storage::Remote(uri)) = (&node.tls, &node.storage) {
            let certificates = self.secrets.certificates(id)?;
            node.storage = Storage::Remote(nbd::tls_uri(uri, Some(&certificates), hostname.as_deref())?);
        }
        Ok(node)
    }

    /// A file that is named without options, such as a backing file.
    pub fn file(&self, name: &OsStr, format: Option<&str>) -> Result<Source, Failed> {
        self.of_node(Node::named(name)?, name, format)
    }

    fn of_node(&self, node: Node, name: &OsStr, format: Option<&str>) -> Result<Source, Failed> {
        let shown = node.shown(name);
        let given = match &node.storage {
            // A URL may have secrets.
            Storage::File(_) if self.image_opts => name.to_string_lossy().into_owned(),
            _ => shown.clone(),
        };
        let name = shown;
        let node = self.secured(node)?;
        let format = match format {
            Some(format) => Some(
                format_named(format)
                    .map_err(|unknown| Failed::new(format!("Could not open '{name}': Unknown driver '{unknown}'")))?,
            ),
            None => node.format,
        };
        let options = OpenOptions::new()
            .force_share(self.force_share || node.force_share)
            .cache(self.cache)
            .without_backing(node.without_backing)
            .options(node.options)
            .reference_policy(ReferencePolicy::Any)
            .detect_as_qemu(true);
        let secret = node.secret.clone();
        let unknown_secret = secret.clone().filter(|id| !self.secrets.has(id));
        let options = self.secrets.add_to(options, node.secret.as_deref().filter(|_| unknown_secret.is_none()))?;
        let options = match format {
            Some(format) => options.format(format),
            None => options,
        };
        let options = match node.backing {
            Some(Backing { path, format }) => options.backing_file(path, format),
            None => options,
        };
        let options = match node.header {
            Some(header) => options.detached_header(header),
            None => options,
        };
        let failed = |error: Error| Failed::opening(&name, &error);
        let at = match (node.storage, node.window, &node.context) {
            (Storage::Remote(uri), None, Some(context)) => {
                At::States(location::connect_for(&uri, context).map_err(failed)?)
            }
            (Storage::File(path), None, _) => At::Location(Location::File(path)),
            (Storage::Remote(uri), None, None) => At::Location(Location::find(uri).map_err(failed)?),
            (Storage::File(path), Some((offset, len)), _) => {
                let file = FileSource::open(&path).map_err(Error::io("opening", None));
                At::Storage(part(Arc::new(file.map_err(|error| failed(error.in_file(&path)))?), offset, len)?)
            }
            (Storage::Remote(uri), Some((offset, len)), _) => {
                let file = match Location::find(&uri).map_err(failed)? {
                    Location::Nbd(client) => client,
                    _ => options.url_source(&uri).map_err(failed)?,
                };
                At::Storage(part(file, offset, len)?)
            }
            (Storage::Null(size), window, _) => {
                let (offset, len) = window.unwrap_or((0, None));
                At::Storage(part(io::zeros(size), offset, len)?)
            }
        };
        Ok(Source { options, at, name, given, is_probed: format.is_none(), secret, unknown_secret })
    }
}

/// The format called `name`, or the name if there is none. Protocols that are formats in qemu-img are raw.
pub fn format_named(name: &str) -> Result<Format, String> {
    match name {
        "file" | "host_device" | "host_cdrom" => Ok(Format::RAW),
        name => Format::by_name(name).map_err(|_| name.to_owned()),
    }
}

fn no_image() -> Error {
    Error::Usage("x-dirty-bitmap is supported by map only".into())
}

/// A range of a file as a file.
fn part(file: Arc<dyn ReadAt>, offset: u64, len: Option<u64>) -> Result<Arc<dyn ReadAt>, Failed> {
    let size = file.size().map_err(Error::io("reading the size", None))?;
    let rest = size.checked_sub(offset).ok_or_else(|| Failed::new("Offset exceeds the size of the file"))?;
    match len.unwrap_or(rest) {
        len if len <= rest => Ok(io::range_of(file, offset..offset.saturating_add(len))),
        _ => Err(Failed::new("The sum of offset and size exceeds the size of the file")),
    }
}

impl Source {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The description of an image that is more than a file, as QEMU makes it of the options. `None` if the name of the file is enough.
    pub fn described(&self, format: Format) -> Option<String> {
        let id = json!(self.secret.as_ref()?);
        let format_name = format.name();
        let file =
            format!(r#""driver": "{format_name}", "file": {{"driver": "file", "filename": {}}}"#, json!(self.name));
        Some(match format == Format::LUKS {
            true => format!(r#"json:{{{file}, "key-secret": {id}}}"#),
            false => format!(r#"json:{{"encrypt.key-secret": {id}, {file}}}"#),
        })
    }

    /// Why it could not be opened.
    pub fn not_opened(&self, error: &Error) -> Failed {
        Failed::opening_as(&self.given, &self.name, error)
    }

    /// Changes the options.
    pub fn with(mut self, change: impl FnOnce(OpenOptions) -> OpenOptions) -> Source {
        self.options = change(self.options);
        self
    }

    /// The server whose states are to be shown as the map.
    pub fn states(&self) -> Option<&Client> {
        match &self.at {
            At::States(client) => Some(client),
            At::Location(_) | At::Storage(_) => None,
        }
    }

    pub fn open(&self) -> Result<Image, Failed> {
        let opened = self.try_open().map_err(|error| self.not_opened(&error))?;
        // A raw disk has whole sectors in qemu.
        match opened.virtual_size().is_multiple_of(SECTOR) {
            true => Ok(opened),
            false => Image::concatenate(vec![opened]).map_err(Failed::from),
        }
    }

    pub fn try_open(&self) -> Result<Image, Error> {
        self.check_secret()?;
        match &self.at {
            At::Location(location) => location.open(&self.options),
            At::Storage(storage) => self.options.open_source(storage.clone()),
            At::States(_) => Err(no_image()),
        }
    }

    fn check_secret(&self) -> Result<(), Error> {
        match &self.unknown_secret {
            Some(id) => Err(Error::Usage(format!("No secret with id '{id}'"))),
            None => Ok(()),
        }
    }

    /// The path of the file, and how it is opened, for what changes it.
    pub fn path_and_options(&self) -> Result<(&Path, &OpenOptions), Failed> {
        self.check_secret().map_err(|error| self.not_opened(&error))?;
        match &self.at {
            At::Location(Location::File(path)) => Ok((path, &self.options)),
            _ => Err(Failed::new(format!("{}: imgconv changes files only", self.name))),
        }
    }

    /// Opens the image for changes. `unsupported` says that images of its format cannot be changed.
    pub fn open_disk(&self, unsupported: &str) -> Result<Disk, Failed> {
        let (path, options) = self.path_and_options()?;
        let disk = options.open_disk(path).map_err(|error| match error.root() {
            Error::Unsupported { format, .. } if Format::by_name(format).is_ok_and(|format| !format.can_update()) => {
                Failed::new(unsupported)
            }
            _ => self.not_opened(&error),
        })?;
        self.warn_of_probing(disk.format());
        Ok(disk)
    }

    /// Warns where a raw disk was detected that is going to be changed.
    pub fn warn_of_probing(&self, format: Format) {
        if self.is_probed && format == Format::RAW {
            message::line(&format!(
                "WARNING: Image format was not specified for '{}' and probing guessed raw.\n         Automatically detecting the format is \
                 dangerous for raw images, write operations on block 0 will be restricted.\n         Specify the 'raw' format explicitly to \
                 remove the restrictions.",
                self.name
            ));
        }
    }

    /// The properties of the image.
    pub fn inspect(&self) -> Result<Inspection, Failed> {
        let inspection = self.try_inspect().map_err(|error| self.not_opened(&error))?;
        // Nobody can unlock it.
        let lacks_header = |warning: &str| warning.contains("crypt_method") && warning.contains("is missing");
        match inspection.info.warnings.iter().any(|warning| lacks_header(warning)) {
            true => {
                let problem = "Missing CRYPTO header for crypt method 2";
                Err(Failed::new(format!("Could not open '{}': {problem}", self.given)))
            }
            false => Ok(inspection),
        }
    }

    /// As [`inspect`](Self::inspect).
    pub fn try_inspect(&self) -> Result<Inspection, Error> {
        match &self.at {
            At::Location(location) => location.inspect(&self.options),
            At::Storage(storage) => self.options.inspect_source(storage.clone()),
            At::States(_) => Err(no_image()),
        }
    }

    /// The properties of the image and of its backing files.
    pub fn inspect_chain(&self) -> Result<Vec<Inspection>, Failed> {
        match &self.at {
            At::Location(location) => location.inspect_chain(&self.options).map_err(|error| self.not_opened(&error)),
            At::Storage(_) | At::States(_) => Ok(vec![self.inspect()?]),
        }
    }

    pub fn check(&self) -> Result<CheckReport, Error> {
        self.check_secret()?;
        match &self.at {
            At::Location(location) => location.check(&self.options),
            At::Storage(storage) => self.options.check_source(storage.clone()),
            At::States(_) => Err(no_image()),
        }
    }
}
