//! Logs that have to be replayed: reads see their content, the file is not changed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{SECTORS, assert_reads, assert_sound, chain, error, layer, over, pieces};
use crate::support::pattern::Random;
use crate::support::vhdx::{Block, Change, KIB, Log, MIB, Places, Vhdx, ZERO, seal};
use crate::support::{TempDir, assert_same};
use diskimage::OpenOptions;

/// An image with data, whose BAT and metadata are to be moved into the log.
fn dirty(path: &Path, sector_size: u64) -> (Vhdx, Places) {
    let mut random = Random::new(sector_size);
    let mut image = Vhdx::new(4 * MIB + 4096, MIB, sector_size);
    image.blocks = (0..5).map(|_| Block::Full(pieces(&mut random, MIB))).collect();
    image.blocks[2] = Block::Without(ZERO);
    let places = image.write(path);
    (image, places)
}

/// Checks the guest data, that the file is not changed, and that `info` reports the log.
#[track_caller]
fn assert_replays(path: &Path, guest: &[u8], what: &str) {
    let before = fs::read(path).unwrap();
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    assert_reads(path, guest, what);
    let info = OpenOptions::new().inspect(path).unwrap().info;
    assert!(info.dirty && info.warnings.iter().any(|warning| warning.contains("log")), "{what}: {info:?}");
    assert_sound(path, what);
    assert_same(&fs::read(path).unwrap(), &before, &format!("{what}: the source"));
    fs::remove_file(path).unwrap();
}

#[test]
fn logs_are_replayed() {
    let dir = TempDir::new();
    let path = dir.join("image.vhdx");
    for sector_size in SECTORS {
        let tables = |places: &Places| {
            // The content of the metadata, the BAT and the region table.
            let metadata = [places.metadata, places.metadata + 64 * KIB].map(Change::Move);
            let zeros = Change::Clear(places.bat + 4096..places.bat + 64 * KIB);
            let regions = (0..32).map(|sector| Change::Move(192 * KIB + sector * 4096));
            (metadata.into_iter().chain([Change::Move(places.bat), zeros]), regions)
        };
        let ring = |places: &Places| places.log.end - places.log.start;
        type Make = fn(&Places) -> Log;
        let variants: [(&str, Make); 8] = [
            ("at the start of the ring", |_| Log::new(Vec::new())),
            ("wrapped around the end of the ring", |places| Log {
                start: places.log.end - places.log.start - 8192,
                ..Log::new(Vec::new())
            }),
            ("high numbers", |_| Log { sequence: (7 << 32) - 1, ..Log::new(Vec::new()) }),
            ("a tail after the first entry", |places| Log {
                done: 1,
                ..Log::new(vec![vec![Change::Write(places.blocks[0], vec![9; 4096])]])
            }),
            ("an entry without changes", |_| Log::new(vec![Vec::new()])),
            ("earlier changes of the same sectors", |places| {
                Log::new(vec![vec![
                    Change::Write(places.bat, vec![0xff; 4096]),
                    Change::Wipe(places.metadata..places.metadata + 128 * KIB),
                ]])
            }),
            ("zeros over an earlier change", |places| {
                Log::new(vec![vec![Change::Write(places.bat + 8192, vec![0xff; 4096])]])
            }),
            ("in the middle of the ring", |_| Log { start: 4096 * 7, ..Log::new(Vec::new()) }),
        ];
        for (what, make) in variants {
            let what = format!("{what}, sectors of {sector_size}");
            let (image, places) = dirty(&path, sector_size);
            let guest = over(Vec::new(), &image);
            let mut log = make(&places);
            let (metadata, regions) = tables(&places);
            log.entries.push(metadata.collect());
            log.entries.push(regions.collect());
            let offsets = log.write(&path, &image, &places);
            assert!(offsets.iter().all(|at| *at < ring(&places)), "{what}");
            assert_replays(&path, &guest, &what);
        }
    }
}

