//! `qemu-img check`

use diskimage::{CheckReport, Error, Format};
use serde_json::Value;

use super::getopt::Parsed;
use super::message::Failed;
use super::source::Sources;
use super::{Outcome, style};
use crate::check;
use crate::output::{self, Style};

/// The formats that qemu-img checks.
const CHECKED: [&str; 6] = ["qcow2", "qed", "parallels", "vhdx", "vmdk", "vdi"];

pub fn run(parsed: &Parsed) -> Outcome {
    let style = style(parsed)?;
    let [name] = parsed.operands.as_slice() else {
        return Err(Failed::new("Expecting one image file name").see_help("check"));
    };
    let source = Sources::new(parsed)?.source(name, parsed.text("format").as_deref())?;
    let unsupported = || Failed::new("This image format does not support checks").exit(check::NO_CHECKS);
    let report = match source.check() {
        Ok(report) if CHECKED.contains(&report.format) => report,
        Ok(_) => return Err(unsupported()),
        Err(error) => {
            return Err(match error.root() {
                Error::Unsupported { format, .. } if Format::by_name(format).is_ok_and(|f| !f.can_check()) => {
                    unsupported()
                }
                _ => Failed::opening(source.name(), &error),
            });
        }
    };
    match style {
        Style::Json => output::print_json_indented(&json(&report, source.name()))?,
        Style::Human => {
            for message in &report.messages {
                let line = output::printable(message);
                // As in qemu-img, where a part of the messages goes to standard error and a part to standard output.
                eprintln!("{}", line.replacen("Corrupt: ", "ERROR ", 1).replacen("Leaked: ", "Leaked ", 1));
            }
            if !parsed.flag("quiet") {
                output::print(&check::human(&report))?;
            }
        }
    }
    Ok(check::exit_code(&report))
}

/// In the order of qemu-img.
fn json(report: &CheckReport, name: &str) -> Value {
    let mut object = serde_json::Map::new();
    let mut add = |key: &str, count: u64| (count > 0).then(|| object.insert(key.to_owned(), count.into()));
    add("image-end-offset", report.image_end_offset);
    add("total-clusters", report.total_clusters);
    add("allocated-clusters", report.allocated_clusters);
    add("fragmented-clusters", report.fragmented_clusters);
    add("compressed-clusters", report.compressed_clusters);
    add("leaks", report.leaks);
    add("corruptions", report.corruptions);
    object.insert("check-errors".into(), report.check_errors.into());
    object.insert("filename".into(), name.into());
    object.insert("format".into(), report.format.into());
    Value::Object(object)
}
