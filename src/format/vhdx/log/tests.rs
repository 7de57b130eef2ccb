//! Hand-built and generated logs, compared with a literal implementation of the steps of the document.

mod build;
mod naive;

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use uuid::Uuid;

use self::build::{HEADER_AT, Image, LOG_GUID, NewEntry, NewUpdate, SECTOR, Tear, case, content, header};
use super::{GROWTH, Replayed, replay};
use crate::error::{Error, Fault, Problem};
use crate::io::{MemFile, ReadAt, WriteAt};
use crate::limits::Budget;

fn zero(at: u64, sectors: u64) -> NewUpdate {
    NewUpdate::Zero { at: at * SECTOR, len: sectors * SECTOR }
}

fn data(at: u64, seed: u8) -> NewUpdate {
    NewUpdate::Data { at: at * SECTOR, seed }
}

fn all_of(file: &dyn ReadAt) -> Vec<u8> {
    let mut bytes = vec![0xee; file.size().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// The data ranges from an offset.
fn runs_of(file: &dyn ReadAt, mut offset: u64) -> Vec<Range<u64>> {
    let mut runs = Vec::new();
    while let Some(run) = file.next_data(offset).unwrap() {
        assert!(run.start >= offset && run.start < run.end, "{run:?} from {offset}");
        offset = run.end;
        runs.push(run);
    }
    runs
}

/// Compares the replay with that of the document. Returns whether the image is opened.
fn compare(image: &Image, parts: &[(u64, u64)]) -> Result<bool, TestCaseError> {
    let (file, expected) = match (image.replay(), naive::replay(&image.bytes, image.log.clone())) {
        (Ok(replayed), Some(expected)) => (replayed.file, expected),
        (Err(Error::Corrupt(_)), None) => return Ok(false),
        (Ok(_), None) => return Err(TestCaseError::fail("opened")),
        (Err(error), _) => return Err(TestCaseError::fail(error.to_string())),
    };
    let len = expected.len() as u64;
    prop_assert_eq!(file.size().unwrap(), len);
    prop_assert!(all_of(&*file) == expected, "different content");
    let sectors = expected.chunks(SECTOR as usize).enumerate();
    let holds_data: BTreeSet<u64> =
        sectors.filter(|(_, sector)| sector.iter().any(|&byte| byte != 0)).map(|(index, _)| index as u64).collect();
    for (from, part_len) in parts {
        let from = from % len;
        let to = (from + part_len).min(len);
        let mut part = vec![0xee; (to - from) as usize];
        file.read_exact_at(&mut part, from).unwrap();
        prop_assert!(part == expected[from as usize..to as usize], "different content in {}..{}", from, to);
        let next = (from / SECTOR..len / SECTOR).find(|sector| holds_data.contains(sector));
        let next = next.map(|sector| from.max(sector * SECTOR));
        prop_assert_eq!(file.next_data(from).unwrap().map(|run| run.start), next);
    }
    prop_assert_eq!(file.read_at(&mut [0; 9], len).unwrap(), 0);
    prop_assert_eq!(file.read_at(&mut [0; 9], u64::MAX).unwrap(), 0);
    let in_runs = runs_of(&*file, 0).into_iter().flat_map(|run| run.start / SECTOR..run.end / SECTOR).collect();
    prop_assert_eq!(holds_data, in_runs);
    Ok(true)
}

/// Values for fields. The reference holds the file in memory, so lengths are small or invalid.
fn value() -> impl Strategy<Value = u64> {
    let sectors = || 0u64..64;
    prop_oneof![
        sectors(),
        sectors().prop_map(|sectors| sectors * SECTOR),
        sectors().prop_map(|sectors| sectors * SECTOR + 512),
        prop::sample::select(vec![1 << 50, 1 << 63, (1 << 63) - SECTOR, u64::MAX, u64::MAX - SECTOR + 1]),
    ]
}

proptest! {
    #[test]
    fn replays_match_the_document(case in case(), parts in prop::collection::vec((any::<u64>(), 0u64..20_000), 4)) {
        compare(&case.image(), &parts)?;
    }

    #[test]
    fn damaged_logs_match_the_document(case in case(), at in any::<u64>(), flip in 1u8..) {
        let mut image = case.image();
        image.flip(at, flip);
        compare(&image, &[])?;
        // A byte of an entry.
        let mut image = case.image();
        if let Some(&entry) = image.written.get(at as usize % 5) {
            image.flip(entry + at % 300, flip);
            compare(&image, &[])?;
        }
    }

    #[test]
    fn changed_fields_match_the_document(case in case(), entry in any::<usize>(), field in 0usize..18, value in value()) {
        let mut image = case.image();
        if let Some(&offset) = image.written.get(entry % image.written.len().max(1)) {
            // The header fields except the checksum, and the fields of three descriptors.
            let header = [(0, 4), (8, 4), (12, 4), (16, 8), (24, 4), (28, 4), (32, 8), (48, 8), (56, 8)];
            let descriptors = [64, 96, 128].map(|at| [(at + 8, 8), (at + 16, 8), (at + 24, 8)]);
            let (at, len) = *header.iter().chain(descriptors.as_flattened()).nth(field).unwrap();
            image.edit(offset, at, &value.to_le_bytes()[..len]);
            compare(&image, &[])?;
        }
    }
}

#[test]
fn about_half_of_the_generated_logs_are_valid() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let images: Vec<Image> = (0..100).map(|_| case().new_tree(&mut runner).unwrap().current().image()).collect();
    let replayed: Vec<Replayed> = images.iter().filter_map(|image| image.replay().ok()).collect();
    let some = |what: &dyn Fn(&Replayed) -> bool| replayed.iter().filter(|replayed| what(replayed)).count();
    assert!((40..=95).contains(&replayed.len()), "{}", replayed.len());
    assert!(some(&|replayed| replayed.entries > 1) >= 20);
    assert!(some(&|replayed| replayed.bytes > 0) >= 30);
}

/// The content of a replayed file.
fn replayed(image: &Image) -> Vec<u8> {
    assert!(compare(image, &[(5000, 9000)]).unwrap(), "not opened");
    all_of(&*image.replay().unwrap().file)
}

fn sector(bytes: &[u8], index: u64) -> &[u8] {
    &bytes[(index * SECTOR) as usize..][..SECTOR as usize]
}

#[test]
fn later_updates_win() {
    let mut image = Image::new(12);
    image.append(&NewEntry::first(7, 0, &[data(17, 1), zero(16, 4), data(18, 2)]));
    image.append(&NewEntry::first(8, 0, &[data(18, 3), data(30, 4), zero(30, 1), zero(31, 0), data(29, 5)]));
    let bytes = replayed(&image);
    assert_eq!(bytes.len() as u64, 31 * SECTOR, "as long as the last update makes it");
    assert_eq!([sector(&bytes, 18), sector(&bytes, 29)], [content(3), content(5)]);
    for zeros in [16, 17, 19, 28, 30] {
        assert!(sector(&bytes, zeros).iter().all(|&byte| byte == 0), "{zeros}");
    }
    assert_eq!(bytes[..16 * SECTOR as usize], image.bytes[..16 * SECTOR as usize]);
    let Replayed { entries, bytes, .. } = image.replay().unwrap();
    assert_eq!((entries, bytes), (2, 6 * SECTOR));
}

#[test]
fn entries_wrap_around_at_the_end_of_the_log() {
    for next in 0..9 {
        let mut image = Image::new(9);
        image.next = next * SECTOR;
        let updates = [data(0, 1), data(1, 2), zero(20, 1), data(2, 3)];
        let first = NewEntry::first(u64::from(u32::MAX), image.next, &updates);
        image.append(&first).append(&NewEntry { sequence_number: 1 << 32, ..first.clone() });
        let bytes = replayed(&image);
        assert_eq!([sector(&bytes, 0), sector(&bytes, 1), sector(&bytes, 2)], [content(1), content(2), content(3)]);
        assert_eq!(image.replay().unwrap().entries, 2);
    }
}

#[test]
fn an_entry_may_fill_the_log_and_have_many_descriptor_sectors() {
    let updates: Vec<NewUpdate> = (0..383).map(|index| data(index, index as u8)).collect();
    for (count, descriptor_sectors) in [(126, 1), (127, 2), (254, 2), (255, 3), (382, 3), (383, 4)] {
        let mut image = Image::new(count as u64 + descriptor_sectors);
        image.append(&NewEntry::first(1, 0, &updates[..count]));
        assert_eq!(image.next, 0);
        let bytes = replayed(&image);
        assert!((0..count as u64).all(|index| sector(&bytes, index) == content(index as u8)));
    }
}

#[test]
fn entries_before_the_tail_are_not_replayed() {
    let mut image = Image::new(12);
    image.append(&NewEntry::first(7, 0, &[data(0, 1)])).append(&NewEntry::first(8, 0, &[data(1, 2)]));
    let tail = image.next;
    image.append(&NewEntry::first(9, tail, &[data(2, 3)])).append(&NewEntry::first(10, tail, &[data(3, 4)]));
    let bytes = replayed(&image);
    assert_eq!(image.replay().unwrap().entries, 2);
    assert_eq!([sector(&bytes, 0), sector(&bytes, 1)], [sector(&image.bytes, 0), sector(&image.bytes, 1)]);
    assert_eq!([sector(&bytes, 2), sector(&bytes, 3)], [content(3), content(4)]);
}

#[test]
fn the_newest_complete_sequence_is_replayed() {
    let mut image = Image::new(16);
    image.append(&NewEntry::first(7, 0, &[data(0, 1)]));
    let second = image.next;
    image.append(&NewEntry::first(20, second, &[data(0, 2)]));
    let third = image.next;
    let then = |tears: &[(u64, Tear)], tail| {
        let mut image = image.clone();
        image.append_torn(&NewEntry::first(21, tail, &[data(0, 3)]), tears);
        (sector(&replayed(&image), 0).to_vec(), image.replay().unwrap().skipped)
    };
    assert_eq!(then(&[], second), (content(3), 0));
    assert_eq!(then(&[], third), (content(3), 0));
    assert_eq!(then(&[(0, Tear::Missing)], second), (content(2), 0));
    assert_eq!(then(&[(1, Tear::Half(3))], second), (content(2), 0));
    // It continues the second entry, but its tail is the first entry, which is not part of its sequence.
    assert_eq!(then(&[], 0), (content(1), 2));
    assert_eq!(then(&[], 13 * SECTOR), (content(1), 2));
}

#[test]
fn the_changes_and_the_length_are_written_to_the_file() {
    let mut image = Image::new(12);
    let updates = [data(17, 1), zero(18, 2)];
    image.append(&NewEntry { last_file_offset: 40 * SECTOR, ..NewEntry::first(7, 0, &updates) });
    let expected = replayed(&image);
    let file = MemFile::from(image.bytes.clone());
    image.replay().unwrap().overlay.unwrap().write_to(&file).unwrap();
    assert!(file.to_vec() == expected && expected.len() as u64 == 40 * SECTOR);
}

/// The fault of an image that the reference refuses too.
fn fault(image: &Image) -> Fault {
    assert!(!compare(image, &[]).unwrap());
    match image.replay() {
        Err(Error::Corrupt(fault)) => fault,
        other => panic!("{:?}", other.map(|replayed| replayed.entries)),
    }
}

#[test]
fn a_log_without_a_valid_sequence_is_refused() {
    let entry = NewEntry::first(7, 0, &[data(0, 1), zero(1, 1)]);
    let image = |entry: &NewEntry| Image::new(12).append(entry).clone();
    let edited = |at, new: &[u8]| {
        let mut image = image(&entry);
        image.edit(0, at, new);
        image
    };
    assert_eq!(sector(&replayed(&edited(0, b"loge")), 0), content(1), "an unchanged field");
    let mut garbage = Image::new(12);
    garbage.flip(5 * SECTOR + 9, 1);
    let images = [
        garbage,
        image(&NewEntry::first(0, 0, &[data(0, 1)])),
        image(&NewEntry::first(7, SECTOR, &[data(0, 1)])),
        edited(0, b"logf"),
        // EntryLength: 0, not a multiple of a sector, one sector too few and too many, longer than the log, the maximum.
        edited(8, &0u32.to_le_bytes()),
        edited(8, &100u32.to_le_bytes()),
        edited(8, &0x1000u32.to_le_bytes()),
        edited(8, &0x3000u32.to_le_bytes()),
        edited(8, &0xd000u32.to_le_bytes()),
        edited(8, &0xffff_f000u32.to_le_bytes()),
        // DescriptorCount: too few, too many, more than fit.
        edited(24, &0u32.to_le_bytes()),
        edited(24, &3u32.to_le_bytes()),
        edited(24, &127u32.to_le_bytes()),
        edited(24, &u32::MAX.to_le_bytes()),
        // Reserved fields, signatures, alignment and sequence numbers.
        edited(28, &[1]),
        edited(64, b"dest"),
        edited(80, &[1]),
        edited(88, &[8]),
        edited(96, b"zere"),
        edited(100, &[1]),
        edited(104, &[1]),
        edited(112, &[1]),
        edited(120, &[8]),
        edited(4096, b"date"),
        edited(4100, &[1]),
        edited(8188, &[8]),
    ];
    for (index, image) in images.iter().enumerate() {
        let Fault { field, at, problem, .. } = fault(image);
        assert_eq!((&*field, at), ("LogOffset", HEADER_AT + 72), "{index}");
        assert!(matches!(problem, Problem::Conflict { value, .. } if value == image.log.start), "{index}");
    }
}

#[test]
fn a_log_without_entries_has_nothing_to_replay() {
    let other = |sequence_number, seed| {
        let log_guid = Uuid::from_u128(1);
        NewEntry { log_guid, ..NewEntry::first(sequence_number, 0, &[zero(1, 1), data(0, seed)].repeat(70)) }
    };
    let mut old = Image::new(90);
    old.append(&other(5, 1)).append_torn(&other(6, 2), &[(0, Tear::Missing), (30, Tear::Half(4))]);
    for image in [Image::new(12), old] {
        assert_eq!(replayed(&image), image.bytes);
        let Replayed { entries, bytes, skipped, .. } = image.replay().unwrap();
        assert_eq!((entries, bytes, skipped), (0, 0, 0));
    }
}

#[test]
fn fixed_ranges_are_not_written_to() {
    let fixed = [(2 * SECTOR..4 * SECTOR, "the headers"), (30 * SECTOR..31 * SECTOR, "the log")];
    let replay = |update| {
        let image = Image::new(12).append(&NewEntry::first(7, 0, &[update])).clone();
        let result = image.replay_within(&Budget::new(1 << 20), &fixed);
        result.map(drop).map_err(|error| match error {
            Error::Corrupt(Fault { field, at, problem, .. }) => {
                assert_eq!((&*field, at), ("FileOffset", image.log.start + 80));
                problem
            }
            other => panic!("{other}"),
        })
    };
    for update in [data(1, 1), zero(0, 2), zero(3, 0), data(4, 1), zero(4, 26), data(31, 1)] {
        assert_eq!(replay(update), Ok(()), "{update:?}");
    }
    let overlap = |sector, with| Err(Problem::Overlap { offset: sector * SECTOR, with });
    assert_eq!(replay(data(2, 1)), overlap(2, "the headers"));
    assert_eq!(replay(zero(1, 2)), overlap(1, "the headers"));
    assert_eq!(replay(zero(3, 40)), overlap(3, "the headers"));
    assert_eq!(replay(data(30, 1)), overlap(30, "the log"));
    assert_eq!(replay(zero(20, 11)), overlap(20, "the log"));
}

#[test]
fn entries_that_do_not_fit_the_file_are_refused() {
    let len = Image::new(12).bytes.len() as u64;
    let entry = NewEntry { flushed_file_offset: len, ..NewEntry::first(7, 0, &[data(0, 1), zero(1, 1)]) };
    let image = |entry: &NewEntry| Image::new(12).append(entry).clone();
    let last = |last_file_offset| NewEntry { last_file_offset, ..entry.clone() };
    let with = |update| NewEntry { updates: vec![data(0, 1), update], ..entry.clone() };
    let most = len + 3 * GROWTH;
    for (entry, name, offset) in [
        (NewEntry { flushed_file_offset: len + 1, ..entry.clone() }, "FlushedFileOffset", 48),
        (last(most + 1), "LastFileOffset", 56),
        (last(u64::MAX), "LastFileOffset", 56),
        (with(NewUpdate::Zero { at: 0, len: 1 << 63 }), "FileOffset", 112),
        (with(NewUpdate::Zero { at: 1 << 63, len: 1 << 63 }), "FileOffset", 112),
        (with(NewUpdate::Zero { at: SECTOR, len: most }), "FileOffset", 112),
        (with(NewUpdate::Data { at: 1 << 50, seed: 0 }), "FileOffset", 112),
        (with(NewUpdate::Data { at: u64::MAX - SECTOR + 1, seed: 0 }), "FileOffset", 112),
    ] {
        let image = image(&entry);
        let Fault { field, at, problem, .. } = fault(&image);
        assert_eq!((&*field, at), (name, image.log.start + offset));
        assert!(matches!(problem, Problem::OutOfBounds { .. }), "{problem:?}");
    }
    let zeros = NewUpdate::Zero { at: 0, len: most };
    for entry in [last(most), with(zeros), with(NewUpdate::Data { at: most - SECTOR, seed: 1 })] {
        let file = image(&entry).replay().unwrap().file;
        assert_eq!(file.size().unwrap(), most);
        let mut bytes = [0xee; 100];
        file.read_exact_at(&mut bytes, most - 2 * SECTOR).unwrap();
        assert_eq!(bytes, [0; 100]);
        let is_data = matches!(entry.updates[1], NewUpdate::Data { .. });
        assert_eq!(file.next_data(len).unwrap(), is_data.then_some(most - SECTOR..most), "added bytes are a hole");
    }
}

#[test]
fn an_entry_inside_a_data_sector_is_data() {
    let inner = NewEntry::first(90, 2 * SECTOR, &[]).encode();
    let mut image = Image::new(12);
    image.append(&NewEntry::first(7, 0, &[data(0, 1), data(1, 2), data(2, 3)]));
    let at = (image.log.start + 2 * SECTOR) as usize;
    image.bytes[at + 8..at + 4092].copy_from_slice(&inner[8..4092]);
    image.edit(0, 0, b"loge");
    let bytes = replayed(&image);
    assert_eq!(sector(&bytes, 1)[8..4092], inner[8..4092]);
    // With its own signature it is an entry, and the outer entry is torn.
    image.bytes[at..at + 4096].copy_from_slice(&inner);
    image.edit(0, 0, b"loge");
    let bytes = replayed(&image);
    assert_eq!(bytes, image.bytes);
}

#[test]
fn changes_are_limited_by_the_budget() {
    // Sectors and zeroed ranges that split each other, then zeros over everything.
    let cut = |index: u64| [data(1 + 2 * index, 1), zero(2 * (index % 77), 5)];
    let updates: Vec<NewUpdate> = (0..300).flat_map(cut).chain([zero(0, 1000)]).collect();
    let mut image = Image::new(400);
    image.append(&NewEntry::first(7, 0, &updates));
    let bytes = replayed(&image);
    assert!(bytes.len() as u64 == 1000 * SECTOR && bytes.iter().all(|&byte| byte == 0));
    for limit in [10, 1 << 10] {
        assert_eq!(image.replay_within(&Budget::new(limit), &[]).err().unwrap().kind().as_str(), "limit");
    }
}

#[test]
fn an_empty_log_and_a_truncated_file() {
    let image = Image::new(12).append(&NewEntry::first(7, 0, &[data(40, 1)])).clone();
    let file = Arc::new(MemFile::from(image.bytes.clone()));
    let source: Arc<dyn ReadAt> = file.clone();
    let len = image.bytes.len() as u64;
    let open =
        |guid| replay(&source, len, (&header(guid, image.log.clone()), HEADER_AT), &[], &Budget::new(1 << 20)).unwrap();
    assert!(open(Uuid::nil()).is_none());
    let replayed = open(LOG_GUID).unwrap().file;
    assert_eq!(replayed.size().unwrap(), 41 * SECTOR);
    file.set_len(len - SECTOR).unwrap();
    let missing = replayed.read_exact_at(&mut [0; 512], len - SECTOR).unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::UnexpectedEof, "missing bytes are not zeros");
}

