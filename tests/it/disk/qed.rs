//! Images of QED.

use std::sync::Arc;

use diskimage::io::MemFile;
use diskimage::{Converter, Format, OpenOptions};

use super::model::Start;
use super::starts::{SIZE, content, image};
use crate::support::options;

pub fn starts() -> Vec<Start> {
    let content = content(3);
    let file = image(Format::QED, "cluster_size=4k,table_size=2", false, &content);
    let name = "qed".into();
    vec![Start { name, file, backing: None, content, resizes: true, shrinks: false, snapshots: false }, overlay()]
}

fn overlay() -> Start {
    let mut backing = content(7);
    backing.resize(backing.len() + 100_000, 5);
    let base = Arc::new(MemFile::from(backing.clone()));
    let base = OpenOptions::new().format(Format::RAW).open_source(base).unwrap();
    let file = Arc::new(MemFile::new());
    let list = options("cluster_size=4k,table_size=2,backing_fmt=raw");
    Converter::new(Format::QED).options(list).backing(base, "base.raw").create_to(SIZE, file.clone()).unwrap();
    let (file, content, backing) = (file.to_vec(), backing[..SIZE as usize].to_vec(), Some(backing));
    Start { name: "qed overlay".into(), file, backing, content, resizes: true, shrinks: false, snapshots: false }
}
