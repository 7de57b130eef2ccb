//! Free space of file systems that their own programs make and check.

mod forged;
#[cfg(target_os = "linux")]
mod histories;
#[cfg(target_os = "linux")]
mod lvm;

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use diskimage::driver::ExtentKind;
use diskimage::io::{FileSource, ReadAt};
use diskimage::{Converter, Format, Image, OpenOptions};

use crate::support::tools::{find, run};
use crate::support::{Random, TempDir, assert_same};

const MIB: u64 = 1 << 20;

/// A disk that records what is read, and of which one bit may be wrong.
struct Probed {
    file: FileSource,
    reads: Mutex<Vec<Range<u64>>>,
    wrong: Option<(u64, u8)>,
}

impl ReadAt for Probed {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let n = self.file.read_at(buf, offset)?;
        self.reads.lock().unwrap().push(offset..offset + n as u64);
        if let Some((at, bit)) = self.wrong.filter(|(at, _)| (offset..offset + n as u64).contains(at)) {
            buf[(at - offset) as usize] ^= bit;
        }
        Ok(n)
    }
}

fn open(disk: Arc<dyn ReadAt>) -> Image {
    OpenOptions::new().format(Format::RAW).open_source(disk).unwrap()
}

/// What is free, unless a volume is kept.
fn free_ranges(disk: Arc<dyn ReadAt>) -> Result<Vec<Range<u64>>, String> {
    let mut image = open(disk);
    let volumes = image.drop_free_space().map_err(|error| error.to_string())?;
    if let Some(reason) = volumes.iter().find_map(|volume| volume.kept.as_ref()) {
        return Err(reason.to_string());
    }
    let spans = image.spans(0..u64::MAX).map(Result::unwrap);
    let free = spans.filter(|span| span.kind == ExtentKind::Zero { allocated: None });
    Ok(free.map(|span| span.offset..span.end()).collect())
}

fn probed(path: &Path, wrong: Option<(u64, u8)>) -> Arc<Probed> {
    Arc::new(Probed { file: FileSource::open(path).unwrap(), reads: Mutex::default(), wrong })
}

/// What is free is so for `fsck`, whatever it holds; and no wrong bit in what is looked at makes anything else free.
#[track_caller]
fn assert_free_space(path: &Path, content: &str, flips: u64, fsck: &dyn Fn(&Path)) {
    let disk = probed(path, None);
    let free = free_ranges(disk.clone()).unwrap();
    let volumes = open(disk.clone()).volumes().unwrap();
    let [volume] = volumes.as_slice() else { panic!("{volumes:?}") };
    assert_eq!(
        (volume.content, volume.unused),
        (Some(content), free.iter().map(|range| range.end - range.start).sum())
    );
    assert!(volume.unused > volume.range.end / 4, "{volume:?}");

    let mut bytes = fs::read(path).unwrap();
    let zeros = bytes.clone();
    free.iter().for_each(|range| bytes[range.start as usize..range.end as usize].fill(0xcc));
    let scribbled = path.with_extension("scribbled");
    fs::write(&scribbled, &bytes).unwrap();
    fsck(&scribbled);

    // The conversion has zeros there, and everything else.
    let mut expected = zeros;
    free.iter().for_each(|range| expected[range.start as usize..range.end as usize].fill(0));
    let mut image = Image::open(&scribbled).unwrap();
    image.drop_free_space().unwrap();
    let small = path.with_extension("qcow2");
    let report = Converter::new(Format::QCOW2).convert(&image, &small).unwrap();
    assert_eq!(report.volumes.len(), 1);
    let back = path.with_extension("back");
    Converter::new(Format::RAW).convert(&Image::open(&small).unwrap(), &back).unwrap();
    assert_same(&fs::read(&back).unwrap(), &expected, "the sparsified disk");
    fsck(&back);
    [scribbled, small, back].iter().for_each(|file| fs::remove_file(file).unwrap());

    let reads = std::mem::take(&mut *disk.reads.lock().unwrap());
    assert_flips(path, content, &free, reads, flips);
}

