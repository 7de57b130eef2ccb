//! What a conversion reports.

use std::path::Path;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::optional;
#[cfg(feature = "hash")]
use crate::convert::FileDigest;
use crate::convert::{Damage, Measure, Progress, Report};
#[cfg(feature = "hash")]
use crate::hash::Digest;

/// As `source-format`, except for a created image, `target-format`, `virtual-size`, `padding`, `data-bytes`,
/// `zero-bytes`, `compressed-blocks`, `compressed-bytes`, `passthrough-blocks`, `passthrough-bytes`, `written-bytes`,
/// `digests` by algorithm and `file-digests` if there are any, and, if
/// there are any, `volumes`, `unreadable-bytes` and `unreadable`, `doubtful-bytes` and `doubtful`, `skipped-bitmaps`.
impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        optional(&mut map, "source-format", self.source_format)?;
        map.serialize_entry("target-format", &self.format)?;
        map.serialize_entry("virtual-size", &self.virtual_size)?;
        map.serialize_entry("padding", &self.padding)?;
        map.serialize_entry("data-bytes", &self.data_bytes)?;
        map.serialize_entry("zero-bytes", &self.zero_bytes())?;
        map.serialize_entry("compressed-blocks", &self.compressed_blocks)?;
        map.serialize_entry("compressed-bytes", &self.compressed_bytes)?;
        map.serialize_entry("passthrough-blocks", &self.passthrough_blocks)?;
        map.serialize_entry("passthrough-bytes", &self.passthrough_bytes)?;
        map.serialize_entry("written-bytes", &self.written_bytes)?;
        map.serialize_entry("cloned-bytes", &self.cloned_bytes)?;
        #[cfg(feature = "hash")]
        if !self.digests.is_empty() {
            map.serialize_entry("digests", &Digests(&self.digests))?;
        }
        #[cfg(feature = "hash")]
        if !self.file_digests.is_empty() {
            map.serialize_entry("file-digests", &self.file_digests)?;
        }
        if self.unreadable.bytes > 0 {
            map.serialize_entry("unreadable-bytes", &self.unreadable.bytes)?;
            map.serialize_entry("unreadable", &self.unreadable.ranges)?;
        }
        if self.doubtful.bytes > 0 {
            map.serialize_entry("doubtful-bytes", &self.doubtful.bytes)?;
            map.serialize_entry("doubtful", &self.doubtful.ranges)?;
        }
        #[cfg(feature = "sparsify")]
        if !self.volumes.is_empty() {
            map.serialize_entry("volumes", &self.volumes)?;
        }
        if !self.skipped_bitmaps.is_empty() {
            map.serialize_entry("skipped-bitmaps", &self.skipped_bitmaps)?;
        }
        map.end()
    }
}

/// As `path`, `algorithm` and `digest`, in hexadecimal digits.
#[cfg(feature = "hash")]
impl Serialize for FileDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("path", &self.path.to_string_lossy())?;
        map.serialize_entry("algorithm", self.digest.algorithm().name())?;
        map.serialize_entry("digest", &self.digest.to_string())?;
        map.end()
    }
}

/// By the names of the algorithms, in hexadecimal digits.
#[cfg(feature = "hash")]
struct Digests<'a>(&'a [Digest]);

#[cfg(feature = "hash")]
impl Serialize for Digests<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|digest| (digest.algorithm().name(), digest.to_string())))
    }
}

/// As `start` and `length` in bytes, `kind`, `message` and, where it is known, `path`.
impl Serialize for Damage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("start", &self.range.start)?;
        map.serialize_entry("length", &(self.range.end - self.range.start))?;
        map.serialize_entry("kind", &self.kind)?;
        map.serialize_entry("message", &self.message)?;
        optional(&mut map, "path", self.path.as_deref().map(Path::to_string_lossy))?;
        map.end()
    }
}

/// As `done` and `total`.
impl Serialize for Progress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("done", &self.done)?;
        map.serialize_entry("total", &self.total)?;
        map.end()
    }
}

/// With the keys of `qemu-img measure`: `required`, `fully-allocated` and, where the source can have them, `bitmaps`.
impl Serialize for Measure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        optional(&mut map, "bitmaps", self.bitmaps)?;
        map.serialize_entry("required", &self.required)?;
        map.serialize_entry("fully-allocated", &self.fully_allocated)?;
        map.end()
    }
}
