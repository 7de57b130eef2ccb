//! Images that QEMU has open, and images that QEMU opens while they are read here.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::support::pattern::Pattern;
use crate::support::tools::{needs_qemu, qemu_img, qemu_io};
use crate::support::{TempDir, format, open_beside, open_raw, qcow2, raw, vmdk};
use diskimage::{Error, Image, OpenOptions};

/// A `qemu-io` that has an image open, for writing or for reading.
struct Running(Child);

impl Running {
    fn start(image: &Path, arguments: &[&str]) -> Running {
        let mut command = Command::new("qemu-io");
        command.args(arguments).arg(image).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // The answer comes when the image is open.
        writeln!(child.stdin.as_mut().unwrap(), "length").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty());
        Running(child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[track_caller]
fn in_use<T>(result: diskimage::Result<T>, path: &Path, for_writing: bool) {
    let error = result.err().expect("it is in use");
    assert!(matches!(error.root(), Error::InUse { for_writing: is } if *is == for_writing), "{error}");
    assert_eq!(error.path(), Some(path), "{error}");
}

#[test]
fn an_image_that_is_written_to_is_not_read() {
    needs_qemu!("images in use");
    let dir = TempDir::new();
    let guest = Pattern::Islands.make(1 << 20);
    let source = dir.file("source.raw", &guest);
    let (live, overlay) = (dir.join("live.qcow2"), dir.join("overlay.qcow2"));
    qcow2("").convert(&open_raw(&source), &live).unwrap();
    qcow2("").backing(Image::open(&live).unwrap(), "live.qcow2").create(1 << 20, &overlay).unwrap();
    let running = Running::start(&live, &["-f", "qcow2"]);
    in_use(Image::open(&live), &live, true);
    in_use(OpenOptions::new().inspect(&live), &live, true);
    in_use(OpenOptions::new().check(&live), &live, true);
    // Its path is part of the message after that of the overlay.
    let error = open_beside(&overlay).unwrap_err();
    assert!(
        matches!(error.root(), Error::InUse { for_writing: true }) && error.to_string().contains("live"),
        "{error}"
    );
    OpenOptions::new().force_share(true).open(&live).unwrap();
    drop(running);
    Image::open(&live).unwrap();
    // Nothing is read of a raw disk to describe it.
    let running = Running::start(&source, &["-f", "raw"]);
    in_use(OpenOptions::new().format(format("raw")).open(&source), &source, true);
    OpenOptions::new().inspect(&source).unwrap();
    drop(running);
    // A backing file is only read.
    let running = Running::start(&overlay, &["-f", "qcow2"]);
    Image::open(&live).unwrap();
    in_use(open_beside(&overlay), &overlay, true);
    drop(running);
    let _running = Running::start(&live, &["-r", "-f", "qcow2"]);
    Image::open(&live).unwrap();
}

#[test]
fn an_image_that_is_open_is_not_replaced() {
    needs_qemu!("targets in use");
    let dir = TempDir::new();
    let source = dir.file("source.raw", &Pattern::Islands.make(1 << 20));
    let source = open_raw(&source);
    let (live, disk) = (dir.join("live.qcow2"), dir.join("live.vmdk"));
    qcow2("").convert(&source, &live).unwrap();
    vmdk("subformat=monolithicFlat").convert(&source, &disk).unwrap();
    let names = dir.names();
    for arguments in [&["-f", "qcow2"][..], &["-r", "-f", "qcow2"]] {
        let inode = fs::metadata(&live).unwrap().ino();
        let running = Running::start(&live, arguments);
        in_use(raw().convert(&source, &live), &live, false);
        assert_eq!((fs::metadata(&live).unwrap().ino(), dir.names()), (inode, names.clone()));
        drop(running);
        qcow2("").convert(&source, &live).unwrap();
    }
    // A further file of the new image.
    let flat = dir.join("live-flat.vmdk");
    let running = Running::start(&flat, &["-f", "raw"]);
    in_use(vmdk("subformat=monolithicFlat").convert(&source, &disk), &flat, false);
    assert_eq!(dir.names(), names);
    drop(running);
    vmdk("subformat=monolithicFlat").convert(&source, &disk).unwrap();
}

#[test]
fn an_image_that_is_written_in_place_is_not_opened() {
    needs_qemu!("images written in place");
    let dir = TempDir::new();
    let source = dir.file("source.raw", &Pattern::Islands.make(4 << 20));
    let live = dir.join("live.qcow2");
    qcow2("").create(1 << 20, &live).unwrap();
    let refused = Arc::new(Mutex::new(Vec::new()));
    let (path, found) = (live.clone(), refused.clone());
    let other = Arc::new(open_raw(&source));
    let meanwhile = move |_| {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "qcow2", "-c", "length"]).arg(&path).stdin(Stdio::null());
        let message = String::from_utf8(command.output().unwrap().stderr).unwrap();
        in_use(qcow2("").in_place(true).convert(&other, &path), &path, false);
        found.lock().unwrap().push(message.contains("lock"));
    };
    qcow2("").in_place(true).progress(meanwhile).convert(&open_raw(&source), &live).unwrap();
    let refused = refused.lock().unwrap();
    assert!(!refused.is_empty() && refused.iter().all(|refused| *refused), "{refused:?}");
    qemu_img(&[&"check", &"-q", &live]);
}

#[test]
fn an_image_that_is_read_is_not_written_to() {
    needs_qemu!("images being read");
    let dir = TempDir::new();
    let path = dir.join("disk.qcow2");
    qcow2("").create(1 << 20, &path).unwrap();
    let image = Image::open(&path).unwrap();
    let write = || {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "qcow2", "-c", "write 0 512"]).arg(&path).stdin(Stdio::null());
        command.output().unwrap()
    };
    let refused = write();
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("lock"), "{refused:?}");
    // Readers do not exclude each other.
    qemu_img(&[&"check", &"-q", &path]);
    Image::open(&path).unwrap();
    let shared = OpenOptions::new().force_share(true).open(&path).unwrap();
    drop(image);
    qemu_io(&path, &["write 0 512".into()]);
    drop(shared);
}

#[cfg(feature = "cli")]
#[test]
fn the_program_names_the_option_that_reads_an_image_in_use() {
    use crate::cli::{fail, succeed};

    needs_qemu!("the option -U");
    let dir = TempDir::new();
    qcow2("").create(1 << 20, dir.join("live.qcow2")).unwrap();
    raw().create(1 << 20, dir.join("same.raw")).unwrap();
    let _running = Running::start(&dir.join("live.qcow2"), &["-f", "qcow2"]);
    for (exit, line) in [
        (1, "info live.qcow2"),
        (1, "map live.qcow2"),
        (1, "check live.qcow2"),
        (1, "snapshot -l live.qcow2"),
        (2, "compare live.qcow2 same.raw"),
        (1, "convert live.qcow2 new.raw"),
        (1, "create -B live.qcow2 overlay.qcow2"),
    ] {
        let args: Vec<_> = line.split(' ').collect();
        let message = fail(&dir, exit, &args);
        assert!(
            message.contains("live.qcow2: the image is open for writing") && message.contains("-U"),
            "{line}: {message}"
        );
        succeed(&dir, &[&args[..], &["-U"]].concat());
    }
    let message = fail(&dir, 1, &["convert", "-U", "same.raw", "live.qcow2"]);
    assert!(message.contains("live.qcow2: the file is in use as a disk image") && !message.contains("-U"), "{message}");
}
