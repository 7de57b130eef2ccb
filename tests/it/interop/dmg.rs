//! Images of macOS: their payloads are compressed by other programs, and other programs read the images.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::dmg::{self, DmgBuilder};
use crate::support::pattern::{ALL, Pattern};
use crate::support::tools::{LIBMODI, find, read_with_qemu, run};
use crate::support::{TempDir, assert_same, content, convert, qcow2, raw};
use diskimage::io::MemFile;
use diskimage::{Image, OpenOptions};

/// A type of runs, and the name of the codec in `compress.py`.
type Kind = (u32, &'static str);

const KINDS: [Kind; 6] = [
    (dmg::RAW, ""),
    (dmg::ADC, ""),
    (dmg::ZLIB, "zlib"),
    (dmg::BZIP2, "bzip2"),
    (dmg::LZFSE, "lzfse"),
    (dmg::XZ, "xz"),
];

/// The payloads of these pieces.
fn compress((kind, codec): Kind, pieces: &[&[u8]]) -> Vec<Vec<u8>> {
    match kind {
        dmg::RAW => return pieces.iter().map(|piece| piece.to_vec()).collect(),
        dmg::ADC => return pieces.iter().map(|piece| dmg::adc(piece)).collect(),
        _ => {}
    }
    let python = std::env::var_os("DISKIMAGE_PYTHON").unwrap_or_else(|| "python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/interop/compress.py");
    let mut command = Command::new(python);
    let mut child = command
        .args([script, codec])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let input: Vec<u8> = pieces.iter().flat_map(|piece| framed(piece)).collect();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success() && writer.join().unwrap().is_ok(), "compress.py {codec}: {}", done.status);
    let (mut rest, mut payloads) = (&done.stdout[..], Vec::new());
    while let Some((len, after)) = rest.split_first_chunk() {
        let (payload, after) = after.split_at(u32::from_le_bytes(*len) as usize);
        payloads.push(payload.to_vec());
        rest = after;
    }
    assert_eq!(payloads.len(), pieces.len());
    payloads
}

fn framed(piece: &[u8]) -> Vec<u8> {
    [&(piece.len() as u32).to_le_bytes()[..], piece].concat()
}

/// The parts of an image with runs of `sectors` sectors, as hdiutil makes them: zeros have no payload, what does not shrink is stored as it is.
fn image(kind: Kind, guest: &[u8], sectors: usize) -> DmgBuilder {
    let pieces: Vec<_> = guest.chunks(sectors * 512).filter(|piece| piece.iter().any(|byte| *byte != 0)).collect();
    let mut payloads = compress(kind, &pieces).into_iter();
    let mut image = DmgBuilder::default();
    for piece in guest.chunks(sectors * 512) {
        let count = (piece.len() / 512) as u64;
        match piece.iter().any(|byte| *byte != 0).then(|| payloads.next().unwrap()) {
            None => image.run(dmg::ZEROS, count, &[]),
            Some(payload) if payload.len() < piece.len() => image.run(kind.0, count, &payload),
            Some(_) => image.run(dmg::RAW, count, piece),
        };
    }
    image.end_partition(crc32fast::hash(guest));
    image
}

/// Whether the codec of the kind is there.
#[track_caller]
fn is_there(kind: Kind) -> bool {
    let python = std::env::var("DISKIMAGE_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/interop/compress.py");
    let there = || Command::new(python).args([script, kind.1]).stdin(Stdio::null()).stderr(Stdio::null()).status();
    kind.1.is_empty()
        || there().is_ok_and(|status| status.success())
        || find(&format!("dmg images with payloads of {}", kind.1), &[&format!("{} for Python", kind.1)]).is_some()
}

/// Disks of all patterns, of whole sectors.
fn guests() -> impl Iterator<Item = (Pattern, Vec<u8>)> {
    ALL.into_iter().map(|pattern| {
        let mut guest = pattern.make(1 << 20);
        guest.truncate(1 << 20);
        (pattern, guest)
    })
}

