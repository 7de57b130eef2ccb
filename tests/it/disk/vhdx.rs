//! Images of VHDX.

use std::sync::Arc;

use diskimage::io::MemFile;
use diskimage::{Converter, Format, OpenOptions};

use super::model::Start;
use super::starts::{SIZE, content, image};
use crate::support::options;

pub fn starts() -> Vec<Start> {
    let start = |list: &str| {
        let content = content(list.len() as u64);
        let file = image(Format::VHDX, list, false, &content);
        let name = format!("vhdx {list}");
        Start { name, file, backing: None, content, resizes: true, shrinks: false, snapshots: false }
    };
    vec![start("block_size=1M,log_size=1M"), differencing(false), differencing(true)]
}

/// A differencing disk, whose block is partially present or not at all.
fn differencing(partially: bool) -> Start {
    let mut content = content(7);
    let backing = image(Format::VHDX, "block_size=1M", false, &content);
    let base = || OpenOptions::new().open_source(Arc::new(MemFile::from(backing.clone()))).unwrap();
    let file = Arc::new(MemFile::new());
    let converter = Converter::new(Format::VHDX).options(options("block_size=1M")).backing(base(), "base.vhdx");
    if partially {
        content[5000..70_000].fill(9);
        let source = Arc::new(MemFile::from(content.clone()));
        let source = OpenOptions::new().format(Format::RAW).open_source(source).unwrap();
        converter.convert_to(&source, file.clone()).unwrap();
    } else {
        converter.create_to(SIZE, file.clone()).unwrap();
    }
    let name = format!("vhdx, differencing{}", if partially { ", partially present" } else { "" });
    let (file, backing) = (file.to_vec(), Some(backing));
    Start { name, file, backing, content, resizes: true, shrinks: false, snapshots: false }
}
