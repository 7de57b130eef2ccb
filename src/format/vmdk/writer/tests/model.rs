//! Writes images by a list of steps, reads them with a simple independent reader, and compares with qemu-img.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::io;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use byteorder::{ByteOrder, LittleEndian};

use crate::codec::{Codec, Decoder, Encoder};
use crate::driver::{CreateContext, NewBacking, TargetFiles};
use crate::driver::{SparseWrite, WriteSpec};
use crate::error::Result;
use crate::format::vmdk::writer::create;
use crate::identifiers::ImageIdentifiers;
use crate::info::{ImageInfo, Value};
use crate::io::{MemFile, ReadAt, WriteAt};
use crate::name::Name;
use crate::options::Options;
use crate::testing::noise;
pub(super) use crate::testing::place;

/// Bytes of each extent of a split disk: 2047 MiB.
pub(super) const SPLIT: u64 = 2047 << 20;
const GRAIN: usize = 64 << 10;

/// A new image and the steps that write it.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub size: u64,
    pub options: String,
    pub device: bool,
    pub parent: bool,
    pub steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Skip(u64),
    Store(u64),
    Zero(u64),
}

/// The files of an image, in memory.
pub(super) struct Dir {
    image: OsString,
    files: Mutex<Vec<(String, Arc<Target>)>>,
}

impl Dir {
    pub fn new(image: impl AsRef<OsStr>) -> Dir {
        Dir { image: image.as_ref().to_owned(), files: Mutex::default() }
    }

    pub fn names(&self) -> Vec<String> {
        self.files.lock().unwrap().iter().map(|(name, _)| name.clone()).collect()
    }

    fn file(&self, name: &str) -> Vec<u8> {
        let files = self.files.lock().unwrap();
        files.iter().find(|(other, _)| other == name).expect(name).1.file.to_vec()
    }
}

impl TargetFiles for Dir {
    fn image_name(&self) -> &OsStr {
        &self.image
    }

    fn add(&self, name: &OsStr) -> Result<Arc<dyn WriteAt>> {
        let file = Arc::new(if self.image == "disk.vmdk" { Target::counting() } else { Target::new() });
        self.files.lock().unwrap().push((name.to_str().unwrap().to_owned(), file.clone()));
        Ok(file)
    }
}

pub(super) fn context<'a>(
    size: u64,
    options: &'a Options,
    out: Arc<Target>,
    dir: Option<&'a Dir>,
) -> CreateContext<'a> {
    CreateContext { files: dir.map(|dir| dir as &dyn TargetFiles), ..CreateContext::new(size, options, out) }
}

/// A file in memory that checks the writes.
pub(super) struct Target {
    pub file: MemFile,
    kind: Kind,
    /// End of the last write.
    end: Mutex<u64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    /// Has old content.
    Device,
    /// Accepts only sequential writes.
    Forward,
    /// Keeps only the first MiB.
    Counting,
}

impl Target {
    fn of(kind: Kind) -> Target {
        let old = if kind == Kind::Device { vec![0xdd; 1 << 20] } else { Vec::new() };
        Target { file: MemFile::from(old), kind, end: Mutex::new(0) }
    }

    pub fn new() -> Target {
        Target::of(Kind::Plain)
    }

    pub fn device() -> Target {
        Target::of(Kind::Device)
    }

    pub fn counting() -> Target {
        Target::of(Kind::Counting)
    }

    /// Returns the descriptor, embedded or not.
    pub fn text(&self) -> Vec<u8> {
        let bytes = self.file.to_vec();
        let text = if bytes.starts_with(b"KDMV") { &bytes[512..21 * 512] } else { &bytes };
        text.split(|&byte| byte == 0).next().unwrap().to_vec()
    }
}