/// No wrong bit in what was read makes anything free but what is.
#[track_caller]
fn assert_flips(path: &Path, content: &str, free: &[Range<u64>], mut reads: Vec<Range<u64>>, flips: u64) {
    // As many as usual, or more of them, if the environment says so.
    let flips = std::env::var("DISKIMAGE_FLIPS").ok().and_then(|value| value.parse().ok()).unwrap_or(flips);
    // Without the log of XFS, which is nearly all of what is read.
    reads.retain(|read| read.end - read.start <= 128 << 10);
    let mut random = Random::new(1);
    let mut kept = 0;
    for _ in 0..flips {
        let read = &reads[random.below(reads.len() as u64) as usize];
        let wrong = (read.start + random.below(read.end - read.start), 1 << random.below(8));
        match free_ranges(probed(path, Some(wrong))) {
            Err(_) => kept += 1,
            Ok(found) => {
                let is_free =
                    |range: &Range<u64>| free.iter().any(|own| own.start <= range.start && range.end <= own.end);
                assert!(found.iter().all(is_free), "{content}: byte {:#x}, bit {:#x}: {found:x?}", wrong.0, wrong.1);
            }
        }
    }
    assert!(kept > 0 || flips == 0, "{content}: no wrong bit was noticed");
}

/// A file of `len` bytes of old data, and a directory with files of many lengths.
fn disk(dir: &TempDir, name: &str, len: u64) -> PathBuf {
    dir.file(name, &vec![0xaa; len as usize])
}

fn files(dir: &TempDir) -> PathBuf {
    let tree = dir.join("tree");
    fs::create_dir(&tree).unwrap();
    for (index, len) in [0, 1, 700, 5000, 40_000, 300_000, 1_500_000, 9000, 70_000].into_iter().enumerate() {
        let bytes: Vec<u8> = (0..len).map(|at: usize| (at * 31 / 7 + index) as u8 | 1).collect();
        fs::write(tree.join(format!("file{index}")), bytes).unwrap();
    }
    tree
}

#[test]
fn of_ext() {
    let Some(_) = find("free space of ext2, ext3 and ext4", &["mke2fs"]) else { return };
    for (content, options) in [
        ("ext2", &["-t", "ext2"][..]),
        ("ext2", &["-t", "ext2", "-b", "4096"]),
        ("ext3", &["-t", "ext3", "-O", "^resize_inode,^sparse_super"]),
        ("ext4", &["-t", "ext4"]),
        ("ext4", &["-t", "ext4", "-b", "4096", "-O", "64bit,metadata_csum"]),
        ("ext4", &["-t", "ext4", "-O", "^metadata_csum,uninit_bg,^64bit"]),
        ("ext4", &["-t", "ext4", "-O", "^flex_bg"]),
        ("ext4", &["-t", "ext4", "-O", "meta_bg,^resize_inode"]),
        ("ext4", &["-t", "ext4", "-O", "bigalloc", "-C", "16384"]),
        ("ext4", &["-t", "ext4", "-O", "sparse_super2"]),
    ] {
        let dir = TempDir::new();
        let (disk, tree) = (disk(&dir, "ext", 48 * MIB), files(&dir));
        let tree = ["-d", tree.to_str().unwrap()];
        run("mke2fs", &[&["-q", "-F", "-E", "nodiscard"], options, &tree, &[disk.to_str().unwrap()]].concat());
        run("debugfs", &["-w", "-R", "rm /file5", disk.to_str().unwrap()]);
        let fsck = |disk: &Path| {
            run("e2fsck", &["-f", "-n", disk.to_str().unwrap()]);
            let kept = run("debugfs", &["-R", "cat /file6", disk.to_str().unwrap()]);
            assert!(kept == fs::read(dir.join("tree").join("file6")).unwrap(), "{options:?}");
        };
        assert_free_space(&disk, content, 150, &fsck);
        // Mounted, or after a power failure.
        if content != "ext2" {
            run("debugfs", &["-w", "-R", "feature +needs_recovery", disk.to_str().unwrap()]);
            let reason = free_ranges(probed(&disk, None)).unwrap_err();
            assert!(reason.contains("journal"), "{reason}");
        }
    }
}

