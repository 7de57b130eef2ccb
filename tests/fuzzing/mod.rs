//! The bodies of the fuzz targets, which the tests run as well: each takes any bytes, and panics when the crate breaks a promise.

pub mod vhdx;

use std::io::Cursor;
use std::sync::Arc;

use diskimage::io::{MemFile, ReadAt};
use diskimage::{
    CheckReport, Comparison, Converter, Error, Format, Identifiers, Image, Limits, OpenOptions, Options,
    ReferencePolicy, Result, compare,
};

/// Guest bytes that are read of an image.
const READ: u64 = 1 << 20;
/// Spans that are looked up in an image.
const SPANS: usize = 10_000;

/// The bytes as an image of any format.
pub fn open_any(data: &[u8]) {
    explore(limited(), file(data));
}

/// The bytes as a qcow2 image.
pub fn open_qcow2(data: &[u8]) {
    explore(limited().format(named("qcow2")), file(data));
}

/// The bytes as a VMDK image: in a file, and as they come through a pipe.
pub fn open_vmdk(data: &[u8]) {
    let options = limited().format(named("vmdk"));
    explore(options.clone(), file(data));
    let stream = || options.open_stream(Cursor::new(data.to_vec()));
    match stream() {
        Ok(image) => walk_once(&image),
        Err(error) => return describe(&error),
    }
    let image = stream().unwrap();
    if image.virtual_size() <= READ {
        match convert(&Converter::new(named("raw")).threads(2), &image) {
            Ok(bytes) => assert_eq!(bytes.len() as u64, image.virtual_size()),
            Err(error) => describe(&error),
        }
    }
}

/// The bytes as a VHD image: as they are, and with the checksums that they would have had they been written like this.
pub fn open_vpc(data: &[u8]) {
    let options = limited().format(named("vpc"));
    explore(options.clone(), file(data));
    explore(options, file(&with_vhd_checksums(data)));
}

/// The bytes as changes to a VHDX image, as `vhdx` says: as they are, and with the checksums that it would have had it been
/// written like this. A fuzzer's build does not look at checksums.
pub fn open_vhdx(data: &[u8]) {
    let Some((file, parent)) = vhdx::files(data) else { return };
    let files = if cfg!(fuzzing) { vec![file] } else { vec![file.clone(), file.with_checksums()] };
    let options = limited().format(named("vhdx"));
    for file in files {
        if let Some(parent) = &parent {
            let folder = vhdx::Folder::new();
            let path = folder.0.join("child.vhdx");
            file.store(&path).unwrap();
            parent.store(&folder.0.join("parent.vhdx")).unwrap();
            match options.clone().reference_policy(ReferencePolicy::Beside).open(path) {
                Ok(image) => examine(&image),
                Err(error) => describe(&error),
            }
        }
        explore(options.clone(), Arc::new(file));
    }
}

/// The bytes as a VDI image.
pub fn open_vdi(data: &[u8]) {
    explore(limited().format(named("vdi")), file(data));
}

/// The bytes as a raw disk: there is nothing that could be wrong with one.
pub fn open_raw(data: &[u8]) {
    let options = limited().format(named("raw"));
    let image = open(&options, file(data)).unwrap();
    let mut bytes = vec![0xee; data.len()];
    image.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, data);
    explore(options, file(data));
}

