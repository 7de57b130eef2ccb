//! L2 entries (QED specification, "Data cluster offsets").

use crate::driver::{ExtentKind, Location};
use crate::error::Result;
use crate::format::shared::two_level::{Entry, IMAGE, Shape};

/// The entry of a zero cluster.
pub(super) const ZERO: u64 = 1;

/// The state of a guest cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum L2Entry {
    /// Reads as the backing file, or as zeros.
    Unallocated,
    Zero,
    /// The host offset of the cluster. It is not checked.
    Data(u64),
}

impl L2Entry {
    pub fn parse(value: u64) -> L2Entry {
        match value {
            0 => L2Entry::Unallocated,
            ZERO => L2Entry::Zero,
            host => L2Entry::Data(host),
        }
    }
}

/// What the cluster of an entry is, from the guest offset on that was looked up. That of a file of `file_len` bytes is checked.
pub(super) fn kind(shape: &Shape, entry: Entry, file_len: u64) -> Result<ExtentKind> {
    Ok(match L2Entry::parse(entry.value) {
        L2Entry::Unallocated => ExtentKind::Hole,
        L2Entry::Zero => ExtentKind::Zero { allocated: None },
        L2Entry::Data(host) => {
            let within = entry.offset % shape.cluster_size();
            shape.check_cluster(entry, host, within + shape.len_in_cluster(entry.offset), file_len)?;
            ExtentKind::Data(Location { file: IMAGE, offset: host + within })
        }
    })
}
