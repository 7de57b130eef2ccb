//! `streamOptimized` images of all known writers, from files and pipes.

use std::io::{self, Read};
use std::sync::Arc;

use super::build::Maker::{OpenVmdk, Qemu, Vmware};
use super::build::{Build, Built, GRAIN, Packing, grains};
use crate::corpus::unpacked;
use crate::support::pattern::{Pattern, Random};
use crate::support::tools::{find, needs_qemu, qemu_img, read_with_qemu};
use crate::support::{TempDir, assert_same, content, convert, format, open_raw, qcow2, raw, raw_image, vmdk};
use diskimage::codec::{Codec, Encoder, Encoding};
use diskimage::io::MemFile;
use diskimage::{Image, OpenOptions, Result};

/// A pipe that returns few bytes at a time.
struct Trickle(io::Cursor<Vec<u8>>, usize);

impl Read for Trickle {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = buf.len().min(self.1);
        self.0.read(&mut buf[..len])
    }
}

fn open_pipe(bytes: &[u8], step: usize) -> Result<Image> {
    OpenOptions::new().format(format("vmdk")).open_stream(Trickle(io::Cursor::new(bytes.to_vec()), step))
}

fn open_file(bytes: &[u8]) -> Result<Image> {
    OpenOptions::new().format(format("vmdk")).open_source(Arc::new(MemFile::from(bytes.to_vec())))
}

/// Returns the guest data, converted to raw.
fn read(image: Result<Image>) -> Result<Vec<u8>> {
    let dir = TempDir::new();
    raw().convert(&image?, dir.join("copy.raw"))?;
    Ok(std::fs::read(dir.join("copy.raw")).unwrap())
}

/// Reads from a file and from a pipe and compares the guest data.
#[track_caller]
fn assert_read(bytes: &[u8], guest: &[u8], what: &str) {
    let from_file = read(open_file(bytes)).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_same(&from_file, guest, &format!("{what}, from a file"));
    let from_pipe = read(open_pipe(bytes, 1000)).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_same(&from_pipe, guest, &format!("{what}, from a pipe"));
}

#[test]
fn layouts_of_all_writers() {
    let qemu = find("generated streams", &["qemu-img"]).is_some();
    let dir = TempDir::new();
    for (pattern, size) in [
        (Pattern::Empty, 300 << 10),
        (Pattern::Dense, 512),
        (Pattern::Islands, (700 << 10) + 512),
        (Pattern::Incompressible, 5 * GRAIN),
        (Pattern::Sparse, (34 << 20) + 512),
    ] {
        let guest = pattern.make(size);
        let ascending = grains(&guest);
        // Slightly out of order, as from a writer with several threads.
        let mut swapped = ascending.clone();
        swapped.chunks_mut(8).for_each(<[usize]>::reverse);
        for maker in [Vmware, OpenVmdk, Qemu] {
            for (order, packing, padding) in [
                (&ascending, Packing::Zlib, 0),
                (&swapped, Packing::Zlib, 0),
                (&ascending, Packing::Stored, 0),
                (&swapped, Packing::Deflate, if maker == Qemu { 0 } else { 5 * 512 }),
            ] {
                // The large size tests several tables, for which the encoding does not matter.
                if size > 1 << 20 && (packing != Packing::Zlib || order != &swapped) {
                    continue;
                }
                let what = format!("{maker:?}, {pattern:?}, {packing:?}, {padding} bytes of padding");
                let stream = Build { maker, guest: &guest, order: order.clone(), packing, padding }.build();
                assert_read(&stream.bytes, &guest, &what);
                // qemu accepts the generated stream.
                if qemu && packing == Packing::Zlib {
                    let path = dir.file("stream.vmdk", &stream.bytes);
                    assert_same(&read_with_qemu(&path, &["-f", "vmdk"]), &guest, &format!("{what}, by qemu-img"));
                }
            }
        }
    }
}

