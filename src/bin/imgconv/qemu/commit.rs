//! `qemu-img commit`

use std::sync::Arc;

use diskimage::{Commit, Error};

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
        commit = commit.base(base);
    }
    commit.run(path).map_err(|error| match (error.root(), base) {
        (Error::Usage(problem), Some(base)) if problem.ends_with("not in the backing chain") => {
            Failed::new(format!("Did not find '{base}' in the backing chain of '{}'", source.name()))
        }
        (Error::Io { action, .. }, _) if *action == "opening" => source.not_opened(&error),
        _ => Failed::new(describe(&error, source.name())),
    })?;
    printer.finish();
    if !parsed.flag("quiet") {
        output::print("Image committed.\n")?;
    }
    Ok(0)
}
