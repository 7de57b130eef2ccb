//! The examination of one file.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::policy::name_of;
use super::{Finding, Judgement, Policy, Verdict};
use crate::driver::{CheckKind, CheckReport, Probe};
use crate::error::{Error, Result, SecretProblem};
use crate::format::Format;
use crate::format::shared::signature;
use crate::guest;
use crate::image::{
    Image, Inspection, OpenOptions, Opened, Peeled, Purpose, ReferencePolicy, Scratch, SizedFile, Span, file_at,
};
use crate::info::{ImageInfo, Value};
use crate::io::ReadAt;
use crate::name::Name;
#[cfg(feature = "packages")]
use crate::package::Package;

/// Findings of a check of the metadata that are told one by one.
const CHECK_MESSAGES: usize = 100;

/// Guest bytes that are read at once.
const CHUNK: usize = 1 << 20;

/// What was found in a file until now. The file is opened once, and decompressed once.
pub(super) struct Examination<'a> {
    policy: &'a Policy,
    options: OpenOptions,
    judgement: Judgement,
    /// The files beside it in a package, which can be its extents.
    members: Vec<Name>,
}

impl<'a> Examination<'a> {
    pub fn new(policy: &'a Policy, options: &OpenOptions) -> Self {
        let options = policy.limit(options).reference_policy(ReferencePolicy::Deny).without_backing(true);
        Examination::begin(policy, options, Vec::new())
    }

    fn begin(policy: &'a Policy, options: OpenOptions, members: Vec<Name>) -> Self {
        let judgement = Judgement { verdict: Verdict::Safe, ..Judgement::default() };
        Examination { policy, options, judgement, members }
    }

    pub fn judge(mut self, path: &Path) -> Judgement {
        let opened = file_at(path).and_then(|path| Ok((self.options.open_top(&path)?, path)));
        let examined = opened.and_then(|(file, path)| self.examine(file, Some(&path)));
        self.ended(examined)
    }

    pub fn judge_source(mut self, source: Arc<dyn ReadAt>) -> Judgement {
        let examined = SizedFile::new(source).and_then(|file| self.examine(Arc::new(file), None));
        self.ended(examined)
    }

    fn ended(mut self, examined: Result<()>) -> Judgement {
        // The check of the format may have told the same.
        if let Err(error) = examined
            && let finding = Finding::from(&error)
            && !self.judgement.findings.contains(&finding)
        {
            self.add(finding);
        }
        self.judgement
    }

    fn add(&mut self, finding: Finding) {
        self.judgement.verdict = self.judgement.verdict.max(finding.verdict);
        self.judgement.findings.push(finding);
    }

    /// Adds the finding, unless the policy accepts it.
    fn add_unless(&mut self, accepted: bool, finding: impl FnOnce() -> Finding) {
        if !accepted {
            self.add(finding());
        }
    }

    fn examine(&mut self, file: Arc<SizedFile>, path: Option<&Path>) -> Result<()> {
        let before = last_change(&file);
        self.examine_open(file.clone(), path)?;
        if last_change(&file) != before {
            self.add(Finding::unknown("readable", "the file changed while it was examined"));
        }
        Ok(())
    }

    fn examine_open(&mut self, file: Arc<SizedFile>, path: Option<&Path>) -> Result<()> {
        // It is not decoded then, which takes the time of all that it claims to be.
        if !self.policy.compressed
            && let Some(compression) = self.options.compression_in(&file)?
        {
            self.judgement.compression.push(compression.name());
            self.add(compressed_with(compression.name()));
            return Ok(());
        }
        let content = self.options.peel(file, path)?;
        self.judgement.compression.extend(content.layers.iter().map(|layer| layer.name));
        #[cfg(feature = "packages")]
        if !self.options.selects_disk()
            && let Some(package) = self.options.package_in(&content)?
        {
            self.examine_package(&package, &content);
            return Ok(());
        }
        self.examine_disk(content)
    }

