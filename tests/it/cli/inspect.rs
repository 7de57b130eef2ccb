//! The verdict of `imgconv inspect`.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{IMGCONV, fail, imgconv, parse, succeed};
use crate::support::TempDir;
use crate::support::pattern::Pattern;

/// The exit code, the verdict, and the checks that found something.
fn judge(dir: &TempDir, args: &[&str]) -> (i32, String, Vec<String>) {
    let mut words = vec!["inspect", "--output", "json"];
    words.extend(args);
    let done = imgconv(dir, &words);
    assert!(done.stderr.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    let judgement = parse(&String::from_utf8(done.stdout).unwrap());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let checks = judgement["findings"].as_array().unwrap().iter().map(|finding| text(&finding["check"])).collect();
    (done.status.code().unwrap(), text(&judgement["verdict"]), checks)
}

fn is(exit: i32, verdict: &str, checks: &[&str]) -> (i32, String, Vec<String>) {
    (exit, verdict.to_owned(), checks.iter().map(|check| (*check).to_owned()).collect())
}

#[test]
fn images_of_every_format_are_judged() {
    let dir = TempDir::new();
    dir.file("disk.raw", &Pattern::Islands.make(1 << 20));
    succeed(&dir, &["convert", "disk.raw", "disk.qcow2"]);
    let safe = is(0, "safe", &[]);
    for name in ["disk.raw", "disk.qcow2", "disk.vmdk", "disk.vhd", "disk.vhdx", "disk.vdi"] {
        if !dir.join(name).exists() {
            succeed(&dir, &["convert", "disk.raw", name]);
        }
        for policy in ["default", "glance", "nova", "strict"] {
            assert_eq!(judge(&dir, &["--policy", policy, name]), safe, "{name}, {policy}");
        }
    }
    for (name, check) in [("disk.qed", "format"), ("disk.hds", "format"), ("disk.ova", "packages")] {
        succeed(&dir, &["convert", "disk.raw", name]);
        assert_eq!(judge(&dir, &[name]), safe, "{name}");
        assert_eq!(judge(&dir, &["--policy", "glance", name]), is(1, "unsafe", &[check]), "{name}");
    }
    succeed(&dir, &["convert", "disk.raw", "disk.raw.gz"]);
    assert_eq!(judge(&dir, &["disk.raw.gz"]), safe);
    assert_eq!(judge(&dir, &["--policy", "nova", "disk.raw.gz"]), is(1, "unsafe", &["compression"]));
    assert_eq!(succeed(&dir, &["inspect", "disk.qcow2"]), "safe: qcow2, 1 MiB\n");
}

#[test]
fn other_files_are_not_opened() {
    let dir = TempDir::new();
    dir.file("base.raw", &[7; 1 << 20]);
    succeed(&dir, &["create", "-B", "base.raw", "overlay.qcow2"]);
    succeed(&dir, &["convert", "-o", "subformat=monolithicFlat", "base.raw", "flat.vmdk"]);
    succeed(&dir, &["convert", "-o", "data_file=disk.data", "base.raw", "data.qcow2"]);
    for name in ["overlay.qcow2", "flat.vmdk", "data.qcow2"] {
        assert_eq!(judge(&dir, &[name]), is(1, "unsafe", &["external-files"]), "{name}");
    }
    dir.file("policy.toml", b"external-files = true");
    fs::remove_file(dir.join("base.raw")).unwrap();
    fs::remove_file(dir.join("disk.data")).unwrap();
    dir.file("read.toml", b"external-files = true\nread-data = true");
    for (name, other) in [("overlay.qcow2", "base.raw"), ("data.qcow2", "disk.data")] {
        assert_eq!(judge(&dir, &["--policy", "policy.toml", name]), is(0, "safe", &[]), "{name}");
        let told = parse(&succeed(&dir, &["inspect", "--output", "json", "--policy", "policy.toml", name]));
        assert_eq!(told["external-files"], serde_json::json!([other]));
    }
    assert_eq!(judge(&dir, &["--policy", "read.toml", "data.qcow2"]), is(2, "unknown", &["external-files"]));
}

#[test]
fn a_stream_is_judged() {
    let dir = TempDir::new();
    dir.file("disk.raw", &Pattern::Islands.make(1 << 20));
    succeed(&dir, &["convert", "disk.raw", "disk.vhd"]);
    dir.file("policy.toml", b"file-size = '64K'");
    let from = |pipe: bool, args: &[&str]| {
        let stdin = match pipe {
            true => Command::new("cat")
                .arg(dir.join("disk.vhd"))
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
                .stdout
                .unwrap()
                .into(),
            false => Stdio::from(fs::File::open(dir.join("disk.vhd")).unwrap()),
        };
        let mut program = Command::new(IMGCONV);
        let done = program.arg("inspect").args(args).arg("-").current_dir(dir.path()).stdin(stdin).output().unwrap();
        assert!(done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
        (done.status.code().unwrap(), String::from_utf8(done.stdout).unwrap())
    };
    for pipe in [true, false] {
        assert_eq!(from(pipe, &[]), (0, "safe: vpc, 1 MiB\n".to_owned()));
        let (exit, text) = from(pipe, &["--policy", "policy.toml"]);
        assert!(exit == 1 && text.starts_with("unsafe") && text.contains("\n  file-size: "), "{exit}: {text}");
    }
}

#[test]
fn what_cannot_be_judged_is_not_safe() {
    let dir = TempDir::new();
    assert_eq!(judge(&dir, &["missing.qcow2"]), is(2, "unknown", &["readable"]));
    dir.file("disk.raw", &[0; 512]);
    assert!(fail(&dir, 2, &["inspect", "--policy", "lax", "disk.raw"]).contains("lax"));
    assert!(fail(&dir, 2, &["inspect", "--polisy", "nova", "disk.raw"]).contains("--polisy"));
    dir.file("bad.toml", b"snapshot = 1");
    assert!(fail(&dir, 2, &["inspect", "--policy", "bad.toml", "disk.raw"]).contains("snapshot"));
}

#[test]
fn disks_of_packages_are_judged_as_others() {
    let dir = TempDir::new();
    dir.file("base.raw", &[7; 1 << 20]);
    succeed(&dir, &["create", "-B", "base.raw", "overlay.qcow2"]);
    succeed(&dir, &["convert", "-o", "subformat=monolithicFlat", "base.raw", "flat.vmdk"]);
    let descriptor = fs::read_to_string(dir.join("flat.vmdk")).unwrap();
    dir.file("other.vmdk", descriptor.replace("flat-flat.vmdk", "/etc/passwd").as_bytes());
    let tar = |name: &str, members: &[&str]| {
        let done = Command::new("tar").arg("cf").arg(name).args(members).current_dir(dir.path()).status();
        assert!(done.unwrap().success());
    };
    tar("overlay.tar", &["overlay.qcow2"]);
    tar("other.tar", &["other.vmdk"]);
    tar("flat.tar", &["flat.vmdk", "flat-flat.vmdk"]);
    // A program that unpacks it follows the link.
    fs::remove_file(dir.join("flat-flat.vmdk")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.join("flat-flat.vmdk")).unwrap();
    tar("link.tar", &["flat.vmdk", "flat-flat.vmdk"]);
    for (name, expected) in [
        ("overlay.tar", is(1, "unsafe", &["external-files"])),
        ("other.tar", is(1, "unsafe", &["external-files"])),
        ("flat.tar", is(0, "safe", &[])),
        ("link.tar", is(1, "unsafe", &["external-files"])),
    ] {
        assert_eq!(judge(&dir, &[name]), expected, "{name}");
    }
}

#[test]
fn what_is_compressed_is_judged_as_what_it_is() {
    let dir = TempDir::new();
    dir.file("disk.raw", &[0; 4096]);
    dir.file("text.raw", b"root:x:0:0:root:/root:/bin/bash\n");
    assert!(Command::new("gzip").args(["disk.raw", "text.raw"]).current_dir(dir.path()).status().unwrap().success());
    let told = parse(&succeed(&dir, &["inspect", "--output", "json", "disk.raw.gz"]));
    assert_eq!((&told["compression"], &told["virtual-size"]), (&serde_json::json!(["gzip"]), &4096.into()));
    assert_eq!(judge(&dir, &["text.raw.gz"]), is(1, "unsafe", &["content"]));
    // Before it is decoded.
    let told = imgconv(&dir, &["inspect", "--output", "json", "--policy", "nova", "disk.raw.gz"]);
    let told = parse(&String::from_utf8(told.stdout).unwrap());
    assert_eq!((&told["findings"][0]["check"], told.get("virtual-size")), (&"compression".into(), None));
}

#[test]
fn data_that_cannot_be_read_is_not_safe_if_the_policy_asks_for_it() {
    let dir = TempDir::new();
    dir.file("disk.raw", &Pattern::Islands.make(1 << 20));
    dir.file("secret", b"secret");
    succeed(
        &dir,
        &[
            "convert",
            "-o",
            "encrypt.format=luks,encrypt.iter-time=1",
            "--secret-file",
            "secret",
            "disk.raw",
            "disk.qcow2",
        ],
    );
    dir.file("policy.toml", b"read-data = true");
    assert_eq!(judge(&dir, &["disk.qcow2"]), is(0, "safe", &[]));
    assert_eq!(judge(&dir, &["--policy", "policy.toml", "disk.qcow2"]), is(2, "unknown", &["encryption"]));
    assert_eq!(judge(&dir, &["--policy", "policy.toml", "--secret-file", "secret", "disk.qcow2"]), is(0, "safe", &[]));
}

/// As a polyglot, and with bytes after the end.
#[test]
fn images_that_are_more_than_a_disk_are_refused() {
    let dir = TempDir::new();
    dir.file("disk.raw", &Pattern::Islands.make(1 << 20));
    succeed(&dir, &["convert", "-o", "subformat=fixed", "disk.raw", "fixed.vhdx"]);
    succeed(&dir, &["convert", "disk.raw", "disk.vdi"]);
    let mut fixed = fs::read(dir.join("fixed.vhdx")).unwrap();
    fixed[0x8001..0x8006].copy_from_slice(b"CD001");
    dir.file("fixed.vhdx", &fixed);
    assert_eq!(judge(&dir, &["fixed.vhdx"]), is(1, "unsafe", &["signatures"]));
    let mut long = fs::read(dir.join("disk.vdi")).unwrap();
    long.extend([7; 3000]);
    dir.file("disk.vdi", &long);
    assert_eq!(judge(&dir, &["disk.vdi"]), is(0, "safe", &[]));
    assert_eq!(judge(&dir, &["--policy", "strict", "disk.vdi"]), is(1, "unsafe", &["leaks"]));
}
