//! Signatures of disk images and of files that hold one: compressed files, archives.
//!
//! A file without any of them is a raw disk. A guest can write each of them to its raw disk, to hide the disk or to make its host
//! open other files. The caller has to state the format then.

use crate::compressed::Compression;
use std::ops::Range;

use crate::driver::{Probe, ProbeFn};
use crate::error::Error;

/// qcow and qcow2; the version follows.
pub(crate) const QCOW: &[u8; 4] = b"QFI\xfb";
pub(crate) const QED: &[u8; 4] = b"QED\0";
/// Images of Parallels, with offsets in sectors and in clusters.
pub(crate) const PARALLELS: [&[u8; 16]; 2] = [b"WithoutFreeSpace", b"WithouFreSpacExt"];
pub(crate) const BOCHS: &[u8; 22] = b"Bochs Virtual HD Image";
/// Shell scripts that mount the file, of version 2 and 3.
pub(crate) const CLOOP: [&[u8; 22]; 2] = [b"#!/bin/sh\n#V2.0 Format", b"#!/bin/sh\n#V3.0 Format"];
/// The trailer of an image of macOS.
pub(crate) const DMG: &[u8; 4] = b"koly";
/// An encrypted image of macOS, version 2, at the start; version 1, at the end.
const DMG_ENCRYPTED: [&[u8; 8]; 2] = [b"encrcdsa", b"cdsaencr"];
/// A hosted sparse extent of VMDK.
pub(crate) const VMDK_HOSTED: &[u8; 4] = b"KDMV";
/// A copy-on-write extent of ESX.
pub(crate) const VMDK_COWD: &[u8; 4] = b"COWD";
/// A space-efficient sparse extent of ESXi, little-endian.
pub(crate) const VMDK_SESPARSE: u64 = 0xcafe_babe;
/// The footer of VHD, and its copy.
pub(crate) const VHD: &[u8; 8] = b"conectix";
/// A LUKS header; the version follows.
pub(crate) const LUKS: &[u8; 6] = b"LUKS\xba\xbe";
/// The second header of LUKS2, and its usual offset.
pub(crate) const LUKS2_SECOND: &[u8; 6] = b"SKUL\xba\xbe";
const LUKS2_SECOND_AT: usize = 16 << 10;
pub(crate) const VHDX: &[u8; 8] = b"vhdxfile";
/// At [`VDI_AT`], little-endian.
pub(crate) const VDI: u32 = 0xbeda_107f;
pub(crate) const VDI_AT: usize = 64;

/// A kind of file that is detected by its content.
pub(crate) struct Signature {
    /// Name of the format.
    pub name: &'static str,
    pub kind: Kind,
    matches: Matches,
}

/// What a file is, and so why it is not taken for a raw disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A disk image whose driver has this feature, and whether that is enabled.
    Driver(&'static str, bool),
    /// A disk image without a driver.
    Image,
    Compressed,
    Archive,
    Encrypted,
    Text,
}

enum Matches {
    /// The file starts with one of these.
    Start(&'static [&'static [u8]]),
    Probe(ProbeFn),
}

use Kind::{Archive, Compressed, Driver, Encrypted, Image, Text};