/// The bytes as a choice of a format and its options and the content of a disk, which has to survive.
pub fn roundtrip(data: &[u8]) {
    let Some((choice, rest)) = data.split_at_checked(8) else { return };
    let guest = guest(rest);
    let (name, converter) = match choice[7] >> 5 {
        0 | 1 => ("qcow2", to_qcow2(choice)),
        2 => ("vpc", to_vpc(choice)),
        3 => ("vhdx", to_vhdx(choice)),
        4 | 5 => ("vmdk", to_vmdk(choice)),
        _ => ("vdi", to_vdi(choice)),
    };
    let source = open(&limited().format(named("raw")), file(&guest)).unwrap();
    let first = match convert(&converter, &source) {
        Ok(first) => first,
        // Options that do not go together.
        Err(Error::Option { .. }) => return,
        Err(Error::Unsupported { .. }) if guest.is_empty() && matches!(name, "vdi" | "vhdx") => return,
        Err(error) => panic!("{error}"),
    };
    let options = limited().format(named(name));
    let image = open(&options, file(&first)).unwrap();
    assert!(image.info().warnings.is_empty(), "{:?}", image.info());
    let sectors = (guest.len() as u64).next_multiple_of(512);
    let rounded = match name {
        // To the next geometry it is at most a track of 17 sectors for each of 4 heads.
        "vpc" if in_whole_cylinders(choice) => 4 * 17 * 512 - 1,
        "vhdx" if has_large_sectors(choice) => 4096 - 512,
        _ => 0,
    };
    assert!((sectors..=sectors + rounded).contains(&image.virtual_size()), "{}", image.virtual_size());
    assert_eq!(compare(&source, &image).unwrap(), Comparison::Identical);
    let other_threads = converter.clone().threads(1 + usize::from(choice[7] % 3));
    assert!(first == convert(&other_threads, &image).unwrap(), "a second conversion is a fixed point");
    let to_raw = Converter::new(named("raw")).threads(1);
    let flat = convert(&to_raw, &image).unwrap();
    assert!(flat[..guest.len()] == guest[..], "back to raw");
    if let Ok(stream) = options.open_stream(Cursor::new(first.clone())) {
        assert!(convert(&to_raw, &stream).unwrap() == flat, "through a pipe");
        let again = options.open_stream(Cursor::new(first.clone())).unwrap();
        assert!(convert(&other_threads, &again).unwrap() == first, "through a pipe it is a fixed point, too");
    }
}

fn named(name: &str) -> Format {
    Format::by_name(name).unwrap()
}

fn limited() -> OpenOptions {
    let mut limits = Limits::default();
    limits.metadata = 4 << 20;
    OpenOptions::new().limits(limits)
}

fn file(data: &[u8]) -> Arc<dyn ReadAt> {
    Arc::new(MemFile::from(data.to_vec()))
}

fn open(options: &OpenOptions, file: Arc<dyn ReadAt>) -> Result<Image> {
    options.open_source(file)
}

fn convert(converter: &Converter, source: &Image) -> Result<Vec<u8>> {
    let out = Arc::new(MemFile::new());
    converter.convert_to(source, out.clone())?;
    Ok(out.to_vec())
}

/// A VHD image whose footer, the copy of that, and header have the right checksums, where there are any.
fn with_vhd_checksums(data: &[u8]) -> Vec<u8> {
    fn seal(bytes: &mut [u8], at: usize, len: usize, checksum_at: usize, cookie: &[u8]) -> Option<()> {
        let part = bytes.get_mut(at..at.checked_add(len)?).filter(|part| part.starts_with(cookie))?;
        part[checksum_at..checksum_at + 4].fill(0);
        let sum = part.iter().fold(0, |sum: u32, &byte| sum.wrapping_add(byte.into()));
        part[checksum_at..checksum_at + 4].copy_from_slice(&(!sum).to_be_bytes());
        Some(())
    }
    let mut bytes = data.to_vec();
    let len = bytes.len();
    for (at, len) in [(0, 512), (len.saturating_sub(512), 512), (len.saturating_sub(511), 511)] {
        if seal(&mut bytes, at, len, 64, b"conectix").is_some()
            && let Some(header_at) = bytes.get(at + 16..).and_then(|rest| rest.first_chunk().copied())
        {
            seal(&mut bytes, u64::from_be_bytes(header_at) as usize, 1024, 36, b"cxsparse");
        }
    }
    bytes
}

/// Everything that can be asked of an image in one file.
fn explore(options: OpenOptions, file: Arc<dyn ReadAt>) {
    check(&options, file.clone());
    let image = match open(&options, file.clone()) {
        Ok(image) => image,
        Err(error) => return describe(&error),
    };
    for snapshot in image.info().snapshots.iter().take(4) {
        match open(&options.clone().snapshot(snapshot.id.to_text()), file.clone()) {
            Ok(past) => walk(&past),
            Err(error) => describe(&error),
        }
    }
    examine(&image);
}

/// Everything that can be asked of an opened image.
fn examine(image: &Image) {
    let info = format!("{:?}", image.info());
    assert!(!info.is_empty());
    walk(image);
    read(image);
    if image.virtual_size() <= READ {
        reconvert(image);
    }
}

/// The examination ends, with a report or an error.
fn check(options: &OpenOptions, file: Arc<dyn ReadAt>) {
    match options.check_source(file) {
        Ok(report) => {
            assert!(report.messages.len() <= CheckReport::MESSAGES);
            assert!(report.compressed_clusters <= report.allocated_clusters, "{report:?}");
            assert!(report.messages.iter().all(|message| !message.contains(char::is_control)), "{report:?}");
        }
        Err(error) => describe(&error),
    }
}

