//! Compressed clusters, which are packed one after the other.

use std::ops::Range;

use super::Update;
use crate::codec::Encoding;
use crate::driver::{Allocation, FileId, Location};
use crate::error::{Error, Result};
use crate::format::qcow2::FORMAT_NAME;
use crate::format::qcow2::entry::{compressed_offset_limit, encode_compressed};
use crate::format::qcow2::header::Encryption;
use crate::format::qcow2::refcount::max_count;

impl Update {
    /// How clusters are compressed; `None` where they cannot be.
    pub(super) fn compressed_encoding(&self) -> Option<Encoding> {
        let is_plain = self.header.encryption == Encryption::None && !self.header.has_data_file();
        is_plain.then(|| Encoding::new(self.header.compression))
    }

    /// Allocates `len` bytes, at most a cluster: after the last payload, if its cluster has space, or if the next one is free. Each cluster counts
    /// the payloads that it has a part of.
    pub(super) fn place_payload(&mut self, guest: Range<u64>, len: u64) -> Result<Allocation> {
        let (bits, size) = (self.header.cluster_bits, self.cluster_size());
        let open = self.compressed_end;
        let space = open.next_multiple_of(size) - open;
        let is_shareable = space > 0 && self.refcount(open >> bits)? < max_count(self.refcounts.order) && len <= size;
        let offset = if is_shareable && len <= space {
            self.share_cluster(open >> bits)?;
            open
        } else {
            let new = self.allocate_in_file(1, true)?.start << bits;
            match is_shareable && new == open + space {
                true => {
                    self.share_cluster(open >> bits)?;
                    open
                }
                false => new,
            }
        };
        let end = offset + len;
        if end > compressed_offset_limit(bits) {
            self.free_payload(&(offset..end));
            let feature = "compressed cluster at this host offset with this cluster size".into();
            return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(offset) });
        }
        self.compressed_end = end;
        let at = Location { file: FileId::default(), offset };
        Ok(Allocation { guest, at, is_new: true, reads_as_zeros: false })
    }

    fn share_cluster(&mut self, cluster: u64) -> Result<()> {
        let count = self.refcount(cluster)?;
        self.set_refcount(cluster, count + 1)
    }

    /// Makes the table point to a payload, which has been written.
    pub(super) fn point_to_payload(&mut self, allocation: &Allocation, len: u64) -> Result<()> {
        let entry = encode_compressed(allocation.at.offset, len, self.header.cluster_bits);
        self.set_entry(allocation.guest.start, entry, 0)
    }

    /// Frees a payload that no entry points to. Where that fails, it is leaked.
    pub(super) fn free_payload(&mut self, payload: &Range<u64>) {
        let bits = self.header.cluster_bits;
        self.compressed_end = 0;
        for cluster in payload.start >> bits..=(payload.end - 1) >> bits {
            let _ = self.count_use_less(cluster);
        }
    }
}
