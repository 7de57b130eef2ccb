//! Measures a new image, with the numbers of qemu-img: all tables of the disk are counted, also those of guest ranges without data.
//! The writer leaves those out.

use super::alloc::{RefcountArea, entries_in_clusters};
use super::header;
use crate::driver::{CreateContext, FileSize};
use crate::error::Result;
use crate::format::qcow2::bitmap::lengths_of_bitmaps;
#[cfg(feature = "crypto")]
use crate::format::qcow2::options::NewEncryption;
use crate::format::qcow2::options::{Preallocation, Settings};
#[cfg(feature = "crypto")]
use crate::format::shared::luks::new_header_len;
use crate::info::ImageInfo;

pub(crate) fn measure(cx: &CreateContext<'_>, source: Option<&ImageInfo>) -> Result<FileSize> {
    let settings = Settings::parse(cx)?;
    // Only checks that it fits.
    header(&settings)?;
    let bits = settings.cluster_bits;
    let guest = settings.virtual_size.div_ceil(settings.cluster_size());
    // An extended entry has twice the length, and is not cut by the end of a cluster.
    let l2_entries = if settings.extended_l2 { 2 * guest } else { guest };
    let l2_tables = entries_in_clusters(l2_entries, bits);
    let used = 1 + l2_tables + entries_in_clusters(l2_tables, bits) + guest;
    let area = RefcountArea::after(used, 0, bits, settings.refcount_order);
    let metadata = ((area.end - guest) << bits) + luks_header_len(&settings).next_multiple_of(settings.cluster_size());
    Ok(FileSize {
        // How much of its data the backing file has is not known.
        dense: matches!(settings.preallocation, Preallocation::Falloc | Preallocation::Full)
            || settings.backing.is_some(),
        bitmaps: source
            .filter(|_| settings.version >= 3)
            .and_then(|source| lengths_of_bitmaps(source, settings.cluster_size())),
        ..FileSize::new(metadata, settings.virtual_size, settings.cluster_size())
    })
}

/// Length in bytes of the LUKS header, if there is one.
#[cfg(feature = "crypto")]
fn luks_header_len(settings: &Settings) -> u64 {
    match &settings.encryption {
        Some(NewEncryption::Luks(parameters)) => new_header_len(parameters),
        Some(NewEncryption::Aes) | None => 0,
    }
}

#[cfg(not(feature = "crypto"))]
fn luks_header_len(_settings: &Settings) -> u64 {
    0
}