/// The spans follow each other without gaps from the beginning of the disk to its end, or to an error.
fn walk(image: &Image) {
    let mut at = 0;
    for span in image.spans(0..u64::MAX).take(SPANS) {
        match span {
            Ok(span) => {
                assert_eq!(span.offset, at);
                assert!(span.len > 0);
                at = span.end();
                assert!(at <= image.virtual_size());
            }
            Err(error) => return describe(&error),
        }
    }
}

/// As [`walk`], for an image that can be read only once.
fn walk_once(image: &Image) {
    let mut at = 0;
    let mut first = [0xee; 1];
    for span in image.spans(0..u64::MAX).take(SPANS) {
        let result = span.and_then(|span| {
            assert_eq!(span.offset, at);
            at = span.end();
            assert!(span.len > 0 && at <= image.virtual_size());
            image.read_exact_at(&mut first, span.offset)
        });
        if let Err(error) = result {
            return describe(&error);
        }
    }
}

/// Reading at once is the same as reading in small parts.
fn read(image: &Image) {
    let mut whole = vec![0; image.virtual_size().min(READ) as usize];
    if let Err(error) = image.read_exact_at(&mut whole, 0) {
        return describe(&error);
    }
    let mut part = [0xee; 777];
    for (index, chunk) in whole.chunks(part.len()).enumerate().step_by(13) {
        let part = &mut part[..chunk.len()];
        image.read_exact_at(part, index as u64 * 777).unwrap();
        assert_eq!(part, chunk);
    }
}

/// What can be converted has been read right, and gives a sound image.
fn reconvert(image: &Image) {
    for (format, list, compress) in [
        ("qcow2", "", false),
        ("qcow2", "", true),
        ("vmdk", "", false),
        ("vmdk", "", true),
        ("vpc", "subformat=fixed", false),
        // These have a MiB at least, which takes its time.
        [("vpc", "block_size=512k", false), ("vdi", "block_size=128k", false), ("vhdx", "block_size=1M", false)]
            [(image.virtual_size() / 512 % 3) as usize],
    ] {
        let mut options = Options::new();
        options.add_list(list);
        match convert(&Converter::new(named(format)).options(options).threads(1).compress(compress), image) {
            Ok(bytes) => {
                let copy = open(&limited().format(named(format)), file(&bytes)).unwrap();
                assert_eq!(compare(image, &copy).unwrap(), Comparison::Identical);
            }
            Err(error) => describe(&error),
        }
    }
}

/// An error says something, in one line, whatever text the image put into it.
fn describe(error: &Error) {
    let text = error.to_string();
    assert!(!text.is_empty() && !text.contains(char::is_control), "{text:?}");
    assert_ne!(error.kind().as_str(), "context");
}

fn to_qcow2(choice: &[u8]) -> Converter {
    let mut options = Options::new();
    let mut set = |name: &str, value: String| options.set(name, value);
    let pick = |index: usize, of: usize| usize::from(choice[index]) % of;
    set("cluster_size", (512u32 << pick(0, 8)).to_string());
    let version_2 = pick(1, 4) == 0;
    set("compat", if version_2 { "0.10" } else { "1.1" }.to_owned());
    if !version_2 {
        set("refcount_bits", (1u32 << pick(2, 7)).to_string());
        set("lazy_refcounts", ["off", "on"][pick(1, 2)].to_owned());
        // Also with clusters that are too small for it, which is refused.
        set("extended_l2", ["off", "on"][pick(3, 2)].to_owned());
        set("compression_type", ["zlib", "zstd"][pick(4, 2)].to_owned());
    }
    if choice[5] & 0x80 != 0 {
        set("preallocation", ["off", "metadata", "falloc", "full"][pick(5, 4)].to_owned());
    }
    Converter::new(named("qcow2"))
        .options(options)
        .compress(choice[6] & 1 != 0)
        .sparse([0, 512, 4096, 65536][pick(6, 4)])
        .threads(1 + pick(6, 3))
}

