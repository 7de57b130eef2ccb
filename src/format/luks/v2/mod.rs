//! Version 2 ("LUKS2 On-Disk Format Specification", version 1.1.4): two copies of a binary header and of JSON metadata.

mod binary;
mod metadata;
mod unlock;
mod volume;

pub(super) use binary::HeaderCopy;
pub(super) use metadata::Metadata;
pub(super) use volume::{NewVolume, PAYLOAD};

#[cfg(test)]
mod tests;
