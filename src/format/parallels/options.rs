//! The options of a new image.

use std::ops::RangeInclusive;

use super::bat::BatEntry;
use super::header::Header;
use super::{FORMAT_NAME, SECTOR};
use crate::driver::CreateContext;
use crate::error::{Error, Result};
use crate::options::OptionSpec;

pub(super) const OPTIONS: &[OptionSpec] = &[OptionSpec {
    name: "cluster_size",
    values: "4k..64M",
    help: "cluster size in bytes, a power of two [default: 1M]",
}];

const CLUSTER_SIZES: RangeInclusive<u64> = 4 << 10..=64 << 20;

/// The header of an image with these options, without clusters.
pub(super) fn header(cx: &CreateContext<'_>) -> Result<Header> {
    if cx.compress {
        return Err(Error::unsupported(FORMAT_NAME, "compression"));
    }
    if cx.backing.is_some() {
        return Err(Error::unsupported(FORMAT_NAME, "backing files"));
    }
    let cluster_size = cx.options.power_of_two(FORMAT_NAME, "cluster_size", CLUSTER_SIZES)?.unwrap_or(1 << 20);
    let sectors = cx.size.div_ceil(SECTOR);
    let clusters = sectors.div_ceil(cluster_size / SECTOR);
    let data_offset = clusters.saturating_mul(BatEntry::LEN).saturating_add(Header::LEN as u64).div_ceil(cluster_size);
    // The entries of the BAT are host offsets in clusters; the offset of the data area is in sectors.
    let most = u64::from(u32::MAX);
    if clusters + data_offset > most || data_offset.saturating_mul(cluster_size / SECTOR) > most {
        let table_clusters = (most * BatEntry::LEN).div_ceil(cluster_size) + 1;
        let limit = (most - table_clusters).saturating_mul(cluster_size);
        return Err(Error::limit(FORMAT_NAME, "virtual size at this cluster size", cx.size, limit));
    }
    let data_sector = data_offset * (cluster_size / SECTOR);
    Ok(Header::new((cluster_size / SECTOR) as u32, sectors, clusters as u32, data_sector as u32))
}
