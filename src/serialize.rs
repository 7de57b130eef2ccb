//! [`Serialize`] for reports and properties, with the feature `serde`.
//!
//! The keys and their order are those of `qemu-img --output json`, where it has them. Bytes outside UTF-8 become replacement
//! characters.

#[cfg(feature = "write")]
mod convert;

use std::borrow::Cow;
use std::path::Path;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::driver::{CheckMessage, CheckReport, ExtentKind};
use crate::error::ErrorKind;
use crate::format::Format;
use crate::image::{Allocation, Inspection, Plot, Span};
use crate::info::{CompressionLayer, FileReference, ImageInfo, Snapshot, Value};
use crate::name::Name;

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_text())
    }
}

/// The word of [`Verdict::as_str`](crate::inspect::Verdict::as_str).
#[cfg(feature = "inspect")]
impl Serialize for crate::inspect::Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// As `check`, `verdict`, `disk`, `field`, `offset`, `value`, `rule`, where they are known, and `message`.
#[cfg(feature = "inspect")]
impl Serialize for crate::inspect::Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("check", self.check)?;
        map.serialize_entry("verdict", &self.verdict)?;
        optional(&mut map, "disk", self.disk.as_ref())?;
        optional(&mut map, "field", self.field.as_ref())?;
        optional(&mut map, "offset", self.offset)?;
        optional(&mut map, "value", self.value.as_ref())?;
        optional(&mut map, "rule", self.rule.as_ref())?;
        map.serialize_entry("message", &self.message)?;
        map.end()
    }
}

/// As `verdict`, `format`, `virtual-size`, `compression`, `external-files`, where they are known or there are such, and `findings`.
#[cfg(feature = "inspect")]
impl Serialize for crate::inspect::Judgement {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("verdict", &self.verdict)?;
        optional(&mut map, "format", self.format)?;
        optional(&mut map, "virtual-size", self.virtual_size)?;
        optional(&mut map, "compression", (!self.compression.is_empty()).then_some(&self.compression))?;
        optional(&mut map, "external-files", (!self.external_files.is_empty()).then_some(&self.external_files))?;
        map.serialize_entry("findings", &self.findings)?;
        map.end()
    }
}

/// As `partition` or `logical-volume`, `start`, `length`, `content`, `label`, `uuid`, `size`, `free`, where they are known, `unused`,
/// `unused-stored`, and `kept` with the reason.
#[cfg(feature = "sparsify")]
impl Serialize for crate::guest::free::GuestVolume {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        optional(&mut map, "partition", self.partition)?;
        optional(&mut map, "logical-volume", self.logical_volume.as_ref())?;
        optional(&mut map, "start", (!self.range.is_empty()).then_some(self.range.start))?;
        map.serialize_entry("length", &self.len)?;
        optional(&mut map, "content", self.content)?;
        optional(&mut map, "label", (!self.label.as_bytes().is_empty()).then_some(&self.label))?;
        optional(&mut map, "uuid", self.uuid.as_ref())?;
        optional(&mut map, "size", self.size)?;
        optional(&mut map, "free", self.free)?;
        map.serialize_entry("unused", &self.unused)?;
        map.serialize_entry("unused-stored", &self.unused_stored)?;
        optional(&mut map, "kept", self.kept.as_ref())?;
        map.end()
    }
}

/// As `cell-length`, `cells` and `total`.
impl Serialize for Plot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("cell-length", &self.cell_len)?;
        map.serialize_entry("cells", &self.cells)?;
        map.serialize_entry("total", &self.total)?;
        map.end()
    }
}

/// Without the kinds of which there is nothing.
impl Serialize for Allocation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Allocation { data, compressed, backing, zero, unallocated, free } = *self;
        let kinds = [data, compressed, backing, zero, unallocated, free];
        let names = ["data", "compressed", "backing", "zero", "unallocated", "free"];
        serializer.collect_map(names.into_iter().zip(kinds).filter(|(_, bytes)| *bytes > 0))
    }
}

impl Serialize for Format {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl Serialize for ErrorKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Number(value) => serializer.serialize_u64(*value),
            Value::Text(text) => text.serialize(serializer),
            Value::List(values) => serializer.collect_seq(values),
            Value::Map(entries) => Properties(entries).serialize(serializer),
        }
    }
}

/// Properties as a map.
struct Properties<'a>(&'a [(&'static str, Value)]);

impl Serialize for Properties<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

/// With the keys of `qemu-img snapshot`.
impl Serialize for Snapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const NANOS: u64 = 1_000_000_000;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("name", &self.name)?;
        map.serialize_entry("vm-state-size", &self.vm_state_size)?;
        map.serialize_entry("date-sec", &self.date.0)?;
        map.serialize_entry("date-nsec", &self.date.1)?;
        map.serialize_entry("vm-clock-sec", &(self.vm_clock_nsec / NANOS))?;
        map.serialize_entry("vm-clock-nsec", &(self.vm_clock_nsec % NANOS))?;
        optional(&mut map, "icount", self.icount)?;
        map.end()
    }
}

