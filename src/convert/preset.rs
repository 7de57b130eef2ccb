//! What clouds and hypervisors require of an image: format, options and sizes.

use super::Converter;
use crate::error::{Error, Result};
use crate::format::Format;

/// A cloud or hypervisor that a new image is for.
///
/// ```
/// use std::sync::Arc;
///
/// use diskimage::io::MemFile;
/// use diskimage::{Converter, Format, OpenOptions, Preset};
///
/// let disk = Arc::new(MemFile::from(vec![7; (20 << 20) + 1]));
/// let disk = OpenOptions::new().format(Format::RAW).open_source(disk)?;
/// let converter = Preset::Azure.apply(Converter::new(Format::VHD))?;
/// let report = converter.convert_to(&disk, Arc::new(MemFile::new()))?;
/// assert_eq!((report.format, report.virtual_size), (Format::VHD, 21 << 20));
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Preset {
    /// Microsoft Azure.
    Azure,
    /// Amazon Web Services, VM Import/Export.
    Aws,
    /// Google Compute Engine. Needs the feature `packages`.
    Gcp,
    /// OpenStack with QEMU.
    Openstack,
    /// A datastore of VMware ESXi.
    Esxi,
    /// Hyper-V.
    HyperV,
    /// VirtualBox.
    VirtualBox,
    /// Proxmox VE.
    Proxmox,
    /// XCP-ng and XenServer.
    XcpNg,
}

/// The requirements of a platform.
#[derive(Clone, Copy)]
struct Rules {
    name: &'static str,
    /// For messages.
    title: &'static str,
    /// What is written, and its limits, in one line.
    description: &'static str,
    format: &'static str,
    options: &'static [(&'static str, &'static str)],
    /// Whether the image is one of Google Compute Engine.
    google: bool,
    /// Endings of file names, the usual one first.
    extensions: &'static [&'static str],
    /// The virtual size is rounded up to a multiple of it, in bytes.
    alignment: u64,
    /// Virtual sizes in bytes after rounding.
    min: u64,
    max: u64,
    /// The document that states the limits.
    document: &'static str,
}

/// For platforms whose documents state nothing else.
const COMMON: Rules = Rules {
    name: "",
    title: "",
    description: "",
    format: "raw",
    options: &[],
    google: false,
    extensions: &[],
    alignment: 512,
    min: 0,
    max: i64::MAX as u64 & !511,
    document: "",
};

/// The table of all platforms.
const fn rules(preset: Preset) -> Rules {
    match preset {
        Preset::Azure => Rules {
            name: "azure",
            title: "Azure",
            description: "VHD, fixed, padded to whole MiB; 20 MiB to 32767 GiB",
            format: "vpc",
            // "Add-AzVhd": a .vhd file of N MiB and 512 bytes. The driver has the rule as an option.
            options: &[("preset", "azure"), ("subformat", "fixed"), ("force_size", "on")],
            extensions: &["vhd"],
            alignment: 1 << 20,
            // "DiskCreationData.UploadSizeBytes": from 20972032 to 35183298347520 bytes with the footer; the largest disk is 32767 GiB.
            min: 20 << 20,
            max: 32767 << 30,
            document: "Azure Compute REST API, CreationData.uploadSizeBytes",
            ..COMMON
        },
        Preset::Aws => Rules {
            name: "aws",
            title: "AWS",
            description: "VMDK, streamOptimized; less than 16 TiB",
            format: "vmdk",
            // "System requirements", image formats: stream-optimized ESX VMDK. The smallest of those for an upload.
            options: &[("subformat", "streamOptimized")],
            extensions: &["vmdk"],
            // "Limitations for resources being imported": disk images must be less than 16 TiB.
            max: (16 << 40) - 512,
            document: "VM Import/Export User Guide, Limitations for resources being imported",
            ..COMMON
        },
        Preset::Gcp => Rules {
            name: "gcp",
            title: "Google Compute Engine",
            description: "raw disk in a tar.gz, padded to whole GiB",
            google: true,
            extensions: &["tar.gz"],
            // The writer of these images pads the disk.
            alignment: 1 << 30,
            ..COMMON
        },
        Preset::Openstack => Rules {
            name: "openstack",
            title: "OpenStack",
            description: "qcow2, version 3",
            format: "qcow2",
            // "Virtual Machine Image Guide", disk and container formats: qcow2, which all hypervisors of Nova with QEMU read.
            options: &[("compat", "1.1")],
            extensions: &["qcow2", "img"],
            ..COMMON
        },
        Preset::Esxi => Rules {
            name: "esxi",
            title: "ESXi",
            description: "VMDK in two files for a datastore of ESXi; at most 62 TiB",
            format: "vmdk",
            // Hosts open flat files of a datastore (createType "vmfs"); a hosted sparse file has to be imported by vmkfstools first.
            options: &[("subformat", "vmfs")],
            extensions: &["vmdk"],
            // "Large Capacity Virtual Disk Conditions and Limitations": the maximum is 62 TB, which are TiB there.
            max: 62 << 40,
            document: "vSphere Virtual Machine Administration, Large Capacity Virtual Disk Conditions and Limitations",
            ..COMMON
        },
        Preset::HyperV => Rules {
            name: "hyperv",
            title: "Hyper-V",
            description: "VHDX, dynamic; at most 64 TiB",
            format: "vhdx",
            options: &[("subformat", "dynamic")],
            extensions: &["vhdx"],
            max: 64 << 40,
            document: "[MS-VHDX] 1.5, Applicability Statement",
            ..COMMON
        },
        Preset::VirtualBox => Rules {
            name: "virtualbox",
            title: "VirtualBox",
            description: "VDI, dynamic",
            format: "vdi",
            options: &[("static", "off")],
            extensions: &["vdi"],
            ..COMMON
        },
        Preset::Proxmox => Rules {
            name: "proxmox",
            title: "Proxmox VE",
            description: "qcow2, version 3",
            format: "qcow2",
            // "Proxmox VE Administration Guide", Storage: directories hold raw, qcow2 and vmdk, of which qcow2 has snapshots.
            options: &[("compat", "1.1")],
            extensions: &["qcow2"],
            ..COMMON
        },
        Preset::XcpNg => Rules {
            name: "xcp-ng",
            title: "XCP-ng",
            description: "VHD, dynamic, with blocks of 2 MiB; at most 2040 GiB",
            format: "vpc",
            options: &[("subformat", "dynamic"), ("force_size", "on"), ("block_size", "2M")],
            extensions: &["vhd"],
            // "QCOW2 FAQ": disks of more than 2040 GiB are not VHD.
            max: 2040 << 30,
            document: "XCP-ng documentation, Storage, QCOW2 FAQ",
            ..COMMON
        },
    }
}

