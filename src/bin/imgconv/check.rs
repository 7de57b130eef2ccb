//! `imgconv check`

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use diskimage::{CheckReport, Error, Format, OpenOptions, Repair, RepairReport};
use serde_json::{Map, Value};

use crate::args::Input;
use crate::failure::{Failure, Outcome};
use crate::location::Location;
use crate::output::{self, Style};
use crate::sandbox::Needs;

/// Check the metadata of an image, and repair it
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Print problems only
    #[arg(short = 'q', long)]
    quiet: bool,

    /// Repair the image as far as the right values follow from the rest of
    /// its metadata
    #[arg(short = 'r', long, value_name = "WHAT", verbatim_doc_comment)]
    repair: Option<What>,

    /// Before a repair, write the metadata that it changes to a new file
    #[arg(long, value_name = "BACKUP", requires = "repair")]
    backup: Option<PathBuf>,

    /// Undo a repair: put back the metadata of a backup; nothing is checked
    #[arg(long, value_name = "BACKUP", conflicts_with = "repair")]
    restore: Option<PathBuf>,

    #[command(flatten)]
    pub input: Input,
}

/// What is repaired.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum What {
    /// Clusters that are allocated but not used
    Leaks,
    /// Also faults that lose or mix up data
    All,
}

const AFTER_HELP: &str = "\
Exit codes, as in qemu-img:
  0   no errors found, or all of them repaired
  1   the check could not be completed
  2   the image is corrupt
  3   the image has leaked clusters, but is not corrupt
  63  the format does not support checks, or repairs

A repair never guesses: what is left of the errors tells the exit code. BACKUP is not written
if nothing has to be changed. It cannot be put back once anything else has changed
the same metadata.

Examples:
  imgconv check disk.qcow2
  imgconv check -r all --backup disk.backup disk.qcow2
  imgconv check --restore disk.backup disk.qcow2";

const INCOMPLETE: u8 = 1;
const CORRUPT: u8 = 2;
const LEAKS: u8 = 3;
pub const NO_CHECKS: u8 = 63;

impl Args {
    /// What a check needs; `None` for a repair, which changes the image and its data files.
    pub fn needs(&self) -> Option<Needs> {
        (self.repair.is_none() && self.restore.is_none()).then(|| self.input.needs())
    }

