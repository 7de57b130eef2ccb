//! qcow2 with the guest data in a data file.

use std::fs;
use std::sync::Arc;

use diskimage::io::{MemDirectory, MemFile};
use diskimage::{Converter, Error, Format, Image, OpenOptions, Options, ReferencePolicy};

use crate::support::TempDir;
use crate::support::pattern::Pattern;

const SIZE: u64 = (3 << 20) + 512;

fn options(list: &str) -> Options {
    let mut options = Options::new();
    options.add_list(list);
    options
}

fn raw(bytes: &[u8]) -> Image {
    OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(bytes.to_vec()))).unwrap()
}

#[test]
fn data_is_at_its_guest_offset() {
    let bytes = Pattern::Islands.make(SIZE as usize);
    for (list, base) in [
        ("", None),
        ("data_file_raw=on", None),
        ("cluster_size=512", None),
        ("cluster_size=2M,refcount_bits=1", None),
        ("extended_l2=on", None),
        ("extended_l2=on,preallocation=metadata", None),
        ("preallocation=falloc", None),
        ("preallocation=full,data_file_raw=on", None),
        ("", Some(Pattern::Dense)),
        ("extended_l2=on", Some(Pattern::Dense)),
    ] {
        let directory = Arc::new(MemDirectory::new());
        let mut converter = Converter::new(Format::QCOW2).options(options(&format!("data_file=data,{list}")));
        if let Some(base) = base {
            let base = base.make(SIZE as usize);
            directory.insert("base", Arc::new(MemFile::from(base.clone())));
            converter = converter.backing(raw(&base), "base");
        }
        converter.convert_into(&raw(&bytes), &*directory, "image").unwrap();
        let file = directory.open("data").unwrap();
        assert_eq!(file.size().unwrap(), SIZE, "{list}");
        let mut data = vec![0; SIZE as usize];
        file.read_exact_at(&mut data, 0).unwrap();
        if base.is_none() {
            assert!(data == bytes, "{list}: the data file is not the disk");
        }
        let (image, resolver) = (directory.open("image").unwrap(), directory.clone());
        let opened = OpenOptions::new()
            .reference_policy(ReferencePolicy::Beside)
            .resolver(move |request| resolver.open(request.path).map(|file| file as _));
        let disk = opened.open_source(image.clone()).unwrap();
        let mut found = vec![0; SIZE as usize];
        disk.read_exact_at(&mut found, 0).unwrap();
        assert!(found == bytes, "{list}: other content");
        let report = opened.check_source(image).unwrap();
        assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 0), "{list}: {report:?}");
    }
}

#[test]
fn the_data_file_may_be_in_another_directory() {
    let dir = TempDir::new();
    fs::create_dir(dir.join("there")).unwrap();
    let bytes = Pattern::Dense.make(1 << 20);
    for name in ["there/data".to_owned(), dir.join("there/data").to_str().unwrap().to_owned(), "./beside".into()] {
        let converter = Converter::new(Format::QCOW2).options(options(&format!("data_file={name}")));
        converter.verify(true).convert(&raw(&bytes), dir.join("image")).unwrap();
        assert!(fs::read(dir.path().join(&name)).unwrap() == bytes, "{name}");
        let image = OpenOptions::new().reference_policy(ReferencePolicy::Any).open(dir.join("image")).unwrap();
        let mut found = vec![0; bytes.len()];
        image.read_exact_at(&mut found, 0).unwrap();
        assert!(found == bytes, "{name}");
    }
}

#[test]
fn a_failure_leaves_neither_file() {
    let dir = TempDir::new();
    fs::create_dir(dir.join("there")).unwrap();
    dir.file("there/old", b"old");
    let bytes = Pattern::Dense.make(1 << 20);
    let cancel = Arc::new(std::sync::atomic::AtomicBool::new(true));
    for (name, left) in [("data", None), ("there/old", Some(b"old".to_vec()))] {
        let converter = Converter::new(Format::QCOW2).options(options(&format!("data_file={name}")));
        let failed = converter.cancel(cancel.clone()).convert(&raw(&bytes), dir.join("image"));
        assert!(matches!(failed.unwrap_err().root(), Error::Cancelled), "{name}");
        assert_eq!(fs::read(dir.join(name)).ok(), left, "{name}");
        assert!(!dir.join("image").exists());
    }
}

