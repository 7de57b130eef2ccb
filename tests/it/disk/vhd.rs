//! Images of VHD.

use std::sync::Arc;

use diskimage::io::MemFile;
use diskimage::{Converter, Format, OpenOptions};

use super::model::Start;
use super::starts::{SIZE, content, image};
use crate::support::options;

const BLOCK: usize = 16384;

pub fn starts() -> Vec<Start> {
    let start = |list: &str| {
        let content = content(list.len() as u64);
        let file = image(Format::VHD, list, false, &content);
        let (name, shrinks) = (format!("vhd {list}"), list.contains("fixed"));
        Start { name, file, backing: None, content, resizes: true, shrinks, snapshots: false }
    };
    vec![start("subformat=fixed"), start("block_size=512k"), packed(0xff), packed(0x5a), differencing()]
}

/// An image with small blocks one after the other, as qemu makes them. The sectors whose bits are clear in the bytes of the bitmaps are zeros.
fn packed(bitmap: u8) -> Start {
    let mut content = content(9);
    let mut file = image(Format::VHD, "block_size=512k", false, &content);
    let footer = file[..512].to_vec();
    // The table of both is one sector.
    file.truncate(2048);
    file[1536..2048].fill(0xff);
    set_block_size(&mut file);
    for (index, block) in content.chunks_mut(BLOCK).enumerate().collect::<Vec<_>>().into_iter().rev() {
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        let sector = (file.len() / 512) as u32;
        file[1536 + index * 4..1540 + index * 4].copy_from_slice(&sector.to_be_bytes());
        file.extend([bitmap; 512]);
        file.extend(&*block);
        for (sector, bytes) in block.chunks_mut(512).enumerate() {
            if bitmap << (sector % 8) & 0x80 == 0 {
                bytes.fill(0);
            }
        }
    }
    file.extend(footer);
    let name = format!("vhd, packed, bitmaps of {bitmap:#x}");
    Start { name, file, backing: None, content, resizes: true, shrinks: false, snapshots: false }
}

fn differencing() -> Start {
    let content = content(7);
    let backing = image(Format::VHD, "block_size=512k", false, &content);
    let base = OpenOptions::new().open_source(Arc::new(MemFile::from(backing.clone()))).unwrap();
    let file = Arc::new(MemFile::new());
    let converter = Converter::new(Format::VHD).options(options("block_size=512k")).backing(base, "base.vhd");
    converter.create_to(SIZE, file.clone()).unwrap();
    let mut file = file.to_vec();
    set_block_size(&mut file);
    let (name, backing) = ("vhd, differencing".into(), Some(backing));
    Start { name, file, backing, content, resizes: true, shrinks: false, snapshots: false }
}

/// Changes the size of blocks in the header.
fn set_block_size(file: &mut [u8]) {
    let header = &mut file[512..1536];
    header[28..32].copy_from_slice(&(SIZE as u32).div_ceil(BLOCK as u32).to_be_bytes());
    header[32..36].copy_from_slice(&(BLOCK as u32).to_be_bytes());
    header[36..40].fill(0);
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[36..40].copy_from_slice(&(!sum).to_be_bytes());
}
