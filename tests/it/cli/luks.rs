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

/// What was asked to be encrypted is not written in plain text without a word.
#[test]
fn a_secret_that_encrypts_nothing_is_told() {
    let dir = dir();
    dir.file("disk.raw", &Pattern::Islands.make(1 << 20));
    dir.file("empty", b"");
    for command in [&["convert", "disk.raw", "disk.qcow2"][..], &["create", "disk.qcow2", "1M"]] {
        let with = |options: &[&'static str]| [&command[..1], options, &command[1..]].concat();
        let error = fail(&dir, 1, &with(&["--object", OBJECT, "-o", "encrypt.key-secret=sec0"]));
        assert!(error.contains("needs -o encrypt.format=luks"), "{error}");
        assert!(fail(&dir, 1, &with(&["--secret-file", "empty"])).contains("is empty"));
        let output = imgconv(&dir, &with(&["--secret-file", "passphrase.luks"]));
        let note = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && note.contains("the secret given is not used"), "{note}");
    }
}

/// The format of an existing target is that of its content, not of its name.
#[test]
fn an_existing_volume_is_not_overwritten_in_plain_text() {
    let dir = dir();
    let guest = Pattern::Islands.make(1 << 20);
    dir.file("disk.raw", &guest);
    succeed(&dir, &["create", "--secret-file", "passphrase.luks", "-f", "luks", "-o", "iter-time=10", "vol.img", "1M"]);
    succeed(&dir, &["convert", "-n", "--secret-file", "passphrase.luks", "disk.raw", "vol.img"]);
    assert_same(&read(&dir, "vol.img"), &guest, "the volume");
    assert!(fail(&dir, 1, &["convert", "-n", "disk.raw", "missing.img"]).contains("missing.img"));
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

/// Whatever a command says, it does not say a secret, not even a wrong one.
#[test]
fn no_command_shows_a_secret() {
    const SECRET: &str = "hunter2-hunter2";
    const BASE64: &str = "aHVudGVyMi1odW50ZXIy";
    let dir = dir();
    dir.file("secret", SECRET.as_bytes());
    dir.file("disk.raw", &[7; 4096]);
    for (format, key) in [("luks", ""), ("qcow2", "encrypt.format=luks,encrypt.")] {
        let options = format!("{key}iter-time=10");
        succeed(
            &dir,
            &["convert", "--secret-file", "passphrase.luks", "-O", format, "-o", &options, "disk.raw", format],
        );
    }
    let damaged = [&fs::read(dir.join("luks")).unwrap()[..4096], &[1; 8192]].concat();
    dir.file("damaged", &damaged);
    let data = format!("secret,id=sec0,data={SECRET}");
    let encoded = format!("secret,id=sec0,data={BASE64},format=base64");
    let mut said = Vec::new();
    let mut failures = 0;
    for secret in [
        ["--secret-file", "secret"],
        ["--object", "secret,id=sec0,file=secret"],
        ["--object", &data],
        ["--object", &encoded],
    ] {
        for rest in [
            &["convert", "luks", "out.raw"][..],
            &["convert", "qcow2", "out.raw"],
            &["convert", "damaged", "-f", "luks", "out.raw"],
            &["convert", "--image-opts", "driver=luks,file.filename=luks,key-secret=sec1", "out.raw"],
            &["convert", "-n", "-O", "luks", "disk.raw", "luks"],
            &["convert", "-O", "luks", "-o", "cipher-alg=none", "disk.raw", "out.luks"],
            &["convert", "-O", "luks", "-o", "iter-time=10", "disk.raw", "missing/out.luks"],
            &["convert", "--detached-header", "disk.raw", "luks", "out.raw"],
            &["compare", "luks", "disk.raw"],
            &["map", "luks"],
            &["check", "luks"],
            &["info", "--output", "json", "luks"],
            &["info", "-f", "qcow2", "luks"],
            &["snapshot", "-l", "qcow2", "--unknown"],
        ] {
            let done = imgconv(&dir, &[&rest[..1], &secret, &rest[1..]].concat());
            failures += usize::from(!done.status.success());
            said.extend(done.stdout);
            said.extend(done.stderr);
        }
    }
    let said = String::from_utf8(said).unwrap();
    assert!(failures > 40 && said.len() > 4000, "{failures} failures: {said}");
    for part in [SECRET, "hunter2", BASE64, &BASE64[..8], "123456"] {
        assert!(!said.contains(part), "{part}: {said}");
    }
    assert!(!format!("{:?}", OpenOptions::new().secret(Secret::new(SECRET))).contains("hunter2"));
}

#[test]
fn detached_headers() {
    let dir = dir();
    let guest = Pattern::Islands.make(1 << 20);
    dir.file("disk.raw", &guest);
    succeed(
        &dir,
        &["convert", "--secret-file", "passphrase.luks", "-O", "luks", "-o", "iter-time=10", "disk.raw", "volume"],
    );
    let volume = fs::read(dir.join("volume")).unwrap();
    let (header, payload) = volume.split_at(volume.len() - guest.len());
    let header = [&header[..104], &[0; 4], &header[108..]].concat();
    dir.file("header", &header);
    dir.file("payload", payload);
    let opts = "driver=luks,key-secret=sec0,header.driver=file,header.filename=header,file.filename=payload";
    let (detached, secret) = (["--detached-header", "header"], ["--secret-file", "passphrase.luks"]);
    for args in [
        [&["info", "--output", "json"][..], &detached, &["payload"]].concat(),
        vec!["info", "--output", "json", "--object", OBJECT, "--image-opts", opts],
    ] {
        let info = json(&dir, &args);
        assert_eq!((&info["format"], info["virtual-size"].as_u64()), (&"luks".into(), Some(1 << 20)));
        assert_eq!(info["format-specific"]["data"]["detached-header"], true);
    }
    succeed(&dir, &[&["convert"][..], &secret, &detached, &["payload", "one.raw"]].concat());
    succeed(&dir, &["convert", "--object", OBJECT, "--image-opts", opts, "two.raw"]);
    for name in ["one.raw", "two.raw"] {
        assert_same(&fs::read(dir.join(name)).unwrap(), &guest, name);
    }
    let alone = fail(&dir, 1, &["info", "header"]);
    assert!(alone.contains("if that is a detached header, the file with the guest data is needed too"), "{alone}");
    let into = ["convert", "--object", OBJECT, "-n", "--target-image-opts", "disk.raw", opts];
    assert!(fail(&dir, 1, &into).contains("detached header"));
    let same = [&["convert"][..], &secret, &detached, &["-O", "raw", "payload", "header"]].concat();
    assert!(fail(&dir, 1, &same).contains("input file"));
    succeed(&dir, &["convert", "disk.raw", "disk.qcow2"]);
    let other = fail(&dir, 1, &[&["convert"][..], &secret, &detached, &["disk.qcow2", "out.raw"]].concat());
    assert!(other.contains("the file is a qcow2 image of its own"), "{other}");
    let several = [&["convert"][..], &secret, &detached, &["payload", "disk.raw", "vm.ova"]].concat();
    assert!(fail(&dir, 1, &several).contains("--detached-header needs one SOURCE"));
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
        (&["convert", "-n", "-O", "raw", "-f", "raw", "disk.raw", "disk.raw"], "input file"),
        (&["convert", "-n", "-O", "qcow2", "disk.raw", "disk.raw"], "magic"),
        (&["info", "--image-opts", "driver=luks"], "must be specified"),
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
