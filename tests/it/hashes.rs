//! Digests of the guest data in the same pass, and reading a new image back.

use std::fs;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use diskimage::driver::{Extent, ExtentKind, FileId, FormatDriver, Location, Placement, SparseRead};
use diskimage::driver::{SparseWrite, WriteSpec};
use diskimage::io::{MemFile, PipeTarget, ReadAt, WriteAt};
use diskimage::{Converter, Format, HashAlgorithm, Image, ImageIdentifiers, ImageInfo, OpenOptions, Result, Secret};

use crate::support::pattern::{Pattern, Random};
use crate::support::{TempDir, assert_same, format, open_raw, options, raw_image};

/// The digests of all algorithms, in their order.
fn digests(converter: &Converter, source: &Image) -> Vec<String> {
    let converter = HashAlgorithm::ALL.into_iter().fold(converter.clone(), Converter::hash);
    let report = converter.convert_to(source, Arc::new(MemFile::new())).unwrap();
    assert!(report.digests.iter().map(|digest| digest.algorithm()).eq(HashAlgorithm::ALL));
    report.digests.iter().map(ToString::to_string).collect()
}

fn sha256(guest: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(guest).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Data, then 5 MiB of zeros, then data, with an odd end.
fn guest() -> Vec<u8> {
    let mut guest = Random::new(1).bytes(1_500_000);
    guest.resize(6 << 20, 0);
    guest.extend(Pattern::Sparse.make(2 << 20));
    guest.extend([7; 1234]);
    guest
}

#[test]
fn digests_are_those_of_the_raw_disk() {
    let converter = |name, list| Converter::new(format(name)).options(options(list)).sync(false);
    let guest = guest();
    for len in [0, 1, 512, 1 << 20, (1 << 20) + 1, 2 << 20, guest.len()] {
        let guest = &guest[guest.len() - len..];
        let source = raw_image(guest);
        // One part of BLAKE3 at a time, without the core.
        let expected = digests(&converter("raw", "").threads(1).sparse(0), &source);
        assert_eq!(expected[3], sha256(guest), "{len} bytes");
        for (name, list, compress) in [
            ("raw", "", false),
            ("qcow2", "", true),
            ("qcow2", "cluster_size=2M", false),
            ("vmdk", "", false),
            ("vhdx", "", false),
        ] {
            if len == 0 && !matches!(name, "raw" | "qcow2") {
                continue;
            }
            for threads in [1, 5] {
                let converter = converter(name, list).compress(compress).threads(threads);
                assert_eq!(digests(&converter, &source), expected, "{name} {list}, {len} bytes, {threads} threads");
            }
        }
    }
}

#[test]
fn digests_do_not_depend_on_the_format_of_the_source() {
    let guest = Pattern::Islands.make((4 << 20) + 512);
    let raw = raw_image(&guest);
    let expected = digests(&Converter::new(format("raw")), &raw);
    for (name, list, compress) in [
        ("qcow2", "", true),
        ("qcow2", "extended_l2=on", false),
        ("vmdk", "subformat=streamOptimized", false),
        ("vdi", "", false),
    ] {
        let file = Arc::new(MemFile::new());
        let converter = Converter::new(format(name)).options(options(list)).compress(compress).sync(false);
        converter.convert_to(&raw, file.clone()).unwrap();
        let image = OpenOptions::new().open_source(file).unwrap();
        // Compressed blocks are copied in the first case.
        for target in ["qcow2", "raw"] {
            let converter = Converter::new(format(target)).compress(target == "qcow2");
            assert_eq!(digests(&converter, &image), expected, "{name} {list} to {target}");
        }
    }
    let overlay = Converter::new(format("qcow2")).backing(raw_image(&guest[..guest.len() / 2]), "base.raw");
    assert_eq!(digests(&overlay, &raw), expected, "an overlay stores the differences only");
}

/// A disk of which some bytes cannot be read.
struct Faulty(Range<u64>);

impl ReadAt for Faulty {
    fn size(&self) -> io::Result<u64> {
        Ok(32 << 20)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = buf.len().min(((32 << 20) - offset.min(32 << 20)) as usize);
        let buf = &mut buf[..len];
        if offset < self.0.end && self.0.start < offset + buf.len() as u64 {
            return Err(io::Error::other("a bad sector"));
        }
        buf.fill(1);
        Ok(buf.len())
    }
}

#[test]
fn a_failure_ends_the_digests_too() {
    for start in [0, 9 << 20, (32 << 20) - 512] {
        let source =
            OpenOptions::new().format(format("raw")).open_source(Arc::new(Faulty(start..start + 512))).unwrap();
        for threads in [1, 7] {
            let converter = Converter::new(format("qcow2")).threads(threads).sync(false);
            let converter = HashAlgorithm::ALL.into_iter().fold(converter, Converter::hash);
            let error = converter.convert_to(&source, Arc::new(MemFile::new())).unwrap_err();
            assert!(error.to_string().contains("a bad sector"), "{error}");
        }
        let salvage = Converter::new(format("raw")).salvage(true).salvage_pattern(9).hash(HashAlgorithm::Sha256);
        let report = salvage.convert_to(&source, Arc::new(MemFile::new())).unwrap();
        let mut guest = vec![1; 32 << 20];
        guest[start as usize..start as usize + 512].fill(9);
        assert_eq!(report.digests[0].to_string(), sha256(&guest), "of what was written");
    }
}

#[test]
fn what_is_written_is_read_back() {
    let dir = TempDir::new();
    let source = open_raw(&dir.file("source.raw", &guest()));
    for (name, list) in [
        ("raw", ""),
        ("qcow2", ""),
        ("qcow2", "cluster_size=512"),
        ("vmdk", ""),
        ("vmdk", "subformat=streamOptimized"),
        ("vmdk", "subformat=monolithicFlat"),
        ("vmdk", "subformat=twoGbMaxExtentSparse"),
        ("vdi", ""),
        ("vpc", ""),
        ("vhdx", ""),
        ("vhdx", "block_size=32M"),
    ] {
        for sparse in [0, 512, 4096] {
            let converter = Converter::new(format(name)).options(options(list)).sparse(sparse).sync(false).verify(true);
            let target = dir.join(&format!("{name}-{sparse}.vmdk"));
            converter.convert(&source, &target).unwrap_or_else(|error| panic!("{name} {list}: {error}"));
            converter.in_place(true).convert(&source, &target).unwrap_or_else(|error| panic!("{name} {list}: {error}"));
        }
    }
    let qcow2 = Converter::new(format("qcow2")).sync(false).verify(true);
    qcow2.clone().compress(true).convert(&source, dir.join("compressed.qcow2")).unwrap();
    let base = dir.file("base.raw", &Pattern::Dense.make(3 << 20));
    qcow2.backing(open_raw(&base), "base.raw").convert(&source, dir.join("overlay.qcow2")).unwrap();
    let gz = Converter::new(format("raw")).verify(true).compress_output(Some(diskimage::OutputCompression::Gzip));
    assert_eq!(gz.convert(&source, dir.join("disk.raw.gz")).unwrap_err().kind().as_str(), "usage");
    assert!(!dir.join("disk.raw.gz").exists());
}

/// A raw disk of a driver that takes one bit for another one.
struct Faithless(ImageInfo);

static FAITHLESS: FormatDriver =
    FormatDriver::new("faithless", |_| false, |_, _| Ok(Box::new(Faithless(ImageInfo::new("faithless", 1 << 20)))))
        .create(|cx| Ok(Box::new(Placed(WriteSpec::new(cx.size, 512), cx.out.clone()))), &[]);

impl SparseRead for Faithless {
    fn info(&self) -> &ImageInfo {
        &self.0
    }

    fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
        // The second sector instead of the first one.
        let offset = if range.start == 0 { 512 } else { range.start };
        let kind = ExtentKind::Data(Location { file: FileId(0), offset });
        Ok(Extent { offset: range.start, len: if range.start == 0 { 512 } else { range.end - range.start }, kind })
    }

    fn host_alignment(&self) -> Option<u64> {
        None
    }
}

