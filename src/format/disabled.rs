//! Names and signatures of the formats whose driver is not compiled in.
//!
//! An image of such a format is not taken for a raw disk, and both the image and the name of the format are refused with the
//! feature to enable.

use super::Probe;
use crate::error::Error;

struct Optional {
    name: &'static str,
    feature: &'static str,
    enabled: bool,
    matches: fn(&Probe<'_>) -> bool,
}

static OPTIONAL: &[Optional] = &[
    Optional {
        name: "qcow2",
        feature: "qcow2",
        enabled: cfg!(feature = "qcow2"),
        matches: |p| p.head.starts_with(b"QFI\xfb") && p.head.get(4..8).is_some_and(|version| version != [0, 0, 0, 1]),
    },
    Optional { name: "vmdk", feature: "vmdk", enabled: cfg!(feature = "vmdk"), matches: is_vmdk },
    Optional {
        name: "vpc",
        feature: "vhd",
        enabled: cfg!(feature = "vhd"),
        // The last 512 bytes, or 511 of old writers.
        matches: |p| [p.head, p.tail, p.tail.get(1..).unwrap_or_default()].iter().any(|b| b.starts_with(b"conectix")),
    },
    Optional {
        name: "vhdx",
        feature: "vhdx",
        enabled: cfg!(feature = "vhdx"),
        matches: |p| p.head.starts_with(b"vhdxfile"),
    },
    Optional {
        name: "vdi",
        feature: "vdi",
        enabled: cfg!(feature = "vdi"),
        matches: |p| p.head.get(64..).is_some_and(|rest| rest.starts_with(&0xbeda_107f_u32.to_le_bytes())),
    },
];

/// A sparse extent, or a descriptor: its first line that is not a comment has the key `version`.
fn is_vmdk(probe: &Probe<'_>) -> bool {
    const MAGIC: [&[u8]; 3] = [b"KDMV", b"COWD", &0xcafe_babe_u64.to_le_bytes()];
    let mut lines = probe.head.split(|byte| matches!(byte, b'\n' | b'\r')).map(<[u8]>::trim_ascii);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with(b"#")).unwrap_or_default();
    let (key, rest) = first.split_at_checked(b"version".len()).unwrap_or_default();
    MAGIC.iter().any(|magic| probe.head.starts_with(magic))
        || (key.eq_ignore_ascii_case(b"version") && rest.trim_ascii_start().starts_with(b"="))
}

/// The names of the formats without a driver whose signature the file has.
pub(super) fn matching<'a>(probe: &Probe<'a>) -> impl Iterator<Item = &'static str> + use<'a> {
    let probe = *probe;
    OPTIONAL.iter().filter(move |format| !format.enabled && (format.matches)(&probe)).map(|format| format.name)
}

/// The error for the format called `name`, if its feature is off.
pub(super) fn error(name: &str) -> Option<Error> {
    let is_called = |format: &&Optional| format.name == name || format.feature == name;
    let Optional { name, feature, .. } = OPTIONAL.iter().filter(|format| !format.enabled).find(is_called)?;
    Some(Error::unsupported(name, format!("this build has no driver for it; enable the feature `{feature}`")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{BUILTIN, Format};

    #[test]
    fn names_and_signatures_agree_with_the_driver() {
        let sesparse = 0xcafe_babe_u64.to_le_bytes();
        let vdi = [&[0; 64][..], &0xbeda_107f_u32.to_le_bytes()].concat();
        let heads: [&[u8]; 14] = [
            b"",
            b"QFI\xfb\0\0\0\x01",
            b"QFI\xfb\0\0\0\x03",
            b"QFI\xfb",
            b"KDMV",
            b"COWD",
            &sesparse,
            b"# Disk DescriptorFile\nversion=1\n",
            b"\r\n# text\r\n  Version = 3\r\n",
            b"# text\nversions=1\n",
            b"text\nversion=1\n",
            b"conectix",
            b"vhdxfile",
            &vdi,
        ];
        for Optional { name, feature, enabled, matches } in OPTIONAL {
            let format = Format::by_name(name).unwrap();
            assert_eq!(Format::by_name(feature).unwrap(), format);
            assert!(enabled);
            for head in heads {
                for tail in [&b""[..], b"conectix", b"\0conectix"] {
                    let probe = Probe { head, tail, len: 1 << 20 };
                    assert_eq!(matches(&probe), (format.0.probe)(&probe), "{name}: {head:?} {tail:?}");
                }
            }
        }
        let known = |format: &Format| OPTIONAL.iter().any(|optional| optional.name == format.name());
        assert!(BUILTIN.iter().all(|format| *format == Format::RAW || known(format)));
    }
}
