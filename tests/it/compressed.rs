//! Compressed image files: read in every command, and raw disks written as such. Compared with the programs in both directions.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::support::pattern::Pattern;
use crate::support::{TempDir, assert_same, content, format, qcow2, raw, raw_image, vpc};
use diskimage::io::MemFile;
use diskimage::{Converter, Error, ErrorKind, Image, LimitName, Limits, OpenOptions, OutputCompression};

/// Name of each compressor, its command line, and the extension of its files.
const WRITERS: &[(&[&str], &str)] = &[
    (&["gzip", "-c"], "gz"),
    (&["gzip", "-1", "-c"], "gz"),
    (&["pigz", "-c", "-b", "128"], "gz"),
    (&["xz", "-c", "-T1"], "xz"),
    (&["xz", "-c", "-T2", "--block-size=300KiB"], "xz"),
    (&["xz", "-c", "-0", "--check=none"], "xz"),
    (&["xz", "-c", "--check=crc32", "--lzma2=preset=1,lc=1,lp=2,pb=0"], "xz"),
    (&["xz", "-c", "--check=sha256", "--x86", "--lzma2"], "xz"),
    (&["xz", "-c", "--delta=dist=4", "--lzma2=preset=0"], "xz"),
    (&["bzip2", "-c", "-1"], "bz2"),
    (&["bzip2", "-c", "-9"], "bz2"),
    (&["zstd", "-c", "-q"], "zst"),
    (&["zstd", "-c", "-q", "-19", "--no-check"], "zst"),
    (&["zstd", "-c", "-q", "--long=27", "-T2"], "zst"),
    (&["pzstd", "-c", "-q", "-p", "2"], "zst"),
];

/// The output of a program for these bytes; `None` if this machine does not have it.
fn filtered(program: &[&str], bytes: &[u8]) -> Option<Vec<u8>> {
    let (name, args) = program.split_first()?;
    let mut command = Command::new(name);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let mut stdin = child.stdin.take()?;
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(bytes));
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{program:?}: {}", output.status);
    Some(output.stdout)
}

/// A raw disk of some MiB.
fn disk() -> Vec<u8> {
    [Pattern::Islands.make(3 << 20), vec![0; 2 << 20], Pattern::Dense.make(1 << 20), vec![0; 512]].concat()
}

/// Small files of each format: of this crate, and those in `fuzz/seeds/compressed`.
pub fn seeds() -> Vec<Vec<u8>> {
    let disk = [Pattern::Islands.make(5000), vec![0; 3192]].concat();
    let own = [OutputCompression::Gzip, OutputCompression::Zstd].map(|compression| {
        let file = Arc::new(MemFile::new());
        raw().compress_output(Some(compression)).convert_to(&raw_image(&disk), file.clone()).unwrap();
        file.to_vec()
    });
    let stored = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/compressed")).unwrap();
    own.into_iter().chain(stored.map(|entry| fs::read(entry.unwrap().path()).unwrap())).collect()
}

#[test]
fn what_the_programs_write_is_read() {
    let dir = TempDir::new();
    let disk = disk();
    let mut tried = 0;
    for (program, extension) in WRITERS {
        let Some(file) = filtered(program, &disk) else { continue };
        tried += 1;
        // By the content, whatever the name says, and with the extension of the format inside.
        for name in [format!("disk.raw.{extension}"), "disk".into(), "disk.img.xyz".into()] {
            let path = dir.file(&name, &file);
            let image = Image::open(&path).unwrap();
            assert_eq!(image.format(), format("raw"));
            assert_same(&content(&image).unwrap(), &disk, &format!("{program:?}"));
            let once = OpenOptions::new().one_pass(true).open(&path).unwrap();
            let target = Arc::new(MemFile::new());
            raw().convert_to(&once, target.clone()).unwrap();
            assert_same(&target.to_vec(), &disk, &format!("{program:?} in one pass"));
        }
        // Joined, and with padding.
        let joined = dir.file("joined", &[&file[..], &file, &[0; 1024]].concat());
        assert_same(&content(&Image::open(joined).unwrap()).unwrap(), &[&disk[..], &disk].concat(), "joined");
        let cut = dir.file("cut", &file[..file.len() - 5]);
        assert!(Image::open(cut).is_err(), "{program:?}");
        let as_stored = OpenOptions::new().format(format("raw")).open(dir.file("raw", &file)).unwrap();
        assert_same(&content(&as_stored).unwrap(), &file, "with the format raw stated");
    }
    assert!(tried > 0, "gzip is everywhere");
}

