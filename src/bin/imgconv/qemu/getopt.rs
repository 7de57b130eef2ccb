//! Parsing of options as getopt_long(3) does it: options and operands in any order, short options in one word, long ones
//! abbreviated as long as they are unambiguous.

use std::ffi::{OsStr, OsString};

use super::message::{Failed, NAME};
use super::table::{Command, Note, Row};

/// The words of a command, by the long names of its options.
#[derive(Debug, Default)]
pub struct Parsed {
    options: Vec<(&'static str, OsString)>,
    pub operands: Vec<OsString>,
    pub command: &'static str,
}

impl Parsed {
    pub fn flag(&self, name: &str) -> bool {
        self.options.iter().any(|(other, _)| *other == name)
    }

    /// The options in the order of the command line.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.options.iter().map(|(name, _)| *name)
    }

    /// The value of an option, which replaces those before it.
    pub fn last(&self, name: &str) -> Option<&OsStr> {
        self.options.iter().rev().find(|(other, _)| *other == name).map(|(_, value)| value.as_os_str())
    }

    /// As [`last`](Self::last), as text.
    pub fn text(&self, name: &str) -> Option<String> {
        self.last(name).map(|value| value.to_string_lossy().into_owned())
    }

    /// The values of an option that is given several times.
    pub fn all(&self, name: &str) -> impl Iterator<Item = String> {
        self.options
            .iter()
            .filter(move |(other, _)| *other == name)
            .map(|(_, value)| value.to_string_lossy().into_owned())
    }
}

pub fn parse(command: &'static Command, words: &[OsString]) -> Result<Parsed, Failed> {
    let mut parsed = Parsed { command: command.name, ..Parsed::default() };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        if text == "--" {
            parsed.operands.extend(words.cloned());
            break;
        } else if let Some(long) = text.strip_prefix("--") {
            let (name, value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(OsString::from(value))),
                None => (long, None),
            };
            let row = long_option(command, name)?;
            let value = match (row.value.is_empty(), value) {
                (true, Some(_)) => {
                    return Err(usage(command, format!("option '--{}' doesn't allow an argument", row.long)));
                }
                (true, None) => OsString::new(),
                (false, Some(value)) => value,
                (false, None) => words
                    .next()
                    .cloned()
                    .ok_or_else(|| usage(command, format!("option '--{}' requires an argument", row.long)))?,
            };
            parsed.add(row, value)?;
        } else if text.len() > 1 && text.starts_with('-') {
            short_options(command, word, &mut words, &mut parsed)?;
        } else {
            parsed.operands.push(word.clone());
        }
    }
    Ok(parsed)
}

/// The options of a word such as `-pqf` and, from the rest of it or from the next word, their value.
fn short_options<'a>(
    command: &'static Command,
    word: &OsStr,
    words: &mut impl Iterator<Item = &'a OsString>,
    parsed: &mut Parsed,
) -> Result<(), Failed> {
    let text = word.to_string_lossy();
    let mut rest = text.chars();
    rest.next();
    while let Some(letter) = rest.next() {
        let row = command.rows().find(|row| row.short == Some(letter));
        let row = row.ok_or_else(|| usage(command, format!("invalid option -- '{letter}'")))?;
        if row.value.is_empty() {
            parsed.add(row, OsString::new())?;
            continue;
        }
        let value = match rest.as_str() {
            "" => words.next().cloned(),
            after => Some(OsString::from(after)),
        };
        let value = value.ok_or_else(|| usage(command, format!("option requires an argument -- '{letter}'")))?;
        return parsed.add(row, value);
    }
    Ok(())
}

fn long_option(command: &'static Command, name: &str) -> Result<&'static Row, Failed> {
    if let Some(exact) = command.rows().find(|row| row.long == name) {
        return Ok(exact);
    }
    let mut matching = command.rows().filter(|row| row.long.starts_with(name));
    match (matching.next(), matching.next()) {
        (Some(row), None) => Ok(row),
        (None, _) => {
            Err(unknown_option(&format!("{NAME} {}", command.name), &format!("--{name}")).see_help(command.name))
        }
        (Some(_), Some(_)) => {
            let all: Vec<_> = command
                .rows()
                .filter(|row| row.long.starts_with(name))
                .map(|row| format!("'--{}'", row.long))
                .collect();
            Err(usage(command, format!("option '--{name}' is ambiguous; possibilities: {}", all.join(" "))))
        }
    }
}

impl Parsed {
    fn add(&mut self, row: &'static Row, value: OsString) -> Result<(), Failed> {
        if let Note::Refused(why) = row.note {
            return Err(Failed::new(format!("option --{} is not supported by imgconv: {why}", row.long)));
        }
        self.options.push((row.long, value));
        Ok(())
    }
}

pub fn unknown_option(program: &str, option: &str) -> Failed {
    Failed::by(program, format!("unrecognized option '{option}'"))
}

fn usage(command: &Command, problem: String) -> Failed {
    Failed::by(&format!("{NAME} {}", command.name), problem).see_help(command.name)
}

#[cfg(test)]
mod tests {
    use super::super::table::COMMANDS;
    use super::*;

    fn words(line: &str) -> Result<Parsed, String> {
        let convert = COMMANDS.iter().find(|command| command.name == "convert").unwrap();
        let words: Vec<_> = line.split(' ').map(OsString::from).collect();
        parse(convert, &words).map_err(|failed| failed.to_string())
    }

    #[test]
    fn options_and_operands_in_any_order() {
        let parsed = words("a -pO qcow2 --target-cache=none b -oa=1 -o b=2 --sparse 4k -- -c").unwrap();
        assert!(parsed.flag("progress") && !parsed.flag("compress"));
        assert_eq!(parsed.text("target-format").as_deref(), Some("qcow2"));
        assert_eq!(parsed.text("target-cache").as_deref(), Some("none"));
        assert_eq!(parsed.text("sparse-size").as_deref(), Some("4k"));
        assert_eq!(parsed.all("target-options").collect::<Vec<_>>(), ["a=1", "b=2"]);
        assert_eq!(parsed.operands, ["a", "b", "-c"]);
    }

    /// Expected: qemu-img 10.
    #[test]
    fn errors() {
        for (line, error) in [
            ("--foo", "qemu-img convert: unrecognized option '--foo'"),
            ("-z", "qemu-img convert: invalid option -- 'z'"),
            ("-f", "qemu-img convert: option requires an argument -- 'f'"),
            ("--source-format", "qemu-img convert: option '--source-format' requires an argument"),
            ("--quiet=1", "qemu-img convert: option '--quiet' doesn't allow an argument"),
        ] {
            let found = words(line).unwrap_err();
            assert_eq!(found, format!("{error}\nTry 'qemu-img convert --help' for more info"));
        }
        assert!(words("--target").unwrap_err().contains("is ambiguous; possibilities: "));
    }
}
