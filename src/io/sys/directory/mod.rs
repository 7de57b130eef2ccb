//! A directory that stays the same one, whatever its path comes to mean, and what is in it. Names are single components.

#[cfg_attr(unix, path = "descriptor.rs")]
#[cfg_attr(not(unix), path = "path.rs")]
mod system;

pub(crate) use system::Directory;

/// For what a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    ReadWrite,
}

/// What a name in a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Regular,
    /// A symbolic link; on Windows also a junction.
    Link,
    Other,
}
