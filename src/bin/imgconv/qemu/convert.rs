//! `qemu-img convert`

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use diskimage::io::CacheMode;
use diskimage::nbd::{self, Client};
use diskimage::{Converter, Damage, Error, Format, Image, OpenOptions};

use super::getopt::Parsed;
use super::message::{self, Failed, NAME, describe};
use super::progress::Printer;
use super::source::{Source, Sources};
use super::target::{Target, asks_for_help, format_for};
use super::{Outcome, bitmaps, print};
use crate::convert::is_changed_in_place;
use crate::location;
use crate::node::{Node, Storage};
use crate::signals::Interrupt;
use crate::snapshot_selector::SnapshotSelector;

pub fn run(parsed: &Parsed) -> Outcome {
    let format_name = parsed.text("target-format").unwrap_or("raw".into());
    if asks_for_help(parsed.all("target-options")) {
        return print(&Target::help(format_for(&format_name)?));
    }
    let settings = Settings::new(parsed)?;
    let Some((target_name, source_names)) = parsed.operands.split_last().filter(|(_, sources)| !sources.is_empty())
    else {
        return Err(Failed::new("Must specify image file name"));
    };
    let interrupt = Interrupt::register()?;
    let source_cache = super::cache(parsed, "source-cache", "source cache")?.unwrap_or_default();
    let sources = Sources::new(parsed).cached(source_cache);
    let image = open_all(parsed, &sources, source_names)?;
    if source_cache.bypasses() && !image.bypasses_cache() {
        message::line(&format!(
            "{NAME}: warning: a source is read through the page cache: its file system cannot bypass it"
        ));
    }

    let place = Place::find(parsed, &sources, target_name)?;
    let format = match place.format {
        Some(format) => format,
        None => format_for(&format_name)?,
    };
    let mut target = Target::new(format, parsed.all("target-options"))?;
    target.backing = parsed.text("backing").or_else(|| parsed.text("backing-file")).or(target.backing);
    target.backing_format = parsed.text("backing-format").or(target.backing_format);
    check_target(parsed, &target, source_names.len())?;
    let bitmaps = bitmaps::policy(parsed, &image, &target)?;

    let printer = Arc::new(Printer::new(parsed.flag("progress") && !parsed.flag("quiet")));
    let bar = printer.clone();
    let converter = place.converter(parsed, &sources, &target, image.virtual_size())?;
    let mut converter = settings.apply(parsed, &target, converter).bitmaps(bitmaps);
    if let (true, true, [name]) = (parsed.flag("bitmaps"), parsed.flag("source-snapshot"), source_names) {
        // Of the active state, whatever is converted.
        let format = parsed.text("source-format");
        converter = converter.bitmaps_from(sources.source(name, format.as_deref())?.open()?);
    }
    let converter = converter.cancel(interrupt.flag()).progress(move |progress| bar.update(progress));
    let converter = place.with_backing(parsed, &sources, &mut target, converter)?;
    let report = match place.client {
        None => match converter.convert(&image, &place.path) {
            Err(error) if parsed.flag("no-create") && is_changed_in_place(&error) => {
                let disk = sources.file(place.path.as_os_str(), Some(format.name()))?.open_disk("")?;
                converter.convert_into_disk(&image, &disk).and_then(|report| disk.close().map(|()| report))
            }
            result => result,
        },
        Some(ref client) if parsed.flag("no-create") => converter.convert_into_existing(&image, client.clone()),
        Some(ref client) => converter.convert_to(&image, client.clone()),
    };
    let report = report.map_err(|error| {
        Failed::unless_cancelled(&interrupt, error, |error| failure(error, &place.name, format, parsed))
    })?;
    printer.finish();
    bitmaps::warn(&report);
    if report.cache_refused {
        message::line(&format!("{NAME}: warning: {}: its file system cannot bypass the page cache", place.name));
    }
    for Damage { range, message, .. } in &report.unreadable.ranges {
        message::line(&format!("{NAME}: warning: error while reading offset {}: {message}", range.start));
    }
    Ok(0)
}

/// Where the new image is going to be.
struct Place {
    /// As in messages.
    name: String,
    path: PathBuf,
    client: Option<Arc<Client>>,
    /// The format and the secret of a list of options.
    format: Option<Format>,
    secret: Option<String>,
}