#[test]
fn of_xfs() {
    let Some(_) = find("free space of XFS", &["mkfs.xfs"]) else { return };
    for options in [&["-m", "crc=1"][..], &["-m", "crc=0"], &["-m", "rmapbt=1", "-d", "agcount=3"]] {
        let dir = TempDir::new();
        let (disk, tree) = (disk(&dir, "xfs", 320 * MIB), files(&dir));
        let list = (0..9).map(|index| format!("file{index} ---644 0 0 {}/file{index}\n", tree.display()));
        let prototype =
            dir.file("prototype", format!("/\n0 0\nd--755 0 0\n{}$\n", list.collect::<String>()).as_bytes());
        let args = ["-q", "-f", "-K", "-p", prototype.to_str().unwrap()];
        run("mkfs.xfs", &[&args, options, &[disk.to_str().unwrap()]].concat());
        assert_free_space(&disk, "XFS", 60, &|disk| {
            run("xfs_repair", &["-n", "-f", disk.to_str().unwrap()]);
        });
    }
}

#[test]
fn of_btrfs() {
    let Some(_) = find("free space of btrfs", &["mkfs.btrfs"]) else { return };
    for options in [&["-m", "dup"][..], &["-m", "single", "-n", "4096"], &["-M"]] {
        let dir = TempDir::new();
        let (disk, tree) = (disk(&dir, "btrfs", 160 * MIB), files(&dir));
        let args = ["-q", "-f", "-K", "--rootdir", tree.to_str().unwrap()];
        run("mkfs.btrfs", &[&args, options, &[disk.to_str().unwrap()]].concat());
        assert_free_space(&disk, "btrfs", 150, &|disk| {
            run("btrfs", &["check", "--check-data-csum", disk.to_str().unwrap()]);
        });
    }
}

#[test]
fn of_ntfs() {
    let Some(_) = find("free space of NTFS", &["mkfs.ntfs"]) else { return };
    for cluster in ["512", "4096", "65536"] {
        let dir = TempDir::new();
        let (disk, tree) = (disk(&dir, "ntfs", 48 * MIB), files(&dir));
        run("mkfs.ntfs", &["-q", "-F", "-f", "-c", cluster, "-L", "volume", disk.to_str().unwrap()]);
        for index in [3, 4, 5, 6, 7] {
            let file = tree.join(format!("file{index}"));
            run("ntfscp", &["-q", disk.to_str().unwrap(), file.to_str().unwrap(), &format!("file{index}")]);
        }
        assert_free_space(&disk, "NTFS", 150, &|disk| {
            run("ntfsfix", &["-n", disk.to_str().unwrap()]);
            let kept = run("ntfscat", &["-q", disk.to_str().unwrap(), "file6"]);
            assert!(kept == fs::read(tree.join("file6")).unwrap());
        });
        let volumes = open(probed(&disk, None)).volumes().unwrap();
        assert_eq!(volumes[0].label.to_text(), "volume");
    }
}

