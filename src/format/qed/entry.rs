//! L2 entries (QED specification, "Data cluster offsets").

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
