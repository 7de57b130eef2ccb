//! Writes an image in one pass: the header, the L1 table, then L2 tables, clusters and payloads in the order of the guest.

use std::ops::Range;

use super::entry::{L2Entry, offset_limit};
use super::header::Header;
use super::{FORMAT_NAME, SECTOR, options};
use crate::driver::{CreateContext, Placement, SparseWrite, WriteSpec};
use crate::error::{Error, Result};
#[cfg(feature = "crypto")]
use crate::format::shared::decryption::NewLegacyAes;
use crate::format::shared::two_level::{ENTRY, TwoLevelWriter};
use crate::identifiers::ImageIdentifiers;

/// A new image.
pub(super) struct Writer {
    spec: WriteSpec,
    header: Header,
    map: TwoLevelWriter,
    #[cfg(feature = "crypto")]
    encryption: Option<NewLegacyAes>,
}

impl Writer {
    pub fn create(cx: &CreateContext<'_>) -> Result<Writer> {
        let header = options::header(cx)?;
        let encoding = options::encoding(cx)?;
        let shape = header.shape();
        let map = TwoLevelWriter::new(cx.out.clone(), shape, shape.l1_offset + shape.l1_entries() * ENTRY)?;
        // Without a backing file, parts of a cluster can be placed: the rest stays a hole of the file, or is zeroed.
        let over_backing = header.backing_file.is_some();
        let granule = if over_backing || header.is_encrypted { shape.cluster_size() } else { SECTOR };
        let spec = WriteSpec {
            granule,
            encoding,
            over_backing,
            // What is encrypted is not the guest data.
            host_alignment: if header.is_encrypted { 0 } else { shape.cluster_size() },
            ..WriteSpec::new(header.size, shape.cluster_size())
        };
        #[cfg(feature = "crypto")]
        let encryption = header.is_encrypted.then(|| NewLegacyAes::new(FORMAT_NAME, cx.secret)).transpose()?;
        Ok(Writer {
            spec,
            header,
            map,
            #[cfg(feature = "crypto")]
            encryption,
        })
    }
}

impl SparseWrite for Writer {
    fn spec(&self) -> &WriteSpec {
        &self.spec
    }

    fn place(&mut self, guest: Range<u64>) -> Result<Placement> {
        let placement = self.map.place(&guest)?;
        #[cfg(feature = "crypto")]
        if let Some(encryption) = &self.encryption {
            let out = encryption.view(placement.out.clone(), placement.offset, guest.start);
            return Ok(Placement { out, ..placement });
        }
        Ok(placement)
    }

    fn place_compressed(&mut self, guest: Range<u64>, stored_len: u32) -> Result<Placement> {
        let (cluster_size, bits) = (self.spec.block_size, self.header.cluster_bits.into());
        let is_cluster =
            guest.start.is_multiple_of(cluster_size) && guest.end <= guest.start.saturating_add(cluster_size);
        if stored_len == 0 || u64::from(stored_len) >= cluster_size || !is_cluster {
            let problem = format!("invalid payload of {stored_len} bytes for guest range {guest:x?}");
            return Err(Error::Usage(problem));
        }
        self.map.place_payload(&guest, stored_len.into(), |host| {
            if host >= offset_limit(bits) {
                let limit = offset_limit(bits);
                return Err(Error::limit(FORMAT_NAME, "host offset of a compressed cluster", host, limit));
            }
            Ok(L2Entry::Compressed { host, len: stored_len }.encode(bits))
        })
    }

    fn zero(&mut self, guest: Range<u64>) -> Result<()> {
        // There are no zero clusters. Without a backing file, unallocated clusters read as zeros.
        if !self.spec.over_backing {
            return Ok(());
        }
        if !self.header.is_encrypted {
            return self.map.place_zeros(&guest);
        }
        let mut at = guest.start;
        while at < guest.end {
            let Placement { out, offset, len, .. } = self.place(at..guest.end)?;
            out.zero_range(offset..offset + len).map_err(Error::io("writing zeros", offset))?;
            at += len;
        }
        Ok(())
    }

    fn finish(&mut self, _identifiers: &ImageIdentifiers) -> Result<()> {
        self.map.finish(SECTOR)?;
        self.map.write_header(&self.header.encode())
    }
}

#[cfg(test)]
mod tests;
