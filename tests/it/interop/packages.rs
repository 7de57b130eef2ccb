//! Archives of GNU tar, bsdtar and Python, and packages that other programs read.

use std::fs;
use std::path::Path;
use std::process::Command;

use diskimage::{Converter, Format, Image, OpenOptions};

use crate::support::pattern::Pattern;
use crate::support::tools::{find, needs_qemu, output, run};
use crate::support::{TempDir, assert_same, content, options, raw_image};

/// A sparse disk with enough runs of data for blocks of the map after the header.
fn sparse_disk(dir: &TempDir) -> Vec<u8> {
    use std::os::unix::fs::FileExt;

    let mut disk = vec![0; 8 << 20];
    let file = fs::File::create(dir.join("disk.raw")).unwrap();
    file.set_len(disk.len() as u64).unwrap();
    for index in 0..60 {
        let at = index << 17;
        let data = Pattern::Dense.make(4096 + 512 * (index % 3));
        disk[at..at + data.len()].copy_from_slice(&data);
        file.write_all_at(&data, at as u64).unwrap();
    }
    disk
}

#[track_caller]
fn assert_reads(dir: &TempDir, archive: &str, disk: &[u8]) {
    let image = Image::open(dir.join(archive)).unwrap_or_else(|e| panic!("{archive}: {e}"));
    assert_same(&content(&image).unwrap(), disk, archive);
}

fn tar(dir: &TempDir, program: &str, args: &[&str]) -> bool {
    let done = Command::new(program).args(args).current_dir(dir.path()).output().unwrap();
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    true
}

#[test]
fn archives_of_gnu_tar() {
    let Some(program) = find("archives_of_gnu_tar", &["tar"]) else { return };
    let dir = TempDir::new();
    let disk = sparse_disk(&dir);
    let long = "n".repeat(90);
    fs::create_dir_all(dir.join(&format!("{long}/{long}"))).unwrap();
    let deep = format!("{long}/{long}/disk.raw");
    // tar stores a file as sparse only if it has holes.
    tar(&dir, "cp", &["--sparse=always", "disk.raw", &deep]);
    for format in ["v7", "oldgnu", "gnu", "ustar", "pax"] {
        tar(&dir, &program, &["-cf", "a.tar", &format!("--format={format}"), "disk.raw"]);
        assert_reads(&dir, "a.tar", &disk);
        if format != "v7" {
            tar(&dir, &program, &["-cf", "a.tar", &format!("--format={format}"), &deep]);
            assert_reads(&dir, "a.tar", &disk);
        }
    }
    for args in [
        &["--format=oldgnu"][..],
        &["--format=gnu"],
        &["--format=pax"],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        for name in ["disk.raw", &*deep] {
            tar(&dir, &program, &[&["-S", "--hole-detection=raw", "-cf", "a.tar"], args, &[name]].concat());
            assert!(
                fs::metadata(dir.join("a.tar")).unwrap().len() < 2 << 20,
                "{args:?}: it is stored as a sparse file"
            );
            assert_reads(&dir, "a.tar", &disk);
            // Its holes are holes of the disk.
            let image = Image::open(dir.join("a.tar")).unwrap();
            let data: u64 = image
                .spans(0..u64::MAX)
                .map(|span| span.unwrap())
                .filter(|span| span.is_data())
                .map(|span| span.len)
                .sum();
            assert!(data < 1 << 20, "{args:?}: {data} bytes of data");
        }
    }
    // With folders, links and other files beside the disk.
    fs::write(dir.join("README"), "text").unwrap();
    std::os::unix::fs::symlink("disk.raw", dir.join("link.raw")).unwrap();
    fs::hard_link(dir.join("disk.raw"), dir.join("second.raw")).unwrap();
    fs::create_dir(dir.join("folder")).unwrap();
    tar(&dir, &program, &["-cf", "a.tar", "./disk.raw", "./link.raw", "./second.raw", "./folder", "./README"]);
    assert_reads(&dir, "a.tar", &disk);
}

#[test]
fn archives_of_bsdtar() {
    let Some(program) = find("archives_of_bsdtar", &["bsdtar"]) else { return };
    let dir = TempDir::new();
    let disk = sparse_disk(&dir);
    for format in ["ustar", "pax", "gnutar", "v7"] {
        tar(&dir, &program, &["-cf", "a.tar", "--format", format, "disk.raw"]);
        assert_reads(&dir, "a.tar", &disk);
    }
}

