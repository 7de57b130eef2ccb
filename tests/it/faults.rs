//! Storage that fails: at each call in turn, and by a power failure after each of them.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::pattern::{Pattern, Random};
use crate::support::{
    TempDir, assert_same, content, format, open_beside, parallels, qcow, qcow2, qcow2_bytes, qcow2_image, qed, raw,
    raw_image, vdi, vhdx, vmdk, vpc,
};
use diskimage::io::{MemFile, ReadAt, WriteAt};
use diskimage::{Converter, Image, OpenOptions, Result};

/// A file whose call number `fails_at` fails.
struct Failing {
    file: MemFile,
    calls: AtomicU64,
    fails_at: u64,
}

impl Failing {
    fn new(content: Vec<u8>, fails_at: u64) -> Arc<Failing> {
        Arc::new(Failing { file: MemFile::from(content), calls: AtomicU64::new(0), fails_at })
    }

    fn call(&self) -> io::Result<()> {
        match self.calls.fetch_add(1, Ordering::Relaxed) {
            call if call == self.fails_at => Err(io::Error::other("injected")),
            _ => Ok(()),
        }
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}

impl ReadAt for Failing {
    fn size(&self) -> io::Result<u64> {
        self.call()?;
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.call()?;
        self.file.read_at(buf, offset)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.call()?;
        self.file.next_data(offset)
    }
}

impl WriteAt for Failing {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.call()?;
        self.file.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.call()?;
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.call()?;
        self.file.sync()
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        self.call()?;
        self.file.zero_range(range)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.call()?;
        self.file.allocate(range)
    }
}

/// Every way of writing that there is.
fn converters() -> Vec<(&'static str, Converter)> {
    let mut converters = vec![
        ("raw", raw()),
        ("raw, full", raw().options(crate::support::options("preallocation=full"))),
        ("qcow2", qcow2("cluster_size=4k")),
        ("qcow2, zlib", qcow2("cluster_size=16k").compress(true)),
        ("qcow2, zstd", qcow2("compression_type=zstd").compress(true)),
        ("qcow2, extended", qcow2("extended_l2=on,cluster_size=16k")),
        ("qcow2, metadata", qcow2("preallocation=metadata,compat=0.10")),
        ("qcow2, falloc", qcow2("preallocation=falloc,cluster_size=512")),
        ("qcow2, full", qcow2("preallocation=full")),
        ("vmdk", vmdk("")),
        ("vmdk, zeroed grains", vmdk("zeroed_grain=on")),
        (STREAM, vmdk("subformat=streamOptimized")),
        ("vpc", vpc("")),
        ("vpc, small blocks", vpc("block_size=512k")),
        (FIXED, vpc("subformat=fixed")),
        ("vdi", vdi("block_size=128k")),
        ("vdi, static", vdi("static=on")),
        ("vhdx", vhdx("block_size=1M")),
        ("vhdx, not present", vhdx("block_size=1M,block_state_zero=off")),
        ("vhdx, fixed", vhdx("subformat=fixed")),
    ];
    if cfg!(feature = "cli") {
        converters.extend([
            ("qcow", qcow("")),
            ("qcow, compressed", qcow("cluster_size=64k").compress(true)),
            ("qed", qed("")),
            ("qed, small", qed("cluster_size=4k,table_size=2")),
            ("parallels", parallels("cluster_size=64k")),
        ]);
    }
    converters
}

/// The kinds that are not written to devices: nothing says where they end.
const NOT_ON_DEVICES: [&str; 2] = [STREAM, FIXED];
const STREAM: &str = "vmdk, stream";
const FIXED: &str = "vpc, fixed";

/// The image that came of one of the converters, if it is one.
fn made(what: &str, bytes: &[u8]) -> Result<Image> {
    let name = what.split(',').next().unwrap();
    OpenOptions::new().format(format(name)).open_source(Arc::new(MemFile::from(bytes.to_vec())))
}

fn guest() -> Vec<u8> {
    [Pattern::Dense, Pattern::Islands, Pattern::Sparse, Pattern::Incompressible].map(|p| p.make(100 << 10)).concat()
}

#[test]
fn every_write_can_fail() {
    let source = raw_image(&guest());
    for (what, converter) in converters() {
        let converter = converter.threads(1);
        let whole = Failing::new(Vec::new(), u64::MAX);
        converter.convert_to(&source, whole.clone()).unwrap();
        let calls = whole.calls();
        assert!(calls >= 2, "{what}: {calls} calls");
        for call in 0..calls {
            let out = Failing::new(Vec::new(), call);
            let error = converter.convert_to(&source, out.clone()).expect_err(&format!("{what}, call {call}"));
            assert_eq!(error.kind().as_str(), "io", "{what}, call {call}: {error}");
            assert!(error.to_string().contains("injected"), "{error}");
            // After the call that makes the image one there is only a sync; a VHD may have two footers, a VHDX two headers, and is
            // one by either.
            let two = (what.starts_with("vpc") && what != FIXED) || what.starts_with("vhdx");
            let last = if two { 2 } else { 1 };
            if !what.starts_with("raw") && call + last < calls {
                assert!(made(what, &out.file.to_vec()).is_err(), "{what}, call {call}: an image although it failed");
            }
        }
    }
}

