//! Properties of an image.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::name::Name;

/// Properties of an image, read from its own metadata. Referenced files are not opened for them.
///
/// ```
/// use std::sync::Arc;
///
/// use diskimage::io::MemFile;
/// use diskimage::{Converter, Format, OpenOptions};
///
/// let file = Arc::new(MemFile::new());
/// Converter::new(Format::QCOW2).create_to(10 << 20, file.clone())?;
/// let info = OpenOptions::new().inspect_source(file)?.info;
/// assert_eq!((info.format, info.virtual_size, info.block_size), ("qcow2", 10 << 20, Some(65536)));
/// assert!(info.backing.is_none() && !info.dirty);
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageInfo {
    /// Name of the format.
    pub format: &'static str,
    /// Virtual size in bytes.
    pub virtual_size: u64,
    /// Allocation unit in bytes: cluster, grain or block; `None` for formats without one.
    pub block_size: Option<u32>,
    /// The backing file or parent, which has the data of the holes.
    pub backing: Option<FileReference>,
    /// Identities by which overlays of this image recognize it.
    pub identities: Vec<Name>,
    /// Data files and extents; the first has the [`FileId`](crate::driver::FileId) 1.
    pub files: Vec<FileReference>,
    /// Method of encryption. Guest data can be read only with a [`Secret`](crate::Secret).
    pub encryption: Option<&'static str>,
    /// Whether the image was not closed by its writer.
    pub dirty: bool,
    /// Whether the image is marked as corrupt.
    pub corrupt: bool,
    /// Other findings that do not prevent reading.
    pub warnings: Vec<Cow<'static, str>>,
    /// What other programs would find in the image in another way, such as another parent. `inspect` refuses such images.
    pub ambiguities: Vec<Cow<'static, str>>,
    /// Internal snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Whether the snapshots are unknown because their table is damaged; a warning has the reason.
    pub snapshots_unreadable: bool,
    /// Properties of this format only, in order. The names are qemu-img's where it has one.
    pub specific: Vec<(&'static str, Value)>,
}

impl ImageInfo {
    /// Properties of an image of `format` with a virtual size in bytes; all others are empty.
    pub fn new(format: &'static str, virtual_size: u64) -> Self {
        ImageInfo { format, virtual_size, ..ImageInfo::default() }
    }

    /// Checks that guest offset `offset` is below the virtual size.
    pub(crate) fn check_offset(&self, offset: u64) -> Result<()> {
        if offset < self.virtual_size {
            return Ok(());
        }
        Err(Error::Usage(format!("guest offset {offset:#x} is beyond the end of the disk")))
    }

    /// Returns a property of [`specific`](Self::specific).
    pub(crate) fn property(&self, name: &str) -> Option<&Value> {
        self.specific.iter().find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

/// A reference from an image to another file: a backing file, a data file or an extent.
///
/// ```
/// use std::path::Path;
///
/// use diskimage::{FileReference, Name};
///
/// let reference = FileReference::new("backing file", Name::from("base.qcow2"), Some(Name::from("qcow2")));
/// assert!(reference.is_file_name());
/// let path = reference.path_from(Path::new("/vm/overlay.qcow2"));
/// assert_eq!(path.as_deref(), Some(Path::new("/vm/base.qcow2")));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileReference {
    /// Role of the file: "backing file", "data file".
    pub role: &'static str,
    /// The name as stored in the image; the identity, if the image stores no name.
    pub name: Name,
    /// Format of the file, if the image states it.
    pub format: Option<Name>,
    /// Further names, tried in this order if no file has the first one. A moved image still stores its old path.
    pub alternatives: Vec<Name>,
    /// Identities, one of which the file must have. Empty if any file is accepted.
    pub identities: Vec<Name>,
    /// Extension of the files beside the image among which one with such an identity is searched, if no name leads to a file.
    pub beside: Option<&'static str>,
    /// Whether a file is found, if no name leads to one, that is the only one in its directory whose name differs in case only: for
    /// images of Windows.
    pub ignore_case: bool,
}

impl FileReference {
    /// A reference to the file `name` with the given role.
    pub fn new(role: &'static str, name: Name, format: Option<Name>) -> Self {
        let (alternatives, identities) = (Vec::new(), Vec::new());
        FileReference { role, name, format, alternatives, identities, beside: None, ignore_case: false }
    }

    /// A reference with several names, tried in this order. Since images are moved and come from other systems, the last
    /// component of each name is tried as well, and files whose names differ in case.
    pub(crate) fn from_names(role: &'static str, stated: Vec<Name>, format: Option<Name>) -> Self {
        let last = |name: &Name| Name::from(name.as_bytes().rsplit(|byte| *byte == b'/').next().unwrap_or_default());
        let last: Vec<_> = stated.iter().map(last).collect();
        let mut names: Vec<Name> = Vec::new();
        for name in stated.into_iter().chain(last) {
            if !name.as_bytes().is_empty() && !names.contains(&name) {
                names.push(name);
            }
        }
        let mut names = names.into_iter();
        let name = names.next().unwrap_or_default();
        FileReference { alternatives: names.collect(), ..FileReference::new(role, name, format).in_any_case() }
    }

    /// The same reference, for which the case of letters does not count.
    pub(crate) fn in_any_case(self) -> Self {
        FileReference { ignore_case: true, ..self }
    }

    /// The identities as text for messages.
    pub(crate) fn identity(&self) -> Name {
        let texts: Vec<_> = self.identities.iter().map(Name::to_text).collect();
        Name::from(texts.join(" or "))
    }

    /// Whether the name is a file name. As in qemu, a colon with text but no slash before it marks an address (`nbd://host`)
    /// or a description (`json:{}`).
    pub fn is_file_name(&self) -> bool {
        self.name.is_file_name()
    }

    /// Returns the path of the file. A relative name is joined to the directory of the image at `image`; the file system is
    /// not accessed. `None` for bytes that cannot be a path on this system, where paths are Unicode.
    pub fn path_from(&self, image: &Path) -> Option<PathBuf> {
        self.name.path_from(image)
    }

    /// Returns the path of the file, as [`path_from`](Self::path_from) does, for display: a name that is not a file name (`nbd:`,
    /// `json:`) is not changed.
    ///
    /// ```
    /// use std::path::Path;
    ///
    /// use diskimage::{FileReference, Name};
    ///
    /// let full = |name| FileReference::new("backing file", Name::from(name), None).full_name(Path::new("/vm/overlay.qcow2"));
    /// assert_eq!(full("base.qcow2"), Name::from("/vm/base.qcow2"));
    /// assert_eq!(full("nbd://host/disk"), Name::from("nbd://host/disk"));
    /// ```
    pub fn full_name(&self, image: &Path) -> Name {
        let path = self.path_from(image).filter(|_| self.is_file_name());
        path.map_or_else(|| self.name.clone(), |path| Name::from(&*path))
    }
}

/// A layer of compression around an image file, which was removed before the format of the image was detected.
///
/// ```
/// # #[cfg(feature = "compressed")]
/// # fn main() -> diskimage::Result<()> {
/// use std::sync::Arc;
///
/// use diskimage::OpenOptions;
/// use diskimage::io::MemFile;
///
/// // Two frames of zstd, each with a raw block (RFC 8878, section 3.1.1).
/// let frame = |byte: u8| [&b"\x28\xb5\x2f\xfd\x20\x05\x29\0\0"[..], &[byte; 5]].concat();
/// let file = Arc::new(MemFile::from([frame(1), frame(2)].concat()));
/// let inspection = OpenOptions::new().inspect_source(file)?;
/// assert_eq!((inspection.info.virtual_size, inspection.file_len), (10, 28));
/// assert_eq!((inspection.compression[0].name, inspection.compression[0].decompressed_len), ("zstd", 10));
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "compressed"))]
/// # fn main() {}
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompressionLayer {
    /// The format: "gzip", "xz", "bzip2" or "zstd".
    pub name: &'static str,
    /// Length of the decompressed file in bytes.
    pub decompressed_len: u64,
}