#[test]
fn archives_of_python() {
    let Some(program) = find("archives_of_python", &["python3"]) else { return };
    let dir = TempDir::new();
    let disk = sparse_disk(&dir);
    for format in ["USTAR_FORMAT", "GNU_FORMAT", "PAX_FORMAT"] {
        for name in ["disk.raw".to_owned(), format!("{}/größe.raw", "f".repeat(80))] {
            let script = format!(
                "import tarfile\nwith tarfile.open('a.tar', 'w', format=tarfile.{format}) as t: t.add('disk.raw', '{name}')"
            );
            tar(&dir, &program, &["-c", &script]);
            assert_reads(&dir, "a.tar", &disk);
        }
    }
}

/// The same member as qemu-img finds it, by the offset that GNU tar tells.
#[test]
fn members_are_where_other_programs_find_them() {
    needs_qemu!("members_are_where_other_programs_find_them");
    let Some(program) = find("members_are_where_other_programs_find_them", &["tar"]) else { return };
    let dir = TempDir::new();
    let path = write_ova(&dir);
    let listed = run(&program, &["-tvRf", path.to_str().unwrap()]);
    let listed = String::from_utf8(listed).unwrap();
    let line = listed.lines().find(|line| line.contains("disk2.vmdk")).unwrap();
    let block: u64 = line.strip_prefix("block ").unwrap().split(':').next().unwrap().parse().unwrap();
    let size: u64 = line.split_whitespace().nth(4).unwrap().parse().unwrap();
    let json = format!(
        r#"json:{{"driver":"vmdk","file":{{"driver":"raw","offset":{},"size":{size},"file":{{"driver":"file","filename":"{}"}}}}}}"#,
        (block + 1) * 512,
        path.to_str().unwrap()
    );
    let target = dir.join("disk.raw");
    run("qemu-img", &["convert", "-O", "raw", &json, target.to_str().unwrap()]);
    assert_same(&fs::read(target).unwrap(), &Pattern::Dense.make(2 << 20), "disk 2 of qemu-img");
}

fn write_ova(dir: &TempDir) -> std::path::PathBuf {
    let path = dir.join("vm.ova");
    let disks = [raw_image(&Pattern::Islands.make(1 << 20)), raw_image(&Pattern::Dense.make(2 << 20))];
    let converter = Converter::new(Format::VMDK).options(options("firmware=efi,cpus=3")).sync(false);
    converter.convert_to_ova(&disks.iter().collect::<Vec<_>>(), &path).unwrap();
    path
}

#[test]
fn written_packages_unpack_and_their_digests_are_right() {
    for name in ["tar", "bsdtar"] {
        let Some(program) = find("written_packages_unpack_and_their_digests_are_right", &[name]) else { continue };
        let dir = TempDir::new();
        let path = write_ova(&dir);
        let listed = String::from_utf8(run(&program, &["-tf", path.to_str().unwrap()])).unwrap();
        assert_eq!(listed.lines().collect::<Vec<_>>(), ["vm.ovf", "vm-disk1.vmdk", "vm-disk2.vmdk", "vm.mf"]);
        tar(&dir, &program, &["-xf", "vm.ova"]);
        let manifest = fs::read_to_string(dir.join("vm.mf")).unwrap();
        // As sha256sum --check reads it.
        fs::write(dir.join("sums"), manifest.replace(")= ", ") = ").replace("SHA256(", "SHA256 (")).unwrap();
        tar(&dir, "sha256sum", &["--strict", "-c", "sums"]);
        // The directory is a package too.
        let options = OpenOptions::new().reference_policy(diskimage::ReferencePolicy::Beside).member("2");
        fs::remove_file(&path).unwrap();
        let image = options.open(dir.path()).unwrap();
        assert_same(&content(&image).unwrap(), &Pattern::Dense.make(2 << 20), "disk 2");
        image.verify().unwrap();
    }
}

#[test]
fn a_written_descriptor_is_well_formed() {
    let Some(program) = find("a_written_descriptor_is_well_formed", &["xmllint"]) else { return };
    let dir = TempDir::new();
    let path = write_ova(&dir);
    tar(&dir, "tar", &["-xf", path.to_str().unwrap()]);
    let found = output(&program, &["--noout", dir.join("vm.ovf").to_str().unwrap()]);
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
}

