//! Files at and beside the target after success and failure.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::patch::Qcow2;
use crate::support::pattern::Pattern;
use crate::support::{
    TempDir, assert_same, content, open_beside, open_raw, qcow2, qcow2_bytes, raw, vdi, vhdx, vmdk, vpc,
};
use diskimage::{Converter, Error, Image};

/// An image that can be opened and whose last cluster cannot be read.
fn damaged(dir: &TempDir) -> Image {
    let mut bytes = Qcow2(qcow2_bytes(&qcow2("cluster_size=4k"), &Pattern::Dense.make(1 << 20)));
    let last = bytes.l2_entry(255);
    bytes.put_u64(last, 1 << 40);
    Image::open(dir.file("damaged.qcow2", &bytes.0)).unwrap()
}

fn converters() -> [Converter; 4] {
    [raw(), qcow2(""), qcow2("").compress(true), qcow2("compression_type=zstd").compress(true)]
}

#[test]
fn no_files_are_left_after_a_failure() {
    let dir = TempDir::new();
    let source = damaged(&dir);
    for converter in converters() {
        for threads in [1, 3] {
            let error = converter.clone().threads(threads).convert(&source, dir.join("new")).unwrap_err();
            assert_eq!(error.kind().as_str(), "out-of-bounds", "{error}");
            assert_eq!(dir.names(), ["damaged.qcow2"]);
        }
    }
}

#[test]
fn an_old_target_survives_a_failure() {
    let dir = TempDir::new();
    let source = damaged(&dir);
    let old = dir.file("old", b"precious");
    for converter in converters() {
        converter.convert(&source, &old).unwrap_err();
        assert_eq!(fs::read(&old).unwrap(), b"precious");
        assert_eq!(dir.names(), ["damaged.qcow2", "old"]);
    }
}