/// Images of the formats that are not on by default.
fn old_formats(guest: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    if cfg!(not(feature = "cli")) {
        return Vec::new();
    }
    let image = |converter: Converter| crate::support::convert(&converter, &raw_image(guest)).0;
    vec![
        ("qcow", image(qcow("").compress(true))),
        ("qed", image(qed("cluster_size=4k,table_size=2"))),
        ("parallels", image(parallels("cluster_size=4k"))),
    ]
}

#[test]
fn every_read_can_fail() {
    let guest = guest();
    let sources = [
        ("raw", guest.clone()),
        ("qcow2", qcow2_bytes(&qcow2("cluster_size=4k"), &guest)),
        ("qcow2", qcow2_bytes(&qcow2("cluster_size=4k").compress(true), &guest)),
        ("qcow2", qcow2_bytes(&qcow2("compression_type=zstd").compress(true), &guest)),
        ("vmdk", crate::support::convert(&vmdk(""), &raw_image(&guest)).0),
        ("vmdk", crate::support::convert(&vmdk("subformat=streamOptimized"), &raw_image(&guest)).0),
        ("vpc", crate::support::convert(&vpc(""), &raw_image(&guest)).0),
        ("vpc", crate::support::convert(&vpc("subformat=fixed"), &raw_image(&guest)).0),
        ("vdi", crate::support::convert(&vdi("block_size=128k"), &raw_image(&guest)).0),
        ("vhdx", crate::support::convert(&vhdx("block_size=1M"), &raw_image(&guest)).0),
    ];
    for (source_format, bytes) in sources.into_iter().chain(old_formats(&guest)) {
        let read = |file: &Arc<Failing>| -> Result<Vec<u8>> {
            let image = OpenOptions::new().format(format(source_format)).open_source(file.clone())?;
            let out = Arc::new(MemFile::new());
            qcow2("").threads(1).convert_to(&image, out.clone())?;
            Ok(out.to_vec())
        };
        let whole = Failing::new(bytes.clone(), u64::MAX);
        read(&whole).unwrap();
        for call in 0..whole.calls() {
            let error = read(&Failing::new(bytes.clone(), call)).expect_err("a call failed");
            assert_eq!(error.kind().as_str(), "io", "{source_format}, call {call}: {error}");
        }
    }
}

#[test]
fn failures_do_not_depend_on_threads() {
    let source = raw_image(&guest().repeat(12));
    let converter = qcow2("cluster_size=4k").threads(3);
    let whole = Failing::new(Vec::new(), u64::MAX);
    converter.convert_to(&source, whole.clone()).unwrap();
    for call in 0..whole.calls() {
        let out = Failing::new(Vec::new(), call);
        converter.convert_to(&source, out.clone()).expect_err("a call failed");
        assert!(call + 1 == whole.calls() || qcow2_image(&out.file.to_vec()).is_err());
    }
}

/// A recorded request to a disk.
#[derive(Clone)]
enum Event {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

/// A file that records what happens to it.
#[derive(Default)]
struct Recorded(Mutex<Vec<Event>>);

impl Recorded {
    fn push(&self, event: Event) -> io::Result<()> {
        self.0.lock().unwrap().push(event);
        Ok(())
    }
}

impl WriteAt for Recorded {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.push(Event::Write(offset, buf.to_vec()))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.push(Event::SetLen(len))
    }

    fn sync(&self) -> io::Result<()> {
        self.push(Event::Sync)
    }
}

fn replay(file: &mut Vec<u8>, event: &Event) {
    match event {
        Event::Write(offset, bytes) => {
            let end = *offset as usize + bytes.len();
            file.resize(file.len().max(end), 0);
            file[*offset as usize..end].copy_from_slice(bytes);
        }
        Event::SetLen(len) => file.resize(*len as usize, 0),
        Event::Sync => {}
    }
}

