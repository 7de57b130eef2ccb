//! Conversion to a format with options, and back.

use std::ffi::OsString;
use std::io::Cursor;
use std::sync::Arc;

use diskimage::io::{MemDirectory, MemFile};
use diskimage::{
    Comparison, Converter, Error, Format, Identifiers, Image, OptionSpec, Options, ReferencePolicy, Result, compare,
    parse_size,
};

use super::{convert, file, limited};

/// Length of the first part of an input, which chooses the format, the converter's settings and an option by each further
/// byte.
pub const CHOICE_LEN: usize = 16;

/// The input chooses a format, its options and guest data, which has to survive.
pub fn roundtrip(data: &[u8]) {
    let Some(([format, settings, choices @ ..], rest)) = data.split_first_chunk::<CHOICE_LEN>() else { return };
    let guest = guest(rest);
    // Encrypted images are random.
    let formats: Vec<_> = Format::all().filter(|format| format.can_create() && format.name() != "luks").collect();
    let format = formats[usize::from(*format) % formats.len()];
    let pick = |shift: u8, of: usize| usize::from(settings >> shift & 3) % of;
    let mut compress = settings & 1 != 0;
    let mut options = options(format, choices);
    let source = limited().format(Format::RAW).open_source(file(&guest)).unwrap();
    // Some options exclude each other or compression: what is refused is left out.
    let (converter, first) = loop {
        let converter = Converter::new(format)
            .options(options.clone())
            .identifiers(Identifiers::Reproducible { time: 0 })
            .compress(compress)
            .sparse([0, 512, 4096, 65536][pick(1, 4)])
            .threads(1 + pick(3, 3));
        let error = match Files::convert(&converter, &source) {
            Ok(first) => break (converter, first),
            Err(error) => error,
        };
        match error.root() {
            Error::Option { name, .. } if options.value(name).is_some() => options = without(&options, name),
            Error::Option { .. } | Error::Unsupported { .. } if compress => compress = false,
            Error::Unsupported { .. } if guest.is_empty() => return,
            _ => panic!("{error}"),
        }
    };
    let padding = padding(format, &options);
    let image = first.open(format).unwrap();
    assert!(image.info().warnings.is_empty(), "{:?}", image.info());
    let unit = if format == Format::RAW { 1 } else { 512 };
    let size = (guest.len() as u64).next_multiple_of(unit);
    assert!((size..=size + padding).contains(&image.virtual_size()), "{}", image.virtual_size());
    assert_eq!(compare(&source, &image).unwrap(), Comparison::Identical);
    let other_threads = converter.clone().threads(1 + pick(5, 3));
    assert!(first == Files::convert(&other_threads, &image).unwrap(), "a second conversion gives the same bytes");
    let to_raw = Converter::new(Format::RAW).threads(1);
    let flat = convert(&to_raw, &image).unwrap();
    assert!(flat[..guest.len()] == guest[..], "back to raw");
    let [(_, bytes)] = first.0.as_slice() else { return };
    let open_stream = || limited().format(format).open_stream(Cursor::new(bytes.clone()));
    if format.can_stream()
        && super::is_in_order(bytes)
        && let Ok(stream) = open_stream()
    {
        assert!(convert(&to_raw, &stream).unwrap() == flat, "through a pipe");
        let again = Files::convert(&other_threads, &open_stream().unwrap()).unwrap();
        assert!(again == first, "a second conversion through a pipe");
    }
}

/// The files of an image, by their names in ascending order.
#[derive(PartialEq)]
struct Files(Vec<(OsString, Vec<u8>)>);

impl Files {
    const IMAGE: &str = "image";

    fn convert(converter: &Converter, source: &Image) -> Result<Files> {
        let directory = MemDirectory::new();
        converter.convert_into(source, &directory, Files::IMAGE)?;
        let bytes = |name: &OsString| directory.file(name).unwrap().to_vec();
        Ok(Files(directory.names().into_iter().map(|name| (name.clone(), bytes(&name))).collect()))
    }

