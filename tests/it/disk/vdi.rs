//! Images of VDI.

use diskimage::Format;

use super::model::Start;
use super::starts::{SIZE, content, image};

pub fn starts() -> Vec<Start> {
    let start = |list: &str| {
        let content = content(list.len() as u64);
        let file = image(Format::VDI, list, false, &content);
        let name = format!("vdi {list}");
        Start { name, file, backing: None, content, resizes: true, shrinks: false, snapshots: false }
    };
    let mut starts = vec![start("block_size=128k"), start("block_size=128k,static=on")];
    for (extra, has_parent) in [(0, false), (512, false), (0, true)] {
        starts.push(packed(extra, has_parent));
    }
    starts
}

/// An image with blocks of 4 KiB, each after `extra` bytes, and with tables directly after the header, as qemu has them.
fn packed(extra: u32, has_parent: bool) -> Start {
    const BLOCK: usize = 4096;
    const MAP: usize = 512;
    // The map has room for 4 MiB.
    const DATA: usize = MAP + (4 << 20) / BLOCK * 4;
    let content = content(9);
    let mut file = image(Format::VDI, "block_size=128k", false, &content);
    file.truncate(MAP);
    file.resize(DATA, 0xff);
    let mut used = 0;
    let blocks = content.chunks(BLOCK);
    let count = blocks.len() as u32;
    // The parent has some of the blocks, all of them in the last third.
    let in_parent = |index: usize| has_parent && (index.is_multiple_of(3) || index > 100);
    let mut parent = vec![if has_parent { 3 } else { 0 }; SIZE as usize];
    for (index, block) in blocks.enumerate().collect::<Vec<_>>().into_iter().rev() {
        if in_parent(index) {
            parent[index * BLOCK..index * BLOCK + block.len()].copy_from_slice(block);
        } else if block.iter().any(|byte| *byte != 0) {
            file[MAP + index * 4..MAP + index * 4 + 4].copy_from_slice(&u32::to_le_bytes(used));
            used += 1;
            file.resize(file.len() + extra as usize, 0xee);
            file.extend(block);
        } else if has_parent {
            file[MAP + index * 4] = 0xfe;
        }
    }
    let kind = if has_parent { 4 } else { 1 };
    for (at, number) in [
        (76, kind),
        (340, MAP as u32),
        (344, DATA as u32),
        (376, BLOCK as u32),
        (380, extra),
        (384, count),
        (388, used),
    ] {
        file[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    parent.resize(parent.len() + 50_000, 5);
    let parent = image(Format::VDI, "block_size=128k", false, &parent);
    if has_parent {
        // The UUID of the parent, and its modification UUID.
        file[424..456].copy_from_slice(&parent[392..424]);
    }
    let name = format!("vdi, packed, {extra} bytes before blocks{}", if has_parent { ", differencing" } else { "" });
    let backing = has_parent.then_some(parent);
    Start { name, file, backing, content, resizes: true, shrinks: false, snapshots: false }
}
