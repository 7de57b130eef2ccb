//! Arguments that several subcommands share, and value parsers for clap.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use clap::builder::{PathBufValueParser, TypedValueParser};
use diskimage::{Disk, Error, Format, HashAlgorithm, Image, Name, OpenOptions, Options, Secret, parse_size};

use crate::failure::Failure;
use crate::limits::LimitArgs;
use crate::location;
use crate::node::{Backing, Node, Plain};
use crate::output::{self, Style};
use crate::sandbox::Needs;
use crate::secrets::SecretArgs;

/// `--output`.
#[derive(Clone, Debug, clap::Args)]
pub struct Output {
    /// Style of results and errors
    #[arg(long = "output", value_name = "STYLE", default_value = "human")]
    pub style: Style,
}

/// `-U`.
#[derive(Clone, Debug, clap::Args)]
pub struct ShareArgs {
    /// Read an image that another program, such as a running virtual
    /// machine, has opened for writing; the result may be inconsistent
    #[arg(short = 'U', long, verbatim_doc_comment)]
    force_share: bool,

    #[command(flatten)]
    compressed: CompressedArgs,
}

/// Options for compressed images.
#[derive(Clone, Debug, clap::Args)]
struct CompressedArgs {
    /// Directory for the temporary file of an image that is compressed, or
    /// from or to a pipe [default: $TMPDIR]
    #[arg(long, value_name = "DIR", verbatim_doc_comment)]
    spool_dir: Option<PathBuf>,

    #[command(flatten)]
    limits: LimitArgs,
}

impl CompressedArgs {
    fn apply(&self, mut options: OpenOptions) -> OpenOptions {
        if let Some(directory) = &self.spool_dir {
            options = options.temporary_directory(directory);
        }
        options.limits(self.limits.0.clone())
    }
}

impl ShareArgs {
    /// Adds what reading an image takes besides the image.
    pub fn add_needs(&self, needs: &mut Needs) {
        needs.spool(self.compressed.spool_dir.as_deref());
    }

    /// Options for opening a single image of `format`, which is detected if `None`.
    pub fn options(&self, format: Option<Format>) -> OpenOptions {
        let options = self.compressed.apply(OpenOptions::new().force_share(self.force_share));
        match format {
            Some(format) => options.format(format),
            None => options,
        }
    }
}

/// Options for input images, their referenced files and their secrets.
#[derive(Clone, Debug, clap::Args)]
pub struct ReferenceArgs {
    #[command(flatten)]
    share: ShareArgs,

    /// Which referenced files (backing files, extents) may be opened;
    /// beside: those in the directory of the image
    #[arg(long, value_name = "WHICH", default_value = "none", verbatim_doc_comment)]
    references: ReferencePolicy,

    /// Accept a backing file that changed after the overlay was created
    #[arg(long)]
    allow_changed_backing: bool,

    /// Format of a backing file where the overlay does not state it, or
    /// states one that the file cannot have
    #[arg(long, value_name = "FMT", value_parser = format, verbatim_doc_comment)]
    backing_format: Option<Format>,

    #[command(flatten)]
    secrets: SecretArgs,
}

/// The input image of a subcommand.
#[derive(Clone, Debug, clap::Args)]
pub struct Input {
    /// Format of FILE [default: detected]
    #[arg(short = 'f', long, value_name = "FMT", value_parser = self::format)]
    format: Option<Format>,

    /// FILE is a list of options, as in qemu-img:
    /// driver=FMT,file.filename=PATH,header.filename=PATH,key-secret=ID
    #[arg(long, conflicts_with = "format", verbatim_doc_comment)]
    image_opts: bool,

    #[command(flatten)]
    references: ReferenceArgs,

    #[command(flatten)]
    pub package: PackageArgs,

    #[command(flatten)]
    header: HeaderArgs,

    #[command(flatten)]
    pub output: Output,

    /// Image file, or its http or https URL
    #[arg(value_parser = self::file())]
    pub file: PathBuf,
}

impl Input {
    /// What reading the image needs.
    pub fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        self.references.add_needs(&mut needs, self.image_opts, &self.file);
        self.header.add_needs(&mut needs);
        needs
    }

    /// Whether referenced files may be anywhere.
    pub fn allows_any(&self) -> bool {
        self.references.allows_any()
    }

    /// Options for opening the image, and its path.
    pub fn open(&self) -> Result<(OpenOptions, PathBuf), Failure> {
        let (options, path) = self.references.open(self.image_opts, self.format, &self.file)?;
        Ok((self.header.add_to(self.package.select(options)), path))
    }
}

