//! `imgconv convert`

mod existing;
mod needs;
mod package;
mod preset;
mod qemu_args;
mod report;

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use clap::ValueEnum;
use clap::builder::RangedU64ValueParser;
use diskimage::driver::FileId;
use diskimage::{
    Converter, Error, Format, HashAlgorithm, Image, OpenOptions, OutputCompression, Preset, Reflink, parse_size,
};

use crate::args::{self, BackingArgs, Endpoint, HeaderArgs, Output, PackageArgs, ReferenceArgs};
use crate::failure::{Failure, Outcome};
use crate::guest::SparsifyArgs;
use crate::location::{self, Location};
use crate::output::{self, Style};
use crate::progress::{self, Bar, When};
use crate::signals::Interrupt;
use crate::snapshot_selector;
use crate::streams;
pub use existing::is_changed_in_place;
use package::has_extension;
use qemu_args::{BitmapArgs, CacheArgs, ScriptArgs};

/// Convert an image to another format, or rewrite it in the same format
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Format of SOURCE [default: detected]
    #[arg(short = 'f', long = "source-format", value_name = "FMT", value_parser = args::format)]
    source_format: Option<Format>,

    /// Format of TARGET; ova, or ovf into a directory, for a package of one
    /// or more disks; gcp for an image of Google Compute Engine
    /// [default: from its extension]
    #[arg(short = 'O', long = "target-format", value_name = "FMT", value_parser = args::target, verbatim_doc_comment)]
    target_format: Option<args::Target>,

    /// Cloud or hypervisor that TARGET is for: azure, aws, gcp, openstack,
    /// esxi, hyperv, virtualbox, proxmox or xcp-ng; sets the format, its
    /// options and the limits of sizes, see imgconv formats
    #[arg(long = "for", value_name = "PLATFORM", value_parser = preset::parser(), hide_possible_values = true)]
    #[arg(conflicts_with_all = ["no_create", "base"], verbatim_doc_comment)]
    preset: Option<Preset>,

    /// SOURCE is a list of options, as in qemu-img:
    /// driver=FMT,file.filename=PATH,header.filename=PATH,key-secret=ID
    #[arg(long, conflicts_with = "source_format", verbatim_doc_comment)]
    image_opts: bool,

    /// Write into the existing image TARGET, with the properties that it
    /// has, instead of into a new one; a failure leaves it half written
    #[arg(short = 'n', long, conflicts_with_all = ["no_clobber", "compress", "options"], verbatim_doc_comment)]
    no_create: bool,

    /// TARGET is a list of options, as SOURCE with --image-opts; needs -n
    #[arg(long, requires = "no_create", conflicts_with = "target_format")]
    target_image_opts: bool,

    /// ID of the secret of TARGET, from --target-image-opts.
    #[arg(skip)]
    target_secret: Option<String>,

    /// Options of the target format; see imgconv formats
    #[arg(short = 'o', long = "target-options", value_name = "K=V,...")]
    options: Vec<String>,

    /// Compress guest data
    #[arg(short = 'c', long)]
    compress: bool,

    /// Compress the whole of a raw TARGET; the default follows from an
    /// extension .gz or .zst
    #[arg(long, value_name = "WHICH", verbatim_doc_comment)]
    compress_output: Option<CompressOutput>,

    /// Convert an internal snapshot: its ID or name, or
    /// snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long = "source-snapshot", value_name = "SNAPSHOT", verbatim_doc_comment)]
    snapshot: Option<String>,

    #[command(flatten)]
    backing: BackingArgs,

    /// Omit runs of at least SIZE zero bytes; 0 stores all zeros. SIZE is
    /// a multiple of 512, at most 16M, and rounded down to a power of two
    /// [default: 4k]
    #[arg(short = 'S', long, value_name = "SIZE", value_parser = sparse_size, verbatim_doc_comment)]
    sparse_size: Option<u64>,

    /// Share blocks with the source instead of copying, as cp does, where
    /// the file system can (XFS, btrfs): auto, always (or fail), never.
    /// With auto, zeros in what is shared remain data; -S turns it off
    /// [default: auto]
    #[arg(long, value_name = "WHEN", hide_possible_values = true, verbatim_doc_comment)]
    reflink: Option<ReflinkWhen>,

    /// Number of threads, 1 to 64 [default: cores, at most 16]
    #[arg(short = 'm', long = "parallel", value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=64))]
    threads: Option<usize>,

    /// Write at most RATE bytes of guest data per second; zeros that are not
    /// stored are free [default: no limit]
    #[arg(short = 'r', long, value_name = "RATE", value_parser = args::size, verbatim_doc_comment)]
    rate_limit: Option<u64>,

    /// Show the progress bar at once, not after a second; with =json, print
    /// a line of JSON with done, total and rate (bytes per second) to
    /// standard error from time to time
    #[arg(short = 'p', long, value_name = "STYLE", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "bar", hide_possible_values = true, verbatim_doc_comment)]
    progress: Option<progress::Style>,

    /// Print errors only
    #[arg(short = 'q', long)]
    quiet: bool,

    /// Read what can be read of a damaged SOURCE, a file, fill the rest with
    /// zeros and list it; exit code 3 if anything is unreadable or doubtful
    #[arg(long, verbatim_doc_comment)]
    salvage: bool,

    /// Byte that --salvage fills with, such as 255 or 0xff [default: 0]
    #[arg(long, value_name = "BYTE", requires = "salvage", value_parser = byte)]
    salvage_pattern: Option<u8>,

    /// Show the digest of the guest data, as of a raw disk, computed in the
    /// same pass: blake3 (the fastest), md5, sha1, sha256 or sha512; can be
    /// repeated
    #[arg(long, value_name = "ALGORITHM", value_parser = args::hash_algorithm, verbatim_doc_comment)]
    hash: Vec<HashAlgorithm>,

    /// Show the digest of each file written, computed while standard output
    /// is written, or else by reading the file back; can be repeated
    #[arg(long, value_name = "ALGORITHM", value_parser = args::hash_algorithm, verbatim_doc_comment)]
    hash_file: Vec<HashAlgorithm>,

    /// Read TARGET back before it gets its name, and compare its guest data
    /// with what was written
    #[arg(long, verbatim_doc_comment)]
    verify: bool,

    #[command(flatten)]
    references: ReferenceArgs,

    #[command(flatten)]
    package: PackageArgs,

    #[command(flatten)]
    header: HeaderArgs,

    /// Do not sync TARGET; a power failure may then damage it
    #[arg(long)]
    no_sync: bool,

    /// Fail if TARGET exists
    #[arg(long)]
    no_clobber: bool,

    /// Write into an existing TARGET instead of replacing it, so that it
    /// remains the same file; a failure may leave it empty
    #[arg(long, conflicts_with = "no_clobber", verbatim_doc_comment)]
    in_place: bool,

    #[command(flatten)]
    output: Output,

    #[command(flatten)]
    bitmaps: BitmapArgs,

    #[command(flatten)]
    cache: CacheArgs,

    #[command(flatten)]
    sparsify: SparsifyArgs,

    #[command(flatten)]
    _scripts: ScriptArgs,

    /// Image to convert, an NBD URI, an http or https URL, or - for standard input
    #[arg(value_parser = args::endpoint())]
    source: Endpoint,

    /// Output file, or - for standard output; an existing file is
    /// replaced on success; a directory for all disks of a package;
    /// an NBD URI
    #[arg(value_name = "TARGET", value_parser = args::endpoint(), verbatim_doc_comment)]
    second: Endpoint,

    /// The last file is TARGET, and those before it are sources: disks of
    /// a package with -O ova and ovf, else one disk one after another
    #[arg(value_name = "FILE", value_parser = args::endpoint(), verbatim_doc_comment)]
    more: Vec<Endpoint>,
}

