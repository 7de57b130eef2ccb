//! `qemu-img snapshot`

use super::getopt::Parsed;
use super::message::Failed;
use super::source::Sources;
use super::{Outcome, print};
use crate::snapshot;

pub fn run(parsed: &Parsed) -> Outcome {
    let [name] = parsed.operands.as_slice() else {
        return Err(Failed::new("Expecting one image file name").see_help("snapshot"));
    };
    let source = Sources::new(parsed).source(name, parsed.text("format").as_deref())?;
    let info = source.inspect()?.info;
    if info.snapshots.is_empty() { Ok(0) } else { print(&snapshot::table(&info.snapshots, "DATE")) }
}