impl Place {
    fn find(parsed: &Parsed, sources: &Sources, name: &OsStr) -> Result<Place, Failed> {
        let by_options = parsed.flag("target-image-opts");
        let node = if by_options { Node::from_list(name)? } else { Node::named(name)? };
        let is_description = by_options || name.to_string_lossy().starts_with("json:");
        let name = node.shown(name);
        let node = sources.secured(node)?;
        if is_description && !parsed.flag("no-create") {
            return Err(Failed::new("Unknown protocol 'json'"));
        }
        if by_options && parsed.flag("target-format") {
            return Err(Failed::new("--image-opts and --format are mutually exclusive"));
        }
        let is_read_otherwise = node.backing.is_some() || node.options.names().next().is_some();
        if node.window.is_some() || node.header.is_some() || is_read_otherwise {
            let what = "a part of a file, a volume with a detached header, nor an image with options for reading";
            return Err(Failed::new(format!("{name}: imgconv does not write to {what}")));
        }
        let mut format = node.format.filter(|_| is_description);
        let (path, client) = match node.storage {
            Storage::File(path) => (path, None),
            Storage::Remote(uri) if nbd::is_uri(&uri) => {
                let client = location::connect(&uri).map_err(|error| Failed::opening(&name, &error))?;
                (PathBuf::from(&name), Some(client))
            }
            Storage::Remote(_) | Storage::Null(_) => {
                return Err(Failed::new(format!("{name}: imgconv does not write to this kind of target")));
            }
        };
        if by_options && format.is_none() && client.is_none() {
            let image = OpenOptions::new().detect_as_qemu(true).inspect(&path);
            format = Some(image.map_err(|error| Failed::opening(&name, &error))?.format);
        }
        Ok(Place { name, path, client, format, secret: node.secret })
    }

    /// A converter to the new image, or into the existing one, with its secret.
    fn converter(&self, parsed: &Parsed, sources: &Sources, target: &Target, size: u64) -> Result<Converter, Failed> {
        if !parsed.flag("no-create") {
            let mut options = target.options(size);
            // As qemu-img, which writes encrypted zeros to what it has preallocated.
            if options.value("encrypt.format").is_some()
                && matches!(options.value("preallocation"), Some("metadata" | "falloc"))
            {
                options.set("preallocation", "full");
            }
            return target.converter(sources, options);
        }
        let converter = Converter::new(target.format).existing(true);
        // What an overlay stores is independent of its backing file, unless the caller names that.
        let complete = !parsed.flag("target-is-zero") && target.backing.is_none();
        let converter = converter.complete(complete);
        Ok(match sources.secrets().of_target(self.secret.as_deref())? {
            Some(secret) => converter.secret(secret),
            None => converter,
        })
    }

    /// Adds the backing image of an overlay: data that equals it need not be stored.
    fn with_backing(
        &self,
        parsed: &Parsed,
        sources: &Sources,
        target: &mut Target,
        converter: Converter,
    ) -> Result<Converter, Failed> {
        let is_image = self.client.is_none() && ![Format::RAW, Format::LUKS].contains(&target.format);
        if parsed.flag("no-create") && target.backing.is_none() && is_image {
            let existing = sources.file(self.path.as_os_str(), Some(target.format.name()))?.inspect()?.info;
            target.backing = existing.backing.as_ref().map(|backing| backing.name.to_text().into_owned());
            target.backing_format =
                existing.backing.and_then(|backing| backing.format).map(|name| name.to_text().into_owned());
        }
        let Some(backing) = target.backing_source(sources, &self.path)? else { return Ok(converter) };
        let opened = backing.try_open().map_err(|error| {
            let problem = describe(&error, backing.name());
            Failed::new(format!("Could not open '{}': Could not open backing file: {problem}", self.name))
        })?;
        Ok(converter.backing(opened, target.backing.as_deref().unwrap_or_default()))
    }
}

/// The values of options.
struct Settings {
    /// Of the target.
    cache: CacheMode,
    sparse: Option<u64>,
    threads: Option<usize>,
    rate: Option<u64>,
}

impl Settings {
    fn new(parsed: &Parsed) -> Result<Settings, Failed> {
        let cache = super::cache(parsed, "target-cache", "cache")?.unwrap_or(CacheMode::Unsafe);
        let sparse = match parsed.text("sparse-size") {
            None => None,
            Some(text) => match super::size(&text) {
                Ok(size) if size <= 16 << 20 && size.is_multiple_of(512) => Some(size),
                _ => {
                    return Err(Failed::new(
                        "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to 16777216. \
                         Select 0 to disable sparse detection (fully allocates output).",
                    ));
                }
            },
        };
        let threads = match parsed.text("parallel").map(|text| text.parse()) {
            None => None,
            Some(Ok(threads @ 1..=16)) => Some(threads),
            Some(_) => {
                return Err(Failed::new("Invalid number of coroutines specified. Must be between 1 and 16."));
            }
        };
        let rate = match parsed.text("rate") {
            None => None,
            Some(text) => {
                Some(super::size(&text).map_err(|_| Failed::new(format!("Invalid rate limit specified: '{text}'.")))?)
            }
        };
        let (no_create, given) = (parsed.flag("no-create"), |option| parsed.flag(option));
        let refuse = |problem: &str| Err(Failed::new(problem));
        if given("copy-range-offloading") {
            for (option, name) in [("sparse-size", "-S"), ("compress", "-c"), ("salvage", "--salvage")] {
                if given(option) {
                    return Err(Failed::new(format!("Cannot enable copy offloading when {name} is used")));
                }
            }
        }
        if given("target-image-opts") && !no_create {
            return refuse("--target-image-opts requires use of -n flag");
        }
        if given("target-is-zero") && !no_create {
            return refuse("--target-is-zero requires use of -n flag");
        }
        if given("target-options") && no_create {
            return refuse("-o has no effect when skipping image creation");
        }
        Ok(Settings { cache, sparse, threads, rate })
    }

