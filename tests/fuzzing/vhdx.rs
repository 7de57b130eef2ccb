//! VHDX files for the fuzz targets. Everything in such a file begins at a MiB of its own, and nearly all of it is zeros, so an
//! input does not hold a file: its first byte chooses one that is made here, and the rest are changes to it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use diskimage::io::ReadAt;
use uuid::{Uuid, uuid};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const PAGE: u64 = 4 * KIB;

const HEADERS_AT: [u64; 2] = [64 * KIB, 128 * KIB];
const REGION_TABLES_AT: [u64; 2] = [192 * KIB, 256 * KIB];
const LOG_AT: u64 = MIB;
const METADATA_AT: u64 = 2 * MIB;
const ITEMS_AT: u64 = METADATA_AT + 64 * KIB;
const BAT_AT: u64 = 3 * MIB;
/// Where the two blocks that are stored are, and the sector bitmap block.
const BLOCKS_AT: [u64; 2] = [4 * MIB, 5 * MIB];
const BITMAP_AT: u64 = 6 * MIB;
const FILE_LEN: u64 = 7 * MIB;
/// Its length after the log is replayed.
const GROWN_LEN: u64 = 8 * MIB;

const BAT_REGION: Uuid = uuid!("2dc27766-f623-4200-9d64-115e9bfd4a08");
const METADATA_REGION: Uuid = uuid!("8b7ca206-4790-4b9a-b8fe-575f050f886e");
const FILE_PARAMETERS: Uuid = uuid!("caa16737-fa36-4d43-b3b6-33f0aa44e76b");
const VIRTUAL_DISK_SIZE: Uuid = uuid!("2fa54224-cd1b-4876-b211-5dbed83bf4b8");
const VIRTUAL_DISK_ID: Uuid = uuid!("beca12ab-b2e6-4523-93ef-c309e000c746");
const LOGICAL_SECTOR_SIZE: Uuid = uuid!("8141bf1d-a96f-4709-ba47-f233a8faab5f");
const PHYSICAL_SECTOR_SIZE: Uuid = uuid!("cda348c7-445d-4471-9cc9-e9885251c556");
const PARENT_LOCATOR: Uuid = uuid!("a8d35f2d-b30b-454d-abf7-d3d84834ab0c");
const PARENT_LOCATOR_VHDX: Uuid = uuid!("b04aefb7-d19e-4a81-b789-25b8e9445913");
const LOG_GUID: Uuid = Uuid::from_u128(7);
const DATA_WRITE_GUID: Uuid = Uuid::from_u128(8);

/// A file of zeros but for some pages.
#[derive(Clone, Default)]
pub struct Pages {
    len: u64,
    pages: BTreeMap<u64, [u8; PAGE as usize]>,
}

/// The variant that the first byte of an input selects.
struct Choice(u8);

impl Choice {
    fn has_parent(&self) -> bool {
        self.0 & 3 == 2
    }

    /// The file has only the content of the input.
    fn is_empty(&self) -> bool {
        self.0 & 3 == 3
    }

    fn logical_sector_size(&self) -> u32 {
        if self.0 & 3 == 1 { 4096 } else { 512 }
    }

    fn has_log(&self) -> bool {
        self.0 & 4 != 0
    }

    /// Small enough that it is converted to every format, which takes its time.
    fn disk_size(&self) -> u64 {
        if self.0 & 8 != 0 { MIB - PAGE } else { 3 * MIB }
    }
}

/// The file that an input describes, and its parent if it has one. The first byte is followed by changes: an offset of four
/// bytes, a length of one, and that many bytes. A change of length 0 truncates the file at its offset.
pub fn files(data: &[u8]) -> Option<(Pages, Option<Pages>)> {
    let (choice, mut changes) = data.split_first()?;
    let choice = Choice(*choice);
    let mut file = if choice.is_empty() { Pages { len: FILE_LEN, ..Pages::default() } } else { image(&choice) };
    while let Some((at, [len, rest @ ..])) = changes.split_first_chunk() {
        let at = u32::from_le_bytes(*at).into();
        let (bytes, rest) = rest.split_at(rest.len().min((*len).into()));
        match bytes {
            [] => file.cut(at),
            bytes => file.write(at, bytes),
        }
        changes = rest;
    }
    Some((file, choice.has_parent().then(|| image(&Choice(choice.0 & 8)))))
}

