//! Persistent bitmaps, copied from one qcow2 image to another one.

use std::path::Path;
use std::process::{Command, Stdio};

use diskimage::driver::BitmapChange;
use diskimage::{BitmapPolicy, Error, Image, OpenOptions};

use crate::cli::IMGCONV;
use crate::support::tools::{check_with_qemu, find, needs_qemu, qemu_img, qemu_io, run};
use crate::support::{Random, TempDir, qcow2, raw};

/// An image with written parts, which the bitmaps of each granularity know, and whose last bits are set.
fn marked(dir: &TempDir, name: &str, options: &str) -> (std::path::PathBuf, Vec<String>) {
    let image = dir.join(name);
    qemu_img(&[&"create", &"-q", &"-f", &"qcow2", &"-o", &options, &image, &"35M"]);
    let mut names = Vec::new();
    let mut add = |name: String, flags: &[&str]| {
        let args = [&["bitmap", "--add"], flags, &[image.to_str().unwrap(), &name]].concat();
        run("qemu-img", &args);
        names.push(name);
    };
    for granularity in ["512", "4k", "64k", "1M", "2G"] {
        add(format!("every {granularity}"), &["-g", granularity]);
    }
    add("empty and not recording".into(), &["--disable"]);
    let writes = ["write 1M 64k", "write 7M 9M", "write 36699648 512"];
    qemu_io(&image, &writes.map(str::to_owned));
    (image, names)
}

/// Which ranges are dirty, as a server of QEMU says.
fn dirty(image: &Path, bitmap: &str) -> String {
    let map = format!("--map=qemu:dirty-bitmap:{bitmap}");
    let args = [&map, "--", "[", "qemu-nbd", "-r", "-f", "qcow2", "-B", bitmap, image.to_str().unwrap(), "]"];
    String::from_utf8(run("nbdinfo", &args)).unwrap()
}

/// The flags, names and granularities of the bitmaps.
fn listed(image: &Path) -> serde_json::Value {
    let info = qemu_img(&[&"info", &"--output=json", &image]);
    let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
    info["format-specific"]["data"]["bitmaps"].clone()
}

#[test]
fn copies_have_the_same_bits() {
    needs_qemu!("bitmaps of QEMU");
    if find("bitmaps of QEMU", &["nbdinfo"]).is_none() {
        return;
    }
    let dir = TempDir::new();
    for (from, to) in [
        ("compat=1.1", ""),
        ("cluster_size=512", "cluster_size=2M"),
        ("cluster_size=2M", "cluster_size=512,refcount_bits=64"),
        ("cluster_size=4k", "cluster_size=64k,extended_l2=on"),
    ] {
        let (source, names) = marked(&dir, "source.qcow2", from);
        let target = dir.join("target.qcow2");
        for compress in [false, true] {
            let converter = qcow2(to).compress(compress).bitmaps(BitmapPolicy::Copy);
            let report = converter.convert(&Image::open(&source).unwrap(), &target).unwrap();
            assert!(report.skipped_bitmaps.is_empty());
            check_with_qemu(&target);
            let checked = OpenOptions::new().check(&target).unwrap();
            assert_eq!((checked.corruptions, checked.leaks), (0, 0), "{from} to {to}: {checked:?}");
            assert_eq!(listed(&target), listed(&source), "{from} to {to}");
            for name in &names {
                assert_eq!(dirty(&target, name), dirty(&source, name), "{from} to {to}: {name}");
            }
            // QEMU goes on with them.
            qemu_io(&target, &["write 3M 64k".to_owned()]);
            assert!(dirty(&target, "every 4k").contains("3145728       65536    1  dirty"), "{from} to {to}");
        }
    }
}

#[test]
fn only_consistent_bitmaps_are_copied() {
    needs_qemu!("inconsistent bitmaps of QEMU");
    let dir = TempDir::new();
    let (source, names) = marked(&dir, "source.qcow2", "compat=1.1");
    // The program has marked the bitmaps as in use, and ends without writing them.
    let mut dies = Command::new("qemu-io");
    dies.args(["-c", "abort"]).arg(&source).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(!dies.status().unwrap().success());
    run("qemu-img", &["bitmap", "--add", source.to_str().unwrap(), "good"]);

    let image = Image::open(&source).unwrap();
    let target = dir.join("target.qcow2");
    let convert = |policy| qcow2("").bitmaps(policy).convert(&image, &target);
    let error = convert(BitmapPolicy::Copy).unwrap_err();
    assert!(error.to_string().contains("'every 512' is inconsistent"), "{error}");
    assert!(!target.exists());
    let report = convert(BitmapPolicy::SkipInconsistent).unwrap();
    let skipped: Vec<_> = report.skipped_bitmaps.iter().map(|name| name.to_text().into_owned()).collect();
    assert_eq!(skipped, names);
    let left: Vec<_> = listed(&target).as_array().unwrap().iter().map(|bitmap| bitmap["name"].clone()).collect();
    assert_eq!(left, ["good"]);
    assert!(convert(BitmapPolicy::Omit).is_ok() && listed(&target).is_null());

    for program in [&["convert"][..], &["qemu-img", "convert"]] {
        let imgconv = |flags: &[&str]| {
            let args = [program, flags, &["-O", "qcow2", source.to_str().unwrap(), target.to_str().unwrap()]].concat();
            let done = Command::new(IMGCONV).args(args).output().unwrap();
            (done.status.code(), String::from_utf8(done.stderr).unwrap())
        };
        let (code, said) = imgconv(&["--bitmaps"]);
        assert!(code == Some(1) && said.contains("inconsistent"), "{said}");
        let (code, said) = imgconv(&["--bitmaps", "--skip-broken-bitmaps"]);
        assert!(code == Some(0) && said.contains("inconsistent bitmap 'every 4k'"), "{said}");
        assert_ne!(imgconv(&["--skip-broken-bitmaps"]).0, Some(0));
    }
}

