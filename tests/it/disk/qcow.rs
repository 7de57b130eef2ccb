//! Images of version 1 of qcow.

use std::sync::Arc;

use diskimage::io::MemFile;
use diskimage::{Converter, Format, OpenOptions};

use super::model::Start;
use super::starts::{SIZE, content, image};

pub fn starts() -> Vec<Start> {
    vec![start("", false), start("cluster_size=512", true), overlay()]
}

fn start(list: &str, compress: bool) -> Start {
    let content = content(list.len() as u64 + 2);
    let file = image(Format::QCOW, list, compress, &content);
    let name = format!("qcow {list}{}", if compress { ", compressed" } else { "" });
    Start { name, file, backing: None, content, resizes: false, shrinks: false, snapshots: false }
}

fn overlay() -> Start {
    let mut backing = content(7);
    backing.resize(backing.len() + 100_000, 5);
    let base = Arc::new(MemFile::from(backing.clone()));
    let base = OpenOptions::new().format(Format::RAW).open_source(base).unwrap();
    let file = Arc::new(MemFile::new());
    Converter::new(Format::QCOW).backing(base, "base.raw").create_to(SIZE, file.clone()).unwrap();
    let (file, content, backing) = (file.to_vec(), backing[..SIZE as usize].to_vec(), Some(backing));
    Start { name: "qcow overlay".into(), file, backing, content, resizes: false, shrinks: false, snapshots: false }
}

/// A file that is cut off after its last payload, an entry that points out of it, and a disk that is emptied.
#[test]
fn the_end_of_the_file_is_where_clusters_are_added() {
    let open = |file: &Arc<MemFile>| OpenOptions::new().format(Format::QCOW).open_disk_in(file.clone());
    let content = content(9);
    let file = Arc::new(MemFile::from(image(Format::QCOW, "", false, &content)));
    let before = file.to_vec();
    let disk = open(&file).unwrap();
    disk.write_all_at(&[1; 512], 0).unwrap();
    disk.write_all_at(&[2; 512], SIZE - 512).unwrap();
    let mut expected = content.clone();
    expected[..512].fill(1);
    expected[SIZE as usize - 512..].fill(2);
    let mut found = vec![0; SIZE as usize];
    disk.read_exact_at(&mut found, 0).unwrap();
    assert!(found == expected);
    disk.empty().unwrap();
    disk.read_exact_at(&mut found, 0).unwrap();
    assert!(found.iter().all(|&byte| byte == 0));
    // The header and the L1 table are left.
    assert_eq!(file.to_vec().len(), 48 + 8);
    disk.write_all_at(&[3; 512], 4096).unwrap();
    disk.close().unwrap();
    let disk = OpenOptions::new().open_source(file).unwrap();
    disk.read_exact_at(&mut found, 0).unwrap();
    assert!(found[4096..4608] == [3; 512] && found.iter().filter(|&&byte| byte != 0).count() == 512);

    // The last entry of the only L2 table is beyond the end, where the next cluster would be.
    let mut broken = before;
    let l2 = u64::from_be_bytes(broken[48..56].try_into().unwrap()) as usize;
    let beyond = (broken.len() as u64).next_multiple_of(4096);
    broken[l2 + 149 * 8..][..8].copy_from_slice(&beyond.to_be_bytes());
    let broken = Arc::new(MemFile::from(broken));
    let disk = open(&broken).unwrap();
    let hole = (0..SIZE / 4096).map(|index| index * 4096).find(|at| {
        let at = *at as usize;
        content[at..at + 4096].iter().all(|&byte| byte == 0)
    });
    let error = disk.write_all_at(&[1; 512], hole.unwrap()).unwrap_err();
    assert_eq!(error.kind().as_str(), "out-of-bounds");
}
