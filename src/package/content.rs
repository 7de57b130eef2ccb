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