#[test]
fn ntfs_that_windows_has_not_closed_is_kept() {
    let Some(_) = find("NTFS that is not closed", &["mkfs.ntfs"]) else { return };
    let dir = TempDir::new();
    let disk = dir.join("ntfs");
    let made = |files: &[(&str, &[u8])]| {
        fs::write(&disk, vec![0xaa; 16 << 20]).unwrap();
        run("mkfs.ntfs", &["-q", "-F", "-f", disk.to_str().unwrap()]);
        for (name, bytes) in files {
            let from = dir.file("from", bytes);
            run("ntfscp", &["-q", disk.to_str().unwrap(), from.to_str().unwrap(), name]);
        }
        fs::read(&disk).unwrap()
    };
    let kept = |bytes: &[u8]| {
        fs::write(&disk, bytes).unwrap();
        free_ranges(probed(&disk, None)).err()
    };
    let (asleep, awake) = ([b"hibr".repeat(1024), b"HIBR".repeat(1024)], [vec![0; 4096], b"wake".repeat(1024)]);
    // The root directory is in one record, and in blocks of its index.
    let many: Vec<_> = (0..40).map(|index| format!("a long name of a file, number {index}")).collect();
    for count in [0, many.len()] {
        let others: Vec<_> = many[..count].iter().map(|name| (name.as_str(), &b"x"[..])).collect();
        for content in &asleep {
            let reason = kept(&made(&[&others[..], &[("hiberfil.sys", content)]].concat()));
            assert!(reason.is_some_and(|reason| reason.contains("hibernated")), "{count}");
        }
        for content in &awake {
            assert_eq!(kept(&made(&[&others[..], &[("hiberfil.sys", content)]].concat())), None);
        }
    }
    // The log is full of 0xff, as mkfs leaves it. Its first two pages tell whether it was closed, by the newer one.
    let bytes = made(&[]);
    let log = bytes.chunks_exact(4096).position(|page| page.iter().all(|byte| *byte == 0xff)).unwrap() * 4096;
    let page = |number: u64, client: u16, flags: u16| {
        let mut page = vec![0; 4096];
        page[..4].copy_from_slice(b"RSTR");
        page[16..20].copy_from_slice(&4096_u32.to_le_bytes());
        page[24..26].copy_from_slice(&48_u16.to_le_bytes());
        page[48..56].copy_from_slice(&number.to_le_bytes());
        page[60..62].copy_from_slice(&client.to_le_bytes());
        page[62..64].copy_from_slice(&flags.to_le_bytes());
        page
    };
    let (open, closed, unused) =
        (|number| page(number, 0, 0), |number| page(number, 0, 2), |number| page(number, 0xffff, 0));
    let replayed = "its log has to be replayed: it was not unmounted";
    for (pages, reason) in [
        ([open(5), open(4)], Some(replayed)),
        ([open(5), closed(6)], None),
        ([open(6), closed(5)], Some(replayed)),
        ([closed(5), open(6)], Some(replayed)),
        ([unused(6), open(5)], None),
        ([closed(5), vec![0xff; 4096]], None),
        ([open(5), vec![0xff; 4096]], Some(replayed)),
        ([vec![0; 4096], closed(5)], Some("its log is not one of Windows")),
    ] {
        let mut bytes = bytes.clone();
        bytes[log..log + 8192].copy_from_slice(&pages.concat());
        let found = kept(&bytes);
        assert!(
            found.as_deref().unwrap_or_default().ends_with(reason.unwrap_or_default())
                && found.is_some() == reason.is_some(),
            "{found:?}, and not {reason:?}"
        );
    }
}

/// Adds a directory of one cluster to an empty exFAT file system.
fn add_exfat_directory(disk: &Path) {
    let mut bytes = fs::read(disk).unwrap();
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let cluster_len = 1 << (bytes[108] + bytes[109]);
    let heap = u32_at(88) << bytes[108];
    let offset = |cluster: usize| heap + (cluster - 2) * cluster_len;
    let root = offset(u32_at(96));
    let entry = |kind: u8| (root..).step_by(32).find(|at| bytes[*at] == kind).unwrap();
    let bitmap = offset(u32_at(entry(0x81) + 20));
    let (end, free) = (entry(0), (0..).find(|bit| bytes[bitmap + bit / 8] >> (bit % 8) & 1 == 0).unwrap());
    let mut set = [0; 96];
    // The entries of a file, of its clusters, which follow each other, and of its name "d". Times are those of 1980.
    (set[0], set[1], set[4]) = (0x85, 2, 0x10);
    for time in [8, 12, 16] {
        set[time..time + 4].copy_from_slice(&0x0021_0000_u32.to_le_bytes());
    }
    // The hash of "D" in UTF-16 (section 7.6.4).
    let hash = [b'D', 0].iter().fold(0_u16, |hash, byte| hash.rotate_right(1).wrapping_add((*byte).into()));
    (set[32], set[33], set[35]) = (0xc0, 3, 1);
    set[36..38].copy_from_slice(&hash.to_le_bytes());
    set[52..56].copy_from_slice(&(free as u32 + 2).to_le_bytes());
    for len in [40, 56] {
        set[len..len + 8].copy_from_slice(&(cluster_len as u64).to_le_bytes());
    }
    (set[64], set[66]) = (0xc1, b'd');
    let covered = set.iter().enumerate().filter(|(at, _)| !matches!(at, 2 | 3));
    let sum = covered.fold(0_u16, |sum, (_, byte)| sum.rotate_right(1).wrapping_add((*byte).into()));
    set[2..4].copy_from_slice(&sum.to_le_bytes());
    let own = offset(free + 2);
    bytes[end..end + 96].copy_from_slice(&set);
    bytes[bitmap + free / 8] |= 1 << (free % 8);
    bytes[own..own + cluster_len].fill(0);
    fs::write(disk, bytes).unwrap();
}

