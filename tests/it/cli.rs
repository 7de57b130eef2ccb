//! Runs the program, and compares it with `qemu-img` where that has the same command.

mod changes;
mod content;
mod faults;
mod guest;
mod in_place;
mod inspect;
mod luks;
mod manual;
mod preset;
mod progress;
mod sandbox;
mod vmdk;

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::patch::Qcow2;
use crate::support::pattern::Pattern;
use crate::support::tools::{needs_qemu, output, qemu_img, qemu_io};
use crate::support::{TempDir, assert_same, content, open_raw, qcow2, qcow2_bytes};
use diskimage::Image;

pub const IMGCONV: &str = env!("CARGO_BIN_EXE_imgconv");

pub fn imgconv(dir: &TempDir, args: &[&str]) -> Output {
    Command::new(IMGCONV).args(args).current_dir(dir.path()).stdin(Stdio::null()).output().unwrap()
}

/// Runs the program, which must succeed, and returns its standard output.
#[track_caller]
pub fn succeed(dir: &TempDir, args: &[&str]) -> String {
    let done = imgconv(dir, args);
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    assert!(done.stderr.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// Runs the program, which must fail, and returns its error message of one line.
#[track_caller]
pub fn fail(dir: &TempDir, exit: i32, args: &[&str]) -> String {
    let done = imgconv(dir, args);
    let message = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(exit), "{args:?}: {message}");
    assert!(message.ends_with('\n') && message.lines().count() == 1, "{args:?}: one line: {message:?}");
    message
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn json(dir: &TempDir, args: &[&str]) -> Value {
    parse(&succeed(dir, args))
}

/// What `qemu-img` prints, run in the same directory so that names are the same.
fn qemu_json(dir: &TempDir, args: &[&str]) -> Value {
    let done = Command::new("qemu-img").args(args).current_dir(dir.path()).stdin(Stdio::null()).output().unwrap();
    parse(&String::from_utf8(done.stdout).unwrap())
}

#[track_caller]
fn assert_json(ours: &Value, theirs: &Value, what: &str) {
    let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap();
    assert!(ours == theirs, "{what}:\n{}\nqemu-img:\n{}", pretty(ours), pretty(theirs));
}

/// Images of many kinds, made by `qemu-img` in the directory.
fn images(dir: &TempDir) -> Vec<&'static str> {
    let source = dir.file("source.raw", &Pattern::Islands.make(1 << 20));
    let make = |name: &str, options: &str, compress: bool| {
        let mut args: Vec<&dyn AsRef<OsStr>> = vec![&"convert", &"-f", &"raw", &"-O", &"qcow2", &"-o", &options];
        if compress {
            args.push(&"-c");
        }
        let target = dir.join(name);
        args.extend([&source as &dyn AsRef<OsStr>, &target]);
        qemu_img(&args);
    };
    make("plain.qcow2", "compat=1.1", false);
    make("old.qcow2", "compat=0.10", true);
    make("zstd.qcow2", "compression_type=zstd,lazy_refcounts=on,refcount_bits=64", true);
    make("extended.qcow2", "extended_l2=on,cluster_size=128k", false);
    make("small.qcow2", "cluster_size=512,refcount_bits=1", true);
    qemu_io(
        &dir.join("extended.qcow2"),
        &["write -z 0 4k".into(), "discard 128k 128k".into(), "write -P 1 300k 1k".into()],
    );

    make("snapshots.qcow2", "compat=1.1", false);
    let snapshots = dir.join("snapshots.qcow2");
    qemu_img(&[&"snapshot", &"-c", &"first", &snapshots]);
    qemu_io(&snapshots, &["write -P 9 0 100k".into()]);
    qemu_img(&[&"snapshot", &"-c", &"second", &snapshots]);
    make("bitmaps.qcow2", "compat=1.1", false);
    qemu_img(&[&"bitmap", &"--add", &"-g", &"4k", &dir.join("bitmaps.qcow2"), &"monday"]);
    make("base.qcow2", "compat=1.1", false);
    let list = "backing_file=base.qcow2,backing_fmt=qcow2";
    qemu_img(&[&"create", &"-q", &"-f", &"qcow2", &"-o", &list, &dir.join("overlay.qcow2"), &"2M"]);
    qemu_io(&dir.join("overlay.qcow2"), &["write -P 7 64k 64k".into(), "write -z 256k 64k".into()]);
    vec![
        "plain.qcow2",
        "old.qcow2",
        "zstd.qcow2",
        "extended.qcow2",
        "small.qcow2",
        "snapshots.qcow2",
        "bitmaps.qcow2",
        "overlay.qcow2",
    ]
}

/// Rounds the file length up to sectors, as qemu-img does, and removes the names of OpenStack.
fn round_file_length(info: &mut Value) {
    info.as_object_mut().unwrap().remove("glance");
    let len = &mut info["children"][0]["info"]["virtual-size"];
    *len = len.as_u64().unwrap().next_multiple_of(512).into();
}

#[test]
fn info_matches_qemu_img() {
    needs_qemu!("info");
    let dir = TempDir::new();
    for name in images(&dir) {
        let mut ours = json(&dir, &["info", "--output", "json", name]);
        round_file_length(&mut ours);
        assert_json(&ours, &qemu_json(&dir, &["info", "--output=json", name]), name);
        let text = succeed(&dir, &["info", name]);
        assert!(text.contains("virtual size: ") && text.contains("file format: qcow2"), "{text}");
    }
    let args = ["info", "--output=json", "--backing-chain"];
    let mut ours = json(&dir, &[&args[..], &["--references", "beside", "overlay.qcow2"]].concat());
    round_file_length(&mut ours[0]);
    round_file_length(&mut ours[1]);
    assert_json(&ours, &qemu_json(&dir, &[&args[..], &["overlay.qcow2"]].concat()), "chain");
    let refused = fail(&dir, 1, &["info", "--backing-chain", "overlay.qcow2"]);
    assert!(refused.contains("base.qcow2") && refused.contains("--references"), "{refused}");
}

/// The map without holes of the file in data, which `qemu-img` looks for where it suspects preallocation, and without the host
/// offsets that it gives unallocated subclusters in an allocated cluster.
fn by_metadata_alone(map: &Value) -> Value {
    let mut entries: Vec<Value> = Vec::new();
    for entry in map.as_array().unwrap() {
        let mut entry = entry.clone();
        entry["zero"] = (entry["data"] == false).into();
        if entry["present"] == false {
            entry.as_object_mut().unwrap().remove("offset");
        }
        let number = |entry: &Value, key: &str| entry[key].as_u64().unwrap_or(0);
        if let Some(last) = entries.last_mut() {
            let len = number(last, "length");
            let mut continued = entry.clone();
            continued["start"] = (number(&entry, "start") - len).into();
            continued["length"] = len.into();
            if entry.get("offset").is_some() {
                continued["offset"] = number(&entry, "offset").wrapping_sub(len).into();
            }
            if continued == *last {
                last["length"] = (len + number(&entry, "length")).into();
                continue;
            }
        }
        entries.push(entry);
    }
    entries.into()
}

#[test]
fn map_matches_qemu_img() {
    needs_qemu!("map");
    let dir = TempDir::new();
    for name in images(&dir) {
        let ours = json(&dir, &["map", "--output", "json", "--references", "beside", name]);
        let theirs = qemu_json(&dir, &["map", "--output=json", name]);
        assert_json(&by_metadata_alone(&ours), &by_metadata_alone(&theirs), name);
        assert!(succeed(&dir, &["map", "--references", "beside", name]).starts_with("Offset"), "{name}");
    }
}

#[test]
fn holes_of_preallocated_images_match_qemu_img() {
    needs_qemu!("map");
    let dir = TempDir::new();
    let source = dir.join("source.raw");
    std::fs::write(&source, Pattern::Dense.make(1 << 20)).unwrap();
    std::fs::File::options().write(true).open(&source).unwrap().set_len(64 << 20).unwrap();
    for (name, format, options) in [
        ("a.raw", "raw", "preallocation=off"),
        ("a.qcow2", "qcow2", "preallocation=metadata"),
        ("fixed.vhd", "vpc", "subformat=fixed"),
        ("static.vdi", "vdi", "static=on"),
        ("flat.vmdk", "vmdk", "subformat=monolithicFlat"),
    ] {
        qemu_img(&[&"convert", &"-f", &"raw", &"-O", &format, &"-o", &options, &source, &dir.join(name)]);
        let ours = json(&dir, &["map", "--output", "json", "--references", "beside", "-f", format, name]);
        let theirs = qemu_json(&dir, &["map", "--output=json", "-f", format, name]);
        assert_json(&ours, &theirs, name);
        assert!(theirs.as_array().unwrap().iter().any(|entry| entry["zero"] == true), "{name}");
    }
}

#[test]
fn check_matches_qemu_img() {
    needs_qemu!("check");
    let dir = TempDir::new();
    for name in images(&dir) {
        let ours = json(&dir, &["check", "--output", "json", name]);
        assert_json(&ours, &qemu_json(&dir, &["check", "--output=json", name]), name);
    }
    // A leaked cluster, and an entry whose cluster has refcount 0.
    let image = Qcow2(qcow2_bytes(&qcow2("cluster_size=4k"), &Pattern::Dense.make(128 << 10)));
    let entry = image.l2_entry(3);
    let block = image.u64(image.u64(48));
    let host = (image.u64(entry) & 0x00ff_ffff_ffff_fe00) / 4096;
    let mut leaking = image.clone();
    leaking.put_u64(entry, 0);
    let mut corrupt = image.clone();
    corrupt.put(block + host * 2, &[0, 0]);
    for (name, image, exit) in [("leaking.qcow2", leaking, 3), ("corrupt.qcow2", corrupt, 2)] {
        let path = dir.file(name, &image.0);
        let done = imgconv(&dir, &["check", "--output", "json", name]);
        assert_eq!(done.status.code(), Some(exit), "{name}");
        assert_eq!(output("qemu-img", &[OsStr::new("check"), path.as_os_str()]).status.code(), Some(exit), "{name}");
        let ours = parse(&String::from_utf8(done.stdout).unwrap());
        let theirs = qemu_json(&dir, &["check", "--output=json", name]);
        for key in ["corruptions", "leaks", "check-errors", "total-clusters", "allocated-clusters"] {
            assert_eq!(ours.get(key), theirs.get(key), "{name}: {key}");
        }
    }
    assert_eq!(imgconv(&dir, &["check", "-f", "raw", "source.raw"]).status.code(), Some(63));
    fail(&dir, 63, &["check", "-f", "raw", "source.raw"]);
    fail(&dir, 1, &["check", "absent"]);
}

#[test]
fn snapshots_are_listed() {
    needs_qemu!("snapshot -l");
    let dir = TempDir::new();
    images(&dir);
    let ours = succeed(&dir, &["snapshot", "-l", "snapshots.qcow2"]);
    let theirs = String::from_utf8(qemu_img(&[&"snapshot", &"-l", &dir.join("snapshots.qcow2")])).unwrap();
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    // Dates are in UTC here and in local time there, so only names are compared.
    for name in ["first", "second"] {
        assert!(words(&ours).contains(&name.to_owned()) && words(&theirs).contains(&name.to_owned()), "{ours}");
    }
    let ours = json(&dir, &["snapshot", "-l", "--output", "json", "snapshots.qcow2"]);
    let theirs = qemu_json(&dir, &["info", "--output=json", "snapshots.qcow2"]);
    assert_json(&ours, &theirs["snapshots"], "snapshots");
}

#[test]
fn conversions() {
    let dir = TempDir::new();
    let guest = Pattern::Tail.make(1 << 20);
    dir.file("source.raw", &guest);
    succeed(&dir, &["convert", "source.raw", "a.qcow2"]);
    assert_same(&content(&Image::open(dir.join("a.qcow2")).unwrap()).unwrap(), &guest, "by extension");
    succeed(
        &dir,
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-c",
            "-o",
            "compression_type=zstd,cluster_size=16k",
            "-m",
            "2",
            "source.raw",
            "b",
        ],
    );
    let image = Image::open(dir.join("b")).unwrap();
    assert_same(&content(&image).unwrap(), &guest, "zstd");
    assert_eq!(image.info().block_size, Some(16 << 10));
    succeed(&dir, &["convert", "-S", "0", "-q", "--no-sync", "b", "c.img"]);
    assert_same(&std::fs::read(dir.join("c.img")).unwrap(), &guest, "back to raw");

    // As scripts call qemu-img.
    succeed(&dir, &["convert", "-t", "none", "-T", "writeback", "-W", "-C", "b", "script.qcow2"]);
    let image = Image::open(dir.join("script.qcow2")).unwrap();
    assert_same(&content(&image).unwrap(), &guest, "with options of qemu-img");
    assert!(fail(&dir, 1, &["convert", "-t", "sometimes", "b", "f.qcow2"]).contains("sometimes"));

    // An overlay of a base with one difference.
    let mut base = guest.clone();
    base[1 << 19] ^= 1;
    dir.file("base.raw", &base);
    succeed(&dir, &["convert", "-B", "base.raw", "-F", "raw", "source.raw", "overlay.qcow2"]);
    let refused = fail(&dir, 1, &["convert", "overlay.qcow2", "d.raw"]);
    assert!(refused.contains("base.raw") && refused.contains("--references"), "{refused}");
    succeed(&dir, &["convert", "--references", "beside", "overlay.qcow2", "d.raw"]);
    assert_same(&std::fs::read(dir.join("d.raw")).unwrap(), &guest, "flattened");
    assert!(std::fs::metadata(dir.join("overlay.qcow2")).unwrap().len() < 1 << 19);

    let report = json(&dir, &["convert", "--output", "json", "-O", "raw", "b", "e"]);
    assert_eq!(report["virtual-size"], guest.len() as u64, "{report}");
    assert!(fail(&dir, 1, &["convert", "source.raw", "f"]).contains("-O"));
    assert!(fail(&dir, 1, &["convert", "--no-clobber", "source.raw", "a.qcow2"]).contains("a.qcow2"));
    assert!(fail(&dir, 1, &["convert", "source.raw", "./source.raw"]).contains("source.raw"));
    assert_same(&std::fs::read(dir.join("source.raw")).unwrap(), &guest, "source");
}

