//! Files in a temporary directory.

use std::fs;
use std::ops::Range;
#[cfg(unix)]
use std::{os::unix::fs::symlink, process::Command};

use super::source::{read_sectors, run_of_data};
use super::target::punch;
use super::*;
use crate::io::{ReadAt, WriteAt};
use crate::testing::TempDir;

const KIB: u64 = 1 << 10;

#[test]
fn holes_are_found_exactly() {
    let dir = TempDir::new();
    let path = dir.join("sparse");
    let file = FileTarget::create_new(&path).unwrap();
    file.set_len(1024 * KIB).unwrap();
    file.write_all_at(&[1; 128 << 10], 256 * KIB).unwrap();
    file.write_all_at(&[1; 64 << 10], 960 * KIB).unwrap();
    file.close().unwrap();
    let source = FileSource::open(&path).unwrap();
    assert_eq!(source.size().unwrap(), 1024 * KIB);
    assert_eq!((source.next_data(1024 * KIB).unwrap(), source.next_data(u64::MAX).unwrap()), (None, None));
    if source.next_data(0).unwrap() == Some(0..1024 * KIB) {
        eprintln!("SKIPPED: the file system of {} does not tell holes", dir.path().display());
        return;
    }
    for (from, run) in [(0, 256..384), (256 * KIB, 256..384), (384 * KIB, 960..1024), (1024 * KIB - 1, 960..1024)] {
        let run = (run.start * KIB).max(from)..run.end * KIB;
        assert_eq!(source.next_data(from).unwrap(), Some(run), "{from}");
    }
    let allocated = source.allocated().unwrap();
    assert!((192 * KIB..512 * KIB).contains(&allocated), "{allocated}");
    // The file ends in a hole.
    let target = FileTarget::create_new(&dir.join("tail")).unwrap();
    target.write_all_at(&[1; 100], 0).unwrap();
    target.set_len(1024 * KIB).unwrap();
    let source = FileSource::open(&dir.join("tail")).unwrap();
    assert_eq!(source.next_data(512 * KIB).unwrap(), None);
}

#[test]
fn an_answer_without_a_run_of_data_means_data_up_to_the_end() {
    let run = |answer, offset| run_of_data(answer, offset, || Ok(1000)).unwrap();
    assert_eq!(run(Ok(None), 10), None);
    assert_eq!(run(Ok(Some(20..30)), 10), Some(20..30));
    // Before the offset, at it, and after it.
    assert_eq!(run(Ok(Some(0..30)), 10), Some(10..30));
    for empty in [10..10, 0..10, 0..5] {
        assert_eq!(run(Ok(Some(empty.clone())), 10), Some(10..1000), "{empty:?}");
    }
    assert_eq!(run(Ok(Some(20..20)), 10), Some(20..1000));
    for error in [io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported, io::ErrorKind::Other] {
        assert_eq!(run(Err(error.into()), 10), Some(10..1000), "{error}");
        assert_eq!(run(Err(error.into()), 1000), None, "{error}");
    }
    assert_eq!(run(Ok(Some(1000..1000)), 1000), None);
}

#[test]
fn whole_blocks_are_punched_where_not_every_range_can_be() {
    let punched = |range: Range<u64>, unit: u64, block: io::Result<u64>| {
        let aligned = |range: &Range<u64>| range.start.is_multiple_of(unit) && range.end.is_multiple_of(unit);
        punch(&range, || block, |range| if aligned(range) { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) })
    };
    let block = || Ok(4096);
    assert_eq!(punched(512..99_840, 512, block()), 512..99_840);
    assert_eq!(punched(512..99_840, 4096, block()), 4096..98_304);
    assert_eq!(punched(4096..99_840, 4096, block()), 4096..98_304);
    assert_eq!(punched(8192..16_384, 4096, block()), 8192..16_384);
    // Less than a block, an unknown block size, a wrong one, and no holes at all.
    for (range, unit, block) in [
        (512..4096, 4096, block()),
        (4608..8704, 4096, block()),
        (512..99_840, 4096, Err(io::ErrorKind::Unsupported.into())),
        (512..99_840, 8192, block()),
        (512..99_840, 4096, Ok(0)),
    ] {
        assert!(punched(range, unit, block).is_empty());
    }
    let refused = |_: &Range<u64>| Err(io::ErrorKind::Unsupported.into());
    assert!(punch(&(0..8192), || unreachable!("nothing can be punched"), refused).is_empty());
}