/// `--reflink`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ReflinkWhen {
    Auto,
    Always,
    Never,
}

impl From<ReflinkWhen> for Reflink {
    fn from(when: ReflinkWhen) -> Reflink {
        match when {
            ReflinkWhen::Auto => Reflink::Auto,
            ReflinkWhen::Always => Reflink::Always,
            ReflinkWhen::Never => Reflink::Never,
        }
    }
}

/// `--compress-output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CompressOutput {
    Gzip,
    Zstd,
}

/// Extensions of compressed files.
const COMPRESSED: &[&str] =
    &["gz", "gzip", "tgz", "xz", "txz", "bz2", "bzip2", "tbz2", "zst", "zstd", "tzst", "lz4", "lzma", "7z", "zip"];

/// What messages call a source that is a stream.
const STANDARD_INPUT: &str = "standard input";

/// The exit code if parts of the source could not be read, or are doubtful.
const DAMAGED: u8 = 3;

const AFTER_HELP: &str = "\
TARGET is written to a temporary file in the same directory, synced and then renamed.
A failed conversion leaves no files. A replaced file's owner, permissions and
extended attributes are kept, as far as the system allows it; the new file is never open
to more users. Further files of an image are named after TARGET, as disk-flat.vmdk or
disk-s001.vmdk, and replace existing files. A block device is overwritten; after a
failure it has neither the old content nor the new.

