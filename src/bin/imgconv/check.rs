//! `imgconv check`

use std::fmt::Write as _;
use std::process::ExitCode;

use diskimage::{CheckReport, Error, Format};
use serde_json::{Map, Value};

use crate::args::Input;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Style};
use crate::remote;

/// Check the metadata of an image; nothing is repaired
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Print problems only
    #[arg(short = 'q', long)]
    quiet: bool,

    #[command(flatten)]
    pub input: Input,
}

const AFTER_HELP: &str = "\
Exit codes, as in qemu-img:
  0   no errors found
  1   the check could not be completed
  2   the image is corrupt
  3   the image has leaked clusters, but is not corrupt
  63  the format does not support checks";

const INCOMPLETE: u8 = 1;
const CORRUPT: u8 = 2;
const LEAKS: u8 = 3;
const NO_CHECKS: u8 = 63;

impl Args {
    pub fn run(&self) -> Outcome {
        let (options, file) = self.input.open()?;
        let report = remote::check(&options, &file).map_err(|error| self.failure(error))?;
        match self.input.output.style {
            Style::Json => output::print_json(&self.json(&report))?,
            Style::Human => {
                for message in &report.messages {
                    output::note(message);
                }
                if !self.quiet {
                    output::print(&human(&report))?;
                }
            }
        }
        Ok(ExitCode::from(exit_code(&report)))
    }

    fn failure(&self, error: Error) -> Failure {
        match error.root() {
            Error::Unsupported { format, .. } if Format::by_name(format).is_ok_and(|format| !format.can_check()) => {
                let file = self.input.file.to_string_lossy();
                Failure::new("unsupported", format!("{file}: {format}: checks are not supported"))
                    .with("path", file)
                    .with("format", *format)
                    .exit(NO_CHECKS)
            }
            _ => error.into(),
        }
    }

    /// The report with the keys of qemu-img, which omits counts of 0. `messages` is an addition.
    fn json(&self, report: &CheckReport) -> Value {
        let mut object = match serde_json::to_value(report) {
            Ok(Value::Object(object)) => object,
            _ => Map::new(),
        };
        object.shift_insert(0, "filename".into(), self.input.file.to_string_lossy().into());
        Value::Object(object)
    }
}

fn exit_code(report: &CheckReport) -> u8 {
    match report {
        // Known, whatever could not be checked.
        CheckReport { corruptions: 1.., .. } => CORRUPT,
        CheckReport { check_errors: 1.., .. } => INCOMPLETE,
        CheckReport { leaks: 1.., .. } => LEAKS,
        _ => 0,
    }
}

fn human(report: &CheckReport) -> String {
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
