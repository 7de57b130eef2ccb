//! The formats: what each one is called, how it is recognised, opened and made.
//!
//! A new format is one new folder here and two lines in this file. Nothing outside matches on formats: tests, fuzz
//! targets, benches and the program iterate [`Format::all`].

pub mod qcow2;
pub mod raw;
mod signature;
pub mod vdi;
pub mod vhd;
pub mod vhdx;
pub mod vmdk;

use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::identifiers::ImageIdentifiers;
use crate::info::{ImageInfo, Reference};
use crate::io::{ReadAt, WriteAt};
use crate::limits::{Budget, Limits};
use crate::name::Name;
use crate::options::{OptionSpec, Options, wrong};
use crate::sparse::{SparseRead, SparseWrite};

/// Every format, in the order in which they are listed. `raw` recognises nothing and takes what no other wants.
static FORMATS: &[&Entry] = &[&qcow2::FORMAT, &vmdk::FORMAT, &vhd::FORMAT, &vhdx::FORMAT, &vdi::FORMAT, &raw::FORMAT];

/// A format that this crate reads and writes.
#[derive(Clone, Copy)]
pub struct Format(&'static Entry);

/// What a format module says of itself.
pub(crate) struct Entry {
    /// As qemu-img names it.
    pub name: &'static str,
    /// What people type as well.
    pub aliases: &'static [&'static str],
    /// File name extensions, without the dot.
    pub extensions: &'static [&'static str],
    /// One line for a person.
    pub description: &'static str,
    /// What `create` takes.
    pub options: &'static [OptionSpec],
    /// Whether the bytes are those of an image of this format. No I/O.
    pub probe: fn(&Probe<'_>) -> bool,
    pub open: WithFile<Box<dyn SparseRead>>,
    pub create: fn(&CreateContext<'_>) -> Result<Box<dyn SparseWrite>>,
    /// Opens an image that comes through a pipe, where the format can be read in the order in which it is stored.
    pub open_stream: Option<OpenStream>,
    /// Examines the metadata, where the format has what can be examined.
    pub check: Option<WithFile<CheckReport>>,
}

/// Opens an image that can be read once and in order, and returns the payloads with it, as the file that extents refer to.
pub(crate) type OpenStream =
    fn(Box<dyn Read + Send>, &OpenContext<'_>) -> Result<(Box<dyn SparseRead>, Arc<dyn ReadAt>)>;

/// What a format does with an image file.
type WithFile<T> = fn(Arc<dyn ReadAt>, &OpenContext<'_>) -> Result<T>;

/// Opens a file that holds guest bytes and that an image names, if the caller allows it; `Ok(None)` when the caller only
/// looks at the image and wants no other file opened.
pub(crate) type OpenFile<'a> = dyn Fn(&Reference) -> Result<Option<Arc<dyn ReadAt>>> + 'a;

/// What a probe sees of a file.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// The first bytes, up to [`Probe::HEAD`].
    pub head: &'a [u8],
    /// The last bytes, up to [`Probe::TAIL`].
    pub tail: &'a [u8],
    /// Length of the file in bytes.
    pub len: u64,
}

/// What a format is handed to open an image with.
#[derive(Clone, Copy)]
pub(crate) struct OpenContext<'a> {
    pub limits: &'a Limits,
    pub budget: &'a Budget,
    /// Read this snapshot, by id or name, in place of the current state.
    pub snapshot: Option<&'a str>,
    /// For the other files that the image names.
    pub file: &'a OpenFile<'a>,
}

/// What a format is handed to make an image with.
#[derive(Clone)]
pub(crate) struct CreateContext<'a> {
    /// Virtual size in bytes. The format may round it up, and then says so in [`WriteSpec`](crate::sparse::WriteSpec).
    pub size: u64,
    pub options: &'a Options,
    /// Whether blocks are to be compressed.
    pub compress: bool,
    /// The image that the new one lies over.
    pub backing: Option<NewBacking<'a>>,
    pub identifiers: ImageIdentifiers,
    pub out: Arc<dyn WriteAt>,
    /// The other files, for an image that is to have a name.
    pub files: Option<&'a dyn NewFiles>,
}

/// The image that a new one lies over.
#[derive(Clone)]
pub(crate) struct NewBacking<'a> {
    /// Its name, as it is to be written.
    pub name: Name,
    /// What it says of itself.
    pub info: &'a ImageInfo,
}

/// Makes the files of an image that consists of several.
pub(crate) trait NewFiles {
    /// The name of the image itself, without its directory.
    fn image_name(&self) -> &OsStr;

    /// Makes a file called `name` beside the image.
    fn add(&self, name: &OsStr) -> Result<Arc<dyn WriteAt>>;
}

impl OpenContext<'_> {
    /// For formats whose images hold no earlier states.
    pub fn refuse_snapshots(&self, format: &'static str) -> Result<()> {
        match self.snapshot {
            Some(_) => Err(Error::Unsupported { format, feature: "snapshots inside an image".into(), at: None }),
            None => Ok(()),
        }
    }
}

