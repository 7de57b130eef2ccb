//! Each limit refuses what is above it, by its name, and nothing else.

use std::sync::Arc;

use diskimage::io::MemFile;
use diskimage::{Converter, Error, Format, LimitName, Limits, OpenOptions, ReferencePolicy, Result, Secret};

use crate::support::{TempDir, convert, qcow2, raw_image};

/// What an image does with these options.
type Open = Box<dyn Fn(OpenOptions) -> Result<()>>;

/// Opens a file of this content.
fn source(file: Vec<u8>) -> Open {
    let file = Arc::new(MemFile::from(file));
    Box::new(move |options| options.open_source(file.clone()).map(drop))
}

/// Asserts that the file is opened with the limit `least`, and that one less refuses it.
fn assert_limit(name: LimitName, least: u64, open: impl Fn(OpenOptions) -> Result<()>) {
    let with = |value| {
        let mut limits = Limits::default();
        limits.set(name, value);
        open(OpenOptions::new().limits(limits))
    };
    with(least).unwrap_or_else(|error| panic!("{name} of {least}: {error}"));
    let error = with(least - 1).expect_err(name.as_str());
    assert!(matches!(error.root(), Error::Limit { name: Some(own), .. } if *own == name), "{name}: {error}");
    assert!(error.to_string().ends_with(&format!("({name})")), "{error}");
}

#[test]
fn sizes_and_tables() {
    let (image, _) = convert(&qcow2("cluster_size=4k"), &raw_image(&[7; 8192]));
    assert_limit(LimitName::VirtualSize, 8192, source(image.clone()));
    // The L1 table and the L2 table of this disk.
    let (image, _) = convert(&qcow2("cluster_size=512"), &raw_image(&[7; 65536]));
    let least = (0..1 << 16).find(|metadata| {
        let mut limits = Limits::default();
        limits.metadata = *metadata;
        OpenOptions::new().limits(limits).open_source(Arc::new(MemFile::from(image.clone()))).is_ok()
    });
    assert_limit(LimitName::Metadata, least.unwrap(), source(image));
}

#[test]
fn chains_and_extents() {
    let dir = TempDir::new();
    let base = dir.file("base.raw", &[7; 65536]);
    let open_base = || OpenOptions::new().format(Format::RAW).open(&base).unwrap();
    let overlay = dir.join("overlay.qcow2");
    Converter::new(Format::QCOW2).backing(open_base(), "base.raw").create(65536, &overlay).unwrap();
    assert_limit(LimitName::ChainDepth, 2, |options| {
        options.reference_policy(ReferencePolicy::Beside).open(&overlay).map(drop)
    });
    let text = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n\
                RW 1 ZERO\nRW 1 ZERO\n";
    assert_limit(LimitName::Extents, 2, source(text.into()));
    assert_limit(LimitName::TextLength, text.len() as u64, source(text.into()));
}

#[cfg(feature = "disk")]
#[test]
fn snapshots() {
    let file = Arc::new(MemFile::from(convert(&qcow2(""), &raw_image(&[7; 512])).0));
    let disk = OpenOptions::new().open_disk_in(file.clone()).unwrap();
    ["one", "two"].iter().for_each(|name| disk.create_snapshot(name).unwrap());
    disk.close().unwrap();
    assert_limit(LimitName::Snapshots, 2, |options| options.snapshot("two").open_source(file.clone()).map(drop));
}

#[cfg(feature = "packages")]
#[test]
fn members_and_names() {
    use crate::support::tar::{archive, entry};

    let disk = &[7; 512][..];
    assert_limit(LimitName::Members, 2, source(archive(&[("a.img", disk), ("readme", b"text")])));
    let long = [entry("././@LongLink", b'L', b"disk-with-a-long-name.img"), archive(&[("disk.img", disk)])].concat();
    assert_limit(LimitName::NameLength, 25, source(long));
    let inner = archive(&[("disk.img", disk)]);
    assert_limit(LimitName::Nesting, 2, source(archive(&[("inner.tar", &inner)])));
}

#[cfg(feature = "crypto")]
#[test]
fn key_derivations() {
    let open = |seed: &str| -> Option<Open> {
        // A published package has none.
        let file = std::fs::read(format!("{}/fuzz/seeds/luks/{seed}", env!("CARGO_MANIFEST_DIR"))).ok()?;
        let file = Arc::new(MemFile::from(file));
        Some(Box::new(move |options| options.secret(Secret::new("123456")).open_source(file.clone()).map(drop)))
    };
    let limits = |open: &Open, name: LimitName| {
        let refused = |value: u64| {
            let mut limits = Limits::default();
            limits.set(name, value);
            open(OpenOptions::new().limits(limits)).is_err()
        };
        let mut range = (0, limits_default(name));
        while range.1 - range.0 > 1 {
            let middle = range.0.midpoint(range.1);
            range = if refused(middle) { (middle, range.1) } else { (range.0, middle) };
        }
        assert_limit(name, range.1, open);
    };
    if let (Some(pbkdf2), Some(argon2)) = (open("version-2-pbkdf2"), open("version-2-argon2id")) {
        limits(&pbkdf2, LimitName::Pbkdf2Iterations);
        limits(&argon2, LimitName::Argon2Memory);
        limits(&argon2, LimitName::Argon2Work);
    }
}

#[cfg(feature = "crypto")]
fn limits_default(name: LimitName) -> u64 {
    Limits::default().get(name)
}

#[cfg(feature = "compressed")]
#[test]
fn compressed_files() {
    use lzma_rust2::{XzOptions, XzWriter};
    use std::io::Write;

    let compressed = |bytes: &[u8]| {
        let mut options = XzOptions::with_preset(6);
        options.lzma_options.dict_size = 1 << 20;
        let mut writer = XzWriter::new(Vec::new(), options).unwrap();
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    };
    let (image, _) = convert(&qcow2(""), &raw_image(&[7; 512]));
    let (once, twice) = (compressed(&image), compressed(&compressed(&image)));
    assert_limit(LimitName::Decompressed, image.len() as u64, source(once.clone()));
    assert_limit(LimitName::Window, 1 << 20, source(once));
    assert_limit(LimitName::Nesting, 2, source(twice));
}

#[cfg(feature = "cli")]
#[test]
fn the_program_names_the_option() {
    use std::process::Command;

    let dir = TempDir::new();
    let raw = dir.file("disk.raw", &[7; 8192]);
    let run = |arguments: &[&str]| {
        let command = Command::new(env!("CARGO_BIN_EXE_imgconv")).args(arguments).arg(&raw).output().unwrap();
        (command.status.code(), String::from_utf8(command.stdout).unwrap(), String::from_utf8(command.stderr).unwrap())
    };
    let (code, _, message) = run(&["info", "--max-virtual-size", "4K"]);
    assert_eq!(code, Some(1), "{message}");
    assert!(
        message.ends_with("above the limit of 4096 (virtual-size); raise it with --max-virtual-size\n"),
        "{message}"
    );
    assert_eq!(run(&["info", "--max-virtual-size", "8K"]).0, Some(0));
    let (code, object, _) = run(&["info", "--output", "json", "--max-virtual-size", "4K"]);
    let object: serde_json::Value = serde_json::from_str(&object).unwrap();
    assert_eq!((code, object["error"]["limit-name"].as_str()), (Some(1), Some("virtual-size")));
    let help = |option: &str| run(&["convert", option]).1;
    assert!(help("--help").contains("--max-chain-depth") && !help("-h").contains("--max-"));
}
