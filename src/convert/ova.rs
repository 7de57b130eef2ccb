//! Writing packages: the disks as streams, one after the other, with a descriptor of their sizes and a manifest of their digests.
//!
//! In an archive the descriptor comes first. Its length is known before, and it is written last.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::output::Output;
use super::{Converter, Report};
use crate::driver::TargetFiles;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::image::{Image, SourceFile};
use crate::io::{FileIdentity, PipeTarget, WriteAt, directory_of, sync_directory};
use crate::options::OptionSpec;
use crate::package::Package;
use crate::package::manifest::Hasher;
use crate::package::ova::{self, Disk, Settings};
use crate::spool;

impl Package {
    /// The options of [`Converter::convert_to_ova`] and [`Converter::convert_to_ovf`].
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
        let settings = self.settings(disks, target.file_stem())?;
        let output = Output::create(target, self.rules(in_use(disks)))?;
        let mut archive = Archive::new(output.file(), &settings, disks.len(), self.time()?)?;
        let reports = self.write_package(disks, &settings, &mut archive).map_err(|e| in_target(e, target))?;
        drop(archive);
        output.commit()?;
        Ok(reports)
    }

    /// Writes the package of [`convert_to_ova`](Self::convert_to_ova) to a stream; the names of its files begin with `stem`.
    ///
    /// The descriptor, which comes first, states the sizes of what follows. Therefore the package is written to a file without a name in
    /// `directory` first, or in the [directory of the system](std::env::temp_dir).
    ///
    /// # Errors
    /// As [`convert_to_ova`](Self::convert_to_ova), and errors of the stream.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use diskimage::io::MemFile;
    /// use diskimage::{Converter, Format, OpenOptions};
    ///
    /// let disk = Arc::new(MemFile::from(vec![7; 1 << 20]));
    /// let disk = OpenOptions::new().format(Format::RAW).open_source(disk)?;
    /// let mut upload = Vec::new();
    /// Converter::new(Format::VMDK).convert_to_ova_stream(&[&disk], "vm", &mut upload, None)?;
    /// assert!(upload.starts_with(b"vm.ovf"));
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn convert_to_ova_stream(
        &self,
        disks: &[&Image],
        stem: &str,
        stream: impl Write + Send,
        directory: Option<&Path>,
    ) -> Result<Vec<Report>> {
        let settings = self.settings(disks, Some(stem.as_ref()))?;
        let spooled = spool::Spool::create(directory.unwrap_or(&spool::default_directory()))?;
        let mut archive = Archive::new(spooled.file(), &settings, disks.len(), self.time()?)?;
        let reports = self.write_package(disks, &settings, &mut archive)?;
        drop(archive);
        spooled.copy_to(&PipeTarget::new(stream), &|| self.is_cancelled())?;
        Ok(reports)
    }

    /// Writes the files of the package of [`convert_to_ova`](Self::convert_to_ova) to the directory `target`, which must be empty or missing; the names of the
    /// files begin with that of the directory.
    ///
    /// The files have temporary names until all are complete, and the descriptor gets its name last. After a failure, none of them is left, nor the
    /// directory, if it was missing.
    ///
    /// # Errors
    /// As [`convert_to_ova`](Self::convert_to_ova); [`Error::Usage`] if the directory is not empty.
    ///
    /// ```no_run
    /// use diskimage::{Converter, Format, Image};
    ///
    /// let disk = Image::open("system.qcow2")?;
    /// Converter::new(Format::VMDK).convert_to_ovf(&[&disk], "export/vm")?;
    /// // export/vm/vm.ovf, export/vm/vm-disk1.vmdk, export/vm/vm.mf
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn convert_to_ovf(&self, disks: &[&Image], target: impl AsRef<Path>) -> Result<Vec<Report>> {
        let target = target.as_ref();
        let settings = self.settings(disks, target.file_name())?;
        let directory = NewDirectory::create(target).map_err(|e| e.in_file(target))?;
        let descriptor = target.join(settings.descriptor_name());
        let output = Output::create(&descriptor, self.rules(in_use(disks)))?;
        let mut files = Files { output: &output, file: None };
        let reports = self.write_package(disks, &settings, &mut files).map_err(|e| in_target(e, target))?;
        output.commit()?;
        directory.keep(self.sync).map_err(|e| e.in_file(target))?;
        Ok(reports)
    }

    fn settings(&self, disks: &[&Image], stem: Option<&OsStr>) -> Result<Settings> {
        if disks.is_empty() {
            return Err(Error::Usage("a package needs a disk".into()));
        }
        Settings::parse(&self.options, &stem.map(OsStr::to_string_lossy).unwrap_or_default(), disks.len())
    }

    /// The time for headers of archives, in seconds since 1970.
    pub(super) fn time(&self) -> Result<u64> {
        Ok(self.identifiers_of(self.source_of_identifiers()?, 0).time)
    }

    fn write_package(
        &self,
        disks: &[&Image],
        settings: &Settings,
        files: &mut dyn PackageFiles,
    ) -> Result<Vec<Report>> {
        let total: u64 = disks.iter().map(|disk| disk.virtual_size()).fold(0, u64::saturating_add);
        let (mut entries, mut digests, mut reports, mut done) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (index, disk) in disks.iter().enumerate() {
            let name = settings.disk_name(index);
            let (out, start) = files.open(&name)?;
            let state = Arc::new(Mutex::new((0, settings.hasher())));
            let pipe = PipeTarget::new(Section { out, start, state: state.clone() }).with_path(&name);
            let part = done..u64::saturating_add(done, disk.virtual_size());
            done = part.end;
            let converter = self.for_disk(settings, part, total);
            let report = converter.write_to(Some(disk), disk.virtual_size(), Arc::new(pipe))?;
            let (size, hasher) = std::mem::replace(&mut *lock(&state), (0, settings.hasher()));
            files.close(&name, size)?;
            entries.push(Disk { capacity: report.virtual_size, size, populated: report.data_bytes });
            digests.push((name, hasher.finish()));
            reports.push(report);
        }
        let descriptor = settings.descriptor(&entries);
        let mut hasher = settings.hasher();
        hasher.update(&descriptor);
        digests.insert(0, (settings.descriptor_name(), hasher.finish()));
        let (name, manifest) = (settings.manifest_name(), settings.manifest(&digests));
        let (out, start) = files.open(&name)?;
        out.write_all_at(&manifest, start).map_err(Error::io("writing the manifest", start))?;
        files.close(&name, manifest.len() as u64)?;
        files.finish(&descriptor)?;
        Ok(reports)
    }

    /// The converter for a disk that is the part `part` of the `total` bytes of all disks.
    fn for_disk(&self, settings: &Settings, part: Range<u64>, total: u64) -> Converter {
        Converter {
            format: Format::VMDK,
            options: settings.disk_options(&self.options),
            compress: true,
            compress_output: None,
            google_image: false,
            backing: None,
            ..self.part_of(part, total)
        }
    }
}

