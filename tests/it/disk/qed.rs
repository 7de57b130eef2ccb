//! Images of QED.

use std::sync::Arc;

use diskimage::io::{MemFile, Storage};
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

/// Otherwise each program that opens an image would check it first, or none would after a power cut.
#[test]
fn an_image_needs_a_check_from_the_first_change_until_it_is_closed() {
    const FEATURES: usize = 16;
    const NEED_CHECK: u8 = 2;
    let file = Arc::new(MemFile::new());
    let list = options("cluster_size=4k,table_size=2");
    Converter::new(Format::QED).options(list).create_to(SIZE, file.clone()).unwrap();
    let needs_check = || file.to_vec()[FEATURES] & NEED_CHECK != 0;
    for cluster in 0..3 {
        let disk = OpenOptions::new().open_disk_in(file.clone() as Arc<dyn Storage>).unwrap();
        disk.read_exact_at(&mut [0; 512], 0).unwrap();
        assert!(!needs_check(), "{cluster}");
        for part in 0..2 {
            disk.write_all_at(&[1; 4096], (2 * cluster + part) * 4096).unwrap();
            assert!(needs_check(), "{cluster}");
            disk.flush().unwrap();
            assert!(needs_check(), "{cluster}");
        }
        disk.close().unwrap();
        assert!(!needs_check(), "{cluster}");
    }
}
