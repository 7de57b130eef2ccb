//! The same image is written by qemu and by this crate, in turns.

use std::path::Path;
use std::process::Command;

use diskimage::{Format, OpenOptions, ReferencePolicy};

use crate::support::tools::needs_qemu;
use crate::support::{Random, TempDir};

const SIZE: u64 = 3 << 20;

fn run(program: &str, args: &[&str], dir: &TempDir) {
    let done = Command::new(program).args(args).current_dir(dir.path()).output().unwrap();
    let said = [done.stdout, done.stderr].concat();
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&said));
}

/// What is done to the disk: a pattern, or zeros.
fn by_qemu(dir: &TempDir, range: &std::ops::Range<u64>, pattern: u8) {
    let what = if pattern == 0 { "-z".to_owned() } else { format!("-P {pattern}") };
    let write = format!("write {what} {} {}", range.start, range.end - range.start);
    run("qemu-io", &["-f", "qcow2", "-c", &write, "disk.qcow2"], dir);
}

fn by_us(path: &Path, range: &std::ops::Range<u64>, pattern: u8, snapshot: Option<&str>) {
    let options = OpenOptions::new().format(Format::QCOW2).reference_policy(ReferencePolicy::Beside);
    let disk = options.open_disk(path).unwrap();
    match pattern {
        0 => disk.write_zeros(range.clone()).unwrap(),
        _ => disk.write_all_at(&vec![pattern; (range.end - range.start) as usize], range.start).unwrap(),
    }
    if let Some(name) = snapshot {
        disk.create_snapshot(name).unwrap();
        disk.delete_snapshot("kept").unwrap();
        disk.create_snapshot("kept").unwrap();
    }
    disk.close().unwrap();
}

#[test]
fn qemu_and_this_crate_write_in_turns() {
    needs_qemu!("writing in turns with qemu");
    for options in [
        "cluster_size=64k",
        "cluster_size=512",
        "compat=0.10,cluster_size=4k",
        "extended_l2=on,cluster_size=16k",
        "lazy_refcounts=on,cluster_size=2k",
        "refcount_bits=64,cluster_size=1k",
        "data_file=disk.data,cluster_size=4k",
        "data_file=disk.data,extended_l2=on,cluster_size=16k",
        "data_file=disk.data,data_file_raw=on",
    ] {
        let dir = TempDir::new();
        let has_data_file = options.starts_with("data_file");
        let mut content: Vec<u8> = (0..SIZE).map(|at| if at < SIZE / 2 { 1 } else { 0 }).collect();
        dir.file("base.raw", &content);
        let create = ["create", "-q", "-f", "qcow2", "-o", options];
        if options.ends_with("data_file_raw=on") {
            content.fill(0);
            run("qemu-img", &[&create[..], &["disk.qcow2", "3M"]].concat(), &dir);
        } else {
            run("qemu-img", &[&create[..], &["-b", "base.raw", "-F", "raw", "disk.qcow2"]].concat(), &dir);
        }
        if !has_data_file {
            run("qemu-img", &["snapshot", "-c", "kept", "disk.qcow2"], &dir);
        }
        let seeds = super::seeds(10);
        let mut random = Random::new(options.len() as u64 + seeds.start);
        for round in 0..seeds.end - seeds.start {
            let start = random.below(SIZE / 512) * 512;
            let range = start..(start + (random.below(300) + 1) * 512).min(SIZE);
            let pattern = random.below(5) as u8;
            if round % 2 == 0 {
                by_qemu(&dir, &range, pattern);
            } else {
                let name = format!("snapshot {round}");
                by_us(&dir.join("disk.qcow2"), &range, pattern, (round % 5 == 0 && !has_data_file).then_some(&name));
            }
            content[range.start as usize..range.end as usize].fill(pattern);
            run("qemu-img", &["check", "-q", "disk.qcow2"], &dir);
        }
        dir.file("expected.raw", &content);
        run("qemu-img", &["compare", "-F", "raw", "disk.qcow2", "expected.raw"], &dir);
        if options.ends_with("data_file_raw=on") {
            run("qemu-img", &["compare", "-f", "raw", "-F", "raw", "disk.data", "expected.raw"], &dir);
        }
    }
}

#[test]
fn an_image_that_is_open_is_locked_for_qemu() {
    needs_qemu!("the locks of qemu");
    let dir = TempDir::new();
    run("qemu-img", &["create", "-q", "-f", "qcow2", "disk.qcow2", "1M"], &dir);
    let disk = OpenOptions::new().open_disk(dir.join("disk.qcow2")).unwrap();
    let write = |program: &str, args: &[&str]| {
        let done = Command::new(program).args(args).current_dir(dir.path()).output().unwrap();
        String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned()
    };
    if cfg!(all(target_os = "linux", target_pointer_width = "64")) {
        for said in [write("qemu-io", &["-c", "write 0 512", "disk.qcow2"]), write("qemu-img", &["info", "disk.qcow2"])]
        {
            assert!(said.contains("lock"), "{said}");
        }
        assert_eq!(OpenOptions::new().open_disk(dir.join("disk.qcow2")).unwrap_err().kind().as_str(), "in-use");
    }
    disk.close().unwrap();
    run("qemu-io", &["-c", "write 0 512", "disk.qcow2"], &dir);
}