#[test]
fn what_has_no_data_file_is_refused() {
    let dir = TempDir::new();
    fs::create_dir(dir.join("taken")).unwrap();
    let create =
        |list: &str, name: &str| Converter::new(Format::QCOW2).options(options(list)).create(SIZE, dir.join(name));
    for (list, word) in [
        ("data_file=image", "two files"),
        ("data_file=./image", "two files"),
        ("data_file=none/data", "finding the directory"),
        ("data_file=taken", "not a regular file"),
        ("data_file=nbd:host", "read as a URL"),
        ("data_file=data,compat=0.10", "version 3"),
        ("data_file=taken,backing_file=taken,backing_fmt=raw", "the backing file, too"),
        ("data_file_raw=on", "requires data_file"),
        ("data_file=data,data_file_raw=on,backing_file=b,backing_fmt=raw", "no backing file"),
    ] {
        let said = create(list, "image").unwrap_err().to_string();
        assert!(said.contains(word), "{list}: {said}");
        assert_eq!(dir.names(), ["taken"], "{list}");
    }
    let compressed = Converter::new(Format::QCOW2).compress(true).options(options("data_file=data"));
    assert!(compressed.create(SIZE, dir.join("image")).unwrap_err().to_string().contains("compressed"));
    let single = Converter::new(Format::QCOW2).options(options("data_file=data"));
    let error = single.create_to(SIZE, Arc::new(MemFile::new())).unwrap_err();
    assert!(matches!(error.root(), Error::Unsupported { .. }), "{error}");
}

/// Otherwise guest data would be stored in the clear in the data file, or read back encrypted.
#[cfg(all(feature = "crypto", feature = "disk"))]
#[test]
fn an_encrypted_image_has_no_data_file() {
    use diskimage::Secret;
    use diskimage::io::{ReadAt, Storage, WriteAt};

    let dir = TempDir::new();
    let list = "data_file=data,encrypt.format=luks,encrypt.iter-time=1";
    let converter = Converter::new(Format::QCOW2).secret(Secret::new("secret")).options(options(list));
    let error = converter.create(SIZE, dir.join("image")).unwrap_err();
    assert!(error.to_string().contains("an encrypted image with a data file"), "{error}");
    assert!(dir.names().is_empty());

    let directory = Arc::new(MemDirectory::new());
    let converter = Converter::new(Format::QCOW2).options(options("data_file=data"));
    converter.convert_into(&raw(&[7; 4096]), &*directory, "image").unwrap();
    let (image, resolver) = (directory.open("image").unwrap(), directory.clone());
    let mut bytes = vec![0; image.size().unwrap() as usize];
    image.read_exact_at(&mut bytes, 0).unwrap();
    let with_method = |method: u32| {
        let file = Arc::new(MemFile::from(bytes.clone()));
        file.write_all_at(&method.to_be_bytes(), 32).unwrap();
        file
    };
    let opened = OpenOptions::new()
        .secret(Secret::new("secret"))
        .reference_policy(ReferencePolicy::Beside)
        .resolver(move |request| resolver.open(request.path).map(|file| file as _));
    assert!(opened.open_source(with_method(0)).is_ok());
    const AES: u32 = 1;
    const LUKS: u32 = 2;
    let read = opened.open_source(with_method(AES)).map(drop).unwrap_err();
    let disk: Arc<dyn Storage> = with_method(LUKS);
    let changed = opened.open_disk_in(disk).map(drop).unwrap_err();
    for error in [read, changed] {
        assert!(error.to_string().contains("encryption of an external data file"), "{error}");
    }
}