    fn apply(&self, parsed: &Parsed, target: &Target, converter: Converter) -> Converter {
        // Where the subformat has no compressed units, data is stored as it is.
        let is_stream = target.option("subformat") == Some("streamOptimized");
        let mut converter = converter
            .compress(parsed.flag("compress") && (target.format != Format::VMDK || is_stream))
            .cache(self.cache)
            .in_place(true)
            .salvage(parsed.flag("salvage"))
            .rate(self.rate.unwrap_or(0));
        if let Some(sparse) = self.sparse {
            converter = converter.sparse(sparse);
        }
        if let Some(threads) = self.threads {
            converter = converter.threads(threads);
        }
        converter
    }
}

/// Opens the sources, as one disk.
fn open_all(parsed: &Parsed, sources: &Sources, names: &[OsString]) -> Result<Image, Failed> {
    let format = parsed.text("source-format");
    let mut images = names.iter().map(|name| sources.source(name, format.as_deref()));
    match parsed.text("source-snapshot") {
        None => {
            let mut images = images.map(|source| source?.open()).collect::<Result<Vec<_>, _>>()?;
            match images.pop() {
                Some(only) if images.is_empty() => Ok(only),
                last => Image::concatenate(images.into_iter().chain(last).collect()).map_err(Failed::from),
            }
        }
        Some(_) if names.len() > 1 => Err(Failed::new("No support for concatenating multiple snapshot")),
        Some(selector) => match images.next() {
            Some(source) => open_snapshot(source?, &selector),
            None => Err(Failed::new("Must specify image file name")),
        },
    }
}

pub fn open_snapshot(source: Source, selector: &str) -> Result<Image, Failed> {
    let snapshots = source.inspect()?.info.snapshots;
    let id = match SnapshotSelector::parse(selector)
        .map_err(|_| Failed::new(format!("Failed in parsing snapshot param '{selector}'")))?
    {
        None => selector.to_owned(),
        Some(selector) => match selector.find(&snapshots) {
            Some(snapshot) => snapshot.id.to_text().into_owned(),
            None => return Err(Failed::new("Failed to load snapshot: Can't find snapshot")),
        },
    };
    source.with(|options| options.snapshot(id)).try_open().map_err(|error| match error.root() {
        Error::Usage(_) => Failed::new("Failed to load snapshot: Can't find snapshot"),
        _ => Failed::new(format!("Failed to load snapshot: {}", describe(&error, ""))),
    })
}

/// Refuses what the format cannot do, in the words of qemu-img.
fn check_target(parsed: &Parsed, target: &Target, sources: usize) -> Result<(), Failed> {
    let refuse = |problem: String| Err(Failed::new(problem));
    let format = target.format;
    if target.backing.is_some() {
        if sources > 1 {
            return refuse(
                "Having a backing file for the target makes no sense when concatenating multiple input images".into(),
            );
        }
        if !target.takes_backing() {
            return refuse(format!("Backing file not supported for file format '{}'", format.name()));
        }
        if target.backing_format.is_none() && !parsed.flag("no-create") {
            return refuse("Use of backing file requires explicit backing format".into());
        }
    }
    if parsed.flag("compress") {
        if !["qcow2", "vmdk", "qcow"].contains(&format.name()) {
            return refuse("Compression not supported for this file format".into());
        }
        if target.option("preallocation").is_some_and(|mode| mode != "off") {
            return refuse("Compression and preallocation not supported at the same time".into());
        }
    }
    Ok(())
}

/// The failure of a conversion: of the target, unless a source could not be read.
fn failure(error: &Error, name: &str, format: Format, parsed: &Parsed) -> Failed {
    if parsed.flag("no-create") {
        return match error.root() {
            Error::Limit { field, .. } if *field == "size of the source" => {
                Failed::new("output file is smaller than input file")
            }
            Error::Io { action, .. } if *action == "opening" => Failed::opening(name, error),
            _ => Failed::new(format!("{name}: {}", describe(error, name))),
        };
    }
    let problem = match error.root() {
        Error::Guest { .. } => return Failed::new(describe(error, name)),
        Error::Usage(problem) if problem.contains("also an input file") => {
            format!("Failed to get \"write\" lock\nIs another process using the image [{}]?", Path::new(name).display())
        }
        _ => message::creation_problem(name, error),
    };
    Failed::new(format!("{name}: error while converting {}: {problem}", format.name()))
}
