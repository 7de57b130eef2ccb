//! The command line of qemu-img: every line is run by both programs, each in a directory of its own with the same files.

#[path = "qemu_img/encrypted.rs"]
mod encrypted;
#[path = "qemu_img/existing.rs"]
mod existing;
#[path = "qemu_img/repairs.rs"]
mod repairs;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use diskimage::driver::DirtyBitmap;
use diskimage::io::ReadAt;
use diskimage::{OpenOptions, ReferencePolicy};
use serde_json::Value;

use crate::cli::IMGCONV;
use crate::support::TempDir;
use crate::support::pattern::Pattern;
use crate::support::tools::{needs_qemu, qemu_io, qemu_io_as};

/// A directory with the images that the lines name.
fn directory() -> TempDir {
    let dir = TempDir::new();
    dir.file("disk.raw", &Pattern::Islands.make(3 << 20));
    dir.file("small.raw", &Pattern::Dense.make(64 << 10));
    dir.file("odd.raw", &Pattern::Dense.make(70_000));
    dir.file("shorter.raw", &Pattern::Dense.make(69_999));
    let mut different = Pattern::Dense.make(64 << 10);
    different[5000] ^= 1;
    dir.file("different.raw", &different);
    dir.file("pass", b"secret");
    for line in [
        "convert -f raw -O qcow2 disk.raw disk.qcow2",
        "convert -f raw -O vmdk disk.raw disk.vmdk",
        "convert -f raw -O vmdk -o subformat=twoGbMaxExtentSparse disk.raw split.vmdk",
        "create -q -f qcow2 -b disk.qcow2 -F qcow2 overlay.qcow2",
        "create -q -f qcow2 -b disk.raw -F raw top.qcow2 4M",
        "create -q -f qcow2 existing.qcow2 3M",
        "create -q -f qcow2 -o cluster_size=4k,refcount_bits=8 tuned.qcow2 5M",
        "create -q -f vmdk -o adapter_type=lsilogic existing.vmdk 3M",
        "create -q -f vdi existing.vdi 3M",
        "create -q -f vhdx -o block_size=2M existing.vhdx 3M",
        "create -q -f vpc existing.vpc 3M",
        "create -q -f vpc -o force_size=on exact.vpc 3M",
        "create -q -f qed -o cluster_size=4k existing.qed 3M",
        "convert -f raw -O parallels small.raw small.hds",
        "convert -f raw -O qed disk.raw disk.qed",
        "create -q -f qcow -b disk.raw -F raw top.qcow",
        "convert -f raw -O qcow small.raw small.qcow",
        "create -q -f qcow2 -o preallocation=metadata preallocated.qcow2 5M",
        "snapshot -c before disk.qcow2",
        "convert -f raw -O qcow2 disk.raw plain.qcow2",
        "snapshot -c before plain.qcow2",
        "bitmap --add disk.qcow2 marks",
        "convert -c -f raw -O qcow2 disk.raw compressed.qcow2",
        "create -q -f luks --object secret,id=s,file=pass -o key-secret=s,iter-time=10 vol.luks 1M",
    ] {
        let done = run("qemu-img", &[], &dir, line);
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
    }
    dir
}

fn run(program: &str, first: &[&str], dir: &TempDir, line: &str) -> Output {
    let mut command = Command::new(program);
    command.args(first).args(line.split(' ')).current_dir(dir.path()).stdin(Stdio::null()).env("TZ", "UTC");
    command.output().unwrap()
}

/// What differs between two runs of qemu-img, too.
const VOLATILE: [&str; 8] =
    ["cid", "disk size", "actual-size", "uuid", "date-sec", "date-nsec", "icount", "parent cid"];

/// What a program printed, without what is volatile, in JSON in the order of the keys.
fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(value) = serde_json::from_str(&text) {
        return format!("{:?}", sorted(&value));
    }
    // Of the progress, the beginning and the end.
    let steps: Vec<_> = text.split('\r').collect();
    let text = match steps.as_slice() {
        [first, .., last, rest] => format!("{first}\n{last}\n{rest}"),
        _ => text.into_owned(),
    };
    let is_volatile = |line: &&str| line.split_once(':').is_some_and(|(key, _)| VOLATILE.contains(&key.trim()));
    text.lines().filter(|line| !is_volatile(line)).collect::<Vec<_>>().join("\n")
}

