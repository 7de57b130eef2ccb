//! The extent of a single L2 entry.

use super::FORMAT_NAME;
use super::entry::{L2Entry, SUBCLUSTERS};
use super::header::{Encryption, Header};
use crate::driver::{Compressed, Extent, ExtentKind, FileId, Location};
use crate::error::{Error, Problem, Result};

/// The image file itself.
pub(super) const IMAGE: FileId = FileId(0);
/// The external data file.
pub(super) const DATA: FileId = FileId(1);

/// What extents are checked against.
pub(super) struct Bounds<'a> {
    pub header: &'a Header,
    /// In bytes.
    pub virtual_size: u64,
    pub file_len: u64,
    /// Length of the external data file in bytes, if it is open.
    pub data_file_len: Option<u64>,
}

impl Bounds<'_> {
    /// Returns the extent at `offset` by the L2 entry at host offset `at`, with its subcluster bitmap; it ends at the end of the cluster at the
    /// latest.
    pub fn extent(&self, (entry, bitmap): (u64, u64), at: u64, offset: u64) -> Result<Extent> {
        let fault = |problem| Error::corrupt(FORMAT_NAME, "L2 entry", at, problem);
        let cluster_size = self.header.cluster_size();
        let within = offset % cluster_size;
        let mut to = cluster_size;
        let kind = match L2Entry::parse(entry, bitmap, self.header).map_err(fault)? {
            L2Entry::Unallocated => ExtentKind::Hole,
            L2Entry::Zero { host } => ExtentKind::Zero { allocated: host.map(|host| self.location(host + within)) },
            L2Entry::Data { host } => ExtentKind::Data(self.location(host + within)),
            L2Entry::Compressed { host, .. } if self.header.encryption != Encryption::None => {
                let feature = "compressed clusters of an encrypted image".into();
                return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(host) });
            }
            L2Entry::Compressed { host, len } => {
                if host >= self.file_len {
                    return Err(fault(Problem::OutOfBounds { offset: host, len: len.into(), file_len: self.file_len }));
                }
                // The last payload may end with the file, within its last sector.
                let stored_len = u64::from(len).min(self.file_len - host) as u32;
                ExtentKind::Compressed(Compressed {
                    at: Location { file: IMAGE, offset: host },
                    stored_len,
                    codec: self.header.compression,
                    unit: offset - within,
                    unit_len: cluster_size as u32,
                    min_len: cluster_size as u32,
                })
            }
            L2Entry::Subclusters { host, allocated, zero } => {
                let size = cluster_size / u64::from(SUBCLUSTERS);
                let state = |index: u64| (allocated >> index & 1, zero >> index & 1);
                let first = within / size;
                let next = (first..SUBCLUSTERS.into()).find(|&index| state(index) != state(first));
                to = next.unwrap_or(SUBCLUSTERS.into()) * size;
                match state(first) {
                    (0, 0) => ExtentKind::Hole,
                    (0, _) => ExtentKind::Zero { allocated: host.map(|host| self.location(host + within)) },
                    _ => ExtentKind::Data(self.location(host.unwrap_or_default() + within)),
                }
            }
        };
        let len = (to - within).min(self.virtual_size - offset);
        if let ExtentKind::Data(Location { file, offset: host }) = kind {
            if file == DATA && host != offset {
                // "The offset field in the Standard Cluster Descriptor must match the guest offset."
                let rule = "must equal the guest offset in a data file";
                return Err(fault(Problem::Rule { value: host, rule }));
            }
            let file_len = if file == IMAGE { Some(self.file_len) } else { self.data_file_len };
            match file_len {
                Some(file_len) if host.checked_add(len).is_none_or(|end| end > file_len) => {
                    return Err(fault(Problem::OutOfBounds { offset: host, len, file_len }));
                }
                _ => {}
            }
        }
        Ok(Extent { offset, len, kind })
    }

    pub fn location(&self, host: u64) -> Location {
        Location { file: if self.header.has_data_file() { DATA } else { IMAGE }, offset: host }
    }
}
