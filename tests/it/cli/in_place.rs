//! Existing targets that cannot be replaced, or are not to be.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use super::{IMGCONV, fail, imgconv, succeed};
use crate::support::TempDir;
use crate::support::pattern::Pattern;
use diskimage::Image;

/// User and group of a user who is not root.
const NOBODY: u32 = 65534;

/// Runs the program by way of `wrapper`, and returns its exit code and its message.
fn run(dir: &TempDir, wrapper: &[&str], args: &[&str]) -> (Option<i32>, String) {
    let command = [wrapper, &[IMGCONV], args].concat();
    let done = Command::new(command[0]).args(&command[1..]).current_dir(dir.path()).stdin(Stdio::null()).output();
    let done = done.unwrap();
    (done.status.code(), String::from_utf8(done.stderr).unwrap())
}

/// A wrapper that works here.
fn wrapper<'a>(wrappers: &[&'a [&'a str]]) -> Option<&'a [&'a str]> {
    let works = |wrapper: &&&[&str]| match wrapper {
        [] => true,
        [program, args @ ..] => {
            let status = Command::new(program).args(args).arg("true").stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        }
    };
    wrappers.iter().find(works).copied()
}

/// Checks `target`, which cannot be replaced but written, with a file of each content.
fn check_irreplaceable(dir: &TempDir, wrapper: &[&str], target: &str, reason: &str) {
    let guest = Pattern::Islands.make(300 << 10);
    dir.file("source.raw", &guest);
    let path = dir.join(target);
    let content = || fs::read(&path).unwrap();
    let inode = || fs::metadata(&path).unwrap().ino();
    let before = inode();
    let assert_image = || {
        assert_eq!(crate::support::content(&Image::open(&path).unwrap()).unwrap(), guest);
        assert_eq!(inode(), before);
    };
    let convert = ["convert", "--no-sync", "-O", "qcow2", "source.raw", target];
    let in_place = ["convert", "--no-sync", "--in-place", "-O", "qcow2", "source.raw", target];
    // The error comes before the conversion: the source is not read.
    fs::write(&path, b"precious").unwrap();
    let (code, message) = run(dir, wrapper, &convert);
    assert_eq!((code, message.lines().count()), (Some(1), 1), "{message}");
    assert!(message.contains(target) && message.contains(reason), "{message}");
    assert!(message.ends_with("; write into it with --in-place\n"), "{message}");
    assert_eq!((content(), inode()), (b"precious".to_vec(), before));
    assert_eq!(run(dir, wrapper, &in_place), (Some(0), String::new()));
    assert_image();
    // Nothing of an empty file is lost.
    fs::write(&path, b"").unwrap();
    assert_eq!(run(dir, wrapper, &convert), (Some(0), String::new()));
    assert_image();
    fs::write(&path, b"").unwrap();
    assert_eq!(
        run(dir, wrapper, &["create", "-q", "--no-sync", "-f", "qcow2", target, "1M"]),
        (Some(0), String::new())
    );
    assert_eq!(Image::open(&path).unwrap().virtual_size(), 1 << 20);
    assert_eq!(run(dir, wrapper, &["create", "-f", "raw", "--no-clobber", target, "1M"]).0, Some(1));
}

#[test]
fn a_file_in_a_directory_that_is_not_writable() {
    const AS_NOBODY: &[&str] = &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let dir = TempDir::new();
    fs::create_dir(dir.join("readonly")).unwrap();
    let target = dir.file("readonly/target", b"");
    let readonly = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    readonly(&dir.join("readonly"), 0o555);
    // Root may write to any directory.
    let is_root = fs::write(dir.join("readonly/probe"), b"").is_ok();
    if is_root {
        chown(&target, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let Some(wrapper) = wrapper(if is_root { &[AS_NOBODY] } else { &[&[]] }) else {
        eprintln!("SKIPPED: files of other users: setpriv does not work");
        return;
    };
    check_irreplaceable(&dir, wrapper, "readonly/target", "Permission denied");
    // A file that cannot be written either.
    readonly(&target, 0o444);
    let (code, message) = run(&dir, wrapper, &["convert", "-O", "raw", "source.raw", "readonly/target"]);
    assert!(code == Some(1) && !message.contains("--in-place"), "{message}");
    // In a sticky directory, users can create files, but not replace those of others.
    if is_root {
        readonly(&dir.join("readonly"), 0o1777);
        chown(&target, Some(NOBODY - 1), Some(NOBODY - 1)).unwrap();
        readonly(&target, 0o666);
        check_irreplaceable(&dir, wrapper, "readonly/target", "sticky");
        assert_eq!(fs::read_dir(dir.join("readonly")).unwrap().count(), 2);
    }
    readonly(&dir.join("readonly"), 0o755);
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_that_is_a_mount_point() {
    const MOUNT: &str = "mount --bind mounted target && exec \"$@\"";
    let dir = TempDir::new();
    dir.file("target", b"");
    let mounted = dir.file("mounted", b"");
    let Some(unshare) = wrapper(&[&["unshare", "--user", "--map-root-user", "--mount"], &["unshare", "--mount"]])
    else {
        eprintln!("SKIPPED: mount points: unshare does not work");
        return;
    };
    let wrapper = [unshare, &["sh", "-c", MOUNT, "sh"]].concat();
    // The names are those outside, where the mount is not seen.
    fs::remove_file(dir.join("target")).unwrap();
    fs::hard_link(&mounted, dir.join("target")).unwrap();
    check_irreplaceable(&dir, &wrapper, "target", "mount point");
}

#[test]
fn the_option_writes_into_an_existing_file() {
    let dir = TempDir::new();
    dir.file("source.raw", &Pattern::Islands.make(300 << 10));
    let old = dir.file("old.vmdk", b"precious");
    fs::hard_link(&old, dir.join("second")).unwrap();
    fs::hard_link(dir.file("old-flat.vmdk", b"part"), dir.join("second-flat")).unwrap();
    let options = ["-o", "subformat=monolithicFlat", "--in-place"];
    succeed(&dir, &[&["convert"][..], &options, &["source.raw", "old.vmdk"]].concat());
    assert!(fs::read(dir.join("second")).unwrap().starts_with(b"# Disk DescriptorFile"));
    assert_eq!(fs::metadata(dir.join("second-flat")).unwrap().len(), 300 << 10);
    succeed(&dir, &["create", "-q", "--in-place", "-f", "qcow2", "old.vmdk", "3M"]);
    assert_eq!(Image::open(dir.join("second")).unwrap().virtual_size(), 3 << 20);
    succeed(&dir, &["create", "-q", "--in-place", "new.qcow2", "3M"]);
    assert!(fail(&dir, 1, &["convert", "--in-place", "old.vmdk", "old.vmdk"]).contains("input file"));
    assert!(fail(&dir, 1, &["convert", "--in-place", "-O", "raw", "source.raw", "-"]).contains("--in-place"));
    assert_eq!(imgconv(&dir, &["create", "--in-place", "--no-clobber", "x.raw", "1M"]).status.code(), Some(1));
}