/// Older sequences, and one that was torn by a crash.
#[test]
fn only_the_active_sequence_is_replayed() {
    let dir = TempDir::new();
    let path = dir.join("image.vhdx");
    let (image, places) = dirty(&path, 512);
    let guest = over(Vec::new(), &image);
    let wrong = || vec![Change::Write(places.bat, vec![0xff; 4096])];
    let right = || vec![Change::Move(places.bat)];
    // An older entry of this log, after the newer one.
    for older_at in [400 << 10, 0] {
        image.write(&path);
        Log { start: older_at, sequence: 5, ..Log::new(vec![wrong(), wrong()]) }.write(&path, &image, &places);
        Log { start: 200 << 10, sequence: 8, ..Log::new(vec![right()]) }.write(&path, &image, &places);
        assert_replays(&path, &guest, "older");
    }
    // An entry with a higher number, whose tail is not in its own sequence.
    image.write(&path);
    Log { sequence: 5, ..Log::new(vec![right()]) }.write(&path, &image, &places);
    let mut file = fs::read(&path).unwrap();
    let log = places.log.start as usize;
    let stray = [file[log..log + 12].to_vec(), vec![0; 4]].concat();
    let mut entry = [&stray[..], &9u64.to_le_bytes(), &[0; 8], &file[log + 32..log + 64]].concat();
    entry[8..12].copy_from_slice(&4096u32.to_le_bytes());
    entry.resize(4096, 0);
    file[log + (100 << 10)..][..4096].copy_from_slice(&seal(entry));
    fs::write(&path, file).unwrap();
    assert_replays(&path, &guest, "a stray entry");
    // A torn last entry.
    image.write(&path);
    Log { torn: true, ..Log::new(vec![right(), wrong()]) }.write(&path, &image, &places);
    assert_replays(&path, &guest, "torn");
    // Entries of another log where this one would continue.
    image.write(&path);
    Log { sequence: 1, ..Log::new(vec![wrong(), wrong()]) }.write(&path, &image, &places);
    let mut file = fs::read(&path).unwrap();
    let entries = places.log.start as usize..places.log.start as usize + (64 << 10);
    for at in entries.step_by(4096).filter(|at| file[*at..].starts_with(b"loge")).collect::<Vec<_>>() {
        file[at + 40] ^= 1;
        let entry = seal(file[at..at + 8192].to_vec());
        file[at..at + 8192].copy_from_slice(&entry);
    }
    fs::write(&path, file).unwrap();
    Log::new(vec![right()]).write(&path, &image, &places);
    assert_replays(&path, &guest, "another log");
}

#[test]
fn a_log_can_extend_the_file() {
    let dir = TempDir::new();
    let path = dir.join("image.vhdx");
    let (image, places) = dirty(&path, 512);
    // Block 0 is the last one in the file and all zeros. The file ends before it.
    let mut image = image;
    image.blocks[0] = Block::Full(Vec::new());
    image.write(&path);
    let guest = over(Vec::new(), &image);
    let log = Log::new(vec![vec![Change::Move(places.bat)]]);
    let shorten = || File::options().write(true).open(&path).unwrap().set_len(places.len - MIB).unwrap();
    Log { flushed: Some(places.len - MIB), ..log.clone() }.write(&path, &image, &places);
    shorten();
    assert_replays(&path, &guest, "longer by LastFileOffset");
    // Part of the block is in the log.
    image.blocks[0] = Block::Full(vec![(8192, vec![5; 4096])]);
    let guest = over(Vec::new(), &image);
    image.write(&path);
    let moved = Change::Move(places.blocks[0] + 8192);
    let shorter = Some(places.len - MIB);
    Log { flushed: shorter, ..Log::new(vec![vec![moved, Change::Move(places.bat)]]) }.write(&path, &image, &places);
    shorten();
    assert_replays(&path, &guest, "longer by a descriptor");
    // The file was longer when the entry was written, so it is truncated.
    image.write(&path);
    log.write(&path, &image, &places);
    shorten();
    let error = error(&path);
    assert!(matches!(error.kind().as_str(), "out-of-bounds" | "invalid-field"), "{error}");
    assert!(error.to_string().contains("FlushedFileOffset"), "{error}");
}

#[test]
fn logs_without_a_valid_sequence_are_refused() {
    let dir = TempDir::new();
    let path = dir.join("image.vhdx");
    let (image, places) = dirty(&path, 512);
    let entry = || vec![Change::Move(places.bat)];
    let damage = |at: u64, bytes: &[u8]| {
        File::options().write(true).open(&path).unwrap().write_all_at(bytes, places.log.start + at).unwrap();
    };
    for (at, bytes) in [
        (0, b"LOGE"),
        (4, &[1; 4]),
        (8, &[0; 4]),
        (8, &[0xff; 4]),
        (12, &[0xff; 4]),
        (16, &[9; 4]),
        (24, &[0xff; 4]),
        (64, b"DESC"),
        (80, &[1; 4]),
        (88, &[9; 4]),
        (4096, b"DATA"),
        (4100, &[9; 4]),
        (8188, &[9; 4]),
    ] {
        image.write(&path);
        Log::new(vec![entry()]).write(&path, &image, &places);
        crate::support::open_beside(&path).unwrap();
        damage(at, bytes);
        let error = error(&path);
        assert_eq!(error.kind().as_str(), "invalid-field", "{at}: {error}");
        let checked = OpenOptions::new().check(&path);
        assert!(checked.is_err() || checked.is_ok_and(|report| report.corruptions > 0), "{at}");
    }
    // The tail is not in the sequence.
    image.write(&path);
    Log { start: 4096, ..Log::new(vec![entry()]) }.write(&path, &image, &places);
    let mut sector = fs::read(&path).unwrap()[places.log.start as usize + 4096..][..8192].to_vec();
    sector[12..16].fill(0);
    damage(4096, &seal(sector));
    assert_eq!(error(&path).kind().as_str(), "invalid-field");
}

