//! What several drivers use.

pub(crate) mod bits;
pub(crate) mod file_extents;
pub(crate) mod run;
pub(crate) mod table;
pub(crate) mod table_cache;
