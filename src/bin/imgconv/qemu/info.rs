//! `qemu-img info`

use std::fs;
use std::path::{Path, PathBuf};

use diskimage::{Inspection, Name, Value as Property};
use serde_json::{Map, Value, json};

use super::getopt::Parsed;
use super::message::Failed;
use super::source::{SECTOR, Sources};
use super::{Outcome, style};
use crate::output::{self, Style, human_properties, human_size};
use crate::snapshot;

pub fn run(parsed: &Parsed) -> Outcome {
    let style = style(parsed)?;
    let [name] = parsed.operands.as_slice() else {
        return Err(Failed::new("Expecting one image file name").see_help("info"));
    };
    let source = Sources::new(parsed).source(name, parsed.text("format").as_deref())?;
    let chain = if parsed.flag("backing-chain") { source.inspect_chain()? } else { vec![source.inspect()?] };
    let mut images: Vec<_> = chain.into_iter().map(|inspection| Described::new(inspection, source.name())).collect();
    if let Some(top) = images.first_mut() {
        top.name = source.described(top.image.format).unwrap_or_else(|| std::mem::take(&mut top.name));
    }
    match style {
        Style::Human => output::print(&images.iter().map(Described::human).collect::<Vec<_>>().join("\n"))?,
        Style::Json if parsed.flag("backing-chain") => {
            output::print_json_indented(&images.iter().map(Described::json).collect::<Value>())?;
        }
        Style::Json => images.iter().try_for_each(|image| output::print_json_indented(&image.json()))?,
    }
    Ok(0)
}

/// The properties of the encryption, in the order of qemu-img.
const ENCRYPTION: [&str; 11] = [
    "ivgen-alg",
    "ivgen-hash-alg",
    "detached-header",
    "hash-alg",
    "cipher-alg",
    "uuid",
    "format",
    "cipher-mode",
    "slots",
    "payload-offset",
    "master-key-iters",
];

fn encryption_of_qemu(mut encryption: Property) -> Property {
    if let Property::Map(entries) = &mut encryption {
        entries.sort_by_key(|(key, _)| ENCRYPTION.iter().position(|known| known == key));
    }
    encryption
}

/// An image with its files.
struct Described {
    image: Inspection,
    name: String,
    /// The files with their names in the graph of qemu: the extents, then the image file.
    files: Vec<File>,
}

struct File {
    node: String,
    name: String,
    len: u64,
    allocated: u64,
}

impl Described {
    fn new(mut image: Inspection, name: &str) -> Described {
        image.info.virtual_size = image.info.virtual_size.next_multiple_of(SECTOR);
        let name = image.path.as_deref().map_or(name.to_owned(), |path| path.to_string_lossy().into_owned());
        let extents = if image.info.format == "vmdk" { extents(&image) } else { Vec::new() };
        let mut files: Vec<_> =
            extents.iter().enumerate().filter_map(|(index, path)| File::extent(index, path)).collect();
        // qemu counts whole sectors of files, too.
        let (len, allocated) = (image.file_len.next_multiple_of(SECTOR), image.allocated.unwrap_or(image.file_len));
        files.push(File { node: "file".into(), name: name.clone(), len, allocated });
        Described { image, name, files }
    }

    fn actual_size(&self) -> u64 {
        self.files.iter().map(|file| file.allocated).sum()
    }

    /// The properties that qemu-img shows.
    fn specific(&self) -> Vec<(&'static str, Property)> {
        let known: &[&str] = match self.image.info.format {
            "qcow2" => &[
                "compat",
                "compression-type",
                "lazy-refcounts",
                "bitmaps",
                "refcount-bits",
                "encrypt",
                "data-file",
                "data-file-raw",
                "corrupt",
                "extended-l2",
            ],
            "vmdk" => &["cid", "parent-cid", "create-type", "extents"],
            "luks" => &ENCRYPTION,
            _ => &[],
        };
        let all = &self.image.info.specific;
        let found = known.iter().filter_map(|name| all.iter().find(|(key, _)| key == name).cloned());
        let as_by_qemu = |key: &str, value| match key {
            "extents" => self.extents_of_qemu(value),
            "encrypt" => encryption_of_qemu(value),
            _ => value,
        };
        found.map(|(key, value)| (key, as_by_qemu(key, value))).collect()
    }

    /// The extents as qemu-img shows them: without their access, and of an extent in the image file without its kind.
    fn extents_of_qemu(&self, mut extents: Property) -> Property {
        let is_inside = self.files.len() == 1;
        let Property::List(list) = &mut extents else { return extents };
        for extent in list {
            let Property::Map(entries) = extent else { continue };
            entries.retain(|(key, _)| *key != "access");
            for (_, value) in entries.iter_mut().filter(|(key, _)| is_inside && *key == "format") {
                *value = Property::Text("".into());
            }
        }
        extents
    }

