//! The names under which Glance, the image service of OpenStack, takes a file: the Glance user guide, "Disk and Container Formats".

use std::fmt;

use diskimage::{ContentKind, Format, Inspection, Package};
use serde::Serialize;

/// The container of a file that is nothing but the disk.
const BARE: &str = "bare";
/// The container of a compressed file; the service that uses the image has to know the method.
const COMPRESSED: &str = "compressed";
/// The container of a package, and what the library calls this kind of package.
const OVA: &str = "ova";

/// The properties of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Glance {
    disk_format: &'static str,
    container_format: &'static str,
}

impl Glance {
    /// The names for the file of an image; `None` if Glance has none, or if the disk is not all in this file.
    pub fn of_image(image: &Inspection) -> Option<Glance> {
        if image.info.backing.is_some() || !image.info.files.is_empty() {
            return None;
        }
        let is_compressed = !image.compression.is_empty();
        let disk_format = match image.content {
            // Both names have to be the same. A kernel and a ramdisk are used as they are, and often compressed.
            ContentKind::Kernel => return Some(Glance::amazon("aki")),
            ContentKind::Ramdisk => return Some(Glance::amazon("ari")),
            ContentKind::FileSystem if !is_compressed => return Some(Glance::amazon("ami")),
            ContentKind::OpticalDisc => "iso",
            _ => disk_format(image.format)?,
        };
        Some(Glance { disk_format, container_format: if is_compressed { COMPRESSED } else { BARE } })
    }

    /// The names for a package whose disks have these images; `None` if Glance has none.
    pub fn of_package<'a>(package: &Package, images: impl IntoIterator<Item = &'a Inspection>) -> Option<Glance> {
        if package.kind != OVA || !package.compression.is_empty() {
            return None;
        }
        let mut formats = images.into_iter().map(|image| disk_format(image.format));
        let first = formats.next()??;
        formats.all(|other| other == Some(first)).then_some(Glance { disk_format: first, container_format: OVA })
    }

    const fn amazon(name: &'static str) -> Glance {
        Glance { disk_format: name, container_format: name }
    }
}

impl fmt::Display for Glance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk_format {}, container_format {}", self.disk_format, self.container_format)
    }
}

/// The name of a format. Those that the documentation does not list have none: qcow, qed, luks, bochs, cloop.
fn disk_format(format: Format) -> Option<&'static str> {
    const NAMES: [(Format, &str); 7] = [
        (Format::RAW, "raw"),
        (Format::QCOW2, "qcow2"),
        (Format::VMDK, "vmdk"),
        (Format::VDI, "vdi"),
        (Format::VHD, "vhd"),
        (Format::VHDX, "vhdx"),
        // Disks of Virtuozzo have the header of Parallels.
        (Format::PARALLELS, "ploop"),
    ];
    NAMES.iter().find(|(own, _)| *own == format).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use diskimage::io::MemFile;
    use diskimage::{Converter, OpenOptions};

    use super::*;

    fn names(file: Vec<u8>) -> Option<(&'static str, &'static str)> {
        let image = OpenOptions::new().inspect_source(Arc::new(MemFile::from(file))).unwrap();
        Glance::of_image(&image).map(|glance| (glance.disk_format, glance.container_format))
    }

    /// A raw disk of 128 KiB with these bytes.
    fn raw(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut disk = vec![0; 128 << 10];
        disk[at..at + bytes.len()].copy_from_slice(bytes);
        disk
    }

    #[test]
    fn every_format_of_glance_has_its_name() {
        for format in Format::all().filter(Format::can_create) {
            let file = Arc::new(MemFile::new());
            if format != Format::LUKS {
                Converter::new(format).create_to(1 << 20, file.clone()).unwrap();
                let expected = match format.name() {
                    "vpc" => Some("vhd"),
                    "parallels" => Some("ploop"),
                    "qcow" | "qed" => None,
                    name => Some(name),
                };
                assert_eq!(names(file.to_vec()), expected.map(|name| (name, BARE)), "{format}");
            }
        }
        assert_eq!(disk_format(Format::LUKS), None);
    }

    #[test]
    fn raw_files_are_named_by_their_content() {
        for (file, name) in [
            (raw(510, b"\x55\xaa"), ("raw", BARE)),
            (raw(0, b"LUKS"), ("raw", BARE)),
            (raw(0x8001, b"CD001"), ("iso", BARE)),
            (raw(0x438, b"\x53\xef"), ("ami", "ami")),
            (raw(0x202, b"HdrS"), ("aki", "aki")),
            (raw(0, b"070701"), ("ari", "ari")),
        ] {
            assert_eq!(names(file), Some(name));
        }
    }

    #[test]
    fn a_package_has_the_format_of_all_its_disks() {
        let image = |format: Format| {
            let file = Arc::new(MemFile::new());
            Converter::new(format).create_to(1 << 20, file.clone()).unwrap();
            OpenOptions::new().inspect_source(file).unwrap()
        };
        let (vmdk, qcow2, qed) = (image(Format::VMDK), image(Format::QCOW2), image(Format::QED));
        let mut package = Package::default();
        assert_eq!(Glance::of_package(&package, [&vmdk]), None);
        package.kind = OVA;
        let names = |images: &[&Inspection]| {
            Glance::of_package(&package, images.iter().copied()).map(|glance| glance.to_string())
        };
        assert_eq!(names(&[&vmdk, &vmdk]).as_deref(), Some("disk_format vmdk, container_format ova"));
        for images in [&[][..], &[&qed], &[&vmdk, &qcow2], &[&vmdk, &qed]] {
            assert_eq!(names(images), None);
        }
    }
}