#[test]
fn create_and_compare() {
    let dir = TempDir::new();
    for (size, bytes) in [("1536", 1536), ("512k", 512 << 10), ("1.5M", 3 << 19), ("10G", 10 << 30)] {
        succeed(&dir, &["create", "-f", "qcow2", "-o", "cluster_size=4k", "new.qcow2", size]);
        assert_eq!(Image::open(dir.join("new.qcow2")).unwrap().virtual_size(), bytes, "{size}");
    }
    succeed(&dir, &["create", "-f", "raw", "a.raw", "64k"]);
    succeed(&dir, &["create", "-f", "qcow2", "a.qcow2", "128k"]);
    dir.file("b.raw", &[1; 512]);
    let run = |args: &[&str]| imgconv(&dir, &[&["compare"], args].concat()).status.code();
    assert_eq!(run(&["a.raw", "a.qcow2"]), Some(0));
    assert_eq!(run(&["a.raw", "b.raw"]), Some(1));
    assert_eq!(run(&["a.raw", "absent"]), Some(2));
    let said = imgconv(&dir, &["compare", "b.raw", "a.raw"]);
    assert!(String::from_utf8_lossy(&said.stdout).contains("offset 0"), "{said:?}");
    assert!(fail(&dir, 1, &["create", "-f", "qcow2", "-o", "cluster_size=1000", "x", "1M"]).contains("cluster_size"));
    assert!(fail(&dir, 1, &["create", "-f", "qcow2", "x", "many"]).contains("many"));
}

