//! Random histories of writes and deletes, by the kernel or by programs for the file system: whatever is found free is so for them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::lvm::Loop;
use super::{MIB, free_ranges, open, probed};
use crate::support::tools::{find, run, skip, unmount};
use crate::support::{Random, TempDir};

/// A file system, and how it is changed.
struct System {
    name: &'static str,
    mkfs: &'static [&'static str],
    len: u64,
    access: Access,
    fsck: &'static [&'static str],
    /// The number of blocks that it says are free, and their length.
    free: fn(&Path) -> Option<(u64, u64)>,
}

enum Access {
    /// The kernel, on a loop device.
    Mount(&'static str),
    /// A program for FUSE, on a loop device.
    Fuse(&'static str),
    /// mtools.
    Mtools,
}

/// What the files hold that the history left.
type Files = BTreeMap<String, Vec<u8>>;

/// A mounted file system, until it is dropped.
struct Mounted {
    folder: PathBuf,
    _device: Loop,
}

impl Mounted {
    fn new(system: &System, disk: &Path, dir: &TempDir) -> Option<Mounted> {
        let folder = dir.join("mounted");
        fs::create_dir_all(&folder).unwrap();
        let device = Loop::attach(disk, 0, system.len)?;
        let mut command = match system.access {
            Access::Mount(kind) => {
                let mut command = Command::new("mount");
                command.args(["-t", kind]);
                command
            }
            Access::Fuse(program) => Command::new(program),
            Access::Mtools => return None,
        };
        let is_mounted = command.arg(&device.0).arg(&folder).output().is_ok_and(|done| done.status.success());
        is_mounted.then_some(Mounted { folder, _device: device })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.folder);
    }
}

/// Runs mtools on the disk.
fn mtools(disk: &Path, program: &str, args: &[&str]) -> Vec<u8> {
    let image = [OsString::from("-i"), disk.into()];
    let args: Vec<OsString> = image.into_iter().chain(args.iter().map(OsString::from)).collect();
    run(program, &args)
}

/// Small files that are written and of which every second is deleted: what is free between them fills several blocks of a tree.
const SMALL_FILES: usize = 2400;

/// Writes, overwrites, extends and deletes files at random, after that with small files if there are to be `many`. Returns what is there in the end; `None` if
/// that cannot be done here.
fn live(system: &System, disk: &Path, dir: &TempDir, random: &mut Random, many: bool) -> Option<Files> {
    let mut files = Files::new();
    let mounted = match system.access {
        Access::Mtools => None,
        _ => Some(Mounted::new(system, disk, dir)?),
    };
    for folder in ["d0", "d1", "d2"] {
        match &mounted {
            Some(mounted) => fs::create_dir(mounted.folder.join(folder)).unwrap(),
            None => drop(mtools(disk, "mmd", &[&format!("::{folder}")])),
        }
    }
    if let Some(mounted) = mounted.as_ref().filter(|_| many) {
        let path = |index| format!("d0/small{index}");
        for index in 0..SMALL_FILES {
            let bytes = random.bytes(4096);
            fs::write(mounted.folder.join(path(index)), &bytes).unwrap();
            if index % 2 == 0 {
                files.insert(path(index), bytes);
            }
        }
        run("sync", &["-f", mounted.folder.to_str().unwrap()]);
        (1..SMALL_FILES).step_by(2).for_each(|index| fs::remove_file(mounted.folder.join(path(index))).unwrap());
    }
    for step in 0..60 {
        let known = files.keys().nth(random.below(files.len().max(1) as u64) as usize).cloned();
        match (random.below(5), known) {
            // Delete.
            (0 | 1, Some(name)) => {
                files.remove(&name);
                match &mounted {
                    Some(mounted) => fs::remove_file(mounted.folder.join(name)).unwrap(),
                    None => drop(mtools(disk, "mdel", &[&format!("::{name}")])),
                }
            }
            // Extend.
            (2, Some(name)) if mounted.is_some() => {
                let (more, path) = (random.below(200_000) as usize, mounted.as_ref().unwrap().folder.join(&name));
                let more = random.bytes(more);
                let old = files.get_mut(&name).unwrap();
                File::options().write(true).open(path).unwrap().write_all_at(&more, old.len() as u64).unwrap();
                old.extend(more);
            }
            _ => {
                let name = format!("d{}/f{step}", random.below(3));
                let most = [100, 5000, 60_000, 900_000][random.below(4) as usize];
                let len = random.below(most) as usize;
                let bytes = random.bytes(len);
                match &mounted {
                    Some(mounted) => fs::write(mounted.folder.join(&name), &bytes).unwrap(),
                    None => {
                        let from = dir.file("from", &bytes);
                        mtools(disk, "mcopy", &[from.to_str().unwrap(), &format!("::{name}")]);
                    }
                }
                files.insert(name, bytes);
            }
        }
        if let Some(mounted) = mounted.as_ref().filter(|_| step % 20 == 7) {
            run("sync", &["-f", mounted.folder.to_str().unwrap()]);
        }
    }
    Some(files)
}

/// The disk has these files, and no others.
fn assert_files(system: &System, disk: &Path, dir: &TempDir, files: &Files) {
    let mounted = Mounted::new(system, disk, dir);
    for (name, expected) in files {
        let found = match &mounted {
            Some(mounted) => fs::read(mounted.folder.join(name)).unwrap(),
            None => mtools(disk, "mtype", &[&format!("::{name}")]),
        };
        assert!(found == *expected, "{}: {name}", system.name);
    }
    if let Some(mounted) = &mounted {
        let count = |folder: &str| fs::read_dir(mounted.folder.join(folder)).unwrap().count();
        assert_eq!(["d0", "d1", "d2"].map(count).iter().sum::<usize>(), files.len());
    }
}

/// As many histories as usual, or more of them, if the environment says so.
fn assert_histories(system: &System) {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let first = number("DISKIMAGE_SEED").unwrap_or(0);
    for seed in first..first + number("DISKIMAGE_ROUNDS").unwrap_or(2) {
        let dir = TempDir::new();
        let disk = dir.join("disk");
        File::create(&disk).unwrap().set_len(system.len).unwrap();
        let path = disk.to_str().unwrap();
        run(system.mkfs[0], &[&system.mkfs[1..], &[path]].concat());
        let Some(files) = live(system, &disk, &dir, &mut Random::new(seed), seed % 2 == 1) else {
            return skip(&format!("histories of {}", system.name), "mounting");
        };
        let free = free_ranges(probed(&disk, None)).unwrap();
        let volumes = open(probed(&disk, None)).volumes().unwrap();
        if let Some((blocks, len)) = (system.free)(&disk) {
            assert_eq!(volumes[0].unused, blocks * len, "{}, history {seed}", system.name);
        }
        let file = File::options().write(true).open(&disk).unwrap();
        for range in &free {
            file.write_all_at(&vec![0xcc; (range.end - range.start) as usize], range.start).unwrap();
        }
        run(system.fsck[0], &[&system.fsck[1..], &[path]].concat());
        assert_files(system, &disk, &dir, &files);
    }
}

/// The number after `key` in what the program prints.
fn number_after(program: &str, args: &[&str], key: &str) -> u64 {
    let text = String::from_utf8_lossy(&run(program, args)).into_owned();
    let (_, rest) = text.split_once(key).unwrap_or_else(|| panic!("{text}"));
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn of_ext4() {
    let Some(_) = find("histories of ext4", &["mke2fs"]) else { return };
    for (mkfs, len) in [
        (&["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096"][..], 4096),
        (&["mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-O", "^metadata_csum,uninit_bg"], 1024),
    ] {
        let free: fn(&Path) -> Option<(u64, u64)> = match len {
            4096 => |disk| Some((number_after("dumpe2fs", &["-h", disk.to_str().unwrap()], "Free blocks:"), 4096)),
            _ => |disk| Some((number_after("dumpe2fs", &["-h", disk.to_str().unwrap()], "Free blocks:"), 1024)),
        };
        let (access, fsck) = (Access::Mount("ext4"), &["e2fsck", "-f", "-n"]);
        assert_histories(&System { name: "ext4", mkfs, len: 64 * MIB, access, fsck, free });
    }
}

#[test]
fn of_xfs() {
    let Some(_) = find("histories of XFS", &["mkfs.xfs"]) else { return };
    // Its own lists of free blocks are kept: four blocks in each of four allocation groups.
    let free = |disk: &Path| {
        let list = |agf: &str| {
            number_after("xfs_db", &["-r", "-c", agf, "-c", "p flcount", disk.to_str().unwrap()], "flcount =")
        };
        let lists = ["agf 0", "agf 1", "agf 2", "agf 3"].map(list).iter().sum::<u64>();
        Some((
            number_after("xfs_db", &["-r", "-c", "freesp -s", disk.to_str().unwrap()], "total free blocks") - lists,
            4096,
        ))
    };
    assert_histories(&System {
        name: "XFS",
        mkfs: &["mkfs.xfs", "-q", "-f"],
        len: 320 * MIB,
        access: Access::Mount("xfs"),
        fsck: &["xfs_repair", "-n", "-f"],
        free,
    });
}

#[test]
fn of_btrfs() {
    let Some(_) = find("histories of btrfs", &["mkfs.btrfs"]) else { return };
    assert_histories(&System {
        name: "btrfs",
        mkfs: &["mkfs.btrfs", "-q", "-f"],
        len: 256 * MIB,
        access: Access::Mount("btrfs"),
        fsck: &["btrfs", "check", "--check-data-csum"],
        // It counts what is free in block groups, and not what belongs to none.
        free: |_| None,
    });
}

#[test]
fn of_ntfs() {
    let Some(_) = find("histories of NTFS", &["ntfs-3g"]) else { return };
    assert_histories(&System {
        name: "NTFS",
        mkfs: &["mkfs.ntfs", "-q", "-F", "-f"],
        len: 64 * MIB,
        access: Access::Fuse("ntfs-3g"),
        fsck: &["ntfsfix", "-n"],
        free: |disk| Some((number_after("ntfsinfo", &["-m", disk.to_str().unwrap()], "Free Clusters:"), 4096)),
    });
}

#[test]
fn of_exfat() {
    let (Some(_), Some(_)) =
        (find("histories of exFAT", &["mkfs.exfat"]), find("histories of exFAT", &["mount.exfat-fuse"]))
    else {
        return;
    };
    assert_histories(&System {
        name: "exFAT",
        mkfs: &["mkfs.exfat", "-c", "4K"],
        len: 64 * MIB,
        access: Access::Fuse("mount.exfat-fuse"),
        fsck: &["fsck.exfat", "-n"],
        free: |disk| Some((number_after("dump.exfat", &[disk.to_str().unwrap()], "Free Clusters:"), 4096)),
    });
}

#[test]
fn of_fat() {
    let (Some(_), Some(_)) = (find("histories of FAT", &["mkfs.vfat"]), find("histories of FAT", &["mcopy"])) else {
        return;
    };
    for mkfs in [&["mkfs.vfat", "-F", "16", "-s", "4"][..], &["mkfs.vfat", "-F", "32", "-s", "1"]] {
        let free: fn(&Path) -> Option<(u64, u64)> = |disk| {
            let text = String::from_utf8(run("fsck.vfat", &["-n", disk.to_str().unwrap()])).unwrap();
            // After the name of the disk.
            let counts = text.split_whitespace().rfind(|word| word.contains('/')).unwrap();
            let (used, all) = counts.split_once('/').unwrap();
            let boot = fs::read(disk).unwrap();
            let cluster = u64::from(boot[13]) * 512;
            Some((all.parse::<u64>().unwrap() - used.parse::<u64>().unwrap(), cluster))
        };
        let (access, fsck) = (Access::Mtools, &["fsck.vfat", "-n"]);
        assert_histories(&System { name: "FAT", mkfs, len: 48 * MIB, access, fsck, free });
    }
}
