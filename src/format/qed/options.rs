//! The options of a new image, those of qemu-img.

use super::FORMAT_NAME;
use super::header::{Backing, CLUSTER_SIZES, Header, MAX_BACKING_NAME, TABLE_SIZES};
use crate::driver::CreateContext;
use crate::error::{Error, Result};
use crate::format::shared::backing::backing_file;
use crate::format::shared::whole_sectors;
use crate::options::{OptionSpec, wrong};

pub(super) const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "cluster_size",
        values: "4k..4M",
        help: "cluster size in bytes, a power of two; above 1M it depends on table_size [default: 64k]",
    },
    OptionSpec {
        name: "table_size",
        values: "2|4|8|16",
        help: "clusters of the L1 table, and of each L2 table [default: 4]",
    },
    OptionSpec { name: "backing_file", values: "name", help: "backing file, stored as given; needs backing_fmt" },
    OptionSpec { name: "backing_fmt", values: "format", help: "format of the backing file; stored only if it is raw" },
];

const DEFAULT_CLUSTER_SIZE: u64 = 64 << 10;
const DEFAULT_TABLE_SIZE: u64 = 4;
/// The specification allows 64 MiB, but for qemu the largest disk of an image has less than 64 bits.
const MAX_CLUSTER_SIZE: u64 = 4 << 20;
/// The specification allows 1, but qemu 10 does not open such an image: it takes the last cluster of a table to be after the first.
const MIN_TABLE_SIZE: u64 = 2;

/// The header of an image with these options. It has no clusters but those of the header and the L1 table.
pub(super) fn header(cx: &CreateContext<'_>) -> Result<Header> {
    if cx.compress {
        return Err(Error::unsupported(FORMAT_NAME, "compression"));
    }
    let cluster_size =
        cx.options.power_of_two(FORMAT_NAME, "cluster_size", *CLUSTER_SIZES.start()..=MAX_CLUSTER_SIZE)?;
    let cluster_size = cluster_size.unwrap_or(DEFAULT_CLUSTER_SIZE);
    let table_size = cx
        .options
        .power_of_two(FORMAT_NAME, "table_size", MIN_TABLE_SIZE..=*TABLE_SIZES.end())?
        .unwrap_or(DEFAULT_TABLE_SIZE);
    let backing = backing_file(cx, FORMAT_NAME, MAX_BACKING_NAME)?;
    let backing = backing.map(|backing| Backing { is_raw: backing.format.as_bytes() == b"raw", name: backing.file });
    let image_size = whole_sectors(FORMAT_NAME, cx.size)?;
    let header = Header {
        cluster_bits: cluster_size.ilog2(),
        table_size: table_size as u32,
        header_size: 1,
        need_check: false,
        l1_table_offset: cluster_size,
        image_size,
        backing,
    };
    let shape = header.shape();
    let largest = u128::from(shape.l2_coverage()) * u128::from(shape.l2_entries);
    let problem = if u128::from(image_size) > largest {
        format!(
            "a disk of {} bytes is larger than {largest}, the largest with these cluster_size and table_size",
            cx.size
        )
    } else if largest > u64::MAX.into() {
        "too large for this table_size: qemu does not open such an image".into()
    } else {
        return Ok(header);
    };
    Err(wrong(FORMAT_NAME, "cluster_size", problem))
}
