//! Other programs to compare with.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

/// Finds a program by one of its names; without it, says that `test` is skipped, or fails if it must not be.
#[track_caller]
pub fn find(test: &str, names: &[&str]) -> Option<String> {
    let there =
        |name: &&&str| Command::new(name).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    let found = names.iter().find(there).map(|name| (*name).to_owned());
    if found.is_none() {
        skip(test, names[0]);
    }
    found
}

/// Says that `test` is skipped because something is missing, or fails if it must not be.
#[track_caller]
pub fn skip(test: &str, missing: &str) {
    let line = format!("SKIPPED: {test}: {missing} not found");
    assert!(std::env::var("DISKIMAGE_INTEROP").as_deref() != Ok("required"), "{line}");
    // Straight to the terminal: the test harness swallows what `eprintln` writes.
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Libraries with a binding for Python, as `interop/readers.py` names them.
pub struct Reader(&'static str);

pub const LIBYAL: Reader = Reader("libyal");
pub const DISSECT: Reader = Reader("dissect");
pub const DISSECT_FVE: Reader = Reader("dissect-fve");
pub const LIBLUKSDE: Reader = Reader("libluksde");
pub const LIBMODI: Reader = Reader("libmodi");

impl Reader {
    /// Whether it is there; without it, says that `test` is skipped, or fails if it must not be.
    #[track_caller]
    pub fn is_there(&self, test: &str) -> bool {
        let found = self.command::<&str>(&[]).output().is_ok_and(|done| done.status.success());
        if !found {
            skip(test, &format!("{} for Python", self.0));
        }
        found
    }

    /// The sizes of disks.
    #[track_caller]
    pub fn sizes(&self, format: &str, images: &[PathBuf]) -> Vec<u64> {
        self.lines("sizes", format, images).iter().map(|line| line.parse().unwrap()).collect()
    }

    /// It reads these bytes from each image.
    #[track_caller]
    pub fn assert_reads(&self, format: &str, images: &[(PathBuf, Vec<u8>)]) {
        let (paths, guests): (Vec<_>, Vec<_>) = images.iter().cloned().unzip();
        let lines = self.lines("disks", format, &paths);
        assert_eq!(lines.len(), images.len());
        for ((line, guest), path) in lines.iter().zip(guests).zip(paths) {
            assert_eq!(*line, size_and_digest(&guest), "{} reads {}", self.0, path.display());
        }
    }

    /// Asserts that the tool reads these bytes from an image with its parents.
    #[track_caller]
    pub fn assert_reads_chain(&self, format: &str, chain: &[PathBuf], guest: &[u8]) {
        assert_eq!(self.lines("chain", format, chain), [size_and_digest(guest)], "{} reads {chain:?}", self.0);
    }

    fn lines(&self, command: &str, format: &str, images: &[PathBuf]) -> Vec<String> {
        let args = [command, format].map(PathBuf::from);
        let done = self.command(&[&args, images].concat()).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{} {command} {images:?}: {}\n{said}", self.0, done.status);
        String::from_utf8(done.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    fn command<A: AsRef<OsStr>>(&self, args: &[A]) -> Command {
        let python = std::env::var_os("DISKIMAGE_PYTHON").unwrap_or_else(|| "python3".into());
        let mut command = Command::new(python);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/interop/readers.py")).arg(self.0).args(args);
        command.stdin(Stdio::null());
        command
    }
}

/// As the script prints them.
fn size_and_digest(guest: &[u8]) -> String {
    use sha2::Digest;
    let digest: String = sha2::Sha256::digest(guest).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} {digest}", guest.len())
}

/// The guest bytes, as 7-Zip reads them.
#[track_caller]
pub fn read_with_7zip(program: &str, format: &str, image: &Path) -> Vec<u8> {
    run(program, &["x", "-so", &format!("-t{format}"), image.to_str().unwrap()])
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

/// Unmounts a file system. A program for FUSE, or a process that another test is starting, can have its files for a moment.
pub fn unmount(directory: &Path) {
    let is_done = (0..100).any(|_| {
        let is_done = Command::new("umount").arg(directory).output().is_ok_and(|done| done.status.success());
        if !is_done {
            thread::sleep(Duration::from_millis(100));
        }
        is_done
    });
    assert!(is_done, "{}", directory.display());
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
