//! Standard output: text for people, JSON for programs.

use std::fmt::Write as _;
use std::io::{self, BufWriter, StdoutLock, Write};

use clap::ValueEnum;
use diskimage::Error;
use serde_json::{Map, Value};

use crate::failure::Failure;

/// For whom the results are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Style {
    Human,
    Json,
}

/// Standard output. That its reader has gone away is no failure: who runs `imgconv map | head` has all they want.
pub struct Stdout(BufWriter<StdoutLock<'static>>);

impl Stdout {
    pub fn new() -> Self {
        Stdout(BufWriter::new(io::stdout().lock()))
    }

    pub fn write(&mut self, text: &str) -> Result<(), Failure> {
        forgiving(self.0.write_all(text.as_bytes()))
    }

    /// Must be called last: what a drop cannot write is lost without a word.
    pub fn finish(mut self) -> Result<(), Failure> {
        forgiving(self.0.flush())
    }
}

fn forgiving(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::io("writing to standard output", None)(error).into())
        }
        _ => Ok(()),
    }
}

/// Prints a whole result.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = Stdout::new();
    stdout.write(text)?;
    stdout.finish()
}

/// Prints a whole result as JSON.
pub fn print_json(value: &Value) -> Result<(), Failure> {
    print(&escape_controls(&format!("{value:#}\n")))
}

/// Escapes what serde_json leaves as it is but a terminal may obey: C1 controls, direction marks. Outside of strings JSON has
/// none of these, so that the text as a whole can be treated.
fn escape_controls(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\n' || is_printable(c) {
            safe.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                let _ = write!(safe, "\\u{unit:04x}");
            }
        }
    }
    safe
}

/// `text` for one line of a terminal: what is not printable is escaped.
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

/// A size as qemu-img shows it: three digits of the unit in which it is below 1000.
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

/// A property of an image as JSON.
pub fn to_json(value: &diskimage::Value) -> Value {
    match value {
        diskimage::Value::Bool(value) => Value::from(*value),
        diskimage::Value::Number(value) => Value::from(*value),
        diskimage::Value::Text(text) => Value::from(text.to_text()),
        diskimage::Value::List(values) => values.iter().map(to_json).collect(),
        diskimage::Value::Map(entries) => Value::Object(to_json_object(entries)),
        _ => Value::Null,
    }
}

/// Properties of an image as a JSON object.
pub fn to_json_object(entries: &[(&'static str, diskimage::Value)]) -> Map<String, Value> {
    entries.iter().map(|(key, value)| ((*key).to_owned(), to_json(value))).collect()
}

/// Properties of an image as indented lines, with the words that qemu-img uses.
pub fn human_properties(entries: &[(&'static str, diskimage::Value)], depth: usize) -> String {
    entries.iter().map(|(key, value)| human_property(&key.replace('-', " "), value, depth)).collect()
}

fn human_property(key: &str, value: &diskimage::Value, depth: usize) -> String {
    let indent = "    ".repeat(depth);
    let line = |value: &dyn std::fmt::Display| format!("{indent}{key}: {value}\n");
    match value {
        diskimage::Value::Bool(value) => line(value),
        diskimage::Value::Number(value) => line(value),
        diskimage::Value::Text(text) => line(text),
        diskimage::Value::List(values) => {
            let values = values.iter().enumerate();
            let lines = values.map(|(index, value)| human_property(&format!("[{index}]"), value, depth + 1));
            format!("{indent}{key}:\n{}", lines.collect::<String>())
        }
        diskimage::Value::Map(entries) => format!("{indent}{key}:\n{}", human_properties(entries, depth + 1)),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use diskimage::{Name, Value as Property};

    use super::*;

    /// The expected texts are those of qemu-img 10.
    #[test]
    fn sizes_look_as_in_qemu_img() {
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
    fn json_never_holds_what_a_terminal_obeys() {
        let hostile = "é\u{9b}31m\u{202e}\u{7f}\u{e0001}\"\\";
        let json = serde_json::to_string(hostile).unwrap();
        let safe = escape_controls(&json);
        assert_eq!(safe, r#""é\u009b31m\u202e\u007f\udb40\udc01\"\\""#);
        assert_eq!(serde_json::from_str::<String>(&safe).unwrap(), hostile);
    }

    #[test]
    fn a_line_is_one_line() {
        assert_eq!(printable("a\n\u{1b}[1m 'b' \\n"), "a\\n\\u{1b}[1m 'b' \\n");
    }

    #[test]
    fn properties_nest() {
        let bitmap = Property::Map(vec![("name", Property::Text(Name::from("b0"))), ("granularity", 512.into())]);
        let properties = [("lazy-refcounts", false.into()), ("bitmaps", Property::List(vec![bitmap]))];
        assert_eq!(
            human_properties(&properties, 1),
            "    lazy refcounts: false\n    bitmaps:\n        [0]:\n            name: b0\n            granularity: 512\n"
        );
        assert_eq!(
            Value::Object(to_json_object(&properties)),
            serde_json::json!({ "lazy-refcounts": false, "bitmaps": [{ "name": "b0", "granularity": 512 }] })
        );
    }
}
