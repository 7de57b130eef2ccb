//! Files that are taken for no raw disk: compressed files, archives, encrypted volumes, and names that contradict the content.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{TempDir, content, format, qcow2, raw, raw_image, vpc};
use diskimage::{Error, ErrorKind, Image, OpenOptions, ReferencePolicy, ReferenceProblem};

/// The output of a program for these bytes; `None` if this machine does not have it.
fn filtered(program: &[&str], bytes: &[u8]) -> Option<Vec<u8>> {
    let (name, args) = program.split_first()?;
    let mut command = Command::new(name);
    let mut child =
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    let mut stdin = child.stdin.take()?;
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    let output = child.wait_with_output().ok()?;
    writer.join().ok()?.ok()?;
    output.status.success().then_some(output.stdout)
}

#[track_caller]
fn unreadable(path: &Path) -> (&'static str, String) {
    let error = Image::open(path).err().unwrap();
    let Error::Unreadable { format, .. } = error.root() else { panic!("{error}") };
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(OpenOptions::new().inspect(path).is_err() && OpenOptions::new().check(path).is_err());
    (format, error.to_string())
}

#[test]
fn what_compressors_and_archivers_write_is_no_disk() {
    let dir = TempDir::new();
    let disk = [&[7; 5000][..], &[0; 3192]].concat();
    dir.file("member", &disk);
    let mut tried = 0;
    for (program, name) in [
        (&["gzip", "-c"][..], "gzip"),
        (&["xz", "-c"], "xz"),
        (&["xz", "-c", "--format=lzma"], "lzma"),
        (&["bzip2", "-c"], "bzip2"),
        (&["zstd", "-c"], "zstd"),
        (&["lz4", "-c"], "lz4"),
        (&["lz4", "-c", "-l"], "lz4"),
        (&["lzip", "-c"], "lzip"),
        (&["lzop", "-c"], "lzop"),
        (&["tar", "-C", dir.path().to_str().unwrap(), "--format=ustar", "-cf", "-", "member"], "tar"),
        (&["tar", "-C", dir.path().to_str().unwrap(), "--format=gnu", "-cf", "-", "member"], "tar"),
        (&["tar", "-C", dir.path().to_str().unwrap(), "--format=v7", "-cf", "-", "member"], "tar"),
        (&["zip", "-q", "-", "-"], "zip"),
    ] {
        // These are decompressed.
        if cfg!(feature = "compressed") && ["gzip", "xz", "bzip2", "zstd"].contains(&name) {
            continue;
        }
        let Some(bytes) = filtered(program, &disk) else { continue };
        tried += 1;
        // Whatever it is called.
        for file in ["disk.img", "disk.qcow2", "disk"] {
            let path = dir.file(file, &bytes);
            let (found, message) = unreadable(&path);
            assert_eq!(found, name, "{program:?}");
            assert!(message.contains("unpack it first") && message.contains("format raw"), "{message}");
            let as_stated = OpenOptions::new().format(format("raw")).open(&path).unwrap();
            assert_eq!(content(&as_stated).unwrap(), bytes, "{program:?}");
        }
    }
    assert!(tried > 2, "gzip and tar are everywhere");
    let luks = dir.file("volume", &[&b"LUKS\xba\xbe\0\x02"[..], &[0; 4088]].concat());
    let error = Image::open(&luks).err().unwrap().to_string();
    assert!(error.contains("luks: corrupt image"), "{error}");
}

#[test]
fn a_signature_in_the_guest_data_of_an_image_counts_for_nothing() {
    let dir = TempDir::new();
    for start in [&b"\x1f\x8b\x08"[..], b"LUKS\xba\xbe\0\x01", b"hsqs"] {
        let guest = [start, &[5; 4096]].concat()[..4096].to_vec();
        let path = dir.join("fixed.vhd");
        vpc("subformat=fixed,force_size=on").convert(&raw_image(&guest), &path).unwrap();
        let image = Image::open(&path).unwrap();
        assert_eq!((image.format().name(), content(&image).unwrap()), ("vpc", guest));
    }
}

