//! What the members of an archive without a descriptor are, by their content and names.
//!
//! A UEC tarball has a machine image, a kernel and a ramdisk; a Vagrant box the image of a disk and text; a Google Compute Engine
//! image the member `disk.raw`.

use std::sync::Arc;

use super::tar::{Kind, Member};
use super::{extension, is_apple_double, window};
use crate::driver::Probe;
use crate::error::Result;
use crate::format::shared::signature::{self, Signature};
use crate::format::shared::table;
use crate::io::ReadAt;

pub(super) const DISK: &str = "disk";
const KERNEL: &str = "kernel";
const RAMDISK: &str = "ramdisk";
const OTHER: &str = "other";
/// Extensions of disks without a signature.
const RAW: [&[u8]; 5] = [b"img", b"raw", b"iso", b"bin", b"dd"];

/// The role of a member that is not a file.
pub(super) fn kind_of_member(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::File => None,
        Kind::Link => Some("link"),
        Kind::Directory => Some("directory"),
        Kind::Other => Some(OTHER),
    }
}

/// The role of each member. Disks are the members with the signature of a disk image, except the extents of others; if there is none, those with the extension
/// of a raw disk that are neither a kernel, a ramdisk nor a floppy disk, or else a package or compressed file within.
pub(super) fn roles(file: &Arc<dyn ReadAt>, members: &[Member]) -> Result<Vec<&'static str>> {
    let mut found = Vec::with_capacity(members.len());
    for member in members {
        found.push(match kind_of_member(member.kind) {
            Some(role) => Found::Role(role),
            None if is_apple_double(&member.name) || member.size == 0 => Found::Role(OTHER),
            None => of_file(&*window(file, member), member)?,
        });
    }
    // The best kind that there is.
    let disk = [Found::Image, Found::Part, Found::Raw, Found::Inner].into_iter().find(|kind| found.contains(kind));
    Ok(found
        .into_iter()
        .map(|found| match found {
            Found::Role(role) => role,
            found if Some(found) == disk => DISK,
            _ => OTHER,
        })
        .collect())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Role(&'static str),
    /// The signature of a disk image.
    Image,
    /// A part of a disk image, which is described by another file.
    Part,
    /// The name of a raw disk.
    Raw,
    /// A package or a compressed file.
    Inner,
}

fn of_file(file: &dyn ReadAt, member: &Member) -> Result<Found> {
    let read = |offset: u64, most: usize| {
        let mut bytes = vec![0; (member.size - offset).min(most as u64) as usize];
        table::read(file, &mut bytes, offset).map(|()| bytes)
    };
    let (head, tail) = (read(0, Probe::HEAD)?, read(member.size.saturating_sub(Probe::TAIL as u64), Probe::TAIL)?);
    let probe = Probe::new(&head, &tail, member.size);
    let signatures: Vec<_> = Signature::matching(&probe).collect();
    let name = member.name.as_bytes().to_ascii_lowercase();
    let is_called = |part: &str| name.windows(part.len()).any(|window| window == part.as_bytes());
    Ok(match signatures.first() {
        _ if signature::is_vmdk_part(&head) => Found::Part,
        _ if signatures.iter().any(|signature| signature.is_image()) => Found::Image,
        _ if is_kernel(&head) => Found::Role(KERNEL),
        _ if ["vmlinuz", "vmlinux", "-kernel"].iter().any(|part| is_called(part)) => Found::Role(KERNEL),
        Some(signature) if signature.name == "cpio" => Found::Role(RAMDISK),
        _ if ["initrd", "initramfs", "ramdisk"].iter().any(|part| is_called(part)) => Found::Role(RAMDISK),
        _ if is_called("floppy") || is_called("-loader") => Found::Role(OTHER),
        Some(_) => Found::Inner,
        None if RAW.contains(&&*extension(&member.name)) => Found::Raw,
        None => Found::Role(OTHER),
    })
}

/// A kernel of Linux: bzImage, an EFI image of ARM64, or ELF.
fn is_kernel(head: &[u8]) -> bool {
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    at(0x202, b"HdrS") && at(0x1fe, b"\x55\xaa") || at(56, b"ARM\x64") || at(0, b"\x7fELF")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemFile;
    use crate::limits::{Budget, Limits};
    use crate::package::tar::{members, tests::entry};

    /// The roles of members of these names, which start with these bytes.
    fn of(files: &[(&str, &[u8])]) -> Vec<&'static str> {
        let padded = |bytes: &[u8]| [bytes, &[0; 1024]].concat();
        let archive: Vec<u8> = files.iter().flat_map(|(name, start)| entry(name, b'0', &padded(start))).collect();
        let file: Arc<dyn ReadAt> = Arc::new(MemFile::from(archive));
        roles(&file, &members(&*file, &Limits::default(), &Budget::new(1 << 20)).unwrap()).unwrap()
    }

    const QCOW2: &[u8] = b"QFI\xfb\0\0\0\x03";
    /// An extent without a descriptor.
    const EXTENT: &[u8] = b"KDMV\x01\0\0\0";
    const GZIP: &[u8] = b"\x1f\x8b\x08\0";

    #[test]
    fn the_disk_is_the_member_that_is_most_like_one() {
        for (files, expected) in [
            (&[("a", QCOW2), ("b.vmdk", EXTENT), ("c.img", b""), ("d.gz", GZIP)][..], ["disk", OTHER, OTHER, OTHER]),
            (&[("a", b""), ("b.vmdk", EXTENT), ("c.img", b""), ("d.gz", GZIP)], [OTHER, "disk", OTHER, OTHER]),
            (&[("a", b""), ("b", b""), ("c.img", b""), ("d.gz", GZIP)], [OTHER, OTHER, "disk", OTHER]),
            (&[("a", b""), ("b", b""), ("c", b""), ("d.gz", GZIP)], [OTHER, OTHER, OTHER, "disk"]),
            (&[("a.img", b""), ("B.RAW", b""), ("c.iso", b""), ("d.txt", b"")], ["disk", "disk", "disk", OTHER]),
        ] {
            assert_eq!(of(files), expected);
        }
    }

    #[test]
    fn what_else_a_machine_has_is_not_a_disk() {
        let mut kernel = [0; 1024];
        kernel[0x1fe..0x206].copy_from_slice(b"\x55\xaa\0\0HdrS");
        let mut unsigned = kernel;
        unsigned[0x1fe] = 0;
        let arm = [&[0; 56], &b"ARM\x64"[..]].concat();
        for (name, bytes, role) in [
            ("boot.img", &kernel[..], KERNEL),
            ("boot.img", &unsigned, DISK),
            ("boot.img", &arm, KERNEL),
            ("boot.img", b"\x7fELF", KERNEL),
            ("vmlinuz-6.1.img", b"", KERNEL),
            ("x-kernel", b"", KERNEL),
            ("boot.img", b"070701", RAMDISK),
            ("Initrd.img", GZIP, RAMDISK),
            ("x-floppy.img", b"", OTHER),
            ("x-loader.img", b"", OTHER),
            ("._boot.img", b"", OTHER),
        ] {
            assert_eq!(of(&[(name, bytes)]), [role], "{name}");
        }
    }

    #[test]
    fn members_without_data_are_not_disks() {
        let archive = [entry("a.img", b'0', b""), entry("b.img", b'5', b""), entry("c.img", b'0', b"x")].concat();
        let file: Arc<dyn ReadAt> = Arc::new(MemFile::from(archive));
        let members = members(&*file, &Limits::default(), &Budget::new(1 << 20)).unwrap();
        assert_eq!(roles(&file, &members).unwrap(), [OTHER, "directory", DISK]);
    }
}
