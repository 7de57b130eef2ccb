//! Partition tables that `sfdisk` makes.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::TempDir;
use crate::support::tools::find;
use diskimage::{OpenOptions, Value};

/// Number, start and length in bytes, type and label of a partition.
type Row = (u64, u64, u64, String, String);

fn listed_here(disk: &Path) -> Vec<Row> {
    let info = OpenOptions::new().inspect(disk).unwrap().info;
    let list = info.specific.iter().find(|(key, _)| *key == "partitions");
    let Some((_, Value::List(partitions))) = list else { panic!("{:?}", info.specific) };
    let row = |partition: &Value| {
        let Value::Map(map) = partition else { panic!("{partition:?}") };
        let value = |name: &str| map.iter().find(|(key, _)| *key == name).map(|(_, value)| value);
        let number = |name: &str| match value(name) {
            Some(Value::Number(number)) => *number,
            other => panic!("{name} is {other:?}"),
        };
        let text = |name: &str| match value(name) {
            Some(Value::Text(text)) => text.to_text().into_owned(),
            _ => String::new(),
        };
        // "Linux (0x83)", or "0x83".
        let kind = text("type");
        let kind = kind.rsplit(['(', ' ']).next().unwrap().trim_end_matches(')').to_owned();
        (number("number"), number("start"), number("length"), kind, text("label"))
    };
    partitions.iter().map(row).collect()
}

fn listed_by_sfdisk(disk: &Path) -> Vec<Row> {
    let done = Command::new("sfdisk").arg("--json").arg(disk).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    let table = &json["partitiontable"];
    let sector = table["sectorsize"].as_u64().unwrap();
    let row = |partition: &serde_json::Value| {
        let node = partition["node"].as_str().unwrap();
        let number = node.strip_prefix(disk.to_str().unwrap()).unwrap().trim_start_matches('p').parse().unwrap();
        let bytes = |key: &str| partition[key].as_u64().unwrap() * sector;
        let kind = partition["type"].as_str().unwrap();
        let kind = match u8::from_str_radix(kind, 16) {
            Ok(kind) => format!("{kind:#04x}"),
            Err(_) => kind.to_lowercase(),
        };
        (number, bytes("start"), bytes("size"), kind, partition["name"].as_str().unwrap_or_default().to_owned())
    };
    table["partitions"].as_array().unwrap().iter().map(row).collect()
}

#[test]
fn info_lists_partitions_as_sfdisk_does() {
    if find("partition tables", &["sfdisk"]).is_none() {
        return;
    }
    let dir = TempDir::new();
    let disk = dir.join("disk.raw");
    for (script, count) in [
        ("label: gpt\nsize=10M,type=U,name=\"boot ä\"\nsize=20M,type=L\nsize=5M,type=S\n", 3),
        ("label: gpt\nfirst-lba: 64\nstart=64,size=100\n", 1),
        ("label: dos\nsize=10M,type=c,bootable\nsize=20M,type=83\n", 2),
        (
            "label: dos\nsize=10M,type=c\nsize=60M,type=5\nstart=24576,size=20M,type=83\nsize=5M,type=82\nsize=4M,type=8e\n",
            5,
        ),
        ("label: dos\n4: start=63,size=1000,type=f\nsize=100,type=83\n", 2),
    ] {
        std::fs::File::create(&disk).unwrap().set_len(100 << 20).unwrap();
        let mut sfdisk = Command::new("sfdisk").arg("-q").arg(&disk).stdin(Stdio::piped()).spawn().unwrap();
        sfdisk.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(sfdisk.wait().unwrap().success(), "{script}");
        let rows = listed_here(&disk);
        assert_eq!(rows, listed_by_sfdisk(&disk), "{script}");
        assert_eq!(rows.len(), count, "{script}");
    }
}