/// The values of a JSON text with their paths.
fn sorted(value: &Value) -> BTreeMap<String, String> {
    let nested: Vec<(String, &Value)> = match value {
        Value::Object(members) => members.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(values) => values.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect(),
        other => return BTreeMap::from([(String::new(), other.to_string())]),
    };
    let nested = nested.into_iter().filter(|(key, _)| !VOLATILE.contains(&key.as_str()));
    nested
        .flat_map(|(key, value)| sorted(value).into_iter().map(move |(rest, text)| (format!("{key}.{rest}"), text)))
        .collect()
}

/// Copies of the directory, for each program one.
fn twins(dir: &TempDir) -> [TempDir; 2] {
    [TempDir::new(), TempDir::new()].inspect(|twin| {
        for name in dir.names() {
            fs::copy(dir.join(&name), twin.join(&name)).unwrap();
        }
    })
}

trait Inspect {
    fn inspect(self, f: impl Fn(&TempDir)) -> Self;
}

impl Inspect for [TempDir; 2] {
    fn inspect(self, f: impl Fn(&TempDir)) -> Self {
        self.iter().for_each(f);
        self
    }
}

/// What is in an image: its format, size and contents, as qemu-img reads them, and the cluster size.
fn image(dir: &TempDir, name: &str) -> Option<(String, Vec<u8>)> {
    if !dir.join(name).exists() {
        return None;
    }
    let info = run("qemu-img", &[], dir, &format!("info --output=json {name}"));
    let info = String::from_utf8(info.stdout).unwrap();
    let keys = [
        "virtual-size",
        "format",
        "cluster-size",
        "backing-filename",
        "compat",
        "granularity",
        "name",
        "lazy-refcounts",
    ];
    let keys = keys.map(|key| format!("\"{key}\":"));
    let top = info.lines().filter(|line| keys.iter().any(|key| line.trim_start().starts_with(&**key)));
    // The size of the file is that of its own format.
    let described = top.filter(|line| !line.starts_with("                ")).collect::<Vec<_>>().join("\n");
    let raw = format!("{name}.as-raw");
    let done = run("qemu-img", &[], dir, &format!("convert -O raw {name} {raw}"));
    assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
    let bytes = fs::read(dir.join(&raw)).unwrap();
    fs::remove_file(dir.join(&raw)).unwrap();
    Some((described, bytes))
}

/// Runs a line with both programs. They must print the same, end with the same code, and leave the same `target`. Returns the directories
/// of qemu-img and of this program.
fn assert_same(dir: &TempDir, line: &str, target: Option<&str>) -> [TempDir; 2] {
    let [theirs, ours] = twins(dir);
    let (a, b) = (run("qemu-img", &[], &theirs, line), run(IMGCONV, &["qemu-img"], &ours, line));
    assert_eq!(b.status.code(), a.status.code(), "{line}: {}", String::from_utf8_lossy(&b.stderr));
    assert_eq!(text(&b.stdout), text(&a.stdout), "{line}");
    assert_eq!(text(&b.stderr), text(&a.stderr), "{line}");
    if let Some(target) = target {
        assert_eq!(ours.names(), theirs.names(), "{line}");
        assert!(image(&theirs, target) == image(&ours, target), "{line}: {target} differs");
    }
    [theirs, ours]
}

#[test]
fn what_is_read_is_printed_as_by_qemu_img() {
    needs_qemu!("what qemu-img prints");
    let dir = directory();
    for line in [
        "info disk.raw",
        "info odd.raw",
        "info --output json odd.raw",
        "info disk.qcow2",
        "info --output=json -U disk.qcow2",
        "info -f qcow2 overlay.qcow2",
        "info --backing-chain overlay.qcow2",
        "info disk.vmdk",
        "info split.vmdk",
        "info --output json split.vmdk",
        "info vol.luks",
        "info json:{'driver':'qcow2','file':{'driver':'file','filename':'disk.qcow2'}}",
        "info --image-opts driver=qcow2,file.filename=disk.qcow2",
        "snapshot -l disk.raw",
        "check disk.qcow2",
        "check --output=json disk.qcow2",
        "check disk.raw",
        "check -q overlay.qcow2",
        "compare disk.raw disk.qcow2",
        "compare -s disk.qcow2 disk.qcow2",
        "compare -s -f qcow2 -F qcow2 overlay.qcow2 top.qcow2",
        "compare -f raw -F vmdk disk.raw disk.vmdk",
        "compare -p disk.raw overlay.qcow2",
        "compare small.raw disk.raw",
        "compare -q small.raw disk.raw",
        "compare disk.raw nothing",
        "map disk.qcow2",
        "map --output=json disk.qcow2",
        "map --output=json odd.raw",
        "map --output=json existing.vhdx",
        "map existing.vhdx",
        "map compressed.qcow2",
        "map --output=json compressed.qcow2",
        "compare different.raw small.raw",
        "compare -s different.raw small.raw",
        "compare -s disk.raw compressed.qcow2",
        "compare -s existing.vhdx existing.vpc",
        "compare -s existing.qcow2 disk.raw",
        "compare -s disk.raw existing.vdi",
        "compare -s preallocated.qcow2 tuned.qcow2",
        "map --output=json shorter.raw",
        "map --output=json overlay.qcow2",
        "map --output json --start-offset 1M --max-length 1M disk.qcow2",
        "map --output=json small.hds",
        "map --output=json disk.qed",
        "map --output=json --image-opts driver=vpc,file.filename=exact.vpc",
        "map --output=json --image-opts driver=vpc,force_size_calc=chs,file.filename=exact.vpc",
        "map --output=json --image-opts driver=vpc,force_size_calc=current_size,file.filename=existing.vpc",
        "map --output=json preallocated.qcow2",
        "amend -o help existing.qcow2",
        "amend -f luks -o help",
        "measure -O qcow2 disk.qcow2",
        "measure -O raw --size 1G",
        "measure -O qcow2 -o cluster_size=128k,extended_l2=on --size 10G",
    ] {
        assert_same(&dir, line, None);
    }
}

