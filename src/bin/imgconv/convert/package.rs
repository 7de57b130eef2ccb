//! Conversions from and to packages of several disks.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf, is_separator};

use diskimage::{Format, Image, Report};
use serde_json::Value;

use super::report::json;
use super::{Args, STANDARD_INPUT};
use crate::args::{Endpoint, Target};
use crate::failure::{Failure, Outcome};
use crate::guest;
use crate::location::{self, Location};
use crate::output::{self, Style};
use crate::signals::Interrupt;
use crate::streams;

impl Args {
    /// The package that is to be written: by `-O`, or else by the extension of the target.
    pub(super) fn package_target(&self) -> Option<Target> {
        match (self.target_format, self.target()) {
            (Some(target @ (Target::Ova | Target::Ovf)), _) => Some(target),
            (None, Endpoint::File(_)) if self.target_file().is_some_and(|path| has_extension(path, &["ova"])) => {
                Some(Target::Ova)
            }
            _ => None,
        }
    }

    /// Whether the target is a directory, for all disks of a package.
    pub(super) fn target_directory(&self) -> Option<&Path> {
        let path = self.target_file()?;
        let ends_as_one = path.as_os_str().as_encoded_bytes().last().is_some_and(|byte| is_separator((*byte).into()));
        (ends_as_one || path.is_dir()).then_some(path)
    }

    /// Writes an OVA, or the directory of an OVF package, of all sources.
    pub(super) fn to_package(&self, package: Target, interrupt: &Interrupt) -> Outcome {
        if package == Target::Ovf && *self.target() == Endpoint::Stream {
            return Err(Failure::usage("-O ovf needs a directory as TARGET"));
        }
        if *self.target() != Endpoint::Stream && self.target_file().is_none() {
            return Err(Failure::usage("-O ova and ovf need a file or a directory as TARGET"));
        }
        if package == Target::Ovf && has_extension(self.target_name(), &["ovf", "ova"]) {
            return Err(Failure::usage(
                "-O ovf makes TARGET a directory, whose name should not be that of a file; for a single file use -O ova",
            ));
        }
        let needs_image = [self.backing.is_given(), self.salvage, self.verify, !self.hash_file.is_empty()];
        if needs_image.contains(&true) || self.compress_output.is_some() {
            return Err(Failure::usage(
                "-B, --salvage, --verify, --hash-file and --compress-output are not supported with -O ova and ovf",
            ));
        }
        if !self.more.is_empty() && self.package.disk.is_some() {
            return Err(Failure::usage("--disk needs one SOURCE"));
        }
        if !self.more.is_empty() && self.header.is_given() {
            return Err(Failure::usage("--detached-header needs one SOURCE"));
        }
        let sources = self.sources().into_iter().map(|source| self.open_source(source, interrupt, false));
        let mut sources = sources.collect::<Result<Vec<_>, _>>()?;
        for (image, source) in sources.iter_mut().zip(self.sources()) {
            self.sparsify.apply(image, &source.shown(STANDARD_INPUT).to_string_lossy())?;
        }
        sources.iter().for_each(|source| self.warn(source));
        let bar = self.bar()?;
        let converter = self.converter(Format::VMDK, &bar)?.cancel(interrupt.flag());
        let disks: Vec<_> = sources.iter().collect();
        let result = match self.target() {
            Endpoint::Stream => {
                let directory = self.references.spool_directory();
                converter.convert_to_ova_stream(&disks, "vm", streams::output_stream()?, directory)
            }
            Endpoint::File(target) if package == Target::Ovf => converter.convert_to_ovf(&disks, target),
            Endpoint::File(target) => converter.convert_to_ova(&disks, target),
        };
        bar.clear();
        let reports = result.map_err(|error| interrupt.failure(error))?;
        self.print_reports(&reports, |index| (self.source_at(index), self.target_name().to_owned()))
    }

