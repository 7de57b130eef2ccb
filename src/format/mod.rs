//! The registry: the formats of this crate, and those that a caller adds.
//!
//! A new format is a folder here and two lines in this file. Nothing else matches on formats: tests, fuzz targets, benches and
//! the program iterate over [`Format::all`]. Each format has a feature of the same name, except raw, which is in every build, and luks, whose feature is `crypto`.

#[cfg(feature = "bochs")]
pub mod bochs;
#[cfg(feature = "cloop")]
pub mod cloop;
#[cfg(feature = "dmg")]
pub mod dmg;
#[cfg(feature = "crypto")]
pub mod luks;
#[cfg(feature = "parallels")]
pub mod parallels;
#[cfg(feature = "qcow")]
pub mod qcow;
#[cfg(feature = "qcow2")]
pub mod qcow2;
#[cfg(feature = "qed")]
pub mod qed;
pub mod raw;
pub(crate) mod shared;
#[cfg(feature = "vdi")]
pub mod vdi;
#[cfg(feature = "vhd")]
pub mod vhd;
#[cfg(feature = "vhdx")]
pub mod vhdx;
#[cfg(feature = "vmdk")]
pub mod vmdk;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::io::Read;
use std::str::FromStr;
use std::sync::Arc;

use crate::driver::{CheckReport, CreateContext, FileSize, FormatDriver, OpenContext, Probe, SparseRead, SparseWrite};
use crate::driver::{Repair, RepairReport, SparseUpdate, UpdateContext};
use crate::error::{Error, Result};
use crate::info::ImageInfo;
use crate::io::{ReadAt, Storage};
use crate::options::{OptionSpec, wrong};
use shared::signature::Signature;

/// The formats of this crate, in listing order. The probe of `raw` never matches: a file without a signature is raw.
static BUILTIN: &[Format] = &[
    #[cfg(feature = "qcow2")]
    Format::QCOW2,
    #[cfg(feature = "vmdk")]
    Format::VMDK,
    #[cfg(feature = "vhd")]
    Format::VHD,
    #[cfg(feature = "vhdx")]
    Format::VHDX,
    #[cfg(feature = "vdi")]
    Format::VDI,
    #[cfg(feature = "crypto")]
    Format::LUKS,
    #[cfg(feature = "qcow")]
    Format::QCOW,
    #[cfg(feature = "qed")]
    Format::QED,
    #[cfg(feature = "parallels")]
    Format::PARALLELS,
    #[cfg(feature = "bochs")]
    Format::BOCHS,
    #[cfg(feature = "cloop")]
    Format::CLOOP,
    #[cfg(feature = "dmg")]
    Format::DMG,
    Format::RAW,
];