#[test]
fn streams_by_this_crate_and_by_qemu() {
    needs_qemu!("streams of qemu-img");
    let dir = TempDir::new();
    for pattern in crate::support::pattern::ALL {
        let guest = pattern.make((1 << 20) + 512);
        let source = dir.file("source.raw", &guest);
        let (ours, theirs) = (dir.join("ours.vmdk"), dir.join("theirs.vmdk"));
        vmdk("subformat=streamOptimized").convert(&open_raw(&source), &ours).unwrap();
        assert_read(&std::fs::read(&ours).unwrap(), &guest, &format!("ours, {pattern:?}"));
        qemu_img(&[&"convert", &"-O", &"vmdk", &"-o", &"subformat=streamOptimized", &source, &theirs]);
        assert_read(&std::fs::read(&theirs).unwrap(), &guest, &format!("qemu's, {pattern:?}"));
    }
}

#[test]
fn streams_of_the_corpus() {
    for name in ["vmware-stream.vmdk", "virtualbox-stream.vmdk", "open-vmdk-stream.vmdk", "qemu-stream.vmdk"] {
        let bytes = unpacked(name);
        let guest = read(open_file(&bytes)).unwrap();
        assert!(guest.iter().any(|&byte| byte != 0), "{name}");
        assert_read(&bytes, &guest, name);
        // Converting from a pipe writes the same bytes as converting from a file.
        let converter = vmdk("subformat=streamOptimized,cid=00000001");
        let [from_pipe, from_file] =
            [open_pipe(&bytes, 1 << 16), open_file(&bytes)].map(|image| convert(&converter, &image.unwrap()));
        assert_same(&from_pipe.0, &from_file.0, name);
        assert_eq!(from_pipe.1.passthrough_blocks, from_file.1.passthrough_blocks, "{name}");
        assert!(from_file.1.passthrough_blocks > 0, "{name}: {}", from_file.1);
        assert_read(&from_file.0, &guest, name);
        truncate_everywhere(&bytes, &guest, name);
    }
}

/// Other subformats are copied to a file first; those of several files cannot be read.
#[test]
fn other_subformats_from_a_pipe() {
    let guest = Pattern::Dense.make(GRAIN);
    let (sparse, _) = convert(&vmdk("subformat=monolithicSparse"), &raw_image(&guest));
    assert_read(&sparse, &guest, "monolithicSparse");
    let text = super::descriptors::descriptor("monolithicFlat", "RW 128 FLAT \"a.raw\" 0");
    assert!(open_pipe(text.as_bytes(), 1 << 16).is_err());
}

/// Grains farther out of order than the read-ahead limit can be read only from a file.
#[test]
fn far_out_of_order() {
    let guest = Random::new(3).bytes(160 * GRAIN);
    let mut order = grains(&guest);
    order.rotate_left(1);
    for maker in [Vmware, OpenVmdk, Qemu] {
        let stream = Build { maker, guest: &guest, order: order.clone(), packing: Packing::Stored, padding: 0 }.build();
        assert_same(&read(open_file(&stream.bytes)).unwrap(), &guest, "from a file");
        let error = read(open_pipe(&stream.bytes, 1 << 16)).unwrap_err();
        assert_eq!(error.kind().as_str(), "unsupported", "{error}");
    }
}

/// A truncated stream is refused from a file and from a pipe, unless only zeros are missing: the padding of the last
/// sector and the end-of-stream marker.
#[test]
fn truncated_streams() {
    for (pattern, size) in [(Pattern::Islands, 700 << 10), (Pattern::Empty, 300 << 10), (Pattern::Sparse, 34 << 20)] {
        let guest = pattern.make(size);
        for maker in [Vmware, OpenVmdk, Qemu] {
            // qemu stores the tables twice, and without grains one copy suffices. The large size tests tables between
            // grains.
            if maker == Qemu && pattern == Pattern::Empty || maker != Vmware && size > 1 << 20 {
                continue;
            }
            let stream =
                Build { maker, guest: &guest, order: grains(&guest), packing: Packing::Zlib, padding: 0 }.build();
            truncate_everywhere(&stream.bytes, &guest, &format!("{maker:?}, {pattern:?}"));
        }
    }
}