    /// Converts all disks of a package to images in a directory, named after their files.
    pub(super) fn to_directory(&self, directory: &Path, interrupt: &Interrupt) -> Outcome {
        let source = match self.sources().as_slice() {
            [Endpoint::File(source)] => source,
            [Endpoint::Stream] => {
                return Err(Failure::usage("TARGET is a directory: SOURCE must be a file, not standard input"));
            }
            _ => return Err(Failure::usage("TARGET is a directory: SOURCE must be one package of disks")),
        };
        let Some(Target::Image(format)) = self.target_format else {
            return Err(Failure::usage("TARGET is a directory: set the format of its images with -O"));
        };
        let needs_file = [self.backing.is_given(), self.salvage, self.snapshot.is_some(), self.package.disk.is_some()];
        let reads_back = self.verify || !self.hash_file.is_empty();
        if needs_file.contains(&true) || self.header.is_given() || reads_back || self.compress_output.is_some() {
            return Err(Failure::usage(
                "TARGET is a directory: -B, -l, --disk, --detached-header, --salvage, --verify, --hash-file and --compress-output need a file",
            ));
        }
        let options = self.in_temporary_directory(self.references.options(self.source_format)?);
        let location = Location::find(source)?;
        let Some(package) = location.package(&options)? else {
            let problem = format!("{}: not a package of disks, but TARGET is a directory", source.display());
            return Err(Failure::usage(problem));
        };
        let (mut images, mut paths, mut names) = (Vec::new(), Vec::new(), HashSet::new());
        for (index, disk) in package.disks.iter().enumerate() {
            if !disk.has_file {
                output::note(&format!("{}: disk {} is empty and has no file", source.display(), disk.name));
                continue;
            }
            let mut image = location.open(&options.clone().member((index + 1).to_string()))?;
            self.sparsify.apply(&mut image, &disk.name.to_text())?;
            self.warn(&image);
            images.push(image);
            paths.push(directory.join(file_name(&disk.name.to_text(), format, index, &mut names)));
        }
        if images.is_empty() {
            return Err(Failure::usage(format!("{}: the package has no disk with a file", source.display())));
        }
        let created = !directory.exists();
        if created {
            fs::create_dir(directory)
                .map_err(diskimage::Error::io("creating the directory", None))
                .map_err(|e| e.in_file(directory))?;
        }
        let result = self.convert_each(format, &images, &paths, interrupt);
        if result.is_err() && created {
            // Only if it is empty, which it is if nothing else was put there.
            let _ = fs::remove_dir(directory);
        }
        let reports = result?;
        self.print_reports(&reports, |index| {
            (location::shown(source).into_owned(), paths.get(index).cloned().unwrap_or_default())
        })
    }

    fn convert_each(
        &self,
        format: Format,
        images: &[Image],
        paths: &[PathBuf],
        interrupt: &Interrupt,
    ) -> Result<Vec<Report>, Failure> {
        let bar = self.bar()?;
        let converter = self.converter(format, &bar)?.cancel(interrupt.flag());
        let targets: Vec<_> = images.iter().zip(paths.iter().map(PathBuf::as_path)).collect();
        let result = converter.convert_all(&targets);
        bar.clear();
        result.map_err(|error| interrupt.failure(error))
    }

    fn source_at(&self, index: usize) -> PathBuf {
        self.sources().get(index).map_or(Path::new("").into(), |source| source.shown("-")).into_owned()
    }

    /// Prints the reports as a list in JSON style.
    fn print_reports(&self, reports: &[Report], names: impl Fn(usize) -> (PathBuf, PathBuf)) -> Outcome {
        for (index, report) in reports.iter().enumerate().filter(|_| !self.quiet) {
            guest::note(&report.volumes, &names(index).0.to_string_lossy());
        }
        if self.style() == Style::Human {
            reports.iter().try_for_each(|report| self.print_digests(report))?;
        }
        if self.style() == Style::Json {
            let list = reports.iter().enumerate().map(|(index, report)| {
                let (source, target) = names(index);
                json(&source, &target, report)
            });
            output::print_json(&Value::from(list.collect::<Vec<_>>()))?;
        }
        Ok(std::process::ExitCode::SUCCESS)
    }
}

/// Whether the path has one of these extensions.
pub(super) fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|own| extensions.iter().any(|extension| own.eq_ignore_ascii_case(extension)))
}

/// A file name for the image of a disk: the last component of the name in the package, without its extension and without characters
/// that some system does not allow in names.
fn file_name(member: &str, format: Format, index: usize, names: &mut HashSet<String>) -> String {
    let last = member.rsplit(['/', '\\']).next().unwrap_or_default();
    let stem = last.rsplit_once('.').map_or(last, |(stem, _)| stem);
    let plain = |c: char| if c.is_control() || "<>:\"|?*".contains(c) { '_' } else { c };
    let stem: String = stem.trim_matches(['.', ' ']).chars().map(plain).take(100).collect();
    let stem = if stem.is_empty() { format!("disk{}", index + 1) } else { stem };
    let extension = format.extensions().first().copied().unwrap_or("img");
    let name = format!("{stem}.{extension}");
    match names.insert(name.to_lowercase()) {
        true => name,
        false => format!("{stem}-{}.{extension}", index + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_plain_and_distinct() {
        let mut names = HashSet::new();
        for (index, (member, name)) in [
            ("a/vm-disk1.vmdk", "vm-disk1.qcow2"),
            ("b/vm-disk1.img", "vm-disk1-2.qcow2"),
            ("..", "disk3.qcow2"),
            ("a\\..\\c:d.x.vmdk", "c_d.x.qcow2"),
            (".vmdk", "disk5.qcow2"),
            ("x\u{1b}[m", "x_[m.qcow2"),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(file_name(member, Format::QCOW2, index, &mut names), name, "{member}");
        }
    }
}
