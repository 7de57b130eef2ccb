//! Writing packages: the disks as streams, one after the other, with a descriptor whose length is known before.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::output::Output;
use super::{Converter, Report};
use crate::error::{Error, Result};
use crate::format::Format;
use crate::image::{Image, SourceFile};
use crate::io::{PipeTarget, WriteAt};
use crate::options::OptionSpec;
use crate::package::Package;
use crate::package::manifest::Hasher;
use crate::package::ova::{self, Disk, Settings};

impl Package {
    /// The options of [`Converter::convert_to_ova`].
    pub const OVA_OPTIONS: &'static [OptionSpec] = ova::OPTIONS;
}

impl Converter {
    /// Writes a package of the disks to the path `target`: an OVA with an OVF descriptor, the disks as streamOptimized VMDK, and a manifest.
    /// The [options](Self::options) are those of [`Package::OVA_OPTIONS`]; the format of the converter and its backing image do not
    /// matter. Returns a report for each disk.
    ///
    /// The file is written as by [`convert`](Self::convert), in one pass. The same disks and options give the same bytes if identifiers are
    /// reproducible.
    ///
    /// # Errors
    /// As [`convert`](Self::convert); [`Error::Usage`] without a disk, [`Error::Unsupported`] for a device.
    ///
    /// ```no_run
    /// use diskimage::{Converter, Format, Image, Options};
    ///
    /// let mut options = Options::new();
    /// options.add_list("cpus=4,memory=8G,firmware=efi");
    /// let disks = [&Image::open("system.qcow2")?, &Image::open("data.vhdx")?];
    /// Converter::new(Format::VMDK).options(options).convert_to_ova(&disks, "vm.ova")?;
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn convert_to_ova(&self, disks: &[&Image], target: impl AsRef<Path>) -> Result<Vec<Report>> {
        let target = target.as_ref();
        if disks.is_empty() {
            return Err(Error::Usage("a package needs a disk".into()));
        }
        let stem = target.file_stem().map(OsStr::to_string_lossy).unwrap_or_default();
        let settings = Settings::parse(&self.options, &stem, disks.len())?;
        let in_use = disks.iter().flat_map(|disk| disk.files()).filter_map(SourceFile::identity).collect();
        let output = Output::create(target, self.rules(in_use))?;
        let reports = self.write_ova(disks, &settings, output.file()).map_err(|e| match e {
            error @ (Error::File { .. } | Error::Guest { .. }) => error,
            error => error.in_file(target),
        })?;
        output.commit()?;
        Ok(reports)
    }

    fn write_ova(&self, disks: &[&Image], settings: &Settings, out: Arc<dyn WriteAt>) -> Result<Vec<Report>> {
        if !out.starts_zeroed() {
            return Err(Error::unsupported(ova::FORMAT_NAME, "writing to a device"));
        }
        let write = |bytes: &[u8], at: u64| out.write_all_at(bytes, at).map_err(Error::io("writing", at));
        let time = self.identifiers_of(self.source_of_identifiers()?, 0).time;
        let total: u64 = disks.iter().map(|disk| disk.virtual_size()).fold(0, u64::saturating_add);
        let descriptor_len = settings.descriptor_len(disks.len());
        let mut at = ova::ALIGNMENT + descriptor_len;
        let (mut entries, mut digests, mut reports, mut done) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (index, disk) in disks.iter().enumerate() {
            let name = settings.disk_name(index);
            let state = Arc::new(Mutex::new((0, settings.hasher())));
            let stream = Section { out: out.clone(), start: at + ova::ALIGNMENT, state: state.clone() };
            let pipe = Arc::new(PipeTarget::new(stream).with_path(&name));
            let report = self.for_disk(settings, done, total).write_to(Some(disk), disk.virtual_size(), pipe)?;
            done += disk.virtual_size();
            let state = std::mem::replace(&mut *lock(&state), (0, settings.hasher()));
            let (size, hasher) = state;
            write(&ova::header(&name, size, time), at)?;
            at = (at + ova::ALIGNMENT + size).next_multiple_of(ova::ALIGNMENT);
            entries.push(Disk { capacity: report.virtual_size, size, populated: report.data_bytes });
            digests.push((name, hasher.finish()));
            reports.push(report);
        }
        let name = format!("{}.ovf", settings.stem);
        let descriptor = settings.descriptor(&entries);
        write(&ova::header(&name, descriptor.len() as u64, time), 0)?;
        write(&descriptor, ova::ALIGNMENT)?;
        let mut hasher = settings.hasher();
        hasher.update(&descriptor);
        digests.insert(0, (name, hasher.finish()));
        let manifest = settings.manifest(&digests);
        write(&ova::header(&format!("{}.mf", settings.stem), manifest.len() as u64, time), at)?;
        write(&manifest, at + ova::ALIGNMENT)?;
        let end = (at + ova::ALIGNMENT + manifest.len() as u64).next_multiple_of(ova::ALIGNMENT);
        write(&ova::end(), end)?;
        out.sync().map_err(Error::io("syncing", None))?;
        Ok(reports)
    }

    /// The converter for a disk, after `done` of `total` bytes of all disks.
    fn for_disk(&self, settings: &Settings, done: u64, total: u64) -> Converter {
        Converter {
            format: Format::VMDK,
            options: settings.disk_options(&self.options),
            compress: true,
            compress_output: None,
            backing: None,
            ..self.part_of(done, total)
        }
    }
}

/// Writes one after the other from `start` of a file, and computes the digest.
struct Section {
    out: Arc<dyn WriteAt>,
    start: u64,
    /// Number of bytes, and their digest.
    state: Arc<Mutex<(u64, Hasher)>>,
}

fn lock(state: &Mutex<(u64, Hasher)>) -> std::sync::MutexGuard<'_, (u64, Hasher)> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Write for Section {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut state = lock(&self.state);
        self.out.write_all_at(buf, self.start.saturating_add(state.0))?;
        state.0 += buf.len() as u64;
        state.1.update(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
