//! `imgconv install-links`

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use diskimage::Error;

use super::NAME;
use crate::failure::{Failure, Outcome};
use crate::output;

/// Make this program available as qemu-img, by a link
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Replace an existing qemu-img in DIR
    #[arg(long)]
    force: bool,

    /// Directory for the link, such as /usr/local/bin
    directory: PathBuf,
}

const AFTER_HELP: &str = "\
Under the name qemu-img, or as imgconv qemu-img, the program takes the command line of
qemu-img, with its effects: backing files are followed without permission, and existing
targets are written in place. Do not use it so on untrusted images: -f only prevents that
their format is guessed, the files that they name are opened all the same.";

impl Args {
    pub fn run(&self) -> Outcome {
        let program = env::current_exe().map_err(Error::io("finding the program", None))?;
        let link = self.directory.join(if cfg!(windows) { "qemu-img.exe" } else { NAME });
        if fs::symlink_metadata(&link).is_ok() {
            if !self.force {
                return Err(Failure::usage(format!("{}: exists; replace it with --force", link.display())));
            }
            fs::remove_file(&link).map_err(Error::io("removing the old link", None)).map_err(|e| e.in_file(&link))?;
        }
        make_link(&program, &link).map_err(Error::io("making the link", None)).map_err(|e| e.in_file(&link))?;
        output::print(&format!("{} is {}\n", link.display(), program.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(unix)]
fn make_link(program: &std::path::Path, link: &std::path::Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(program, link)
}

/// Links need a privilege on Windows.
#[cfg(not(unix))]
fn make_link(program: &std::path::Path, link: &std::path::Path) -> std::io::Result<()> {
    fs::copy(program, link).map(drop)
}
