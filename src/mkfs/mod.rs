//! New disks that are ready to use: with a file system, in a partition or on the whole disk.
//!
//! [`DiskOptions::build`] returns a disk in memory, of which only the metadata of the file system takes space. It is the source of a
//! conversion to any format.
//!
//! ```
//! use std::sync::Arc;
//!
//! use diskimage::io::MemFile;
//! use diskimage::mkfs::{DiskOptions, Ext4Options, PartitionScheme};
//! use diskimage::{Converter, Format, OpenOptions};
//!
//! let disk = DiskOptions::new(Ext4Options::new().label("data")).partition(PartitionScheme::Gpt).build(1 << 30)?;
//! let disk = OpenOptions::new().format(Format::RAW).open_source(Arc::new(disk))?;
//! let image = Arc::new(MemFile::new());
//! Converter::new(Format::QCOW2).convert_to(&disk, image.clone())?;
//! assert!(image.to_vec().len() < 16 << 20);
//! # Ok::<(), diskimage::Error>(())
//! ```

mod disk;
mod ext4;
mod partition;
mod swap;
mod vfat;

use std::str::FromStr;

use crate::error::{Error, Result};
use crate::identifiers::{Identifiers, ImageIdentifiers};
use crate::name::Name;
use crate::options::Options;
pub use disk::NewDisk;
use disk::Volume;
pub use ext4::Ext4Options;
pub use partition::PartitionScheme;
pub use swap::SwapOptions;
pub use vfat::VfatOptions;

/// Smallest disk in bytes.
const SMALLEST: u64 = 8 << 20;

/// A file system of a new disk.
///
/// ```
/// use diskimage::mkfs::FileSystem;
///
/// let system: FileSystem = "ext4".parse()?;
/// assert_eq!(system.name(), "ext4");
/// assert_eq!(
///     "xfs".parse::<FileSystem>().unwrap_err().to_string(),
///     "unknown file system 'xfs': expected ext4, vfat or swap"
/// );
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileSystem {
    /// ext4.
    Ext4(Ext4Options),
    /// FAT32, or FAT16 and FAT12 on small disks.
    Vfat(VfatOptions),
    /// Swap space of Linux.
    Swap(SwapOptions),
}

impl FileSystem {
    /// Returns the name, as `mkfs -t` takes it.
    pub fn name(&self) -> &'static str {
        match self {
            FileSystem::Ext4(_) => "ext4",
            FileSystem::Vfat(_) => "vfat",
            FileSystem::Swap(_) => "swap",
        }
    }

    /// Sets the label. Its rules depend on the file system: see [`Ext4Options::label`], [`VfatOptions::label`] and [`SwapOptions::label`].
    #[must_use]
    pub fn label(self, label: impl Into<String>) -> Self {
        match self {
            FileSystem::Ext4(options) => FileSystem::Ext4(options.label(label)),
            FileSystem::Vfat(options) => FileSystem::Vfat(options.label(label)),
            FileSystem::Swap(options) => FileSystem::Swap(options.label(label)),
        }
    }

    fn label_text(&self) -> &str {
        match self {
            FileSystem::Ext4(options) => &options.label,
            FileSystem::Vfat(options) => &options.label,
            FileSystem::Swap(options) => &options.label,
        }
    }

    fn write(&self, volume: &mut Volume, identifiers: &ImageIdentifiers) -> Result<()> {
        match self {
            FileSystem::Ext4(options) => ext4::write(options, volume, identifiers),
            FileSystem::Vfat(options) => vfat::write(options, volume, identifiers),
            FileSystem::Swap(options) => swap::write(options, volume, identifiers),
        }
    }
}

impl FromStr for FileSystem {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "ext4" => Ok(Ext4Options::new().into()),
            "vfat" => Ok(VfatOptions::new().into()),
            "swap" => Ok(SwapOptions::new().into()),
            _ => Err(Error::Usage(format!(
                "unknown file system '{}': expected ext4, vfat or swap",
                Name::from(name.as_bytes())
            ))),
        }
    }
}

macro_rules! impl_from {
    ($options:ident, $variant:ident) => {
        impl From<$options> for FileSystem {
            fn from(options: $options) -> Self {
                FileSystem::$variant(options)
            }
        }
    };
}

impl_from!(Ext4Options, Ext4);
impl_from!(VfatOptions, Vfat);
impl_from!(SwapOptions, Swap);

/// Configures a new disk with a file system.
///
/// The [module](self) has an example.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    system: FileSystem,
    partition: PartitionScheme,
    /// `None`: those of the environment.
    identifiers: Option<Identifiers>,
}

impl DiskOptions {
    /// The file system on the whole disk, without a partition table.
    pub fn new(system: impl Into<FileSystem>) -> Self {
        DiskOptions { system: system.into(), partition: PartitionScheme::None, identifiers: None }
    }

    /// Puts the file system into the only partition of a partition table.
    #[must_use]
    pub fn partition(self, partition: PartitionScheme) -> Self {
        DiskOptions { partition, ..self }
    }

    /// Sets the source of UUIDs, serial numbers and times. By default, [that of the environment](Identifiers::from_env). Reproducible ones depend
    /// on the file system, the label, the partition table and the size.
    #[must_use]
    pub fn identifiers(self, identifiers: Identifiers) -> Self {
        DiskOptions { identifiers: Some(identifiers), ..self }
    }

