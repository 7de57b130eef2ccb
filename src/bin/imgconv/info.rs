//! `imgconv info`

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

use diskimage::{Inspection, Name};

use crate::args::Input;
use crate::failure::Outcome;
use crate::output::{self, Style, human_properties, human_size};
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
        let (options, file) = self.input.open()?;
        let chain = match self.backing_chain {
            true => options.inspect_chain(file)?,
            false => vec![options.inspect(file)?],
        };
        match self.input.output.style {
            Style::Human => output::print(&chain.iter().map(human).collect::<Vec<_>>().join("\n"))?,
            Style::Json if self.backing_chain => output::print_json(&chain)?,
            Style::Json => chain.iter().try_for_each(output::print_json)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The path the image was opened with.
fn path(image: &Inspection) -> &Path {
    image.path.as_deref().unwrap_or(Path::new(""))
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
        let full = backing.full_name(path(image));
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