struct Placed(WriteSpec, Arc<dyn WriteAt>);

impl SparseWrite for Placed {
    fn spec(&self) -> &WriteSpec {
        &self.0
    }

    fn place(&mut self, guest: Range<u64>) -> Result<Placement> {
        Ok(Placement::new(self.1.clone(), guest.start, guest.end - guest.start))
    }

    fn place_compressed(&mut self, _guest: Range<u64>, _stored_len: u32) -> Result<Placement> {
        unreachable!("it has no encoding")
    }

    fn zero(&mut self, _guest: Range<u64>) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self, _identifiers: &ImageIdentifiers) -> Result<()> {
        Ok(())
    }
}

#[test]
fn an_image_that_reads_as_other_data_gets_no_name() {
    let dir = TempDir::new();
    let target = dir.join("disk.faithless");
    let converter = Converter::new(Format::from_driver(&FAITHLESS)).sync(false).verify(true);
    converter.convert(&raw_image(&[1; 1 << 20]), &target).expect("both sectors are the same");
    let (names, old) = (dir.names(), fs::read(&target).unwrap());
    let source = raw_image(&Random::new(3).bytes(1 << 20));
    let error = converter.convert(&source, &target).unwrap_err();
    assert!(error.to_string().ends_with("reading the new image back: other data than was written"), "{error}");
    assert_eq!((error.path(), dir.names()), (Some(&*target), names));
    assert_same(&fs::read(&target).unwrap(), &old, "the file before it");
    converter.verify(false).convert(&source, &target).unwrap();
}