#[cfg(unix)]
#[test]
fn only_files_and_devices_are_opened_without_blocking() {
    let dir = TempDir::new();
    let fifo = dir.join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for path in [&*fifo, dir.path(), Path::new("/dev/null")] {
        for opened in [FileSource::open(path), FileSource::open_nofollow(path)] {
            assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::InvalidInput, "{}", path.display());
        }
    }
    assert_eq!(FileSource::open(&dir.join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[cfg(unix)]
#[test]
fn links_are_followed_unless_that_is_refused() {
    let dir = TempDir::new();
    let file = dir.file("file", b"content");
    let link = dir.join("link");
    symlink("file", &link).unwrap();
    assert_eq!(FileSource::open(&link).unwrap().size().unwrap(), 7);
    assert_eq!(FileSource::open_nofollow(&file).unwrap().size().unwrap(), 7);
    let error = FileSource::open_nofollow(&link).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::LOOP.raw_os_error()), "{error}");
}

#[test]
fn a_file_is_known_by_all_its_names() {
    let dir = TempDir::new();
    let (one, other) = (dir.file("one", b"same"), dir.file("other", b"same"));
    fs::hard_link(&one, dir.join("again")).unwrap();
    let identity = |path: &Path| FileSource::open(path).unwrap().identity().unwrap();
    assert_eq!(identity(&one), identity(&dir.join("again")));
    #[cfg(unix)]
    {
        symlink("one", dir.join("link")).unwrap();
        assert_eq!(identity(&one), identity(&dir.join("link")));
    }
    assert_ne!(identity(&one), identity(&other));
}

#[test]
fn a_target_is_new_or_a_device() {
    let dir = TempDir::new();
    let file = dir.file("file", b"content");
    assert_eq!(FileTarget::create_new(&file).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    let expected = if cfg!(unix) { io::ErrorKind::InvalidInput } else { io::ErrorKind::Unsupported };
    assert_eq!(FileTarget::open_device(&file).unwrap_err().kind(), expected);
    assert_eq!(fs::read(&file).unwrap(), b"content");
}

#[test]
fn zeros_and_space() {
    let dir = TempDir::new();
    let path = dir.join("new");
    let file = FileTarget::create_new(&path).unwrap();
    file.write_all_at(&[7; 3000], 0).unwrap();
    file.zero_range(100..2900).unwrap();
    file.zero_range(5..5).unwrap();
    file.sync().unwrap();
    let expected = [[7; 100].as_slice(), &[0; 2800], &[7; 100]].concat();
    assert_eq!(fs::read(&path).unwrap(), expected);
    file.set_len(1024 * KIB).unwrap();
    file.allocate(4 * KIB..1024 * KIB).unwrap();
    file.allocate(0..0).unwrap();
    let allocated = FileSource::open(&path).unwrap().allocated().unwrap();
    assert!(allocated >= 1024 * KIB, "{allocated}");
    assert_eq!(fs::read(&path).unwrap()[..3000], expected);
}

#[test]
fn an_open_file_is_read_and_written_at_offsets() {
    let dir = TempDir::new();
    let path = dir.join("file");
    let options = || fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let file = options().unwrap();
    let target: &dyn WriteAt = &file;
    assert!(target.starts_zeroed() && target.seeks());
    target.set_len(1 << 20).unwrap();
    target.write_all_at(b"data", 4096).unwrap();
    target.zero_range(4097..4099).unwrap();
    target.allocate(8192..16384).unwrap();
    target.sync().unwrap();
    let source: &dyn ReadAt = &file;
    let mut buf = [9; 6];
    source.read_exact_at(&mut buf, 4095).unwrap();
    assert_eq!((source.size().unwrap(), &buf), (1 << 20, b"\0d\0\0a\0"));
    assert!(source.next_data(4096).unwrap().unwrap().contains(&4096));
    let source = FileSource::try_from(options().unwrap()).unwrap();
    assert_eq!(source.identity().unwrap(), FileIdentity::from_file(&file).unwrap());
}

#[test]
fn a_device_of_sectors_is_read_at_any_offset() {
    let dir = TempDir::new();
    let bytes: Vec<u8> = (0..(2 << 20) + 1024_u32).map(|i| (i % 251) as u8).collect();
    let file = File::open(dir.file("disk", &bytes)).unwrap();
    for offset in [0, 1, 511, 512, 513, 1 << 20, (2 << 20) + 1023, (2 << 20) + 1024, 3 << 20] {
        for len in [0, 1, 511, 512, 513, 4096, 2 << 20] {
            let rest = bytes.get(offset..).unwrap_or_default();
            let mut buf = vec![0; len];
            let n = read_sectors(&file, 512, &mut buf, offset as u64).unwrap();
            assert_eq!(n == 0, len.min(rest.len()) == 0, "{offset} {len}");
            assert!(buf[..n] == rest[..n], "{offset} {len}");
        }
    }
}