#[test]
fn where_there_are_no_bitmaps_none_is_lost() {
    needs_qemu!("bitmaps of QEMU");
    let dir = TempDir::new();
    let (source, _) = marked(&dir, "source.qcow2", "compat=1.1");
    let image = Image::open(&source).unwrap();
    let target = dir.join("target");
    for converter in [raw(), qcow2("compat=0.10")] {
        let error = converter.bitmaps(BitmapPolicy::Copy).convert(&image, &target).unwrap_err();
        assert!(error.to_string().contains("cannot have any"), "{error}");
        assert!(!target.exists());
    }
    drop(image);
    run("qemu-img", &["snapshot", "-c", "before", source.to_str().unwrap()]);
    let snapshot = OpenOptions::new().snapshot("before").open(&source).unwrap();
    let error = qcow2("").bitmaps(BitmapPolicy::Copy).convert(&snapshot, &target).unwrap_err();
    assert!(matches!(error.root(), Error::Usage(_)), "{error}");
    // Nothing is asked of a source without any.
    let empty = dir.file("empty.raw", &[0; 512]);
    let empty = OpenOptions::new().format(diskimage::Format::RAW).open(empty).unwrap();
    assert!(raw().bitmaps(BitmapPolicy::Copy).convert(&empty, &target).is_ok());
}

/// What QEMU and this crate leave after the same requests.
#[test]
fn bitmaps_record_writes_as_those_of_qemu() {
    needs_qemu!("bitmaps of QEMU");
    if find("bitmaps of QEMU", &["nbdinfo"]).is_none() {
        return;
    }
    let dir = TempDir::new();
    let mut random = Random::new(1);
    for options in ["cluster_size=64k", "cluster_size=512", "cluster_size=4k,lazy_refcounts=on"] {
        let (theirs, names) = marked(&dir, "theirs.qcow2", options);
        let ours = dir.join("ours.qcow2");
        std::fs::copy(&theirs, &ours).unwrap();
        for round in 0..6 {
            let mut requests = Vec::new();
            let disk = OpenOptions::new().open_disk(&ours).unwrap();
            for _ in 0..5 {
                let start = random.below(disk.size() / 512) * 512;
                let len = ((random.below(300) + 1) * 512).min(disk.size() - start);
                let range = start..start + len;
                let (what, done) = match random.below(3) {
                    0 => ("write", disk.write_all_at(&vec![0xcd; len as usize], start)),
                    1 => ("write -z", disk.write_zeros(range)),
                    _ => ("discard", disk.discard(range)),
                };
                done.unwrap();
                requests.push(format!("{what} {start} {len}"));
            }
            // While the disk is open and has been written to, enabled bitmaps are in use.
            let said = qemu_img(&[&"info", &"-U", &"--output=json", &ours]);
            assert_eq!(String::from_utf8(said).unwrap().matches("in-use").count(), 5);
            disk.close().unwrap();
            qemu_io(&theirs, &requests);
            let size = ["41M", "3M", "77M"].get(round / 2).filter(|_| round % 2 == 1);
            if let Some(size) = size {
                qemu_img(&[&"resize", &"-q", &"--shrink", &theirs, &size]);
                let size = size.trim_end_matches('M').parse::<u64>().unwrap() << 20;
                OpenOptions::new().open_disk(&ours).unwrap().resize(size).unwrap();
            }
            check_with_qemu(&ours);
            assert_eq!(listed(&ours), listed(&theirs), "{options}: {requests:?}");
            for name in &names {
                assert_eq!(dirty(&ours, name), dirty(&theirs, name), "{options}: {name}, {requests:?}, {size:?}");
            }
        }
    }
}

/// Bitmaps of a program that was killed are not trusted.
#[test]
fn an_inconsistent_bitmap_can_only_be_removed() {
    needs_qemu!("bitmaps of QEMU");
    let dir = TempDir::new();
    let (image, _) = marked(&dir, "disk.qcow2", "cluster_size=64k");
    let disk = OpenOptions::new().open_disk(&image).unwrap();
    disk.write_all_at(&[1; 512], 0).unwrap();
    disk.flush().unwrap();
    let killed = dir.file("killed.qcow2", &std::fs::read(&image).unwrap());
    disk.close().unwrap();
    let disk = OpenOptions::new().open_disk(&killed).unwrap();
    let said = disk.resize(1 << 20).unwrap_err().to_string();
    assert!(said.contains("inconsistent"), "{said}");
    let change = |change| disk.change_bitmap("every 4k", change);
    assert!(change(BitmapChange::Clear).unwrap_err().to_string().contains("inconsistent"));
    change(BitmapChange::Remove).unwrap();
    disk.close().unwrap();
    check_with_qemu(&killed);
}
