//! `qemu-img bitmap`

use diskimage::driver::BitmapChange;
use diskimage::{Disk, Error};

use super::getopt::Parsed;
use super::message::{Failed, describe};
use super::source::Sources;
use super::{Outcome, size};

pub fn run(parsed: &Parsed) -> Outcome {
    // They are made in the order in which they are given.
    let given: Vec<_> = parsed.names().filter(|name| CHANGES.contains(name)).collect();
    if given.is_empty() {
        let problem = "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge";
        return Err(Failed::new(problem));
    }
    if parsed.flag("granularity") && !parsed.flag("add") {
        return Err(Failed::new("granularity only supported with --add"));
    }
    let [name, bitmap] = parsed.operands.as_slice() else {
        return Err(Failed::new("Expecting filename and bitmap name"));
    };
    let granularity = match parsed.text("granularity") {
        None => None,
        Some(text) => Some(size(&text).map_err(|_| Failed::new("Invalid granularity specified"))?),
    };
    let bitmap = bitmap.to_string_lossy();
    let source = Sources::new(parsed).source(name, parsed.text("format").as_deref())?;
    let disk = source.open_disk("Operation not supported")?;
    for name in given {
        change(&disk, name, &bitmap, granularity).map_err(|error| {
            let problem = match error.root() {
                Error::Usage(problem) => problem.clone(),
                _ => describe(&error, source.name()),
            };
            Failed::new(format!("Operation {name} on bitmap {bitmap} failed: {problem}"))
        })?;
    }
    disk.close()?;
    Ok(0)
}

const CHANGES: [&str; 5] = ["add", "remove", "clear", "enable", "disable"];

fn change(disk: &Disk, name: &str, bitmap: &str, granularity: Option<u64>) -> diskimage::Result<()> {
    let change = match name {
        "add" => BitmapChange::Add { granularity, enabled: true },
        "remove" => BitmapChange::Remove,
        "clear" => BitmapChange::Clear,
        "enable" => BitmapChange::Enable,
        _ => BitmapChange::Disable,
    };
    disk.change_bitmap(bitmap, change)
}
