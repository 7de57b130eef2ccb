//! What an image says of itself.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::name::Name;

/// What an image says of itself. Nothing that it names has been opened to find this out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageInfo {
    /// The format's name.
    pub format: &'static str,
    /// Size of the disk that the guest sees, in bytes.
    pub virtual_size: u64,
    /// Bytes that the format allocates at once; `None` when it has no such unit.
    pub block_size: Option<u32>,
    /// The image whose bytes show through the holes of this one.
    pub backing: Option<FileReference>,
    /// What images that lie over this one know it by.
    pub identities: Vec<Name>,
    /// Other files that hold guest bytes of this image; `FileId` 1 is the first.
    pub files: Vec<FileReference>,
    /// The method of encryption, by its name. An encrypted image is not readable.
    pub encryption: Option<&'static str>,
    /// The writer did not close the image.
    pub dirty: bool,
    /// A program found the image corrupt and marked it so.
    pub corrupt: bool,
    /// What else its owner should know, though it does not keep the image from being read.
    pub warnings: Vec<Cow<'static, str>>,
    /// Earlier states that are kept inside the image.
    pub snapshots: Vec<Snapshot>,
    /// What only this format has, in order, by the names that qemu-img uses where it has one.
    pub specific: Vec<(&'static str, Value)>,
}

impl ImageInfo {
    /// The properties of an image of `format` whose disk has `virtual_size` bytes, and nothing else.
    pub fn new(format: &'static str, virtual_size: u64) -> Self {
        ImageInfo { format, virtual_size, ..ImageInfo::default() }
    }

    /// Checks that there is a guest byte at `offset`.
    pub(crate) fn check_offset(&self, offset: u64) -> Result<()> {
        if offset < self.virtual_size {
            return Ok(());
        }
        Err(Error::Usage(format!("guest offset {offset:#x} is beyond the disk")))
    }

    /// What only this format has, by its name.
    pub(crate) fn property(&self, name: &str) -> Option<&Value> {
        self.specific.iter().find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

/// Another file that an image names.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileReference {
    /// What it is to the image: "backing file", "data file".
    pub role: &'static str,
    /// Its name, as the image has it; its identity, where the image has no name for it.
    pub name: Name,
    /// Its format, if the image states it.
    pub format: Option<Name>,
    /// Other names, for when there is no file of that name: an image that was moved still has the old path.
    pub alternatives: Vec<Name>,
    /// Identities, of which the file must have one. Any file will do where there are none.
    pub identities: Vec<Name>,
    /// With an extension here, a file that has an identity is looked for among those beside the image that have the extension.
    pub beside: Option<&'static str>,
}

impl FileReference {
    /// A file called `name` that is `role` to the image.
    pub fn new(role: &'static str, name: Name, format: Option<Name>) -> Self {
        FileReference { role, name, format, alternatives: Vec::new(), identities: Vec::new(), beside: None }
    }

    /// A file that is known by several names, the first of which are tried first. Since images are moved and come from other
    /// systems, the last part of each is a name as well.
    pub(crate) fn of_names(role: &'static str, stated: Vec<Name>, format: Option<Name>) -> Self {
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
        FileReference { alternatives: names.collect(), ..FileReference::new(role, name, format) }
    }

    /// The identities, for messages.
    pub(crate) fn identity(&self) -> Name {
        let texts: Vec<_> = self.identities.iter().map(Name::to_text).collect();
        Name::from(texts.join(" or "))
    }

    /// Whether the name is that of a file, and not empty, an address (`nbd://host`) or a description (`json:{}`) in the manner
    /// of qemu: something before a colon, and no slash before that.
    pub fn is_file_name(&self) -> bool {
        self.name.is_file_name()
    }

    /// Where the name leads from the image at `image`: a relative one starts at the image's directory. By the text alone,
    /// nothing is looked up. `None` for bytes that cannot be a path of this system, where paths are Unicode.
    pub fn path_from(&self, image: &Path) -> Option<PathBuf> {
        self.name.path_from(image)
    }
}

/// An earlier state of a disk, kept inside its image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Unique identifier.
    pub id: Name,
    /// The name that its maker gave it.
    pub name: Name,
    /// Size of the disk in that state, in bytes.
    pub virtual_size: u64,
    /// Bytes of saved machine state.
    pub vm_state_size: u64,
    /// When it was made: seconds since 1970 and nanoseconds.
    pub date: (u32, u32),
    /// How long the guest had run, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Number of instructions the guest had executed, where that was recorded.
    pub icount: Option<u64>,
}

impl Snapshot {
    /// A snapshot with nothing but its names.
    pub fn new(id: Name, name: Name, virtual_size: u64) -> Self {
        Snapshot { id, name, virtual_size, vm_state_size: 0, date: (0, 0), vm_clock_nsec: 0, icount: None }
    }
}

/// A property's value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Value {
    /// Yes or no.
    Bool(bool),
    /// A number.
    Number(u64),
    /// Text, which may come from the image.
    Text(Name),
    /// Several values.
    List(Vec<Value>),
    /// Properties of their own.
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
        for name in ["a.img", "./a:b", "/x/a:b", ":a"] {
            assert!(reference(name).is_file_name(), "{name}");
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