/// The shape of an image as the documentation of Compute Engine has it made: `tar --format=oldgnu -Sczf image.tar.gz disk.raw`.
#[test]
fn images_of_google_are_those_of_gnu_tar() {
    let Some(program) = find("images_of_google_are_those_of_gnu_tar", &["tar"]) else { return };
    let dir = TempDir::new();
    // More runs than a header has room for.
    let mut disk = vec![0; 120 << 20];
    for block in (0..60).filter(|block| block % 7 != 0) {
        disk[block << 21..][..300].copy_from_slice(&Pattern::Dense.make(300));
    }
    sparse_copy(&dir, "source.raw", &disk);
    let converter = Converter::new(Format::RAW).google_image(true).sync(false);
    let report = converter.convert(&Image::open(dir.join("source.raw")).unwrap(), dir.join("image.tar.gz")).unwrap();
    assert_eq!((report.virtual_size, report.padding), (1 << 30, (1 << 30) - disk.len() as u64));
    assert!(fs::metadata(dir.join("image.tar.gz")).unwrap().len() < 1 << 20);
    let listed = String::from_utf8(run(&program, &["-tvzf", dir.join("image.tar.gz").to_str().unwrap()])).unwrap();
    let words: Vec<_> = listed.split_whitespace().collect();
    assert_eq!((words[2], *words.last().unwrap(), listed.lines().count()), ("1073741824", "disk.raw", 1));
    tar(&dir, &program, &["-xSzf", "image.tar.gz"]);
    let found = fs::File::open(dir.join("disk.raw")).unwrap();
    assert_eq!(found.metadata().unwrap().len(), 1 << 30);
    let mut content = vec![0; disk.len()];
    std::os::unix::fs::FileExt::read_exact_at(&found, &mut content, 0).unwrap();
    assert_same(&content, &disk, "disk.raw");
    use std::os::unix::fs::MetadataExt;
    assert!(found.metadata().unwrap().blocks() * 512 < 100 << 20, "holes are holes");
    // The first header, but for owner, permissions, times and checksum.
    tar(&dir, &program, &["--format=oldgnu", "-S", "-cf", "model.tar", "disk.raw"]);
    run("gzip", &["-dk", dir.join("image.tar.gz").to_str().unwrap()]);
    let header = |name: &str| {
        let mut header = fs::read(dir.join(name)).unwrap();
        assert!(header.len().is_multiple_of(10240), "{name}: whole records");
        header.truncate(512);
        for range in [100..124, 136..156, 265..386] {
            header[range].fill(0);
        }
        header
    };
    let (ours, theirs) = (header("image.tar"), header("model.tar"));
    assert_eq!(ours[..100], theirs[..100]);
    assert_eq!(ours[156..265], theirs[156..265], "type and magic");
    assert_eq!(ours[482..495], theirs[482..495], "more entries, and the size");
}

/// Writes the file with holes.
fn sparse_copy(dir: &TempDir, name: &str, content: &[u8]) {
    use std::os::unix::fs::FileExt;

    let file = fs::File::create(dir.join(name)).unwrap();
    file.set_len(content.len() as u64).unwrap();
    for (index, block) in content.chunks(4096).enumerate().filter(|(_, block)| block.iter().any(|byte| *byte != 0)) {
        file.write_all_at(block, index as u64 * 4096).unwrap();
    }
}

/// A size above 8 GiB, which ustar cannot store.
#[test]
fn large_members_of_gnu_tar() {
    let Some(program) = find("large_members_of_gnu_tar", &["tar"]) else { return };
    let dir = TempDir::new();
    let file = fs::File::create(dir.join("disk.raw")).unwrap();
    file.set_len(9 << 30).unwrap();
    for format in ["gnu", "pax"] {
        tar(&dir, &program, &["-S", "-cf", "a.tar", &format!("--format={format}"), "disk.raw"]);
        let image = Image::open(dir.join("a.tar")).unwrap();
        assert_eq!(image.virtual_size(), 9 << 30);
        assert!(Path::new(&dir.join("a.tar")).metadata().unwrap().len() < 1 << 20);
    }
}
