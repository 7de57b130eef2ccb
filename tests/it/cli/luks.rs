//! Secrets on the command line, as qemu-img takes them.

use std::fs;

use super::{fail, imgconv, json, succeed};
use crate::support::pattern::Pattern;
use crate::support::{TempDir, assert_same, content, options, qcow2, raw_image};
use diskimage::{OpenOptions, Secret};

const OBJECT: &str = "secret,id=sec0,file=passphrase.luks";

fn dir() -> TempDir {
    let dir = TempDir::new();
    dir.file("passphrase.luks", b"123456");
    dir
}

fn read(dir: &TempDir, name: &str) -> Vec<u8> {
    content(&OpenOptions::new().secret(Secret::new("123456")).open(dir.join(name)).unwrap()).unwrap()
}

/// As in the documentation of OpenNebula, "LUKS-encrypted Images".
#[test]
fn documented_commands_run_as_they_stand() {
    let dir = dir();
    let guest = Pattern::Islands.make(3 << 20);
    qcow2("").convert(&raw_image(&guest), dir.join("alpine.qcow2")).unwrap();
    succeed(&dir, &["create", "--object", OBJECT, "-o", "key-secret=sec0", "-f", "luks", "luks.vol", "5G"]);
    let info = json(&dir, &["info", "--output", "json", "luks.vol"]);
    assert_eq!((&info["format"], info["virtual-size"].as_u64()), (&"luks".into(), Some(5 << 30)));
    assert_eq!(info["encrypted"], true);
    succeed(&dir, &["create", "--object", OBJECT, "-o", "key-secret=sec0", "-f", "luks", "alpine-3.17.luks", "3M"]);
    let target = "driver=luks,file.filename=alpine-3.17.luks,key-secret=sec0";
    let args = ["convert", "--target-image-opts", "--object", OBJECT, "-f", "qcow2", "alpine.qcow2", "-n", target];
    succeed(&dir, &args);
    assert!(succeed(&dir, &["info", "alpine-3.17.luks"]).contains("encrypted: yes (LUKS)"));
    assert_same(&read(&dir, "alpine-3.17.luks"), &guest, "the volume");
}

#[test]
fn encrypted_images_of_every_command() {
    let dir = dir();
    let guest = Pattern::Islands.make(2 << 20);
    dir.file("disk.raw", &guest);
    let encrypt = "encrypt.format=luks,encrypt.key-secret=sec0,encrypt.iter-time=10";
    succeed(&dir, &["convert", "--object", OBJECT, "-o", encrypt, "disk.raw", "disk.qcow2"]);
    succeed(
        &dir,
        &["convert", "--secret-file", "passphrase.luks", "-O", "luks", "-o", "iter-time=10", "disk.raw", "vol"],
    );
    let opts = |driver: &str, file: &str, key: &str| format!("driver={driver},file.filename={file},{key}=sec0");
    for (image, file) in
        [(opts("qcow2", "disk.qcow2", "encrypt.key-secret"), "disk.qcow2"), (opts("luks", "vol", "key-secret"), "vol")]
    {
        let with = |command: &'static str, rest: &[&'static str]| {
            let mut args = vec![command, "--object", OBJECT, "--image-opts", &image];
            args.extend(rest);
            succeed(&dir, &args)
        };
        with("info", &[]);
        assert!(with("map", &[]).contains(file));
        with("convert", &["out.raw"]);
        assert_same(&fs::read(dir.join("out.raw")).unwrap(), &guest, file);
        let secret = ["--secret-file", "passphrase.luks"];
        succeed(&dir, &[&["compare"][..], &secret, &["disk.raw", file]].concat());
        let said = fail(&dir, 1, &["convert", file, "out.raw"]);
        assert!(said.contains("no secret is given; give it with --object"), "{said}");
    }
    succeed(&dir, &["check", "disk.qcow2"]);
    succeed(
        &dir,
        &["check", "--object", OBJECT, "--image-opts", "driver=qcow2,file.filename=disk.qcow2,encrypt.key-secret=sec0"],
    );
    fail(&dir, 63, &["check", "vol"]);
}

#[test]
fn secrets_are_not_shown() {
    let dir = dir();
    let clear = "secret,id=sec0,data=aHVudGVyMg==,format=base64";
    let done =
        imgconv(&dir, &["create", "--object", clear, "-o", "key-secret=sec0,iter-time=10", "-f", "luks", "vol", "1M"]);
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success() && said.contains("the secret sec0 is on the command line"), "{said}");
    assert!(!said.contains("aHVudGVyMg"), "{said}");
    let opened = OpenOptions::new().secret(Secret::new("hunter2")).open(dir.join("vol"));
    assert_eq!(opened.unwrap().virtual_size(), 1 << 20);
    for object in ["secret,id=s,data=hunter2,x=y", "hunter2", "secret,data=hunter2", "secret,id=s,data=hunter2,keyid=k"]
    {
        let said = fail(&dir, 1, &["info", "--object", object, "vol"]);
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn wrong_requests() {
    let dir = dir();
    dir.file("disk.raw", &[7; 4096]);
    for (args, message) in [
        (&["create", "-f", "luks", "vol", "1M"][..], "a secret is needed"),
        (&["create", "--object", OBJECT, "-o", "key-secret=other", "-f", "luks", "vol", "1M"], "no secret with the ID"),
        (&["create", "--object", OBJECT, "-o", "encrypt.key-secret=sec0", "-f", "luks", "vol", "1M"], "unknown option"),
        (&["convert", "-c", "--object", OBJECT, "-O", "luks", "disk.raw", "vol"], "compression"),
        (&["convert", "--object", "secret,id=s,file=missing", "disk.raw", "x.qcow2"], "missing"),
        (&["convert", "--target-image-opts", "disk.raw", "driver=luks,file.filename=vol"], "-n"),
        (&["convert", "-n", "-O", "qcow2", "disk.raw", "disk.raw"], "input file"),
        (&["info", "--image-opts", "driver=luks"], "file.filename is missing"),
    ] {
        let said = fail(&dir, 1, args);
        assert!(said.contains(message), "{args:?}: {said}");
    }
    assert_eq!(dir.names(), ["disk.raw", "passphrase.luks"]);
    let larger = options("iter-time=10");
    let converter =
        diskimage::Converter::new(crate::support::format("luks")).options(larger).secret(Secret::new("123456"));
    converter.create(1024, dir.join("vol")).unwrap();
    let target = "driver=luks,file.filename=vol";
    let said = fail(
        &dir,
        1,
        &["convert", "--secret-file", "passphrase.luks", "-n", "--target-image-opts", "disk.raw", target],
    );
    assert!(said.contains("above the limit of 1024"), "{said}");
}
