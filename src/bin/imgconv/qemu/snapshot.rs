//! `qemu-img snapshot`

use diskimage::{Disk, Error};

use super::getopt::Parsed;
use super::message::{Failed, describe};
use super::source::{Source, Sources};
use super::{Outcome, print};
use crate::snapshot;

/// What changes the snapshots of an image.
#[derive(Clone, Copy)]
enum Change {
    Create,
    Apply,
    Delete,
}

pub fn run(parsed: &Parsed) -> Outcome {
    let changes = [("create", Change::Create), ("apply", Change::Apply), ("delete", Change::Delete)];
    let mut given = changes.into_iter().filter(|(option, _)| parsed.flag(option));
    let change = given.next();
    if given.next().is_some() || change.is_some() && parsed.flag("list") {
        return Err(Failed::new("Cannot mix '-l', '-a', '-c', '-d'").see_help("snapshot"));
    }
    let [name] = parsed.operands.as_slice() else {
        return Err(Failed::new("Expecting one image file name").see_help("snapshot"));
    };
    let source = Sources::new(parsed).source(name, parsed.text("format").as_deref())?;
    if let Some((option, change)) = change {
        return self::change(&source, change, &parsed.text(option).unwrap_or_default(), parsed.flag("force-share"));
    }
    let info = source.inspect()?.info;
    if info.snapshots.is_empty() { Ok(0) } else { print(&snapshot::table(&info.snapshots, "DATE")) }
}

fn change(source: &Source, change: Change, snapshot: &str, force_share: bool) -> Outcome {
    if force_share {
        let problem = "force-share=on can only be used with read-only images";
        return Err(Failed::new(format!("Could not open '{}': {problem}", source.name())));
    }
    let (action, unsupported) = match change {
        Change::Create => ("create", "Operation not supported"),
        Change::Apply => ("apply", "Block driver does not support snapshots"),
        Change::Delete => ("delete", "snapshot not found"),
    };
    let failed = |problem: &str| Failed::new(format!("Could not {action} snapshot '{snapshot}': {problem}"));
    let disk = source.open_disk(&failed(unsupported).message())?;
    let changed = match change {
        Change::Create => disk.create_snapshot(snapshot),
        Change::Apply => disk.apply_snapshot(snapshot),
        Change::Delete => delete(&disk, snapshot),
    };
    changed.and_then(|()| disk.close()).map_err(|error| match (change, error.root()) {
        (Change::Apply, Error::Unsupported { feature, .. }) if feature.contains("bitmaps") => {
            failed("Device has active dirty bitmaps")
        }
        (_, Error::Unsupported { .. }) => failed(unsupported),
        (Change::Create, Error::Limit { .. }) => failed("Invalid argument"),
        (Change::Apply, Error::Usage(_)) => failed("Failed to load snapshot: No such file or directory"),
        (Change::Delete, Error::Usage(_)) => failed(unsupported),
        _ => failed(&describe(&error, source.name())),
    })?;
    Ok(0)
}

/// Deletes the first snapshot of this name. Its ID is not taken for a name here.
fn delete(disk: &Disk, name: &str) -> diskimage::Result<()> {
    let snapshots = disk.info().snapshots;
    match snapshots.iter().find(|snapshot| snapshot.name.as_bytes() == name.as_bytes()) {
        Some(snapshot) => disk.delete_snapshot(&snapshot.id.to_string()),
        None => Err(Error::Usage("unknown snapshot".into())),
    }
}