#[test]
fn what_is_written_is_the_same_image() {
    needs_qemu!("what qemu-img writes");
    let dir = directory();
    for (line, target) in [
        ("create -f qcow2 x 1G", "x"),
        ("create x 20M", "x"),
        ("create -f raw x 1000", "x"),
        ("create -q -f qcow2 -o cluster_size=4k,compat=0.10 x 0x100000", "x"),
        ("create -f qcow2 -b disk.qcow2 -F qcow2 x", "x"),
        ("create -f qcow2 -o backing_file=disk.raw,backing_fmt=raw,lazy_refcounts=on x 1G", "x"),
        ("create -f vmdk x 10M", "x"),
        ("create -f vpc x 10M", "x"),
        ("create -f vhdx x 10M", "x"),
        ("create -f vdi x 10M", "x"),
        ("create -f qed x 10M", "x"),
        ("create -f parallels x 10M", "x"),
        ("create -f vhdx -o preallocation=off x 10M", "x"),
        ("create -f qcow2 -o size=3M,nocow=off x", "x"),
        ("create -f qcow2 --object secret,id=s,file=pass -o encryption=on,encrypt.key-secret=s -q y 1M", "disk.raw"),
        ("create -f qcow --object secret,id=s,file=pass -o encryption=on,encrypt.key-secret=s y 1M", "disk.raw"),
        ("measure --object secret,id=s,file=pass -O luks -o key-secret=s,preallocation=falloc --size 1G", "disk.raw"),
        ("convert disk.qcow2 x", "x"),
        ("convert -O qcow2 overlay.qcow2 x", "x"),
        ("convert -p -t none -W -m 4 -c -O qcow2 disk.raw x", "x"),
        ("convert --bitmaps -O qcow2 disk.qcow2 x", "x"),
        ("convert --bitmaps --skip-broken-bitmaps -O qcow2 -o cluster_size=4k disk.qcow2 x", "x"),
        ("convert -O qcow2 odd.raw x", "x"),
        ("convert odd.raw x", "x"),
        ("convert small.raw odd.raw disk.qcow2 -O qcow2 x", "x"),
        ("convert -l before -O raw disk.qcow2 x", "x"),
        ("convert -O vpc disk.raw x", "x"),
        ("convert -O vhdx disk.raw x", "x"),
        ("convert -B disk.qcow2 -F qcow2 -O qcow2 overlay.qcow2 x", "x"),
        ("convert -n -O qcow2 disk.raw existing.qcow2", "existing.qcow2"),
        ("convert -n -O qcow2 small.raw tuned.qcow2", "tuned.qcow2"),
        ("convert -n -O vmdk small.raw existing.vmdk", "existing.vmdk"),
        ("convert -n -O vdi small.raw existing.vdi", "existing.vdi"),
        ("convert -n -O vhdx small.raw existing.vhdx", "existing.vhdx"),
        ("convert -n -O vpc small.raw existing.vpc", "existing.vpc"),
        ("convert -n -O qed small.raw existing.qed", "existing.qed"),
        ("convert -n -O raw small.raw disk.raw", "disk.raw"),
        ("convert -n -O raw odd.raw shorter.raw", "shorter.raw"),
        ("convert -n -O raw shorter.raw odd.raw", "odd.raw"),
        ("convert -O raw json:{'driver':'qcow2','backing':null,'file.filename':'overlay.qcow2'} x", "x"),
        ("convert -O raw --image-opts driver=qcow2,file.filename=overlay.qcow2,file.locking=off x", "x"),
        ("convert --image-opts driver=raw,offset=64k,size=128k,file.filename=disk.raw x", "x"),
        ("dd if=disk.qcow2 of=x bs=64k skip=7", "x"),
        ("dd if=disk.raw of=x bs=64k count=3", "x"),
        ("dd if=disk.raw of=x bs=64k count=9 skip=7", "x"),
        ("dd if=disk.raw of=x bs=64k count=2 skip=7", "x"),
        ("dd if=odd.raw of=x bs=1000 count=0x3", "x"),
        ("dd -O qcow2 if=disk.raw of=x bs=1M", "x"),
    ] {
        assert_same(&dir, line, Some(target));
    }
}