#[test]
fn of_exfat() {
    let Some(_) = find("free space of exFAT", &["mkfs.exfat"]) else { return };
    for cluster in ["512", "4K", "128K"] {
        let dir = TempDir::new();
        let disk = disk(&dir, "exfat", 48 * MIB);
        run("mkfs.exfat", &["-c", cluster, "-L", "Möbel", disk.to_str().unwrap()]);
        add_exfat_directory(&disk);
        assert_free_space(&disk, "exFAT", 150, &|disk| {
            let said = run("fsck.exfat", &["-n", disk.to_str().unwrap()]);
            assert!(String::from_utf8_lossy(&said).contains("directories 2, files 0"));
        });
        let volumes = open(probed(&disk, None)).volumes().unwrap();
        assert_eq!(volumes[0].label.to_text(), "Möbel");
        // A cluster that no directory names.
        let mut bytes = fs::read(&disk).unwrap();
        let free = free_ranges(probed(&disk, None)).unwrap();
        let u32_at = |at: usize| u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()));
        let heap = u32_at(88) << bytes[108];
        let cluster_len = 1 << (bytes[108] + bytes[109]);
        let bit = ((free[0].start - heap) / cluster_len) as usize;
        // The bitmap is the first cluster.
        bytes[heap as usize + bit / 8] |= 1 << (bit % 8);
        fs::write(&disk, &bytes).unwrap();
        assert!(free_ranges(probed(&disk, None)).unwrap_err().contains("another number of clusters"));
    }
}

/// Adds an empty directory to an empty file system of FAT12 or FAT16.
fn add_directory(disk: &Path) {
    let mut bytes = fs::read(disk).unwrap();
    let u16_at = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let (sector, reserved, entries, table) = (u16_at(11), u16_at(14), u16_at(17), u16_at(22));
    let root = (reserved + 2 * table) * sector;
    let entry = |name: &[u8; 11], cluster: u8| {
        let mut entry = [0; 32];
        entry[..11].copy_from_slice(name);
        (entry[11], entry[26]) = (0x10, cluster);
        // The first day of 2000.
        entry[24..26].copy_from_slice(&[0x21, 0x28]);
        entry
    };
    bytes[root..root + 32].copy_from_slice(&entry(b"SUB        ", 2));
    let data = root + entries * 32;
    bytes[data..data + 2048].fill(0);
    bytes[data..data + 32].copy_from_slice(&entry(b".          ", 2));
    bytes[data + 32..data + 64].copy_from_slice(&entry(b"..         ", 0));
    // The end of its chain, in 12 or 16 bits.
    for table in [reserved, reserved + table].map(|first| first * sector) {
        match bytes[table + 3] {
            0xff => bytes[table + 4..table + 6].fill(0xff),
            _ => (bytes[table + 3], bytes[table + 4]) = (0xff, 0x0f),
        }
    }
    fs::write(disk, bytes).unwrap();
}

