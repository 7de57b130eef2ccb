//! Swap space of Linux (mkswap(8); include/linux/swap.h of the kernel).

use super::disk::{Volume, put};
use super::{checked_label, too_large, uuid};
use crate::error::Result;
use crate::identifiers::ImageIdentifiers;

/// Page of x86 and most ARM machines, in bytes. The kernel takes swap space with its own page size only.
const PAGE: u64 = 4096;

/// Options of new swap space, with pages of 4 KiB.
///
/// ```
/// use diskimage::mkfs::{DiskOptions, PartitionScheme, SwapOptions};
///
/// let disk = DiskOptions::new(SwapOptions::new().label("swap")).partition(PartitionScheme::Mbr).build(1 << 30)?;
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SwapOptions {
    pub(super) label: String,
}

impl SwapOptions {
    /// No label.
    pub fn new() -> Self {
        SwapOptions::default()
    }

    /// Sets the label, at most 15 bytes.
    #[must_use]
    pub fn label(self, label: impl Into<String>) -> Self {
        SwapOptions { label: label.into() }
    }
}

pub(super) fn write(options: &SwapOptions, volume: &mut Volume, identifiers: &ImageIdentifiers) -> Result<()> {
    // The number of the last page has 32 bits.
    const LARGEST: u64 = PAGE << 32;
    let label = checked_label(&options.label, "swap", 15)?;
    if volume.len() > LARGEST {
        return Err(too_large("swap", volume.len(), LARGEST));
    }
    let last_page = (volume.len() / PAGE - 1) as u32;
    let mut page = vec![0; PAGE as usize];
    put(&mut page, 1024, 1_u32.to_le_bytes());
    put(&mut page, 1028, last_page.to_le_bytes());
    put(&mut page, 1036, uuid(identifiers, "swap"));
    page[1052..][..label.len()].copy_from_slice(label);
    put(&mut page, PAGE as usize - 10, *b"SWAPSPACE2");
    volume.put(0, page);
    Ok(())
}
