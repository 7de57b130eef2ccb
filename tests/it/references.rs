//! Referenced files and the reference policy.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::support::patch::Qcow2;
use crate::support::{TempDir, content, format, options, qcow2, raw_image, vmdk};
use diskimage::{Error, Image, Limits, OpenOptions, ReferencePolicy, ReferenceProblem, Result};

/// An overlay of 64 KiB that names `backing`.
fn overlay(dir: &TempDir, name: &str, backing: &str, backing_format: &str) -> PathBuf {
    let path = dir.join(name);
    let mut list = options("cluster_size=512");
    // Names that the writer refuses are put in by hand.
    let placeholder = "#".repeat(backing.len());
    list.set("backing_file", placeholder.as_str());
    list.set("backing_fmt", backing_format);
    qcow2("").options(list).create(64 << 10, &path).unwrap();
    let mut image = Qcow2(fs::read(&path).unwrap());
    let at = image.u64(8);
    assert_eq!(image.0[at as usize..][..backing.len()], *placeholder.as_bytes());
    image.put(at, backing.as_bytes());
    fs::write(&path, &image.0).unwrap();
    path
}

fn open(path: &Path, references: ReferencePolicy) -> Result<Image> {
    OpenOptions::new().reference_policy(references).open(path)
}

#[track_caller]
fn problem(result: Result<Image>) -> ReferenceProblem {
    match result.err().unwrap().root() {
        Error::Reference { problem, .. } => problem.clone(),
        other => panic!("{other}"),
    }
}

#[track_caller]
fn refusal(path: &Path, references: ReferencePolicy) -> ReferenceProblem {
    problem(open(path, references))
}