#[test]
fn of_fat() {
    let Some(_) = find("free space of FAT", &["mkfs.vfat"]) else { return };
    for (width, content) in [("12", "FAT12"), ("16", "FAT16"), ("32", "FAT32")] {
        let dir = TempDir::new();
        let len = if width == "12" { 8 } else { 48 };
        let disk = disk(&dir, "fat", len * MIB);
        let cluster = if width == "32" { "1" } else { "4" };
        run("mkfs.vfat", &["-F", width, "-s", cluster, disk.to_str().unwrap()]);
        let fsck = |disk: &Path| {
            run("fsck.vfat", &["-n", disk.to_str().unwrap()]);
        };
        if width != "32" {
            // As long as nothing is in use, it does not matter where its clusters are.
            assert_free_space(&disk, content, 150, &fsck);
            let empty = fs::read(&disk).unwrap();
            add_directory(&disk);
            let mut bytes = fs::read(&disk).unwrap();
            // The entry of a file instead, which does not tell where its cluster is.
            let root = bytes.windows(11).position(|name| name == b"SUB        ").unwrap();
            bytes[root + 11] = 0x20;
            bytes[root + 28] = 1;
            fs::write(&disk, bytes).unwrap();
            let reason = free_ranges(probed(&disk, None)).unwrap_err();
            assert!(reason.contains("no directory"), "{reason}");
            fs::write(&disk, empty).unwrap();
            add_directory(&disk);
        }
        assert_free_space(&disk, content, 150, &fsck);
    }
}

#[test]
fn of_swap_space_and_partitions() {
    let Some(mkswap) = find("free space of swap spaces", &["mkswap"]) else { return };
    if find("free space of partitions", &["sfdisk"]).is_none() {
        return;
    }
    let dir = TempDir::new();
    let swap = disk(&dir, "swap", 8 * MIB);
    run(&mkswap, &["-q", swap.to_str().unwrap()]);
    assert_eq!(free_ranges(probed(&swap, None)).unwrap(), vec![4096..8 * MIB]);
    for table in ["gpt", "dos"] {
        let whole = disk(&dir, table, 32 * MIB);
        let script = format!("label: {table}\nstart=2048, size=16384, type=swap\nstart=20480, size=16384\n");
        let script = dir.file("script", script.as_bytes());
        let mut sfdisk = std::process::Command::new("sfdisk");
        let done = sfdisk.arg("-q").arg(&whole).stdin(fs::File::open(script).unwrap()).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let mut bytes = fs::read(&whole).unwrap();
        bytes[MIB as usize..9 * MIB as usize].copy_from_slice(&fs::read(&swap).unwrap());
        fs::write(&whole, &bytes).unwrap();
        let mut image = open(probed(&whole, None));
        let volumes = image.drop_free_space().unwrap();
        let told: Vec<_> =
            volumes.iter().map(|volume| (volume.partition, volume.unused, volume.kept.is_some())).collect();
        assert_eq!(told, [(Some(1), 8 * MIB - 4096, false), (Some(2), 0, true)]);
        let mut expected = bytes.clone();
        expected[MIB as usize + 4096..9 * MIB as usize].fill(0);
        let mut found = vec![1; expected.len()];
        image.read_exact_at(&mut found, 0).unwrap();
        assert_same(&found, &expected, table);
        if table == "gpt" {
            // A table that is damaged tells nothing for certain.
            bytes[512 + 56] ^= 1;
            fs::write(&whole, &bytes).unwrap();
            let volumes = open(probed(&whole, None)).volumes().unwrap();
            assert!(volumes.iter().all(|volume| volume.unused == 0), "{volumes:?}");
        }
    }
    // A hibernated system is in it.
    let mut bytes = fs::read(&swap).unwrap();
    bytes[4086..4096].copy_from_slice(b"S1SUSPEND\0");
    fs::write(&swap, &bytes).unwrap();
    assert!(free_ranges(probed(&swap, None)).unwrap_err().contains("hibernated"));
}