impl WriteAt for Target {
    fn seeks(&self) -> bool {
        self.kind != Kind::Forward
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        let mut last = self.end.lock().unwrap();
        assert!(self.kind != Kind::Forward || offset == *last, "a write at {offset:#x} after one up to {:#x}", *last);
        *last = end;
        match self.kind {
            Kind::Counting if end > 1 << 20 => Ok(()),
            Kind::Device if self.file.size()? < offset => {
                let mut between = vec![0xdd; (offset - self.file.size()?) as usize];
                between.extend(buf);
                self.file.write_all_at(&between, self.file.size()?)
            }
            _ => self.file.write_all_at(buf, offset),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.kind {
            Kind::Plain => self.file.set_len(len),
            Kind::Forward => panic!("a pipe has no length"),
            Kind::Device | Kind::Counting => Ok(()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn starts_zeroed(&self) -> bool {
        self.kind != Kind::Device
    }
}

impl Case {
    pub fn new(size: u64, options: &str, steps: &[Step]) -> Case {
        Case { size, options: options.to_owned(), device: false, parent: false, steps: steps.to_vec() }
    }

    /// Writes the image, checks its content and returns the file.
    pub fn verify(&self) -> Vec<u8> {
        let mut options = Options::new();
        options.add_list(&self.options);
        let info = ImageInfo { format: "vmdk", specific: vec![("cid", Value::Number(1))], ..ImageInfo::default() };
        let backing = self.parent.then(|| NewBacking::new(Name::from("base.vmdk"), &info));
        let stream = self.options.contains("streamOptimized");
        let kind = if stream { Kind::Forward } else { Kind::Plain };
        let out = Arc::new(Target::of(if self.device { Kind::Device } else { kind }));
        let dir = Dir::new("image.vmdk");
        let context = context(self.size, &options, out.clone(), Some(&dir));
        let mut writer = create(&CreateContext { backing, ..context }).unwrap();
        let size = writer.spec().virtual_size;
        assert_eq!(size, self.size.next_multiple_of(512));
        let parent = self.parent.then(|| noise(size, 99));
        let mut guest = parent.clone().unwrap_or_else(|| vec![0; size as usize]);
        self.steps(&mut *writer, &mut guest);
        writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
        let file = out.file.to_vec();
        assert!(read(&file, &dir, parent.as_deref()) == guest, "guest data differs: {self:?}");
        if parent.is_none() && size > 0 {
            ask_qemu(&file, &dir, &guest, self);
        }
        file
    }

    fn steps(&self, writer: &mut dyn SparseWrite, guest: &mut [u8]) {
        let WriteSpec { virtual_size: size, block_size, granule, encoding, frame, .. } = writer.spec().clone();
        let unit = if encoding.is_some() { block_size } else { granule };
        let mut at = 0u64;
        for (seed, step) in self.steps.iter().enumerate() {
            let (Step::Skip(len) | Step::Store(len) | Step::Zero(len)) = *step;
            at = at.next_multiple_of(unit).min(size);
            let end = (at + len.next_multiple_of(unit)).min(size);
            let bytes = &mut guest[at as usize..end as usize];
            match (step, &encoding) {
                _ if at == end => {}
                (Step::Skip(_), _) => {}
                (Step::Zero(_), _) => {
                    bytes.fill(0);
                    writer.zero(at..end).unwrap();
                }
                (Step::Store(_), None) => {
                    bytes.copy_from_slice(&noise(end - at, seed as u64));
                    place(writer, at, bytes);
                }
                (Step::Store(_), Some(encoding)) => {
                    let (mut encoder, frame) = (Encoder::new(encoding).unwrap(), frame.unwrap());
                    for (number, bytes) in bytes.chunks_mut(block_size as usize).enumerate() {
                        let start = at + number as u64 * block_size;
                        // From highly compressible to incompressible.
                        let random = noise(bytes.len() as u64, start + seed as u64);
                        let len = start / 7 % (bytes.len() as u64 * 5 / 4);
                        bytes.fill(seed as u8 + 1);
                        bytes.iter_mut().zip(&random).take(len as usize).for_each(|(byte, random)| *byte = *random);
                        let mut whole = bytes.to_vec();
                        whole.resize(block_size as usize, 0);
                        let payload = encoder.encode(&whole, usize::MAX).unwrap();
                        let mut framed = vec![0; frame.header_len];
                        (frame.header)(&mut framed, start, payload.len() as u32);
                        framed.extend(payload);
                        framed.resize(framed.len().next_multiple_of(frame.alignment), 0);
                        let block = start..start + bytes.len() as u64;
                        let placed = writer.place_compressed(block, framed.len() as u32).unwrap();
                        let mut stored = placed.before.clone();
                        stored.extend(framed);
                        placed.out.write_all_at(&stored, placed.offset).unwrap();
                    }
                }
            }
            at = end;
        }
    }
}

/// The guest's bytes.
pub(super) fn read(image: &[u8], dir: &Dir, parent: Option<&[u8]>) -> Vec<u8> {
    if image.starts_with(b"KDMV") {
        let text = image[512..21 * 512].split(|&byte| byte == 0).next().unwrap();
        let lines = extent_lines(text);
        let [(sectors, kind, _)] = lines.as_slice() else { panic!("{lines:?}") };
        assert_eq!((*sectors, kind.as_str()), (LittleEndian::read_u64(&image[12..]) as usize, "SPARSE"));
        return sparse(image, parent);
    }
    let mut guest = Vec::new();
    for (sectors, kind, name) in extent_lines(image) {
        let file = dir.file(&name);
        let bytes = if kind == "SPARSE" { sparse(&file, None) } else { file };
        assert_eq!(bytes.len(), sectors * 512, "{name}");
        guest.extend(bytes);
    }
    guest
}

/// Returns size in sectors, type and file of each extent.
fn extent_lines(text: &[u8]) -> Vec<(usize, String, String)> {
    let text = std::str::from_utf8(text).unwrap();
    let lines = text.lines().filter(|line| line.starts_with("RW ") || line.starts_with("RDONLY "));
    lines
        .map(|line| {
            let words: Vec<_> = line.splitn(4, ' ').collect();
            let name = words[3].split('"').nth(1).unwrap();
            (words[1].parse().unwrap(), words[2].to_owned(), name.to_owned())
        })
        .collect()
}

/// Returns the data of a hosted sparse extent.
fn sparse(file: &[u8], parent: Option<&[u8]>) -> Vec<u8> {
    let u32_at = |at: usize| LittleEndian::read_u32(&file[at..]);
    let u64_at = |at: usize| LittleEndian::read_u64(&file[at..]) as usize;
    assert_eq!((u64_at(20), u32_at(44)), (128, 512), "grain and table size");
    let (size, flags) = (u64_at(12) * 512, u32_at(8));
    let compressed = flags & 0x30000 != 0;
    let grains = size.div_ceil(GRAIN);
    let tables = grains.div_ceil(512);
    let entries = |directory: usize| -> Vec<u32> {
        (0..grains)
            .map(|grain| match u32_at(directory * 512 + grain / 512 * 4) as usize {
                0 => 0,
                table => u32_at(table * 512 + grain % 512 * 4),
            })
            .collect()
    };
    let directory = if compressed { walk(file) } else { u64_at(56) };
    let entries_found = entries(directory);
    if !compressed {
        assert_eq!(entries(u64_at(48)), entries_found, "redundant tables");
        assert!((0..tables).all(|table| u32_at(directory * 512 + table * 4) != 0), "every table is allocated");
    }
    let mut guest = parent.map_or_else(|| vec![0; size], <[u8]>::to_vec);
    guest.resize(grains * GRAIN, 0);
    let mut used = HashSet::new();
    for (grain, (bytes, &entry)) in guest.chunks_mut(GRAIN).zip(&entries_found).enumerate() {
        match entry {
            0 => {}
            1 => {
                assert_eq!((flags & 4, u32_at(4)), (4, 2), "zeroed grains need the flag and version 2");
                bytes.fill(0);
            }
            sector => {
                assert!(sector as usize >= u64_at(64) && used.insert(sector), "grain {grain} at sector {sector}");
                let at = sector as usize * 512;
                if compressed {
                    assert_eq!(u64_at(at), grain * 128, "the grain's marker");
                    let payload = &file[at + 12..][..u32_at(at + 8) as usize];
                    Decoder::new().decode(Codec::Zlib, payload, bytes).unwrap();
                } else {
                    bytes.copy_from_slice(&file[at..][..GRAIN]);
                }
            }
        }
    }
    guest.truncate(size);
    guest
}

/// Walks the markers of a stream and returns the sector of the grain directory.
fn walk(file: &[u8]) -> usize {
    let u32_at = |at: usize| LittleEndian::read_u32(&file[at..]);
    let u64_at = |at: usize| LittleEndian::read_u64(&file[at..]) as usize;
    let mut at = u64_at(64) * 512;
    let (mut table, mut last, mut tables) = (BTreeMap::new(), None, BTreeMap::new());
    loop {
        let (value, size, kind) = (u64_at(at), u32_at(at + 8) as usize, u32_at(at + 12));
        assert!(size > 0 || file[at + 16..at + 512].iter().all(|&byte| byte == 0), "a marker fills its sector");
        match (size, kind) {
            (1.., _) => {
                let grain = value / 128;
                assert!(last < Some(grain), "grains are in order");
                assert!(table.keys().all(|other| other / 512 == grain / 512), "a table follows its grains");
                table.insert(grain, (at / 512) as u32);
                last = Some(grain);
                let end = at + 12 + size;
                at = end.next_multiple_of(512);
                assert!(file[end..at].iter().all(|&byte| byte == 0), "padding");
            }
            (0, 1) => {
                assert_eq!(value, 4);
                let number = *table.keys().next().unwrap() / 512;
                for entry in 0..512 {
                    let expected = table.get(&(number * 512 + entry)).copied().unwrap_or(0);
                    assert_eq!(u32_at(at + 512 + entry * 4), expected);
                }
                tables.insert(number, (at / 512 + 1) as u32);
                table.clear();
                at += 512 + 2048;
            }
            (0, 2) => {
                assert!(table.is_empty());
                let directory = at / 512 + 1;
                for (number, sector) in &tables {
                    assert_eq!(u32_at(directory * 512 + number * 4), *sector);
                }
                at += 512 + value * 512;
                assert_eq!((u64_at(at), u32_at(at + 8), u32_at(at + 12)), (1, 0, 3), "a footer follows");
                let mut footer = file[at + 512..at + 1024].to_vec();
                assert_eq!(LittleEndian::read_u64(&footer[56..]) as usize, directory);
                LittleEndian::write_u64(&mut footer[56..], u64::MAX);
                assert!(footer == file[..512], "the footer is the header");
                assert!(file[at + 1024..] == [0; 512], "and the end");
                return directory;
            }
            other => panic!("{other:?} at {at:#x}"),
        }
    }
}

fn ask_qemu(image: &[u8], dir: &Dir, guest: &[u8], what: &dyn Debug) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return;
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let dir_path = std::env::temp_dir().join(format!("diskimage-vmdk-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&dir_path).unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir_path.join(name), bytes).unwrap();
    dir.names().iter().for_each(|name| write(name, &dir.file(name)));
    write("image.vmdk", image);
    write("guest", guest);
    let run = |arguments: &[&str]| {
        let output = Command::new("qemu-img").args(arguments).current_dir(&dir_path).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "qemu-img {arguments:?}: {text}\n{what:?}");
    };
    run(&["compare", "-q", "-f", "vmdk", "-F", "raw", "image.vmdk", "guest"]);
    if image.starts_with(b"KDMV") {
        run(&["check", "-q", "-f", "vmdk", "image.vmdk"]);
    }
    std::fs::remove_dir_all(&dir_path).unwrap();
}