    /// Makes a disk of `size` bytes, at least 8 MiB. Takes memory and time for the metadata of the file system only.
    ///
    /// # Errors
    /// [`Error::Usage`] for a label that the file system cannot have, and for a size that the file system or the partition table cannot have.
    ///
    /// ```
    /// use diskimage::Identifiers;
    /// use diskimage::io::ReadAt;
    /// use diskimage::mkfs::{DiskOptions, SwapOptions};
    ///
    /// let disk = DiskOptions::new(SwapOptions::new()).identifiers(Identifiers::Reproducible { time: 0 }).build(1 << 30)?;
    /// let mut magic = [0; 10];
    /// disk.read_exact_at(&mut magic, 4086)?;
    /// assert_eq!(&magic, b"SWAPSPACE2");
    /// assert!(DiskOptions::new(SwapOptions::new()).build(4096).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn build(&self, size: u64) -> Result<NewDisk> {
        if size < SMALLEST {
            return Err(Error::Usage(format!(
                "a disk of {size} bytes is too small for a file system: expected {SMALLEST} or more"
            )));
        }
        let identifiers = self.identifiers.map_or_else(Identifiers::from_env, Ok)?;
        let identifiers = identifiers
            .for_image(self.system.name(), size, &Options::new())
            .with(self.system.label_text().as_bytes())
            .with(self.partition.name().as_bytes());
        let mut disk = NewDisk::new(size);
        let range = self.partition.volume(size)?;
        self.system.write(&mut Volume::new(&mut disk, range.clone()), &identifiers)?;
        self.partition.write(&mut disk, range, &self.system, &identifiers);
        Ok(disk)
    }
}

/// Returns a random UUID (RFC 9562, version 4), or what is as good as one, for the purpose `what`.
fn uuid(identifiers: &ImageIdentifiers, what: &str) -> [u8; 16] {
    let mut uuid = identifiers.bytes(what);
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// The bytes of a label with at most `most` of them, without control characters.
fn checked_label<'a>(label: &'a str, system: &str, most: usize) -> Result<&'a [u8]> {
    let wrong = |rule: &str| {
        Error::Usage(format!("invalid label '{}' for {system}: expected {rule}", Name::from(label.as_bytes())))
    };
    if label.len() > most {
        return Err(wrong(&format!("at most {most} bytes")));
    }
    match label.chars().any(char::is_control) {
        true => Err(wrong("no control characters")),
        false => Ok(label.as_bytes()),
    }
}

/// The refusal of a volume of `len` bytes.
fn too_large(system: &str, len: u64, most: u64) -> Error {
    Error::Usage(format!("a volume of {len} bytes is too large for {system}: expected {most} or less"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::ReadAt;

    fn systems() -> [FileSystem; 3] {
        ["ext4", "vfat", "swap"].map(|name| name.parse().unwrap())
    }

    fn bytes(disk: &NewDisk) -> Vec<u8> {
        let mut bytes = vec![0; disk.size().unwrap() as usize];
        disk.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn reproducible_disks_are_the_same_and_others_differ() {
        let fixed = Identifiers::Reproducible { time: 1_700_000_000 };
        for system in systems() {
            for partition in [PartitionScheme::None, PartitionScheme::Gpt, PartitionScheme::Mbr] {
                let options = DiskOptions::new(system.clone()).partition(partition).identifiers(fixed);
                let disk = bytes(&options.build(SMALLEST).unwrap());
                assert_eq!(disk, bytes(&options.build(SMALLEST).unwrap()));
                assert_ne!(disk, bytes(&options.identifiers(Identifiers::Random).build(SMALLEST).unwrap()));
            }
        }
    }

    #[test]
    fn labels_have_rules() {
        for (system, good, bad) in [
            ("ext4", "sixteen bytes 16", "seventeen bytes17"),
            ("vfat", "ELEVEN CHRS", "TWELVE CHARS"),
            ("vfat", "A-B", "a.b"),
            ("vfat", "B", " B"),
            ("vfat", "NAME", "N\u{c4}ME"),
            ("swap", "fifteen bytes15", "sixteen bytes 16"),
            ("ext4", "", "a\nb"),
        ] {
            let build =
                |label: &str| DiskOptions::new(system.parse::<FileSystem>().unwrap().label(label)).build(SMALLEST);
            assert!(build(good).is_ok(), "{system} {good}");
            let message = build(bad).unwrap_err().to_string();
            assert!(message.starts_with("invalid label '"), "{message}");
        }
    }

    #[test]
    fn sizes_have_limits() {
        for system in systems() {
            for (size, partition) in [
                (SMALLEST - 1, PartitionScheme::None),
                (1 << 50, PartitionScheme::Gpt),
                (1 << 50, PartitionScheme::None),
                (4 << 40, PartitionScheme::Mbr),
                (u64::MAX, PartitionScheme::Gpt),
            ] {
                let disk = DiskOptions::new(system.clone()).partition(partition).build(size);
                assert!(matches!(disk, Err(Error::Usage(_))), "{} {size}", system.name());
            }
        }
    }
}