fn truncate_everywhere(bytes: &[u8], guest: &[u8], what: &str) {
    let needed = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    // Fewer positions for larger images.
    let step = (bytes.len() / if guest.len() > 8 << 20 { 6 } else { 30 }).next_multiple_of(512);
    let ends = [1, 12, 511, 512, 513, 1024, 1025, 1536, 2048, 4096].map(|back| bytes.len().saturating_sub(back));
    let cuts = (0..bytes.len()).step_by(step).chain(ends).chain([needed - 1, needed.saturating_sub(600)]);
    let mut refused = 0;
    for cut in cuts {
        for (how, result) in [("file", open_file(&bytes[..cut])), ("pipe", open_pipe(&bytes[..cut], 1 << 16))] {
            match read(result) {
                Ok(read) => {
                    assert!(cut >= needed, "{what}: read from a {how} when cut to {cut} of {} bytes", bytes.len());
                    assert_same(&read, guest, what);
                }
                Err(error) => {
                    let kind = error.kind().as_str();
                    // Nothing at all came from the pipe.
                    let is_empty = kind == "usage" && cut == 0 && how == "pipe";
                    assert!(is_empty || ["out-of-bounds", "invalid-field"].contains(&kind), "{what}: {kind}: {error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 10, "{what}: {refused}");
}

#[test]
fn invalid_markers() {
    let guest = Pattern::Dense.make(4 * GRAIN);
    for maker in [Vmware, OpenVmdk, Qemu] {
        let Built { bytes, markers, .. } =
            Build { maker, guest: &guest, order: vec![0, 1, 2, 3], packing: Packing::Zlib, padding: 0 }.build();
        for (what, at, value) in [
            ("another grain", markers[1], &256_u64.to_le_bytes()[..]),
            ("the grain before", markers[1], &0_u64.to_le_bytes()),
            ("not a grain", markers[1], &127_u64.to_le_bytes()),
            ("beyond the end of the disk", markers[1], &512_u64.to_le_bytes()),
            ("far beyond the end of the disk", markers[1], &u64::MAX.to_le_bytes()),
            ("no size", markers[1] + 8, &[0; 4]),
            ("a large size", markers[1] + 8, &0x00ff_ffff_u32.to_le_bytes()),
            ("the largest size", markers[3] + 8, &u32::MAX.to_le_bytes()),
            ("no payload", markers[2] + 12, &[0xff; 8]),
            ("a short payload", markers[2] + 8, &100_u32.to_le_bytes()),
        ] {
            let mut bytes = bytes.clone();
            bytes[at..at + value.len()].copy_from_slice(value);
            for (how, result) in [("file", open_file(&bytes)), ("pipe", open_pipe(&bytes, 1 << 16))] {
                let error = read(result).err().unwrap_or_else(|| panic!("{maker:?}: {what} was read from a {how}"));
                assert_ne!(error.kind().as_str(), "io", "{maker:?}: {what}: {error}");
            }
        }
    }
}

/// Payloads that decode to more or less than a grain.
#[test]
fn grains_of_another_size() {
    let zeros = vec![0; 4 << 20];
    let guest = Pattern::Dense.make(2 * GRAIN);
    let Built { mut bytes, markers, .. } =
        Build { maker: Vmware, guest: &guest, order: vec![0, 1], packing: Packing::Zlib, padding: 0 }.build();
    let mut encoder = Encoder::new(&Encoding::new(Codec::Zlib)).unwrap();
    for data in [&zeros[..], &zeros[..GRAIN + 1], &zeros[..GRAIN - 1], &zeros[..1]] {
        let payload = encoder.encode(data, usize::MAX).unwrap();
        let room = markers[1] - markers[0] - 12;
        if payload.len() > room {
            continue;
        }
        let at = markers[0];
        bytes[at + 8..at + 12].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes[at + 12..at + 12 + payload.len()].copy_from_slice(payload);
        // The rest up to the next marker is zeros.
        let next = at + (12 + payload.len()).next_multiple_of(512);
        bytes[next..markers[1]].fill(0);
        let error = read(open_file(&bytes)).unwrap_err();
        assert_eq!(error.kind().as_str(), "decode", "{} bytes: {error}", data.len());
    }
}

#[test]
fn payloads_pass_through() {
    needs_qemu!("payload passthrough");
    let dir = TempDir::new();
    let guest = [Pattern::Dense, Pattern::Islands, Pattern::Empty].map(|pattern| pattern.make(1 << 20)).concat();
    let source = dir.file("source.raw", &[&guest[..], &guest[..512]].concat());
    let theirs = dir.join("theirs.qcow2");
    qemu_img(&[&"convert", &"-c", &"-O", &"qcow2", &source, &theirs]);
    let ours = dir.join("ours.qcow2");
    qcow2("").compress(true).convert(&open_raw(&source), &ours).unwrap();
    for first in [&theirs, &ours] {
        let (stream, back, again) = (dir.join("stream.vmdk"), dir.join("back.qcow2"), dir.join("again.vmdk"));
        let mut image = Image::open(first).unwrap();
        for (converter, target) in [
            (vmdk("subformat=streamOptimized"), &stream),
            (qcow2("").compress(true), &back),
            (vmdk("subformat=streamOptimized"), &again),
        ] {
            let report = converter.convert(&image, target).unwrap();
            assert!(report.passthrough_blocks > 20, "{report}");
            assert_eq!(report.passthrough_blocks, report.compressed_blocks, "{report}");
            qemu_img(&[&"compare", &"-q", &source, target]);
            image = Image::open(target).unwrap();
            assert_same(&content(&image).unwrap(), &std::fs::read(&source).unwrap(), "passthrough");
        }
        // Other unit sizes are encoded again.
        let report = qcow2("cluster_size=16k").compress(true).convert(&image, &back).unwrap();
        assert_eq!(report.passthrough_blocks, 0, "{report}");
        qemu_img(&[&"compare", &"-q", &source, &back]);
    }
}

/// With a damaged grain directory, the redundant directory and its tables are used.
#[test]
fn the_redundant_directory() {
    needs_qemu!("the redundant directory");
    let dir = TempDir::new();
    let guest = Pattern::Sparse.make((70 << 20) + 512);
    let source = dir.file("source.raw", &guest);
    let (ours, theirs) = (dir.join("ours.vmdk"), dir.join("theirs.vmdk"));
    vmdk("").convert(&raw_image(&guest), &ours).unwrap();
    qemu_img(&[&"convert", &"-O", &"vmdk", &source, &theirs]);
    for path in [ours, theirs] {
        let whole = std::fs::read(&path).unwrap();
        let sector = |at: usize| u64::from_le_bytes(whole[at..at + 8].try_into().unwrap()) as usize;
        let (redundant, primary) = (sector(48) * 512, sector(56) * 512);
        let open_changed = |changes: &[(usize, &[u8])]| {
            let mut bytes = whole.clone();
            for (at, change) in changes {
                bytes[*at..at + change.len()].copy_from_slice(change);
            }
            open_file(&bytes)
        };
        let far = 0x7fff_ffff_u32.to_le_bytes();
        for change in
            [(primary, &[0; 12][..]), (primary, &[0; 4]), (primary + 4, &far), (56, &(1_u64 << 40).to_le_bytes())]
        {
            let image = open_changed(&[change]).unwrap();
            let warnings = &image.info().warnings;
            assert!(warnings.len() == 1 && warnings[0].to_string().contains("redundant"), "{change:?}: {warnings:?}");
            assert_same(&content(&image).unwrap(), &guest, "by the redundant directory");
        }
        // Damage to the redundant directory has no effect.
        for change in [(redundant, &[0; 12][..]), (redundant, &far)] {
            let image = open_changed(&[change]).unwrap();
            assert!(image.info().warnings.is_empty());
            assert_same(&content(&image).unwrap(), &guest, "by the directory");
        }
        let error = open_changed(&[(primary, &far), (redundant + 4, &far)]).err().unwrap();
        assert_eq!(error.kind().as_str(), "out-of-bounds", "{error}");
        // A damaged entry in a table of the primary directory is an error.
        let entry = sector(56) * 512;
        let table = u32::from_le_bytes(whole[entry..entry + 4].try_into().unwrap()) as usize * 512;
        let image = open_changed(&[(table, &far)]).unwrap();
        assert_eq!(content(&image).unwrap_err().kind().as_str(), "out-of-bounds");
    }
}