/// The files that must not be overwritten.
fn in_use(disks: &[&Image]) -> Vec<FileIdentity> {
    disks.iter().flat_map(|disk| disk.files()).filter_map(SourceFile::identity).collect()
}

/// Attributes an error that has no file to the target.
fn in_target(error: Error, target: &Path) -> Error {
    match error {
        error @ (Error::File { .. } | Error::Guest { .. }) => error,
        error => error.in_file(target),
    }
}

/// Where the files of a package are written, one after the other.
trait PackageFiles {
    /// Begins a file, and returns what it is written to and the offset of its first byte there.
    fn open(&mut self, name: &str) -> Result<(Arc<dyn WriteAt>, u64)>;

    /// Ends the file, which has `size` bytes.
    fn close(&mut self, name: &str, size: u64) -> Result<()>;

    /// Writes the descriptor, and syncs.
    fn finish(&mut self, descriptor: &[u8]) -> Result<()>;
}

/// An archive, in which the descriptor comes first.
struct Archive<'a> {
    out: Arc<dyn WriteAt>,
    settings: &'a Settings,
    time: u64,
    /// Offset of the next header.
    at: u64,
}

impl<'a> Archive<'a> {
    fn new(out: Arc<dyn WriteAt>, settings: &'a Settings, disks: usize, time: u64) -> Result<Archive<'a>> {
        if !out.starts_zeroed() {
            return Err(Error::unsupported(ova::FORMAT_NAME, "writing to a device").in_file_at(out.path()));
        }
        Ok(Archive { out, settings, time, at: ova::ALIGNMENT + settings.descriptor_len(disks) })
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.out.write_all_at(bytes, at).map_err(Error::io("writing", at))
    }
}

impl PackageFiles for Archive<'_> {
    fn open(&mut self, _name: &str) -> Result<(Arc<dyn WriteAt>, u64)> {
        Ok((self.out.clone(), self.at + ova::ALIGNMENT))
    }