#[test]
fn what_is_written_is_read_by_the_programs() {
    let dir = TempDir::new();
    let disk = disk();
    for (compression, readers) in [
        (OutputCompression::Gzip, &[&["gzip", "-dc"][..], &["pigz", "-dc"]][..]),
        (OutputCompression::Zstd, &[&["zstd", "-dcq"], &["pzstd", "-dcq"]]),
    ] {
        let path = dir.join("disk");
        raw().compress_output(Some(compression)).convert(&raw_image(&disk), &path).unwrap();
        let file = fs::read(&path).unwrap();
        for reader in readers {
            if let Some(data) = filtered(reader, &file) {
                assert_same(&data, &disk, &format!("{reader:?}"));
            }
        }
        assert_same(&content(&Image::open(&path).unwrap()).unwrap(), &disk, compression.name());
    }
}

/// The image in up to three layers of zstd, which this crate writes itself.
fn wrapped(bytes: &[u8], layers: usize) -> Vec<u8> {
    (0..layers).fold(bytes.to_vec(), |bytes, _| {
        let file = Arc::new(MemFile::new());
        raw().compress_output(Some(OutputCompression::Zstd)).convert_to(&raw_image(&bytes), file.clone()).unwrap();
        file.to_vec()
    })
}

/// Each layer alone is within the limit.
#[cfg(feature = "cli")]
#[test]
fn the_ratio_is_that_of_all_layers() {
    let dir = TempDir::new();
    fs::File::create(dir.join("disk.raw")).unwrap().set_len(2 << 30).unwrap();
    crate::cli::succeed(&dir, &["convert", "disk.raw", "disk.raw.zst"]);
    let once = fs::read(dir.join("disk.raw.zst")).unwrap();
    let twice = dir.file("twice.raw.zst", &wrapped(&once, 1));
    assert_eq!(OpenOptions::new().open(dir.join("disk.raw.zst")).unwrap().virtual_size(), 2 << 30);
    let error = OpenOptions::new().open(&twice).unwrap_err();
    let Error::Limit { name, .. } = error.root() else { panic!("{error}") };
    assert_eq!(*name, Some(LimitName::DecompressionRatio));
    let mut limits = Limits::default();
    limits.decompression_ratio = u64::MAX;
    assert_eq!(OpenOptions::new().limits(limits).open(&twice).unwrap().virtual_size(), 2 << 30);
}

#[test]
fn every_format_is_found_inside_up_to_three_layers() {
    let dir = TempDir::new();
    let disk = Pattern::Islands.make(1 << 20);
    for (converter, name) in [(qcow2("cluster_size=4k"), "qcow2"), (vpc("subformat=fixed,force_size=on"), "vpc")] {
        let image = dir.join("image");
        converter.convert(&raw_image(&disk), &image).unwrap();
        let image = fs::read(image).unwrap();
        for layers in 1..=4 {
            let path = dir.file(&format!("disk.{name}.zst"), &wrapped(&image, layers));
            for options in
                [OpenOptions::new(), OpenOptions::new().one_pass(true), OpenOptions::new().format(format(name))]
            {
                let opened = options.open(&path);
                if layers > 3 {
                    let error = opened.err().unwrap();
                    assert!(matches!(error.root(), Error::Limit { value: 4, limit: 3, .. }), "{error}");
                    continue;
                }
                let opened = opened.unwrap();
                // The end of a fixed VHD is looked at when it has been decoded.
                let target = Arc::new(MemFile::new());
                match raw().convert_to(&opened, target.clone()) {
                    Ok(_) => {
                        assert_eq!(opened.format().name(), name);
                        assert_same(&target.to_vec(), &disk, name);
                    }
                    Err(error) => assert!(matches!(error.root(), Error::NotOnePass { .. }) && name == "vpc", "{error}"),
                }
            }
            if layers <= 3 {
                let inspection = OpenOptions::new().inspect(&path).unwrap();
                assert_eq!((inspection.format.name(), inspection.compression.len()), (name, layers));
                assert_eq!(inspection.compression[layers - 1].decompressed_len, image.len() as u64);
                assert_eq!(inspection.file_len, fs::metadata(&path).unwrap().len());
            }
        }
    }
}

