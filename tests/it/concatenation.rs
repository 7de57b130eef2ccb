//! Disks one after another as one disk.

use std::ops::Range;
use std::sync::Arc;

use crate::support::patch::Qcow2;
use crate::support::pattern::Pattern;
use crate::support::{
    Random, SparseFile, TempDir, assert_same, content, convert, format, open_bytes, open_raw, qcow2, qcow2_bytes,
    qcow2_image, raw, raw_image, vdi, vhdx, vmdk,
};
use diskimage::io::{MemFile, WriteAt};
use diskimage::{Converter, Error, Image, OpenOptions, ReferencePolicy};

const MIB: usize = 1 << 20;

/// The guest bytes of a concatenation.
fn joined(parts: &[&[u8]]) -> Vec<u8> {
    let mut whole = Vec::new();
    for part in parts {
        whole.extend_from_slice(part);
        whole.resize(whole.len().next_multiple_of(512), 0);
    }
    whole
}

fn opened(converter: &Converter, format_name: &str, guest: &[u8]) -> Image {
    open_bytes(&convert(converter, &raw_image(guest)).0, format(format_name)).unwrap()
}

#[test]
fn every_format_at_any_sector() {
    let guests = [Pattern::Tail.make(MIB), Pattern::Islands.make(300 << 10), Pattern::Sparse.make(MIB + 1536)];
    let odd = Pattern::Dense.make(5000)[..4321].to_vec();
    let parts: [&[u8]; 7] = [&odd, &guests[0], &[], &guests[1], &guests[2], &odd, &guests[1]];
    let disks = || {
        vec![
            raw_image(&odd),
            opened(&qcow2("").compress(true), "qcow2", &guests[0]),
            raw_image(&[]),
            opened(&vmdk("subformat=streamOptimized"), "vmdk", &guests[1]),
            opened(&vhdx(""), "vhdx", &guests[2]),
            raw_image(&odd),
            opened(&vdi(""), "vdi", &guests[1]),
        ]
    };
    let (disk, expected) = (Image::concatenate(disks()).unwrap(), joined(&parts));
    assert_eq!((disk.virtual_size(), disk.format().name()), (disk.info().virtual_size, "raw"));
    assert_eq!(disk.layer_count(), 7);
    assert_same(&content(&disk).unwrap(), &expected, "read");
    let mut random = Random::new(1);
    for _ in 0..500 {
        let start = random.below(expected.len() as u64) as usize;
        let most = 1 << random.below(21);
        let len = (random.below(most) as usize).min(expected.len() - start);
        let mut buf = vec![0xee; len];
        disk.read_exact_at(&mut buf, start as u64).unwrap();
        assert_same(&buf, &expected[start..start + len], &format!("{len} bytes at {start}"));
    }
    // Spans are contiguous.
    let mut at = 0;
    for span in disk.spans(0..u64::MAX) {
        let span = span.unwrap();
        assert_eq!(span.offset, at);
        at = span.end();
    }
    assert_eq!(at, expected.len() as u64);
    for threads in [1, 3] {
        for converter in [raw(), qcow2("").compress(true), vmdk("subformat=streamOptimized"), vhdx("")] {
            let (bytes, report) = convert(&converter.threads(threads), &disk);
            let (name, written) = (report.format.name(), open_bytes(&bytes, report.format).unwrap());
            assert_same(&content(&written).unwrap()[..expected.len()], &expected, name);
            assert_eq!((report.source_format, report.virtual_size - report.padding), (Some(format("raw")), at));
        }
    }
    // A concatenation is a disk like any other.
    let nested = Image::concatenate(vec![raw_image(&odd), Image::concatenate(disks()).unwrap(), raw_image(&odd)]);
    assert_same(&content(&nested.unwrap()).unwrap(), &joined(&[&odd, &expected, &odd]), "nested");
}

