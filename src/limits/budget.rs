//! The memory for metadata and for cached tables.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::LimitName;
use crate::error::{Error, Result};

/// Memory for metadata that is left of [`Limits::metadata`](super::Limits::metadata), shared by all images of a chain.
///
/// ```
/// use diskimage::{Budget, ErrorKind};
///
/// let budget = Budget::new(1 << 20);
/// budget.take(1 << 19, "toy", "block map", 512)?;
/// assert_eq!(budget.take(1 << 20, "toy", "block map", 512).unwrap_err().kind(), ErrorKind::Limit);
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    left: AtomicU64,
    tables: Arc<TableRoom>,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Budget { limit, left: AtomicU64::new(limit), tables: Arc::new(TableRoom::new(TableRoom::BYTES)) }
    }

    /// Takes `bytes` bytes for the table `field` at file offset `at`.
    ///
    /// # Errors
    /// [`Error::Limit`] if less than that is left.
    pub fn take(&self, bytes: u64, format: &'static str, field: impl Into<Cow<'static, str>>, at: u64) -> Result<()> {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).map(drop).map_err(
            |left| Error::Limit {
                name: Some(LimitName::Metadata),
                format,
                field: Cow::Owned(format!("size in memory of {}", field.into())),
                at: Some(at),
                value: (self.limit - left).saturating_add(bytes),
                limit: self.limit,
            },
        )
    }

    /// Loads a table that can be done without. If that fails, nothing is taken: what was loaded is dropped.
    pub(crate) fn attempt<T>(&self, load: impl FnOnce(&Budget) -> Result<T>) -> Result<T> {
        let before = self.left.load(Ordering::Relaxed);
        let part = Budget { limit: self.limit, left: AtomicU64::new(before), tables: self.table_room() };
        let loaded = load(&part)?;
        self.left.fetch_sub(before - part.left.into_inner(), Ordering::Relaxed);
        Ok(loaded)
    }

    /// The memory for cached tables of the same images.
    pub(crate) fn table_room(&self) -> Arc<TableRoom> {
        self.tables.clone()
    }
}

/// Memory for parts of tables that are cached after they were read, shared by all images of a chain. It does not depend on the image, so that
/// it is not of the budget.
#[derive(Debug)]
pub(crate) struct TableRoom(AtomicUsize);

impl TableRoom {
    /// The L2 tables of 32 GiB of qcow2 with the default cluster size.
    const BYTES: usize = 4 << 20;

    /// Room for `bytes` bytes.
    pub fn new(bytes: usize) -> TableRoom {
        TableRoom(AtomicUsize::new(bytes))
    }

    /// Takes `new` bytes in exchange for `old` that were taken before, and returns whether the limit allows them. If not, nothing changes.
    pub fn resize(&self, old: usize, new: usize) -> bool {
        let change = |left: usize| left.saturating_add(old).checked_sub(new);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
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

    #[test]
    fn a_failed_attempt_takes_nothing() {
        let budget = Budget::new(100);
        let load = |bytes| {
            budget.attempt(|budget| {
                budget.take(30, "raw", "a", 0)?;
                budget.take(bytes, "raw", "b", 0)
            })
        };
        assert!(load(71).is_err());
        assert!(load(70).is_ok());
        assert!(budget.take(1, "raw", "c", 0).is_err());
    }
}