With SOURCE_DATE_EPOCH in the environment, identifiers follow from the content and times
are that one: the same disk gives the same bytes.

A compressed SOURCE (gzip, xz, bzip2, zstd) is decompressed, up to three times; -f raw
takes its bytes as they are.

A raw disk on standard input needs -f raw, unless it is compressed; other images and
packages are detected. A streamOptimized vmdk
is read sequentially; everything else, unless it is a file (-f raw - <disk.raw), is first
copied to a temporary file in --spool-dir, $TMPDIR, or else in the directory of TARGET.
A raw disk ends where the input ends: check the exit code of what writes it, as with
set -o pipefail. Standard output is written in one pass, if it is a raw disk, zeros
included, also with --compress-output or as -O gcp; a fixed vhd; or a streamOptimized
vmdk. Any other image of one file, and an ova, is first written to a temporary file in
--spool-dir or $TMPDIR, because its beginning depends on the rest. The bytes are those of
a file. For standard output, check the exit code: a failed conversion leaves a truncated
image.

A package (OVA, OVF descriptor or its directory, archive) is opened like the image of its
disk, which is verified with the manifest. The files of an OVF descriptor are opened only
as --references allows. Options of -O ova and ovf: name, cpus, memory, firmware,
controller, nic, guest_os, hwversion and compression_level; see imgconv formats. With
-O ovf, TARGET is a directory, which must be empty or missing. With -O gcp, the disk is
padded to whole GiB, and is the sparse file disk.raw in a tar.gz.

SOURCE can be an export of an NBD server, and TARGET one to write to: nbd://HOST[:PORT]/NAME,
nbd+unix:///NAME?socket=PATH, or as in qemu-img, nbd:unix:PATH:exportname=NAME. With TLS:
nbds://HOST[:PORT]/NAME?tls-certificates=DIR, with ca-cert.pem in DIR, and, for a server
that has to know its clients, client-cert.pem and client-key.pem. A file of such a name
is ./nbd:x. An export is written in place like a block device, raw unless -O
says otherwise, and keeps its size.

The digest of --hash is that of the raw disk: of what sha256sum would say of the file that
-O raw makes of SOURCE, whatever the formats are. Zeros are hashed, too: a large empty
disk takes time. --verify reads the file as it is stored, by the reader of its format.

All secrets given (--object, --secret-file) are tried with each encrypted SOURCE and its
backing files. An encrypted TARGET takes the secret of -o key-secret=ID (luks) or
-o encrypt.format=luks,encrypt.key-secret=ID (qcow2), or else the only one given.
A qcow2 image with AES encryption takes the secret of --image-opts, or else the first
one; a wrong one is not detected, and gives garbage.