#[test]
fn formats_are_listed() {
    let dir = TempDir::new();
    let text = succeed(&dir, &["formats"]);
    let listed = json(&dir, &["formats", "--output", "json"]).to_string();
    for format in diskimage::Format::all() {
        for text in [&text, &listed] {
            assert!(text.contains(format.name()), "{text}");
            assert!(format.options().iter().all(|option| text.contains(option.name)), "{text}");
        }
    }
    assert!(text.contains("cloop: compressed disk of Knoppix, version 2 (read)"), "{text}");
    assert!(text.contains("dmg: disk image of macOS (UDIF) (read, checked)"), "{text}");
    assert!(text.contains("(read, written, checked)"), "{text}");
    assert!(text.contains("  --for xcp-ng\n      VHD, dynamic"), "{text}");
}

#[test]
fn errors_in_human_and_json_style() {
    let dir = TempDir::new();
    let mut image = Qcow2(qcow2_bytes(&qcow2("cluster_size=4k"), &Pattern::Dense.make(128 << 10)));
    let at = image.l2_entry(5);
    image.put_u64(at, 1 << 63 | 1 << 40);
    dir.file("bad.qcow2", &image.0);
    let said = fail(&dir, 1, &["convert", "bad.qcow2", "x.raw"]);
    assert!(said.contains("bad.qcow2") && said.contains("L2 entry") && said.contains(&format!("{at:#x}")), "{said}");
    assert_eq!(dir.names(), ["bad.qcow2"]);

    let done = imgconv(&dir, &["convert", "--output", "json", "bad.qcow2", "x.raw"]);
    let error = &parse(&String::from_utf8(done.stdout).unwrap())["error"];
    assert_eq!(error["kind"], "out-of-bounds", "{error}");
    assert_eq!(error["field"], "L2 entry", "{error}");
    assert!(error.to_string().contains(&at.to_string()), "{error}");
    assert!(error["path"].as_str().unwrap().ends_with("bad.qcow2"), "{error}");
    assert_eq!(error["guest-start"], 5 * 4096, "{error}");

    for args in
        [&["convert"][..], &["convert", "absent", "x.raw"], &["info", "absent"], &["map", "absent"], &["frobnicate"]]
    {
        fail(&dir, 1, args);
    }
    fail(&dir, 2, &["compare", "absent", "absent"]);
    // Text from images is escaped for the terminal.
    let mut list = diskimage::Options::new();
    list.set("backing_file", "a\x1b[31m\nb");
    list.set("backing_fmt", "raw");
    qcow2("").options(list).create(1 << 20, dir.join("evil.qcow2")).unwrap();
    assert!(!fail(&dir, 1, &["convert", "evil.qcow2", "x.raw"]).contains('\x1b'));
    assert!(!succeed(&dir, &["info", "evil.qcow2"]).contains('\x1b'));
}