    pub fn run(&self) -> Outcome {
        let (options, file) = self.input.open()?;
        if let Some(backup) = &self.restore {
            options.restore_backup(&file, backup)?;
            if self.input.output.style == Style::Human && !self.quiet {
                output::print("The metadata is as before the repair.\n")?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let repaired = self.repair.map(|what| self.repaired(&options, &file, what)).transpose()?;
        let report = match &repaired {
            Some(repaired) => repaired.after.clone(),
            None => Location::find(file).and_then(|image| image.check(&options)).map_err(|e| self.failure(e))?,
        };
        match self.input.output.style {
            Style::Json => output::print_json(&self.json(&report, repaired.as_ref()))?,
            Style::Human => self.print(&report, repaired.as_ref())?,
        }
        Ok(ExitCode::from(exit_code(&report)))
    }

    fn repaired(&self, options: &OpenOptions, file: &Path, what: What) -> Result<RepairReport, Failure> {
        let what = match what {
            What::Leaks => Repair::Leaks,
            What::All => Repair::All,
        };
        let repaired = match &self.backup {
            Some(backup) => options.repair_with_backup(file, what, backup),
            None => options.repair(file, what),
        };
        repaired.map_err(|e| self.failure(e))
    }

    fn failure(&self, error: Error) -> Failure {
        let (is_missing, what): (fn(Format) -> bool, _) = match self.repair {
            Some(_) => (|format| !format.can_repair(), "repairs"),
            None => (|format| !format.can_check(), "checks"),
        };
        match error.root() {
            Error::Unsupported { format, .. } if Format::by_name(format).is_ok_and(is_missing) => {
                let file = self.input.file.to_string_lossy();
                Failure::new("unsupported", format!("{file}: {format}: {what} are not supported"))
                    .with("path", file)
                    .with("format", *format)
                    .exit(NO_CHECKS)
            }
            _ => error.into(),
        }
    }

    fn print(&self, report: &CheckReport, repaired: Option<&RepairReport>) -> Result<(), Failure> {
        if let Some(RepairReport { before, leaks_fixed, corruptions_fixed, .. }) =
            repaired.filter(|repaired| repaired.leaks_fixed + repaired.corruptions_fixed > 0)
        {
            before.messages.iter().for_each(|message| output::note(message));
            if !self.quiet {
                output::print(&format!("Repaired: {corruptions_fixed} errors, {leaks_fixed} leaked clusters\n"))?;
            }
        }
        report.messages.iter().for_each(|message| output::note(message));
        if !self.quiet {
            output::print(&human(report))?;
        }
        Ok(())
    }

    /// The report with the keys of qemu-img, which omits counts of 0. `messages` is an addition.
    fn json(&self, report: &CheckReport, repaired: Option<&RepairReport>) -> Value {
        let mut object = match serde_json::to_value(report) {
            Ok(Value::Object(object)) => object,
            _ => Map::new(),
        };
        object.shift_insert(0, "filename".into(), self.input.file.to_string_lossy().into());
        let fixed = repaired.map_or((0, 0), |repaired| (repaired.corruptions_fixed, repaired.leaks_fixed));
        for (key, count) in [("corruptions-fixed", fixed.0), ("leaks-fixed", fixed.1)] {
            (count > 0).then(|| object.insert(key.into(), count.into()));
        }
        Value::Object(object)
    }
}

pub fn exit_code(report: &CheckReport) -> u8 {
    match report {
        // Known, whatever could not be checked.
        CheckReport { corruptions: 1.., .. } => CORRUPT,
        CheckReport { check_errors: 1.., .. } => INCOMPLETE,
        CheckReport { leaks: 1.., .. } => LEAKS,
        _ => 0,
    }
}

pub fn human(report: &CheckReport) -> String {
    let mut text = String::new();
    let mut add = |line: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    };
    let CheckReport { corruptions, leaks, check_errors, total_clusters, allocated_clusters, .. } = report;
    if *corruptions > 0 {
        add(format!("\n{corruptions} errors were found on the image."));
        add("Data may be corrupted, or further writes to the image may corrupt it.".into());
    }
    if *leaks > 0 {
        add(format!("\n{leaks} leaked clusters were found on the image."));
        add("This means waste of disk space, but no harm to data.".into());
    }
    if *check_errors > 0 {
        add(format!("\n{check_errors} parts of the image could not be checked."));
    }
    if exit_code(report) == 0 {
        add("No errors were found on the image.".into());
    }
    if *total_clusters > 0 && *allocated_clusters > 0 {
        add(format!(
            "{allocated_clusters}/{total_clusters} = {} allocated, {} fragmented, {} compressed clusters",
            percent(*allocated_clusters, *total_clusters),
            percent(report.fragmented_clusters, *allocated_clusters),
            percent(report.compressed_clusters, *allocated_clusters),
        ));
    }
    if report.image_end_offset > 0 {
        add(format!("Image end offset: {}", report.image_end_offset));
    }
    text
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.2}%", part as f64 * 100.0 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(corruptions: u64, leaks: u64, check_errors: u64) -> CheckReport {
        let mut report = CheckReport::default();
        (report.corruptions, report.leaks, report.check_errors) = (corruptions, leaks, check_errors);
        report
    }

    #[test]
    fn exit_codes_match_qemu_img() {
        assert_eq!(exit_code(&report(0, 0, 0)), 0);
        assert_eq!(exit_code(&report(1, 1, 0)), 2);
        assert_eq!(exit_code(&report(0, 1, 0)), 3);
        assert_eq!(exit_code(&report(0, 1, 1)), 1);
        // qemu-img: 1, although the image is known to be corrupt.
        assert_eq!(exit_code(&report(1, 1, 1)), 2);
    }

    /// Expected text: qemu-img 10 for the same numbers.
    #[test]
    fn the_report_matches_qemu_img() {
        let mut report = report(0, 0, 0);
        (report.total_clusters, report.allocated_clusters, report.image_end_offset) = (160, 3, 524288);
        assert_eq!(
            human(&report),
            "No errors were found on the image.\n\
             3/160 = 1.88% allocated, 0.00% fragmented, 0.00% compressed clusters\n\
             Image end offset: 524288\n"
        );
    }

    #[test]
    fn a_bad_image_is_not_reported_as_free_of_errors() {
        for report in [report(1, 0, 0), report(0, 1, 0), report(0, 0, 1)] {
            assert!(!human(&report).contains("No errors"));
        }
    }
}
