//! `--sandbox`: what the program gives up before it reads an image.
//!
//! All names are on the command line, so that the sandbox is closed before the first byte of an image is parsed, and before there is a second
//! thread. Names in images widen it only as far as `--references` does.

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
mod linux;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::failure::Failure;

/// `--sandbox`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// As far as the system can.
    Auto,
    /// Or fail.
    Require,
    Off,
}

/// What a command needs: everything else is given up.
#[derive(Debug, Default)]
pub struct Needs {
    /// Files, and directories with all that is in them.
    read: Vec<PathBuf>,
    /// Files and devices to write to, and directories in which files are created.
    change: Vec<PathBuf>,
    network: bool,
}

impl Needs {
    /// Reads the file at `path`, or what is in that directory.
    pub fn read(&mut self, path: impl Into<PathBuf>) {
        self.read.push(path.into());
    }

    /// Reads what is in the directory of `path`.
    pub fn read_beside(&mut self, path: &Path) {
        self.read(directory_of(path));
    }

    /// Reads any file.
    pub fn read_anything(&mut self) {
        self.read("/");
    }

    /// Creates and writes files in the directory.
    pub fn change_in(&mut self, directory: impl Into<PathBuf>) {
        let directory = directory.into();
        // As an empty TMPDIR.
        self.change.push(if directory.as_os_str().is_empty() { ".".into() } else { directory });
    }

    /// Writes to any file.
    pub fn change_anything(&mut self) {
        self.change_in("/");
    }

    /// Replaces the file at `path`, or what a symbolic link there leads to, by way of its directory; a device is written to as it is.
    pub fn replace(&mut self, path: &Path) {
        /// As in Linux.
        const MAX_LINKS: usize = 40;
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            match fs::read_link(&path) {
                Ok(link) => path = path.with_file_name("").join(link),
                Err(_) => break,
            }
        }
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(metadata) if !metadata.is_file() => return self.change.push(path),
            _ => {}
        }
        self.change_in(directory_of(&path));
        self.change.push(path);
    }

    /// Uses the directory for temporary files: `chosen`, or else that of the system.
    pub fn spool(&mut self, chosen: Option<&Path>) {
        self.change_in(chosen.map_or_else(env::temp_dir, Path::to_owned));
    }

    /// Connects to servers, whose names and certificates are looked up in files.
    pub fn network(&mut self) {
        self.network = true;
        self.read_anything();
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Closes the sandbox for the rest of the process; `needs` returns `None` for a command without one.
///
/// # Errors
/// With [`When::Require`], what the system does not have, or that the command has no sandbox.
pub fn enter(when: When, needs: impl FnOnce() -> Option<Needs>) -> Result<(), Failure> {
    let result = match when {
        When::Off => Ok(()),
        // It is not known what a library needs that was put into the process, or the code that measures the coverage of tests.
        When::Auto if ["LD_PRELOAD", "LLVM_PROFILE_FILE"].iter().any(|name| env::var_os(name).is_some()) => Ok(()),
        When::Auto => {
            // Without it the program is as safe as its parsers are.
            let _ = needs().map(|needs| restrict(&needs, false));
            Ok(())
        }
        When::Require => needs()
            .ok_or("this command has no sandbox: it modifies images, or reads none".into())
            .and_then(|needs| restrict(&needs, true)),
    };
    result.map_err(|problem| Failure::new("unsupported", format!("--sandbox require: {problem}")))
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
fn restrict(needs: &Needs, all: bool) -> Result<(), String> {
    linux::restrict(needs, all)
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))))]
fn restrict(_needs: &Needs, _all: bool) -> Result<(), String> {
    Err("not supported on this system".into())
}