Of a SOURCE at a URL only the parts that are needed are fetched, by several connections.
A server without range requests is read like a pipe. Results and messages name the URL
without user name, password and query.

SIGUSR1 prints the progress to standard error.

Exit codes: 0 success, 1 failure, 3 success of --salvage, but parts of SOURCE could not
be read, or are doubtful: their host range has another use as well.

Examples:
  imgconv convert disk.raw disk.qcow2
  imgconv convert -c -o cluster_size=128k,compression_type=zstd disk.raw disk.qcow2
  imgconv convert -l before-upgrade disk.qcow2 old.raw
  imgconv convert --references beside overlay.qcow2 whole.qcow2
  imgconv convert --references beside disk.vmdk disk.raw
  imgconv convert -B base.qcow2 changed.raw overlay.qcow2
  imgconv convert --secret-file passphrase volume.luks disk.qcow2
  imgconv convert --secret-file passphrase --detached-header header.luks payload disk.raw
  imgconv convert --object secret,id=sec0,file=passphrase -n --target-image-opts \
      disk.qcow2 driver=luks,file.filename=volume.luks,key-secret=sec0
  imgconv convert vm.ova disk.qcow2                   the only disk of a package
  imgconv convert --disk 2 vm.ova second.qcow2
  imgconv convert -O qcow2 vm.ova disks/              all disks, into a directory
  imgconv convert --references beside vm.ovf disk.qcow2
  imgconv convert part1.raw part2.qcow2 whole.qcow2   concatenated
  imgconv convert -O ova -o cpus=4,memory=8G disk.qcow2 data.raw vm.ova
  imgconv convert -O ovf disk.qcow2 vm/
  imgconv convert -O gcp disk.qcow2 image.tar.gz
  imgconv convert --for azure disk.qcow2 disk.vhd
  xz -dc disk.raw.xz | imgconv convert -f raw - disk.qcow2
  imgconv convert disk.qcow2 disk.raw.zst
  imgconv convert https://cloud.example.com/disk.qcow2 disk.raw
  imgconv convert nbd://server/disk disk.qcow2
  imgconv convert -n disk.qcow2 'nbd+unix:///?socket=/run/nbd.sock'
  imgconv convert -O vmdk -o subformat=streamOptimized disk.qcow2 - | ssh host 'cat >disk.vmdk'
  imgconv convert -c -O qcow2 disk.raw - | ssh host 'cat >disk.qcow2'";

impl Args {
    /// The same conversion without what the file systems do not use: `imgconv sparsify`.
    pub fn sparsified(&self) -> Args {
        Args { sparsify: self.sparsify.clone().or_clean(), ..self.clone() }
    }

    pub fn run(&self) -> Outcome {
        let mut args = self.clone();
        args.parse_target_opts()?;
        args.apply_preset()?;
        args.convert()
    }

    /// Replaces a target that is a list of options by its path.
    fn parse_target_opts(&mut self) -> Result<(), Failure> {
        if self.target_image_opts {
            let opts = args::plain_image(self.target_name())?;
            if opts.header.is_some() || opts.backing.is_some() || opts.options.names().next().is_some() {
                let problem = "a TARGET with a detached header, a backing file or options for reading is not supported";
                return Err(Failure::usage(problem));
            }
            self.target_format = opts.format.map(args::Target::Image);
            *self.more.last_mut().unwrap_or(&mut self.second) = Endpoint::File(opts.path);
            self.target_secret = opts.secret;
        }
        Ok(())
    }