#[test]
fn compressed_clusters_are_copied_where_they_are_aligned() {
    let guest = Pattern::Dense.make(MIB);
    let compressed = || opened(&qcow2("").compress(true), "qcow2", &guest);
    for (first, copied) in [(256 << 10, 16), (512, 0), (4 << 20, 16)] {
        let first = vec![7; first];
        let disk = Image::concatenate(vec![raw_image(&first), compressed()]).unwrap();
        let (bytes, report) = convert(&qcow2("").compress(true), &disk);
        assert_eq!(report.passthrough_blocks, copied, "{}", first.len());
        assert_same(&content(&qcow2_image(&bytes).unwrap()).unwrap(), &joined(&[&first, &guest]), "content");
    }
}

#[test]
fn overlays_end_with_their_disk() {
    let dir = TempDir::new();
    // The backing file is shorter than its overlay in the first case, and longer in the second.
    let mut disks = Vec::new();
    let mut expected = Vec::new();
    for (name, base, size) in [("a", 100 << 10, 200 << 10), ("b", 200 << 10, 100 << 10)] {
        let guest = Pattern::Dense.make(base);
        dir.file(&format!("{name}.raw"), &guest);
        let base = open_raw(&dir.join(&format!("{name}.raw")));
        let overlay = dir.join(&format!("{name}.qcow2"));
        let converter = qcow2("backing_fmt=raw").backing(base, format!("{name}.raw"));
        converter.create(size as u64, &overlay).unwrap();
        disks.push(OpenOptions::new().reference_policy(ReferencePolicy::Beside).open(overlay).unwrap());
        let mut guest = guest;
        guest.resize(size, 0);
        expected.extend(guest);
    }
    let disk = Image::concatenate(disks).unwrap();
    assert_eq!(disk.layer_count(), 4);
    assert_same(&content(&disk).unwrap(), &expected, "read");
    assert_same(&convert(&raw(), &disk).0, &expected, "converted");
}

#[test]
fn damage_is_at_offsets_of_the_whole_disk() {
    let guest = Pattern::Dense.make(256 << 10);
    let mut image = Qcow2(qcow2_bytes(&qcow2("cluster_size=4k"), &guest));
    // Two clusters in one place, and one that is not in the file.
    let (first, second, third) = (image.l2_entry(3), image.l2_entry(5), image.l2_entry(9));
    image.put_u64(second, image.u64(first));
    image.put_u64(third, 1 << 63 | 1 << 40);
    let disk = || Image::concatenate(vec![raw_image(&[7; 3000]), qcow2_image(&image.0).unwrap(), raw_image(&guest)]);
    let error = raw().convert_to(&disk().unwrap(), Arc::new(MemFile::new())).unwrap_err();
    let at = |cluster: u64| 3072 + cluster * 4096;
    assert!(matches!(&error, Error::Guest { range, .. } if range.start == at(5)), "{error}");

    let (bytes, report) = convert(&raw().salvage(true), &disk().unwrap());
    let ranges = |list: &diskimage::DamageList| list.ranges.iter().map(|lost| lost.range.clone()).collect::<Vec<_>>();
    let cluster = |index| -> Range<u64> { at(index)..at(index + 1) };
    assert_eq!((ranges(&report.doubtful), ranges(&report.unreadable)), (vec![cluster(5)], vec![cluster(9)]));
    let mut expected = joined(&[&[7; 3000], &guest, &guest]);
    expected.copy_within(at(3) as usize..at(4) as usize, at(5) as usize);
    expected[at(9) as usize..at(10) as usize].fill(0);
    assert_same(&bytes, &expected, "salvaged");
}

#[test]
fn a_fault_ends_with_its_disk() {
    // Both images have the same fault in all of their tables.
    let guest = Pattern::Dense.make(64 << 10);
    let mut image = Qcow2(qcow2_bytes(&qcow2("cluster_size=512"), &guest));
    for cluster in [0, 64] {
        let entry = image.l1_entry(cluster);
        image.put_u64(entry, 1 << 63 | 1 << 40);
    }
    let disk = Image::concatenate(vec![qcow2_image(&image.0).unwrap(), qcow2_image(&image.0).unwrap()]).unwrap();
    let (bytes, report) = convert(&raw().salvage(true), &disk);
    assert_eq!(report.unreadable.bytes, 4 * 64 * 512, "{:?}", report.unreadable);
    assert_same(&bytes, &joined(&[&content_after(&guest), &content_after(&guest)]), "salvaged");

    fn content_after(guest: &[u8]) -> Vec<u8> {
        let mut rest = guest.to_vec();
        rest[..2 * 64 * 512].fill(0);
        rest
    }
}