#[test]
fn the_extension_inside_counts() {
    let dir = TempDir::new();
    let page = wrapped(b"404 Not Found\n", 1);
    let error = Image::open(dir.file("cirros.qcow2.zst", &page)).err().unwrap();
    assert!(matches!(error.root(), Error::Extension { format: "qcow2", content: "text" }), "{error}");
    assert!(Image::open(dir.file("cirros.img.zst", &page)).is_ok());
}

#[test]
fn the_target_gets_its_name_after_the_checksum() {
    let dir = TempDir::new();
    let Some(mut file) = filtered(&["gzip", "-c"], &disk()) else { return };
    let crc = file.len() - 8;
    file[crc] ^= 1;
    let path = dir.file("disk.raw.gz", &file);
    for garbage in [&b""[..], b"garbage after the end"] {
        if !garbage.is_empty() {
            file[crc] ^= 1;
            file.extend(garbage);
            fs::write(&path, &file).unwrap();
        }
        let opened = OpenOptions::new().one_pass(true).open(&path);
        let error = opened.and_then(|disk| raw().convert(&disk, dir.join("target"))).err().unwrap();
        assert_eq!(error.path(), Some(&*path), "{error}");
        assert!(!dir.join("target").exists());
    }
}

#[test]
fn limits_refuse_bombs() {
    let file = wrapped(&vec![0; 64 << 20], 2);
    let open = |set: fn(&mut Limits)| {
        let mut limits = Limits::default();
        set(&mut limits);
        OpenOptions::new().limits(limits).open_source(Arc::new(MemFile::from(file.clone())))
    };
    assert_eq!(open(|_| {}).unwrap().virtual_size(), 64 << 20);
    let error = open(|limits| limits.decompressed = (64 << 20) - 1).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
}

#[test]
fn a_conversion_of_a_file_with_an_index_reads_it_from_all_threads() {
    let disk = [Pattern::Dense.make(6 << 20), Pattern::Islands.make(6 << 20)].concat();
    let source = OpenOptions::new().open_source(Arc::new(MemFile::from(wrapped(&disk, 1)))).unwrap();
    for threads in [1, 2, 7] {
        let target = Arc::new(MemFile::new());
        Converter::new(format("raw")).threads(threads).convert_to(&source, target.clone()).unwrap();
        assert_same(&target.to_vec(), &disk, &format!("{threads} threads"));
    }
}

#[cfg(all(unix, feature = "cli"))]
mod program {
    use super::*;
    use crate::cli::IMGCONV;

    fn imgconv(dir: &TempDir, line: &str, stdin: &[u8]) -> (Option<i32>, String, String) {
        let mut command = Command::new(IMGCONV);
        command.args(line.split(' ')).current_dir(dir.path()).env("SOURCE_DATE_EPOCH", "1").env_remove("TMPDIR");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let done = std::thread::scope(|scope| {
            scope.spawn(move || input.write_all(stdin));
            child.wait_with_output().unwrap()
        });
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        (done.status.code(), text(&done.stdout), text(&done.stderr))
    }

    #[track_caller]
    fn pass(dir: &TempDir, line: &str, stdin: &[u8]) -> String {
        let (code, said, failed) = imgconv(dir, line, stdin);
        assert_eq!((code, &*failed), (Some(0), ""), "{line}");
        said
    }

