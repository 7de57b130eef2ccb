//! The names of limits.

use std::fmt;

/// One of the [`Limits`](crate::Limits). Its name is that of the field, with hyphens; the option of `imgconv` is `--max-` and this name.
///
/// ```
/// use diskimage::LimitName;
///
/// assert_eq!(LimitName::VirtualSize.as_str(), "virtual-size");
/// assert_eq!("virtual-size".parse::<LimitName>()?, LimitName::VirtualSize);
/// assert!("size".parse::<LimitName>().is_err());
/// # Ok::<(), diskimage::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum LimitName {
    /// [`Limits::virtual_size`](crate::Limits::virtual_size)
    VirtualSize,
    /// [`Limits::metadata`](crate::Limits::metadata)
    Metadata,
    /// [`Limits::chain_depth`](crate::Limits::chain_depth)
    ChainDepth,
    /// [`Limits::extents`](crate::Limits::extents)
    Extents,
    /// [`Limits::snapshots`](crate::Limits::snapshots)
    Snapshots,
    /// [`Limits::members`](crate::Limits::members)
    Members,
    /// [`Limits::nesting`](crate::Limits::nesting)
    Nesting,
    /// [`Limits::name_length`](crate::Limits::name_length)
    NameLength,
    /// [`Limits::text_length`](crate::Limits::text_length)
    TextLength,
    /// [`Limits::pbkdf2_iterations`](crate::Limits::pbkdf2_iterations)
    Pbkdf2Iterations,
    /// [`Limits::argon2_memory`](crate::Limits::argon2_memory)
    Argon2Memory,
    /// [`Limits::argon2_work`](crate::Limits::argon2_work)
    Argon2Work,
    /// [`Limits::decompressed`](crate::Limits::decompressed)
    Decompressed,
    /// [`Limits::decompression_ratio`](crate::Limits::decompression_ratio)
    DecompressionRatio,
    /// [`Limits::window`](crate::Limits::window)
    Window,
}

impl LimitName {
    /// All limits, with their names, in the order of the fields of [`Limits`](crate::Limits).
    const NAMES: [(LimitName, &'static str); 15] = [
        (LimitName::VirtualSize, "virtual-size"),
        (LimitName::Metadata, "metadata"),
        (LimitName::ChainDepth, "chain-depth"),
        (LimitName::Extents, "extents"),
        (LimitName::Snapshots, "snapshots"),
        (LimitName::Members, "members"),
        (LimitName::Nesting, "nesting"),
        (LimitName::NameLength, "name-length"),
        (LimitName::TextLength, "text-length"),
        (LimitName::Pbkdf2Iterations, "pbkdf2-iterations"),
        (LimitName::Argon2Memory, "argon2-memory"),
        (LimitName::Argon2Work, "argon2-work"),
        (LimitName::Decompressed, "decompressed"),
        (LimitName::DecompressionRatio, "decompression-ratio"),
        (LimitName::Window, "window"),
    ];

    /// All limits.
    ///
    /// ```
    /// use diskimage::{LimitName, Limits};
    ///
    /// let limits = Limits::default();
    /// for name in LimitName::all() {
    ///     println!("--max-{name} {}", limits.get(name));
    /// }
    /// ```
    pub fn all() -> impl Iterator<Item = LimitName> {
        LimitName::NAMES.into_iter().map(|(limit, _)| limit)
    }

    /// The name.
    pub fn as_str(self) -> &'static str {
        LimitName::NAMES.iter().find(|(limit, _)| *limit == self).map_or("", |(_, name)| name)
    }

    /// Whether the limit is a number of bytes.
    pub fn is_size(self) -> bool {
        match self {
            LimitName::VirtualSize
            | LimitName::Metadata
            | LimitName::NameLength
            | LimitName::TextLength
            | LimitName::Argon2Memory
            | LimitName::Argon2Work
            | LimitName::Decompressed
            | LimitName::Window => true,
            LimitName::ChainDepth
            | LimitName::Extents
            | LimitName::Snapshots
            | LimitName::Members
            | LimitName::Nesting
            | LimitName::Pbkdf2Iterations
            | LimitName::DecompressionRatio => false,
        }
    }
}

impl fmt::Display for LimitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