    /// Each disk is examined; without a permission for packages too, for the reasons that it adds.
    #[cfg(feature = "packages")]
    fn examine_package(&mut self, package: &Package, content: &Peeled) {
        let Policy { packages, warnings, .. } = *self.policy;
        self.judgement.format = Some(package.kind);
        self.add_unless(packages, || {
            let (count, disks) = (package.disks.len(), if package.disks.len() == 1 { "disk" } else { "disks" });
            let message = format!("{} package with {count} {disks}", package.kind);
            Finding::refused("packages", message).with(package.kind, "a disk that is not in a package")
        });
        for warning in &package.warnings {
            self.add_unless(warnings, || Finding::refused("warnings", &**warning));
        }
        if package.disks.is_empty() {
            let problem = self.options.opened_peeled(content.clone(), None, Purpose::Inspect, 0).err();
            let finding = problem.as_ref().map(Finding::from);
            self.add(finding.unwrap_or_else(|| Finding::refused("packages", "the package has no disk")));
        }
        // A link is not followed here, but by a program that unpacks it.
        let files = package.members.iter().filter(|member| !matches!(member.role, "link" | "directory"));
        let members: Vec<_> = files.map(|member| member.name.clone()).collect();
        // The disks of a descriptor are files beside it.
        let (external, inside): (Vec<_>, Vec<_>) =
            package.disks.iter().enumerate().partition(|(_, disk)| package.kind == "ovf" && disk.has_file);
        for (_, disk) in &external {
            self.add_external_file("package", "disk", &disk.name);
        }
        if !external.is_empty() {
            self.data_is_elsewhere();
        }
        for (index, disk) in inside {
            let options = self.options.clone().member((index + 1).to_string());
            let (policy, members) = (self.policy, members.clone());
            let mut disk_alone = Examination::begin(policy, options, members);
            let examined = disk_alone.examine_disk(content.clone());
            let judged = disk_alone.ended(examined);
            self.judgement.virtual_size = self.judgement.virtual_size.max(judged.virtual_size);
            self.judgement.external_files.extend(judged.external_files);
            for finding in judged.findings {
                self.add(Finding { disk: Some(disk.name.clone()), ..finding });
            }
        }
    }

    /// The disk in a file, or the selected one of a package.
    fn examine_disk(&mut self, content: Peeled) -> Result<()> {
        let opened = self.options.opened_peeled(content, None, Purpose::Inspect, 0)?;
        let inspection = self.options.inspect_opened(&opened)?;
        self.judgement.format = Some(inspection.format.name());
        self.judgement.virtual_size = Some(inspection.info.virtual_size);
        self.examine_file(&inspection, &opened.source)?;
        self.examine_properties(&inspection.info);
        self.examine_metadata(&inspection, opened)
    }

    /// What the file is.
    fn examine_file(&mut self, inspection: &Inspection, source: &Arc<SizedFile>) -> Result<()> {
        let policy = self.policy;
        let (format, file_len) = (inspection.format, inspection.file_len);
        for layer in &inspection.compression {
            self.add_unless(policy.compressed, || compressed_with(layer.name));
        }
        self.add_unless(Policy::accepts(policy.formats.as_deref(), format.name()), || {
            let accepted = one_of(&policy.formats);
            Finding::refused("format", format!("the format is {format}")).with(format, accepted)
        });
        let content = name_of(inspection.content);
        self.add_unless(format != Format::RAW || Policy::accepts(policy.content.as_deref(), content), || {
            let accepted = one_of(&policy.content);
            Finding::refused("content", format!("the content of the disk is {content}")).with(content, accepted)
        });
        if inspection.info.virtual_size == 0 {
            self.add(Finding::refused("content", "the disk is empty").with(0, "a disk"));
        }
        if self.starts_with_metadata(inspection) {
            self.examine_signatures(format, source)?;
        } else if format != Format::RAW && signature::is_luks(&Probe::new(source.ends()?.probe().head, &[], file_len)) {
            // The guest of a fixed VHD can have encrypted its whole disk, and QEMU takes the file for the volume.
            self.add(second_signature(format, "luks"));
        }
        self.examine_size("file-size", "the file", file_len, policy.file_size);
        let size = inspection.info.virtual_size;
        if let Some(most) = policy.expansion {
            self.add_unless(size <= file_len.saturating_mul(most), || {
                let message = format!("the disk of {size} bytes is in a file of {file_len} bytes");
                Finding::refused("expansion", message).with(size / file_len.max(1), format!("at most {most} times"))
            });
        }
        Ok(())
    }

    /// Whether the file starts with metadata, and not with what the guest writes.
    fn starts_with_metadata(&self, inspection: &Inspection) -> bool {
        match inspection.format.name() {
            "raw" | "dmg" => false,
            "vpc" => inspection.info.property("subformat") != Some(&Value::from("fixed")),
            _ => true,
        }
    }

    /// An image that other programs take for an optical disc or for a disk with partitions.
    fn examine_signatures(&mut self, format: Format, source: &Arc<SizedFile>) -> Result<()> {
        // The salt of a key slot of LUKS can have the two bytes of an MBR.
        let names = guest::media(source)?.into_iter();
        names
            .filter(|name| format.name() != "luks" || *name != "MBR partition table")
            .for_each(|name| self.add(second_signature(format, name)));
        Ok(())
    }