    fn open(&self, format: Format) -> Result<Image> {
        let directory = MemDirectory::new();
        for (name, bytes) in &self.0 {
            directory.insert(name, Arc::new(MemFile::from(bytes.clone())));
        }
        let image = directory.file(Files::IMAGE).unwrap();
        let options = limited().format(format).reference_policy(ReferencePolicy::Beside);
        options.resolver(move |request| directory.open(request.path)).open_source(image)
    }
}

/// The options that the bytes choose.
fn options(format: Format, choices: &[u8]) -> Options {
    let mut options = Options::new();
    for (spec, choice) in format.options().iter().zip(choices.iter().cycle()) {
        let values = values(spec);
        // Half of them are defaults. Large default blocks take their time, so that sizes are nearly always set.
        let defaults = if spec.name.ends_with("_size") { 240.. } else { 128.. };
        if !values.is_empty() && !defaults.contains(choice) {
            options.set(spec.name, &values[usize::from(*choice) % values.len()]);
        }
    }
    if padding(format, &options) > 0 && options.value("uuid").is_none() {
        // An identifier derived from the size changes with the size.
        options.set("uuid", uuid(1));
    }
    options
}

/// The options but for one.
fn without(options: &Options, name: &str) -> Options {
    let mut rest = Options::new();
    for other in options.names().filter(|other| *other != name) {
        rest.set(other, options.value(other).unwrap());
    }
    rest
}

/// By how many bytes the virtual size may be rounded up, beyond whole sectors.
fn padding(format: Format, options: &Options) -> u64 {
    let is = |name: &str, value: &str| options.value(name) == Some(value);
    match format.name() {
        // To the next geometry it is at most a track of 17 sectors for each of 4 heads.
        "vpc" if is("force_size", "off") => 4 * 17 * 512 - 1,
        "vhdx" if is("logical_sector_size", "4096") => 4096 - 512,
        _ => 0,
    }
}

/// Values of an option: the listed ones; of a range of sizes the powers of two up to 4 MiB, of other ranges up to 256
/// numbers. None for options that name files, and for other text.
pub fn values(spec: &OptionSpec) -> Vec<String> {
    match spec.name {
        "backing_file" | "backing_fmt" => return Vec::new(),
        name if name.starts_with("encrypt.") => return Vec::new(),
        "uuid" => return (1..4).map(uuid).collect(),
        "cid" => return (1..4u32).map(|number| format!("{:08x}", number * 0x0102_0304)).collect(),
        "timestamp" => return (0..4).map(|second| (946_684_800 + second).to_string()).collect(),
        _ => {}
    }
    if spec.values.contains('|') {
        return spec.values.split('|').map(str::to_owned).collect();
    }
    let range = spec.values.split(' ').next().unwrap_or_default();
    let Some((low, high)) = range.split_once("..").or_else(|| range.split_once('-')) else { return Vec::new() };
    let (Ok(low), Ok(end)) = (parse_size(low), parse_size(high.trim_start_matches('='))) else { return Vec::new() };
    if high.ends_with(|unit: char| unit.is_ascii_alphabetic()) {
        let sizes = std::iter::successors(Some(low), |size| Some(size * 2));
        return sizes.take_while(|size| *size <= end.min(4 << 20)).map(|size| size.to_string()).collect();
    }
    (low..=end).take(256).map(|number| number.to_string()).collect()
}

fn uuid(number: u32) -> String {
    format!("{number:08x}-1234-5678-9abc-def012345678")
}

/// A disk of at most 256 KiB: runs of zeros, of one byte, of a ramp, and of the input itself.
fn guest(mut input: &[u8]) -> Vec<u8> {
    let mut guest = Vec::new();
    while let Some(([kind, low, high], rest)) = input.split_first_chunk::<3>() {
        let len = usize::from(u16::from_le_bytes([*low, *high]));
        let end = (guest.len() + len).min(256 << 10);
        match kind % 4 {
            0 => guest.resize(end, 0),
            1 => guest.resize(end, kind | 1),
            2 => (guest.len()..end).for_each(|at| guest.push(((at * usize::from(*kind)) >> 3) as u8)),
            _ => guest.extend_from_slice(&rest[..rest.len().min(end - guest.len())]),
        }
        input = rest;
    }
    guest
}