    fn convert(&self) -> Outcome {
        self.check_streams()?;
        let interrupt = match self.target() {
            // There is nothing to clean up, and a write to a reader that has stopped reading blocks forever.
            Endpoint::Stream => Interrupt::at_once()?,
            Endpoint::File(_) => Interrupt::register()?,
        };
        if let Some(target) = self.package_target() {
            return self.to_package(target, &interrupt);
        }
        if let Some(directory) = self.target_directory() {
            return self.to_directory(directory, &interrupt);
        }
        self.check_concatenation()?;
        let target = match self.target() {
            Endpoint::Stream => None,
            Endpoint::File(path) => Some(Location::find(path)?),
        };
        let (format, started) = (self.format(target.as_ref())?, Instant::now());
        // What is written to a stream cannot be taken back, should it turn out that one pass is not enough.
        let in_order = !self.salvage && self.more.is_empty() && !self.sparsify.is_given();
        let one_pass = in_order && *self.target() != Endpoint::Stream;
        let mut source = self.open_sources(&interrupt, one_pass)?;
        self.warn(&source);
        let bar = self.bar()?;
        let converter = self.converter(format, &bar)?.cancel(interrupt.flag());
        self.note_what_is_not_done(&source, format);
        let convert = |source: &Image| match &target {
            None => Ok::<_, Failure>(converter.convert_to(source, Arc::new(streams::output()?))),
            Some(Location::File(path)) => self.convert_to_file(&converter, source, format, path),
            Some(Location::Url(_)) => Err(Failure::usage("TARGET cannot be a URL")),
            Some(Location::Nbd(client)) if self.no_create => {
                Ok(converter.convert_into_existing(source, client.clone()))
            }
            Some(Location::Nbd(client)) => Ok(converter.convert_to(source, client.clone())),
        };
        let mut result = convert(&source)?;
        if one_pass && self.source != Endpoint::Stream && result.as_ref().is_err_and(|error| needs_more(error, &source))
        {
            source = self.open_source(&self.source, &interrupt, false)?;
            result = convert(&source)?;
        }
        bar.clear();
        match result {
            Ok(report) => self.print_report(&report, started.elapsed()),
            Err(error) => {
                let is_damage = matches!(error.root(), Error::Corrupt(_)) && !self.salvage && !self.reads_stream();
                let failure = interrupt.failure(self.in_stream(error));
                Err(if is_damage { failure.hint("; --salvage reads what can be read") } else { failure })
            }
        }
    }

    fn bar(&self) -> Result<Bar, Failure> {
        Bar::new(match (self.quiet, self.progress) {
            (true, _) => When::Never,
            (false, Some(progress::Style::Json)) => When::Lines,
            (false, Some(progress::Style::Bar)) => When::Immediately,
            (false, None) => When::Delayed,
        })
    }

    /// All files but the last.
    fn sources(&self) -> Vec<&Endpoint> {
        let mut files: Vec<_> = [&self.source, &self.second].into_iter().chain(&self.more).collect();
        files.pop();
        files
    }

    /// The last file.
    fn target(&self) -> &Endpoint {
        self.more.last().unwrap_or(&self.second)
    }

    /// The compression of the target as a whole, as far as its name or an option tells.
    fn output_compression(&self) -> Option<OutputCompression> {
        match self.compress_output {
            Some(CompressOutput::Gzip) => Some(OutputCompression::Gzip),
            Some(CompressOutput::Zstd) => Some(OutputCompression::Zstd),
            None => self.target_file()?.extension()?.to_str().and_then(OutputCompression::by_extension),
        }
    }

    /// The format of the target: that of the inner extension of "disk.raw.gz", or that of the existing image to write into.
    fn format(&self, target: Option<&Location>) -> Result<Format, Failure> {
        let name = self.target_name();
        match (target, self.target_format) {
            (Some(image), None) if self.no_create => return Ok(image.inspect(&OpenOptions::new())?.format),
            // As with a device, the name of an export does not tell.
            (Some(Location::Nbd(_)), None) => return Ok(Format::RAW),
            _ => {}
        }
        let inner = name.with_extension("");
        let has_compression = |extension: &str| OutputCompression::by_extension(extension).is_some();
        let is_outer = name.extension().and_then(OsStr::to_str).is_some_and(has_compression);
        args::target_format(
            self.target_format.and_then(args::Target::image),
            "-O",
            if is_outer { &inner } else { name },
        )
    }

