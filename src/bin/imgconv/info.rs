//! `imgconv info`

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

use diskimage::{FileReference, Inspection, Name};
use serde_json::{Map, Value, json};

use crate::args::Input;
use crate::failure::Outcome;
use crate::output::{self, Style, human_properties, human_size, to_json_object};
use crate::snapshot;

/// Show format, size and metadata of an image
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Also show the backing files that --references allows
    #[arg(long)]
    backing_chain: bool,

    #[command(flatten)]
    pub input: Input,
}

const AFTER_HELP: &str = "\
Only FILE is opened, unless --backing-chain is given. The keys of --output json are
those of qemu-img info, plus warnings.

Examples:
  imgconv info --output json disk.qcow2
  imgconv info --backing-chain --references beside overlay.qcow2";

impl Args {
    pub fn run(&self) -> Outcome {
        let options = self.input.options();
        let chain = match self.backing_chain {
            true => options.inspect_chain(&self.input.file)?,
            false => vec![options.inspect(&self.input.file)?],
        };
        match self.input.output.style {
            Style::Human => output::print(&chain.iter().map(human).collect::<Vec<_>>().join("\n"))?,
            Style::Json if self.backing_chain => output::print_json(&chain.iter().map(json).collect())?,
            Style::Json => chain.iter().map(json).try_for_each(|image| output::print_json(&image))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The path the image was opened with.
fn path(image: &Inspection) -> &Path {
    image.path.as_deref().unwrap_or(Path::new(""))
}

/// Describes the image with the keys of qemu-img.
fn json(image: &Inspection) -> Value {
    let info = &image.info;
    let mut object = Map::new();
    let mut set = |key: &str, value: Value| {
        object.insert(key.to_owned(), value);
    };
    set("virtual-size", info.virtual_size.into());
    set("filename", path(image).to_string_lossy().into());
    if let Some(size) = info.block_size {
        set("cluster-size", size.into());
    }
    set("format", image.format.name().into());
    set("actual-size", image.allocated.unwrap_or(image.file_len).into());
    if info.encryption.is_some() {
        set("encrypted", true.into());
    }
    if let Some(backing) = &info.backing {
        set("backing-filename", backing.name.to_text().into());
        set("full-backing-filename", full_name(path(image), backing).to_text().into());
        if let Some(format) = &backing.format {
            set("backing-filename-format", format.to_text().into());
        }
    }
    if !info.snapshots.is_empty() {
        set("snapshots", info.snapshots.iter().map(snapshot::json).collect());
    }
    if !info.specific.is_empty() {
        set("format-specific", json!({ "type": image.format.name(), "data": to_json_object(&info.specific) }));
    }
    set("dirty-flag", info.dirty.into());
    if !info.warnings.is_empty() {
        set("warnings", info.warnings.iter().map(|warning| Value::from(&**warning)).collect());
    }
    set("children", json!([{ "name": "file", "info": json_file(image) }]));
    Value::Object(object)
}

/// Describes the image file, which qemu-img lists as a child node.
fn json_file(image: &Inspection) -> Value {
    json!({
        "virtual-size": image.file_len,
        "filename": path(image).to_string_lossy(),
        "format": "file",
        "actual-size": image.allocated.unwrap_or(image.file_len),
        "format-specific": { "type": "file", "data": {} },
        "dirty-flag": false,
        "children": [],
    })
}

/// Describes the image as qemu-img does.
fn human(image: &Inspection) -> String {
    let info = &image.info;
    let size = |bytes: u64| format!("{} ({bytes} bytes)", human_size(bytes));
    let mut text = String::new();
    let mut add = |key: &str, value: &dyn Display| text.push_str(&format!("{key}: {value}\n"));
    add("image", &Name::from(path(image)));
    add("file format", &image.format);
    add("virtual size", &size(info.virtual_size));
    add("disk size", &human_size(image.allocated.unwrap_or(image.file_len)));
    if let Some(method) = info.encryption {
        add("encrypted", &format!("yes ({method})"));
    }
    if let Some(size) = info.block_size {
        add("cluster_size", &size);
    }
    if info.dirty {
        add("cleanly shut down", &"no");
    }
    if let Some(backing) = &info.backing {
        let full = full_name(path(image), backing);
        match full == backing.name {
            true => add("backing file", &full),
            false => add("backing file", &format!("{} (actual path: {full})", backing.name)),
        }
        if let Some(format) = &backing.format {
            add("backing file format", format);
        }
    }
    if !info.snapshots.is_empty() {
        text.push_str(&snapshot::human(&info.snapshots));
    }
    if !info.specific.is_empty() {
        text.push_str(&format!("Format specific information:\n{}", human_properties(&info.specific, 1)));
    }
    for warning in &info.warnings {
        text.push_str(&format!("warning: {}\n", output::printable(warning)));
    }
    text.push_str(&format!("File:\n    length: {}\n", size(image.file_len)));
    text
}

/// Resolves the name of a backing file. URLs and pseudo-protocols (`nbd:`, `json:`) are returned as they are.
fn full_name(path: &Path, backing: &FileReference) -> Name {
    let path = backing.path_from(path).filter(|_| backing.is_file_name());
    path.map_or_else(|| backing.name.clone(), |path| Name::from(&*path))
}