/// What a writer leaves that is killed before its first entry: the header has the GUID of a log without entries.
#[test]
fn a_log_without_entries_is_a_warning() {
    let dir = TempDir::new();
    let path = dir.join("image.vhdx");
    let mut random = Random::new(3);
    let mut image = Vhdx::new(4 * MIB + 4096, MIB, 512);
    image.blocks = (0..5).map(|_| Block::Full(pieces(&mut random, MIB))).collect();
    let guest = over(Vec::new(), &image);
    let places = image.write(&path);
    let old = Log::new(vec![vec![Change::Write(places.bat, vec![0xff; 4096])], vec![]]);
    // The entries of an earlier log, of which parts are overwritten.
    let other_guid = [(40, &[0xee][..]), (8192 + 40, &[0xee])];
    let overwritten = [&other_guid[..], &[(4096, &[0; 4096])]].concat();
    let garbage = [&overwritten[..], &[(16384, b"anything else")]].concat();
    for (what, log, damage, is_read) in [
        ("zeros", &Log::new(Vec::new()), &[][..], true),
        ("another log", &old, &other_guid, true),
        ("another log, overwritten", &old, &overwritten, true),
        ("garbage", &old, &garbage, false),
    ] {
        image.write(&path);
        log.write(&path, &image, &places);
        let file = File::options().write(true).open(&path).unwrap();
        damage.iter().for_each(|(at, bytes)| file.write_all_at(bytes, places.log.start + at).unwrap());
        if !is_read {
            assert_eq!(error(&path).kind().as_str(), "invalid-field", "{what}");
            continue;
        }
        let info = OpenOptions::new().inspect(&path).unwrap().info;
        assert!(info.warnings.iter().any(|warning| warning.contains("there is nothing to replay")), "{what}: {info:?}");
        let report = OpenOptions::new().check(&path).unwrap();
        assert!(report.messages.iter().any(|message| message.contains("nothing to replay")), "{what}: {report:?}");
        assert_replays(&path, &guest, what);
    }
}

#[test]
fn a_log_does_not_change_the_headers_or_itself() {
    let dir = TempDir::new();
    let path = dir.join("image.vhdx");
    let (image, places) = dirty(&path, 512);
    let with = |change: Change| {
        image.write(&path);
        Log::new(vec![vec![Change::Move(places.bat)], vec![change]]).write(&path, &image, &places);
        error(&path).to_string()
    };
    for at in [0, 64 * KIB, 128 * KIB, 188 * KIB] {
        let text = with(Change::Write(at, vec![1; 4096]));
        assert!(text.contains(&format!("FileOffset points to {at:#x}, which overlaps the headers")), "{text}");
    }
    let text = with(Change::Write(places.log.end - 4096, vec![1; 4096]));
    assert!(text.contains("overlaps the log"), "{text}");
    // Region tables are changed through the log, but not to something invalid.
    for at in [192 * KIB, 256 * KIB] {
        let text = with(Change::Write(at, vec![1; 4096]));
        assert!(text.contains(&format!("file offset {at:#x}: Signature is")), "{text}");
    }
}

/// A log in the middle layer of a chain.
#[test]
fn a_log_of_a_backing_file_is_replayed() {
    for seed in 0..4 {
        let dir = TempDir::new();
        let mut random = Random::new(seed + 100);
        let sector_size = SECTORS[seed as usize % 2];
        let size = 5 * MIB + 4096;
        let layers = (0..3).map(|depth| layer(&mut random, size, MIB, sector_size, depth > 0)).collect();
        let chain = chain(&dir, layers);
        let (image, places) = &chain.images[1];
        let mut changes = vec![Change::Move(places.metadata), Change::Move(places.metadata + 64 * KIB)];
        changes.push(Change::Move(places.bat / 4096 * 4096));
        changes.push(Change::Move(places.bitmap_entry(0) / 4096 * 4096));
        if places.bitmaps[0] != 0 {
            changes.push(Change::Move(places.bitmaps[0]));
        }
        Log::new(vec![changes]).write(&chain.paths[1], image, places);
        let before = fs::read(&chain.paths[1]).unwrap();
        assert_reads(chain.top(), &chain.guest, &format!("seed {seed}"));
        assert_same(&fs::read(&chain.paths[1]).unwrap(), &before, "the source");
        let opened = crate::support::open_beside(chain.top()).unwrap();
        let dirty: Vec<_> = opened.layers().map(|info| info.dirty).collect();
        assert_eq!(dirty, [false, true, false], "seed {seed}");
    }
}