    fn examine_size(&mut self, check: &'static str, what: &str, size: u64, most: Option<u64>) {
        if let Some(most) = most {
            self.add_unless(size <= most, || {
                Finding::refused(check, format!("{what} has {size} bytes")).with(size, format!("at most {most}"))
            });
        }
    }

    /// Whether the package has such a file in some directory, from where alone it is opened then.
    fn has_member(&self, name: &Name) -> bool {
        let name = name.as_bytes();
        !name.contains(&b'/')
            && self.members.iter().any(|member| {
                member.as_bytes().strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with(b"/"))
            })
    }

    fn add_external_file(&mut self, what: &str, role: &str, name: &Name) {
        self.judgement.external_files.push(name.clone());
        self.add_unless(self.policy.external_files, || {
            let message = format!("the {what} names another file, its {role}: {name}");
            Finding::refused("external-files", message).with(name, "no other file")
        });
    }

    fn data_is_elsewhere(&mut self) {
        self.add_unless(!self.policy.read_data, || {
            Finding::unknown("external-files", "the data in other files was not read")
        });
    }

    /// What the header and the like say.
    fn examine_properties(&mut self, info: &ImageInfo) {
        let policy = self.policy;
        if let Some(Value::Text(subformat)) = info.property("create-type") {
            let subformat = subformat.to_text();
            self.add_unless(Policy::accepts(policy.vmdk_subformats.as_deref(), &subformat), || {
                let accepted = one_of(&policy.vmdk_subformats);
                let message = format!("the subformat is {subformat}");
                Finding::refused("subformats", message).with(subformat, accepted)
            });
        }
        if info.format == "vmdk" && info.property("create-type").is_none() {
            self.add_unless(policy.vmdk_subformats.is_none(), || {
                let accepted = one_of(&policy.vmdk_subformats);
                Finding::refused("subformats", "the image has no subformat: it is an extent").with("none", accepted)
            });
        }
        for reference in info.backing.iter().chain(&info.files) {
            let is_member = reference.role == "extent" && self.has_member(&reference.name);
            if !is_member {
                self.add_external_file("image", reference.role, &reference.name);
            }
        }
        if let Some(encryption) = info.encryption {
            self.add_unless(policy.encrypted, || {
                Finding::refused("encryption", format!("encrypted ({encryption})")).with(encryption, "not encrypted")
            });
        }
        self.add_unless(policy.unclosed || !info.dirty, || {
            Finding::refused("closed", "the image was not closed by its writer")
        });
        self.add_unless(!info.corrupt, || Finding::refused("corrupt", "the image is marked as corrupt"));
        self.examine_size("virtual-size", "the disk", info.virtual_size, policy.virtual_size);
        self.add_unless(policy.snapshots || info.snapshots.is_empty(), || {
            let count = info.snapshots.len();
            Finding::refused("snapshots", format!("the number of internal snapshots is {count}")).with(count, "none")
        });
        self.add_unless(!info.snapshots_unreadable, || Finding::refused("snapshots", "the snapshots cannot be read"));
        for snapshot in &info.snapshots {
            self.examine_size("virtual-size", "a snapshot", snapshot.virtual_size, policy.virtual_size);
        }
        for ambiguity in &info.ambiguities {
            self.add(Finding::refused("ambiguities", &**ambiguity));
        }
        for warning in &info.warnings {
            self.add_unless(policy.warnings, || Finding::refused("warnings", &**warning));
        }
    }

    /// The tables, by the check of the driver, or else by reading them to the end.
    fn examine_metadata(&mut self, inspection: &Inspection, opened: Opened) -> Result<()> {
        if !inspection.info.files.is_empty() {
            // They are in files that are not opened.
            self.data_is_elsewhere();
            return Ok(());
        }
        let report = inspection.format.can_check().then(|| self.options.check_opened(&opened));
        // The check goes on after a fault, which has less details then.
        let image = match self.options.open_chain(opened) {
            Err(error) if is_locked(&error) => None,
            image => Some(image?),
        };
        if inspection.format == Format::RAW
            && let Some(image) = &image
            && begins_as_text(image)?
        {
            self.add(Finding::refused("content", "the file is a text file").with("text", "a disk"));
        }
        if let Some(report) = report {
            self.examine_report(&report?);
            if !self.policy.read_data {
                return Ok(());
            }
        }
        let Some(image) = image else {
            self.add_unless(!self.policy.read_data, || {
                Finding::unknown("encryption", "the data was not read: no secret is given")
            });
            return Ok(());
        };
        // Data is no reason to accept an image.
        let reads_data = self.policy.read_data && self.judgement.verdict != Verdict::Unsafe;
        let mut reading = reads_data.then(|| (vec![0; CHUNK], Scratch::default()));
        for span in image.spans_exclusive()? {
            let span = span?;
            if let Some((buf, scratch)) = reading.as_mut().filter(|_| !span.is_zero()) {
                read(&image, &span, buf, scratch)?;
            }
        }
        #[cfg(feature = "packages")]
        if reads_data {
            image.verify()?;
        }
        Ok(())
    }

    fn examine_report(&mut self, report: &CheckReport) {
        let Policy { leaks, warnings, .. } = *self.policy;
        let refused = |check, words: &str| Some(Finding::refused(check, words));
        for message in report.messages.iter().take(CHECK_MESSAGES) {
            let finding = match message.kind() {
                CheckKind::Leak if leaks => None,
                CheckKind::Leak => refused("leaks", message.words()),
                CheckKind::Error => Some(match message.error() {
                    Some(error) => Finding::from(error),
                    None => Finding::refused("metadata", message.words()),
                }),
                CheckKind::NotChecked => Some(Finding::unknown("metadata", message.words())),
                CheckKind::Limit => refused("limits", message.words()),
                CheckKind::Warning if warnings => None,
                CheckKind::Warning => refused("warnings", message.words()),
                // The properties say the same.
                CheckKind::Note => None,
            };
            finding.into_iter().for_each(|finding| self.add(finding));
        }
        // Each kind has a finding at least, wherever the messages end.
        let told = |kind| report.messages.iter().take(CHECK_MESSAGES).any(|message| message.kind() == kind);
        let unchecked_told = told(CheckKind::NotChecked) || told(CheckKind::Limit);
        self.add_unless(leaks || report.leaks == 0 || told(CheckKind::Leak), || {
            Finding::refused("leaks", format!("{} clusters are allocated, but not used", report.leaks))
        });
        self.add_unless(report.corruptions == 0 || told(CheckKind::Error), || {
            Finding::refused("metadata", format!("{} errors", report.corruptions))
        });
        self.add_unless(report.check_errors == 0 || unchecked_told, || {
            Finding::unknown("metadata", format!("{} parts could not be checked", report.check_errors))
        });
        self.add_unless(leaks || report.unused_end == 0, || {
            Finding::refused("leaks", format!("{} bytes after the last block are not used", report.unused_end))
        });
    }
}