#[test]
fn an_extension_of_another_format_is_refused() {
    let dir = TempDir::new();
    for (name, bytes, expected) in [
        ("A.VMDK", b"Not Found\n".to_vec(), Some(("vmdk", "text"))),
        ("a.vmdk", b"Not Found\n".to_vec(), Some(("vmdk", "text"))),
        // What an interrupted download or conversion leaves.
        ("a.qcow2", Vec::new(), Some(("qcow2", "empty"))),
        ("a.vhdx", vec![0; 1024], Some(("vhdx", "zeros"))),
        ("a.avhdx", vec![0; 32768], Some(("vhdx", "raw, with zeros at the start"))),
        ("a.vdi", vec![1; 8192], Some(("vdi", "raw"))),
        ("a.vhd", vec![1; 8192], Some(("vpc", "raw"))),
        ("a.qed", vec![1; 8192], Some(("qed", "raw"))),
        ("a.raw.gz", vec![1; 8192], Some(("gzip", "raw"))),
        ("a.XZ", vec![1; 8192], Some(("xz", "raw"))),
        ("vm.ova", vec![1; 8192], Some(("tar", "raw"))),
        ("a.raw", vec![1; 8192], None),
        ("a.iso", vec![1; 8192], None),
    ] {
        let path = dir.file(name, &bytes);
        let opened = Image::open(&path);
        match expected {
            None => assert_eq!(opened.unwrap().format().name(), "raw", "{name}"),
            Some((expected, found)) => {
                let error = opened.err().unwrap();
                let is_it = |error: &Error| matches!(error, Error::Extension { format, content } if *format == expected && *content == found);
                assert!(is_it(error.root()), "{name}: {error}");
                assert_eq!(error.kind(), ErrorKind::AmbiguousFormat);
                assert!(error.to_string().contains(expected) && error.to_string().contains(found), "{error}");
                assert!(OpenOptions::new().inspect(&path).is_err(), "{name}");
            }
        }
        let as_stated = OpenOptions::new().format(format("raw")).open(&path).unwrap();
        assert_eq!(content(&as_stated).unwrap(), bytes, "{name}");
    }
    // Between image formats, the content counts.
    let path = dir.join("really.vmdk");
    qcow2("").create(1 << 20, &path).unwrap();
    assert_eq!(Image::open(&path).unwrap().format().name(), "qcow2");
    // A source without a name has no extension.
    assert_eq!(crate::support::raw_image(&[]).format().name(), "raw");
}

#[test]
fn an_error_page_is_no_disk() {
    let dir = TempDir::new();
    let page = b"\n<!DOCTYPE html><html>404 Not Found</html>\n".repeat(200);
    for name in ["cirros.qcow2", "cirros.img", "cirros"] {
        let path = dir.file(name, &page);
        let (found, message) = unreadable(&path);
        assert!(found == "text" && message.contains("HTML or XML"), "{message}");
        let as_stated = OpenOptions::new().format(format("raw")).open(&path).unwrap();
        assert_eq!(content(&as_stated).unwrap(), page, "{name}");
    }
}

#[test]
fn a_backing_file_of_unstated_format_must_look_like_a_raw_disk() {
    let dir = TempDir::new();
    dir.file("base", &[3; 65536]);
    qcow2("backing_file=base,backing_fmt=raw").create(64 << 10, dir.join("o.qcow2")).unwrap();
    let mut bytes = fs::read(dir.join("o.qcow2")).unwrap();
    let at = bytes.windows(4).position(|bytes| bytes == 0xe279_2aca_u32.to_be_bytes()).unwrap();
    bytes[at..at + 4].copy_from_slice(b"none");
    let path = dir.file("o.qcow2", &bytes);
    let beside = OpenOptions::new().reference_policy(ReferencePolicy::Beside);
    assert!(beside.open(&path).is_ok());
    for (signature, name) in [(&b"\x1f\x8b\x08"[..], "gzip"), (b"LUKS\xba\xbe\0\x01", "luks"), (b"QED\0", "qed")] {
        dir.file("base", &[signature, &[3; 65536]].concat()[..65536]);
        let error = beside.open(&path).err().unwrap();
        let problem = ReferenceProblem::FormatNotStated(name);
        assert!(matches!(error.root(), Error::Reference { problem: found, .. } if *found == problem), "{error}");
        assert!(beside.clone().backing_format(format("raw")).open(&path).is_ok());
    }
}

#[test]
fn inspection_tells_what_a_raw_disk_holds() {
    let dir = TempDir::new();
    let mut disk = vec![0; 0x9000];
    disk[0x8001..0x8006].copy_from_slice(b"CD001");
    let path = dir.file("cd.iso", &disk);
    let inspection = OpenOptions::new().inspect(&path).unwrap();
    assert_eq!(inspection.format.name(), "raw");
    assert_eq!(inspection.info.specific, [("content", "ISO 9660".into())]);
    assert!(OpenOptions::new().inspect(dir.file("zeros.img", &[0; 4096])).unwrap().info.specific.is_empty());
    assert!(raw().convert(&Image::open(&path).unwrap(), dir.join("copy.raw")).is_ok());
}