    /// Output style of results and errors. With an image on standard output, it is `Human`.
    pub fn style(&self) -> Style {
        if *self.target() == Endpoint::Stream { Style::Human } else { self.output.style }
    }

    /// Rejects options that a stream does not support.
    fn check_streams(&self) -> Result<(), Failure> {
        let refuse = |problem: &str| Err(Failure::usage(problem));
        if self.target_name().to_str().is_some_and(diskimage::remote::is_url) {
            return refuse("TARGET is a URL, expected a file or -");
        }
        if self.sources().iter().filter(|source| ***source == Endpoint::Stream).count() > 1 {
            return refuse("standard input can be one SOURCE only");
        }
        if self.reads_stream() {
            if self.salvage {
                return refuse("--salvage needs a file as SOURCE: standard input is read sequentially");
            }
            if self.snapshot.is_some() {
                return refuse("-l needs a file as SOURCE: standard input is read sequentially");
            }
            if io::stdin().is_terminal() {
                return refuse("standard input is a terminal, expected a file or a pipe");
            }
        }
        if self.target_file().is_none() {
            if self.no_clobber {
                return refuse("--no-clobber needs a file as TARGET");
            }
            if self.backing.is_given() {
                return refuse("-B needs a file as TARGET");
            }
        }
        if *self.target() == Endpoint::Stream {
            if self.output.style == Style::Json {
                return refuse("--output json needs a file as TARGET: the image is written to standard output");
            }
            if self.no_create {
                return refuse("-n needs a file as TARGET");
            }
            if self.verify {
                return refuse("--verify needs a file as TARGET: what was written to standard output cannot be read");
            }
            if self.in_place {
                return refuse("--in-place needs a file as TARGET");
            }
            if self.backing.is_given() {
                return refuse("-B needs a file as TARGET: the name of BASE starts at its directory");
            }
            if io::stdout().is_terminal() {
                return refuse("standard output is a terminal, expected a file or a pipe");
            }
        }
        Ok(())
    }

    /// The path of the target, if it is a file.
    fn target_file(&self) -> Option<&Path> {
        match self.target() {
            Endpoint::File(path) if location::is_file(path) => Some(path),
            _ => None,
        }
    }

    /// The names of the sources, for messages.
    fn source_name(&self) -> String {
        let sources = self.sources();
        let names = sources.iter().map(|source| source.shown(STANDARD_INPUT).to_string_lossy().into_owned());
        names.collect::<Vec<_>>().join(", ")
    }

    /// Whether a source is standard input.
    fn reads_stream(&self) -> bool {
        self.sources().contains(&&Endpoint::Stream)
    }

    fn target_name(&self) -> &Path {
        self.target().name("standard output")
    }

    /// Attributes an error without a file to standard input, if that is the source.
    fn in_stream(&self, error: Error) -> Error {
        if self.reads_stream() { error.in_file(Path::new(STANDARD_INPUT)) } else { error }
    }

    /// Prints the warnings of each layer.
    fn warn(&self, source: &Image) {
        for (layer, info) in source.layers().enumerate().filter(|_| !self.quiet) {
            let path = source.file_path(layer, FileId::default()).unwrap_or(Path::new(STANDARD_INPUT)).display();
            if info.corrupt {
                output::note(&format!("{path}: the image is marked as corrupt"));
            }
            if info.dirty {
                output::note(&format!("{path}: the image was not closed cleanly"));
            }
            for warning in info.warnings.iter().chain(&info.ambiguities) {
                output::note(&format!("{path}: {warning}"));
            }
        }
        if self.cache.source().bypasses() && !source.bypasses_cache() && !self.quiet {
            let source = self.source_name();
            output::note(&format!("{source}: read through the page cache, which its file system cannot bypass"));
        }
        for warning in source.package_warnings().filter(|_| !self.quiet) {
            output::note(&format!("{}: {warning}", self.source_name()));
        }
    }