#[test]
fn a_changed_log_is_an_error() {
    let image = Image::new(12).append(&NewEntry::first(7, 0, &[data(40, 1)])).clone();
    let file = Arc::new(MemFile::from(image.bytes.clone()));
    let source: Arc<dyn ReadAt> = file.clone();
    let len = image.bytes.len() as u64;
    let header = header(LOG_GUID, image.log.clone());
    let replayed = replay(&source, len, (&header, HEADER_AT), &[], &Budget::new(1 << 20)).unwrap().unwrap().file;
    let read = || replayed.read_exact_at(&mut [0; 512], 40 * SECTOR);
    read().unwrap();
    // Another writer overwrites the entry.
    let other = NewEntry::first(8, 0, &[data(40, 2)]).encode();
    file.write_all_at(&other, image.log.start).unwrap();
    assert_eq!(
        read().unwrap_err().to_string(),
        format!("the log has changed at file offset {:#x}", image.log.start + SECTOR)
    );
}

#[test]
fn next_data_skips_a_bounded_number_of_zeroed_ranges() {
    const ZEROS: u64 = 5000;
    let zeros = |first: u64, step| (0..ZEROS).map(|n| zero(first + step * n, 1)).collect::<Vec<_>>();
    // Beyond the file on disk all of them are holes.
    let image = Image::new(100).append(&NewEntry::first(7, 0, &zeros(1000, 2))).clone();
    let file = image.replay().unwrap().file;
    assert_eq!(file.next_data(image.bytes.len() as u64).unwrap(), None);
    // Within the file, data is reported after 32 of them.
    let mut image = Image::new(100).append(&NewEntry::first(7, 0, &zeros(200, 1))).clone();
    image.bytes.resize(5300 * SECTOR as usize, 1);
    let file = image.replay().unwrap().file;
    assert_eq!(file.next_data(200 * SECTOR).unwrap(), Some(232 * SECTOR..233 * SECTOR));
    assert_eq!(file.next_data(5190 * SECTOR).unwrap(), Some(5200 * SECTOR..5300 * SECTOR));
}

