//! Images of VMDK.

use std::sync::Arc;

use diskimage::io::MemFile;
use diskimage::{Converter, Format, OpenOptions};

use super::model::Start;
use super::starts::{SIZE, content, image};
use crate::support::options;

pub fn starts() -> Vec<Start> {
    let content = content(3);
    let file = image(Format::VMDK, "", false, &content);
    let plain =
        Start { name: "vmdk".into(), file, backing: None, content, resizes: true, shrinks: false, snapshots: false };
    let mut no_tables = plain.clone();
    no_tables.name = "vmdk without grain tables".into();
    no_tables.content.fill(0);
    no_tables.file = image(Format::VMDK, "", false, &no_tables.content);
    // The entries of both directories.
    for at in [48, 56] {
        let sector = u64::from_le_bytes(no_tables.file[at..at + 8].try_into().unwrap()) as usize;
        no_tables.file[sector * 512..sector * 512 + 4].fill(0);
    }
    vec![plain, no_tables, child(""), child("zeroed_grain=on")]
}

fn child(list: &str) -> Start {
    let mut content = content(7);
    let backing = image(Format::VMDK, "", false, &content);
    let base = OpenOptions::new().open_source(Arc::new(MemFile::from(backing.clone()))).unwrap();
    let file = Arc::new(MemFile::new());
    Converter::new(Format::VMDK)
        .options(options(list))
        .backing(base, "base.vmdk")
        .create_to(SIZE, file.clone())
        .unwrap();
    let (name, backing, file) = (format!("vmdk {list}, with a parent"), Some(backing), file.to_vec());
    content.truncate(SIZE as usize);
    Start { name, file, backing, content, resizes: true, shrinks: false, snapshots: false }
}
