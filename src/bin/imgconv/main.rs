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

use std::process::ExitCode;

fn main() -> ExitCode {
    let command = match args::parse() {
        Ok(command) => command,
        Err(exit) => return exit,
    };
    match command.run() {
        Ok(exit) => exit,
        Err(failure) => failure.report(command.style()),
    }
}