    fn json(&self) -> Value {
        let info = &self.image.info;
        let mut object = Map::new();
        let mut add = |key: &str, value: Option<Value>| value.map(|value| object.insert(key.to_owned(), value));
        add("children", Some(self.files.iter().map(File::json).collect()));
        let path = self.image.path.as_deref().unwrap_or(Path::new(""));
        let backing = info.backing.as_ref();
        add("backing-filename-format", backing.and_then(|backing| backing.format.as_ref()).map(|format| json!(format)));
        add("snapshots", Some(json!(info.snapshots)).filter(|_| !info.snapshots.is_empty()));
        add("virtual-size", Some(json!(info.virtual_size)));
        add("filename", Some(json!(self.name)));
        add("cluster-size", info.block_size.map(|size| json!(size)));
        add("format", Some(json!(info.format)));
        add("actual-size", Some(json!(self.actual_size())));
        let specific = self.specific();
        if !specific.is_empty() {
            let data: Map<_, _> = specific.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
            add("format-specific", Some(json!({ "type": info.format, "data": data })));
        }
        add("encrypted", info.encryption.map(|_| json!(true)));
        add("full-backing-filename", backing.map(|backing| json!(backing.full_name(path))));
        add("backing-filename", backing.map(|backing| json!(backing.name)));
        add("dirty-flag", Some(json!(info.dirty)));
        Value::Object(object)
    }

    fn human(&self) -> String {
        let info = &self.image.info;
        let mut text = format!(
            "image: {}\nfile format: {}\nvirtual size: {} ({} bytes)\ndisk size: {}\n",
            output::printable(&self.name),
            info.format,
            human_size(info.virtual_size),
            info.virtual_size,
            human_size(self.actual_size())
        );
        let mut add = |line: String| text.push_str(&format!("{line}\n"));
        if info.encryption.is_some() {
            add("encrypted: yes".into());
        }
        if let Some(size) = info.block_size {
            add(format!("cluster_size: {size}"));
        }
        if info.dirty {
            add("cleanly shut down: no".into());
        }
        if let Some(backing) = &info.backing {
            let full = backing.full_name(self.image.path.as_deref().unwrap_or(Path::new("")));
            let actual = if full == backing.name { String::new() } else { format!(" (actual path: {full})") };
            add(format!("backing file: {}{actual}", backing.name));
            if let Some(format) = &backing.format {
                add(format!("backing file format: {format}"));
            }
        }
        if !info.snapshots.is_empty() {
            text.push_str(&snapshot::table(&info.snapshots, "DATE"));
        }
        let specific = self.specific();
        if !specific.is_empty() {
            text.push_str(&format!(
                "Format specific information:\n{}",
                human_properties(&specific, 1, |bytes| bytes.to_string())
            ));
        }
        text.extend(self.files.iter().map(File::human));
        text
    }
}

/// The paths of the extents of a VMDK that are files of their own.
fn extents(image: &Inspection) -> Vec<PathBuf> {
    let Some(path) = image.path.as_deref() else { return Vec::new() };
    image.info.files.iter().filter_map(|file| file.path_from(path)).collect()
}

impl File {
    /// The extent, if there is such a file.
    fn extent(index: usize, path: &Path) -> Option<File> {
        let metadata = fs::metadata(path).ok()?;
        let name = Name::from(path).to_text().into_owned();
        let len = metadata.len().next_multiple_of(SECTOR);
        Some(File { node: format!("extents.{index}"), name, len, allocated: allocated(&metadata) })
    }

    fn json(&self) -> Value {
        let file = json!({
            "children": [],
            "virtual-size": self.len,
            "filename": self.name,
            "format": "file",
            "actual-size": self.allocated,
            "format-specific": { "type": "file", "data": {} },
            "dirty-flag": false,
        });
        json!({ "name": self.node, "info": file })
    }

    fn human(&self) -> String {
        format!(
            "Child node '/{}':\n    filename: {}\n    protocol type: file\n    file length: {} ({} bytes)\n    disk size: {}\n",
            self.node,
            output::printable(&self.name),
            human_size(self.len),
            self.len,
            human_size(self.allocated)
        )
    }
}

#[cfg(unix)]
fn allocated(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(metadata).saturating_mul(512)
}

#[cfg(not(unix))]
fn allocated(metadata: &fs::Metadata) -> u64 {
    metadata.len()
}