#[test]
fn data_files_are_the_same() {
    needs_qemu!("data files of qemu-img");
    let dir = directory();
    for line in [
        "create -f qcow2 -o data_file=data x 3M",
        "create -f qcow2 -o data_file=data,data_file_raw=on,preallocation=full x 3M",
        "convert -O qcow2 -o data_file=data disk.raw x",
        "convert -O qcow2 -o data_file=data,data_file_raw=on,cluster_size=4k odd.raw x",
        "convert -O qcow2 -o data_file=data,extended_l2=on -B disk.qcow2 -F qcow2 overlay.qcow2 x",
    ] {
        let [theirs, ours] = assert_same(&dir, line, Some("x"));
        let data = |dir: &TempDir| fs::read(dir.join("data")).unwrap();
        // A raw data file of qemu-img ends with a whole cluster, not with the disk.
        let (theirs_data, ours_data) = (data(&theirs), data(&ours));
        assert!(theirs_data.starts_with(&ours_data), "{line}: the data files differ");
        assert!(theirs_data[ours_data.len()..].iter().all(|&byte| byte == 0), "{line}: the data files differ");
        // Each program checks and reads what the other one has written.
        for (program, first, dir) in [("qemu-img", &[][..], &ours), (IMGCONV, &["qemu-img"][..], &theirs)] {
            for line in ["check x", "compare -f qcow2 x x", "convert -O raw x back"] {
                let done = run(program, first, dir, line);
                assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
            }
        }
        assert!(fs::read(theirs.join("back")).unwrap() == fs::read(ours.join("back")).unwrap(), "{line}");
    }
}