static SIGNATURES: &[Signature] = &[
    probe("qcow2", Driver("qcow2", cfg!(feature = "qcow2")), is_qcow2),
    probe("vmdk", Driver("vmdk", cfg!(feature = "vmdk")), is_vmdk),
    probe("vpc", Driver("vhd", cfg!(feature = "vhd")), is_vhd),
    probe("vhdx", Driver("vhdx", cfg!(feature = "vhdx")), is_vhdx),
    probe("vdi", Driver("vdi", cfg!(feature = "vdi")), is_vdi),
    probe("luks", Driver("crypto", cfg!(feature = "crypto")), is_luks),
    probe("qcow", Driver("qcow", cfg!(feature = "qcow")), is_qcow),
    probe("qed", Driver("qed", cfg!(feature = "qed")), is_qed),
    probe("parallels", Driver("parallels", cfg!(feature = "parallels")), is_parallels),
    probe("bochs", Driver("bochs", cfg!(feature = "bochs")), is_bochs),
    probe("cloop", Driver("cloop", cfg!(feature = "cloop")), is_cloop),
    probe("dmg", Driver("dmg", cfg!(feature = "dmg")), is_dmg),
    start("sparseimage", Image, &[b"sprs"]),
    start("ewf", Image, &[b"EVF\x09\x0d\x0a\xff\0"]),
    probe("gzip", Compressed, |probe| Compression::of(probe.head) == Some(Compression::Gzip)),
    probe("xz", Compressed, |probe| Compression::of(probe.head) == Some(Compression::Xz)),
    probe("bzip2", Compressed, |probe| Compression::of(probe.head) == Some(Compression::Bzip2)),
    probe("zstd", Compressed, |probe| Compression::of(probe.head) == Some(Compression::Zstd)),
    // The second one is that of Linux kernels.
    start("lz4", Compressed, &[b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18"]),
    probe("lzma", Compressed, is_lzma),
    start("lzip", Compressed, &[b"LZIP\x01"]),
    start("lzop", Compressed, &[b"\x89LZO\0\r\n\x1a\n"]),
    start("compress", Compressed, &[b"\x1f\x9d\x90"]),
    start("partclone", Compressed, &[b"partclone-image"]),
    start("android-sparse", Compressed, &[b"\x3a\xff\x26\xed\x01\0"]),
    probe("tar", Archive, is_tar),
    start("zip", Archive, &[b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"]),
    start("7z", Archive, &[b"7z\xbc\xaf\x27\x1c"]),
    start("rar", Archive, &[b"Rar!\x1a\x07"]),
    start("cpio", Archive, &[b"070701", b"070702", b"070707"]),
    probe("lha", Archive, |probe| {
        probe.head.get(2..).is_some_and(|rest| matches!(rest, [b'-', b'l', b'h', _, b'-', ..]))
    }),
    start("wim", Archive, &[b"MSWIM\0\0\0"]),
    probe("dmg", Encrypted, is_encrypted_dmg),
    probe("text", Text, |probe| is_markup(probe.head)),
];

const fn start(name: &'static str, kind: Kind, magics: &'static [&'static [u8]]) -> Signature {
    Signature { name, kind, matches: Matches::Start(magics) }
}

const fn probe(name: &'static str, kind: Kind, probe: ProbeFn) -> Signature {
    Signature { name, kind, matches: Matches::Probe(probe) }
}

impl Signature {
    /// The signatures that the file has.
    pub fn matching<'a>(probe: &'a Probe<'a>) -> impl Iterator<Item = &'static Signature> + use<'a> {
        SIGNATURES.iter().filter(|signature| signature.matches(probe))
    }

    /// The disk image format of this name, or whose driver has a feature of this name.
    pub fn of_image(name: &str) -> Option<&'static Signature> {
        SIGNATURES.iter().find(|signature| match signature.kind {
            Driver(feature, _) => signature.name == name || feature == name,
            Image => signature.name == name,
            Compressed | Archive | Encrypted | Text => false,
        })
    }

    /// The compressed file or archive for which the extension is typical.
    pub fn of_container(extension: &str) -> Option<&'static str> {
        const CONTAINERS: [(&str, &[&str]); 8] = [
            ("gzip", &["gz", "gzip", "tgz"]),
            ("xz", &["xz", "txz"]),
            ("bzip2", &["bz2", "bzip2", "tbz2"]),
            ("zstd", &["zst", "zstd", "tzst"]),
            ("tar", &["tar", "ova", "xva", "box"]),
            ("zip", &["zip"]),
            ("7z", &["7z"]),
            ("rar", &["rar"]),
        ];
        CONTAINERS.iter().find(|(_, own)| own.contains(&extension)).map(|(name, _)| *name)
    }

    fn matches(&self, probe: &Probe<'_>) -> bool {
        match self.matches {
            Matches::Start(magics) => magics.iter().any(|magic| probe.head.starts_with(magic)),
            Matches::Probe(matches) => matches(probe),
        }
    }

    /// Whether it is a disk image, rather than a file that holds one. The guest data of an image can start with anything,
    /// which does not make the format of the image ambiguous.
    pub fn is_image(&self) -> bool {
        matches!(self.kind, Driver(..) | Image)
    }

    /// Whether the format has a driver, which is not in this build.
    pub fn is_left_out(&self) -> bool {
        matches!(self.kind, Driver(_, false))
    }

    /// The error for such a file, or for the name of its format.
    pub fn unreadable(&self) -> Error {
        let reason = match self.kind {
            Driver(feature, false) => {
                let reason = format!("this build has no driver for it; enable the feature `{feature}`");
                return Error::unsupported(self.name, reason);
            }
            Driver(..) | Image => "this format is not supported",
            Compressed => "compressed file, not a disk; unpack it first",
            Archive => "archive, not a disk; unpack it first",
            Encrypted => "encrypted volume; decrypt it first",
            Text => "HTML or XML, not a disk",
        };
        Error::Unreadable { format: self.name, reason }
    }
}

/// Any version but 1. An unknown version is then refused by name when the image is opened.
pub(crate) fn is_qcow2(probe: &Probe<'_>) -> bool {
    probe.head.starts_with(QCOW) && probe.head.get(4..8).is_some_and(|version| version != [0, 0, 0, 1])
}

/// Version 1, which is another format.
pub(crate) fn is_qcow(probe: &Probe<'_>) -> bool {
    probe.head.starts_with(QCOW) && probe.head.get(4..8) == Some(&[0, 0, 0, 1])
}

pub(crate) fn is_qed(probe: &Probe<'_>) -> bool {
    probe.head.starts_with(QED)
}

pub(crate) fn is_parallels(probe: &Probe<'_>) -> bool {
    PARALLELS.iter().any(|magic| probe.head.starts_with(*magic))
}

pub(crate) fn is_bochs(probe: &Probe<'_>) -> bool {
    probe.head.starts_with(BOCHS)
}

/// Any version. Those that are not read are refused by name when the image is opened.
pub(crate) fn is_cloop(probe: &Probe<'_>) -> bool {
    CLOOP.iter().any(|script| probe.head.starts_with(*script))
}

pub(crate) fn is_dmg(probe: &Probe<'_>) -> bool {
    probe.tail.len() == Probe::TAIL && probe.tail.starts_with(DMG)
}

pub(crate) fn is_encrypted_dmg(probe: &Probe<'_>) -> bool {
    let [start, end] = DMG_ENCRYPTED;
    probe.head.starts_with(start) || probe.tail.ends_with(end)
}

/// A sparse extent, or a descriptor.
pub(crate) fn is_vmdk(probe: &Probe<'_>) -> bool {
    let magics: [&[u8]; 3] = [VMDK_HOSTED, VMDK_COWD, &VMDK_SESPARSE.to_le_bytes()];
    magics.iter().any(|magic| probe.head.starts_with(magic)) || is_vmdk_descriptor(probe.head)
}

/// A hosted sparse extent without a descriptor, which is then in another file.
pub(crate) fn is_vmdk_part(head: &[u8]) -> bool {
    const DESCRIPTOR_SIZE: Range<usize> = 36..44;
    head.starts_with(VMDK_HOSTED) && head.get(DESCRIPTOR_SIZE) == Some(&[0; 8])
}

/// A descriptor: `version=` is its first line after comments and blank lines, as VMware requires; or its first comment says so, by which VirtualBox knows it.
/// For QEMU, a comment can have any bytes, also NULs, although the descriptor ends at the first one.
pub(crate) fn is_vmdk_descriptor(head: &[u8]) -> bool {
    let text = without_mark(head);
    const COMMENT: &[u8] = b"# Disk DescriptorFile";
    if text.get(..COMMENT.len()).is_some_and(|start| start.eq_ignore_ascii_case(COMMENT)) {
        return true;
    }
    let mut lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with(b"#")).unwrap_or_default();
    let (key, rest) = first.split_at_checked(b"version".len()).unwrap_or_default();
    key.eq_ignore_ascii_case(b"version") && rest.trim_ascii_start().starts_with(b"=")
}

/// The footer, which a fixed disk has at the end only. An old one is the last 511 of the 512 bytes.
pub(crate) fn is_vhd(probe: &Probe<'_>) -> bool {
    let tail = |at: usize| probe.tail.get(at..).unwrap_or_default();
    [probe.head, tail(0), tail(1)].iter().any(|bytes| bytes.starts_with(VHD))
}

pub(crate) fn is_vhdx(probe: &Probe<'_>) -> bool {
    probe.head.starts_with(VHDX)
}

pub(crate) fn is_vdi(probe: &Probe<'_>) -> bool {
    probe.head.get(VDI_AT..).is_some_and(|rest| rest.starts_with(&VDI.to_le_bytes()))
}

/// LUKS of version 1 or 2. The guest of a fixed VHD can have such a volume as its whole disk.
pub(crate) fn is_luks(probe: &Probe<'_>) -> bool {
    let version = probe.head.strip_prefix(LUKS).and_then(|rest| rest.first_chunk());
    (matches!(version, Some([0, 1 | 2])) || is_damaged_luks2(probe.head)) && !is_vhd(probe)
}

/// The second header of LUKS2 after a first one of the usual length, which was overwritten with zeros or is of the same volume. After
/// anything else, it is what is left of an earlier volume.
fn is_damaged_luks2(head: &[u8]) -> bool {
    const UUID: Range<usize> = 168..208;
    let Some((first, second)) = head.split_at_checked(LUKS2_SECOND_AT) else { return false };
    let first = first.get(..4096).unwrap_or_default();
    let at = second.get(256..).and_then(<[u8]>::first_chunk).map(|at| u64::from_be_bytes(*at));
    second.starts_with(&[&LUKS2_SECOND[..], &[0, 2]].concat())
        && at == Some(LUKS2_SECOND_AT as u64)
        && (first.iter().all(|byte| *byte == 0) || first.get(UUID) == second.get(UUID))
}

/// There is no magic: the usual properties, a dictionary of 2^n or 3·2^n bytes, and a length that is unknown or below 256 TiB.
fn is_lzma(probe: &Probe<'_>) -> bool {
    let Some(([0x5d, dictionary @ ..], rest)) = probe.head.split_first_chunk::<5>() else { return false };
    let Some(len) = rest.first_chunk().map(|len| u64::from_le_bytes(*len)) else { return false };
    let dictionary = u32::from_le_bytes(*dictionary);
    dictionary >= 4096
        && (dictionary.is_power_of_two() || (dictionary / 3).is_power_of_two() && dictionary.is_multiple_of(3))
        && (len == u64::MAX || len < 1 << 48)
}

/// The magic of POSIX or GNU, or the checksum of the first header, which v7 has too. Where only one of them is right, the header is damaged,
/// and no disk either.
fn is_tar(probe: &Probe<'_>) -> bool {
    let Some(header) = probe.head.first_chunk::<512>() else { return false };
    header.get(TAR_MAGIC).is_some_and(|magic| TAR_MAGICS.contains(&magic)) || has_tar_checksum(header)
}

/// The field of a tar header with the magic and the version, and what it is in archives of POSIX and GNU.
const TAR_MAGIC: Range<usize> = 257..265;
const TAR_MAGICS: [&[u8]; 2] = [b"ustar\x0000", b"ustar  \0"];

fn has_tar_checksum(header: &[u8; 512]) -> bool {
    let digits = header.get(TAR_CHECKSUM).unwrap_or_default().trim_ascii_start();
    let len = digits.iter().position(|digit| !matches!(digit, b'0'..=b'7')).unwrap_or(digits.len());
    let Some(digits) = digits.get(..len).filter(|digits| !digits.is_empty()) else { return false };
    let stored = digits.iter().fold(0, |sum, digit| sum * 8 + u64::from(digit & 7));
    header.first() != Some(&0) && is_tar_checksum(header, stored)
}

/// The field of a tar header with the sum of its bytes, in which the field itself counts as blanks.
pub(crate) const TAR_CHECKSUM: Range<usize> = 148..156;

/// Whether it is the sum of a tar header. Old writers added signed bytes.
pub(crate) fn is_tar_checksum(header: &[u8; 512], stored: u64) -> bool {
    let signed: i64 = summed_bytes(header).map(|byte| i64::from(byte.cast_signed())).sum();
    stored == tar_checksum(header) || i64::try_from(stored) == Ok(signed)
}

/// The sum of a tar header.
pub(crate) fn tar_checksum(header: &[u8; 512]) -> u64 {
    summed_bytes(header).map(u64::from).sum()
}

fn summed_bytes(header: &[u8; 512]) -> impl Iterator<Item = u8> {
    header.iter().enumerate().map(|(at, byte)| if TAR_CHECKSUM.contains(&at) { b' ' } else { *byte })
}

/// HTML or XML: an error page in place of a download, or the description of a virtual machine. No boot sector is text.
fn is_markup(head: &[u8]) -> bool {
    is_text(head) && without_mark(head).trim_ascii_start().starts_with(b"<")
}

/// Whether all bytes are those of text.
fn is_text(head: &[u8]) -> bool {
    let printable = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace() || *byte >= 0x80;
    without_mark(head).iter().all(printable)
}

/// The bytes after the mark for UTF-8, if there is one.
fn without_mark(head: &[u8]) -> &[u8] {
    head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head)
}

