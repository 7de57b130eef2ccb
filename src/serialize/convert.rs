//! What a conversion reports.

use std::path::Path;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::optional;
use crate::convert::{Damage, Measure, Progress, Report};

/// As `source-format`, except for a created image, `target-format`, `virtual-size`, `padding`, `data-bytes`,
/// `zero-bytes`, `compressed-blocks`, `compressed-bytes`, `passthrough-blocks`, `passthrough-bytes`, `written-bytes` and, if
/// there are any, `unreadable-bytes` and `unreadable`, `doubtful-bytes` and `doubtful`.
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
        if self.unreadable.bytes > 0 {
            map.serialize_entry("unreadable-bytes", &self.unreadable.bytes)?;
            map.serialize_entry("unreadable", &self.unreadable.ranges)?;
        }
        if self.doubtful.bytes > 0 {
            map.serialize_entry("doubtful-bytes", &self.doubtful.bytes)?;
            map.serialize_entry("doubtful", &self.doubtful.ranges)?;
        }
        map.end()
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
