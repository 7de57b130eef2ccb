//! Free extents and logical volumes of LVM, as its own programs make them. They need loop devices, and no device mapper: volumes are not activated,
//! but what they hold is written where the programs say that they are.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use diskimage::GuestVolume;

use super::{MIB, assert_flips, files, free_ranges, open, probed};
use crate::support::tools::{find, run, skip};
use crate::support::{TempDir, assert_same};

/// A range of a file as a block device.
pub struct Loop(pub String);

impl Loop {
    pub fn attach(file: &Path, offset: u64, len: u64) -> Option<Loop> {
        let args = ["-f", "--show", "-o", &offset.to_string(), "--sizelimit", &len.to_string()];
        let done = Command::new("losetup").args(args).arg(file).output().ok()?;
        done.status.success().then(|| Loop(String::from_utf8(done.stdout).unwrap().trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// The two partitions of a disk of 96 MiB.
const PARTS: [Range<u64>; 2] = [MIB..65 * MIB, 70 * MIB..90 * MIB];

struct Lvm<'a> {
    devices: &'a [Loop],
}

impl Lvm<'_> {
    fn run(&self, args: &[&str]) -> String {
        let devices: Vec<_> = self.devices.iter().map(|device| device.0.as_str()).collect();
        let mut args: Vec<_> = args.iter().map(|arg| arg.replace("P0", devices[0]).replace("P1", devices[1])).collect();
        // Only these, without a kernel that knows them, and no backup in /etc.
        args.extend(["--devices".into(), devices.join(","), "--driverloaded".into(), "n".into()]);
        let program = args.remove(0);
        String::from_utf8(run(&program, &args)).unwrap()
    }

    /// Adds a volume that is neither activated nor touched.
    fn create(&self, args: &[&str]) {
        self.run(&[&["lvcreate", "-q", "-An", "-an", "-Zn", "-y"], args].concat());
    }

    /// The ranges of the disk of all segments whose volume has this name, in the order of the volume; the free ones of the name "".
    fn segments(&self, name: &str) -> Vec<Range<u64>> {
        let columns = "-opv_name,pvseg_start,pvseg_size,seg_start_pe,lv_name";
        let report = self.run(&["pvs", "--segments", "--noheadings", "--separator=,", columns]);
        let mut found = Vec::new();
        for line in report.lines() {
            let columns: Vec<_> = line.trim().split(',').collect();
            let [device, start, len, at, volume] = columns[..] else { panic!("{line}") };
            if volume.trim_matches(['[', ']']) == name {
                let part = self.devices.iter().position(|own| own.0 == device).unwrap();
                let [start, len, at] = [start, len, at].map(|number| number.parse::<u64>().unwrap());
                // The first extent is at 1 MiB, and each is as long.
                let first = PARTS[part].start + (1 + start) * MIB;
                found.push((at, first..first + len * MIB));
            }
        }
        if !name.is_empty() {
            found.sort_by_key(|(at, _)| *at);
        }
        found.into_iter().map(|(_, range)| range).collect()
    }
}

/// A thin pool and a snapshot, which are not made without the device mapper, on extents that are free.
const OTHERS: &str = r#"
    pool { id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAA0" status = ["READ", "WRITE", "VISIBLE"] flags = [] segment_count = 1
        segment1 { start_extent = 0 extent_count = 4 type = "thin-pool" metadata = "pool_tmeta" pool = "pool_tdata"
            transaction_id = 0 chunk_size = 128 discards = "passdown" zero_new_blocks = 1 } }
    pool_tdata { id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAA1" status = ["READ", "WRITE"] flags = [] segment_count = 1
        segment1 { start_extent = 0 extent_count = 4 type = "striped" stripe_count = 1 stripes = ["pv0", 40] } }
    pool_tmeta { id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAA2" status = ["READ", "WRITE"] flags = [] segment_count = 1
        segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = ["pv0", 44] } }
    old { id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAA3" status = ["READ", "WRITE", "VISIBLE"] flags = [] segment_count = 1
        segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1 stripes = ["pv0", 50] } }
    snapshot0 { id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAA4" status = ["READ", "WRITE", "VISIBLE"] flags = [] segment_count = 1
        segment1 { start_extent = 0 extent_count = 27 type = "snapshot" chunk_size = 8 origin = "root" cow_store = "old" } }
