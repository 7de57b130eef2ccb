//! `imgconv man` and `imgconv completions`: text for other programs, made from the definition of the command line.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use diskimage::Error;

use crate::failure::{Failure, Outcome};
use crate::output;

/// Print the manual page, or write the pages of all commands into DIR
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP_MAN)]
pub struct ManArgs {
    /// Directory, which is created if it is missing
    dir: Option<PathBuf>,
}

const AFTER_HELP_MAN: &str = "\
Examples:
  imgconv man | man -l -
  imgconv man /usr/local/share/man/man1";

/// Print the completions of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP_COMPLETIONS)]
pub struct CompletionArgs {
    /// Name of the shell
    shell: Shell,
}

const AFTER_HELP_COMPLETIONS: &str = "\
Examples:
  imgconv completions bash >/usr/share/bash-completion/completions/imgconv
  imgconv completions zsh >/usr/local/share/zsh/site-functions/_imgconv
  imgconv completions fish >~/.config/fish/completions/imgconv.fish";

impl ManArgs {
    /// Prints or writes the pages of `command`, the whole command line.
    pub fn run(&self, command: Command) -> Outcome {
        let mut command = command.disable_help_subcommand(true);
        command.build();
        let Some(dir) = &self.dir else {
            output::print(&page(command)?.1)?;
            return Ok(ExitCode::SUCCESS);
        };
        if let Some(name) = dir.to_str().filter(|name| command.find_subcommand(name).is_some()) {
            let problem = format!("{name} is a command: see imgconv {name} --help, or write to ./{name}");
            return Err(Error::Usage(problem).into());
        }
        fs::create_dir_all(dir).map_err(Error::io("creating the directory", None)).map_err(|e| e.in_file(dir))?;
        let subcommands: Vec<_> = command.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
        for command in subcommands.into_iter().chain([command]) {
            let (name, text) = page(command)?;
            let path = dir.join(name);
            fs::write(&path, text).map_err(Error::io("writing", None)).map_err(|e| e.in_file(&path))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl CompletionArgs {
    /// Prints the completions of `command`, the whole command line.
    pub fn run(&self, mut command: Command) -> Outcome {
        let (name, mut script) = (command.get_name().to_owned(), Vec::new());
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        output::print(&String::from_utf8_lossy(&script))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The file name and the text of the manual page of a command.
fn page(command: Command) -> Result<(String, String), Failure> {
    let notes = command.get_after_help().map(ToString::to_string);
    let has_commands = command.has_subcommands();
    let man = Man::new(command).source(concat!("imgconv ", env!("CARGO_PKG_VERSION"))).manual("User Commands");
    let mut text = Vec::new();
    let mut render = || -> io::Result<()> {
        man.render_title(&mut text)?;
        man.render_name_section(&mut text)?;
        man.render_synopsis_section(&mut text)?;
        man.render_description_section(&mut text)?;
        man.render_options_section(&mut text)?;
        if has_commands {
            man.render_subcommands_section(&mut text)?;
        }
        if let Some(notes) = &notes {
            let mut roff = Roff::new();
            roff.control("SH", ["NOTES"]);
            let mut is_filled = true;
            // A command on two lines is one here.
            for line in notes.replace(" \\\n      ", " ").lines() {
                // The lines of examples and of tables, which are indented, are not filled.
                let fills = line != "Examples:" && !line.starts_with("  ");
                if line == "Examples:" {
                    roff.control("SH", ["EXAMPLES"]);
                }
                if fills != is_filled {
                    roff.control(if fills { "fi" } else { "nf" }, []);
                    is_filled = fills;
                }
                if line != "Examples:" {
                    roff.text([roman(line)]);
                }
            }
            roff.to_writer(&mut text)?;
        }
        Ok(())
    };
    render().map_err(Error::io("writing the manual page", None))?;
    Ok((man.get_filename(), String::from_utf8_lossy(&text).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_notes_and_examples() {
        let command = Command::new("prog")
            .about("Does it")
            .after_help("Keys:\n  a  one\n\nLong text.\n\nExamples:\n  prog \\\n      -x")
            .version("1");
        let (name, text) = page(command).unwrap();
        assert_eq!(name, "prog.1");
        let sections: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(".SH ")).collect();
        assert_eq!(sections, ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "NOTES", "EXAMPLES"]);
        assert!(text.contains("Keys:\n.nf\n  a  one\n.fi\n\nLong text.\n"), "{text}");
        assert!(text.ends_with("EXAMPLES\n.nf\n  prog \\-x\n"), "{text}");
    }
}