/// What a pipe was given.
#[derive(Clone, Default)]
struct Given(Arc<std::sync::Mutex<Vec<u8>>>);

impl io::Write for Given {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_pipe_is_hashed_while_it_is_written() {
    let source = raw_image(&guest()[..3 << 20]);
    for (name, list, compress) in [
        ("raw", "", false),
        ("vpc", "subformat=fixed", false),
        ("qcow2", "", true),
        ("vmdk", "subformat=streamOptimized", false),
        ("luks", "iter-time=1", false),
    ] {
        if name == "luks" && cfg!(not(feature = "crypto")) {
            continue;
        }
        for threads in [1, 5] {
            let given = Given::default();
            let converter = Converter::new(format(name)).options(options(list)).compress(compress).threads(threads);
            let converter = HashAlgorithm::ALL.into_iter().fold(converter, Converter::hash_file);
            let pipe = Arc::new(PipeTarget::new(given.clone()).with_path("pipe"));
            let report = converter.secret(Secret::new("secret")).convert_to(&source, pipe).unwrap();
            let found: Vec<_> = report.file_digests.iter().map(|file| file.digest.to_string()).collect();
            let bytes = given.0.lock().unwrap();
            assert_eq!(found, digests(&Converter::new(format("raw")), &raw_image(&bytes)), "{name}, {threads} threads");
            assert_eq!(report.file_digests[0].path.to_str(), Some("pipe"));
        }
    }
    let in_memory = Converter::new(format("raw")).hash_file(HashAlgorithm::Md5);
    assert_eq!(in_memory.convert_to(&source, Arc::new(MemFile::new())).unwrap_err().kind().as_str(), "usage");
}

#[cfg(feature = "cli")]
#[test]
fn the_program_prints_digests() {
    use crate::cli::{fail, succeed};
    let dir = TempDir::new();
    let guest = guest();
    dir.file("disk.raw", &guest);
    let said =
        succeed(&dir, &["convert", "-q", "--verify", "--hash", "sha256", "--hash", "md5", "disk.raw", "disk.qcow2"]);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!((lines.len(), lines[0]), (2, &*format!("sha256 (guest): {}", sha256(&guest))));
    let said = succeed(&dir, &["convert", "-q", "--output", "json", "--hash", "sha256", "disk.raw", "disk.vdi"]);
    let value: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(value["digests"]["sha256"], *sha256(&guest));
    let args = ["convert", "-q", "--hash-file", "sha256", "-o", "subformat=monolithicFlat", "disk.raw", "disk.vmdk"];
    let said = succeed(&dir, &args);
    let digest = |name: &str| sha256(&fs::read(dir.join(name)).unwrap());
    let line = |name: &str| format!("sha256 ({name}): {}\n", digest(name));
    assert_eq!(said, line("disk.vmdk") + &line("disk-flat.vmdk"));
    let said = succeed(&dir, &["hash", "disk.vdi"]);
    // A disk of whole sectors.
    let padded = [&guest[..], &vec![0; guest.len().next_multiple_of(512) - guest.len()]].concat();
    assert_eq!(said, format!("sha256 (guest): {}\n", sha256(&padded)));
    let said = succeed(&dir, &["hash", "-a", "md5", "-a", "sha256", "--output", "json", "-f", "raw", "disk.raw"]);
    let value: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&value["digests"]["sha256"], value["digests"].as_object().unwrap().len()), (&sha256(&guest).into(), 2));
    assert!(fail(&dir, 1, &["convert", "--hash", "sha3", "disk.raw", "x.raw"]).contains("blake3, md5"));
    assert!(fail(&dir, 1, &["convert", "--verify", "-O", "raw", "disk.raw", "-"]).contains("--verify"));
}