impl Pages {
    fn write(&mut self, at: u64, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            self.pages.entry(at / PAGE).or_insert([0; PAGE as usize])[(at % PAGE) as usize] = *byte;
        }
        self.len = self.len.max(at + bytes.len() as u64);
    }

    fn cut(&mut self, len: u64) {
        self.len = len;
        self.pages.retain(|page, _| page * PAGE < len);
        if let Some(last) = self.pages.get_mut(&(len / PAGE)) {
            last[(len % PAGE) as usize..].fill(0);
        }
    }

    fn read(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let _ = self.read_exact_at(&mut bytes, range.start);
        bytes
    }

    fn u32_at(&self, at: u64) -> u32 {
        self.read(at..at + 4).try_into().map_or(0, u32::from_le_bytes)
    }

    /// With the checksums that the structures would have had they been written like this.
    pub fn with_checksums(mut self) -> Pages {
        let parts = HEADERS_AT.map(|at| (at, PAGE)).into_iter().chain(REGION_TABLES_AT.map(|at| (at, 64 * KIB)));
        for (at, len) in parts {
            let part = self.read(at..at + len);
            self.write_checksum(at, &part);
        }
        for header_at in HEADERS_AT {
            // More of the offset than this is not in any input.
            let (log_at, log_len) = (self.u32_at(header_at + 72).into(), u64::from(self.u32_at(header_at + 68)));
            let pages = self.pages.range(log_at / PAGE..(log_at + log_len) / PAGE);
            let heads: Vec<u64> =
                pages.filter(|(_, bytes)| bytes.starts_with(b"loge")).map(|(page, _)| page * PAGE).collect();
            for at in heads {
                let entry_len = u64::from(self.u32_at(at + 8)).min(log_len).min(MIB);
                // It may go on at the beginning of the log.
                let end = (at + entry_len).min(log_at + log_len);
                let mut entry = self.read(at..end);
                entry.extend(self.read(log_at..log_at + entry_len - (end - at)));
                self.write_checksum(at, &entry);
            }
        }
        self
    }

    /// Seals the structure at `at`, which has these bytes.
    fn write_checksum(&mut self, at: u64, part: &[u8]) {
        // The length of the file is unchanged. A part too short for a checksum has none.
        if let (Some(signature), Some(rest)) = (part.get(..4), part.get(8..))
            && at + 8 <= self.len
        {
            let crc =
                [&[0; 4], rest].iter().fold(crc32c::crc32c(signature), |crc, part| crc32c::crc32c_append(crc, part));
            self.write(at + 4, &crc.to_le_bytes());
        }
    }

    /// Writes it to a file in which the zeros are holes.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        let file = File::create(path)?;
        for (page, bytes) in &self.pages {
            file.write_all_at(bytes, page * PAGE)?;
        }
        file.set_len(self.len)
    }
}

impl ReadAt for Pages {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let within = offset % PAGE;
        let len = self.len.saturating_sub(offset).min(PAGE - within).min(buf.len() as u64) as usize;
        match self.pages.get(&(offset / PAGE)) {
            Some(page) => buf[..len].copy_from_slice(&page[within as usize..][..len]),
            None => buf[..len].fill(0),
        }
        Ok(len)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let mut pages = self.pages.range(offset / PAGE..).map(|(page, _)| *page);
        let Some(first) = pages.next() else { return Ok(None) };
        let end = (first + 1..).zip(pages).take_while(|(expected, page)| expected == page).count() as u64;
        let run = (first * PAGE).max(offset)..((first + 1 + end) * PAGE).min(self.len);
        Ok((run.start < run.end).then_some(run))
    }
}