/// The image that a subcommand changes in place.
#[derive(Clone, Debug, clap::Args)]
pub struct ChangedArgs {
    /// Format of FILE [default: detected]
    #[arg(short = 'f', long, value_name = "FMT", value_parser = self::format)]
    format: Option<Format>,

    #[command(flatten)]
    pub references: ReferenceArgs,

    #[command(flatten)]
    pub output: Output,

    /// Image file
    #[arg(value_parser = self::file())]
    pub file: PathBuf,
}

impl ChangedArgs {
    /// Options for opening the image.
    pub fn options(&self) -> Result<OpenOptions, Failure> {
        self.references.options(self.format)
    }

    /// Opens the image for changes.
    pub fn open(&self) -> Result<Disk, Failure> {
        Ok(self.options()?.open_disk(&self.file)?)
    }
}

/// The disk of a package.
#[derive(Clone, Debug, clap::Args)]
pub struct PackageArgs {
    /// Disk of a package (OVA, OVF, tar): its number from 1 on, the name
    /// of its file, or its identifier; -f is then the format of the disk
    #[arg(long, value_name = "DISK", verbatim_doc_comment)]
    pub disk: Option<String>,
}

impl PackageArgs {
    /// The options with the selected disk.
    pub fn select(&self, options: OpenOptions) -> OpenOptions {
        select_disk(options, self.disk.as_deref())
    }
}

/// The options with the selected disk of a package.
pub fn select_disk(options: OpenOptions, disk: Option<&str>) -> OpenOptions {
    match disk {
        Some(disk) => options.member(disk),
        None => options,
    }
}

/// The detached header of an input image.
#[derive(Clone, Debug, clap::Args)]
pub struct HeaderArgs {
    /// File with the LUKS header of an encrypted input image whose own file
    /// has no header, as for cryptsetup --header
    #[arg(long, value_name = "PATH", verbatim_doc_comment)]
    detached_header: Option<PathBuf>,
}

impl HeaderArgs {
    /// Whether it is on the command line.
    pub fn is_given(&self) -> bool {
        self.detached_header.is_some()
    }

    /// Adds what reading the header needs.
    pub fn add_needs(&self, needs: &mut Needs) {
        if let Some(path) = &self.detached_header {
            needs.read(path);
        }
    }

    /// The options with the header, if there is one.
    pub fn add_to(&self, options: OpenOptions) -> OpenOptions {
        with_header(options, self.detached_header.clone())
    }
}

fn with_header(options: OpenOptions, header: Option<PathBuf>) -> OpenOptions {
    match header {
        Some(path) => options.detached_header(path),
        None => options,
    }
}

/// The backing file of a new image.
#[derive(Clone, Debug, clap::Args)]
pub struct BackingArgs {
    /// Create an overlay backed by BASE, which stores only differences;
    /// a relative BASE starts at the directory of the overlay
    #[arg(short = 'B', visible_short_alias = 'b', long = "backing", value_name = "BASE")]
    #[arg(value_parser = self::file(), verbatim_doc_comment)]
    base: Option<PathBuf>,

    /// Format of BASE [default: detected]
    #[arg(short = 'F', long, value_name = "FMT", value_parser = self::format)]
    base_format: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ReferencePolicy {
    None,
    Beside,
    Any,
}

impl ReferenceArgs {
    /// Adds what opening the image `file` needs, with the files that it may reference. With `image_opts`, `file` is a list of options.
    pub fn add_needs(&self, needs: &mut Needs, image_opts: bool, file: &Path) {
        self.add_needs_of_options(needs);
        match self.references {
            _ if !location::is_file(file) => needs.network(),
            // Several names can be in a list.
            _ if image_opts => needs.read_anything(),
            ReferencePolicy::None => needs.read(file),
            ReferencePolicy::Beside => {
                needs.read(file);
                needs.read_beside(file);
            }
            ReferencePolicy::Any => needs.read_anything(),
        }
    }

    /// Adds what the options need, whatever the image is.
    pub fn add_needs_of_options(&self, needs: &mut Needs) {
        self.share.add_needs(needs);
        self.secrets.add_needs(needs);
    }

    /// Whether referenced files may be anywhere.
    pub fn allows_any(&self) -> bool {
        self.references == ReferencePolicy::Any
    }

    /// The directory for temporary files, if it is set.
    pub fn spool_directory(&self) -> Option<&Path> {
        self.share.compressed.spool_dir.as_deref()
    }

