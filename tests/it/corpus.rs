//! The images of `testdata`: the good ones have the listed content, the bad ones give the listed error.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use std::sync::Arc;

use crate::support::{TempDir, assert_same, content, format, gzip, qcow2, raw, vdi, vhdx, vmdk, vpc};
use diskimage::io::MemFile;
use diskimage::{Comparison, Format, Image, OpenOptions, ReferencePolicy, Result, compare};

/// A row of the manifest.
struct Row {
    /// "good" or "bad", and the name.
    file: PathBuf,
    /// The names of the other files that the image needs.
    others: Vec<String>,
    format: String,
    expect: String,
    virtual_size: String,
    blocks_sha256: String,
}

impl Row {
    fn name(&self) -> &str {
        self.file.file_name().unwrap().to_str().unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        read(&testdata().join(&self.file))
    }

    /// Puts its files into a directory.
    fn unpack_to(&self, dir: &TempDir) -> PathBuf {
        for name in &self.others {
            dir.file(name, &read(&testdata().join(&self.file).with_file_name(name)));
        }
        dir.file(self.name(), &self.bytes())
    }

    fn options(&self) -> OpenOptions {
        let options = match &*self.format {
            "probe" => OpenOptions::new(),
            stated => OpenOptions::new().format(format(stated)),
        };
        if self.others.is_empty() { options } else { options.reference_policy(ReferencePolicy::Beside) }
    }
}

/// A file of `testdata`, which may be compressed.
fn read(plain: &Path) -> Vec<u8> {
    fs::read(plain).unwrap_or_else(|_| gzip::unpack(&fs::read(plain.with_added_extension("gz")).unwrap()))
}

fn testdata() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata"))
}

fn rows(kind: &str) -> Vec<Row> {
    let manifest = fs::read_to_string(testdata().join("manifest.tsv")).unwrap();
    let rows: Vec<_> = manifest
        .lines()
        .skip(1)
        .map(|line| {
            let columns: Vec<_> = line.split('\t').map(str::to_owned).collect();
            let [files, format, expect, virtual_size, blocks_sha256, _] = columns.try_into().expect("six columns");
            let mut names = files.split(',').map(str::to_owned);
            let file = names.next().unwrap().into();
            Row { file, others: names.collect(), format, expect, virtual_size, blocks_sha256 }
        })
        .filter(|row| row.file.starts_with(kind))
        .collect();
    let listed: BTreeSet<_> = rows
        .iter()
        .flat_map(|row| {
            row.others.iter().map(String::as_str).chain([row.name()]).map(|name| row.file.with_file_name(name))
        })
        .collect();
    assert_eq!(listed.len(), images_under(&testdata().join(kind)), "each file of {kind} has its row");
    // Not every build has all formats.
    let is_there = |row: &Row| row.format == "probe" || Format::by_name(&row.format).is_ok();
    rows.into_iter().filter(is_there).collect()
}

/// How many images are in a directory and those in it.
fn images_under(directory: &Path) -> usize {
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    paths
        .map(|path| match path.extension() {
            _ if path.is_dir() => images_under(&path),
            Some(extension) if extension != "sh" => 1,
            _ => 0,
        })
        .sum()
}

/// Puts a good image and the files that it needs into a directory.
pub fn unpack_to(dir: &TempDir, name: &str) -> PathBuf {
    rows("good").iter().find(|row| row.name() == name).unwrap().unpack_to(dir)
}

/// A good image by its name.
pub fn unpacked(name: &str) -> Vec<u8> {
    rows("good").iter().find(|row| row.name() == name).unwrap().bytes()
}

