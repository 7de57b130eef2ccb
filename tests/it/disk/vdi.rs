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
    for (map, extra, has_parent) in [(512, 0, false), (4096, 512, false), (4096, 0, false), (512, 0, true)] {
        starts.push(packed(map, extra, has_parent));
    }
    starts
}

/// An image with a map at the offset `map`, which qemu has at 512, and with blocks of 4 KiB, each after `extra` bytes, directly after the map.
fn packed(map: usize, extra: u32, has_parent: bool) -> Start {
    const BLOCK: usize = 4096;
    // The map has space for 768 KiB of the disk, less than it can grow to.
    let data: usize = map + (768 << 10) / BLOCK * 4 / 512 * 512 + 512;
    let content = content(9);
    let mut file = image(Format::VDI, "block_size=128k", false, &content);
    file.truncate(map);
    file.resize(data, 0xff);
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
            file[map + index * 4..map + index * 4 + 4].copy_from_slice(&u32::to_le_bytes(used));
            used += 1;
            file.resize(file.len() + extra as usize, 0xee);
            file.extend(block);
        } else if has_parent {
            file[map + index * 4] = 0xfe;
        }
    }
    let kind = if has_parent { 4 } else { 1 };
    for (at, number) in [
        (76, kind),
        (340, map as u32),
        (344, data as u32),
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
    let name = format!(
        "vdi, packed, map at {map}, {extra} bytes before blocks{}",
        if has_parent { ", differencing" } else { "" }
    );
    let backing = has_parent.then_some(parent);
    Start { name, file, backing, content, resizes: true, shrinks: false, snapshots: false }
}

/// The map of an image of qemu has no space for more entries. It moves, unless all blocks are in use.
#[cfg(unix)]
#[test]
fn the_map_of_an_image_of_qemu_moves() {
    use crate::support::TempDir;
    use crate::support::tools::{check_with_qemu_as, needs_qemu, qemu_img, qemu_io_as};
    use diskimage::{ErrorKind, OpenOptions};

    needs_qemu!("the_map_of_an_image_of_qemu_moves");
    const MIB: u64 = 1 << 20;
    let dir = TempDir::new();
    let (image, raw) = (dir.join("a.vdi"), dir.join("a.raw"));
    for path in [&image, &raw] {
        let format = if path == &image { "vdi" } else { "raw" };
        qemu_img(&[&"create", &"-q", &"-f", &format, path, &"128M"]);
        let commands = ["write -P 1 5M 3M", "write -P 2 127M 1M", "write -P 3 0 100k"];
        qemu_io_as(format, path, &commands.map(String::from));
    }
    let resize = |size: u64| {
        let disk = OpenOptions::new().open_disk(&image).unwrap();
        disk.resize(size).map(|()| disk.close().unwrap())
    };
    for size in [200 * MIB, 300_000 * MIB, 300_001 * MIB] {
        resize(size).unwrap();
        qemu_img(&[&"resize", &"-q", &"-f", &"raw", &raw, &size.to_string()]);
        check_with_qemu_as("vdi", &image);
        for path in [&image, &raw] {
            let format = if path == &image { "vdi" } else { "raw" };
            qemu_io_as(format, path, &[format!("write -P 4 {} 1M", size - MIB)]);
        }
        qemu_img(&[&"compare", &"-q", &"-f", &"vdi", &"-F", &"raw", &image, &raw]);
    }
    // A full disk: numbers of the old map cannot tell where blocks have moved.
    qemu_img(&[&"create", &"-q", &"-f", &"vdi", &"-o", &"static=on", &image, &"128M"]);
    assert_eq!(resize(200 * MIB).unwrap_err().kind(), ErrorKind::Limit);
    check_with_qemu_as("vdi", &image);
}