/// Starts a conversion of minutes and waits until it writes.
fn endless(dir: &TempDir) -> Child {
    let source = std::fs::File::create(dir.join("source.raw")).unwrap();
    source.set_len(64 << 30).unwrap();
    let args = ["convert", "-S", "0", "-c", "--no-sync", "source.raw", "target.qcow2"];
    let child = Command::new(IMGCONV).args(args).current_dir(dir.path()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while dir.names().len() < 2 && !has_unnamed_file(child.id()) {
        assert!(begun.elapsed() < Duration::from_secs(60), "the conversion has not started");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

/// Whether the process has a new file that has no name yet, on Linux.
fn has_unnamed_file(process: u32) -> bool {
    let Ok(files) = std::fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    let targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    targets.into_iter().any(|target| target.to_string_lossy().ends_with(" (deleted)"))
}

#[test]
fn signals_leave_no_files() {
    for (signal, number) in [("TERM", 15), ("INT", 2), ("HUP", 1)] {
        let dir = TempDir::new();
        let child = endless(&dir);
        let id = child.id().to_string();
        assert!(Command::new("sh").args(["-c", "kill -s $0 $1", signal, &id]).status().unwrap().success());
        let done = child.wait_with_output().unwrap();
        let exit = done.status.code().or(done.status.signal().map(|signal| 128 + signal));
        assert_eq!(exit, Some(128 + number), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(dir.names(), ["source.raw"], "{signal}");
    }
}

/// Many threads are wanted, and there is address space for a few.
#[cfg(target_os = "linux")]
#[test]
fn threads_fit_into_the_address_space() {
    let dir = TempDir::new();
    dir.file("source.raw", &Pattern::Tail.make(3 << 20));
    for mib in [160, 224, 256, 384] {
        for _ in 0..4 {
            let script = format!("ulimit -v {} && exec '{IMGCONV}' convert -m 16 -c source.raw x.qcow2", mib << 10);
            let done = Command::new("sh").args(["-c", &script]).current_dir(dir.path()).output().unwrap();
            assert!(done.status.success(), "{mib} MiB: {}", String::from_utf8_lossy(&done.stderr));
        }
    }
}

#[test]
fn two_runs_to_one_target() {
    let dir = TempDir::new();
    let guest = Pattern::Dense.make(3 << 20);
    dir.file("source.raw", &guest);
    let run =
        || Command::new(IMGCONV).args(["convert", "source.raw", "t.qcow2"]).current_dir(dir.path()).spawn().unwrap();
    let children = [run(), run(), run()];
    assert!(children.map(|mut child| child.wait().unwrap().success()).contains(&true));
    assert_eq!(dir.names(), ["source.raw", "t.qcow2"]);
    assert_same(&content(&Image::open(dir.join("t.qcow2")).unwrap()).unwrap(), &guest, "complete result");
}

#[test]
fn closed_outputs_do_not_panic() {
    let dir = TempDir::new();
    dir.file("source.raw", &Pattern::Islands.make(1 << 20));
    let script = format!("'{IMGCONV}' map --output json source.raw >&- 2>&-; test $? -lt 100");
    assert!(Command::new("sh").args(["-c", &script]).current_dir(dir.path()).status().unwrap().success());
    let opened = open_raw(Path::new(&dir.join("source.raw")));
    assert_eq!(opened.virtual_size(), 1 << 20);
}