#[test]
fn failures_have_the_words_and_codes_of_qemu_img() {
    needs_qemu!("the failures of qemu-img");
    let dir = directory();
    for line in [
        "info",
        "info nothing.qcow2",
        "info --image-opts driver=qcow2,file.filename=disk.raw",
        "bitmap --merge marks -b existing.qcow2 -F qcow2 disk.qcow2 marks",
        "bitmap --merge marks -b disk.qcow2 -F qcow2 tuned.qcow2 marks",
        "bitmap --merge nothing disk.qcow2 marks",
        "bitmap --merge marks disk.qcow2 nothing",
        "bitmap --merge marks -F qcow2 disk.qcow2 marks",
        "bitmap --add -b existing.qcow2 disk.qcow2 new",
        "info -f qcow2 disk.raw",
        "info --nonsense disk.raw",
        "info --output xml disk.raw",
        "nonsense",
        "create -f qcow2 x",
        "create -f qcow2 x many",
        "create -f nonsense x 1M",
        "create -f qcow2 -o nonsense=1 x 1M",
        "create -f qcow2 -o cluster_size=1 x 1M",
        "create -f qcow2 -b nothing -F raw x 1M",
        "create -f qcow2 -b disk.raw x 1M",
        "create -u -f qcow2 -b nothing -F raw x",
        "create -f qcow2 -o compat=0.10,refcount_bits=8 x 1M",
        "create -f qcow2 -o compat=0.10,lazy_refcounts=on x 1M",
        "create -f qcow2 -o cluster_size=4k,extended_l2=on x 1M",
        "create -f qcow2 -o data_file_raw=on x 1M",
        "create -f qcow2 -o data_file=y,compat=0.10 x 1M",
        "create -f qcow2 -o data_file=y,data_file_raw=on -b disk.raw -F raw x 1M",
        "dd if=disk.raw",
        "dd if=disk.raw of=x bs=0",
        "dd if=disk.raw of=x bs=x",
        "dd if=disk.raw of=x count=1k",
        "dd if=disk.raw of=x skip=-1",
        "dd if=disk.raw of=x y",
        "create -f raw -b disk.raw -F raw x",
        "create -f qcow2 nothing/x 1M",
        "convert disk.raw",
        "convert nothing x",
        "convert -O nonsense disk.raw x",
        "convert -O dmg disk.raw x",
        "convert -S 3 disk.raw x",
        "convert -m 17 disk.raw x",
        "convert -t sometimes disk.raw x",
        "convert -n disk.raw nothing",
        "convert -n disk.raw small.raw",
        "convert -n -o a=b disk.raw small.raw",
        "convert -c -O raw disk.raw x",
        "convert -O raw -o preallocation=metadata disk.raw x",
        "convert -O qcow2 disk.raw nothing/x",
        "convert --target-is-zero disk.raw x",
        "convert -l nothing disk.qcow2 x",
        "convert vol.luks x",
        "info --image-opts driver=raw",
        "info --image-opts driver=nonsense,file.filename=disk.raw",
        "convert --bitmaps -O raw disk.qcow2 x",
        "convert --bitmaps -O qcow2 -o compat=0.10 disk.qcow2 x",
        "convert --bitmaps -O qcow2 disk.raw x",
        "convert --bitmaps -O qcow2 disk.qcow2 disk.qcow2 x",
        "convert --skip-broken-bitmaps -O qcow2 disk.qcow2 x",
        "resize",
        "resize disk.qcow2",
        "resize disk.qcow2 1M 2M",
        "resize disk.qcow2 many",
        "resize disk.qcow2 1M",
        "resize disk.qcow2 -10G",
        "resize --shrink disk.qcow2 0",
        "resize disk.qcow2 +100",
        "resize --preallocation=some disk.qcow2 4M",
        "resize --preallocation=full disk.qcow2 3M",
        "resize --preallocation=metadata -f raw disk.raw 4M",
        "resize nothing 4M",
        "resize existing.qed 4M extra",
        "check -r some plain.qcow2",
        "check -r all disk.raw",
        "check -r all existing.vdi",
        "check -r leaks disk.vmdk",
        "resize small.qcow 4M",
        "rebase -b disk.raw -F raw top.qcow",
        "snapshot -a none plain.qcow2",
        "snapshot -d none plain.qcow2",
        "snapshot -a before disk.qcow2",
        "snapshot -d 1 plain.qcow2",
        "snapshot -c x disk.raw",
        "snapshot -c x -l plain.qcow2",
        "snapshot -U -c x plain.qcow2",
        "commit",
        "commit disk.qcow2",
        "commit nothing",
        "commit -b nothing overlay.qcow2",
        "commit -t sometimes overlay.qcow2",
        "amend",
        "amend -o nonsense=1 existing.qcow2",
        "amend -o cluster_size=4k existing.qcow2",
        "amend -o backing_file=x existing.qcow2",
        "amend -f raw -o size=1M disk.raw",
        "amend -f vmdk -o help",
        "amend -f nonsense -o help",
        "amend -o help",
        "amend -o help existing.vdi",
        "amend -o compat=0.11 existing.qcow2",
        "amend -o compat=0.10 tuned.qcow2",
        "amend -o refcount_bits=3 tuned.qcow2",
        "amend -o refcount_bits=x tuned.qcow2",
        "amend -o refcount_bits=1 plain.qcow2",
        "bitmap disk.qcow2 marks",
        "bitmap --add disk.qcow2",
        "bitmap --add disk.qcow2 marks",
        "bitmap --remove disk.qcow2 other",
        "bitmap --add -g 3k disk.qcow2 other",
        "bitmap -g 64k --remove disk.qcow2 marks",
        "rebase overlay.qcow2",
        "rebase -b disk.raw overlay.qcow2",
        "rebase -b nothing -F raw overlay.qcow2",
        "rebase -b disk.raw -F nonsense overlay.qcow2",
        "rebase -u -b disk.raw -F raw nothing",
        "rebase -f raw -u -b disk.raw -F raw disk.raw",
        "rebase -c -f raw -b  disk.raw",
    ] {
        assert_same(&dir, line, None);
    }
}

#[test]
fn an_existing_target_stays_the_same_file() {
    let dir = TempDir::new();
    dir.file("disk.raw", &Pattern::Islands.make(1 << 20));
    dir.file("target", b"old");
    fs::hard_link(dir.join("target"), dir.join("other")).unwrap();
    let inode = |name: &str| fs::metadata(dir.join(name)).unwrap().ino();
    let before = inode("target");
    for line in ["convert -O qcow2 disk.raw target", "create -q -f qcow2 target 1M"] {
        let done = run(IMGCONV, &["qemu-img"], &dir, line);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!((inode("target"), inode("other")), (before, before));
    }
}