/// Over the blocks of 64 KiB that are not all zeros, each with its number.
fn digest(image: &Image) -> Result<String> {
    const BLOCK: u64 = 64 << 10;
    let mut sha256 = Sha256::new();
    let mut block = vec![0; BLOCK as usize];
    let mut done = 0;
    for span in image.spans(0..u64::MAX) {
        let span = span?;
        if span.is_zero() {
            continue;
        }
        for number in (span.offset / BLOCK).max(done)..span.end().div_ceil(BLOCK) {
            let len = BLOCK.min(image.virtual_size() - number * BLOCK) as usize;
            block.fill(0);
            image.read_exact_at(&mut block[..len], number * BLOCK)?;
            if block.iter().any(|&byte| byte != 0) {
                sha256.update(number.to_le_bytes());
                sha256.update(&block);
            }
            done = number + 1;
        }
    }
    Ok(sha256.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[test]
fn good_images() {
    let dir = TempDir::new();
    for row in rows("good") {
        let name = row.name();
        assert_eq!(row.expect, "convert", "{name}");
        let path = row.unpack_to(&dir);
        let image = row.options().open(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(image.virtual_size().to_string(), row.virtual_size, "{name}");
        assert_eq!(digest(&image).unwrap(), row.blocks_sha256, "{name}");
        for (converter, target) in [
            (raw(), "copy.raw"),
            (qcow2(""), "copy.qcow2"),
            (qcow2("cluster_size=16k,compression_type=zstd").compress(true), "copy.qcow2"),
            (qcow2("extended_l2=on"), "copy.qcow2"),
            (vmdk(""), "copy.vmdk"),
            (vmdk("subformat=streamOptimized"), "copy.vmdk"),
            (vpc(""), "copy.vhd"),
            (vdi(""), "copy.vdi"),
            (vhdx(""), "copy.vhdx"),
            (vhdx("subformat=fixed"), "copy.vhdx"),
        ] {
            let target = dir.join(target);
            converter.convert(&image, &target).unwrap_or_else(|e| panic!("{name}: {e}"));
            let stated = target.extension().unwrap().to_str().unwrap();
            let copy = OpenOptions::new().format(format(stated)).open(&target).unwrap();
            assert_eq!(compare(&image, &copy).unwrap(), Comparison::Identical, "{name} to {stated}");
        }
        if matches!(&*row.format, "qcow2" | "vpc" | "vdi" | "vhdx" | "qed" | "parallels") {
            let report = row.options().check(&path).unwrap();
            assert_eq!(report.corruptions, 0, "{name}: {:?}", report.messages);
        }
    }
}

#[test]
fn bad_images() {
    let dir = TempDir::new();
    for row in rows("bad") {
        let name = row.name();
        let path = dir.file(name, &row.bytes());
        for converter in [raw(), qcow2(""), qcow2("").compress(true)] {
            let result = row.options().open(&path).and_then(|image| converter.convert(&image, dir.join("new")));
            let error = result.err().unwrap_or_else(|| panic!("{name} was converted"));
            assert_eq!(error.kind().as_str(), row.expect, "{name}: {error}");
            assert!(error.to_string().contains(name), "{name}: {error}");
            assert_eq!(dir.names(), [name]);
        }
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn truncated_good_images() {
    for row in rows("good").iter().filter(|row| row.format != "raw" && row.others.is_empty()) {
        let whole = row.bytes();
        let open = |bytes: &[u8]| row.options().open_source(Arc::new(MemFile::from(bytes.to_vec())));
        if row.virtual_size.parse::<u64>().unwrap() > 64 << 20 {
            continue;
        }
        let expected = digest(&open(&whole).unwrap()).unwrap();
        // Every sector of a small file, and some of a large one.
        let cuts = ((32 << 20) / whole.len()).min(400);
        let step = (whole.len() / 512 / cuts).max(1) * 512;
        for len in (0..256).chain((512..whole.len()).step_by(step)) {
            let read = open(&whole[..len]).and_then(|image| digest(&image));
            if let Ok(read) = read {
                assert_eq!(read, expected, "{}, cut to {len}", row.name());
            }
        }
    }
}

#[test]
fn gzip_files_are_unpacked() {
    let image = unpacked("etcher-mbr.raw");
    assert_eq!(image.len(), 51200);
    assert_eq!(image[510..512], [0x55, 0xaa]);
    assert_same(&content(&crate::support::raw_image(&image)).unwrap(), &image, "raw");
}