#[test]
fn reference_policies() {
    let dir = TempDir::new();
    fs::create_dir(dir.join("sub")).unwrap();
    dir.file("base.raw", &[1; 65536]);
    dir.file("sub/base.raw", &[2; 65536]);
    symlink("base.raw", dir.join("link.raw")).unwrap();
    let absolute = dir.join("base.raw");
    let elsewhere = dir.join("sub/base.raw");
    let names = |path: &Path| path.to_str().unwrap().to_owned();
    let json = |name: &str| format!(r#"json:{{"driver":"raw","file":{{"filename":"{name}"}}}}"#);
    let null_co = ReferenceProblem::NotOneFile("driver 'null-co', no file name".into());
    for (name, beside, any) in [
        ("base.raw".to_owned(), Ok(1), Ok(1)),
        ("./base.raw".to_owned(), Ok(1), Ok(1)),
        (names(&absolute), Ok(1), Ok(1)),
        ("sub/base.raw".to_owned(), Err(ReferenceProblem::NotBeside), Ok(2)),
        ("sub/../base.raw".to_owned(), Err(ReferenceProblem::NotBeside), Ok(1)),
        (names(&elsewhere), Err(ReferenceProblem::NotBeside), Ok(2)),
        ("nbd:localhost:1".to_owned(), Err(ReferenceProblem::NotAFile), Err(ReferenceProblem::NotAFile)),
        ("fat:rw:/".to_owned(), Err(ReferenceProblem::NotAFile), Err(ReferenceProblem::NotAFile)),
        ("file:base.raw".to_owned(), Ok(1), Ok(1)),
        ("file:sub/base.raw".to_owned(), Err(ReferenceProblem::NotBeside), Ok(2)),
        (json("base.raw"), Ok(1), Ok(1)),
        (json(&names(&absolute)), Ok(1), Ok(1)),
        (json(&names(&elsewhere)), Err(ReferenceProblem::NotBeside), Ok(2)),
        (json("nbd:localhost:1"), Err(ReferenceProblem::NotAFile), Err(ReferenceProblem::NotAFile)),
        ("json:{\"driver\":\"null-co\"}".to_owned(), Err(null_co.clone()), Err(null_co)),
    ] {
        let path = overlay(&dir, "overlay.qcow2", &name, "raw");
        assert_eq!(refusal(&path, ReferencePolicy::Deny), ReferenceProblem::NotAllowed, "{name}");
        for (references, expected) in [(ReferencePolicy::Beside, &beside), (ReferencePolicy::Any, &any)] {
            match expected {
                Ok(byte) => {
                    assert_eq!(content(&open(&path, references).unwrap()).unwrap(), vec![*byte; 65536], "{name}");
                }
                Err(expected) => assert_eq!(refusal(&path, references), *expected, "{name}"),
            }
        }
        // Inspection opens no other file.
        let inspection = OpenOptions::new().inspect(&path).unwrap();
        assert_eq!(inspection.info.backing.unwrap().name.to_text(), name);
    }
    let path = overlay(&dir, "overlay.qcow2", "link.raw", "raw");
    assert_eq!(refusal(&path, ReferencePolicy::Beside), ReferenceProblem::Link, "it can lead anywhere");
    assert_eq!(content(&open(&path, ReferencePolicy::Any).unwrap()).unwrap(), vec![1; 65536]);
}

#[test]
fn refusals_do_not_reveal_what_exists() {
    let dir = TempDir::new();
    dir.file("there", &[0; 512]);
    fs::create_dir(dir.join("sub")).unwrap();
    dir.file("sub/there", &[0; 512]);
    for (references, prefix) in
        [(ReferencePolicy::Deny, ""), (ReferencePolicy::Deny, "/etc/"), (ReferencePolicy::Beside, "sub/")]
    {
        let [there, absent] = ["there", "absen"].map(|name| {
            let path = overlay(&dir, "overlay.qcow2", &format!("{prefix}{name}"), "raw");
            open(&path, references).err().unwrap().to_string().replace(name, "NAME")
        });
        assert_eq!(there, absent);
        assert!(there.contains("NAME"), "{there}");
    }
}

#[test]
fn names_that_are_not_files_are_refused() {
    let dir = TempDir::new();
    assert!(std::process::Command::new("mkfifo").arg(dir.join("fifo")).status().unwrap().success());
    fs::create_dir(dir.join("directory")).unwrap();
    for name in ["fifo", "directory"] {
        let path = overlay(&dir, "overlay.qcow2", name, "raw");
        for references in [ReferencePolicy::Beside, ReferencePolicy::Any] {
            assert_eq!(refusal(&path, references), ReferenceProblem::NotRegular, "{name}");
        }
    }
    let path = overlay(&dir, "overlay.qcow2", "/dev/zero", "raw");
    assert_eq!(refusal(&path, ReferencePolicy::Any), ReferenceProblem::NotRegular);
    // A FIFO as the image itself is refused too, without waiting for a writer.
    assert!(Image::open(dir.join("fifo")).is_err());
}

#[test]
fn loops_and_long_chains() {
    let dir = TempDir::new();
    let itself = overlay(&dir, "itself.qcow2", "itself.qcow2", "qcow2");
    assert_eq!(refusal(&itself, ReferencePolicy::Beside), ReferenceProblem::Loop);
    overlay(&dir, "b.qcow2", "a.qcow2", "qcow2");
    let a = overlay(&dir, "a.qcow2", "b.qcow2", "qcow2");
    assert_eq!(refusal(&a, ReferencePolicy::Beside), ReferenceProblem::Loop);
    assert_eq!(
        OpenOptions::new().reference_policy(ReferencePolicy::Beside).inspect_chain(&a).unwrap_err().kind().as_str(),
        "reference"
    );

    let depth = Limits::default().chain_depth as usize;
    dir.file("0", &[7; 65536]);
    for number in 1..=depth {
        let backing_format = if number == 1 { "raw" } else { "qcow2" };
        overlay(&dir, &number.to_string(), &(number - 1).to_string(), backing_format);
    }
    let most = dir.join(&(depth - 1).to_string());
    let image = open(&most, ReferencePolicy::Beside).unwrap();
    assert_eq!(image.layer_count(), depth);
    assert_eq!(content(&image).unwrap(), vec![7; 65536]);
    let one_more = dir.join(&depth.to_string());
    assert_eq!(open(&one_more, ReferencePolicy::Beside).err().unwrap().kind().as_str(), "limit");
    let mut limits = Limits::default();
    limits.chain_depth = 3;
    let few = OpenOptions::new().reference_policy(ReferencePolicy::Beside).limits(limits);
    assert!(few.open(dir.join("2")).is_ok());
    assert_eq!(few.open(dir.join("3")).err().unwrap().kind().as_str(), "limit");
}

#[test]
fn backing_files_of_unstated_format() {
    let dir = TempDir::new();
    let path = overlay(&dir, "overlay.qcow2", "base", "raw");
    // Changes the type of the backing format extension to an unknown one.
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(4).position(|bytes| bytes == 0xe279_2aca_u32.to_be_bytes()).unwrap();
    bytes[at..at + 4].copy_from_slice(b"none");
    fs::write(&path, bytes).unwrap();

    dir.file("base", &[3; 65536]);
    assert_eq!(
        content(&open(&path, ReferencePolicy::Beside).unwrap()).unwrap(),
        vec![3; 65536],
        "it can be nothing but raw"
    );
    qcow2("").create(64 << 10, dir.join("base")).unwrap();
    assert_eq!(refusal(&path, ReferencePolicy::Beside), ReferenceProblem::FormatNotStated("qcow2"));
    for (stated, first) in [("qcow2", 0), ("raw", b'Q')] {
        let opened = OpenOptions::new()
            .reference_policy(ReferencePolicy::Beside)
            .backing_format(format(stated))
            .open(&path)
            .unwrap();
        assert_eq!(content(&opened).unwrap()[0], first, "{stated}");
    }
}

#[test]
fn backing_formats_that_cannot_be_right() {
    let dir = TempDir::new();
    dir.file("base", &[3; 65536]);
    let opened = |stated: &str, assumed: Option<&str>| {
        let path = overlay(&dir, "overlay.qcow2", "base", stated);
        let options = OpenOptions::new().reference_policy(ReferencePolicy::Beside);
        match assumed {
            Some(assumed) => options.backing_format(format(assumed)).open(&path),
            None => options.open(&path),
        }
    };
    // The names of protocols, which qemu reads as raw.
    for stated in ["file", "host_device"] {
        assert_eq!(content(&opened(stated, None).unwrap()).unwrap(), vec![3; 65536], "{stated}");
    }
    assert_eq!(opened("hologram", None).err().unwrap().kind().as_str(), "unknown-format");
    assert_eq!(opened("vmdk", None).err().unwrap().kind().as_str(), "invalid-field");
    for stated in ["hologram", "vmdk", "qcow2"] {
        assert_eq!(content(&opened(stated, Some("raw")).unwrap()).unwrap(), vec![3; 65536], "{stated}");
    }
    // One that can be right stays: in a chain, the assumption is for other images.
    qcow2("").create(64 << 10, dir.join("base")).unwrap();
    assert_eq!(content(&opened("qcow2", Some("raw")).unwrap()).unwrap(), vec![0; 65536]);
    assert_eq!(content(&opened("file", Some("qcow2")).unwrap()).unwrap(), vec![0; 65536]);
    assert_eq!(content(&opened("raw", Some("qcow2")).unwrap()).unwrap()[0], b'Q');
}

/// The case of letters in the names of images from Windows.
#[test]
fn names_in_another_case() {
    let dir = TempDir::new();
    vmdk("subformat=monolithicFlat").convert(&raw_image(&[5; 65536]), dir.join("disk.vmdk")).unwrap();
    let image = dir.join("disk.vmdk");
    fs::rename(dir.join("disk-flat.vmdk"), dir.join("Disk-FLAT.vmdk")).unwrap();
    for references in [ReferencePolicy::Beside, ReferencePolicy::Any] {
        assert_eq!(content(&open(&image, references).unwrap()).unwrap(), vec![5; 65536]);
    }
    assert_eq!(refusal(&image, ReferencePolicy::Deny), ReferenceProblem::NotAllowed);
    // A second one, and it is not known which is meant.
    dir.file("DISK-flat.vmdk", &[6; 65536]);
    assert_eq!(open(&image, ReferencePolicy::Beside).err().unwrap().kind().as_str(), "io");
    dir.file("disk-flat.vmdk", &[7; 65536]);
    assert_eq!(content(&open(&image, ReferencePolicy::Beside).unwrap()).unwrap(), vec![7; 65536]);
    // On Unix, other images mean what they say.
    dir.file("Base", &[1; 65536]);
    let path = overlay(&dir, "overlay.qcow2", "base", "raw");
    assert_eq!(open(&path, ReferencePolicy::Beside).err().unwrap().kind().as_str(), "io");
}

#[test]
fn sources_without_a_path_have_no_referenced_files() {
    let dir = TempDir::new();
    let path = overlay(&dir, "overlay.qcow2", "base.raw", "raw");
    let file = std::sync::Arc::new(diskimage::io::MemFile::from(fs::read(path).unwrap()));
    let result = OpenOptions::new().reference_policy(ReferencePolicy::Any).open_source(file);
    assert_eq!(problem(result), ReferenceProblem::NoPlace);
}

/// The same file by another name: a hard link, a symbolic link, a mount.
#[test]
fn loops_over_mixed_names() {
    let dir = TempDir::new();
    let image = overlay(&dir, "image.qcow2", "hard.qcow2", "qcow2");
    fs::hard_link(&image, dir.join("hard.qcow2")).unwrap();
    for references in [ReferencePolicy::Beside, ReferencePolicy::Any] {
        assert_eq!(refusal(&image, references), ReferenceProblem::Loop);
    }
    let image = overlay(&dir, "one.qcow2", "link.qcow2", "qcow2");
    symlink("two.qcow2", dir.join("link.qcow2")).unwrap();
    overlay(&dir, "two.qcow2", "up/one.qcow2", "qcow2");
    symlink(".", dir.join("up")).unwrap();
    assert_eq!(refusal(&image, ReferencePolicy::Beside), ReferenceProblem::Link);
    assert_eq!(refusal(&image, ReferencePolicy::Any), ReferenceProblem::Loop);

    fs::create_dir(dir.join("mount")).unwrap();
    let image = overlay(&dir, "low.qcow2", "mount/low.qcow2", "qcow2");
    let mount = |name: &str, words: &[&str]| {
        std::process::Command::new(name).args(words).output().is_ok_and(|output| output.status.success())
    };
    let (from, to) = (dir.path().to_str().unwrap(), dir.join("mount"));
    let to = to.to_str().unwrap();
    if !mount("mount", &["--bind", from, to]) {
        eprintln!("SKIPPED: without a mount of the same directory, which takes root");
        return;
    }
    let problem = open(&image, ReferencePolicy::Any);
    assert!(mount("umount", &[to]));
    assert_eq!(self::problem(problem), ReferenceProblem::Loop);
}

/// What another process does between two steps never makes a file part of the image that is not in its directory.
#[test]
fn exchanged_names_lead_nowhere_else() {
    use std::sync::atomic::{AtomicBool, Ordering};

    const ROUNDS: usize = 3000;
    let dir = TempDir::new();
    for (name, byte) in [("images", 1), ("elsewhere", 2)] {
        fs::create_dir(dir.join(name)).unwrap();
        let image = overlay(&dir, "overlay.qcow2", "base.raw", "raw");
        fs::rename(image, dir.join(name).join("overlay.qcow2")).unwrap();
        fs::write(dir.join(name).join("base.raw"), vec![byte; 65536]).unwrap();
        // The first cluster is in the overlay.
        let disk = OpenOptions::new().open_disk_alone(dir.join(name).join("overlay.qcow2")).unwrap();
        disk.write_all_at(&[byte; 512], 0).unwrap();
        disk.close().unwrap();
    }
    fs::write(dir.join("secret"), vec![3; 65536]).unwrap();

    let stop = AtomicBool::new(false);
    let (moved, images) = (dir.join("moved"), dir.join("images"));
    let (mut opened, mut refused) = ([0; 4], 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = moved.join("base.raw");
            while !stop.load(Ordering::Relaxed) {
                // The directory is a link to another, and back.
                fs::rename(&images, &moved).unwrap();
                symlink("elsewhere", &images).unwrap();
                // The file is a link to one elsewhere, and back.
                fs::rename(&file, moved.join("kept")).unwrap();
                symlink("../secret", &file).unwrap();
                fs::remove_file(&images).unwrap();
                fs::rename(&moved, &images).unwrap();
                fs::remove_file(images.join("base.raw")).unwrap();
                fs::rename(images.join("kept"), images.join("base.raw")).unwrap();
            }
        });
        for _ in 0..ROUNDS {
            match open(&images.join("overlay.qcow2"), ReferencePolicy::Beside) {
                Ok(image) => {
                    let bytes = content(&image).unwrap();
                    let byte = bytes[0];
                    assert_eq!(bytes, vec![byte; 65536]);
                    opened[usize::from(byte)] += 1;
                }
                Err(_) => refused += 1,
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(opened.iter().sum::<usize>() + refused, ROUNDS);
    assert!(opened[1] > 0, "{opened:?}, {refused} refused");
}
