//! `qemu-img commit`

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use diskimage::{Commit, Error, Inspection};

use super::getopt::Parsed;
use super::message::{Failed, describe};
use super::progress::Printer;
use super::source::Sources;
use super::{Outcome, cache};
use crate::output;

pub fn run(parsed: &Parsed) -> Outcome {
    let [name] = parsed.operands.as_slice() else {
        return Err(Failed::new("Expecting one image file name").see_help("commit"));
    };
    cache(parsed, "cache", "cache")?;
    let source = Sources::new(parsed).source(name, parsed.text("format").as_deref())?;
    let image = source.inspect()?;
    source.warn_of_probing(image.format);
    if image.info.backing.is_none() {
        return Err(Failed::new("Image does not have a backing file"));
    }
    let (path, options) = source.path_and_options()?;
    let printer = Arc::new(Printer::new(parsed.flag("progress")));
    let shown = printer.clone();
    let base = parsed.text("base");
    let mut commit = Commit::new(options.clone())
        .keep(parsed.flag("drop") || base.is_some())
        .progress(move |done, total| shown.of(done, total));
    if let Some(base) = &base {
        let found = in_chain(base, &source.inspect_chain()?);
        commit = commit.base(found.ok_or_else(|| {
            Failed::new(format!("Did not find '{base}' in the backing chain of '{}'", source.name()))
        })?);
    }
    commit.run(path).map_err(|error| match error.root() {
        Error::Io { action, .. } if *action == "opening" => source.not_opened(&error),
        _ => Failed::new(describe(&error, source.name())),
    })?;
    printer.finish();
    if !parsed.flag("quiet") {
        output::print("Image committed.\n")?;
    }
    Ok(0)
}

/// The path of the backing file `base`, whose name is relative to the directory of the image that it backs.
fn in_chain(base: &str, chain: &[Inspection]) -> Option<PathBuf> {
    let real = |path: PathBuf| fs::canonicalize(path).ok();
    chain.iter().zip(chain.iter().skip(1)).find_map(|(overlay, backing)| {
        let (overlay, backing) = (overlay.path.as_ref()?, backing.path.as_ref()?);
        let named = real(overlay.with_file_name("").join(base))?;
        (real(backing.clone())? == named).then(|| backing.clone())
    })
}
