//! VMDK, the format of VMware: reads every subformat that is stored in files, writes six.
//!
//! # Layout
//!
//! A disk is a list of extents, listed in a text called the descriptor. An extent is a contiguous range of the disk,
//! stored flat (guest data only) or sparse (allocated in grains, found by two levels of tables). Offsets and sizes on
//! disk are in sectors of 512 bytes, integers are little-endian.
//!
//! | location | structure | module |
//! |---|---|---|
//! | a file of its own, or from sector 1 of a sparse extent | descriptor: extents in guest order, parent, properties | `descriptor` |
//! | `NAME-flat.vmdk`, `NAME-fNNN.vmdk` | flat extent | `reader` |
//! | hosted sparse extent, sector 0 | header | `header` |
//! | header fields `gdOffset` and `rgdOffset` | grain directory and redundant grain directory: sectors of the grain tables | `directory`, `hosted` |
//! | grain directory entry | grain table: sectors of the grains | `grains` |
//! | stream (`streamOptimized`), before each structure | marker: type and length of the structure | `marker` |
//! | stream, last sectors | footer: a copy of the header with the sector of the grain directory | `footer` |
//! | ESXi extent (COWD or space-efficient sparse) | the same two levels of tables with other headers and entries | `cowd`, `sesparse`, `esxi` |
//!
//! `reader` combines the extents of an image and maps guest ranges; `stream` reads from pipes, `check` checks the
//! metadata, `options` and `writer` create images.
//!
//! # Support
//!
//! | feature | read | written |
//! |---|---|---|
//! | monolithicSparse | yes | yes |
//! | streamOptimized as VMware, VirtualBox, open-vmdk and qemu write it | from files and pipes | to files and pipes |
//! | monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat | yes | yes |
//! | vmfs, for ESXi datastores | yes | yes |
//! | vmfsPreallocated, vmfsEagerZeroedThick, vmfsThin, vmfsSparse (COWD), seSparse, custom | yes | no |
//! | extents with the access RDONLY or NOACCESS, extents of the type ZERO | yes | no |
//! | sparse extent version | 1, 2, 3 | 1; 2 with zeroed grains; 3 in streams |
//! | zeroed grains, any power-of-two grain size | yes | zeroed grains over a parent; grains of 64 KiB |
//! | redundant grain directory | used with a warning if the primary one is damaged; compared by `check` | yes |
//! | writing in place, by a guest | | flat extents, and hosted sparse ones without compression; disks grow, split ones in their last extent; another parent, or none |
//! | parents (snapshots, linked clones) | yes | yes, monolithicSparse only |
//! | fullDevice, partitionedDevice, raw device maps | refused by name | no |
//! | encryption | refused | no |
//!
//! # Decisions
//!
//! - Every extent keeps its position on the disk, whatever its access. qemu skips extents that are not `RW`, which
//!   shifts the following data.
//! - Data after the end of a file is an error. qemu and others read it as zeros.
//! - An empty grain table whose redundant copy is not empty is an error: either one may be damaged.
//! - The size of a disk with an embedded descriptor is the size in the descriptor if the header's capacity is that size
//!   rounded up to a grain. VirtualBox writes such images; qemu shows the rounded size.
//! - Bytes after the end of a stream, such as the padding of an archive, are ignored with a warning. Its footer is then found by the
//!   markers from the start, not by a search from the end, which a guest could mislead.
//! - `streamOptimized` that is created empty has its tables before the grains, as in qemu. Its owner appends grains, which would
//!   overwrite a footer.
//! - The header of a stream is written first, unlike that of every other image of this crate, because a pipe cannot
//!   seek. The footer marks a stream complete; a truncated stream has none and is refused.
//! - A parent is looked up by its path, then by its file name in the directory of the image, because directories
//!   are moved as a whole. Its content ID must match. VirtualBox stores only a UUID: then the parent is the `.vmdk`
//!   beside the image with this UUID.
//!
//! # References
//!
//! VMware, "Virtual Disk Format 5.0" (technical note), quoted as "the document" or with its section titles. It does not
//! cover version 3, nor space-efficient sparse extents, and it names RFC 1951 for grains that are zlib streams (RFC
//! 1950). In these cases, this module follows what VMware, VirtualBox, open-vmdk and qemu read and write, and comments say so.

mod check;
mod cowd;
mod descriptor;
mod directory;
mod esxi;
mod footer;
mod grains;
mod header;
mod hosted;
mod marker;
mod options;
mod reader;
mod sesparse;
mod stream;
mod update;
mod writer;

use std::ops::Range;

#[cfg(feature = "inspect")]
pub(crate) use descriptor::is_create_type;

use crate::driver::FormatDriver;
use crate::error::{Error, Result};
use crate::format::shared::signature;
use crate::format::shared::table::Fields;

pub(crate) static DRIVER: FormatDriver =
    FormatDriver::new(FORMAT_NAME, signature::is_vmdk, |source, cx| Ok(Box::new(reader::Reader::open(source, cx)?)))
        .extensions(&["vmdk"])
        .description("VMware virtual disk, all subformats")
        .create(writer::create, options::OPTIONS)
        .open_stream(stream::is_stream, stream::open)
        .check(check::check)
        .update(|file, cx| Ok(Box::new(update::Update::open(file, cx)?)))
        .repair(update::repair);

const FORMAT_NAME: &str = "vmdk";
/// Bytes in a sector, the unit of offsets and sizes on disk.
const SECTOR: u64 = 512;
/// The fields of this format, for messages.
const FIELDS: Fields = Fields(FORMAT_NAME);

/// The types of sparse extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SparseKind {
    Hosted,
    Cowd,
    SeSparse,
}

impl SparseKind {
    /// Detects a sparse extent by the first bytes of a file; `None` for other files, such as descriptors.
    fn from_magic(start: &[u8]) -> Option<SparseKind> {
        if start.starts_with(header::MAGIC) {
            Some(SparseKind::Hosted)
        } else if start.starts_with(cowd::MAGIC) {
            Some(SparseKind::Cowd)
        } else if start.starts_with(&sesparse::MAGIC.to_le_bytes()) {
            Some(SparseKind::SeSparse)
        } else {
            None
        }
    }
}

/// Returns a descriptor padded with zeros to fill `sectors`, its range in an extent.
///
/// # Errors
/// [`Error::Usage`] if the text is longer than the range.
fn pad_descriptor(text: &[u8], sectors: Range<u64>) -> Result<Vec<u8>> {
    let capacity = ((sectors.end - sectors.start) * SECTOR) as usize;
    if text.len() > capacity {
        let problem = format!("{FORMAT_NAME}: descriptor of {} bytes, expected at most {capacity}", text.len());
        return Err(Error::Usage(problem));
    }
    let mut bytes = text.to_vec();
    bytes.resize(capacity, 0);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_padded_or_too_long() {
        let padded = |len| pad_descriptor(&vec![b'x'; len], 1..3);
        assert_eq!(padded(1000).unwrap(), [[b'x'; 1000].as_slice(), &[0; 24]].concat());
        assert!(padded(1024).is_ok() && padded(1025).is_err());
    }
}
