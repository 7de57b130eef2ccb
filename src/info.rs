//! What an image says of itself.

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
    pub backing: Option<Reference>,
    /// Other files that hold guest bytes of this image; `FileId` 1 is the first.
    pub files: Vec<Reference>,
    /// The method of encryption, by its name. An encrypted image is not readable.
    pub encryption: Option<&'static str>,
    /// The writer did not close the image.
    pub dirty: bool,
    /// A program found the image corrupt and marked it so.
    pub corrupt: bool,
    /// Earlier states that are kept inside the image.
    pub snapshots: Vec<Snapshot>,
    /// What only this format has, in order, by the names that qemu-img uses where it has one.
    pub specific: Vec<(&'static str, Value)>,
}

/// Another file that an image names.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reference {
    /// What it is to the image: "backing file", "data file".
    pub role: &'static str,
    /// Its name, as the image has it.
    pub name: Name,
    /// Its format, if the image states it.
    pub format: Option<Name>,
}

impl Reference {
    /// A file called `name` that is `role` to the image.
    pub fn new(role: &'static str, name: Name, format: Option<Name>) -> Self {
        Reference { role, name, format }
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
