//! `imgconv info`

mod glance;

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

use diskimage::{CompressionLayer, GuestVolume, Inspection, Name, OpenOptions, Package};
use serde_json::{Value, json};

use crate::args::Input;
use crate::failure::{Failure, Outcome};
use crate::guest;
use crate::location::{self, Location};
use crate::output::{self, Style, exact_size, human_properties, human_size};
use crate::snapshot;
use glance::Glance;

/// Show format, size and metadata of an image
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Also show the backing files that --references allows
    #[arg(short = 'b', long)]
    backing_chain: bool,

    /// Also show the file systems of the disk: labels, UUIDs, what is in use.
    /// Reads the disk, and so the files that --references allows
    #[arg(long, verbatim_doc_comment)]
    guest: bool,

    #[command(flatten)]
    pub input: Input,
}

const AFTER_HELP: &str = "\
Only FILE is opened, unless --backing-chain or --guest is given, and then what --references
allows. The keys of --output json are those of qemu-img info, and some more: compression,
warnings, properties of the format, and glance, the names of disk and container format for
an upload to OpenStack.

Kernels and ramdisks are named, too. With --guest, --output json has the key guest, a list
of volumes; of a package, each of its disks has it.

Examples:
  imgconv info --output json disk.qcow2
  imgconv info --guest disk.qcow2
  imgconv info --backing-chain --references beside overlay.qcow2";

