//! Other people's programs, to compare with.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Finds a program by one of its names; without it, says that `test` is skipped, or fails if it must not be.
#[track_caller]
pub fn find(test: &str, names: &[&str]) -> Option<String> {
    let there =
        |name: &&&str| Command::new(name).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    let found = names.iter().find(there).map(|name| (*name).to_owned());
    if found.is_none() {
        let line = format!("SKIPPED: {test}: {} not found", names[0]);
        assert!(std::env::var("DISKIMAGE_INTEROP").as_deref() != Ok("required"), "{line}");
        // Straight to the terminal: the test harness swallows what `eprintln` writes.
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    found
}

/// Leaves the test when `qemu-img` or `qemu-io` is missing.
macro_rules! needs_qemu {
    ($test:expr) => {
        if $crate::support::tools::find($test, &["qemu-img"]).is_none()
            || $crate::support::tools::find($test, &["qemu-io"]).is_none()
        {
            return;
        }
    };
}
pub(crate) use needs_qemu;

pub fn output(program: &str, args: &[impl AsRef<OsStr>]) -> Output {
    Command::new(program).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs a program that has to succeed, and returns what it printed.
#[track_caller]
pub fn run(program: &str, args: &[impl AsRef<OsStr>]) -> Vec<u8> {
    let done = output(program, args);
    let said = [&done.stdout[..done.stdout.len().min(4000)], &done.stderr].concat();
    let args: Vec<_> = args.iter().map(AsRef::as_ref).collect();
    assert!(done.status.success(), "{program} {args:?}: {}\n{}", done.status, String::from_utf8_lossy(&said));
    done.stdout
}

#[track_caller]
pub fn qemu_img(args: &[&dyn AsRef<OsStr>]) -> Vec<u8> {
    run("qemu-img", &args.iter().map(|arg| arg.as_ref().to_owned()).collect::<Vec<_>>())
}

/// Runs `qemu-io` commands on a qcow2 image.
#[track_caller]
pub fn qemu_io(image: &Path, commands: &[String]) {
    qemu_io_as("qcow2", image, commands);
}

/// Runs `qemu-io` commands on an image of any format.
#[track_caller]
pub fn qemu_io_as(format: &str, image: &Path, commands: &[String]) {
    let mut args: Vec<&OsStr> = vec!["-f".as_ref(), format.as_ref()];
    for command in commands {
        args.extend([OsStr::new("-c"), OsStr::new(command)]);
    }
    args.push(image.as_ref());
    let printed = String::from_utf8(run("qemu-io", &args)).unwrap();
    assert!(!printed.contains("failed"), "{printed}");
}

/// The guest bytes, as `qemu-img` reads them.
#[track_caller]
pub fn read_with_qemu(image: &Path, arguments: &[&str]) -> Vec<u8> {
    let out = image.with_extension("by-qemu");
    let mut args: Vec<&dyn AsRef<OsStr>> = vec![&"convert", &"-O", &"raw"];
    args.extend(arguments.iter().map(|arg| arg as &dyn AsRef<OsStr>));
    args.extend([&image as &dyn AsRef<OsStr>, &out]);
    qemu_img(&args);
    let bytes = std::fs::read(&out).unwrap();
    std::fs::remove_file(out).unwrap();
    bytes
}

/// `qemu-img check` finds no error and no leak. (It exits with 0 only then.)
#[track_caller]
pub fn check_with_qemu(image: &Path) {
    check_with_qemu_as("qcow2", image);
}

/// The same for an image of any format.
#[track_caller]
pub fn check_with_qemu_as(format: &str, image: &Path) {
    qemu_img(&[&"check", &"-q", &"-f", &format, &image]);
}
