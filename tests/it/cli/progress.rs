//! Progress and results for programs.

use std::io::{BufRead, BufReader};
use std::process::Command;

use serde_json::Value;

use super::{endless, fail, imgconv, json, parse};
use crate::support::TempDir;
use crate::support::pattern::Pattern;

#[test]
fn lines_of_json_end_with_the_total() {
    let dir = TempDir::new();
    dir.file("source.raw", &Pattern::Islands.make(5 << 20));
    for option in ["--progress=json", "-p=json"] {
        let done = imgconv(&dir, &["convert", option, "source.raw", "target.qcow2"]);
        assert!(done.status.success() && done.stdout.is_empty());
        let lines: Vec<Value> = String::from_utf8(done.stderr).unwrap().lines().map(parse).collect();
        let numbers: Vec<_> = lines.iter().map(|line| line["done"].as_u64().unwrap()).collect();
        assert!(numbers.is_sorted() && numbers.last() == Some(&(5 << 20)), "{lines:?}");
        assert!(lines.iter().all(|line| line["total"] == 5 << 20 && line["rate"].is_u64()), "{lines:?}");
    }
    // No option takes the next word.
    for option in ["-p", "--progress", "-pc", "--progress=bar"] {
        let done = imgconv(&dir, &["convert", option, "source.raw", "target.qcow2"]);
        assert!(done.status.success() && done.stderr.is_empty(), "{option}");
    }
    assert!(imgconv(&dir, &["convert", "-q", "--progress=json", "source.raw", "target.qcow2"]).stderr.is_empty());
    assert!(fail(&dir, 1, &["convert", "--progress=xml", "source.raw", "target.qcow2"]).contains("'xml'"));
}

#[cfg(unix)]
#[test]
fn a_signal_prints_the_progress() {
    let dir = TempDir::new();
    let mut child = endless(&dir);
    let id = child.id().to_string();
    let kill = |signal: &str| assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    for _ in 0..2 {
        kill("USR1");
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let number = line.strip_prefix("    (").and_then(|rest| rest.strip_suffix("/100%)\n")).map(str::parse::<f64>);
        assert!(matches!(number, Some(Ok(0.0..100.0))), "{line:?}");
    }
    kill("TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn the_report_has_time_and_kinds_of_bytes() {
    let dir = TempDir::new();
    let guest = [Pattern::Dense.make(256 << 10), vec![0; 128 << 10]].concat();
    dir.file("source.raw", &guest);
    for (source, passthrough) in [("source.raw", 0), ("compressed.qcow2", 256 << 10)] {
        let target = if passthrough == 0 { "compressed.qcow2" } else { "again.qcow2" };
        let report = json(&dir, &["convert", "--output", "json", "-c", source, target]);
        assert!(report["seconds"].as_f64().unwrap() >= 0.0, "{report}");
        assert_eq!((&report["data-bytes"], &report["zero-bytes"]), (&(256 << 10).into(), &(128 << 10).into()));
        assert_eq!(report["compressed-bytes"], 256 << 10, "{report}");
        assert_eq!(report["passthrough-bytes"], passthrough, "{report}");
    }
}
