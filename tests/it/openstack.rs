//! The program under the name qemu-img, for callers: OpenStack's libraries run it and read what it prints.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::cli::IMGCONV;
use crate::support::TempDir;
use crate::support::pattern::Pattern;
use crate::support::tools::{needs_qemu, skip};

fn script(args: &[&str]) -> Command {
    let python = std::env::var_os("DISKIMAGE_PYTHON").unwrap_or_else(|| "python3".into());
    let mut command = Command::new(python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/openstack.py")).args(args).stdin(Stdio::null());
    command
}

/// What the script sees with the programs of `first` before those of the system.
fn seen_with(first: &Path) -> serde_json::Value {
    let dir = TempDir::new();
    dir.file("disk.raw", &Pattern::Islands.make(3 << 20));
    let path = format!("{}:{}", first.display(), std::env::var("PATH").unwrap());
    let done = script(&["run", dir.path().to_str().unwrap()]).env("PATH", path).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

#[test]
fn nova_and_glance_see_what_they_see_with_qemu_img() {
    const TEST: &str = "the libraries of OpenStack";
    needs_qemu!(TEST);
    if !script(&["probe"]).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        return skip(TEST, "oslo.utils and oslo.concurrency for Python");
    }
    let (ours, none) = (TempDir::new(), TempDir::new());
    symlink(fs::canonicalize(IMGCONV).unwrap(), ours.join("qemu-img")).unwrap();
    assert_eq!(seen_with(ours.path()), seen_with(none.path()));
}
