//! Blocks that a new image shares with its source, on file systems that can do that.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use diskimage::{Comparison, Image, OpenOptions, Reflink, compare};

use crate::support::{Random, TempDir, open_raw, qcow2, raw, tools, vdi, vhdx, vmdk, vpc};

const MIB: u64 = 1 << 20;

/// A new file system in a file, mounted until this is dropped.
struct Mount {
    dir: TempDir,
}

impl Mount {
    /// `None` if there is no such program, or only root can mount here, or not even root.
    fn new(test: &str, file_system: &str) -> Option<Mount> {
        let mkfs = tools::find(test, &[&format!("mkfs.{file_system}")])?;
        let dir = TempDir::new();
        let (device, point) = (dir.join("device"), dir.join("mount"));
        std::fs::File::create(&device).unwrap().set_len(400 * MIB).unwrap();
        std::fs::create_dir(&point).unwrap();
        let run =
            |command: &mut Command| command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success();
        assert!(run(Command::new(mkfs).arg(&device)), "mkfs.{file_system}");
        if !run(Command::new("mount").args(["-o", "loop"]).args([&device, &point])) {
            eprintln!("SKIPPED: {test}: {file_system} cannot be mounted here");
            return None;
        }
        Some(Mount { dir })
    }

    fn join(&self, name: &str) -> PathBuf {
        self.dir.join("mount").join(name)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.dir.join("mount")).status();
    }
}

/// A disk of 20 MiB and a part of a block: 8 MiB of data, some of them not aligned to clusters, and zeros that are data.
fn disk(path: &Path) -> Vec<u8> {
    let mut bytes = vec![0; 20 * MIB as usize + 1536];
    for (at, len) in [(0, MIB), (3 * MIB + 4096, 2 * MIB), (7 * MIB, 5 * MIB)] {
        bytes[at as usize..(at + len) as usize].copy_from_slice(&Random::new(at).bytes(len as usize));
    }
    bytes[10 * MIB as usize..][..65536].fill(0);
    std::fs::write(path, &bytes).unwrap();
    bytes
}

fn free(mount: &Mount) -> u64 {
    let output = Command::new("stat").args(["-f", "-c", "%f %S"]).arg(mount.join("")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().map(|number| number.parse::<u64>().unwrap()).product()
}

fn images_share_blocks(file_system: &str) {
    let Some(mount) = Mount::new("images_share_blocks", file_system) else { return };
    let source = mount.join("source.raw");
    disk(&source);
    let stored = mount.join("source.qcow2");
    qcow2("").reflink(Reflink::Never).convert(&open_raw(&source), &stored).unwrap();
    Command::new("sync").arg("-f").arg(&source).status().unwrap();
    let fixed = "subformat=fixed,force_size=on";
    let flat = "subformat=monolithicFlat";
    let kinds =
        [raw(), qcow2(""), qcow2("cluster_size=4k"), vdi(""), vhdx(""), vpc(fixed), vpc(""), vmdk(flat), vmdk("")];
    for (number, converter) in kinds.into_iter().enumerate() {
        for path in [&source, &stored] {
            let image = if *path == source { open_raw(path) } else { Image::open(path).unwrap() };
            let target = mount.join(&format!("target-{number}"));
            let before = free(&mount);
            let report = converter.clone().reflink(Reflink::Always).convert(&image, &target).unwrap();
            assert!(report.cloned_bytes >= 7 * MIB, "{file_system}, {path:?}: {report:?}");
            assert_eq!(report.cloned_bytes + report.written_bytes, report.data_bytes);
            let options = OpenOptions::new().reference_policy(diskimage::ReferencePolicy::Beside);
            let new = if report.format.name() == "raw" { open_raw(&target) } else { options.open(&target).unwrap() };
            assert_eq!(compare(&image, &new).unwrap(), Comparison::Identical, "{file_system}, {path:?}: {report}");
            // The system does not store the data again: at most a table, and the end of the disk.
            let taken = before.saturating_sub(free(&mount));
            assert!(taken < 4 * MIB, "{file_system}, {path:?}: {taken} bytes for {report}");
            std::fs::remove_file(&target).unwrap();
        }
    }
    // What is looked at is copied, and then zeros are left out.
    let target = mount.join("sparse.raw");
    let report = raw().sparse(4096).convert(&open_raw(&source), &target).unwrap();
    assert_eq!(report.cloned_bytes, 0);
    assert!(std::fs::metadata(&target).unwrap().blocks() * 512 < 8 * MIB);
}

#[test]
fn images_share_blocks_on_xfs() {
    images_share_blocks("xfs");
}

#[test]
fn images_share_blocks_on_btrfs() {
    images_share_blocks("btrfs");
}

/// Elsewhere everything is copied, and zeros are found.
#[test]
fn other_file_systems_copy() {
    let Some(mount) = Mount::new("other_file_systems_copy", "ext4") else { return };
    let source = mount.join("source.raw");
    let bytes = disk(&source);
    let target = mount.join("target.raw");
    let report = raw().convert(&open_raw(&source), &target).unwrap();
    assert_eq!((report.cloned_bytes, report.data_bytes), (0, 8 * MIB - 65536));
    assert_eq!(std::fs::read(&target).unwrap(), bytes);
    let error = raw().reflink(Reflink::Always).convert(&open_raw(&source), mount.join("other.raw")).unwrap_err();
    assert!(error.to_string().contains("cannot share blocks"), "{error}");
    assert!(!mount.join("other.raw").exists());

    // Of two file systems, one may be such as can do it.
    let Some(other) = Mount::new("other_file_systems_copy", "xfs") else { return };
    let target = other.join("target.raw");
    assert_eq!(raw().convert(&open_raw(&source), &target).unwrap().cloned_bytes, 0);
    assert_eq!(std::fs::read(&target).unwrap(), bytes);
}
