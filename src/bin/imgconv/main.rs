//! The program `imgconv`: converts, creates and inspects virtual disk images.
//!
//! Each subcommand is one file: arguments, help and implementation. [`cli`] is above them, [`args`], [`failure`] and [`output`]
//! below. Results go to standard output, messages to standard error. Exit codes are those of qemu-img where it defines one.

#![deny(unsafe_code)]

mod allocator;
mod amend;
mod args;
mod bitmap;
mod check;
mod cli;
mod commit;
mod compare;
mod convert;
mod create;
mod failure;
mod formats;
mod guest;
mod hash;
mod info;
mod inspect;
mod limits;
mod location;
mod manual;
mod map;
mod measure;
mod node;
mod output;
mod progress;
mod qemu;
mod rebase;
mod resize;
mod sandbox;
mod secrets;
mod serve;
mod signals;
mod snapshot;
mod snapshot_selector;
mod streams;

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    allocator::return_large_buffers();
    #[cfg(unix)]
    allow_many_files();
    let words: Vec<_> = env::args_os().collect();
    match words.as_slice() {
        [program, rest @ ..] if qemu::is_meant_by(program) => return qemu::run(rest),
        [_, command, rest @ ..] if qemu::is_meant_by(command) => return qemu::run(rest),
        [_, help, command, rest @ ..] if help == "help" && qemu::is_meant_by(command) => {
            return qemu::run(&[rest, &["--help".into()]].concat());
        }
        _ => {}
    }
    let cli = match cli::parse(&words) {
        Ok(cli) => cli,
        Err(exit) => return exit,
    };
    match cli.run() {
        Ok(exit) => exit,
        Err(failure) => failure.report(cli.style()),
    }
}

/// Raises the limit of open files to the hard limit. A disk of 2 TiB in extents of 2 GiB has a thousand files, a common soft
/// limit. A failure is ignored here: opening one file too many reports it.
#[cfg(unix)]
fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
