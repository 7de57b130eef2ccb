//! `qemu-img bitmap`

use diskimage::driver::{BitmapChange, DirtyBitmap};
use diskimage::{Disk, Error, Image, Result};

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
    if parsed.flag("source-format") && !parsed.flag("source-file") {
        return Err(Failed::new("-F only supported with -b"));
    }
    if parsed.flag("source-file") && !parsed.flag("merge") {
        return Err(Failed::new("Merge bitmap source file only supported with --merge"));
    }
    let [name, bitmap] = parsed.operands.as_slice() else {
        return Err(Failed::new("Expecting filename and bitmap name"));
    };
    let granularity = match parsed.text("granularity") {
        None => None,
        Some(text) => Some(size(&text).map_err(|_| Failed::new("Invalid granularity specified"))?),
    };
    let bitmap = bitmap.to_string_lossy();
    let sources = Sources::new(parsed);
    let source = sources.source(name, parsed.text("format").as_deref())?;
    let disk = source.open_disk("Operation not supported")?;
    let other = match parsed.text("source-file") {
        None => None,
        Some(other) => {
            let other = sources.file(other.as_ref(), parsed.text("source-format").as_deref())?;
            // The image that changes may be its backing file.
            Some(other.with(|options| options.without_backing(true)).open()?)
        }
    };
    let mut merged = parsed.all("merge");
    for name in given {
        let changed = match name {
            "merge" => merge(&disk, &bitmap, &merged.next().unwrap_or_default(), other.as_ref()),
            name => change(&disk, name, &bitmap, granularity),
        };
        changed.map_err(|error| {
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

const CHANGES: [&str; 6] = ["add", "remove", "clear", "enable", "disable", "merge"];

fn change(disk: &Disk, name: &str, bitmap: &str, granularity: Option<u64>) -> Result<()> {
    let change = match name {
        "add" => BitmapChange::Add { granularity, enabled: true },
        "remove" => BitmapChange::Remove,
        "clear" => BitmapChange::Clear,
        "enable" => BitmapChange::Enable,
        _ => BitmapChange::Disable,
    };
    disk.change_bitmap(bitmap, change)
}

/// Adds the bits of the bitmap called `merged`, of this image or of another one.
fn merge(disk: &Disk, bitmap: &str, merged: &str, other: Option<&Image>) -> Result<()> {
    let own = disk.bitmaps()?;
    let find = |bitmaps: &[DirtyBitmap], name: &str| {
        let found = bitmaps.iter().find(|bitmap| bitmap.name.as_bytes() == name.as_bytes()).cloned();
        found.ok_or_else(|| Error::Usage(format!("Dirty bitmap '{name}' not found")))
    };
    find(&own, bitmap)?;
    let (source, size) = match other {
        None => (find(&own, merged)?, disk.size()),
        Some(image) => (find(&image.bitmaps()?, merged)?, image.virtual_size()),
    };
    if size != disk.size() {
        let sizes = format!("destination size is {}, source size is {size}", disk.size());
        return Err(Error::Usage(format!("Bitmaps are of different sizes ({sizes}) and can't be merged")));
    }
    disk.merge_bitmap(bitmap, &source)
}