    #[test]
    fn raw_disks_are_converted_without_a_temporary_file_and_others_with_one() {
        let dir = TempDir::new();
        dir.file("disk.raw", &disk());
        pass(&dir, "convert disk.raw disk.qcow2", b"");
        pass(&dir, "convert -O vmdk -o subformat=streamOptimized disk.raw disk.vmdk", b"");
        let with = |name: &str| {
            let path = dir.join(name);
            let packed = filtered(&["gzip", "-c"], &fs::read(&path).unwrap())?;
            Some(dir.file(&format!("{name}.gz"), &packed))
        };
        for name in ["disk.raw", "disk.vmdk"] {
            if with(name).is_none() {
                return;
            }
            pass(&dir, &format!("convert --spool-dir missing {name}.gz out.raw"), b"");
            assert_same(&fs::read(dir.join("out.raw")).unwrap(), &disk(), name);
        }
        with("disk.qcow2");
        let (code, _, said) = imgconv(&dir, "convert --spool-dir missing disk.qcow2.gz out.raw", b"");
        assert!(code == Some(1) && said.contains("missing"), "{said}");
        pass(&dir, "convert disk.qcow2.gz out.raw", b"");
        assert_same(&fs::read(dir.join("out.raw")).unwrap(), &disk(), "qcow2");
        assert_eq!(pass(&dir, "compare disk.qcow2.gz disk.raw.gz", b""), "Images are identical.\n");
        assert!(pass(&dir, "info disk.qcow2.gz", b"").contains("compression: gzip, decompressed to "));
        let json: serde_json::Value =
            serde_json::from_str(&pass(&dir, "info --output json disk.qcow2.gz", b"")).unwrap();
        assert_eq!(json["compression"][0]["format"], "gzip");
        pass(&dir, "check disk.qcow2.gz", b"");
        pass(&dir, "map disk.qcow2.gz", b"");
        let (code, _, said) = imgconv(&dir, "info --max-output 1k disk.qcow2.gz", b"");
        assert!(code == Some(1) && said.contains("above the limit of 1024"), "{said}");
    }

    #[test]
    fn a_disk_of_another_size_than_it_seems_to_have_is_converted_all_the_same() {
        let dir = TempDir::new();
        let parts = [Pattern::Dense.make(1 << 20), Pattern::Dense.make(4096)];
        let Some(file) = parts.iter().map(|part| filtered(&["gzip", "-c"], part)).collect::<Option<Vec<_>>>() else {
            return;
        };
        dir.file("disk.img.gz", &file.concat());
        pass(&dir, "convert disk.img.gz disk.raw", b"");
        assert_same(&fs::read(dir.join("disk.raw")).unwrap(), &parts.concat(), "two members");
        assert_eq!(dir.names(), ["disk.img.gz", "disk.raw"]);
    }

    #[test]
    fn standard_input_may_be_compressed() {
        let dir = TempDir::new();
        let raw = wrapped(&disk(), 1);
        pass(&dir, "convert - disk.raw", &raw);
        assert_same(&fs::read(dir.join("disk.raw")).unwrap(), &disk(), "standard input");
        pass(&dir, "convert -f raw - as-it-is.raw", &raw);
        assert_same(&fs::read(dir.join("as-it-is.raw")).unwrap(), &raw, "with -f raw");
        pass(&dir, "convert disk.raw disk.qcow2", b"");
        pass(&dir, "convert - again.raw", &wrapped(&fs::read(dir.join("disk.qcow2")).unwrap(), 2));
        assert_same(&fs::read(dir.join("again.raw")).unwrap(), &disk(), "qcow2");
        let (code, _, said) = imgconv(&dir, "convert - x.raw", &disk());
        assert!(code == Some(1) && said.contains("set it with -f"), "{said}");
    }

    #[test]
    fn extensions_of_the_target_compress_a_raw_disk() {
        let dir = TempDir::new();
        dir.file("disk.img", &disk());
        for line in [
            "convert disk.img out.raw.zst",
            "convert -O raw disk.img out.gz",
            "convert --compress-output zstd disk.img out.img",
            "convert -O raw --compress-output gzip disk.img out",
        ] {
            pass(&dir, line, b"");
            let name = line.rsplit(' ').next().unwrap();
            let inspection = OpenOptions::new().inspect(dir.join(name)).unwrap();
            assert_eq!(inspection.compression.len(), 1, "{line}");
            assert_eq!(inspection.info.virtual_size, disk().len() as u64);
        }
        for line in ["convert disk.img out.qcow2.gz", "convert -O qcow2 --compress-output gzip disk.img out.qcow2"] {
            let (code, _, said) = imgconv(&dir, line, b"");
            assert!(code == Some(1) && said.contains("qcow2: not supported: gzip output"), "{said}");
        }
    }
}