/// After a power cut the disk holds everything up to the last sync and, of what came after it, any part.
#[test]
fn a_power_failure_leaves_a_complete_image_or_none() {
    let guest = guest();
    let source = raw_image(&guest);
    for (what, converter) in converters().into_iter().filter(|(what, _)| !what.starts_with("raw")) {
        let out = Arc::new(Recorded::default());
        converter.threads(1).convert_to(&source, out.clone()).unwrap();
        let events = out.0.lock().unwrap().clone();
        assert!(matches!(events.last(), Some(Event::Sync)), "{what}: the last thing is a sync");
        let mut random = Random::new(events.len() as u64);
        let mut durable = Vec::new();
        let mut volatile: Vec<&Event> = Vec::new();
        let mut whole = 0;
        for event in &events {
            match event {
                Event::Sync => volatile.drain(..).for_each(|event| replay(&mut durable, event)),
                event => volatile.push(event),
            }
            let mut views = vec![durable.clone(); 4];
            for (index, event) in volatile.iter().enumerate() {
                let kept = [false, true, index + 1 == volatile.len(), random.below(2) == 0];
                views.iter_mut().zip(kept).filter(|(_, kept)| *kept).for_each(|(view, _)| replay(view, event));
            }
            views.dedup();
            for view in &views {
                if let Ok(image) = made(what, view) {
                    assert_same(&content(&image).unwrap(), &guest, what);
                    whole += 1;
                }
            }
        }
        assert!(whole > 0, "{what}");
        assert_same(&content(&made(what, &durable).unwrap()).unwrap(), &guest, what);
    }
}

/// A file with short reads and interruptions.
struct Reluctant {
    file: MemFile,
    most: usize,
    calls: AtomicU64,
}

impl ReadAt for Reluctant {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let len = buf.len().min(self.most);
        self.file.read_at(&mut buf[..len], offset)
    }
}

#[test]
fn short_and_interrupted_reads_change_nothing() {
    let guest = Pattern::Sparse.make(200 << 10);
    let sources = [
        ("raw", guest.clone()),
        ("qcow2", qcow2_bytes(&qcow2("cluster_size=4k"), &guest)),
        ("qcow2", qcow2_bytes(&qcow2("").compress(true), &guest)),
        ("vmdk", crate::support::convert(&vmdk(""), &raw_image(&guest)).0),
        ("vmdk", crate::support::convert(&vmdk("subformat=streamOptimized"), &raw_image(&guest)).0),
        ("vpc", crate::support::convert(&vpc("block_size=512k"), &raw_image(&guest)).0),
        ("vdi", crate::support::convert(&vdi("block_size=128k"), &raw_image(&guest)).0),
        ("vhdx", crate::support::convert(&vhdx("block_size=1M"), &raw_image(&guest)).0),
    ];
    for (source_format, bytes) in sources.into_iter().chain(old_formats(&guest)) {
        for most in [1, 511, 65537] {
            let file = Arc::new(Reluctant { file: MemFile::from(bytes.clone()), most, calls: AtomicU64::new(0) });
            let image: Image = OpenOptions::new().format(format(source_format)).open_source(file).unwrap();
            for converter in [raw(), qcow2(""), qcow2("").compress(true)] {
                let expected = crate::support::convert(&converter, &raw_image(&guest)).0;
                let (result, _) = crate::support::convert(&converter, &image);
                assert_same(&result, &expected, &format!("{source_format}, {most} bytes at a time"));
            }
        }
    }
}

/// A device has old content, which must not show through, and a size.
struct Device(MemFile);