/// Length of a file of the system, and when it was written to.
fn last_change(file: &SizedFile) -> Option<(u64, Option<SystemTime>)> {
    let metadata = file.as_file()?.metadata().ok()?;
    Some((metadata.len(), metadata.modified().ok()))
}

/// Whether a secret is needed, and none was given. One that does not fit is an error as any other.
fn is_locked(error: &Error) -> bool {
    matches!(error.root(), Error::Secret { problem: SecretProblem::Missing, .. })
}

/// Whether a file without a signature begins as a text.
fn begins_as_text(image: &Image) -> Result<bool> {
    const HEAD: u64 = 4096;
    let mut head = vec![0; image.virtual_size().min(HEAD) as usize];
    image.read_exact_at(&mut head, 0)?;
    Ok(signature::describe(&Probe::new(&head, &[], image.virtual_size())) == "text")
}

fn second_signature(format: Format, name: &str) -> Finding {
    let message = format!("the {format} image has the signature of {name}, too");
    Finding::refused("signatures", message).with(name, "the signature of one format")
}

fn compressed_with(name: &'static str) -> Finding {
    Finding::refused("compression", format!("compressed with {name}")).with(name, "not compressed")
}

/// What a list of accepted names allows, in words.
fn one_of(names: &Option<Vec<String>>) -> String {
    format!("one of {}", names.as_deref().unwrap_or_default().join(", "))
}

/// Reads the data of a span: its payload has to decode.
fn read(image: &Image, span: &Span, buf: &mut [u8], scratch: &mut Scratch) -> Result<()> {
    let mut at = span.offset;
    while at < span.end() {
        let end = span.end().min(at.saturating_add(buf.len() as u64));
        image.load(&span.clip(at, end), buf.get_mut(..(end - at) as usize).unwrap_or_default(), scratch)?;
        at = end;
    }
    Ok(())
}
