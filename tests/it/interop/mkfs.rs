//! New file systems, compared with those of the programs that make them, and checked by these.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use diskimage::mkfs::{DiskOptions, FileSystem, PartitionScheme};
use diskimage::{Converter, Format, Identifiers, Image, OpenOptions};

use crate::support::tools::{find, output, run};
use crate::support::{Random, TempDir};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

fn disk(system: &str, partition: PartitionScheme, size: u64) -> Image {
    let system: FileSystem = system.parse().unwrap();
    let options = DiskOptions::new(system.label("LABEL")).partition(partition);
    let disk = options.identifiers(Identifiers::Reproducible { time: 1_700_000_000 }).build(size).unwrap();
    OpenOptions::new().format(Format::RAW).open_source(Arc::new(disk)).unwrap()
}

/// A raw disk with a file system in `dir`.
fn made_here(dir: &TempDir, system: &str, partition: PartitionScheme, size: u64) -> PathBuf {
    let path = dir.join("made-here");
    Converter::new(Format::RAW).sync(false).convert(&disk(system, partition, size), &path).unwrap();
    path
}

fn empty(dir: &TempDir, size: u64) -> PathBuf {
    let path = dir.join("made-by-others");
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

fn bytes_at<const LEN: usize>(path: &Path, offset: u64) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    File::open(path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

fn uuid_at(path: &Path, offset: u64) -> String {
    let hex = format!("{:032x}", u128::from_be_bytes(bytes_at(path, offset)));
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// The file system that mke2fs makes, with the same UUID, hash seed and times.
fn made_by_mke2fs(dir: &TempDir, ours: &Path, size: u64) -> PathBuf {
    let path = empty(dir, size);
    let features = "^metadata_csum_seed,^orphan_file";
    let seed = format!("hash_seed={}", uuid_at(ours, 0x4ec));
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-O", features, "-L", "LABEL", "-U", &uuid_at(ours, 0x468), "-E", &seed]);
    let done = mke2fs.arg(&path).env("E2FSPROGS_FAKE_TIME", "1700000000").output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    path
}

/// What dumpe2fs tells, but for what was written during creation, and the checksum that depends on it.
fn dumped(path: &Path) -> Vec<String> {
    let text = String::from_utf8(run("dumpe2fs", &[path])).unwrap();
    let differs = |line: &&str| !line.starts_with("Lifetime writes:") && !line.starts_with("Checksum:  ");
    text.lines().filter(differs).map(str::to_owned).collect()
}

fn inodes(path: &Path) -> Vec<String> {
    let args = ["1", "2", "3", "7", "8", "11"].map(|number| format!("stat <{number}>"));
    args.iter().map(|stat| String::from_utf8(run("debugfs", &["-R", stat, path.to_str().unwrap()])).unwrap()).collect()
}

#[test]
fn ext4_is_what_mke2fs_makes() {
    if find("ext4", &["mke2fs"]).is_none() {
        return;
    }
    let dir = TempDir::new();
    let mut sizes: Vec<u64> = [8, 16, 17, 24, 33, 64, 130, 300, 511, 512, 600].map(|mib| mib * MIB).into();
    // Last groups that are left out, and parts of blocks.
    sizes.extend([294_081_029, 537_864_481, 8 * MIB + 513]);
    sizes.extend([1, 3, 10, 33, 100].map(|gib| gib * GIB));
    let mut random = Random::new(4);
    sizes.extend((0..6).map(|_| 8 * MIB + random.below(600 * MIB)));
    for size in sizes {
        let ours = made_here(&dir, "ext4", PartitionScheme::None, size);
        run("e2fsck", &["-fn", ours.to_str().unwrap()]);
        let theirs = made_by_mke2fs(&dir, &ours, size);
        assert_eq!(dumped(&ours), dumped(&theirs), "{size}");
        assert_eq!(inodes(&ours), inodes(&theirs), "{size}");
        if size <= 64 * MIB {
            assert_same_but_for_writes(&ours, &theirs);
        }
    }
}

/// The same bytes, but for the number of bytes that were ever written, which each superblock has, and its checksum.
fn assert_same_but_for_writes(ours: &Path, theirs: &Path) {
    let (mut ours, mut theirs) = (fs::read(ours).unwrap(), fs::read(theirs).unwrap());
    for disk in [&mut ours, &mut theirs] {
        for superblock in disk.chunks_exact_mut(1024).filter(|block| block[0x38..0x3a] == [0x53, 0xef]) {
            superblock[0x178..0x180].fill(0);
            superblock[0x3fc..].fill(0);
        }
    }
    let different = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs);
    assert_eq!((ours.len(), different), (theirs.len(), None));
}

/// The largest take mke2fs a quarter of a minute each, so that the fields of one are compared here.
#[test]
fn large_ext4_is_what_mke2fs_makes_and_costs_what_its_metadata_does() {
    if find("large ext4", &["mke2fs"]).is_none() {
        return;
    }
    let dir = TempDir::new();
    for (size, most) in [(200 * GIB, 8 * MIB), (TIB, 20 * MIB), (16 * TIB, 300 * MIB)] {
        let image = disk("ext4", PartitionScheme::None, size);
        let qcow2 = dir.join("large.qcow2");
        let report = Converter::new(Format::QCOW2).sync(false).convert(&image, &qcow2).unwrap();
        assert!(report.data_bytes < most, "{}", report.data_bytes);
        fs::remove_file(qcow2).unwrap();
        if size == 16 * TIB {
            continue;
        }
        let ours = made_here(&dir, "ext4", PartitionScheme::None, size);
        run("e2fsck", &["-fn", ours.to_str().unwrap()]);
        let theirs = made_by_mke2fs(&dir, &ours, size);
        assert_eq!(dumped(&ours), dumped(&theirs), "{size}");
    }
}

/// Sectors and clusters are those of mkfs.vfat; name and code in the boot sector, and the time of the label, are not.
#[test]
fn fat_is_what_mkfs_vfat_makes() {
    if find("FAT", &["mkfs.vfat"]).is_none() {
        return;
    }
    let dir = TempDir::new();
    for size in
        [8, 9, 16, 17, 40, 65, 129, 257, 511, 512, 600].map(|mib| mib * MIB).into_iter().chain([8200 * MIB, 33 * GIB])
    {
        let ours = made_here(&dir, "vfat", PartitionScheme::None, size);
        run("fsck.vfat", &["-n", ours.to_str().unwrap()]);
        let is_32 = bytes_at(&ours, 82) == *b"FAT32   ";
        let serial: u32 = u32::from_le_bytes(bytes_at(&ours, if is_32 { 67 } else { 39 }));
        let theirs = empty(&dir, size);
        run("mkfs.vfat", &["--invariant", "-i", &format!("{serial:08x}"), "-n", "LABEL", theirs.to_str().unwrap()]);
        let compared = |path: &Path| {
            let file = File::open(path).unwrap();
            let boot: [u8; 512] = bytes_at(path, 0);
            let field = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
            let fat = if is_32 { u32::from_le_bytes(bytes_at(path, 36)).into() } else { field(22) };
            let mut head = vec![0; 512 * (field(14) + 2 * fat + 32) as usize];
            file.read_exact_at(&mut head, 0).unwrap();
            let code = if is_32 { 0x5a } else { 0x3e };
            for sector in if is_32 { vec![0, 6] } else { vec![0] } {
                head[sector * 512 + 3..][..8].fill(0);
                head[sector * 512 + code..sector * 512 + 510].fill(0);
            }
            let root = 512 * (field(14) + 2 * fat) as usize;
            head[root + 14..root + 26].fill(0);
            head
        };
        assert!(compared(&ours) == compared(&theirs), "{size}");
    }
}

#[test]
fn swap_is_what_mkswap_makes() {
    if find("swap", &["mkswap"]).is_none() {
        return;
    }
    let dir = TempDir::new();
    for size in [8 * MIB, 64 * MIB + 5] {
        let ours = made_here(&dir, "swap", PartitionScheme::None, size);
        let theirs = empty(&dir, size);
        run("mkswap", &["-L", "LABEL", "-U", &uuid_at(&ours, 1036), theirs.to_str().unwrap()]);
        assert!(fs::read(&ours).unwrap() == fs::read(&theirs).unwrap(), "{size}");
        let told = String::from_utf8(run("swaplabel", &[ours.as_path()])).unwrap();
        assert_eq!(told, format!("LABEL: LABEL\nUUID:  {}\n", uuid_at(&ours, 1036)));
    }
}

#[test]
fn partition_tables_are_in_order() {
    if find("partition tables of new disks", &["sfdisk"]).is_none() {
        return;
    }
    let dir = TempDir::new();
    for (partition, system, kind) in [
        (PartitionScheme::Gpt, "ext4", "0FC63DAF-8483-4772-8E79-3D69D8477DE4"),
        (PartitionScheme::Gpt, "vfat", "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"),
        (PartitionScheme::Gpt, "swap", "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"),
        (PartitionScheme::Mbr, "ext4", "83"),
        (PartitionScheme::Mbr, "vfat", "c"),
        (PartitionScheme::Mbr, "swap", "82"),
    ] {
        for size in [8 * MIB, 100 * MIB + 512 * 7, 3 * GIB] {
            let path = made_here(&dir, system, partition, size);
            let said = output("sfdisk", &["--verify", path.to_str().unwrap()]);
            let text = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
            assert!(said.status.success() && text.contains("No errors detected"), "{text}");
            let json: serde_json::Value =
                serde_json::from_slice(&run("sfdisk", &["--json".as_ref(), path.as_os_str()])).unwrap();
            let table = &json["partitiontable"]["partitions"];
            assert_eq!((table.as_array().unwrap().len(), table[0]["type"].as_str()), (1, Some(kind)));
            let start = table[0]["start"].as_u64().unwrap() * 512;
            let len = table[0]["size"].as_u64().unwrap() * 512;
            assert_eq!((start, len % MIB), (MIB, 0));
            assert!(size - start - len < 2 * MIB);
            let volumes = Image::open(&path).unwrap().volumes().unwrap();
            let [volume] = volumes.as_slice() else { panic!("{volumes:?}") };
            assert_eq!(volume.range, start..start + len);
            // A FAT without a directory does not tell where its clusters begin, so that none of it counts as free.
            assert!(volume.kept.is_none() || system == "vfat", "{:?}", volume.kept);
            assert_eq!(volume.label.to_text(), "LABEL");
        }
    }
}

/// As far as this kernel has the file system, and the test may mount it.
#[test]
fn the_kernel_writes_into_new_file_systems() {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let may_mount = Path::new("/dev/loop-control").exists() && output("id", &["-u"]).stdout == b"0\n";
    let dir = TempDir::new();
    let mount = dir.join("mount");
    fs::create_dir(&mount).unwrap();
    for (system, size) in [
        ("ext4", 8 * MIB),
        ("ext4", 130 * MIB),
        ("ext4", 600 * MIB),
        ("ext4", 200 * GIB),
        ("vfat", 8 * MIB),
        ("vfat", 40 * MIB),
        ("vfat", 600 * MIB),
    ] {
        if !may_mount || !known.lines().any(|line| line.split('\t').nth(1) == Some(system)) {
            eprintln!("SKIPPED: {system} cannot be mounted here");
            continue;
        }
        let path = made_here(&dir, system, PartitionScheme::None, size);
        let [disk, directory] = [&path, &mount].map(|path| path.to_str().unwrap());
        run("mount", &["-o", "loop", "-t", system, disk, directory]);
        let data: Vec<u8> = (0..MIB).map(|byte| (byte * 7 / 8) as u8).collect();
        fs::create_dir(mount.join("directory")).unwrap();
        for index in 0..20 {
            fs::write(mount.join(format!("directory/file{index}")), &data[index..100_000 * (index % 3 + 1)]).unwrap();
        }
        fs::remove_file(mount.join("directory/file3")).unwrap();
        run("umount", &[directory]);
        match system {
            "ext4" => run("e2fsck", &["-fn", disk]),
            _ => run("fsck.vfat", &["-n", disk]),
        };
        run("mount", &["-o", "loop,ro", "-t", system, disk, directory]);
        let read = fs::read(mount.join("directory/file8"));
        run("umount", &[directory]);
        assert!(read.unwrap() == data[8..300_000], "{system} of {size} bytes");
    }
}