/// As `role`, `filename` and, where the image states it, `format`.
impl Serialize for FileReference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("role", self.role)?;
        map.serialize_entry("filename", &self.name)?;
        optional(&mut map, "format", self.format.as_ref())?;
        map.end()
    }
}

/// With the keys of `qemu-img info`, without those of the file; [`Inspection`] has them.
impl Serialize for ImageInfo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        info_map(self, None, serializer)
    }
}

impl Serialize for CompressionLayer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("format", self.name)?;
        map.serialize_entry("decompressed-size", &self.decompressed_len)?;
        map.end()
    }
}

/// With the keys of `qemu-img info`, and `compression`, `warnings` and `ambiguities`.
impl Serialize for Inspection {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        info_map(&self.info, Some(self), serializer)
    }
}

fn info_map<S: Serializer>(info: &ImageInfo, file: Option<&Inspection>, serializer: S) -> Result<S::Ok, S::Error> {
    let path = file.and_then(|file| file.path.as_deref());
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("virtual-size", &info.virtual_size)?;
    optional(&mut map, "filename", path.map(Path::to_string_lossy))?;
    optional(&mut map, "cluster-size", info.block_size)?;
    map.serialize_entry("format", info.format)?;
    optional(&mut map, "actual-size", file.map(actual_size))?;
    optional(&mut map, "encrypted", info.encryption.map(|_| true))?;
    if let Some(backing) = &info.backing {
        map.serialize_entry("backing-filename", &backing.name)?;
        optional(&mut map, "full-backing-filename", path.map(|path| backing.full_name(path)))?;
        optional(&mut map, "backing-filename-format", backing.format.as_ref())?;
    }
    optional(&mut map, "snapshots", Some(&info.snapshots).filter(|snapshots| !snapshots.is_empty()))?;
    if !info.specific.is_empty() {
        let specific = FormatSpecific { r#type: info.format, data: Properties(&info.specific) };
        map.serialize_entry("format-specific", &specific)?;
    }
    let compression = file.map(|file| &file.compression).filter(|layers| !layers.is_empty());
    optional(&mut map, "compression", compression)?;
    map.serialize_entry("dirty-flag", &info.dirty)?;
    optional(&mut map, "warnings", Some(&info.warnings).filter(|warnings| !warnings.is_empty()))?;
    optional(&mut map, "ambiguities", Some(&info.ambiguities).filter(|ambiguities| !ambiguities.is_empty()))?;
    if let Some(file) = file {
        map.serialize_entry("children", &[Child { name: "file", info: FileInfo::new(file) }])?;
    }
    map.end()
}

/// Adds an entry, if there is a value.
fn optional<M: SerializeMap>(map: &mut M, key: &'static str, value: Option<impl Serialize>) -> Result<(), M::Error> {
    value.map_or(Ok(()), |value| map.serialize_entry(key, &value))
}

fn actual_size(file: &Inspection) -> u64 {
    file.allocated.unwrap_or(file.file_len)
}

#[derive(Serialize)]
struct FormatSpecific<'a> {
    r#type: &'static str,
    data: Properties<'a>,
}

#[derive(Serialize)]
struct Child<'a> {
    name: &'static str,
    info: FileInfo<'a>,
}

/// The image file, which qemu-img describes as an image of the format `file`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct FileInfo<'a> {
    virtual_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    filename: Option<Cow<'a, str>>,
    format: &'static str,
    actual_size: u64,
    format_specific: FormatSpecific<'a>,
    dirty_flag: bool,
    children: [(); 0],
}

impl<'a> FileInfo<'a> {
    fn new(file: &'a Inspection) -> Self {
        FileInfo {
            virtual_size: file.file_len,
            filename: file.path.as_deref().map(Path::to_string_lossy),
            format: "file",
            actual_size: actual_size(file),
            format_specific: FormatSpecific { r#type: "file", data: Properties(&[]) },
            dirty_flag: false,
            children: [],
        }
    }
}

/// The whole text.
impl Serialize for CheckMessage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

/// With the keys of `qemu-img check`, without counts that are 0, and `messages`.
impl Serialize for CheckReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("format", self.format)?;
        map.serialize_entry("check-errors", &self.check_errors)?;
        for (key, count) in [
            ("image-end-offset", self.image_end_offset),
            ("corruptions", self.corruptions),
            ("leaks", self.leaks),
            ("total-clusters", self.total_clusters),
            ("allocated-clusters", self.allocated_clusters),
            ("fragmented-clusters", self.fragmented_clusters),
            ("compressed-clusters", self.compressed_clusters),
        ] {
            optional(&mut map, key, Some(count).filter(|count| *count > 0))?;
        }
        optional(&mut map, "messages", Some(&self.messages).filter(|messages| !messages.is_empty()))?;
        map.end()
    }
}

