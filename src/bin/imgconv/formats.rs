//! `imgconv formats`

use std::fmt::Write as _;
use std::process::ExitCode;

use diskimage::{Format, OptionSpec, Package, Preset};
use serde_json::{Value, json};

use crate::args::Output;
use crate::failure::Outcome;
use crate::output::{self, Style};

/// List the supported formats and their options, and the platforms of --for
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub output: Output,
}

impl Args {
    pub fn run(&self) -> Outcome {
        match self.output.style {
            Style::Json => output::print_json(&Format::all().map(json).collect::<Vec<_>>())?,
            Style::Human => {
                let written = [ova(), gcp(), platforms()];
                output::print(&Format::all().map(human).chain(written).collect::<Vec<_>>().join("\n"))?
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Describes a format. The library reads every format it lists.
fn json(format: Format) -> Value {
    let option = |option: &OptionSpec| json!({ "name": option.name, "values": option.values, "help": option.help });
    json!({
        "name": format.name(),
        "description": format.description(),
        "aliases": format.aliases(),
        "extensions": format.extensions(),
        "read": true,
        "write": format.can_create(),
        "check": format.can_check(),
        "options": format.options().iter().map(option).collect::<Vec<_>>(),
    })
}

fn human(format: Format) -> String {
    let written = if format.can_create() { ", written" } else { "" };
    let checked = if format.can_check() { ", checked" } else { "" };
    let mut text = format!("{}: {} (read{written}{checked})\n", format.name(), format.description());
    let mut add = |line: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    };
    if !format.aliases().is_empty() {
        add(format!("  other names: {}", format.aliases().join(", ")));
    }
    add(format!("  extensions: {}", format.extensions().join(", ")));
    text + &options(format.options())
}

/// Describes the packages that `convert -O ova` and `-O ovf` write.
fn ova() -> String {
    let text = "ova: OVA package of disks, with OVF descriptor and manifest (read, written by convert)\n  \
                other names: ovf, for a directory of the same files\n  extensions: ova\n";
    text.to_owned() + &options(Package::OVA_OPTIONS)
}

/// Describes the archive that `convert -O gcp` writes.
fn gcp() -> String {
    "gcp: image of Google Compute Engine, disk.raw in a tar.gz (read, written by convert)\n".to_owned()
}

/// Describes what `convert --for` writes.
fn platforms() -> String {
    let line = |preset: Preset| format!("  --for {}\n      {}\n", preset.name(), preset.description());
    format!("Images for clouds and hypervisors, with convert:\n{}", Preset::ALL.map(line).concat())
}

fn options(specs: &[OptionSpec]) -> String {
    let line = |OptionSpec { name, values, help }: &OptionSpec| format!("  -o {name}={values}\n      {help}\n");
    specs.iter().map(line).collect()
}