impl Preset {
    /// All presets.
    pub const ALL: [Preset; 9] = [
        Preset::Azure,
        Preset::Aws,
        Preset::Gcp,
        Preset::Openstack,
        Preset::Esxi,
        Preset::HyperV,
        Preset::VirtualBox,
        Preset::Proxmox,
        Preset::XcpNg,
    ];

    /// Finds a preset by its [name](Self::name).
    ///
    /// # Errors
    /// [`Error::Usage`] for any other name.
    pub fn by_name(name: &str) -> Result<Preset> {
        Preset::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(|| {
            let names = Preset::ALL.map(Preset::name);
            Error::Usage(format!("unknown platform {name:?}; supported: {}", names.join(", ")))
        })
    }

    /// Its name: "azure".
    pub fn name(self) -> &'static str {
        rules(self).name
    }

    /// What is written for it and which sizes it accepts, in one line.
    pub fn description(self) -> &'static str {
        rules(self).description
    }

    /// The format of its images.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if this build has not the format.
    pub fn format(self) -> Result<Format> {
        Format::by_name(rules(self).format)
    }

    /// Endings of the names of its images without the first dot, the usual one first: "vhd".
    pub fn extensions(self) -> &'static [&'static str] {
        rules(self).extensions
    }

    /// Whether the name of a file ends as that of an image for the platform does.
    ///
    /// ```
    /// use diskimage::Preset;
    ///
    /// assert!(Preset::Gcp.has_extension("image.TAR.GZ") && !Preset::Gcp.has_extension("image.gz"));
    /// ```
    pub fn has_extension(self, file_name: &str) -> bool {
        let name = file_name.to_ascii_lowercase();
        self.extensions().iter().any(|own| name.strip_suffix(own).is_some_and(|stem| stem.ends_with('.')))
    }

    /// Adds the options of the platform to those of `converter`, and its limits: a conversion of a disk that is too small or too large
    /// fails before anything is written.
    ///
    /// # Errors
    /// [`Error::Usage`] if `converter` has another format, and [`Error::Option`] if it has an option with another value.
    pub fn apply(self, converter: Converter) -> Result<Converter> {
        let (format, rules) = (self.format()?, rules(self));
        if converter.format != format {
            let problem =
                format!("the format {} is not that of images for {}: {format}", converter.format, rules.title);
            return Err(Error::Usage(problem));
        }
        let mut converter = Converter { preset: Some(self), ..converter };
        for (name, value) in rules.options {
            match converter.options.value(name) {
                Some(other) if other != *value => {
                    let problem = format!("{other:?} contradicts the preset {}, which needs {value}", self.name());
                    return Err(Error::Option { format: format.name(), name: (*name).into(), problem });
                }
                Some(_) => {}
                None => converter.options.set(*name, *value),
            }
        }
        #[cfg(feature = "packages")]
        return Ok(converter.google_image(rules.google));
        #[cfg(not(feature = "packages"))]
        match rules.google {
            true => Err(Error::unsupported(self.name(), "this build cannot write it; enable the feature `packages`")),
            false => Ok(converter),
        }
    }

    /// Refuses a disk of `size` bytes that the platform does not accept.
    pub(super) fn check_size(self, size: u64) -> Result<()> {
        let Rules { title, alignment, min, max, document, .. } = rules(self);
        let padded = size.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        if (min..=max).contains(&padded) {
            return Ok(());
        }
        let problem = format!("a disk of {padded} bytes, expected {min} to {max} bytes for {title} ({document})");
        Err(Error::Usage(problem))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::convert::tests::{converted, open, raw};
    use crate::image::OpenOptions;
    use crate::io::{MemDirectory, MemFile};
    use crate::options::Options;
    use crate::testing::noise;

    fn converter(preset: Preset) -> Converter {
        preset.apply(Converter::new(preset.format().unwrap())).unwrap()
    }

    #[test]
    fn names_are_distinct_and_found() {
        for preset in Preset::ALL {
            assert_eq!(Preset::by_name(preset.name()).unwrap(), preset);
            assert!(!preset.description().is_empty() && !preset.extensions().is_empty());
            // Limits of their own have a document.
            let Rules { min, max, document, .. } = rules(preset);
            assert_eq!((min, max) == (COMMON.min, COMMON.max), document.is_empty(), "{preset:?}");
        }
        let error = Preset::by_name("ec2").unwrap_err().to_string();
        assert!(error.contains("unknown platform \"ec2\"; supported: azure, aws, gcp"), "{error}");
    }

    #[test]
    fn images_have_the_properties_of_the_platform() {
        let guest = noise((20 << 20) + 512, 1);
        let disk = raw(&guest);
        // Some formats may not be part of this build.
        let is_there = |preset: &Preset| *preset != Preset::Gcp || cfg!(feature = "packages");
        for preset in Preset::ALL.into_iter().filter(is_there) {
            let directory = MemDirectory::new();
            let report = converter(preset).convert_into(&disk, &directory, "disk.vmdk").unwrap();
            let (alignment, file) = (rules(preset).alignment, directory.open("disk.vmdk").unwrap());
            assert_eq!(report.virtual_size, (guest.len() as u64).next_multiple_of(alignment), "{preset:?}");
            if preset == Preset::Gcp {
                let mut magic = [0; 2];
                file.read_exact_at(&mut magic, 0).unwrap();
                assert_eq!(magic, [0x1f, 0x8b]);
                continue;
            }
            let info = OpenOptions::new().inspect_source(file.clone()).unwrap().info;
            let property = |name| info.property(name).map(|value| format!("{value:?}")).unwrap_or_default();
            let expected: &[(&str, &str)] = match preset {
                Preset::Azure => &[("subformat", "fixed")],
                Preset::Aws => &[("create-type", "streamOptimized")],
                Preset::Esxi => &[("create-type", "vmfs")],
                Preset::Openstack | Preset::Proxmox => &[("compat", "1.1")],
                Preset::XcpNg | Preset::HyperV => &[("subformat", "dynamic")],
                _ => &[],
            };
            for (name, value) in expected {
                assert!(property(name).contains(value), "{preset:?}: {name}: {}", property(name));
            }
            let block_size = [(Preset::XcpNg, 2 << 20), (Preset::VirtualBox, 1 << 20)];
            for (_, size) in block_size.iter().filter(|(with, _)| *with == preset) {
                assert_eq!(info.block_size, Some(*size), "{preset:?}");
            }
        }
    }

    #[test]
    fn sizes_beyond_the_limits_are_refused_with_the_document() {
        for preset in Preset::ALL {
            let Rules { min, max, document, alignment, .. } = rules(preset);
            for (size, accepted) in [
                (min, true),
                (min.saturating_sub(alignment), min == 0),
                (min.max(alignment) - alignment + 1, true),
                (max - max % alignment, true),
                (max + 1, false),
                (u64::MAX, false),
            ] {
                let result = preset.check_size(size);
                assert_eq!(result.is_ok(), accepted, "{preset:?}, {size}: {result:?}");
                assert!(result.is_ok() || result.unwrap_err().to_string().contains(document));
            }
        }
        // Before anything is written.
        let file = Arc::new(MemFile::from(vec![1, 2, 3]));
        let error = converter(Preset::Azure).convert_to(&raw(&[7; 1000]), file.clone()).unwrap_err();
        let expected = "a disk of 1048576 bytes, expected 20971520 to 35183298347008 bytes for Azure";
        assert!(error.to_string().contains(expected), "{error}");
        let error = converter(Preset::XcpNg).create_to((2040 << 30) + 1, file).unwrap_err();
        assert!(error.to_string().contains("QCOW2 FAQ"), "{error}");
    }

    #[test]
    fn options_that_contradict_are_refused_and_others_kept() {
        let with = |preset: Preset, list: &str| {
            let mut options = Options::new();
            options.add_list(list);
            preset.apply(Converter::new(preset.format().unwrap()).options(options))
        };
        let error = with(Preset::Aws, "subformat=monolithicSparse").unwrap_err().to_string();
        assert!(error.contains("contradicts the preset aws, which needs streamOptimized"), "{error}");
        assert!(with(Preset::Azure, "force_size=off").is_err());
        assert!(matches!(Preset::Azure.apply(Converter::new(Format::QCOW2)), Err(Error::Usage(_))));
        let converter = with(Preset::Openstack, "compat=1.1,cluster_size=128k").unwrap();
        let image = open(converted(&converter, &raw(&[7; 1000])), "qcow2");
        assert_eq!(image.info().block_size, Some(128 << 10));
    }
}
