//! `imgconv formats`

use std::fmt::Write as _;
use std::process::ExitCode;

use diskimage::{Format, OptionSpec};
use serde_json::{Value, json};

use crate::args::{Outcome, Output};
use crate::output::{self, Style};

/// List the formats, their names, and their options for -o
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub output: Output,
}

impl Args {
    pub fn run(&self) -> Outcome {
        match self.output.style {
            Style::Json => output::print_json(&Format::all().map(json).collect())?,
            Style::Human => output::print(&Format::all().map(human).collect::<Vec<_>>().join("\n"))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Every format of the library is read and written, else it would not be listed there.
fn json(format: Format) -> Value {
    let option = |option: &OptionSpec| json!({ "name": option.name, "values": option.values, "help": option.help });
    json!({
        "name": format.name(),
        "description": format.description(),
        "aliases": format.aliases(),
        "extensions": format.extensions(),
        "read": true,
        "write": true,
        "check": format.can_check(),
        "options": format.options().iter().map(option).collect::<Vec<_>>(),
    })
}

fn human(format: Format) -> String {
    let check = if format.can_check() { ", checked" } else { "" };
    let mut text = format!("{}: {} (read, written{check})\n", format.name(), format.description());
    let mut say = |line: String| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{line}");
    };
    if !format.aliases().is_empty() {
        say(format!("  other names: {}", format.aliases().join(", ")));
    }
    say(format!("  extensions: {}", format.extensions().join(", ")));
    for OptionSpec { name, values, help } in format.options() {
        say(format!("  -o {name}={values}\n      {help}"));
    }
    text
}