/// With the keys of `qemu-img map`; `depth` is the layer.
impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("start", &self.offset)?;
        map.serialize_entry("length", &self.len)?;
        map.serialize_entry("depth", &self.layer)?;
        map.serialize_entry("present", &(self.kind != ExtentKind::Hole))?;
        map.serialize_entry("zero", &self.is_zero())?;
        map.serialize_entry("data", &self.is_data())?;
        map.serialize_entry("compressed", &matches!(self.kind, ExtentKind::Compressed(_)))?;
        optional(&mut map, "offset", self.location().map(|at| at.offset))?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::to_string;

    use super::*;
    use crate::convert::Report;
    use crate::driver::{FileId, Location};

    #[test]
    fn an_image_has_the_keys_of_qemu_img_info() {
        let mut info = ImageInfo::new("qcow2", 1 << 20);
        info.block_size = Some(65536);
        info.backing = Some(FileReference::new("backing file", "base.raw".into(), Some("raw".into())));
        let mut snapshot = Snapshot::new("1".into(), "s".into(), 1 << 20);
        (snapshot.date, snapshot.vm_clock_nsec) = ((7, 8), 5_000_000_009);
        info.snapshots = vec![snapshot];
        let bitmap = Value::Map(vec![("name", "b0".into()), ("granularity", 512.into())]);
        info.specific = vec![("lazy-refcounts", false.into()), ("bitmaps", Value::List(vec![bitmap]))];
        info.warnings = vec!["a warning".into()];
        let path = Some("vm/top.qcow2".into());
        let inspection = Inspection {
            path,
            compression: Vec::new(),
            format: Format::QCOW2,
            content: crate::guest::ContentKind::Disk,
            info,
            file_len: 4096,
            allocated: Some(512),
        };
        assert_eq!(
            to_string(&inspection).unwrap(),
            concat!(
                r#"{"virtual-size":1048576,"filename":"vm/top.qcow2","cluster-size":65536,"format":"qcow2","actual-size":512,"#,
                r#""backing-filename":"base.raw","full-backing-filename":"vm/base.raw","backing-filename-format":"raw","#,
                r#""snapshots":[{"id":"1","name":"s","vm-state-size":0,"date-sec":7,"date-nsec":8,"vm-clock-sec":5,"#,
                r#""vm-clock-nsec":9}],"format-specific":{"type":"qcow2","data":{"lazy-refcounts":false,"#,
                r#""bitmaps":[{"name":"b0","granularity":512}]}},"dirty-flag":false,"warnings":["a warning"],"#,
                r#""children":[{"name":"file","info":{"virtual-size":4096,"filename":"vm/top.qcow2","format":"file","#,
                r#""actual-size":512,"format-specific":{"type":"file","data":{}},"dirty-flag":false,"children":[]}}]}"#,
            )
        );
        let info = ImageInfo::new("raw", 512);
        assert_eq!(to_string(&info).unwrap(), r#"{"virtual-size":512,"format":"raw","dirty-flag":false}"#);
    }

    #[test]
    fn a_check_has_the_keys_of_qemu_img_check() {
        let mut report = CheckReport { format: "qcow2", ..CheckReport::default() };
        assert_eq!(to_string(&report).unwrap(), r#"{"format":"qcow2","check-errors":0}"#);
        (report.image_end_offset, report.total_clusters, report.allocated_clusters) = (4096, 9, 3);
        report.leak(|| "cluster 1".into());
        assert_eq!(
            to_string(&report).unwrap(),
            concat!(
                r#"{"format":"qcow2","check-errors":0,"image-end-offset":4096,"leaks":1,"total-clusters":9,"#,
                r#""allocated-clusters":3,"messages":["Leaked: cluster 1"]}"#,
            )
        );
    }

    #[test]
    fn a_span_has_the_keys_of_qemu_img_map() {
        let kind = ExtentKind::Data(Location { file: FileId(0), offset: 4096 });
        let span = Span { offset: 0, len: 512, kind, layer: 1, host_hole: false };
        assert_eq!(
            to_string(&span).unwrap(),
            concat!(
                r#"{"start":0,"length":512,"depth":1,"present":true,"zero":false,"data":true,"compressed":false,"#,
                r#""offset":4096}"#,
            )
        );
        let hole = Span { host_hole: true, ..span };
        assert!(to_string(&hole).unwrap().contains(r#""zero":true,"data":true"#));
    }

    #[test]
    fn a_report_names_both_formats() {
        use std::sync::Arc;

        use crate::io::MemFile;

        let report = crate::Converter::new(Format::RAW).create_to(1024, Arc::new(MemFile::new())).unwrap();
        let report = Report { source_format: Some(Format::VHD), ..report };
        assert_eq!(
            to_string(&report).unwrap(),
            concat!(
                r#"{"source-format":"vpc","target-format":"raw","virtual-size":1024,"padding":0,"data-bytes":0,"#,
                r#""zero-bytes":1024,"compressed-blocks":0,"compressed-bytes":0,"passthrough-blocks":0,"#,
                r#""passthrough-bytes":0,"written-bytes":0,"cloned-bytes":0}"#,
            )
        );
    }

    #[test]
    fn text_of_an_image_is_always_valid() {
        assert_eq!(to_string(&Name::from(&b"a\xff"[..])).unwrap(), "\"a\u{fffd}\"");
        assert_eq!(to_string(&ErrorKind::OutOfBounds).unwrap(), r#""out-of-bounds""#);
    }
}