impl<'a> CreateContext<'a> {
    /// Checks that the options, where they name a backing file too, mean the image given.
    pub fn check_backing_options(&self, format: &'static str) -> Result<()> {
        let Some(NewBacking { name, info }) = &self.backing else { return Ok(()) };
        if let Some(other) = self.options.value("backing_file").filter(|other| other.as_bytes() != name.as_bytes()) {
            return Err(wrong(format, "backing_file", format!("'{other}' is not the image given, '{name}'")));
        }
        let is_other = |other: &&str| Format::named(other).map_or(*other, |format| format.name()) != info.format;
        if let Some(other) = self.options.value("backing_fmt").filter(is_other) {
            let problem = format!("'{other}' is not the format of the image given, '{}'", info.format);
            return Err(wrong(format, "backing_fmt", problem));
        }
        Ok(())
    }

    /// An uncompressed image in `out` alone.
    #[cfg(test)]
    pub fn new(size: u64, options: &'a Options, out: Arc<dyn WriteAt>) -> Self {
        let identifiers = crate::identifiers::Identifiers::Reproducible { time: 0 }.of_image("", size, options);
        CreateContext { size, options, compress: false, backing: None, identifiers, out, files: None }
    }
}

/// What an examination of an image's metadata found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckReport {
    /// The format's name.
    pub format: &'static str,
    /// Each thing that is wrong, in words; at most [`CheckReport::MESSAGES`] of them.
    pub messages: Vec<String>,
    /// Things that lose or mix up guest data, or will when the image is written to.
    pub corruptions: u64,
    /// Blocks that are set aside and used by nothing.
    pub leaks: u64,
    /// Parts that could not be examined.
    pub check_errors: u64,
    /// Blocks of the disk.
    pub total_clusters: u64,
    /// Blocks of the disk that the file holds.
    pub allocated_clusters: u64,
    /// Of those, the ones that are compressed.
    pub compressed_clusters: u64,
    /// Of those, the ones that do not follow the one before them in the file.
    pub fragmented_clusters: u64,
    /// Byte offset after the last block in use.
    pub image_end_offset: u64,
}

impl CheckReport {
    /// How many messages are kept; the counts go on.
    pub const MESSAGES: usize = 1000;

    pub(crate) fn corruption(&mut self, message: impl FnOnce() -> String) {
        self.corruptions += 1;
        self.say("ERROR", message);
    }

    pub(crate) fn leak(&mut self, message: impl FnOnce() -> String) {
        self.leaks += 1;
        self.say("Leaked", message);
    }

    /// Keeps a message. The text is made only if it is kept: a bad image can have millions of them.
    pub(crate) fn say(&mut self, what: &str, message: impl FnOnce() -> String) {
        if self.messages.len() < Self::MESSAGES {
            self.messages.push(format!("{what}: {}", message()));
        }
    }
}

impl Probe<'_> {
    /// Bytes that are looked at from the beginning of a file.
    pub const HEAD: usize = 4096;
    /// Bytes that are looked at from the end of a file.
    pub const TAIL: usize = 512;
}

impl Format {
    /// The bytes of a disk and nothing else.
    pub const RAW: Format = Format(&raw::FORMAT);
    /// The format of QEMU.
    pub const QCOW2: Format = Format(&qcow2::FORMAT);

    /// All formats.
    pub fn all() -> impl Iterator<Item = Format> {
        FORMATS.iter().copied().map(Format)
    }

    /// Finds a format by its name or one of its aliases.
    ///
    /// # Errors
    /// [`Error::UnknownFormat`]
    pub fn named(name: &str) -> Result<Format> {
        Self::all()
            .find(|format| format.name() == name || format.0.aliases.contains(&name))
            .ok_or_else(|| Error::UnknownFormat(name.to_owned()))
    }

    /// Finds the format of which `extension` (without the dot, in any case) is typical.
    pub fn of_extension(extension: &str) -> Option<Format> {
        let extension = extension.to_ascii_lowercase();
        Self::all().find(|format| format.0.extensions.contains(&extension.as_str()))
    }

    /// Finds the format of a file by its content. What nothing else recognises is raw.
    ///
    /// # Errors
    /// [`Error::Ambiguous`] when several formats recognise it, and [`Error::Unreadable`] when it carries the signature of an
    /// image format that this crate does not read: its raw bytes are hardly what the caller wants.
    pub fn probe(probe: &Probe<'_>) -> Result<Format> {
        let own: Vec<_> = Self::all().filter(|format| (format.0.probe)(probe)).collect();
        let foreign: Vec<_> = signature::foreign(probe).collect();
        match (own.as_slice(), foreign.as_slice()) {
            ([], []) => Ok(Format::RAW),
            ([one], []) => Ok(*one),
            ([], [one]) => Err(Error::Unreadable(one)),
            _ => Err(Error::Ambiguous(own.iter().map(Format::name).chain(foreign).collect())),
        }
    }