#[test]
fn dmg_images_are_read_as_other_programs_read_them() {
    let qemu = find("dmg images, read by qemu-img", &["qemu-img"]);
    let seven_zip = find("dmg images, read by 7-Zip", &["7zz", "7z"]);
    let dmg2img = find("dmg images, read by dmg2img", &["dmg2img"]);
    let libmodi = LIBMODI.is_there("dmg images, read by libmodi");
    for kind in KINDS.into_iter().filter(|kind| is_there(*kind)) {
        let modi_dir = TempDir::new();
        let mut for_libmodi = Vec::new();
        for (pattern, guest) in guests() {
            for sectors in [512, 1023] {
                let what = format!("{pattern:?}, {kind:x?}, {sectors}");
                let dir = TempDir::new();
                let image = image(kind, &guest, sectors);
                let path = dir.file("disk.dmg", &image.build());
                let opened = Image::open(&path).unwrap();
                assert_eq!(opened.format().name(), "dmg");
                assert_same(&content(&opened).unwrap(), &guest, &what);
                // In whole chunks, on several threads.
                assert_same(&convert(&raw().threads(3), &opened).0, &guest, &what);
                // Its modules for the other codecs are in few distributions.
                if qemu.is_some() && matches!(kind.0, dmg::RAW | dmg::ZLIB) {
                    assert_same(&read_with_qemu(&path, &["-f", "dmg"]), &guest, &format!("qemu-img: {what}"));
                }
                if let Some(program) = &seven_zip {
                    assert_same(&read_with_7zip(program, &path), &guest, &format!("7-Zip: {what}"));
                }
                if let Some(program) = &dmg2img
                    && !matches!(kind.0, dmg::XZ | dmg::LZFSE)
                {
                    let out = dir.join("by-dmg2img");
                    run(program, &["-s", path.to_str().unwrap(), out.to_str().unwrap()]);
                    assert_same(&std::fs::read(out).unwrap(), &guest, &format!("dmg2img: {what}"));
                }
                let path = modi_dir.file(&format!("{}.dmg", for_libmodi.len()), &image.build_at_start());
                // The file can begin as a compressed file does.
                assert_eq!(Image::open(&path).unwrap().format().name(), "dmg");
                for_libmodi.push((path, guest.clone()));
            }
        }
        // It takes offsets in the data fork for those in the file. Of bzip2 it does not read all.
        if libmodi && !matches!(kind.0, dmg::XZ | dmg::BZIP2) {
            LIBMODI.assert_reads("dmg", &for_libmodi);
        }
    }
}

#[test]
fn resource_forks_are_read_as_other_programs_read_them() {
    let guest = Pattern::Islands.make(1 << 20);
    let kind = (dmg::ZLIB, "zlib");
    if !is_there(kind) {
        return;
    }
    let dir = TempDir::new();
    let path = dir.file("old.dmg", &image(kind, &guest, 512).build_with_resources());
    assert_same(&content(&Image::open(&path).unwrap()).unwrap(), &guest, "a resource fork");
    if find("dmg images with a resource fork, read by qemu-img", &["qemu-img"]).is_some() {
        assert_same(&read_with_qemu(&path, &["-f", "dmg"]), &guest, "qemu-img");
    }
    if let Some(program) = find("dmg images with a resource fork, read by 7-Zip", &["7zz", "7z"]) {
        assert_same(&read_with_7zip(&program, &path), &guest, "7-Zip");
    }
}

/// Units that begin anywhere, of lengths from a sector to several chunks.
#[test]
fn output_depends_neither_on_threads_nor_on_runs() {
    let guest = Pattern::Dense.make(3 << 20);
    let open = |sectors| {
        let file = std::sync::Arc::new(MemFile::from(image((dmg::ADC, ""), &guest, sectors).build()));
        OpenOptions::new().open_source(file).unwrap()
    };
    let images = [100, 2047, 2048, 2049, 5000].map(open);
    for converter in [raw(), qcow2(""), qcow2("").compress(true), qcow2("cluster_size=2M").compress(true)] {
        let (expected, _) = convert(&converter.clone().threads(1), &images[0]);
        for image in &images[1..] {
            for threads in [1, 3] {
                assert_same(
                    &convert(&converter.clone().threads(threads), image).0,
                    &expected,
                    &format!("{threads} threads"),
                );
            }
        }
    }
}

/// The only partition, which 7-Zip extracts as a file.
fn read_with_7zip(program: &str, image: &Path) -> Vec<u8> {
    run(program, &["x", "-so", "-tdmg", image.to_str().unwrap()])
}