impl Device {
    fn has(&self, end: u64) -> io::Result<()> {
        if end <= self.0.size()? { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }
}

impl WriteAt for Device {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.has(offset + buf.len() as u64)?;
        self.0.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.has(len)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn starts_zeroed(&self) -> bool {
        false
    }
}

#[test]
fn old_content_of_a_device_is_overwritten() {
    for pattern in crate::support::pattern::ALL {
        let guest = pattern.make(300 << 10);
        let mut old = qcow2_bytes(&qcow2(""), &Pattern::Incompressible.make(300 << 10));
        old.resize(6 << 20, 0xcc);
        for (what, converter) in converters() {
            // An old image of another content is on it.
            let device = Arc::new(Device(MemFile::from(old.clone())));
            let result = converter.convert_to(&raw_image(&guest), device.clone());
            if NOT_ON_DEVICES.contains(&what) {
                assert_eq!(result.unwrap_err().kind().as_str(), "unsupported");
                assert_same(&device.0.to_vec(), &old, "a device that was refused");
                continue;
            }
            result.unwrap();
            let bytes = device.0.to_vec();
            let read = match what.starts_with("raw") {
                true => bytes[..guest.len()].to_vec(),
                false => content(&made(what, &bytes).unwrap()).unwrap(),
            };
            assert_same(&read, &guest, &format!("{what}, {pattern:?}"));
        }
    }
}

#[test]
fn a_device_too_small_is_refused() {
    let guest = Pattern::Incompressible.make(1 << 20);
    for (what, converter) in converters().into_iter().filter(|(what, _)| !NOT_ON_DEVICES.contains(what)) {
        let old = qcow2_bytes(&qcow2(""), &Pattern::Islands.make(500 << 10));
        let device = Arc::new(Device(MemFile::from(old)));
        let error = converter.convert_to(&raw_image(&guest), device.clone()).err();
        assert_eq!(error.map(|error| error.kind().as_str()), Some("io"), "{what}");
    }
}

/// The kinds of several files, with the name of the first of those beside the image.
const SEVERAL: [(&str, &str); 4] = [
    ("subformat=monolithicFlat", "disk-flat.vmdk"),
    ("subformat=twoGbMaxExtentSparse", "disk-s001.vmdk"),
    ("subformat=twoGbMaxExtentFlat", "disk-f001.vmdk"),
    ("subformat=vmfs", "disk-flat.vmdk"),
];

/// What is in a directory.
fn all(dir: &TempDir) -> Vec<(String, Vec<u8>)> {
    let read = |name: &String| std::fs::read(dir.join(name)).unwrap_or_default();
    dir.names().iter().map(|name| (name.clone(), read(name))).collect()
}

#[test]
fn images_of_several_files_are_created_completely_or_not_at_all() {
    let guest = guest();
    let mut damaged = crate::support::convert(&vmdk("subformat=streamOptimized"), &raw_image(&guest)).0;
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    for (list, part) in SEVERAL {
        let dir = TempDir::new();
        let target = dir.join("disk.vmdk");
        // The source does not decode in the middle.
        let source = made(STREAM, &damaged).unwrap();
        assert_eq!(vmdk(list).convert(&source, &target).unwrap_err().kind().as_str(), "decode");
        assert_eq!(dir.names(), <[&str; 0]>::default(), "{list}");
        // Nor with an image there.
        vmdk(list).convert(&raw_image(&guest), &target).unwrap();
        let before = all(&dir);
        assert_eq!(before.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), [part, "disk.vmdk"]);
        assert!(vmdk(list).convert(&source, &target).is_err());
        assert!(all(&dir) == before, "{list}: changed by a failure");
        assert!(vmdk(list).clobber(false).convert(&raw_image(&[1; 512]), &target).is_err());
        assert!(all(&dir) == before, "{list}: changed though it must not be");
        // An image is not written over its own files, by either name.
        let image = open_beside(&target).unwrap();
        for name in ["disk.vmdk", part] {
            for converter in [vmdk(list), raw()] {
                assert_eq!(
                    converter.convert(&image, dir.join(name)).unwrap_err().root().kind().as_str(),
                    "usage",
                    "{list}"
                );
            }
        }
        assert!(all(&dir) == before, "{list}: changed by itself");
        assert_same(&content(&image).unwrap(), &guest, list);
        // A file of it cannot take its place.
        std::fs::remove_file(dir.join(part)).unwrap();
        std::fs::create_dir(dir.join(part)).unwrap();
        let before = all(&dir);
        assert!(vmdk(list).convert(&raw_image(&[1; 512]), &target).is_err());
        assert!(all(&dir) == before, "{list}: changed though a directory is in the way");
        std::fs::remove_dir(dir.join(part)).unwrap();
        // The target of a link is not replaced.
        let other = dir.file("other", b"other");
        std::os::unix::fs::symlink(&other, dir.join(part)).unwrap();
        assert!(vmdk(list).convert(&raw_image(&[1; 512]), &target).is_err());
        assert_eq!(std::fs::read(&other).unwrap(), b"other");
    }
}

#[test]
fn a_missing_or_truncated_extent_is_an_error() {
    let guest = guest();
    for (list, part) in SEVERAL {
        let dir = TempDir::new();
        let target = dir.join("disk.vmdk");
        vmdk(list).convert(&raw_image(&guest), &target).unwrap();
        assert_same(&content(&open_beside(&target).unwrap()).unwrap(), &guest, list);
        let whole = std::fs::read(dir.join(part)).unwrap();
        // No guest sees the end of the last grain.
        let least = if list.ends_with("Sparse") { 64 << 10 } else { 1 };
        for len in [whole.len() - least, whole.len() / 2, 511, 0] {
            dir.file(part, &whole[..len]);
            let read = open_beside(&target).and_then(|image| content(&image));
            let error = read.expect_err(&format!("{list}, {part} of {len} bytes"));
            assert!(matches!(error.kind().as_str(), "out-of-bounds" | "invalid-field"), "{list}, {len}: {error}");
            assert!(error.to_string().contains(part) || error.to_string().contains("grain"), "{list}, {len}: {error}");
        }
        std::fs::remove_file(dir.join(part)).unwrap();
        let error = open_beside(&target).err().unwrap();
        assert!(error.kind().as_str() == "io" && error.to_string().contains(part), "{error}");
        assert!(OpenOptions::new().inspect(&target).is_ok(), "one may still look at it");
    }
}
