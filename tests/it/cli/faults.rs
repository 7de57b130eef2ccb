//! The program on file systems that take no more: a limit of the file size, and a file system that is full. A new command is a row of
//! [`NEW`] or [`IN_PLACE`].

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::{IMGCONV, imgconv, succeed};
use crate::support::TempDir;
use crate::support::pattern::Pattern;
use crate::support::tools::unmount;

/// Commands that write a new image called `target` or in a directory of that name.
const NEW: &[&[&str]] = &[
    &["convert", "-O", "raw", "source.qcow2", "target"],
    &["convert", "-O", "raw", "--compress-output", "gzip", "source.qcow2", "target"],
    &["convert", "-O", "raw", "--compress-output", "zstd", "source.qcow2", "target"],
    &["convert", "-O", "qcow2", "source.qcow2", "target"],
    &["convert", "-O", "qcow2", "-c", "source.qcow2", "target"],
    &["convert", "-O", "qcow2", "-o", "preallocation=falloc", "source.qcow2", "target"],
    &["convert", "-O", "qcow2", "-o", "data_file=target.data", "source.qcow2", "target"],
    &["convert", "-O", "qcow2", "--verify", "source.qcow2", "target"],
    &["convert", "-O", "vmdk", "source.qcow2", "target"],
    &["convert", "-O", "vmdk", "-o", "subformat=streamOptimized", "source.qcow2", "target"],
    &["convert", "-O", "vmdk", "-o", "subformat=monolithicFlat", "source.qcow2", "target"],
    &["convert", "-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", "source.qcow2", "target"],
    &["convert", "-O", "vpc", "source.qcow2", "target"],
    &["convert", "-O", "vpc", "-o", "subformat=fixed", "source.qcow2", "target"],
    &["convert", "-O", "vhdx", "source.qcow2", "target"],
    &["convert", "-O", "vdi", "source.qcow2", "target"],
    &["convert", "-O", "qcow", "source.qcow2", "target"],
    &["convert", "-O", "qed", "source.qcow2", "target"],
    &["convert", "-O", "parallels", "source.qcow2", "target"],
    &["convert", "-O", "luks", "-o", "iter-time=10", "--secret-file", "secret", "source.qcow2", "target"],
    &["convert", "-O", "ova", "source.qcow2", "target"],
    &["convert", "-O", "gcp", "source.qcow2", "target"],
    &["convert", "-O", "ovf", "source.qcow2", "target"],
    &["sparsify", "-O", "qcow2", "source.qcow2", "target"],
    &["create", "-f", "qcow2", "-o", "preallocation=full", "target", "1M"],
];

/// Commands that change the image `image`, whose base is `base.raw`, in place, and whether its content remains that of `changed.raw`.
const IN_PLACE: &[(&[&str], bool)] = &[
    (&["resize", "--references", "beside", "image", "3M"], false),
    (&["resize", "--references", "beside", "--preallocation", "full", "image", "3M"], false),
    (&["snapshot", "--references", "beside", "-c", "one", "image"], true),
    (&["rebase", "--references", "beside", "-b", "", "image"], true),
    (&["amend", "--references", "beside", "-o", "refcount_bits=64", "image"], true),
    (&["bitmap", "--references", "beside", "--add", "image", "marks"], true),
    (&["check", "-r", "all", "image"], true),
    (&["commit", "--references", "beside", "image"], true),
    (&["convert", "-n", "--references", "beside", "source.qcow2", "image"], false),
];

/// Names and contents of the files in a directory.
fn all(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap_or_default())
        })
        .collect();
    files.sort();
    files
}

/// Runs the program with a limit of the file size in blocks of 512 bytes.
fn limited(dir: &Path, blocks: usize, args: &[&str]) -> Output {
    let script = format!("ulimit -f {blocks} && exec \"$0\" \"$@\"");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script, IMGCONV]).args(args).current_dir(dir).stdin(Stdio::null()).output().unwrap()
}

/// 1 MiB, in less than a half of which there is data.
fn source(dir: &TempDir) {
    dir.file("source.raw", &Pattern::Islands.make(1 << 20));
    dir.file("secret", b"secret");
    succeed(dir, &["convert", "-q", "-f", "raw", "-O", "qcow2", "source.raw", "source.qcow2"]);
}

/// The sizes at which a command that writes a file of `most` bytes is stopped: close together at its start and its end.
fn limits(most: usize) -> Vec<usize> {
    let blocks = most.div_ceil(512);
    let mut limits: Vec<_> = [0, 1, 4, 16, 130].into_iter().filter(|limit| *limit < blocks).collect();
    limits.extend((1..4).map(|part| blocks * part / 4));
    limits.extend([1, 2].map(|before| blocks.saturating_sub(before)));
    limits.sort_unstable();
    limits.dedup();
    limits
}