/// A file of repeating sectors that counts the bytes read.
struct Pattern {
    sectors: Vec<Vec<u8>>,
    len: u64,
    read: AtomicU64,
}

impl ReadAt for Pattern {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let (index, from) = (offset / SECTOR, (offset % SECTOR) as usize);
        let sector = &self.sectors[index as usize % self.sectors.len()][from..];
        let len = sector.len().min(buf.len());
        buf[..len].copy_from_slice(&sector[..len]);
        self.read.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }
}

#[test]
fn the_work_is_linear_in_the_length_of_the_log() {
    let mut begin = NewEntry::first(7, 0, &[zero(0, 1); 127]).encode();
    let mut descriptors = begin.split_off(SECTOR as usize);
    descriptors = descriptors[..32].repeat(128);
    let data = NewEntry::first(7, 0, &[data(0, 1)]).encode().split_off(SECTOR as usize);
    let header_sector = |len: u64, count: u32| {
        let mut begin = begin.clone();
        begin[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        begin[24..28].copy_from_slice(&count.to_le_bytes());
        begin
    };
    let (long, some) = (64 << 20, 4 << 20);
    // All entries claim to fill the log. They are invalid at the next entry, or by their checksum. The first ones are of another log.
    let rows = [
        (long, vec![b"loge".repeat(1024)]),
        (some, vec![header_sector(some, 126)]),
        (some, vec![header_sector(some, 126), data.clone()]),
        (some, vec![header_sector(some, 254), descriptors.clone()]),
        (some, [vec![header_sector(some, 126)], vec![data; 700]].concat()),
        (some, [vec![header_sector(some, 126 + 128 * 700)], vec![descriptors; 3000]].concat()),
        (some, vec![NewEntry::first(7, 0, &[]).encode()]),
    ];
    for (index, (log_len, sectors)) in rows.into_iter().enumerate() {
        let source = Arc::new(Pattern { sectors, len: log_len, read: AtomicU64::new(0) });
        let file: Arc<dyn ReadAt> = source.clone();
        let result = replay(&file, log_len, (&header(LOG_GUID, 0..log_len), HEADER_AT), &[], &Budget::new(64 << 20));
        assert_eq!(result.is_ok(), [0, 6].contains(&index), "{index}");
        let read = source.read.load(Ordering::Relaxed);
        assert!((log_len..=2 * log_len + (1 << 20)).contains(&read), "{index}: {read} bytes");
    }
}