#[test]
fn the_program_is_qemu_img_by_its_name() {
    let dir = TempDir::new();
    let done = Command::new(IMGCONV).arg("install-links").arg(dir.path()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let link = dir.join("qemu-img");
    let version = Command::new(&link).arg("--version").output().unwrap();
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("qemu-img version 10.0.2 (imgconv "));
    // A second link needs permission.
    let install =
        |args: &[&str]| Command::new(IMGCONV).arg("install-links").args(args).arg(dir.path()).output().unwrap();
    assert_eq!(install(&[]).status.code(), Some(1));
    assert!(install(&["--force"]).status.success());
    assert_eq!(fs::read_link(&link).unwrap(), Path::new(IMGCONV).canonicalize().unwrap());
}

/// The base of a commit is named as in the overlay, relative to the directory of the overlay.
#[test]
fn the_base_of_a_commit_is_found_as_by_qemu_img() {
    needs_qemu!("commits of qemu-img");
    let dir = TempDir::new();
    let below = |dir: &TempDir| dir.join("below");
    let prepare = |dir: &TempDir| {
        fs::create_dir(below(dir)).unwrap();
        for line in [
            "create -q -f qcow2 below/base 1M",
            "create -q -f qcow2 -b base -F qcow2 below/middle",
            "create -q -f qcow2 -b middle -F qcow2 below/top",
        ] {
            assert!(run("qemu-img", &[], dir, line).status.success(), "{line}");
        }
        qemu_io(&dir.join("below/top"), &["write -P 7 0 64k".into()]);
        std::os::unix::fs::symlink("base", dir.join("below/link")).unwrap();
    };
    for base in ["base", "middle", "./base", "link", "below/base", "top", "nothing"] {
        let [theirs, ours] = twins(&dir).inspect(prepare);
        let line = format!("commit -b {base} below/top");
        let (a, b) = (run("qemu-img", &[], &theirs, &line), run(IMGCONV, &["qemu-img"], &ours, &line));
        assert_eq!((b.status.code(), text(&b.stderr)), (a.status.code(), text(&a.stderr)), "{line}");
        for name in ["below/base", "below/middle", "below/top"] {
            assert!(image(&theirs, name) == image(&ours, name), "{line}: {name} differs");
        }
    }
}

/// Runs a line that must fail, and leave the file as it is. Returns the message.
fn refused(dir: &TempDir, line: &str, file: &str) -> String {
    let before = fs::read(dir.join(file)).unwrap();
    let done = run(IMGCONV, &["qemu-img"], dir, line);
    assert_eq!(done.status.code(), Some(1), "{line}");
    assert!(fs::read(dir.join(file)).unwrap() == before, "{line}: {file} was changed");
    String::from_utf8(done.stderr).unwrap()
}

