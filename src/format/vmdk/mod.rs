//! VMDK, the format of VMware: every kind read, six kinds written.
//!
//! # Layout
//!
//! A disk is a list of extents, in a text that is called the descriptor. All offsets and sizes are in sectors of 512 bytes,
//! integers are little-endian.
//!
//! | where | what | file |
//! |---|---|---|
//! | a file of its own, or sector 1 of a sparse extent | descriptor: the extents in order, the parent, properties | `descriptor` |
//! | `NAME-flat.vmdk`, `NAME-fNNN.vmdk` | a flat extent: the bytes of the disk | |
//! | a hosted sparse extent: sector 0 | header | `header` |
//! | its `gdOffset` and `rgdOffset` | grain directory: the sector of each grain table; twice | `hosted` |
//! | from the directory | grain tables: the sector of each grain | `grains` |
//! | a stream: before each of its parts | marker: what follows | `marker` |
//! | a stream: its end | footer: the header again, with the place of the directory | `hosted` |
//! | an extent of ESXi, COWD or space-efficient sparse | the same two levels, other headers and entries | `cowd`, `sesparse`, `esxi` |
//!
//! # Support
//!
//! | what | read | written |
//! |---|---|---|
//! | monolithicSparse | yes | yes |
//! | streamOptimized, as VMware, VirtualBox, open-vmdk and qemu write it, from files and from pipes | yes | yes, to files and to pipes |
//! | monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat | yes | yes |
//! | vmfs, for the datastore of an ESXi | yes | yes |
//! | vmfsPreallocated, vmfsEagerZeroedThick, vmfsThin, vmfsSparse (COWD), seSparse, custom | yes | no |
//! | extents that are read-only, of no access, of zeros | yes, each at its place | no |
//! | versions 1, 2 and 3 of sparse extents, zeroed grains, any grain size | yes | 1, with zeroed grains 2, in a stream 3 |
//! | redundant grain directory | used when the other one is damaged, with a warning; a table that is empty is an error if its copy is not, and `check` compares all | yes |
//! | parents (snapshots, linked clones) | yes | yes, for monolithicSparse |
//! | devices: fullDevice, partitionedDevice, raw device maps | refused by name | no |
//! | encryption | refused | no |
//!
//! What other programs do and this module does not: qemu leaves out extents that are not `RW`, so that what follows moves;
//! qemu and others read what lies behind the end of the file as zeros.
//!
//! The size of a disk in one sparse extent is that in the descriptor, where the header's capacity is the same but for
//! rounding it up to a grain: VirtualBox writes such images. qemu shows the rounded size.
//!
//! A stream says at its beginning what it is, unlike every other image that is written here: it cannot be otherwise when it
//! goes through a pipe. What is broken off lacks the footer, and is refused.
//!
//! A parent is looked for by its name and, since whole directories are moved, beside the image by the last part of it. The
//! content ID tells whether it is the right one. VirtualBox has only a UUID for it: then it is the `.vmdk` beside the image
//! that has this UUID.
//!
//! # ReferencePolicy
//!
//! VMware, "Virtual Disk Format 5.0" (technical note), quoted as the document with its section. It says nothing of version 3,
//! of space-efficient sparse extents, and that grains are zlib streams (RFC 1950) where it names RFC 1951: there, what VMware,
//! VirtualBox, open-vmdk and qemu read and write is followed, and said so in the place.

mod check;
mod cowd;
mod descriptor;
mod directory;
mod esxi;
mod grains;
mod header;
mod hosted;
mod marker;
mod options;
mod reader;
mod sesparse;
mod stream;
mod writer;

use std::ops::Range;

use crate::driver::{FormatDriver, Probe};
use crate::error::{Error, Result};
use crate::format::shared::table::Fields;

pub(crate) static DRIVER: FormatDriver =
    FormatDriver::new(FORMAT_NAME, probe, |source, cx| Ok(Box::new(reader::Reader::open(source, cx)?)))
        .extensions(&["vmdk"])
        .description("VMware virtual disk, of any kind")
        .create(writer::create, options::OPTIONS)
        .open_stream(stream::open)
        .check(check::check);

const FORMAT_NAME: &str = "vmdk";
/// Bytes in a sector, the unit of all offsets and sizes of this format.
const SECTOR: u64 = 512;

/// The binary files that this format has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Hosted,
    Cowd,
    SeSparse,
}

impl Kind {
    /// By the first bytes of a file; what is none of them may be a descriptor.
    fn of(start: &[u8]) -> Option<Kind> {
        if start.starts_with(header::MAGIC) {
            Some(Kind::Hosted)
        } else if start.starts_with(cowd::MAGIC) {
            Some(Kind::Cowd)
        } else if start.starts_with(&sesparse::MAGIC.to_le_bytes()) {
            Some(Kind::SeSparse)
        } else {
            None
        }
    }
}

fn probe(probe: &Probe<'_>) -> bool {
    Kind::of(probe.head).is_some() || descriptor::looks_like_descriptor(probe.head)
}

/// The fields of this format, for messages.
const FIELDS: Fields = Fields(FORMAT_NAME);

/// A descriptor as it stands in the sectors that are set aside for it.
fn embedded(text: &[u8], sectors: Range<u64>) -> Result<Vec<u8>> {
    let room = ((sectors.end - sectors.start) * SECTOR) as usize;
    if text.len() > room {
        let problem = format!("the descriptor has {} bytes, and there is room for {room}", text.len());
        return Err(Error::Usage(problem));
    }
    let mut bytes = text.to_vec();
    bytes.resize(room, 0);
    Ok(bytes)
}