    /// Tells where the name of the target or a secret suggests what the options do not ask for.
    fn note_what_is_not_done(&self, source: &Image, format: Format) {
        if self.quiet {
            return;
        }
        self.references.note_unused_secrets(format, &args::format_options(&self.options), Some(source));
        let is_compressed = self.is_google() || self.compression(format).is_some();
        if !is_compressed && self.target_file().is_some_and(|name| has_extension(name, COMPRESSED)) {
            output::note(&format!("{}: not a compressed file, in spite of its name", self.target_name().display()));
        }
    }

    fn is_google(&self) -> bool {
        self.target_format == Some(args::Target::Gcp)
    }

    /// The compression of the target as a whole.
    fn compression(&self, format: Format) -> Option<OutputCompression> {
        // An extension alone does not compress an image of a stated format, and that of an image of Google is its own.
        let by_extension = match self.target_format {
            None => true,
            Some(args::Target::Gcp) => false,
            Some(_) => format == Format::RAW,
        };
        self.output_compression().filter(|_| by_extension || self.compress_output.is_some())
    }

    /// Opens the source, or all of them as one disk.
    fn open_sources(&self, interrupt: &Interrupt, one_pass: bool) -> Result<Image, Failure> {
        let mut image = match self.sources().as_slice() {
            [source] => self.open_source(source, interrupt, one_pass)?,
            sources => {
                let disks = sources.iter().map(|source| self.open_source(source, interrupt, one_pass));
                Image::concatenate(disks.collect::<Result<_, _>>()?)?
            }
        };
        self.sparsify.apply(&mut image, &self.source_name())?;
        Ok(image)
    }

    /// Rejects options that several sources in one image do not support.
    fn check_concatenation(&self) -> Result<(), Failure> {
        let single = [
            ("-l", self.snapshot.is_some()),
            ("-B", self.backing.is_given()),
            ("--disk", self.package.disk.is_some()),
            ("--detached-header", self.header.is_given()),
        ];
        match single.iter().find(|(_, is_given)| *is_given && !self.more.is_empty()) {
            Some((option, _)) => {
                Err(Failure::usage(format!("{option} needs one SOURCE; all files but the last are sources")))
            }
            None => Ok(()),
        }
    }

    fn open_source(&self, source: &Endpoint, interrupt: &Interrupt, one_pass: bool) -> Result<Image, Failure> {
        let name = source.name(STANDARD_INPUT);
        let (options, path) = self.references.open(self.image_opts, self.source_format, name)?;
        let options = self.header.add_to(self.package.select(options)).one_pass(one_pass).cancel(interrupt.flag());
        let options = options.cache(self.cache.source());
        let options = self.in_temporary_directory(options);
        let path = match source {
            Endpoint::File(_) => path,
            Endpoint::Stream => {
                // Without a format it has to be compressed, and its first bytes tell.
                let image = match streams::input_file().filter(|_| self.source_format.is_some()) {
                    Some(file) => options.open_file(file),
                    None => options.open_stream(streams::input(interrupt.flag())?),
                };
                return image.map_err(|error| match error {
                    Error::Usage(_) if self.source_format.is_none() => {
                        Failure::usage("the format of standard input cannot be detected; set it with -f, as -f raw")
                    }
                    error => interrupt.failure(self.in_stream(error)),
                });
            }
        };
        let image = Location::find(path).map_err(|error| interrupt.failure(error))?;
        let options = match &self.snapshot {
            Some(selector) => snapshot_selector::select(options, &image, name, selector)?,
            None => options,
        };
        image.open(&options).map_err(|error| {
            let takes_all = matches!(error.root(), Error::SeveralDisks { .. }) && *self.target() != Endpoint::Stream;
            let failure = interrupt.failure(error);
            if takes_all {
                failure.hint(", or take all with -O FMT and a directory, such as disks/, as TARGET")
            } else {
                failure
            }
        })
    }