/// An internal snapshot: an earlier state of the disk, stored in its image.
///
/// ```no_run
/// use diskimage::OpenOptions;
///
/// let inspection = OpenOptions::new().inspect("disk.qcow2")?;
/// for snapshot in &inspection.info.snapshots {
///     println!("{} {}: {} bytes", snapshot.id, snapshot.name, snapshot.virtual_size);
/// }
/// let before = OpenOptions::new().snapshot("before-upgrade").open("disk.qcow2")?;
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Unique identifier.
    pub id: Name,
    /// Name given by the user.
    pub name: Name,
    /// Virtual size in bytes at the time.
    pub virtual_size: u64,
    /// Size of the saved machine state in bytes.
    pub vm_state_size: u64,
    /// Time of creation: seconds since 1970, and nanoseconds.
    pub date: (u32, u32),
    /// Run time of the guest in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Number of instructions executed by the guest, if recorded.
    pub icount: Option<u64>,
}

impl Snapshot {
    /// A snapshot with its names and its virtual size in bytes; everything else is 0.
    pub fn new(id: Name, name: Name, virtual_size: u64) -> Self {
        Snapshot { id, name, virtual_size, vm_state_size: 0, date: (0, 0), vm_clock_nsec: 0, icount: None }
    }
}

/// The value of a format-specific property.
///
/// ```
/// use diskimage::{ImageInfo, Value};
///
/// let mut info = ImageInfo::new("toy", 1 << 20);
/// info.specific = vec![("compat", "1.1".into()), ("lazy-refcounts", false.into()), ("refcount-bits", 16.into())];
/// assert_eq!(info.specific[2].1, Value::Number(16));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Value {
    /// A Boolean.
    Bool(bool),
    /// A number.
    Number(u64),
    /// Text, possibly from the image.
    Text(Name),
    /// A list.
    List(Vec<Value>),
    /// Properties by name, in order.
    Map(Vec<(&'static str, Value)>),
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Bool(value)
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Value::Number(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::Text(Name::from(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(name: &str) -> FileReference {
        FileReference::new("backing file", Name::from(name), None)
    }

    #[test]
    fn addresses_are_no_files() {
        for name in ["json:{}", "nbd://host/x", "nbd:unix:/s", "fat:rw:/", ""] {
            assert!(!reference(name).is_file_name(), "{name}");
        }
        assert!(reference("a.img").is_file_name());
        // On Windows, a colon marks a stream within a file.
        for name in ["./a:b", "/x/a:b", ":a"] {
            assert_eq!(reference(name).is_file_name(), !cfg!(windows), "{name}");
        }
    }

    #[test]
    fn relative_names_start_at_the_image() {
        for (image, name, path) in [
            ("o.qcow2", "base.qcow2", "base.qcow2"),
            ("sub/o.qcow2", "base.qcow2", "sub/base.qcow2"),
            ("/a/o.qcow2", "../base.qcow2", "/a/../base.qcow2"),
            ("sub/o.qcow2", "/abs", "/abs"),
        ] {
            assert_eq!(reference(name).path_from(Path::new(image)), Some(PathBuf::from(path)));
        }
    }
}