#[test]
fn what_would_be_written_in_the_wrong_place_is_refused() {
    let dir = TempDir::new();
    dir.file("disk.raw", &Pattern::Dense.make(64 << 10));
    dir.file("large.raw", &Pattern::Dense.make(1 << 20));
    let convert = |rest: &str| format!("convert -n -f raw {rest}");
    for (line, word) in [
        (
            convert("--target-image-opts disk.raw driver=raw,offset=512k,size=64k,file.filename=large.raw"),
            "a part of a file",
        ),
        (convert(r#"disk.raw json:{"driver":"raw","offset":512,"file":{"filename":"large.raw"}}"#), "a part of a file"),
        (convert("-O raw --target-image-opts disk.raw file.filename=large.raw"), "mutually exclusive"),
        (
            r#"convert -f raw disk.raw json:{"driver":"raw","file":{"filename":"large.raw"}}"#.into(),
            "Unknown protocol 'json'",
        ),
        ("dd if=disk.raw of=nbd:localhost:1".into(), "creates files only"),
        ("create -f raw nbd:localhost:1 1M".into(), "creates files only"),
    ] {
        let said = refused(&dir, &line, "large.raw");
        assert!(said.contains(word), "{line}: {said}");
    }
    assert_eq!(dir.names(), ["disk.raw", "large.raw"]);
}

#[test]
fn an_existing_image_is_kept_when_the_source_fails() {
    let dir = TempDir::new();
    let bytes = Pattern::Dense.make(1 << 20);
    dir.file("disk.raw", &bytes);
    let succeed = |line: &str| {
        let done = run(IMGCONV, &["qemu-img"], &dir, line);
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
    };
    for name in ["old.qcow2", "damaged.qcow2"] {
        succeed(&format!("convert -O qcow2 disk.raw {name}"));
    }
    let damaged = fs::OpenOptions::new().write(true).open(dir.join("damaged.qcow2")).unwrap();
    damaged.set_len(700 << 10).unwrap();
    refused(&dir, "convert -n -O qcow2 damaged.qcow2 old.qcow2", "old.qcow2");

    // The format of an existing image is detected, not that of a new one.
    succeed("convert -n -f raw --target-image-opts disk.raw file.filename=old.qcow2");
    assert_eq!(fs::read(dir.join("old.qcow2")).unwrap()[..4], *b"QFI\xfb");

    // Only the backing file that the image names has the data that is left out.
    dir.file("other.raw", &bytes);
    succeed("create -q -f qcow2 -b disk.raw -F raw overlay.qcow2");
    let said = refused(&dir, "convert -n -B other.raw -F raw -f raw -O qcow2 disk.raw overlay.qcow2", "overlay.qcow2");
    assert!(said.contains("backing file given is not that"), "{said}");
    succeed("convert -n -B disk.raw -F raw -f raw -O qcow2 disk.raw overlay.qcow2");
    succeed("compare -f raw -F qcow2 disk.raw overlay.qcow2");
}

#[test]
fn secrets_in_urls_are_not_printed() {
    let dir = TempDir::new();
    let url = "http://user:passwd@127.0.0.1:1/x?sig=TOPSECRET";
    for line in [
        "info URL",
        "convert URL x",
        "convert -B URL -F raw -O qcow2 URL x",
        "create URL 1M",
        "dd if=URL of=x",
        "compare URL URL",
    ] {
        let done = run(IMGCONV, &["qemu-img"], &dir, &line.replace("URL", url));
        let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        assert_ne!(done.status.code(), Some(0), "{line}");
        assert!(!said.contains("passwd") && !said.contains("TOPSECRET"), "{line}: {said}");
    }
    assert!(dir.names().is_empty());
}

#[test]
fn what_is_changed_in_place_is_the_same_image() {
    needs_qemu!("what qemu-img changes");
    let dir = directory();
    for (line, target) in [
        ("resize plain.qcow2 4M", "plain.qcow2"),
        ("resize -f qcow2 tuned.qcow2 +1G", "tuned.qcow2"),
        ("resize --shrink plain.qcow2 -1M", "plain.qcow2"),
        ("resize -q --shrink overlay.qcow2 1M", "overlay.qcow2"),
        ("resize overlay.qcow2 5M", "overlay.qcow2"),
        ("resize --preallocation=metadata tuned.qcow2 6M", "tuned.qcow2"),
        ("resize --preallocation full existing.qcow2 +1M", "existing.qcow2"),
        ("resize -f raw disk.raw 4M", "disk.raw"),
        ("resize -f raw odd.raw +100", "odd.raw"),
        ("resize --shrink odd.raw 2000", "odd.raw"),
        ("resize --preallocation=falloc -f raw small.raw +1M", "small.raw"),
        ("resize -f raw disk.raw 3M", "disk.raw"),
        ("check -r all plain.qcow2", "plain.qcow2"),
        ("snapshot -c two plain.qcow2", "plain.qcow2"),
        ("snapshot -a 1 plain.qcow2", "plain.qcow2"),
        ("snapshot -q -d before plain.qcow2", "plain.qcow2"),
        ("commit overlay.qcow2", "disk.qcow2"),
        ("commit top.qcow", "top.qcow"),
        ("commit -d -q top.qcow2", "disk.raw"),
        ("commit top.qcow2", "top.qcow2"),
        ("commit -b disk.qcow2 -t none overlay.qcow2", "overlay.qcow2"),
        ("rebase -b disk.raw -F raw overlay.qcow2", "overlay.qcow2"),
        ("rebase -b disk.qcow2 -F qcow2 -f qcow2 top.qcow2", "top.qcow2"),
        ("rebase -u -b disk.raw -F raw overlay.qcow2", "overlay.qcow2"),
        ("amend -o compat=0.10 overlay.qcow2", "overlay.qcow2"),
        ("bitmap --add -g 32k --disable existing.qcow2 new", "existing.qcow2"),
        ("bitmap --clear --disable disk.qcow2 marks", "disk.qcow2"),
        ("bitmap --add --merge marks disk.qcow2 more", "disk.qcow2"),
        ("rebase -b disk.qcow2 -F qcow2 existing.qcow2", "existing.qcow2"),
        ("rebase -c -b  top.qcow2", "top.qcow2"),
        ("rebase -c -b disk.raw -F raw overlay.qcow2", "overlay.qcow2"),
        ("bitmap --remove disk.qcow2 marks", "disk.qcow2"),
        ("amend -f qcow2 -o lazy_refcounts=on,size=6M existing.qcow2", "existing.qcow2"),
        ("amend -o refcount_bits=64 plain.qcow2", "plain.qcow2"),
        ("amend -o refcount_bits=16,compat=0.10 tuned.qcow2", "tuned.qcow2"),
    ] {
        assert_same(&dir, line, Some(target));
    }
}

/// The map tells data from zeros, and what is allocated.
#[test]
fn images_are_allocated_as_by_qemu_img() {
    needs_qemu!("what qemu-img allocates");
    let dir = directory();
    for (line, target) in [
        ("create x 20M", "x"),
        ("create x 1000", "x"),
        ("convert -O raw existing.qcow2 x", "x"),
        ("rebase -b disk.qcow2 -F qcow2 existing.qcow2", "existing.qcow2"),
    ] {
        let twins = assert_same(&dir, line, Some(target));
        // Host offsets are those of another layout.
        let [theirs, ours] = twins.map(|twin| {
            let map = run("qemu-img", &[], &twin, &format!("map --output=json {target}")).stdout;
            let Ok(Value::Array(mut entries)) = serde_json::from_slice(&map) else { panic!("{line}") };
            entries.iter_mut().filter_map(Value::as_object_mut).for_each(|entry| drop(entry.remove("offset")));
            entries
        });
        assert_eq!(ours, theirs, "{line}");
    }
}

#[test]
fn merged_bitmaps_have_the_bits_of_qemu_img() {
    needs_qemu!("the bitmaps of qemu-img");
    let dir = TempDir::new();
    for line in [
        "create -q -f qcow2 other.qcow2 70M",
        "create -q -f qcow2 -b other.qcow2 -F qcow2 disk.qcow2",
        "bitmap --add -g 4k other.qcow2 fine",
        "bitmap --add -g 1M other.qcow2 coarse",
        "bitmap --add disk.qcow2 own",
    ] {
        assert!(run("qemu-img", &[], &dir, line).status.success(), "{line}");
    }
    qemu_io(&dir.join("other.qcow2"), &["write 4k 8k".into(), "write 9M 300k".into(), "write 69M 1M".into()]);
    qemu_io(&dir.join("disk.qcow2"), &["write 128k 1".into(), "write 9M 64k".into()]);
    for (line, image) in [
        ("bitmap --merge fine -b other.qcow2 -F qcow2 disk.qcow2 own", "disk.qcow2"),
        ("bitmap --merge coarse -b other.qcow2 disk.qcow2 own", "disk.qcow2"),
        ("bitmap --add -g 64k --merge own disk.qcow2 copy", "disk.qcow2"),
        ("bitmap --add -g 1M --merge fine -b other.qcow2 --merge coarse disk.qcow2 both", "disk.qcow2"),
        ("bitmap --merge coarse other.qcow2 fine", "other.qcow2"),
        ("bitmap --merge own -b disk.qcow2 -F qcow2 other.qcow2 fine", "other.qcow2"),
    ] {
        let [theirs, ours] = assert_same(&dir, line, Some(image)).map(|twin| {
            let image = OpenOptions::new().reference_policy(ReferencePolicy::Any).open(twin.join(image)).unwrap();
            let bits = |bitmap: DirtyBitmap| {
                let mut bytes = vec![0; bitmap.bits.size().unwrap() as usize];
                bitmap.bits.read_exact_at(&mut bytes, 0).unwrap();
                assert!(bytes.iter().any(|byte| *byte != 0), "{line}: {} is empty", bitmap.name);
                (bitmap.name.to_string(), bitmap.granularity, bitmap.recording, bytes)
            };
            image.bitmaps().unwrap().into_iter().map(bits).collect::<Vec<_>>()
        });
        assert!(ours == theirs, "{line}: other bits");
        // A check finds nothing, leaks neither.
        let [_, ours] = assert_same(&dir, line, Some(image));
        let check = run("qemu-img", &[], &ours, &format!("check {image}"));
        assert!(check.status.success(), "{line}: {}", String::from_utf8_lossy(&check.stdout));
    }
}