/// A disk image format.
///
/// ```
/// use diskimage::Format;
///
/// assert_eq!(Format::by_name("vhd")?, Format::VHD);
/// assert_eq!("qcow2".parse::<Format>()?.extensions(), ["qcow2"]);
/// for format in Format::all() {
///     println!("{format}: {}", format.description());
/// }
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct Format(&'static FormatDriver);

/// A set of formats, which [`OpenOptions`](crate::OpenOptions) probes and looks up by name.
///
/// ```
/// use diskimage::{Format, Formats};
///
/// // A service that accepts two formats. The content of a VMDK is refused, and not taken for a raw disk.
/// let accepted: Formats = [Format::QCOW2, Format::RAW].into_iter().collect();
/// assert!(accepted.by_name("vmdk").is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Formats(Vec<Format>);

impl Formats {
    /// The formats of this crate.
    pub fn builtin() -> Self {
        Formats(BUILTIN.to_vec())
    }

    /// Adds a format, or replaces the one of the same name.
    #[must_use]
    pub fn with(mut self, format: Format) -> Self {
        match self.0.iter_mut().find(|other| **other == format) {
            Some(other) => *other = format,
            None => self.0.push(format),
        }
        self
    }

    /// Iterates over the formats.
    pub fn iter(&self) -> impl Iterator<Item = Format> {
        self.0.iter().copied()
    }

    /// Finds a format by its name or one of its aliases.
    ///
    /// # Errors
    /// [`Error::UnknownFormat`]; [`Error::Unsupported`] if the feature of the format is off.
    pub fn by_name(&self, name: &str) -> Result<Format> {
        let unknown = || match Signature::of_image(name).filter(|signature| signature.is_left_out()) {
            Some(signature) => signature.unreadable(),
            None => Error::UnknownFormat(name.to_owned()),
        };
        self.iter().find(|format| format.is_called(name)).ok_or_else(unknown)
    }

    /// Finds the format for which `extension` (without the dot, in any case) is typical.
    pub fn by_extension(&self, extension: &str) -> Option<Format> {
        self.iter().find(|format| format.extensions().iter().any(|own| own.eq_ignore_ascii_case(extension)))
    }

    /// Detects the format of a file. A file without any known signature is raw.
    ///
    /// # Errors
    /// [`Error::Ambiguous`] if several formats match, and [`Error::Unreadable`] if only a format matches that is not in
    /// this set, or for a compressed file or an archive: such a file is not taken for a raw disk. Also if
    /// nothing matches and raw is not in the set. [`Error::Unsupported`] names the feature of a format that was left out of this
    /// build.
    pub fn probe(&self, probe: &Probe<'_>) -> Result<Format> {
        let own: Vec<_> = self.iter().filter(|format| format.matches(probe)).collect();
        // A driver replaces a signature of the same name.
        let is_foreign = |other: &&Signature| !self.iter().any(|format| format.name() == other.name);
        let (images, others): (Vec<_>, Vec<_>) =
            Signature::matching(probe).filter(is_foreign).partition(|signature| signature.is_image());
        match (own.as_slice(), images.as_slice(), others.first()) {
            ([one], [], _) => Ok(*one),
            ([], [one], _) | ([], [], Some(one)) => Err(one.unreadable()),
            ([], [], None) if self.0.contains(&Format::RAW) => Ok(Format::RAW),
            ([], [], None) => {
                let reason = "not an image of an accepted format";
                Err(Error::Unreadable { format: Format::RAW.name(), reason })
            }
            _ => Err(Error::Ambiguous(
                own.iter().map(Format::name).chain(images.iter().map(|signature| signature.name)).collect(),
            )),
        }
    }
}

impl Default for Formats {
    fn default() -> Self {
        Formats::builtin()
    }
}

impl FromIterator<Format> for Formats {
    fn from_iter<T: IntoIterator<Item = Format>>(formats: T) -> Self {
        formats.into_iter().fold(Formats(Vec::new()), Formats::with)
    }
}

impl Format {
    /// The guest bytes, without metadata.
    pub const RAW: Format = Format(&raw::DRIVER);
    /// The format of QEMU.
    #[cfg(feature = "qcow2")]
    pub const QCOW2: Format = Format(&qcow2::DRIVER);
    /// The formats of VMware.
    #[cfg(feature = "vmdk")]
    pub const VMDK: Format = Format(&vmdk::DRIVER);
    /// VHD, which qemu-img calls `vpc`.
    #[cfg(feature = "vhd")]
    pub const VHD: Format = Format(&vhd::DRIVER);
    /// The format of Hyper-V.
    #[cfg(feature = "vhdx")]
    pub const VHDX: Format = Format(&vhdx::DRIVER);
    /// The format of VirtualBox.
    #[cfg(feature = "vdi")]
    pub const VDI: Format = Format(&vdi::DRIVER);
    /// The first format of QEMU, version 1 of qcow.
    #[cfg(feature = "qcow")]
    pub const QCOW: Format = Format(&qcow::DRIVER);
    /// A former format of QEMU.
    #[cfg(feature = "qed")]
    pub const QED: Format = Format(&qed::DRIVER);
    /// The format of Parallels.
    #[cfg(feature = "parallels")]
    pub const PARALLELS: Format = Format(&parallels::DRIVER);
    /// Growing images of Bochs.
    #[cfg(feature = "bochs")]
    pub const BOCHS: Format = Format(&bochs::DRIVER);
    /// Compressed disks of Knoppix.
    #[cfg(feature = "cloop")]
    pub const CLOOP: Format = Format(&cloop::DRIVER);
    /// Disk images of macOS.
    #[cfg(feature = "dmg")]
    pub const DMG: Format = Format(&dmg::DRIVER);

    /// Encrypted volumes of Linux and QEMU.
    #[cfg(feature = "crypto")]
    pub const LUKS: Format = Format(&luks::DRIVER);

    /// The format of a driver, which may be another crate's.
    pub const fn from_driver(driver: &'static FormatDriver) -> Self {
        Format(driver)
    }

    /// Iterates over the formats of this crate.
    pub fn all() -> impl Iterator<Item = Format> {
        BUILTIN.iter().copied()
    }

    /// Finds a format of this crate by its name or one of its aliases.
    ///
    /// # Errors
    /// [`Error::UnknownFormat`]
    pub fn by_name(name: &str) -> Result<Format> {
        Formats::builtin().by_name(name)
    }

    /// Finds the format of this crate for which `extension` (without the dot, in any case) is typical.
    pub fn by_extension(extension: &str) -> Option<Format> {
        Formats::builtin().by_extension(extension)
    }

    /// The name that qemu-img uses.
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// Other names under which [`Format::by_name`] finds it.
    pub fn aliases(&self) -> &'static [&'static str] {
        self.0.aliases
    }

    /// Typical file name extensions, without the dot.
    pub fn extensions(&self) -> &'static [&'static str] {
        self.0.extensions
    }

    /// A description of one line.
    pub fn description(&self) -> &'static str {
        self.0.description
    }

    /// The options for new images.
    pub fn options(&self) -> &'static [OptionSpec] {
        self.0.options
    }

    /// The options for reading an image: [`OpenOptions::options`](crate::OpenOptions::options).
    pub fn read_options(&self) -> &'static [OptionSpec] {
        self.0.read_options
    }

    /// Whether images of this format can be written.
    pub fn can_create(&self) -> bool {
        self.0.create.is_some()
    }

    /// Whether images of this format, or some of them, can be read from a pipe in order, without a copy of the whole image.
    pub fn can_stream(&self) -> bool {
        self.0.open_stream.is_some()
    }

    /// Whether images of this format can be checked.
    pub fn can_check(&self) -> bool {
        self.0.check.is_some()
    }

    /// Whether a stream with this start can be read in order.
    pub(crate) fn streams(&self, probe: &Probe<'_>) -> bool {
        self.0.open_stream.is_some_and(|(streams, _)| streams(probe))
    }

    /// Whether the header can be in a file of its own: [`OpenOptions::detached_header`](crate::OpenOptions::detached_header).
    pub fn has_detached_headers(&self) -> bool {
        self.0.detached_headers
    }

    /// Whether a file has its signature.
    pub(crate) fn matches(&self, probe: &Probe<'_>) -> bool {
        (self.0.probe)(probe)
    }

    /// Whether `name` is its name or an alias of it.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.name() == name || self.aliases().contains(&name)
    }

    pub(crate) fn open(&self, source: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Box<dyn SparseRead>> {
        cx.options.check(self.name(), self.read_options())?;
        (self.0.open)(source, cx)
    }

    pub(crate) fn open_stream(
        &self,
        stream: Box<dyn Read + Send>,
        cx: &OpenContext<'_>,
    ) -> Result<(Box<dyn SparseRead>, Arc<dyn ReadAt>)> {
        let (_, open) = self.0.open_stream.ok_or_else(|| Error::unsupported(self.name(), "reading from a pipe"))?;
        open(stream, cx)
    }

    pub(crate) fn create(&self, cx: &CreateContext<'_>) -> Result<Box<dyn SparseWrite>> {
        let create = self.0.create.ok_or_else(|| Error::unsupported(self.name(), "writing"))?;
        cx.options.check(self.name(), self.options())?;
        self.check_backing_options(cx)?;
        create(cx)
    }

    /// Whether guest data can be written into an existing image as it is.
    pub(crate) fn opens_targets(&self) -> bool {
        self.0.open_target.is_some()
    }

    /// Measures a new image; `None` if the driver has no function for it.
    pub(crate) fn measure(&self, cx: &CreateContext<'_>, source: Option<&ImageInfo>) -> Result<Option<FileSize>> {
        let Some(measure) = self.0.measure else { return Ok(None) };
        cx.options.check(self.name(), self.options())?;
        self.check_backing_options(cx)?;
        measure(cx, source).map(Some)
    }

    pub(crate) fn open_target(&self, file: Arc<dyn ReadAt>, cx: &CreateContext<'_>) -> Result<Box<dyn SparseWrite>> {
        let open =
            self.0.open_target.ok_or_else(|| Error::unsupported(self.name(), "writing into an existing image"))?;
        // The options are those of a new image.
        cx.options.check(self.name(), &[])?;
        open(file, cx)
    }

    /// Whether images of this format, or some of them, can be changed in place, by `Disk`.
    pub fn can_update(&self) -> bool {
        self.0.open_update.is_some()
    }

    pub(crate) fn open_update(
        &self,
        storage: Arc<dyn Storage>,
        cx: &UpdateContext<'_>,
    ) -> Result<Box<dyn SparseUpdate>> {
        let open = self.0.open_update.ok_or_else(|| Error::unsupported(self.name(), "writing to an image in place"))?;
        cx.open.options.check(self.name(), self.read_options())?;
        cx.open.refuse_snapshots(self.name())?;
        open(storage, cx)
    }

    /// Whether images of this format can be repaired, by `OpenOptions::repair`.
    pub fn can_repair(&self) -> bool {
        self.0.repair.is_some()
    }

    pub(crate) fn repair(
        &self,
        storage: Arc<dyn Storage>,
        cx: &UpdateContext<'_>,
        what: Repair,
    ) -> Result<RepairReport> {
        let repair = self.0.repair.ok_or_else(|| Error::unsupported(self.name(), "repairs"))?;
        let mut report = repair(storage, cx, what)?;
        (report.before.format, report.after.format) = (self.name(), self.name());
        Ok(report)
    }

    pub(crate) fn check(&self, source: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<CheckReport> {
        let check = self.0.check.ok_or_else(|| Error::unsupported(self.name(), "checks"))?;
        cx.options.check(self.name(), self.read_options())?;
        check(source, cx).map(|report| CheckReport { format: self.name(), ..report })
    }

    /// Checks that the options `backing_file` and `backing_fmt`, where given, describe the backing image of the overlay.
    fn check_backing_options(&self, cx: &CreateContext<'_>) -> Result<()> {
        let Some(backing) = &cx.backing else { return Ok(()) };
        let value = |option: &str| cx.options.value(option);
        if let Some(other) = value("backing_file").filter(|other| other.as_bytes() != backing.name.as_bytes()) {
            let problem = format!("'{other}' is not the image given, '{}'", backing.name);
            return Err(wrong(self.name(), "backing_file", problem));
        }
        let format = backing.info.format;
        let is_alias = |other: &str| Format::by_name(other).is_ok_and(|other| other.name() == format);
        match value("backing_fmt").filter(|other| *other != format && !is_alias(other)) {
            Some(other) => {
                let problem = format!("'{other}' is not the format of the image given, '{format}'");
                Err(wrong(self.name(), "backing_fmt", problem))
            }
            None => Ok(()),
        }
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Format::by_name(name)
    }
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Format {}

impl Hash for Format {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

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
    use crate::driver::NewBacking;
    use crate::info::ImageInfo;
    use crate::io::MemFile;
    use crate::name::Name;
    use crate::options::Options;

    /// The signature of a format without a driver.
    const EWF: &[u8] = b"EVF\x09\x0d\x0a\xff\0";

    fn probe(head: &[u8], tail: &[u8]) -> Result<Format> {
        Formats::builtin().probe(&Probe { head, tail, len: 1 << 20 })
    }

    #[test]
    fn formats_are_found_by_name_and_by_extension() {
        for format in Format::all() {
            assert_eq!(Format::by_name(format.name()).unwrap(), format);
            assert_eq!(format.name().parse::<Format>().unwrap(), format);
            for extension in format.extensions() {
                assert_eq!(Format::by_extension(extension), Some(format));
            }
        }
        assert_eq!(Format::by_name("img").unwrap(), Format::RAW);
        for name in ["", "QCOW2", "qcow1", "raw "] {
            assert!(matches!(Format::by_name(name), Err(Error::UnknownFormat(wrong)) if wrong == name));
        }
        assert_eq!(Format::by_extension("QCOW2"), Some(Format::QCOW2));
        assert_eq!(Format::by_extension("Img"), Some(Format::RAW));
        assert_eq!((Format::by_extension(""), Format::by_extension(".raw")), (None, None));
    }

    #[test]
    fn content_determines_the_format_unless_it_matches_two() {
        assert_eq!(probe(b"", b"").unwrap(), Format::RAW);
        assert_eq!(probe(b"QFI\xfb\0\0\0", b"").unwrap(), Format::RAW);
        for version in [0, 2, 3, 4] {
            assert_eq!(probe(&[b'Q', b'F', b'I', 0xfb, 0, 0, 0, version], b"").unwrap(), Format::QCOW2);
        }
        assert!(matches!(probe(EWF, b""), Err(Error::Unreadable { format: "ewf", .. })));
        assert!(matches!(probe(b"sprs\0\0\0\x03", b""), Err(Error::Unreadable { format: "sparseimage", .. })));
        for (head, names) in
            [(&b"QFI\xfb\0\0\0\x03"[..], ["qcow2", "vpc"]), (b"vhdxfile", ["vpc", "vhdx"]), (EWF, ["vpc", "ewf"])]
        {
            let Err(Error::Ambiguous(mut found)) = probe(head, b"conectix") else { panic!("{names:?}") };
            found.sort_by_key(|name| !names[0].starts_with(*name));
            assert_eq!(found, names);
        }
    }

    #[test]
    fn the_guest_data_of_an_image_can_start_as_an_archive() {
        for head in [&b"\x1f\x8b\x08"[..], b"LUKS\xba\xbe\0\x02"] {
            assert_eq!(probe(head, b"conectix").unwrap(), Format::VHD);
            assert_ne!(probe(head, b"").ok(), Some(Format::RAW));
        }
        assert!(matches!(probe(b"\x1f\x8b\x08", b""), Err(Error::Unreadable { .. })));
    }

    #[test]
    fn a_format_outside_the_set_is_not_taken_for_raw() {
        let formats: Formats = [Format::QCOW2, Format::RAW].into_iter().collect();
        let found = |head| formats.probe(&Probe { head, tail: b"", len: 4096 });
        assert_eq!(found(b"").unwrap(), Format::RAW);
        assert!(matches!(found(b"vhdxfile"), Err(Error::Unreadable { format: "vhdx", .. })));
        let one: Formats = [Format::QCOW2].into_iter().collect();
        let raw = one.probe(&Probe { head: b"", tail: b"", len: 0 });
        assert!(matches!(raw, Err(Error::Unreadable { format: "raw", .. })));
    }

    #[test]
    fn a_driver_takes_the_place_of_the_signature_of_its_name() {
        static DRIVER: FormatDriver =
            FormatDriver::new("ewf", |probe| probe.head.starts_with(EWF), |_, _| Err(Error::Cancelled));
        let formats = Formats::builtin().with(Format::from_driver(&DRIVER));
        let found = |tail| formats.probe(&Probe { head: EWF, tail, len: 4096 });
        assert_eq!(found(b"").unwrap().name(), "ewf");
        assert!(matches!(found(b"conectix"), Err(Error::Ambiguous(_))));
    }

    #[test]
    fn an_unknown_option_is_refused_with_the_supported_ones() {
        let mut options = Options::new();
        options.set("cluster-size", "64k");
        let out = Arc::new(MemFile::new());
        for format in Format::all().filter(Format::can_create) {
            let cx = CreateContext::new(0, &options, out.clone());
            let Err(Error::Option { format: found, name, problem }) = format.create(&cx) else { panic!("{format}") };
            assert_eq!((found, &*name), (format.name(), "cluster-size"));
            for option in format.options() {
                assert!(problem.contains(option.name), "{problem}");
            }
        }
        assert_eq!(out.to_vec(), b"");
    }

    #[test]
    fn options_that_contradict_the_backing_image_are_refused() {
        let info = ImageInfo { format: "vpc", ..ImageInfo::default() };
        let out = Arc::new(MemFile::new());
        let takes_backing = |format: &Format| format.options().iter().any(|option| option.name == "backing_file");
        for format in Format::all().filter(takes_backing) {
            for (list, name) in [
                ("backing_file=other", "backing_file"),
                ("backing_file=base,backing_fmt=qcow2", "backing_fmt"),
                ("backing_fmt=none", "backing_fmt"),
            ] {
                let mut options = Options::new();
                options.add_list(list);
                let backing = Some(NewBacking::new(Name::from("base"), &info));
                let cx = CreateContext { backing, ..CreateContext::new(1 << 20, &options, out.clone()) };
                let error = format.create(&cx).err().unwrap();
                assert!(
                    matches!(&error, Error::Option { name: found, .. } if found == name),
                    "{format} {list}: {error}"
                );
            }
            let mut options = Options::new();
            options.add_list("backing_file=base,backing_fmt=vhd");
            let backing = Some(NewBacking::new(Name::from("base"), &info));
            let cx = CreateContext { backing, ..CreateContext::new(1 << 20, &options, out.clone()) };
            assert!(format.check_backing_options(&cx).is_ok(), "{format}: an alias is a name of the format");
        }
    }
}