/// What a file without a signature seems to be.
pub(crate) fn describe(probe: &Probe<'_>) -> &'static str {
    match probe.head {
        [] => "empty",
        head if head.iter().all(|byte| *byte == 0) && head.len() as u64 >= probe.len => "zeros",
        head if head.iter().all(|byte| *byte == 0) => "raw, with zeros at the start",
        head if is_text(head) => "text",
        _ => "raw",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(head: &[u8], tail: &[u8]) -> Vec<&'static str> {
        Signature::matching(&Probe::new(head, tail, 1 << 20)).map(|signature| signature.name).collect()
    }

    fn tar(magic: &[u8], checksum: &str) -> Vec<u8> {
        let mut header = vec![0; 512];
        header[..5].copy_from_slice(b"\xe4.ovf");
        header[257..][..magic.len()].copy_from_slice(magic);
        header[148..156].copy_from_slice(b"        ");
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        let field = checksum.replace("SIGNED", &format!("{:06o}", sum - 256)).replace("SUM", &format!("{sum:06o}"));
        header[148..][..field.len()].copy_from_slice(field.as_bytes());
        header
    }

    #[test]
    fn each_kind_of_file_has_its_name() {
        let sesparse = VMDK_SESPARSE.to_le_bytes();
        let vdi = [&[0; 64][..], &VDI.to_le_bytes()].concat();
        for (head, name) in [
            (&b"QFI\xfb\0\0\0\x01"[..], "qcow"),
            (b"QFI\xfb\0\0\0\x03", "qcow2"),
            (b"KDMV", "vmdk"),
            (b"COWD", "vmdk"),
            (&sesparse, "vmdk"),
            (b"\r\n# text\r\n  Version = 3\r\n", "vmdk"),
            (b"conectix", "vpc"),
            (b"vhdxfile", "vhdx"),
            (&vdi, "vdi"),
            (b"QED\0", "qed"),
            (b"WithouFreSpacExt", "parallels"),
            (b"Bochs Virtual HD Image", "bochs"),
            (b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "cloop"),
            (b"\x1f\x8b\x08\0", "gzip"),
            (b"\xfd7zXZ\0", "xz"),
            (b"BZh91AY&SY", "bzip2"),
            (b"BZh1\x17\x72\x45\x38\x50\x90", "bzip2"),
            (b"\x28\xb5\x2f\xfd", "zstd"),
            (b"\x50\x2a\x4d\x18\x04\0\0\0", "zstd"),
            (b"\x04\x22\x4d\x18", "lz4"),
            (b"\x02\x21\x4c\x18", "lz4"),
            (b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff", "lzma"),
            // The smallest dictionary.
            (b"\x5d\0\x10\0\0\0\0\0\0\0\0\0\0", "lzma"),
            (b"PK\x03\x04", "zip"),
            (b"7z\xbc\xaf\x27\x1c", "7z"),
            (b"\x24\x05-lh5-", "lha"),
            (b"070701", "cpio"),
            (b"LUKS\xba\xbe\0\x01aes", "luks"),
            (b"LUKS\xba\xbe\0\x02", "luks"),
            (b"encrcdsa", "dmg"),
            (b"\xef\xbb\xbf\r\n<!DOCTYPE html>", "text"),
            (b"<?xml version=\"1.0\"?>", "text"),
            (&tar(b"ustar\x0000", "SUM\0 "), "tar"),
            (&tar(b"ustar  \0", "  SUM\0"), "tar"),
            (&tar(b"", "SUM\0 "), "tar"),
            (&tar(b"", "SIGNED\0 "), "tar"),
            (&tar(b"ustar\x0000", "0000001\0"), "tar"),
        ] {
            assert_eq!(names(head, b""), [name], "{}", head.escape_ascii());
        }
        // QEMU takes these for a descriptor.
        for version in ["version=1\n", "version=2\r\n", "version=3\n"] {
            for before in
                [&b""[..], b"#\0\0\n", b"#\xff\x01\r\n", b"#\0\n   \n \r\n#\n", &[&b"#"[..], &[0; 499], b"\n"].concat()]
            {
                let head = [before, version.as_bytes(), &[0; 512]].concat();
                assert_eq!(names(&head, b""), ["vmdk"], "{} {version:?}", before.escape_ascii());
            }
        }
        let tail = |magic: &[u8]| [magic, &[0; 512]].concat()[..512].to_vec();
        assert_eq!(names(b"", &tail(b"koly")), ["dmg"]);
        assert_eq!(names(b"", b"\0\0cdsaencr"), ["dmg"]);
        assert_eq!(names(b"", &tail(b"conectix")), ["vpc"]);
        assert_eq!(names(b"", &tail(b"\0conectix")), ["vpc"]);
        // Other formats at the start of a fixed VHD can be its guest data, or the reverse.
        assert_eq!(names(b"#\0\nversion=1\n", &tail(b"conectix")), ["vmdk", "vpc"]);
    }

    #[test]
    fn raw_disks_have_no_signature() {
        let mut boot = vec![0; 512];
        boot[..3].copy_from_slice(b"\xeb\x63\x90");
        boot[510..].copy_from_slice(&[0x55, 0xaa]);
        let wrong_sum = tar(b"", "0000001\0");
        for head in [
            &[][..],
            &[0; 512],
            &boot,
            &wrong_sum,
            &tar(b"ustar", "SUM\0 ")[..511],
            b"QFI\xfb\0\0\0",
            b"BZh9",
            b"LUKS\xba\xbe\0\x03",
            b"# text\nversions=1\n",
            b"# text\n\0\nversion=1\n",
            b"\0# text\nversion=1\n",
            b"\x5d\0\x08\0\0\0\0\0\0\0\0\0\0",
            b"\x5d\0\0\0\0\0\0\0\0\0\0\0\0",
            b"#!/bin/sh\nexit",
            b"<\0\0",
            b"{\"message\": \"<html>\"}",
        ] {
            assert_eq!(names(head, &[0; 512]), [""; 0], "{}", head.escape_ascii());
        }
        assert_eq!(names(b"", b"koly"), [""; 0], "a short file has no trailer");
    }

    #[test]
    fn content_without_a_signature_is_described() {
        for (head, what) in [
            (&b""[..], "empty"),
            (&[0; 100], "zeros"),
            (b"{\"message\": \"Not Found\"}", "text"),
            (b"\xef\xbb\xbf\xe2\x80\x93 \xc3\x80", "text"),
            (b"text\x7f", "raw"),
            (b"\xeb\x63\x90\0", "raw"),
        ] {
            assert_eq!(describe(&Probe::new(head, b"", 0)), what);
        }
        assert_eq!(describe(&Probe::new(&[0; 100], b"", 100)), "zeros");
        assert_eq!(describe(&Probe::new(&[0; 100], b"", 101)), "raw, with zeros at the start");
    }

    #[test]
    fn an_extent_without_a_descriptor_is_a_part() {
        let mut extent = [0; 512];
        extent[..4].copy_from_slice(VMDK_HOSTED);
        assert!(is_vmdk_part(&extent) && !is_vmdk_part(&extent[..43]) && !is_vmdk_part(&[0; 512]));
        extent[36] = 20;
        assert!(!is_vmdk_part(&extent));
    }

    #[test]
    fn image_formats_have_a_name_and_a_feature() {
        let name = |name| Signature::of_image(name).map(|signature| signature.name);
        assert_eq!((name("vpc"), name("vhd"), name("qcow2")), (Some("vpc"), Some("vpc"), Some("qcow2")));
        assert_eq!((name("gzip"), name("tar"), name("text"), name("other")), (None, None, None, None));
    }
}