    /// Options for opening the image `file` of `format`, which is detected if `None`, and its path. With `image_opts`, `file` is a list of
    /// options.
    pub fn open(
        &self,
        image_opts: bool,
        format: Option<Format>,
        file: &Path,
    ) -> Result<(OpenOptions, PathBuf), Failure> {
        if !image_opts {
            return Ok((self.options(format)?, file.to_owned()));
        }
        if format.is_some() {
            return Err(Failure::usage("the format of an image given by options is set with driver="));
        }
        let opts = plain_image(file)?;
        let options = self.without_secrets(opts.format).without_backing(opts.without_backing).options(opts.options);
        let options = if opts.force_share { options.force_share(true) } else { options };
        let options = match opts.backing {
            Some(Backing { path, format }) => options.backing_file(path, format),
            None => options,
        };
        let options = self.secrets.add_to(options, opts.secret.as_deref())?;
        Ok((with_header(options, opts.header), opts.path))
    }

    /// Options for opening an image of `format`, which is detected if `None`.
    pub fn options(&self, format: Option<Format>) -> Result<OpenOptions, Failure> {
        self.secrets.add_to(self.without_secrets(format), None)
    }

    /// Takes the ID of the secret of a new image out of its options, and returns the secret: without an ID the only secret.
    pub fn target_secret(&self, format: Format, options: &mut Options) -> Result<Option<Secret>, Failure> {
        key_of_target(&self.secrets, format, options)
    }

    /// Tells that a secret is given, if neither the new image nor the other one is encrypted.
    pub fn note_unused_secrets(&self, format: Format, options: &Options, other: Option<&Image>) {
        let is_encrypted = is_encrypted(format, options)
            || other.is_some_and(|image| image.layers().any(|info| info.encryption.is_some()));
        if self.secrets.is_given() && !is_encrypted {
            output::note("no image is encrypted: the secret given is not used");
        }
    }

    /// The secret called `id`, or else the only one.
    pub fn secret(&self, id: Option<&str>) -> Result<Option<Secret>, Failure> {
        self.secrets.of_target(id)
    }

    fn without_secrets(&self, format: Option<Format>) -> OpenOptions {
        let policy = match self.references {
            ReferencePolicy::None => diskimage::ReferencePolicy::Deny,
            ReferencePolicy::Beside => diskimage::ReferencePolicy::Beside,
            ReferencePolicy::Any => diskimage::ReferencePolicy::Any,
        };
        let options = self.share.options(format).reference_policy(policy);
        let options = options.allow_changed_backing(self.allow_changed_backing);
        match self.backing_format {
            Some(format) => options.backing_format(format),
            None => options,
        }
    }
}

impl BackingArgs {
    /// The path of the backing file, if there is one, as it is stored.
    pub fn path<'a>(&'a self, options: &'a Options) -> Option<&'a Path> {
        self.base.as_deref().or_else(|| options.value("backing_file").map(Path::new))
    }

    /// Whether `-B` or `-F` is on the command line.
    pub fn is_given(&self) -> bool {
        self.base.is_some() || self.base_format.is_some()
    }

