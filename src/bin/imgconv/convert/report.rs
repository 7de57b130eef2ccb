//! What is printed at the end of a conversion.

use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use diskimage::{Damage, Name, Report};
use serde_json::{Value, json};

use super::qemu_args::BitmapArgs;
use super::{Args, DAMAGED};
use crate::args::Endpoint;
use crate::failure::{Failure, Outcome};
use crate::guest;
use crate::output::{self, Style};

impl Args {
    /// Prints the digests of the guest data and of the files; with an image on standard output, to standard error.
    pub fn print_digests(&self, report: &Report) -> Result<(), Failure> {
        let guest = report.digests.iter().map(|digest| format!("{} (guest): {digest}", digest.algorithm()));
        let files = report
            .file_digests
            .iter()
            .map(|file| format!("{} ({}): {}", file.digest.algorithm(), Name::from(&*file.path), file.digest));
        for line in guest.chain(files) {
            match self.target() {
                Endpoint::Stream => output::note(&line),
                Endpoint::File(_) => output::print(&format!("{line}\n"))?,
            }
        }
        Ok(())
    }

    /// Prints the report in JSON style, and notes about padding and what could not be read.
    pub fn print_report(&self, report: &Report, time: Duration) -> Outcome {
        if report.padding > 0 && !self.quiet {
            let (target, padding) = (self.target_name().display(), report.padding);
            output::note(&format!("{target}: the disk was padded with {padding} zero bytes"));
        }
        let (source, target) = (self.source_name(), self.target_name().display());
        for (list, what) in [(&report.unreadable, "could not read"), (&report.doubtful, "doubtful data at")] {
            for Damage { range: Range { start, end }, message, .. } in &list.ranges {
                output::note(&format!("{source}: {what} guest offsets {start:#x} to {end:#x}: {message}"));
            }
        }
        if !self.quiet {
            guest::note(&report.volumes, &source);
        }
        BitmapArgs::note_skipped(report);
        if report.cache_refused {
            output::note(&format!("{target}: written through the page cache, which its file system cannot bypass"));
        }
        if report.doubtful.bytes > 0 {
            let doubtful = report.doubtful.bytes;
            output::note(&format!("{target}: {doubtful} bytes may be those of other guest offsets"));
        }
        if report.unreadable.bytes > 0 {
            let lost = report.unreadable.bytes;
            let pattern = self.salvage_pattern.unwrap_or_default();
            output::note(&format!("{target}: {lost} bytes that could not be read are filled with {pattern:#04x}"));
        }
        if self.style() == Style::Human {
            self.print_digests(report)?;
        }
        if self.style() == Style::Json {
            let mut result = json(&self.source.shown("-"), self.target_name(), report);
            if !self.more.is_empty() {
                let names = self.sources().into_iter().map(|source| source.shown("-").to_string_lossy().into_owned());
                result["source"] = names.collect::<Vec<_>>().into();
            }
            // Milliseconds.
            result["seconds"] = (time.as_millis() as f64 / 1000.0).into();
            if self.salvage {
                for (list, bytes, ranges) in [
                    (&report.unreadable, "unreadable-bytes", "unreadable"),
                    (&report.doubtful, "doubtful-bytes", "doubtful"),
                ] {
                    result[bytes] = list.bytes.into();
                    result[ranges] = json!(list.ranges);
                }
            }
            output::print_json(&result)?;
        }
        Ok(if report.has_damage() { ExitCode::from(DAMAGED) } else { ExitCode::SUCCESS })
    }
}

/// A report in JSON style.
pub fn json(source: &Path, target: &Path, report: &Report) -> Value {
    let mut value = json!({
        "source": source.to_string_lossy(),
        "source-format": report.source_format.map_or("", |format| format.name()),
        "target": target.to_string_lossy(),
        "target-format": report.format.name(),
        "virtual-size": report.virtual_size,
        "padding": report.padding,
        "data-bytes": report.data_bytes,
        "zero-bytes": report.zero_bytes(),
        "compressed-blocks": report.compressed_blocks,
        "compressed-bytes": report.compressed_bytes,
        "passthrough-blocks": report.passthrough_blocks,
        "passthrough-bytes": report.passthrough_bytes,
        "written-bytes": report.written_bytes,
        "cloned-bytes": report.cloned_bytes,
    });
    if !report.digests.is_empty() {
        value["digests"] = output::digests(&report.digests);
    }
    if !report.file_digests.is_empty() {
        value["file-digests"] = json!(report.file_digests);
    }
    if !report.volumes.is_empty() {
        value["volumes"] = json!(report.volumes);
    }
    if !report.skipped_bitmaps.is_empty() {
        value["skipped-bitmaps"] = json!(report.skipped_bitmaps);
    }
    value
}