/// A folder of its own for each call.
pub struct Folder(pub std::path::PathBuf);

impl Folder {
    pub fn new() -> Folder {
        let name = format!("diskimage-fuzz-{}-{:?}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An image of three blocks of a MiB, or of less than one, put together by the document.
fn image(choice: &Choice) -> Pages {
    let mut file = Pages { len: FILE_LEN, ..Pages::default() };
    file.write(0, &[&b"vhdxfile"[..], &utf16("seed")].concat());
    for (sequence, at) in (1u64..).zip(HEADERS_AT) {
        let log_guid = if choice.has_log() { LOG_GUID } else { Uuid::nil() };
        let guids = [Uuid::from_u128(5), DATA_WRITE_GUID, log_guid].map(|guid| guid.to_bytes_le()).concat();
        let log = [&1u32.to_le_bytes()[..], &(MIB as u32).to_le_bytes(), &LOG_AT.to_le_bytes()].concat();
        // The version of the log is 0, and that of the file 1.
        file.write(at, &[b"head\0\0\0\0", &sequence.to_le_bytes()[..], &guids, &log].concat());
        file.write(at + 64, &[0, 0, 1, 0]);
    }
    for at in REGION_TABLES_AT {
        file.write(at, b"regi\0\0\0\0\x02");
        for (index, (guid, region)) in (0..).zip([(METADATA_REGION, METADATA_AT), (BAT_REGION, BAT_AT)]) {
            let place = [&region.to_le_bytes()[..], &(MIB as u32).to_le_bytes(), &[1]].concat();
            file.write(at + 16 + index * 32, &[&guid.to_bytes_le()[..], &place].concat());
        }
    }
    write_metadata(&mut file, choice);
    write_blocks(&mut file, choice);
    if choice.has_log() {
        write_log(&mut file);
    }
    file.with_checksums()
}

fn write_metadata(file: &mut Pages, choice: &Choice) {
    let parameters = [MIB as u32, if choice.has_parent() { 2 } else { 0 }].map(u32::to_le_bytes).concat();
    let mut items = vec![
        (FILE_PARAMETERS, 4, parameters),
        (VIRTUAL_DISK_SIZE, 6, choice.disk_size().to_le_bytes().into()),
        (VIRTUAL_DISK_ID, 6, vec![9; 16]),
        (LOGICAL_SECTOR_SIZE, 6, choice.logical_sector_size().to_le_bytes().into()),
        (PHYSICAL_SECTOR_SIZE, 6, 4096u32.to_le_bytes().into()),
    ];
    if choice.has_parent() {
        items.push((PARENT_LOCATOR, 4, parent_locator()));
    }
    file.write(METADATA_AT, &[b"metadata\0\0", &[items.len() as u8][..]].concat());
    let mut at = ITEMS_AT;
    for (index, (guid, flags, value)) in (1..).zip(items) {
        let place = [(at - METADATA_AT) as u32, value.len() as u32, flags].map(u32::to_le_bytes).concat();
        file.write(METADATA_AT + index * 32, &[&guid.to_bytes_le()[..], &place].concat());
        file.write(at, &value);
        at += value.len() as u64;
    }
}

fn parent_locator() -> Vec<u8> {
    let linkage = format!("{{{DATA_WRITE_GUID}}}");
    let pairs = [("parent_linkage", &*linkage), ("relative_path", ".\\parent.vhdx")];
    let mut table = [&PARENT_LOCATOR_VHDX.to_bytes_le()[..], &[0, 0, pairs.len() as u8, 0]].concat();
    let mut texts = Vec::new();
    let texts_at = table.len() + 12 * pairs.len();
    for (key, value) in pairs.map(|(key, value)| (utf16(key), utf16(value))) {
        let key_at = texts_at + texts.len();
        table.extend([key_at, key_at + key.len()].map(|at| (at as u32).to_le_bytes()).concat());
        table.extend([key.len(), value.len()].map(|len| (len as u16).to_le_bytes()).concat());
        texts.extend([key, value].concat());
    }
    [table, texts].concat()
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// The first block is there, in part where the rest can be that of a parent; the second one is zeros; the third is there.
fn write_blocks(file: &mut Pages, choice: &Choice) {
    const PRESENT: u64 = 6;
    let (first, second) = if choice.has_parent() { (7, 0) } else { (PRESENT, 2) };
    let bat = [BLOCKS_AT[0] | first, second, BLOCKS_AT[1] | PRESENT];
    file.write(BAT_AT, &bat.map(u64::to_le_bytes).concat());
    if choice.has_parent() {
        // After the entries of a chunk.
        let chunk_ratio = (u64::from(choice.logical_sector_size()) << 23) / MIB;
        file.write(BAT_AT + 8 * chunk_ratio, &(BITMAP_AT | PRESENT).to_le_bytes());
        file.write(BITMAP_AT, &[0b0110_1001, 0xff, 0, 0x80]);
    }
    // Other ones than the parent's.
    let bytes = if choice.has_parent() { 0x11.. } else { 1.. };
    for (at, byte) in BLOCKS_AT.into_iter().zip(bytes) {
        file.write(at, &[byte; 700]);
        file.write(at + 9 * PAGE, &[byte | 0x80; 100]);
    }
}

/// Two entries, the first of which wraps around to the start of the log. They make the second block present, in a part of
/// the file that the log adds, and write zeros and data to the first one.
fn write_log(file: &mut Pages) {
    let mut bat = file.read(BAT_AT..BAT_AT + PAGE);
    bat[8..16].copy_from_slice(&(FILE_LEN | 6).to_le_bytes());
    let tail = MIB - PAGE;
    write_entry(file, tail, tail, 7, &[(BAT_AT, Change::Data(bat))]);
    let changes =
        [(BLOCKS_AT[0] + PAGE, Change::Zeros(2 * PAGE)), (BLOCKS_AT[0], Change::Data(vec![3; PAGE as usize]))];
    write_entry(file, PAGE, tail, 8, &changes);
}

enum Change {
    Data(Vec<u8>),
    Zeros(u64),
}

/// Writes an entry at offset `at` of the log.
fn write_entry(file: &mut Pages, at: u64, tail: u64, sequence: u64, changes: &[(u64, Change)]) {
    let mut descriptors = Vec::new();
    let mut sectors = Vec::new();
    for (place, change) in changes {
        match change {
            Change::Data(data) => {
                descriptors.extend([b"desc", &data[4092..], &data[..8]].concat());
                let (low, high) = ((sequence as u32).to_le_bytes(), ((sequence >> 32) as u32).to_le_bytes());
                sectors.push([b"data", &high[..], &data[8..4092], &low].concat());
            }
            Change::Zeros(len) => descriptors.extend([b"zero\0\0\0\0", &len.to_le_bytes()[..]].concat()),
        }
        descriptors.extend([*place, sequence].map(u64::to_le_bytes).concat());
    }
    let len = (1 + sectors.len() as u64) * PAGE;
    let numbers = [len as u32, tail as u32].map(u32::to_le_bytes).concat();
    let count = (changes.len() as u64).to_le_bytes();
    let lengths = [FILE_LEN, GROWN_LEN].map(u64::to_le_bytes).concat();
    let head =
        [b"loge\0\0\0\0", &numbers[..], &sequence.to_le_bytes(), &count, &LOG_GUID.to_bytes_le(), &lengths].concat();
    let first = [head, descriptors].concat();
    for (sector, bytes) in (0..).zip([first].into_iter().chain(sectors)) {
        file.write(LOG_AT + (at + sector * PAGE) % MIB, &bytes);
    }
}