    /// Opens the backing file of the new image `target`, if any. Returns it with the name to store in `target`.
    ///
    /// The name is stored as given. A relative name is resolved against the directory of `target`, as every reader does.
    pub fn open(
        &self,
        references: &ReferenceArgs,
        format: Format,
        options: &Options,
        target: &Path,
    ) -> Result<Option<(Image, Name)>, Failure> {
        // Formats without the option `backing_file` reject it themselves.
        let takes_backing = format.options().iter().any(|option| option.name == "backing_file");
        let in_options = options.value("backing_file").filter(|_| takes_backing).map(Path::new);
        let Some(name) = self.base.as_deref().or(in_options) else {
            return match self.base_format {
                Some(_) => Err(Failure::usage("-F needs a backing file; set one with -B")),
                None => Ok(None),
            };
        };
        let format = match (self.base_format, options.value("backing_fmt")) {
            (None, Some(name)) => Some(Format::by_name(name)?),
            (format, _) => format,
        };
        let image = references.options(format)?.open(target.with_file_name("").join(name));
        let image = image.map_err(|error| Failure::from(error).format_option("-F"))?;
        Ok(Some((image, Name::from(name))))
    }
}

/// Takes the ID of the secret of a new image out of its options, and returns the secret: without an ID the only secret.
pub fn key_of_target(secrets: &SecretArgs, format: Format, options: &mut Options) -> Result<Option<Secret>, Failure> {
    let name = if format == Format::LUKS { "key-secret" } else { "encrypt.key-secret" };
    let encrypts =
        format.options().iter().any(|option| option.name == "encrypt.format" || option.name.ends_with("cipher-alg"));
    let id = if encrypts { options.take(name) } else { None };
    if id.is_some() && !is_encrypted(format, options) {
        let encryption = if format.name() == "qcow" { "aes" } else { "luks" };
        return Err(Failure::usage(format!("-o {name} needs -o encrypt.format={encryption}")));
    }
    secrets.of_target(id.as_deref())
}

/// Whether a new image of this format is encrypted, by its options.
fn is_encrypted(format: Format, options: &Options) -> bool {
    format == Format::LUKS || options.value("encrypt.format").is_some()
}

/// Returns the format of a new image: `format`, or else that of the extension of `target`.
///
/// # Errors
///
/// The extension is unknown. The message names `option`.
pub fn target_format(format: Option<Format>, option: &str, target: &Path) -> Result<Format, Failure> {
    let by_extension = || target.extension().and_then(OsStr::to_str).and_then(Format::by_extension);
    format.or_else(by_extension).ok_or_else(|| {
        let target = target.to_string_lossy();
        Failure::usage(format!("{target}: cannot infer the format from the file extension; set it with {option}"))
    })
}

/// What `-O` of convert names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Image(Format),
    /// A package of disks in one file.
    Ova,
    /// A package of disks in a directory.
    Ovf,
    /// An image of Google Compute Engine.
    Gcp,
}

impl Target {
    /// The format of an image, or of the disk in it.
    pub fn image(self) -> Option<Format> {
        match self {
            Target::Image(format) => Some(format),
            Target::Gcp => Some(Format::RAW),
            Target::Ova | Target::Ovf => None,
        }
    }
}

/// Parses the argument of `-O`, for clap.
pub fn target(name: &str) -> Result<Target, String> {
    match name {
        "ova" => Ok(Target::Ova),
        "ovf" => Ok(Target::Ovf),
        "gcp" => Ok(Target::Gcp),
        name => format(name).map(Target::Image),
    }
}

/// Collects the options of all `-o`, in order.
pub fn format_options(lists: &[String]) -> Options {
    let mut options = Options::new();
    for list in lists {
        options.add_list(list);
    }
    options
}

/// Parses a size in bytes, for clap.
pub fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}

/// Parses the name of a hash algorithm, for clap.
pub fn hash_algorithm(name: &str) -> Result<HashAlgorithm, String> {
    name.parse().map_err(|error: Error| error.to_string())
}

/// Parses the name of a format, for clap.
pub fn format(name: &str) -> Result<Format, String> {
    Format::by_name(name).map_err(|_| {
        let known: Vec<_> = Format::all().map(|format| format.name()).collect();
        format!("unknown format; supported: {}", known.join(", "))
    })
}

/// Source or target of a conversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `-`: standard input or output.
    Stream,
    File(PathBuf),
}

impl Endpoint {
    /// The path of the file, or `stream` for a stream.
    pub fn name<'a>(&'a self, stream: &'a str) -> &'a Path {
        match self {
            Endpoint::Stream => Path::new(stream),
            Endpoint::File(path) => path,
        }
    }

    /// The same for messages and results: a URL without secrets.
    pub fn shown<'a>(&'a self, stream: &'a str) -> Cow<'a, Path> {
        location::shown(self.name(stream))
    }
}

/// Parses a file name or `-`, for clap.
pub fn endpoint() -> impl TypedValueParser<Value = Endpoint> {
    PathBufValueParser::new().map(|path| if path.as_os_str() == "-" { Endpoint::Stream } else { Endpoint::File(path) })
}

/// Parses a file name, for clap.
pub fn file() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.as_os_str() == OsStr::new("-") {
        true => {
            Err("only SOURCE and TARGET of convert, and FILE of inspect, can be streams; for a file named -, use ./-")
        }
        false => Ok(path),
    })
}

/// The image that a list of options describes.
pub fn plain_image(list: &Path) -> Result<Plain, Failure> {
    let node = Node::from_list(list.as_os_str()).and_then(Node::into_plain);
    node.map_err(|invalid| Failure::usage(format!("image options: {invalid}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_dash_is_a_stream() {
        let command = clap::Command::new("test");
        let parse = |word| endpoint().parse_ref(&command, None, OsStr::new(word)).unwrap();
        assert_eq!(parse("-"), Endpoint::Stream);
        assert_eq!(parse("./-"), Endpoint::File("./-".into()));
    }
}