#[test]
fn sizes_are_checked() {
    assert!(matches!(Image::concatenate(Vec::new()), Err(Error::Usage(_))));
    let huge = || {
        let file = SparseFile::default();
        file.set_len(1 << 61).unwrap();
        OpenOptions::new().format(format("raw")).open_source(Arc::new(file)).unwrap()
    };
    let many = |count: usize| Image::concatenate((0..count).map(|_| huge()).collect());
    assert_eq!(many(3).unwrap().virtual_size(), 3 << 61);
    // 2^63 bytes.
    assert!(matches!(many(4), Err(Error::Usage(_))));
    assert!(matches!(many(9), Err(Error::Usage(_))));
}

/// The key of each sector of AES follows from its guest offset in its own image.
#[cfg(feature = "crypto")]
#[test]
fn encrypted_disks_keep_their_own_offsets() {
    use crate::support::tools::{needs_qemu, qemu_img};
    use diskimage::Secret;

    needs_qemu!("concatenation of encrypted disks");
    let (dir, guest) = (TempDir::new(), Pattern::Dense.make(MIB + 512));
    let object = format!("secret,id=s,file={}", dir.file("passphrase", b"sixteen bytes ok").display());
    let source = dir.file("source.raw", &guest);
    let mut disks = vec![raw_image(&[1; 512])];
    for options in
        ["encrypt.format=aes,encrypt.key-secret=s", "encrypt.format=luks,encrypt.iter-time=10,encrypt.key-secret=s"]
    {
        let image = dir.join(&format!("{}.qcow2", disks.len()));
        qemu_img(&[&"convert", &"--object", &object, &"-f", &"raw", &"-O", &"qcow2", &"-o", &options, &source, &image]);
        disks.push(OpenOptions::new().secret(Secret::new("sixteen bytes ok")).open(image).unwrap());
    }
    let disk = Image::concatenate(disks).unwrap();
    let expected = joined(&[&[1; 512], &guest, &guest]);
    assert_same(&content(&disk).unwrap(), &expected, "read");
    assert_same(&convert(&raw(), &disk).0, &expected, "converted");
}

#[cfg(feature = "cli")]
mod cli {
    use std::ffi::OsStr;
    use std::fs;
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::cli::{IMGCONV, fail, imgconv, succeed};
    use crate::support::tools::{needs_qemu, qemu_img};

