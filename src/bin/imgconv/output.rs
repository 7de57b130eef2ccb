//! Standard output and standard error: text for people, JSON for programs.

use std::fmt::Write as _;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

use clap::ValueEnum;
use diskimage::{Digest, Error, Result};
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{PrettyFormatter, Serializer};

/// Style of results and errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Style {
    Human,
    Json,
}

/// Buffered standard output. A closed pipe is not an error: the reader of `imgconv map | head` has seen enough.
pub struct Stdout(BufWriter<StdoutLock<'static>>);

impl Stdout {
    pub fn new() -> Self {
        Stdout(BufWriter::new(io::stdout().lock()))
    }

    pub fn write(&mut self, text: &str) -> Result<()> {
        ignore_broken_pipe(self.0.write_all(text.as_bytes()))
    }

    /// Flushes the buffer. Dropping it instead would lose write errors.
    pub fn finish(mut self) -> Result<()> {
        ignore_broken_pipe(self.0.flush())
    }
}

fn ignore_broken_pipe(result: io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::io("writing to standard output", None)(error))
        }
        _ => Ok(()),
    }
}

/// Prints a result.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = Stdout::new();
    stdout.write(text)?;
    stdout.finish()
}

/// Prints a result as JSON.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::io("writing JSON", None)(error.into()))?;
    print(&escape_controls(&format!("{text}\n")))
}

/// Prints a result as JSON with the indentation of qemu-img.
pub fn print_json_indented(value: &impl Serialize) -> Result<()> {
    let mut text = Vec::new();
    let formatter = PrettyFormatter::with_indent(b"    ");
    let written = value.serialize(&mut Serializer::with_formatter(&mut text, formatter));
    written.map_err(|error| Error::io("writing JSON", None)(error.into()))?;
    print(&escape_controls(&format!("{}\n", String::from_utf8_lossy(&text))))
}

/// Digests by the names of their algorithms.
pub fn digests(digests: &[Digest]) -> Value {
    digests.iter().map(|digest| (digest.algorithm().name().to_owned(), Value::from(digest.to_string()))).collect()
}

/// Prints a message to standard error, on one line.
pub fn note(message: &str) {
    let line = format!("imgconv: {}\n", printable(message));
    // A closed standard error cannot be reported anywhere.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Escapes the terminal controls that serde_json leaves as they are: C1 controls, direction marks. JSON has none of these
/// outside of strings, so the whole text can be escaped.
fn escape_controls(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\n' || is_printable(c) {
            safe.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(safe, "\\u{unit:04x}");
            }
        }
    }
    safe
}

/// Returns `text` with everything unprintable escaped, for one line of a terminal.
pub fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_printable(c) {
            safe.push(c);
        } else {
            safe.extend(c.escape_debug());
        }
    }
    safe
}

fn is_printable(c: char) -> bool {
    matches!(c, '\\' | '\'' | '"') || c.escape_debug().len() == 1
}

/// Formats a size as qemu-img does: three digits, in the unit in which it is below 1000.
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = match value {
        ..1.0 if unit > 0 => 3,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    let mut number = format!("{value:.decimals$}");
    if number.contains('.') {
        number.truncate(number.trim_end_matches('0').trim_end_matches('.').len());
    }
    format!("{number} {}", UNITS[unit])
}

/// Formats a size with its exact number of bytes.
pub fn exact_size(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", human_size(bytes))
}

/// On a terminal, moves the values of adjacent lines "key: value" of one indentation to one column. Programs that read the text get
/// one space.
pub fn columns(text: &str) -> String {
    if io::stdout().is_terminal() { in_columns(text) } else { text.to_owned() }
}

fn in_columns(text: &str) -> String {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let entries: Vec<_> = text.lines().map(|line| (indent(line), line.split_once(": ").ok_or(line))).collect();
    let mut lines = String::with_capacity(text.len());
    for group in entries.chunk_by(|(one, a), (other, b)| one == other && a.is_ok() && b.is_ok()) {
        let width = group.iter().flat_map(|(_, entry)| entry).map(|(key, _)| key.chars().count()).max().unwrap_or(0);
        for (_, entry) in group {
            lines += &match entry {
                Ok((key, value)) => format!("{:<1$} {value}\n", format!("{key}:"), width + 1),
                Err(line) => format!("{line}\n"),
            };
        }
    }
    lines
}

/// Formats properties of an image as indented lines, as qemu-img does, with sizes as `size` formats them.
pub fn human_properties(entries: &[(&'static str, diskimage::Value)], depth: usize, size: fn(u64) -> String) -> String {
    entries.iter().map(|(key, value)| human_property(&key.replace('-', " "), value, depth, size)).collect()
}

fn human_property(key: &str, value: &diskimage::Value, depth: usize, size: fn(u64) -> String) -> String {
    let indent = "    ".repeat(depth);
    let line = |value: &dyn std::fmt::Display| format!("{indent}{key}: {value}\n");
    match value {
        diskimage::Value::Bool(value) => line(value),
        diskimage::Value::Number(bytes) if key.ends_with(" size") => line(&size(*bytes)),
        diskimage::Value::Number(value) => line(value),
        diskimage::Value::Text(text) => line(text),
        diskimage::Value::List(values) => {
            let values = values.iter().enumerate();
            let lines = values.map(|(index, value)| human_property(&format!("[{index}]"), value, depth + 1, size));
            format!("{indent}{key}:\n{}", lines.collect::<String>())
        }
        diskimage::Value::Map(entries) => format!("{indent}{key}:\n{}", human_properties(entries, depth + 1, size)),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use diskimage::{Name, Value as Property};

    use super::*;

    /// Expected values: qemu-img 10.
    #[test]
    fn sizes_match_qemu_img() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1024, "1 KiB"),
            (1024000, "0.977 MiB"),
            (1047552, "0.999 MiB"),
            (2297856, "2.19 MiB"),
            (462848, "452 KiB"),
            (10 << 20, "10 MiB"),
            (64 << 40, "64 TiB"),
        ] {
            assert_eq!(human_size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn json_has_no_terminal_controls() {
        let hostile = "é\u{9b}31m\u{202e}\u{7f}\u{e0001}\"\\";
        let json = serde_json::to_string(hostile).unwrap();
        let safe = escape_controls(&json);
        assert_eq!(safe, r#""é\u009b31m\u202e\u007f\udb40\udc01\"\\""#);
        assert_eq!(serde_json::from_str::<String>(&safe).unwrap(), hostile);
    }

    #[test]
    fn printable_text_is_one_line() {
        assert_eq!(printable("a\n\u{1b}[1m 'b' \\n"), "a\\n\\u{1b}[1m 'b' \\n");
    }

    #[test]
    fn values_of_one_indentation_are_in_one_column() {
        let text = "image: a: b\nvirtual size: 1\nlist:\n    x: 1\n    long key: 2\n        [0]:\nend: 3\nümlaut: 4\n";
        assert_eq!(
            in_columns(text),
            "image:        a: b\nvirtual size: 1\nlist:\n    x:        1\n    long key: 2\n        [0]:\nend:    3\nümlaut: 4\n"
        );
    }

    #[test]
    fn properties_nest() {
        let bitmap = Property::Map(vec![("name", Property::Text(Name::from("b0"))), ("granularity", 512.into())]);
        let properties = [("lazy-refcounts", false.into()), ("bitmaps", Property::List(vec![bitmap]))];
        assert_eq!(
            human_properties(&properties, 1, exact_size),
            "    lazy refcounts: false\n    bitmaps:\n        [0]:\n            name: b0\n            granularity: 512\n"
        );
    }
}
