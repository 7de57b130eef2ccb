//! `imgconv snapshot`

use std::path::PathBuf;
use std::process::ExitCode;

use diskimage::{Format, Snapshot};

use crate::args::{self, Output, PackageArgs, ReferenceArgs};
use crate::failure::{Failure, Outcome};
use crate::location::Location;
use crate::output::{self, Style, human_size};
use crate::sandbox::Needs;

/// List, create, apply or delete the internal snapshots of an image
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    #[command(flatten)]
    action: Action,

    /// Format of FILE [default: detected]
    #[arg(short = 'f', long, value_name = "FMT", value_parser = args::format)]
    format: Option<Format>,

    #[command(flatten)]
    references: ReferenceArgs,

    #[command(flatten)]
    package: PackageArgs,

    #[command(flatten)]
    pub output: Output,

    /// Image file
    #[arg(value_parser = args::file())]
    file: PathBuf,
}

/// What is done.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Action {
    /// List the snapshots
    #[arg(short = 'l', long)]
    list: bool,

    /// Create a snapshot of the present content
    #[arg(short = 'c', long, value_name = "NAME")]
    create: Option<String>,

    /// Give the disk the content and the size of a snapshot, by ID or name;
    /// the present content is lost
    #[arg(short = 'a', long, value_name = "SNAPSHOT", verbatim_doc_comment)]
    apply: Option<String>,

    /// Delete a snapshot, by ID or name
    #[arg(short = 'd', long, value_name = "SNAPSHOT")]
    delete: Option<String>,
}

const AFTER_HELP: &str = "\
Only qcow2 has snapshots that are created, applied and deleted here. convert -l makes an image of one.

Examples:
  imgconv snapshot -l disk.qcow2
  imgconv snapshot -c before-upgrade disk.qcow2
  imgconv snapshot -a before-upgrade disk.qcow2";

impl Args {
    /// What listing the snapshots needs; `None` if they are changed.
    pub fn needs(&self) -> Option<Needs> {
        self.action.list.then(|| {
            let mut needs = Needs::default();
            self.references.add_needs(&mut needs, false, &self.file);
            needs
        })
    }

    pub fn run(&self) -> Outcome {
        if self.action.list {
            return self.list();
        }
        let disk = self.references.options(self.format)?.open_disk(&self.file)?;
        match &self.action {
            Action { create: Some(name), .. } => disk.create_snapshot(name)?,
            Action { apply: Some(snapshot), .. } => disk.apply_snapshot(snapshot)?,
            Action { delete: Some(snapshot), .. } => disk.delete_snapshot(snapshot)?,
            Action { .. } => {}
        }
        disk.close()?;
        Ok(ExitCode::SUCCESS)
    }

    fn list(&self) -> Outcome {
        let options = self.package.select(self.references.options(self.format)?);
        let info = Location::find(&self.file)?.inspect(&options)?.info;
        if info.snapshots_unreadable {
            let file = self.file.to_string_lossy();
            let problem = format!("{file}: {}", info.warnings.join("; "));
            return Err(Failure::new("snapshots-unreadable", problem).with("path", file));
        }
        match self.output.style {
            Style::Json => output::print_json(&info.snapshots)?,
            Style::Human if !info.snapshots.is_empty() => output::print(&human(&info.snapshots))?,
            Style::Human => {}
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Formats the table of qemu-img, with dates in UTC.
pub fn human(snapshots: &[Snapshot]) -> String {
    table(snapshots, "DATE (UTC)")
}

/// As [`human`], with another heading of the dates.
pub fn table(snapshots: &[Snapshot], date_heading: &str) -> String {
    let head = row("ID", "TAG", "VM_SIZE", date_heading, "VM_CLOCK", "ICOUNT");
    let rows = snapshots.iter().map(|snapshot| {
        row(
            &snapshot.id.to_string(),
            &snapshot.name.to_string(),
            &human_size(snapshot.vm_state_size),
            &date(snapshot.date.0),
            &clock(snapshot.vm_clock_nsec),
            &snapshot.icount.map_or("--".to_owned(), |icount| icount.to_string()),
        )
    });
    format!("Snapshot list:\n{head}{}", rows.collect::<String>())
}

fn row(id: &str, tag: &str, size: &str, date: &str, clock: &str, icount: &str) -> String {
    format!("{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {icount:>10}\n")
}

const NANOS: u64 = 1_000_000_000;

/// Formats the VM clock: hours, minutes, seconds, milliseconds.
fn clock(nanoseconds: u64) -> String {
    let (seconds, millis) = (nanoseconds / NANOS, nanoseconds % NANOS / 1_000_000);
    format!("{:04}:{:02}:{:02}.{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Formats seconds since 1970 as date and time, in UTC.
fn date(seconds: u32) -> String {
    let (mut day, second) = (seconds / 86400, seconds % 86400);
    let mut year = 1970;
    while day >= days_in(year) {
        day -= days_in(year);
        year += 1;
    }
    let february = days_in(year) - 337;
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{:02} {hour:02}:{minute:02}:{second:02}", day + 1)
}

fn days_in(year: u32) -> u32 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    if leap { 366 } else { 365 }
}

#[cfg(test)]
mod tests {
    use diskimage::Name;

    use super::*;

    /// Expected values: `date -u`.
    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_800, "2000-03-01 00:00:00"),
            (1_700_000_000, "2023-11-14 22:13:20"),
            (1_735_689_599, "2024-12-31 23:59:59"),
            (u32::MAX, "2106-02-07 06:28:15"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }

    /// Expected rows: qemu-img 10 for the same snapshots.
    #[test]
    fn the_table_matches_qemu_img() {
        let mut one = Snapshot::new(Name::from("1"), Name::from("snap one"), 0);
        (one.vm_state_size, one.date) = (123_456_789, (1_700_000_000, 0));
        one.vm_clock_nsec = (99999 * 3600 + 62 * 60 + 7) * NANOS + 123_456_789;
        let mut two = Snapshot::new(Name::from("2"), Name::from("s2"), 0);
        (two.date, two.icount) = ((1_795_163_765, 0), Some(0));
        let table = human(&[one, two]);
        let rows: Vec<_> = table.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "1       snap one          118 MiB 2023-11-14 22:13:20 100000:02:07.123         --",
                "2       s2                    0 B 2026-11-20 08:36:05  0000:00:00.000          0",
            ]
        );
    }

    #[test]
    fn the_clock_has_two_keys() {
        let mut snapshot = Snapshot::new(Name::from("1"), Name::from("x"), 0);
        snapshot.vm_clock_nsec = 5 * NANOS + 7;
        let json = serde_json::to_value(&snapshot).unwrap();
        assert_eq!((json["vm-clock-sec"].as_u64(), json["vm-clock-nsec"].as_u64()), (Some(5), Some(7)));
        assert!(json.get("icount").is_none());
    }
}