    fn close(&mut self, name: &str, size: u64) -> Result<()> {
        self.write(&ova::header(name, size, self.time), self.at)?;
        self.at = (self.at + ova::ALIGNMENT + size).next_multiple_of(ova::ALIGNMENT);
        Ok(())
    }

    fn finish(&mut self, descriptor: &[u8]) -> Result<()> {
        self.write(&ova::end(), self.at)?;
        let header = ova::header(&self.settings.descriptor_name(), descriptor.len() as u64, self.time);
        self.write(descriptor, ova::ALIGNMENT)?;
        self.write(&header, 0)?;
        self.out.sync().map_err(Error::io("syncing", None))
    }
}

/// Files of a directory, of which the descriptor is the image that gets its name last.
struct Files<'a> {
    output: &'a Output,
    /// The file that is being written.
    file: Option<Arc<dyn WriteAt>>,
}

impl PackageFiles for Files<'_> {
    fn open(&mut self, name: &str) -> Result<(Arc<dyn WriteAt>, u64)> {
        let file = self.output.add(name.as_ref())?;
        self.file = Some(file.clone());
        Ok((file, 0))
    }

    fn close(&mut self, _name: &str, _size: u64) -> Result<()> {
        self.file.take().map_or(Ok(()), |file| file.sync()).map_err(Error::io("syncing", None))
    }

    fn finish(&mut self, descriptor: &[u8]) -> Result<()> {
        let out = self.output.file();
        out.write_all_at(descriptor, 0).map_err(Error::io("writing the descriptor", 0))?;
        out.sync().map_err(Error::io("syncing", None))
    }
}

/// A directory for a package. It is removed, if it was created and is empty, unless it is kept.
struct NewDirectory<'a> {
    path: &'a Path,
    is_created: bool,
}

impl<'a> NewDirectory<'a> {
    fn create(path: &'a Path) -> Result<NewDirectory<'a>> {
        match fs::create_dir(path) {
            Ok(()) => Ok(NewDirectory { path, is_created: true }),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let first = fs::read_dir(path).and_then(|mut entries| entries.next().transpose());
                match first.map_err(Error::io("listing the directory", None))? {
                    None => Ok(NewDirectory { path, is_created: false }),
                    Some(_) => Err(Error::Usage("the directory is not empty".into())),
                }
            }
            Err(e) => Err(Error::io("creating the directory", None)(e)),
        }
    }

    fn keep(mut self, sync: bool) -> Result<()> {
        if std::mem::take(&mut self.is_created) && sync {
            sync_directory(directory_of(self.path)).map_err(Error::io("syncing the directory", None))?;
        }
        Ok(())
    }
}

impl Drop for NewDirectory<'_> {
    fn drop(&mut self) {
        if self.is_created {
            // Only if it is empty: something else may have been put there.
            let _ = fs::remove_dir(self.path);
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
