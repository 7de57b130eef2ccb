//! Detached headers of `cryptsetup` and `qemu-img`.

use std::fs;
use std::path::Path;

use super::{PASSPHRASE, object, read_with_qemu, secret};
use crate::support::pattern::Pattern;
use crate::support::tools::{DISSECT_FVE, find, needs_qemu, qemu_img, run};
use crate::support::{Random, TempDir, assert_same, content};
use diskimage::{Image, OpenOptions};

fn open(header: &Path, payload: &Path) -> Image {
    OpenOptions::new().secret(secret()).detached_header(header).open(payload).unwrap()
}

#[test]
fn detached_headers_of_cryptsetup() {
    let Some(cryptsetup) = find("detached headers of cryptsetup", &["cryptsetup"]) else { return };
    let stored = Random::new(9).bytes(1 << 20);
    for (kind, list, attached_at) in [
        ("luks1", &["--pbkdf-force-iterations=1000"][..], 2 << 20),
        ("luks2", &["--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--sector-size=512"], 16 << 20),
        (
            "luks2",
            &["--pbkdf=argon2id", "--pbkdf-force-iterations=4", "--pbkdf-memory=64", "--sector-size=4096"],
            16 << 20,
        ),
    ] {
        let dir = TempDir::new();
        let key_file = format!("--key-file={}", dir.file("passphrase", PASSPHRASE.as_bytes()).display());
        // Volumes with the same key decrypt the same bytes to the same disk.
        let key = dir.file("key", &Random::new(10).bytes(64));
        let key = format!("--volume-key-file={}", key.display());
        let format = |more: &[&str], device: &Path| {
            let start = ["luksFormat", "--batch-mode", "--type", kind, "--key-size=512", &key_file, &key];
            run(&cryptsetup, &[&start[..], list, more, &[device.to_str().unwrap()]].concat());
        };
        let attached = dir.file("attached", &[vec![0; attached_at], stored.clone()].concat());
        format(&[], &attached);
        let guest = content(&OpenOptions::new().secret(secret()).open(&attached).unwrap()).unwrap();
        assert_ne!(guest, stored);
        if DISSECT_FVE.is_there("LUKS volumes, dissect.fve") {
            DISSECT_FVE.assert_reads("luks", &[(attached.clone(), guest.clone())]);
        }

        let header = dir.join("header");
        // In sectors, in the file of the guest data.
        for offset in [0, attached_at / 512] {
            let payload = dir.file("payload", &[vec![7; offset * 512], stored.clone()].concat());
            let _ = fs::remove_file(&header);
            let (header_option, offset) = (format!("--header={}", header.display()), format!("--offset={offset}"));
            format(&[&header_option, &offset], &payload);
            let image = open(&header, &payload);
            assert!(image.info().specific.contains(&("detached-header", true.into())));
            assert_same(&content(&image).unwrap(), &guest, &format!("{kind}, {offset}"));
        }
        // A backup of a header is one too: the guest data is where it was.
        let backup = dir.join("backup");
        let option = format!("--header-backup-file={}", backup.display());
        run(&cryptsetup, &["luksHeaderBackup", &option, attached.to_str().unwrap()]);
        let damaged = dir.file("damaged", &[vec![0; attached_at], stored.clone()].concat());
        assert_same(&content(&open(&backup, &damaged)).unwrap(), &guest, &format!("{kind}, backup"));
    }
}

#[test]
fn detached_headers_of_qemu() {
    needs_qemu!("detached headers of qemu-img");
    let dir = TempDir::new();
    let guest = Pattern::Dense.make(1 << 20);
    let (source, header) = (dir.file("source.raw", &guest), dir.join("header"));
    let payload = dir.file("payload", &vec![0; 1 << 20]);
    let object = object(&dir);
    // It reads and writes them, but only its monitor creates them.
    qemu_img(&[&"create", &"--object", &object, &"-f", &"luks", &"-o", &"key-secret=sec0,iter-time=10", &header, &"0"]);
    let mut bytes = fs::read(&header).unwrap();
    bytes[104..108].fill(0);
    fs::write(&header, bytes).unwrap();
    let description = format!(
        "driver=luks,key-secret=sec0,header.driver=file,header.filename={},file.driver=file,file.filename={}",
        header.display(),
        payload.display()
    );
    let target = ["-f", "raw", "-n", "--target-image-opts"];
    let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"convert", &"--object", &object];
    args.extend(target.iter().map(|arg| arg as &dyn AsRef<std::ffi::OsStr>));
    args.extend([&source as &dyn AsRef<std::ffi::OsStr>, &description]);
    qemu_img(&args);
    assert_ne!(fs::read(&payload).unwrap(), guest);
    assert_same(&content(&open(&header, &payload)).unwrap(), &guest, "of qemu-img");
    // The same as qemu-img of the header of cryptsetup.
    let Some(cryptsetup) = find("detached headers of cryptsetup", &["cryptsetup"]) else { return };
    let key_file = format!("--key-file={}", dir.file("passphrase", PASSPHRASE.as_bytes()).display());
    fs::remove_file(&header).unwrap();
    let header_option = format!("--header={}", header.display());
    let args = ["luksFormat", "-q", "--type=luks1", "--pbkdf-force-iterations=1000", &key_file, &header_option];
    run(&cryptsetup, &[&args[..], &[payload.to_str().unwrap()]].concat());
    let theirs = read_with_qemu(&dir, &description);
    assert_same(&content(&open(&header, &payload)).unwrap(), &theirs, "of cryptsetup, by qemu-img");
}