    /// The name, as qemu-img has it.
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// Other names under which [`Format::named`] finds it.
    pub fn aliases(&self) -> &'static [&'static str] {
        self.0.aliases
    }

    /// Its usual file name extensions.
    pub fn extensions(&self) -> &'static [&'static str] {
        self.0.extensions
    }

    /// One line that says what it is.
    pub fn description(&self) -> &'static str {
        self.0.description
    }

    /// The options for making an image.
    pub fn options(&self) -> &'static [OptionSpec] {
        self.0.options
    }

    pub(crate) fn open(&self, source: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Box<dyn SparseRead>> {
        (self.0.open)(source, cx)
    }

    pub(crate) fn open_stream(
        &self,
        stream: Box<dyn Read + Send>,
        cx: &OpenContext<'_>,
    ) -> Result<(Box<dyn SparseRead>, Arc<dyn ReadAt>)> {
        match self.0.open_stream {
            Some(open) => open(stream, cx),
            None => Err(Error::Unsupported { format: self.name(), feature: "reading from a pipe".into(), at: None }),
        }
    }

    pub(crate) fn create(&self, cx: &CreateContext<'_>) -> Result<Box<dyn SparseWrite>> {
        cx.options.check(self.name(), self.options())?;
        (self.0.create)(cx)
    }

    /// Whether images of this format can be examined.
    pub fn can_check(&self) -> bool {
        self.0.check.is_some()
    }

    pub(crate) fn check(&self, source: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<CheckReport> {
        match self.0.check {
            Some(check) => check(source, cx).map(|report| CheckReport { format: self.name(), ..report }),
            None => Err(Error::Unsupported { format: self.name(), feature: "checks".into(), at: None }),
        }
    }
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Format {}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Format({})", self.name())
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemFile;

    fn probe(head: &[u8], tail: &[u8]) -> Result<Format> {
        Format::probe(&Probe { head, tail, len: 1 << 20 })
    }

    #[test]
    fn formats_are_found_by_name_and_by_extension() {
        for format in Format::all() {
            assert_eq!(Format::named(format.name()).unwrap(), format);
            for extension in format.extensions() {
                assert_eq!(Format::of_extension(extension), Some(format));
            }
        }
        assert_eq!(Format::named("img").unwrap(), Format::RAW);
        assert_eq!(Format::named("qcow2").unwrap(), Format::QCOW2);
        for name in ["", "QCOW2", "qcow", "raw "] {
            assert!(matches!(Format::named(name), Err(Error::UnknownFormat(wrong)) if wrong == name));
        }
        assert_eq!(Format::of_extension("QCOW2"), Some(Format::QCOW2));
        assert_eq!(Format::of_extension("Img"), Some(Format::RAW));
        assert_eq!((Format::of_extension(""), Format::of_extension(".raw")), (None, None));
    }

    #[test]
    fn content_says_what_a_file_is_unless_it_says_two_things() {
        assert_eq!(probe(b"", b"").unwrap(), Format::RAW);
        assert_eq!(probe(b"QFI\xfb\0\0\0", b"").unwrap(), Format::RAW);
        for version in [0, 2, 3, 4] {
            assert_eq!(probe(&[b'Q', b'F', b'I', 0xfb, 0, 0, 0, version], b"").unwrap(), Format::QCOW2);
        }
        for (head, tail, name) in [(b"QED\0\0\0\0\0", &b""[..], "qed"), (b"QFI\xfb\0\0\0\x01", b"", "qcow")] {
            assert!(matches!(probe(head, tail), Err(Error::Unreadable(found)) if found == name), "{name}");
        }
        for (head, names) in [
            (b"QFI\xfb\0\0\0\x03", ["qcow2", "vpc"]),
            (b"vhdxfile", ["vpc", "vhdx"]),
            (b"QED\0\0\0\0\0", ["vpc", "qed"]),
        ] {
            let Err(Error::Ambiguous(mut found)) = probe(head, b"conectix") else { panic!("{names:?}") };
            found.sort_by_key(|name| !names[0].starts_with(*name));
            assert_eq!(found, names);
        }
    }

    #[test]
    fn an_unknown_option_is_told_with_those_that_there_are() {
        let mut options = Options::new();
        options.set("cluster-size", "64k");
        let out = Arc::new(MemFile::new());
        for format in Format::all() {
            let cx = CreateContext::new(0, &options, out.clone());
            let Err(Error::Option { format: told, name, problem }) = format.create(&cx) else { panic!("{format}") };
            assert_eq!((told, &*name), (format.name(), "cluster-size"));
            for option in format.options() {
                assert!(problem.contains(option.name), "{problem}");
            }
        }
        assert_eq!(out.to_vec(), b"");
    }

    #[test]
    fn only_so_many_messages_are_kept() {
        let mut report = CheckReport::default();
        (0..CheckReport::MESSAGES + 5).for_each(|number| report.leak(|| number.to_string()));
        report.corruption(|| panic!("nobody wants this text"));
        assert_eq!((report.leaks, report.corruptions), (CheckReport::MESSAGES as u64 + 5, 1));
        assert_eq!(report.messages.len(), CheckReport::MESSAGES);
        assert_eq!((&*report.messages[0], &*report.messages[999]), ("Leaked: 0", "Leaked: 999"));
    }
}