/// The kinds that are one file.
fn to_vmdk(choice: &[u8]) -> Converter {
    let mut options = Options::new();
    let mut set = |name: &str, value: String| options.set(name, value);
    let pick = |index: usize, of: usize| usize::from(choice[index]) % of;
    let stream = pick(0, 2) == 1;
    set("subformat", ["monolithicSparse", "streamOptimized"][pick(0, 2)].to_owned());
    set("adapter_type", ["lsilogic", "ide", "buslogic", "legacyESX"][pick(1, 4)].to_owned());
    set("hwversion", choice[2].to_string());
    if pick(3, 4) != 0 {
        set("cid", format!("{:08x}", u32::from_le_bytes([choice[3], choice[4], choice[5], choice[1]])));
    }
    if stream && pick(4, 10) != 0 {
        set("compression_level", pick(4, 10).to_string());
    }
    if pick(5, 2) != 0 {
        // Also in a stream, where it is refused.
        set("zeroed_grain", "on".to_owned());
    }
    Converter::new(named("vmdk"))
        .options(options)
        .identifiers(Identifiers::Reproducible { time: 0 })
        .sparse([0, 512, 4096, 65536][pick(6, 4)])
        .threads(1 + pick(6, 3))
}

fn to_vpc(choice: &[u8]) -> Converter {
    let mut options = Options::new();
    let mut set = |name: &str, value: String| options.set(name, value);
    let pick = |index: usize, of: usize| usize::from(choice[index]) % of;
    set("subformat", ["dynamic", "fixed"][pick(0, 2)].to_owned());
    if pick(1, 3) != 0 {
        // Also for fixed ones, where it is refused.
        set("block_size", ["512k", "2M"][pick(1, 3) - 1].to_owned());
    }
    set("force_size", if in_whole_cylinders(choice) { "off" } else { "on" }.to_owned());
    if pick(3, 4) != 0 || in_whole_cylinders(choice) {
        // What is derived from the size is another one where that was rounded up.
        let number = u64::from_le_bytes(choice.try_into().unwrap());
        set("uuid", format!("{number:016x}-{number:016x}"));
    }
    set("timestamp", (946_684_800 + u64::from(choice[4])).to_string());
    Converter::new(named("vpc"))
        .options(options)
        .identifiers(Identifiers::Reproducible { time: 0 })
        .sparse([0, 512, 4096, 65536][pick(6, 4)])
        .threads(1 + pick(6, 3))
}

/// Whether a VHD is to be as large as a geometry.
fn in_whole_cylinders(choice: &[u8]) -> bool {
    choice[2] % 4 == 1
}

fn to_vdi(choice: &[u8]) -> Converter {
    let mut options = Options::new();
    let mut set = |name: &str, value: String| options.set(name, value);
    let pick = |index: usize, of: usize| usize::from(choice[index]) % of;
    set("static", ["off", "on"][pick(0, 2)].to_owned());
    set("block_size", ["128k", "256k", "1M", "2M"][pick(1, 4)].to_owned());
    if pick(3, 4) != 0 {
        set("uuid", format!("{:08x}-1234-5678-9abc-def012345678", u32::from(choice[3])));
    }
    Converter::new(named("vdi"))
        .options(options)
        .identifiers(Identifiers::Reproducible { time: 0 })
        .sparse([0, 512, 4096, 65536][pick(6, 4)])
        .threads(1 + pick(6, 3))
}

fn to_vhdx(choice: &[u8]) -> Converter {
    let mut options = Options::new();
    let mut set = |name: &str, value: String| options.set(name, value);
    let pick = |index: usize, of: usize| usize::from(choice[index]) % of;
    set("subformat", ["dynamic", "fixed"][pick(0, 2)].to_owned());
    // By default it has 32 MiB, which takes its time.
    if pick(1, 16) != 0 {
        set("block_size", ["1M", "2M", "4M"][pick(1, 3)].to_owned());
    }
    set("logical_sector_size", if has_large_sectors(choice) { "4096" } else { "512" }.to_owned());
    set("physical_sector_size", ["512", "4096"][pick(4, 2)].to_owned());
    set("block_state_zero", ["off", "on"][pick(5, 2)].to_owned());
    if pick(3, 4) != 0 || has_large_sectors(choice) {
        // What is derived from the size is another one where that was rounded up.
        set("uuid", format!("{:08x}-1234-5678-9abc-def012345678", u32::from(choice[3])));
    }
    Converter::new(named("vhdx"))
        .options(options)
        .identifiers(Identifiers::Reproducible { time: 0 })
        .sparse([0, 512, 4096, 65536][pick(6, 4)])
        .threads(1 + pick(6, 3))
}

/// Whether a VHDX is to have sectors of 4 KiB.
fn has_large_sectors(choice: &[u8]) -> bool {
    choice[2] % 4 == 1
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
