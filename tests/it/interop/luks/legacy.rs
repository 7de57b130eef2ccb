//! The AES encryption of qcow and qcow2 that QEMU had before LUKS, which `qemu-img` still reads and writes.

use std::fs;

use crate::support::pattern::Pattern;
use crate::support::tools::{needs_qemu, output, qemu_img};
use crate::support::{TempDir, assert_same, content, open_raw};
use diskimage::{Converter, Format, OpenOptions, Options, Secret};

#[test]
fn images_with_aes_encryption() {
    needs_qemu!("qcow and qcow2 images with AES encryption");
    // Zeros, data, and a last cluster that is not whole.
    let guest = [Pattern::Islands.make(3 << 20), vec![0; 5 << 20], Pattern::Dense.make((300 << 10) + 512)].concat();
    for (format, more) in [("qcow", ""), ("qcow2", ""), ("qcow2", ",cluster_size=4k"), ("qcow2", ",compat=0.10")] {
        // The key has 16 bytes.
        for passphrase in ["x", "sixteen bytes ok", "a passphrase of more than sixteen bytes"] {
            let dir = TempDir::new();
            let object = format!("secret,id=sec0,file={}", dir.file("passphrase", passphrase.as_bytes()).display());
            let (source, image) = (dir.file("source.raw", &guest), dir.join("image"));
            let options = format!("encrypt.format=aes,encrypt.key-secret=sec0{more}");
            qemu_img(&[
                &"convert",
                &"--object",
                &object,
                &"-f",
                &"raw",
                &"-O",
                &format,
                &"-o",
                &options,
                &source,
                &image,
            ]);
            let open = |secret: &str| OpenOptions::new().secret(Secret::new(secret)).open(&image).unwrap();
            let opened = open(passphrase);
            assert_eq!((opened.format().name(), opened.info().encryption), (format, Some("AES")));
            assert_same(&content(&opened).unwrap(), &guest, &format!("{format}{more}, {passphrase}"));
            assert!(opened.info().warnings[0].contains("wrong secret"));
            assert!(content(&open("other")).unwrap() != guest);
            assert!(fs::metadata(&image).unwrap().len() < 8 << 20, "zeros are not stored");
            drop(opened);
            if format == "qcow2" {
                let report = OpenOptions::new().check(&image).unwrap();
                assert_eq!((report.corruptions, report.leaks), (0, 0));
            }
        }
    }
    // There are no compressed clusters to be read.
    let dir = TempDir::new();
    let object = format!("secret,id=sec0,file={}", dir.file("passphrase", b"x").display());
    let (source, image) = (dir.file("source.raw", &guest), dir.join("image"));
    for format in ["qcow", "qcow2"] {
        let options = "encrypt.format=aes,encrypt.key-secret=sec0";
        let args = ["convert", "-c", "--object", &object, "-f", "raw", "-O", format, "-o", options];
        let args: Vec<_> = args.iter().map(AsRef::as_ref).chain([source.as_os_str(), image.as_os_str()]).collect();
        assert!(!output("qemu-img", &args).status.success());
    }
}

#[test]
fn written_images_with_aes_encryption() {
    needs_qemu!("qemu-img reads written qcow and qcow2 images with AES encryption");
    let guest = [Pattern::Islands.make(3 << 20), vec![0; 5 << 20], Pattern::Dense.make((300 << 10) + 512)].concat();
    let mut lower = guest.clone();
    lower[1 << 20..6 << 20].fill(9);
    for (format, more) in [
        ("qcow", ""),
        ("qcow", "cluster_size=512"),
        ("qcow2", ""),
        ("qcow2", "cluster_size=4k,extended_l2=off"),
        ("qcow2", "compat=0.10"),
        ("qcow2", "preallocation=full"),
    ] {
        for is_overlay in [false, true] {
            if is_overlay && more.contains("preallocation") {
                continue;
            }
            let dir = TempDir::new();
            let object =
                format!("secret,id=sec0,file={}", dir.file("passphrase", b"sixteen bytes ok, and more").display());
            let (source, image, back) = (dir.file("source.raw", &guest), dir.join("image"), dir.join("back.raw"));
            let mut options = Options::new();
            options.add_list(format!("encrypt.format=aes,{more}").trim_end_matches(','));
            if is_overlay {
                options.set("backing_fmt", "raw");
            }
            let converter = Converter::new(Format::by_name(format).unwrap()).options(options);
            let converter = converter.secret(Secret::new("sixteen bytes ok, and more"));
            let converter = match is_overlay {
                true => converter.backing(open_raw(&dir.file("lower.raw", &lower)), "lower.raw"),
                false => converter,
            };
            converter.convert(&open_raw(&source), &image).unwrap();
            let spec = format!("driver={format},encrypt.key-secret=sec0,file.filename={}", image.display());
            qemu_img(&[&"convert", &"--object", &object, &"--image-opts", &spec, &"-O", &"raw", &back]);
            assert_same(&fs::read(&back).unwrap(), &guest, &format!("{format} {more} {is_overlay}"));
            let plain = fs::read(&image).unwrap();
            let needle = &guest[guest.len() - 512..];
            assert!(!plain.windows(512).step_by(512).any(|sector| sector == needle), "{format} {more}: not encrypted");
        }
    }
    let mut options = Options::new();
    options.set("encrypt.format", "aes");
    let without_secret = Converter::new(Format::QCOW2).options(options);
    assert_eq!(without_secret.create(1 << 20, TempDir::new().join("x")).unwrap_err().kind().as_str(), "secret");
}
