//! `imgconv`, the program: converts virtual disk images and looks into them.
//!
//! Each subcommand is a file with its arguments, its help and its work. Results go to standard output, everything else to
//! standard error. Exit codes are qemu-img's where it has one for the case.

#![forbid(unsafe_code)]

mod args;
mod check;
mod compare;
mod convert;
mod create;
mod failure;
mod formats;
mod info;
mod map;
mod output;
mod progress;
mod signals;
mod snapshot;
mod streams;

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(unix)]
    allow_many_files();
    let command = match args::parse() {
        Ok(command) => command,
        Err(exit) => return exit,
    };
    match command.run() {
        Ok(exit) => exit,
        Err(failure) => failure.report(command.style()),
    }
}

/// A disk of 2 TiB in extents of 2 GiB has a thousand files, which is where the system usually sets the limit; but every
/// process may raise it. Where that fails, opening the file that is too many will say so.
#[cfg(unix)]
fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