"#;

fn total(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

#[test]
fn of_logical_volumes() {
    const TEST: &str = "free space of LVM";
    let (Some(_), Some(_)) = (find(TEST, &["pvs"]), find(TEST, &["mke2fs"])) else { return };
    let (Some(_), Some(mkswap)) = (find(TEST, &["sfdisk"]), find(TEST, &["mkswap"])) else { return };
    let dir = TempDir::new();
    let disk = dir.file("lvm", &vec![0xaa; 96 << 20]);
    let script =
        dir.file("script", b"label: gpt\nstart=2048, size=131072, type=lvm\nstart=143360, size=40960, type=lvm\n");
    let mut sfdisk = Command::new("sfdisk");
    let done = sfdisk.arg("-q").arg(&disk).stdin(fs::File::open(script).unwrap()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let devices = PARTS.map(|part| Loop::attach(&disk, part.start, part.end - part.start));
    let [Some(first), Some(second)] = devices else { return skip(TEST, "loop devices") };
    let devices = [first, second];
    let lvm = Lvm { devices: &devices };
    lvm.run(&["pvcreate", "-q", "P0"]);
    lvm.run(&["pvcreate", "-q", "--metadatacopies=2", "P1"]);
    lvm.run(&["vgcreate", "-q", "-An", "-s", "1m", "vg", "P0", "P1"]);
    lvm.create(&["-n", "root", "-L20m", "vg", "P0"]);
    lvm.create(&["-n", "swap", "-L8m", "vg", "P0"]);
    lvm.run(&["lvextend", "-q", "-An", "-L+4m", "vg/root", "P0"]);
    lvm.run(&["lvextend", "-q", "-An", "-L+3m", "vg/root", "P1"]);
    let (root, swap, free) = (lvm.segments("root"), lvm.segments("swap"), lvm.segments(""));
    assert_eq!((root.len(), total(&root), total(&swap)), (3, 27 * MIB, 8 * MIB));

    let system = dir.file("root", &vec![0xaa; 27 << 20]);
    let tree = files(&dir);
    let args = ["-q", "-F", "-t", "ext4", "-E", "nodiscard", "-d", tree.to_str().unwrap(), system.to_str().unwrap()];
    run("mke2fs", &args);
    let swap_space = dir.file("swap", &vec![0xaa; 8 << 20]);
    run(&mkswap, &["-q", swap_space.to_str().unwrap()]);
    let within = |range: &Range<u64>| range.start as usize..range.end as usize;
    let mut bytes = fs::read(&disk).unwrap();
    for (file, pieces) in [(&system, &root), (&swap_space, &swap)] {
        let mut content = fs::read(file).unwrap();
        for piece in pieces {
            let rest = content.split_off((piece.end - piece.start) as usize);
            bytes[within(piece)].copy_from_slice(&content);
            content = rest;
        }
    }
    fs::write(&disk, &bytes).unwrap();

    // The extents are those that LVM says, and the volumes are looked into.
    let probe = probed(&disk, None);
    let mut image = open(probe.clone());
    let volumes = image.drop_free_space().unwrap();
    let reads = std::mem::take(&mut *probe.reads.lock().unwrap());
    let told = |volume: &GuestVolume| {
        let name = volume.logical_volume.as_ref().map(|name| name.to_text().into_owned());
        (name, volume.content.unwrap(), volume.label.to_text().into_owned(), volume.len >> 20, volume.kept.clone())
    };
    let on = |part: Range<u64>| {
        free.iter().filter(|range| part.start <= range.start && range.end <= part.end).cloned().collect::<Vec<_>>()
    };
    let logical = |name: &str| Some(name.to_owned());
    assert_eq!(
        volumes.iter().map(told).collect::<Vec<_>>(),
        [
            (None, "LVM", "vg".into(), 64, None),
            (None, "LVM", "vg".into(), 20, None),
            (logical("vg/root"), "ext4", String::new(), 27, None),
            (logical("vg/swap"), "swap", String::new(), 8, None),
        ]
    );
    assert_eq!([volumes[0].unused, volumes[1].unused], PARTS.map(|part| total(&on(part))));
    assert_eq!(volumes[3].unused, 8 * MIB - 4096);
    assert_eq!(
        volumes.iter().map(|volume| volume.unused).sum::<u64>(),
        volumes.iter().map(|volume| volume.unused_stored).sum::<u64>()
    );

    let mut small = vec![1; bytes.len()];
    image.read_exact_at(&mut small, 0).unwrap();
    let expected_free = free_ranges(probed(&disk, None)).unwrap();
    let mut expected = bytes.clone();
    expected_free.iter().for_each(|range| expected[within(range)].fill(0));
    assert_same(&small, &expected, "the sparsified disk");
    for range in &free {
        assert!(small[within(range)].iter().all(|byte| *byte == 0), "{range:x?}");
    }
    let back: Vec<u8> = root.iter().flat_map(|piece| small[within(piece)].to_vec()).collect();
    fs::write(&system, back).unwrap();
    run("e2fsck", &["-f", "-n", system.to_str().unwrap()]);
    let kept = run("debugfs", &["-R", "cat /file6", system.to_str().unwrap()]);
    assert!(kept == fs::read(tree.join("file6")).unwrap());
    assert_flips(&disk, "LVM", &expected_free, reads, 150);

    // Volumes that are not as simple are kept, and so is what they depend on; free extents are still known.
    let backup = dir.join("backup");
    let backup = backup.to_str().unwrap();
    lvm.run(&["vgcfgbackup", "-q", "-f", backup, "vg"]);
    let text =
        fs::read_to_string(backup).unwrap().replacen("logical_volumes {", &format!("logical_volumes {{ {OTHERS}"), 1);
    fs::write(backup, text).unwrap();
    lvm.run(&["vgcfgrestore", "-q", "--force", "-f", backup, "vg"]);
    let volumes = open(probed(&disk, None)).volumes().unwrap();
    let free: u64 = volumes.iter().filter(|volume| volume.partition.is_some()).map(|volume| volume.unused).sum();
    assert_eq!(free, total(&lvm.segments("")));
    let reason = |name: &str| {
        let named = |volume: &&GuestVolume| volume.logical_volume.as_ref().is_some_and(|own| *own.to_text() == *name);
        volumes.iter().find(named).unwrap().kept.as_deref().map(str::to_owned)
    };
    assert_eq!(reason("vg/root").as_deref(), Some("another logical volume depends on it"));
    assert_eq!(reason("vg/pool").as_deref(), Some("the logical volume is of the type thin-pool"));
    assert_eq!(reason("vg/swap"), None);
    let listed: Vec<_> = volumes.iter().filter_map(|volume| volume.logical_volume.as_ref()).collect();
    assert_eq!(listed.iter().map(|name| name.to_text()).collect::<Vec<_>>(), ["vg/pool", "vg/root", "vg/swap"]);

    // Without one of its physical volumes, a group tells nothing for certain; nor does one that is exported.
    lvm.run(&["vgexport", "-q", "vg"]);
    let volumes = open(probed(&disk, None)).volumes().unwrap();
    assert!(volumes.iter().all(|volume| volume.kept.is_some()), "{volumes:?}");
    lvm.run(&["vgimport", "-q", "vg"]);
    assert!(open(probed(&disk, None)).volumes().unwrap()[0].kept.is_none());
    let mut bytes = fs::read(&disk).unwrap();
    bytes[within(&PARTS[1])].fill(0);
    fs::write(&disk, bytes).unwrap();
    let volumes = open(probed(&disk, None)).volumes().unwrap();
    assert!(volumes[0].kept.as_deref().unwrap().contains("on another disk"), "{volumes:?}");
}