impl Args {
    pub fn run(&self) -> Outcome {
        let (options, file) = self.input.open()?;
        let image = Location::find(file)?;
        if self.input.package.disk.is_none()
            && let Some(package) = image.package(&options)?
        {
            return self.package(&package, &image, &options);
        }
        let chain = match self.backing_chain {
            true => image.inspect_chain(&options)?,
            false => vec![image.inspect(&options)?],
        };
        // Those of the disk, which is the whole chain, belong to its first image.
        let volumes = self.guest.then(|| image.open(&options)?.volumes()).transpose()?;
        match self.input.output.style {
            Style::Human => {
                let mut texts: Vec<_> = chain.iter().map(|image| human(image, Glance::of_image(image))).collect();
                if let (Some(volumes), Some(text)) = (volumes, texts.first_mut()) {
                    text.push_str(&guest::describe(&volumes));
                }
                output::print(&texts.join("\n"))?;
            }
            Style::Json => {
                let mut values: Vec<_> = chain.iter().map(value).collect();
                if let (Some(volumes), Some(value)) = (volumes, values.first_mut()) {
                    value["guest"] = json!(volumes);
                }
                match self.backing_chain {
                    true => output::print_json(&values)?,
                    false => values.iter().try_for_each(output::print_json)?,
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Args {
    /// Shows the members and disks of a package, and the image of each disk that can be opened.
    fn package(&self, package: &Package, file: &Location, options: &OpenOptions) -> Outcome {
        let disk = |index: usize| options.clone().member((index + 1).to_string());
        let inspect = |index: usize| file.inspect(&disk(index));
        let disks: Vec<_> = package.disks.iter().enumerate().map(|(index, disk)| (disk, inspect(index))).collect();
        // Of a disk that cannot be opened, the reason is told already.
        let guest = |(index, (_, image)): (usize, &(_, diskimage::Result<Inspection>))| match image {
            Ok(_) if self.guest => Ok(Some(file.open(&disk(index))?.volumes()?)),
            _ => Ok(None),
        };
        let guests = disks.iter().enumerate().map(guest).collect::<Result<Vec<_>, Failure>>()?;
        let size = |size: Option<u64>| size.map_or_else(|| "unknown size".to_owned(), human_size);
        let images = disks.iter().filter(|(disk, _)| disk.has_file).map(|(_, image)| image.as_ref().ok());
        let glance = images.collect::<Option<Vec<_>>>().and_then(|images| Glance::of_package(package, images));
        match self.input.output.style {
            Style::Human => {
                let mut text =
                    format!("image: {}\npackage: {}\n", Name::from(&*location::shown(&self.input.file)), package.kind);
                for layer in &package.compression {
                    text.push_str(&format!("compression: {}\n", compression(layer)));
                }
                if let Some(glance) = glance {
                    text.push_str(&format!("for OpenStack Glance: {glance}\n"));
                }
                text.push_str("members:\n");
                for member in &package.members {
                    text.push_str(&format!("    {}: {}, {}\n", member.name, member.role, size(member.size)));
                }
                for warning in &package.warnings {
                    text.push_str(&format!("warning: {}\n", output::printable(warning)));
                }
                for (index, ((disk, image), guest)) in disks.iter().zip(&guests).enumerate() {
                    text.push_str(&format!("\ndisk {}: {}\n", index + 1, disk.name));
                    if let Some(capacity) = disk.capacity {
                        text.push_str(&format!("capacity: {}\n", exact_size(capacity)));
                    }
                    match image {
                        // The package is what is uploaded.
                        Ok(image) => text.push_str(&human(image, None)),
                        Err(error) => {
                            text.push_str(&format!("not opened: {}\n", output::printable(&error.to_string())))
                        }
                    }
                    if let Some(volumes) = guest {
                        text.push_str(&guest::describe(volumes));
                    }
                }
                output::print(&text)?;
            }
            Style::Json => {
                let member = |member: &diskimage::PackageMember| json!({ "name": member.name, "role": member.role, "size": member.size });
                let disk = |((disk, image), guest): (
                    &(&diskimage::PackageDisk, diskimage::Result<Inspection>),
                    &Option<Vec<GuestVolume>>,
                )| {
                    let mut value =
                        json!({ "name": disk.name, "id": disk.id, "size": disk.size, "capacity": disk.capacity });
                    match image {
                        Ok(image) => value["image"] = self::value(image),
                        Err(error) => value["error"] = error.to_string().into(),
                    }
                    if let Some(volumes) = guest {
                        value["guest"] = json!(volumes);
                    }
                    value
                };
                let mut value = json!({
                    "filename": location::shown(&self.input.file).to_string_lossy(),
                    "format": package.kind,
                    "members": package.members.iter().map(member).collect::<Vec<Value>>(),
                    "disks": disks.iter().zip(&guests).map(disk).collect::<Vec<Value>>(),
                });
                if !package.compression.is_empty() {
                    value["compression"] = json!(package.compression);
                }
                if let Some(glance) = glance {
                    value["glance"] = json!(glance);
                }
                if !package.warnings.is_empty() {
                    value["warnings"] = json!(package.warnings);
                }
                if let [(_, Ok(image))] = disks.as_slice() {
                    value["virtual-size"] = image.info.virtual_size.into();
                }
                output::print_json(&value)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The path the image was opened with.
fn path(image: &Inspection) -> &Path {
    image.path.as_deref().unwrap_or(Path::new(""))
}

/// The image in JSON style.
fn value(image: &Inspection) -> Value {
    let mut value = json!(image);
    if let Some(glance) = Glance::of_image(image) {
        value["glance"] = json!(glance);
    }
    value
}

fn compression(layer: &CompressionLayer) -> String {
    format!("{}, decompressed to {}", layer.name, exact_size(layer.decompressed_len))
}

/// Describes the image with the words of qemu-img.
fn human(image: &Inspection, glance: Option<Glance>) -> String {
    let info = &image.info;
    let mut text = String::new();
    let mut add = |key: &str, value: &dyn Display| text.push_str(&format!("{key}: {value}\n"));
    add("image", &Name::from(path(image)));
    for layer in &image.compression {
        add("compression", &compression(layer));
    }
    add("file format", &image.format);
    add("virtual size", &exact_size(info.virtual_size));
    let stored = image.allocated.unwrap_or(image.file_len);
    add("disk size", &format!("{}{}", human_size(stored), share(stored, info.virtual_size)));
    add("file length", &exact_size(image.file_len));
    if let Some(method) = info.encryption {
        add("encrypted", &format!("yes ({method})"));
    }
    if let Some(size) = info.block_size {
        add("cluster size", &exact_size(size.into()));
    }
    if info.dirty {
        add("cleanly shut down", &"no");
    }
    if let Some(backing) = &info.backing {
        let full = backing.full_name(path(image));
        match full == backing.name {
            true => add("backing file", &full),
            false => add("backing file", &format!("{} (actual path: {full})", backing.name)),
        }
        if let Some(format) = &backing.format {
            add("backing file format", format);
        }
    }
    if let Some(glance) = glance {
        add("for OpenStack Glance", &glance);
    }
    let mut text = output::columns(&text);
    if !info.snapshots.is_empty() {
        text.push_str(&snapshot::human(&info.snapshots));
    }
    if !info.specific.is_empty() {
        let properties = output::columns(&human_properties(&info.specific, 1, exact_size));
        text.push_str(&format!("Format specific information:\n{properties}"));
    }
    for warning in info.warnings.iter().chain(&info.ambiguities) {
        text.push_str(&format!("warning: {}\n", output::printable(warning)));
    }
    text
}

/// How large a file is beside its disk.
fn share(stored: u64, virtual_size: u64) -> String {
    match stored as f64 * 100.0 / virtual_size as f64 {
        _ if virtual_size == 0 => String::new(),
        percent if percent > 0.0 && percent < 0.1 => ", less than 0.1% of the virtual size".into(),
        percent if percent < 10.0 => format!(", {percent:.1}% of the virtual size"),
        percent => format!(", {percent:.0}% of the virtual size"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        for (stored, expected) in [(0, "0.0%"), (1, "less than 0.1%"), (100, "1.0%"), (1234, "12%"), (10010, "100%")] {
            assert_eq!(share(stored, 10_000), format!(", {expected} of the virtual size"));
        }
        assert_eq!(share(5, 0), "");
    }
}
