//! What a conversion reports.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::optional;
use crate::convert::{Progress, Report};

/// As `source-format`, except for a created image, `target-format`, `virtual-size`, `padding`, `data-bytes`,
/// `compressed-blocks`, `passthrough-blocks` and `written-bytes`.
impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        optional(&mut map, "source-format", self.source_format)?;
        map.serialize_entry("target-format", &self.format)?;
        map.serialize_entry("virtual-size", &self.virtual_size)?;
        map.serialize_entry("padding", &self.padding)?;
        map.serialize_entry("data-bytes", &self.data_bytes)?;
        map.serialize_entry("compressed-blocks", &self.compressed_blocks)?;
        map.serialize_entry("passthrough-blocks", &self.passthrough_blocks)?;
        map.serialize_entry("written-bytes", &self.written_bytes)?;
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