#[test]
fn an_old_target_is_replaced_and_not_overwritten() {
    let dir = TempDir::new();
    let guest = Pattern::Islands.make(300 << 10);
    let source = dir.file("source.raw", &guest);
    let old = dir.file("old", b"precious");
    fs::set_permissions(&old, fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(&old, dir.join("second-name")).unwrap();
    symlink("old", dir.join("link")).unwrap();
    // Through the link: the link is kept, and its target is replaced. With a sync, unlike the other tests.
    qcow2("").sync(true).convert(&open_raw(&source), dir.join("link")).unwrap();
    assert_same(&content(&Image::open(&old).unwrap()).unwrap(), &guest, "replaced");
    assert_eq!(fs::metadata(&old).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(fs::symlink_metadata(dir.join("link")).unwrap().is_symlink());
    assert_eq!(fs::read(dir.join("second-name")).unwrap(), b"precious");
    assert_eq!(dir.names(), ["link", "old", "second-name", "source.raw"]);
}

#[test]
fn without_zero_detection_the_files_have_no_holes() {
    let dir = TempDir::new();
    let mut guest = Pattern::Islands.make(5 << 20);
    guest[1 << 20..3 << 20].fill(0);
    let source = open_raw(&dir.file("source.raw", &guest));
    let converters = [
        raw(),
        qcow2("cluster_size=512k"),
        vmdk("subformat=monolithicFlat"),
        vmdk("subformat=twoGbMaxExtentFlat"),
        vmdk("subformat=monolithicSparse"),
        vpc("subformat=fixed"),
        vpc("subformat=dynamic"),
        vhdx("subformat=fixed"),
        vhdx("subformat=dynamic"),
        vdi(""),
        vdi("static=on"),
    ];
    for converter in converters {
        for threads in [1, 4] {
            let new = TempDir::new();
            converter.clone().sparse(0).threads(threads).convert(&source, new.join("new")).unwrap();
            for name in new.names() {
                let file = fs::metadata(new.join(&name)).unwrap();
                assert!(
                    file.blocks() * 512 >= file.len(),
                    "{converter:?}, {name}: {} of {}",
                    file.blocks() * 512,
                    file.len()
                );
            }
            let image = open_beside(&new.join("new")).unwrap();
            assert_same(&content(&image).unwrap()[..guest.len()], &guest, &format!("{converter:?}"));
        }
    }
}

#[track_caller]
fn refused(dir: &TempDir, converter: &Converter, source: &Image, target: &Path) {
    let names = dir.names();
    let error = converter.convert(source, target).unwrap_err();
    assert!(matches!(error.root(), Error::Usage(_)), "{error}");
    assert_eq!(error.path(), Some(target), "{error}");
    assert_eq!(dir.names(), names);
}

#[test]
fn a_target_that_is_a_source_file_is_refused() {
    let dir = TempDir::new();
    let guest = Pattern::Dense.make(100 << 10);
    let base = dir.file("base.raw", &guest);
    let path = dir.file("source.raw", &guest);
    fs::hard_link(&path, dir.join("hard")).unwrap();
    symlink("source.raw", dir.join("soft")).unwrap();
    let source = open_raw(&path);
    let over_base = qcow2("").backing(open_raw(&base), "base.raw");
    for target in [path.clone(), dir.join("hard"), dir.join("soft"), dir.path().join("./source.raw")] {
        refused(&dir, &raw(), &source, &target);
        refused(&dir, &over_base, &source, &target);
    }
    refused(&dir, &over_base, &source, &base);
    // The whole chain of the source is in use.
    let overlay = dir.join("overlay.qcow2");
    over_base.convert(&source, &overlay).unwrap();
    let opened =
        diskimage::OpenOptions::new().reference_policy(diskimage::ReferencePolicy::Beside).open(&overlay).unwrap();
    refused(&dir, &raw(), &opened, &base);
    assert_same(&fs::read(&base).unwrap(), &guest, "base");
    assert_same(&fs::read(&path).unwrap(), &guest, "source");
}

#[test]
fn targets_that_a_file_cannot_replace_are_refused() {
    let dir = TempDir::new();
    let source = open_raw(&dir.file("source.raw", &[1; 4096]));
    fs::create_dir(dir.join("directory")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(dir.join("fifo")).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
    for name in ["directory", "fifo", "socket"] {
        refused(&dir, &raw(), &source, &dir.join(name));
        refused(&dir, &qcow2(""), &source, &dir.join(name));
    }
    refused(&dir, &raw(), &source, Path::new("/dev/null"));
    symlink("absent/target", dir.join("dangling")).unwrap();
    for name in ["absent/target", "dangling"] {
        let error = raw().convert(&source, dir.join(name)).unwrap_err();
        assert_eq!(error.kind().as_str(), "io", "{error}");
    }
}

#[test]
fn what_a_dangling_link_points_to_is_created() {
    let dir = TempDir::new();
    let source = open_raw(&dir.file("source.raw", &[1; 4096]));
    symlink("new", dir.join("link")).unwrap();
    raw().convert(&source, dir.join("link")).unwrap();
    assert_eq!(fs::read(dir.join("new")).unwrap(), [1; 4096]);
    assert_eq!(fs::read_link(dir.join("link")).unwrap(), Path::new("new"));
    assert_eq!(dir.names(), ["link", "new", "source.raw"]);
}

#[test]
fn a_file_written_in_place_holds_an_image_or_nothing() {
    let dir = TempDir::new();
    let guest = Pattern::Islands.make(300 << 10);
    let source = dir.file("source.raw", &guest);
    let damaged = damaged(&dir);
    let old = dir.file("old", &[7; 9 << 20]);
    fs::hard_link(&old, dir.join("second-name")).unwrap();
    for converter in converters() {
        let converter = converter.in_place(true);
        converter.convert(&open_raw(&source), &old).unwrap();
        let written = fs::read(dir.join("second-name")).unwrap();
        assert_same(&written, &crate::support::convert(&converter, &open_raw(&source)).0, "a new file");
        // It may fail before the first write.
        converter.convert(&damaged, &old).unwrap_err();
        let left = fs::read(dir.join("second-name")).unwrap();
        assert!(left.is_empty() || left == written, "{} bytes", left.len());
    }
    // What is wrong before the first write loses nothing.
    let old = dir.file("old", b"precious");
    let mut options = diskimage::Options::new();
    options.set("cluster_size", "1000");
    qcow2("").options(options).in_place(true).convert(&open_raw(&source), &old).unwrap_err();
    refused(&dir, &raw().in_place(true).clobber(false), &open_raw(&source), &old);
    refused(&dir, &raw().in_place(true), &open_raw(&old), &dir.join("second-name"));
    assert_eq!(fs::read(&old).unwrap(), b"precious");
    assert_eq!(dir.names(), ["damaged.qcow2", "old", "second-name", "source.raw"]);
}

#[test]
fn an_old_target_can_be_kept() {
    let dir = TempDir::new();
    let source = open_raw(&dir.file("source.raw", &[1; 4096]));
    let old = dir.file("old", b"precious");
    refused(&dir, &raw().clobber(false), &source, &old);
    assert_eq!(fs::read(&old).unwrap(), b"precious");
    raw().clobber(false).convert(&source, dir.join("new")).unwrap();
    assert_eq!(fs::read(dir.join("new")).unwrap(), [1; 4096]);
    assert_eq!(dir.names(), ["new", "old", "source.raw"]);
}

#[test]
fn a_target_that_appears_meanwhile_can_be_kept() {
    let dir = TempDir::new();
    let source = open_raw(&dir.file("source.raw", &[1; 4096]));
    let target = dir.join("new");
    let intruder = target.clone();
    let converter = raw().clobber(false).progress(move |_| fs::write(&intruder, b"precious").unwrap());
    let error = converter.convert(&source, &target).unwrap_err();
    assert!(
        matches!(error.root(), Error::Io { cause, .. } if cause.kind() == std::io::ErrorKind::AlreadyExists),
        "{error}"
    );
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    assert_eq!(dir.names(), ["new", "source.raw"]);
}

#[test]
fn cancelling_leaves_no_files() {
    let dir = TempDir::new();
    let source = open_raw(&dir.file("source.raw", &Pattern::Dense.make(9 << 20)));
    for (converter, threads) in [(raw(), 1), (qcow2("").compress(true), 1), (raw(), 3)] {
        let cancel = Arc::new(AtomicBool::new(false));
        let most = Arc::new(AtomicU64::new(0));
        let (flag, seen) = (cancel.clone(), most.clone());
        let converter = converter.threads(threads).cancel(cancel).progress(move |progress| {
            assert_eq!(progress.total, 9 << 20);
            seen.fetch_max(progress.done, Ordering::Relaxed);
            flag.store(true, Ordering::Relaxed);
        });
        let error = converter.convert(&source, dir.join("new")).unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");
        assert!((1..9 << 20).contains(&most.load(Ordering::Relaxed)));
        assert_eq!(dir.names(), ["source.raw"]);
    }
}

#[test]
fn the_last_progress_is_the_total() {
    let source = crate::support::raw_image(&Pattern::Dense.make((5 << 20) + 512));
    let most = Arc::new(AtomicU64::new(0));
    let seen = most.clone();
    let converter = qcow2("").progress(move |progress| {
        seen.fetch_max(progress.done, Ordering::Relaxed);
    });
    let report = crate::support::convert(&converter, &source).1;
    assert_eq!(most.load(Ordering::Relaxed), report.virtual_size);
}

#[test]
fn a_source_that_changes_its_length_is_an_error() {
    let dir = TempDir::new();
    let guest = Pattern::Dense.make(5 << 20);
    for len in [5 << 20 | 512, 1 << 20] {
        let path = dir.file("source.raw", &guest);
        let source = open_raw(&path);
        let changing = path.clone();
        let converter = raw().threads(1).progress(move |progress| {
            if progress.done < 3 << 20 {
                fs::OpenOptions::new().write(true).open(&changing).unwrap().set_len(len).unwrap();
            }
        });
        let error = converter.convert(&source, dir.join("new")).unwrap_err();
        assert!(["changed", "io"].contains(&error.kind().as_str()), "{error}");
        assert_eq!(dir.names(), ["source.raw"]);
    }
}
