//! `qemu-img check`

use diskimage::{CheckKind, CheckReport, Error, Format, Repair, RepairReport};
use serde_json::Value;

use super::getopt::Parsed;
use super::message::{self, Failed};
use super::source::{Source, Sources};
use super::{Outcome, check_words, style};
use crate::check;
use crate::output::{self, Style};

/// The formats that qemu-img checks.
const CHECKED: [&str; 6] = ["qcow2", "qed", "parallels", "vhdx", "vmdk", "vdi"];
/// Those of which it says, asked for a repair, that it does not check them.
const NOT_REPAIRED: [&str; 2] = ["vmdk", "vdi"];

pub fn run(parsed: &Parsed) -> Outcome {
    let style = style(parsed)?;
    let [name] = parsed.operands.as_slice() else {
        return Err(Failed::new("Expecting one image file name").see_help("check"));
    };
    let source = Sources::new(parsed).source(name, parsed.text("format").as_deref())?;
    let unsupported = || Failed::new("This image format does not support checks").exit(check::NO_CHECKS);
    let repair = match parsed.text("repair").as_deref() {
        None => None,
        Some("leaks") => Some(Repair::Leaks),
        Some("all") => Some(Repair::All),
        Some(other) => {
            return Err(Failed::new(format!("--repair (-r) expects 'leaks' or 'all' not '{other}'")).see_help("check"));
        }
    };
    if repair.is_some() {
        let format = source.inspect()?.format;
        source.warn_of_probing(format);
        if NOT_REPAIRED.contains(&format.name()) {
            return Err(unsupported());
        }
    }
    let repaired = repair.map(|repair| repaired(&source, repair)).transpose()?.flatten();
    let checked = repaired.as_ref().map_or_else(|| source.check(), |repaired| Ok(repaired.after.clone()));
    let report = match checked {
        Ok(report) if CHECKED.contains(&report.format) => as_by_qemu(report),
        Ok(_) => return Err(unsupported()),
        Err(error) => {
            return Err(match error.root() {
                Error::Unsupported { format, .. } if Format::by_name(format).is_ok_and(|f| !f.can_check()) => {
                    unsupported()
                }
                _ => source.not_opened(&error),
            });
        }
    };
    let cluster_size = match report.messages.is_empty() {
        true => None,
        false => source.try_inspect().ok().and_then(|image| image.info.block_size),
    };
    if report.corruptions > 0 && source.try_inspect().is_ok() {
        // There are images that qemu-img checks no more than it opens them.
        source.inspect()?;
    }
    if let Some(repaired) = &repaired {
        let cluster_size = source.try_inspect().ok().and_then(|image| image.info.block_size);
        check_words::repaired(repaired, cluster_size).iter().for_each(|line| message::line(line));
    }
    if let (Some(repaired), Style::Human, false) = (&repaired, style, parsed.flag("quiet")) {
        print_repairs(repaired)?;
    }
    check_words::found(&report, cluster_size).iter().for_each(|line| message::line(line));
    match style {
        _ if parsed.flag("quiet") => {}
        Style::Json => output::print_json_indented(&json(&report, repaired.as_ref(), source.name()))?,
        Style::Human => output::print(&check::human(&report))?,
    }
    Ok(check::exit_code(&report))
}

/// Repairs the image, unless it has no faults or there are no repairs for its format.
fn repaired(source: &Source, repair: Repair) -> Result<Option<RepairReport>, Failed> {
    let Ok(report) = source.check().map(as_by_qemu) else { return Ok(None) };
    let format = Format::by_name(report.format).ok();
    if !format.is_some_and(|format| format.can_repair()) {
        return match report.leaks + report.corruptions {
            0 => Ok(None),
            _ => Err(Failed::new(format!("imgconv does not repair images of the format {}", report.format))),
        };
    }
    let (path, options) = source.path_and_options()?;
    let mut repaired = options.repair(path, repair).map_err(|error| source.not_opened(&error))?;
    let RepairReport { before, after, .. } = &mut repaired;
    (*before, *after) = (as_by_qemu(std::mem::take(before)), as_by_qemu(std::mem::take(after)));
    Ok((repaired.leaks_fixed + repaired.corruptions_fixed > 0).then_some(repaired))
}

/// The report without what qemu-img does not look at: of most formats, leaks and statistics.
fn as_by_qemu(mut report: CheckReport) -> CheckReport {
    match report.format {
        "qcow2" => {}
        "parallels" => return check_words::without_leaks_between(report),
        "qed" => report.image_end_offset = 0,
        _ => {
            (report.leaks, report.total_clusters, report.image_end_offset) = (0, 0, 0);
            (report.allocated_clusters, report.fragmented_clusters, report.compressed_clusters) = (0, 0, 0);
            report.messages.retain(|message| message.kind() != CheckKind::Leak);
        }
    }
    report
}

fn print_repairs(repaired: &RepairReport) -> Result<(), Failed> {
    output::print(&format!(
        "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n\n\
         Double checking the fixed image now...\n",
        repaired.leaks_fixed, repaired.corruptions_fixed
    ))?;
    Ok(())
}

/// In the order of qemu-img.
fn json(report: &CheckReport, repaired: Option<&RepairReport>, name: &str) -> Value {
    let mut object = serde_json::Map::new();
    let mut add = |key: &str, count: u64| (count > 0).then(|| object.insert(key.to_owned(), count.into()));
    add("image-end-offset", report.image_end_offset);
    add("compressed-clusters", report.compressed_clusters);
    add("total-clusters", report.total_clusters);
    add("corruptions", report.corruptions);
    add("corruptions-fixed", repaired.map_or(0, |repaired| repaired.corruptions_fixed));
    object.insert("check-errors".into(), report.check_errors.into());
    let mut add = |key: &str, count: u64| (count > 0).then(|| object.insert(key.to_owned(), count.into()));
    add("leaks", report.leaks);
    add("leaks-fixed", repaired.map_or(0, |repaired| repaired.leaks_fixed));
    add("allocated-clusters", report.allocated_clusters);
    object.insert("filename".into(), name.into());
    object.insert("format".into(), report.format.into());
    if report.fragmented_clusters > 0 {
        object.insert("fragmented-clusters".into(), report.fragmented_clusters.into());
    }
    Value::Object(object)
}
