//! What several drivers use.

/// The backing file of a new image.
pub(crate) mod backing;
/// Runs of equal bits in a bitmap, and bit sets.
pub(crate) mod bits;
/// Data and holes of a file.
pub(crate) mod data_runs;
/// Tables of fixed-size entries, read page by page.
pub(crate) mod paged_table;
/// Merging table entries into extents.
pub(crate) mod run;
/// Signatures of disk images, and of files that are taken for no disk.
pub(crate) mod signature;
/// Bounded reads of tables, and the errors of a field.
pub(crate) mod table;
/// The table parts read last.
pub(crate) mod table_cache;
/// Maps of an L1 table and L2 tables.
pub(crate) mod two_level;