    /// Disks of odd sizes in several formats.
    fn sources(dir: &TempDir) -> Vec<&'static str> {
        dir.file("a.raw", &Pattern::Dense.make(70_000)[..65_537]);
        let guest = dir.file("b.raw", &Pattern::Islands.make(MIB + 512));
        for (name, arguments) in [
            ("b.qcow2", &["-c", "-O", "qcow2"][..]),
            ("b.vmdk", &["-O", "vmdk", "-o", "subformat=streamOptimized"]),
            ("b.vdi", &["-O", "vdi"]),
            ("b.qed", &["-O", "qed"]),
        ] {
            let target = dir.join(name);
            let arguments = arguments.iter().map(|argument| argument as &dyn AsRef<OsStr>);
            let convert: [&dyn AsRef<OsStr>; 3] = [&"convert", &"-f", &"raw"];
            let files: [&dyn AsRef<OsStr>; 2] = [&guest, &target];
            qemu_img(&convert.into_iter().chain(arguments).chain(files).collect::<Vec<_>>());
        }
        dir.file("empty.raw", b"");
        vec!["a.raw", "b.qcow2", "empty.raw", "b.vmdk", "a.raw", "b.vdi", "b.qed"]
    }

    #[test]
    fn several_sources_give_what_qemu_img_gives() {
        needs_qemu!("concatenation");
        let dir = TempDir::new();
        let sources = sources(&dir);
        for count in 2..=sources.len() {
            let paths: Vec<_> = sources[..count].iter().map(|name| dir.join(name)).collect();
            let mut args: Vec<&dyn AsRef<OsStr>> = vec![&"convert", &"-O", &"raw"];
            args.extend(paths.iter().map(|path| path as &dyn AsRef<OsStr>));
            let theirs = dir.join("theirs.raw");
            args.push(&theirs);
            qemu_img(&args);
            let theirs = fs::read(theirs).unwrap();
            for target in ["ours.raw", "ours.qcow2"] {
                succeed(&dir, &[&["convert"], &sources[..count], &[target]].concat());
                let ours = content(&Image::open(dir.join(target)).unwrap()).unwrap();
                assert_same(&ours, &theirs, &format!("{count} sources to {target}"));
            }
        }
        // The format holds for all.
        succeed(&dir, &["convert", "-f", "raw", "a.raw", "b.qcow2", "bytes.raw"]);
        let bytes = [fs::read(dir.join("a.raw")).unwrap(), fs::read(dir.join("b.qcow2")).unwrap()];
        assert_same(&fs::read(dir.join("bytes.raw")).unwrap(), &joined(&[&bytes[0], &bytes[1]]), "raw");
        assert!(fail(&dir, 1, &["convert", "-f", "qcow2", "b.qcow2", "a.raw", "x.raw"]).contains("a.raw"));
        assert!(!dir.join("x.raw").exists());
    }

    #[test]
    fn the_report_names_all_sources() {
        let dir = TempDir::new();
        dir.file("a.raw", &[1; 512]);
        dir.file("b.raw", &[2; 512]);
        let text = succeed(&dir, &["convert", "--output", "json", "a.raw", "b.raw", "a.raw", "x.raw"]);
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(report["source"], serde_json::json!(["a.raw", "b.raw", "a.raw"]));
        assert_eq!(report["virtual-size"], 3 * 512);
    }

    #[test]
    fn a_source_is_neither_the_target_nor_read_twice_from_a_pipe() {
        let dir = TempDir::new();
        dir.file("a.raw", &[1; 512]);
        dir.file("b.raw", &[2; 1000]);
        assert!(fail(&dir, 1, &["convert", "a.raw", "b.raw", "b.raw"]).contains("b.raw"));
        assert_eq!(fs::read(dir.join("b.raw")).unwrap(), [2; 1000]);
        let mut child = Command::new(IMGCONV)
            .args(["convert", "-f", "raw", "b.raw", "-", "a.raw", "x.raw"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&[3; 700]).unwrap();
        assert!(child.wait().unwrap().success());
        assert_same(&fs::read(dir.join("x.raw")).unwrap(), &joined(&[&[2; 1000], &[3; 700], &[1; 512]]), "with a pipe");
        assert!(fail(&dir, 1, &["convert", "-f", "raw", "-", "-", "y.raw"]).contains("one SOURCE only"));
    }

    #[test]
    fn options_for_one_source_are_refused() {
        let dir = TempDir::new();
        dir.file("a.raw", &[1; 512]);
        for option in [&["-l", "x"][..], &["-B", "a.raw"], &["--disk", "1"], &["--detached-header", "a.raw"]] {
            let args = [&["convert"], option, &["a.raw", "a.raw", "x.qcow2"]].concat();
            let message = fail(&dir, 1, &args);
            assert!(message.contains(&format!("{} needs one SOURCE", option[0])), "{message}");
        }
        assert_eq!(dir.names(), ["a.raw"]);
        assert_eq!(imgconv(&dir, &["convert", "-r", "1T", "a.raw", "a.raw", "x.qcow2"]).status.code(), Some(0));
        assert!(fail(&dir, 1, &["convert", "-r", "fast", "a.raw", "y.qcow2"]).contains("invalid size 'fast'"));
    }
}
