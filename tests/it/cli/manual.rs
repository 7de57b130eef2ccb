//! Manual pages, completions, and suggestions for mistyped options.

use std::fs;
use std::process::Command;

use super::{fail, succeed};
use crate::support::TempDir;

/// The commands that the help lists.
fn commands(dir: &TempDir) -> Vec<String> {
    let help = succeed(dir, &["--help"]);
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    lines.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = TempDir::new();
    assert!(commands(&dir).len() > 8);
    succeed(&dir, &["man", "pages/man1"]);
    let mut names: Vec<_> = commands(&dir).iter().map(|command| format!("imgconv-{command}.1")).collect();
    names.push("imgconv.1".into());
    let pages = dir.join("pages/man1");
    for name in &names {
        let text = fs::read_to_string(pages.join(name)).unwrap();
        assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{name}");
    }
    assert_eq!(fs::read_dir(&pages).unwrap().count(), names.len());
    let convert = fs::read_to_string(pages.join("imgconv-convert.1")).unwrap();
    assert!(convert.contains("\\-\\-rate\\-limit") && convert.contains("SOURCE_DATE_EPOCH"), "{convert}");
    assert_eq!(succeed(&dir, &["man"]), fs::read_to_string(pages.join("imgconv.1")).unwrap());
}

/// The command line of qemu-img has its own help.
#[test]
fn help_knows_qemu_img() {
    let dir = TempDir::new();
    for (asked, same) in [
        (&["help", "qemu-img"][..], &["qemu-img", "--help"][..]),
        (&["help", "qemu-img", "convert"], &["qemu-img", "convert", "--help"]),
    ] {
        let help = succeed(&dir, asked);
        assert!(help.contains("Usage: qemu-img"), "{help}");
        assert_eq!(help, succeed(&dir, same));
    }
}

#[test]
fn completions_know_commands_and_options() {
    let dir = TempDir::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = succeed(&dir, &["completions", shell]);
        assert!(script.contains("convert") && script.contains("rate-limit"), "{shell}");
        dir.file(shell, script.as_bytes());
    }
    let checked = Command::new("bash").arg("-n").arg(dir.join("bash")).status();
    assert!(checked.is_ok_and(|status| status.success()));
    assert!(fail(&dir, 1, &["completions", "tcsh"]).contains("'tcsh'"));
}

#[test]
fn mistyped_words_get_suggestions() {
    let dir = TempDir::new();
    for (args, suggestion) in [
        (&["convrt"][..], "'convert'"),
        (&["convert", "--rate-limt", "1M", "a", "b"], "'--rate-limit'"),
        (&["convert", "--compres", "a", "b"], "'--compress'"),
        (&["convert", "--for", "azur", "a", "b"], "'azure'"),
        (&["completions", "bsh"], "'bash'"),
    ] {
        let message = fail(&dir, 1, args);
        assert!(message.contains("similar") && message.contains(suggestion), "{message}");
    }
}