#[test]
fn what_is_written_anew_is_old_or_new() {
    let dir = TempDir::new();
    source(&dir);
    let before = all(dir.path());
    for args in NEW {
        let whole = TempDir::new();
        source(&whole);
        let done = imgconv(&whole, args);
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        let made: Vec<_> =
            whole.names().into_iter().filter(|name| !before.iter().any(|(old, _)| old == name)).collect();
        let lengths = made.iter().map(|name| fs::metadata(whole.join(name)).unwrap().len() as usize);
        let mut stopped = 0;
        for blocks in limits(lengths.max().unwrap()) {
            // Without a target, and with an old one.
            for old in [None, Some("old")] {
                if let Some(old) = old {
                    made.iter().for_each(|name| _ = dir.file(name, old.as_bytes()));
                }
                let expected = all(dir.path());
                let output = limited(dir.path(), blocks, args);
                let context = || {
                    let error = String::from_utf8_lossy(&output.stderr);
                    format!("{args:?}, {blocks} blocks, {old:?}, {}: {error}", output.status)
                };
                if output.status.success() {
                    assert_eq!(dir.names(), whole.names(), "{}", context());
                } else {
                    stopped += 1;
                    assert_eq!(output.status.code(), Some(1), "{}", context());
                    assert!(all(dir.path()) == expected, "{}: {:?}", context(), dir.names());
                }
                for path in made.iter().map(|name| dir.join(name)) {
                    _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
                }
                assert!(all(dir.path()) == before, "{}", context());
            }
        }
        assert!(stopped >= 6, "{args:?}: stopped {stopped} times");
    }
}

#[test]
fn what_is_changed_in_place_has_leaks_at_most() {
    let dir = TempDir::new();
    source(&dir);
    let base = Pattern::Dense.make(1 << 20);
    let mut changed = base.clone();
    changed[300_000..500_000].fill(b'c');
    dir.file("changed.raw", &changed);
    let create = "convert -q -f raw -O qcow2 -o cluster_size=4k -B base.raw -F raw changed.raw image";
    for (args, keeps_content) in IN_PLACE {
        let make = || {
            dir.file("base.raw", &base);
            succeed(&dir, &create.split(' ').collect::<Vec<_>>());
        };
        make();
        let start = fs::metadata(dir.join("image")).unwrap().len() as usize;
        let done = imgconv(&dir, args);
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        let end = fs::metadata(dir.join("image")).unwrap().len() as usize;
        let mut limits = limits(end.max(start));
        limits.extend(limits.clone().iter().map(|blocks| start / 512 + blocks % 64));
        for blocks in limits {
            make();
            let output = limited(dir.path(), blocks, args);
            let context = format!("{args:?}, {blocks} blocks, {}", output.status);
            let checked = imgconv(&dir, &["check", "-q", "image"]);
            let text = String::from_utf8_lossy(&checked.stderr);
            assert!(matches!(checked.status.code(), Some(0 | 3)), "{context}: {} {text}", checked.status);
            if *keeps_content {
                let compare = ["compare", "-q", "--references", "beside", "-f", "raw", "changed.raw", "image"];
                assert!(imgconv(&dir, &compare).status.success(), "{context}: other content");
            }
            assert_eq!(
                dir.names(),
                ["base.raw", "changed.raw", "image", "secret", "source.qcow2", "source.raw"],
                "{context}"
            );
        }
    }
}

/// The same on a file system that is full, which takes root.
#[test]
fn a_full_file_system_leaves_old_or_new() {
    let dir = TempDir::new();
    let mount = dir.join("mount");
    fs::create_dir(&mount).unwrap();
    let mount_with = |size: usize| {
        let options = format!("size={size}k");
        Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&mount).output()
    };
    if !mount_with(64).is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: without a small file system, which takes root");
        return;
    }
    unmount(&mount);
    source(&dir);
    let mut stopped = 0;
    for args in NEW {
        let args: Vec<_> = args.iter().map(|word| word.replace("target", "mount/target")).collect();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        for size in [8, 64, 200, 320, 500, 900] {
            assert!(mount_with(size).unwrap().status.success());
            fs::write(mount.join("target"), "old").unwrap();
            let before = all(&mount);
            let output = imgconv(&dir, &args);
            let after = all(&mount);
            unmount(&mount);
            if !output.status.success() {
                stopped += 1;
                let names: Vec<_> = after.iter().map(|(name, bytes)| (name, bytes.len())).collect();
                let error = String::from_utf8_lossy(&output.stderr);
                assert!(after == before, "{args:?}, {size} KiB: {error}: {names:?}");
            }
        }
    }
    assert!(stopped > NEW.len(), "{stopped}");
}
