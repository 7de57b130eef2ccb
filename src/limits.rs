//! How much an image may ask for.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Upper bounds for what an image may make this crate do. An image beyond one is refused with [`Error::Limit`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Largest virtual size in bytes. Default: 8 EiB less one sector, the largest that file offsets can express.
    pub virtual_size: u64,
    /// Bytes of metadata (tables, names) that a chain of images may keep in memory at once. Default: 64 MiB.
    pub metadata: u64,
    /// Number of images in a chain. Default: 200, the limit of libvirt.
    pub chain_depth: usize,
    /// Number of extents that one image may consist of, each in a file of its own at worst. Default: 8192, which is 16 TiB in
    /// the usual pieces of 2 GiB.
    pub extents: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { virtual_size: i64::MAX as u64 & !511, metadata: 64 << 20, chain_depth: 200, extents: 8192 }
    }
}

/// What is left of [`Limits::metadata`]; one for all images of a chain.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    left: AtomicU64,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Budget { limit, left: AtomicU64::new(limit) }
    }

    /// Takes `bytes` for `field`, which stands at file offset `at`.
    ///
    /// # Errors
    /// [`Error::Limit`] when less than that is left.
    pub fn take(&self, bytes: u64, format: &'static str, field: impl Into<Cow<'static, str>>, at: u64) -> Result<()> {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).map(drop).map_err(
            |left| Error::Limit {
                format,
                field: Cow::Owned(format!("size in memory of {}", field.into())),
                at: Some(at),
                value: (self.limit - left).saturating_add(bytes),
                limit: self.limit,
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_used_up() {
        let budget = Budget::new(100);
        assert!(budget.take(60, "raw", "a", 0).is_ok());
        assert!(matches!(budget.take(41, "raw", "b", 8), Err(Error::Limit { value: 101, limit: 100, .. })));
        assert!(budget.take(40, "raw", "c", 0).is_ok());
    }
}