    /// Sets the directory for temporary files: `TMPDIR`, or else that of the target, whose file system takes a disk.
    fn in_temporary_directory(&self, options: OpenOptions) -> OpenOptions {
        if self.references.spool_directory().is_some() {
            return options;
        }
        let Some(target) = self.target_file() else { return options };
        let is_device = fs::metadata(target).is_ok_and(|old| !old.is_file());
        match target.parent().filter(|_| !is_device && env::var_os("TMPDIR").is_none()) {
            Some(directory) if directory.as_os_str().is_empty() => options.temporary_directory("."),
            Some(directory) => options.temporary_directory(directory),
            None => options,
        }
    }

    fn converter(&self, format: Format, bar: &Bar) -> Result<Converter, Failure> {
        let bar = bar.clone();
        let mut options = args::format_options(&self.options);
        let secret = match self.no_create {
            true => self.references.secret(self.target_secret.as_deref())?,
            false => self.references.target_secret(format, &mut options)?,
        };
        let mut converter = Converter::new(format)
            .options(options.clone())
            .compress(self.compress)
            .compress_output(self.compression(format))
            .google_image(self.is_google())
            .sync(!self.no_sync)
            .cache(self.cache.target())
            .clobber(!self.no_clobber)
            .in_place(self.in_place)
            .existing(self.no_create)
            .verify(self.verify)
            .salvage(self.salvage)
            .salvage_pattern(self.salvage_pattern.unwrap_or_default())
            .bitmaps(self.bitmaps.policy())
            .rate(self.rate_limit.unwrap_or_default())
            .progress(move |progress| bar.update(progress));
        if let Some(size) = self.sparse_size {
            converter = converter.sparse(size);
        }
        if let Some(when) = self.reflink {
            converter = converter.reflink(when.into());
        }
        if let Some(secret) = secret {
            converter = converter.secret(secret);
        }
        if let Some(threads) = self.threads {
            converter = converter.threads(threads);
        }
        converter = self.hash.iter().fold(converter, |converter, algorithm| converter.hash(*algorithm));
        converter = self.hash_file.iter().fold(converter, |converter, algorithm| converter.hash_file(*algorithm));
        if let Some(directory) = self.references.spool_directory() {
            converter = converter.temporary_directory(directory);
        }
        if let Some((image, name)) = self.backing.open(&self.references, format, &options, self.target_name())? {
            converter = converter.backing(image, name);
        }
        if let Some(preset) = self.preset {
            converter = preset.apply(converter)?;
        }
        Ok(converter)
    }
}

/// Whether a conversion failed because `source` cannot be read in one pass.
fn needs_more(error: &Error, source: &Image) -> bool {
    match error.root() {
        Error::NotOnePass { .. } => true,
        // Grains that are far out of order.
        Error::Unsupported { format, at: Some(_), .. } => *format == source.format().name(),
        _ => false,
    }
}

/// Parses the argument of `--salvage-pattern`, for clap.
fn byte(text: &str) -> Result<u8, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u8::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "must be a number from 0 to 255, or from 0x00 to 0xff".to_owned())
}

/// Parses the argument of `-S`, for clap.
fn sparse_size(text: &str) -> Result<u64, String> {
    const MAX: u64 = 16 << 20;
    match parse_size(text) {
        Ok(size) if size <= MAX && size % 512 == 0 => Ok(size),
        Ok(_) => Err("must be a multiple of 512 and at most 16M".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes() {
        assert_eq!([byte("0"), byte("255"), byte("0xff"), byte("0x5")], [Ok(0), Ok(255), Ok(255), Ok(5)]);
        for text in ["256", "-1", "ff", "0x100", ""] {
            assert!(byte(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sparse_sizes() {
        assert_eq!(sparse_size("0"), Ok(0));
        assert_eq!(sparse_size("4k"), Ok(4096));
        assert_eq!(sparse_size("16M"), Ok(16 << 20));
        for text in ["511", "16385k", "x", "1.1k"] {
            assert!(sparse_size(text).is_err(), "{text}");
        }
    }
}
