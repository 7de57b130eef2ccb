//! Changes in place on storage that fails: each call in turn, in each way. A new operation is a row of [`OPERATIONS`], a new way to fail
//! one of [`FAULTS`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use diskimage::io::{MemFile, ReadAt, Storage, WriteAt};
use diskimage::{Disk, ErrorKind, OpenOptions, Repair, Result};

use super::model::Start;
use super::starts::{self, SIZE};

/// A change of an image, which may have its effect or not, and the content that it makes of the old one.
struct Operation {
    name: &'static str,
    applies: fn(&Start) -> bool,
    run: fn(&Start, Arc<dyn Storage>) -> Result<()>,
    content: fn(&mut Vec<u8>),
}

/// Opens the disk, changes it and closes it: also after a failure, as a program does that reports it.
fn change(start: &Start, storage: Arc<dyn Storage>, change: impl FnOnce(&Disk) -> Result<()>) -> Result<()> {
    let disk = start.options().open_disk_in(storage)?;
    let changed = change(&disk);
    let closed = disk.close();
    changed.and(closed)
}

fn amend(disk: &Disk, option: &str, value: &str) -> Result<()> {
    let mut options = diskimage::Options::new();
    options.set(option, value);
    disk.amend(&options)
}

const REPAIR: &str = "check -r";
const WRITTEN: std::ops::Range<usize> = 70_000..150_001;

const OPERATIONS: &[Operation] = &[
    Operation {
        name: "write",
        applies: |_| true,
        run: |start, file| change(start, file, |disk| disk.write_all_at(&[7; 80_001], WRITTEN.start as u64)),
        content: |content| content[WRITTEN].fill(7),
    },
    Operation {
        name: "write zeros",
        applies: |_| true,
        run: |start, file| change(start, file, |disk| disk.write_zeros(WRITTEN.start as u64..WRITTEN.end as u64)),
        content: |content| content[WRITTEN].fill(0),
    },
    Operation {
        name: "grow",
        applies: |start| start.resizes,
        run: |start, file| change(start, file, |disk| disk.resize(2 * SIZE)),
        content: |content| content.resize(2 * SIZE as usize, 0),
    },
    Operation {
        name: "shrink",
        applies: |start| start.resizes && start.shrinks,
        run: |start, file| change(start, file, |disk| disk.resize(SIZE / 2)),
        content: |content| content.truncate(SIZE as usize / 2),
    },
    Operation {
        name: "rebase",
        applies: |start| start.backing.is_some() && start.name.starts_with("qcow2"),
        run: |start, file| change(start, file, |disk| disk.rebase(None, &|_, _| ())),
        content: |_| (),
    },
    Operation {
        name: REPAIR,
        applies: |start| start.snapshots && !start.name.contains("refcount_bits"),
        run: |start, file| start.options().repair_storage(file, Repair::All).map(|_| ()),
        content: |_| (),
    },
    Operation {
        name: "snapshot -c",
        applies: |start| start.snapshots,
        run: |start, file| change(start, file, |disk| disk.create_snapshot("one")),
        content: |_| (),
    },
    Operation {
        name: "snapshot -c, -a, -d",
        applies: |start| start.snapshots,
        run: |start, file| {
            change(start, file, |disk| {
                disk.create_snapshot("one")?;
                disk.apply_snapshot("one")?;
                disk.delete_snapshot("one")
            })
        },
        content: |_| (),
    },
    Operation {
        name: "bitmap",
        applies: |start| start.snapshots && !start.name.contains("compat=0.10"),
        run: |start, file| {
            use diskimage::driver::BitmapChange;
            change(start, file, |disk| {
                disk.change_bitmap("marks", BitmapChange::Add { granularity: None, enabled: true })?;
                disk.change_bitmap("marks", BitmapChange::Disable)
            })
        },
        content: |_| (),
    },
    Operation {
        name: "amend compat",
        applies: |start| start.name.starts_with("qcow2") && start.name.contains("compat=0.10"),
        run: |start, file| change(start, file, |disk| amend(disk, "compat", "1.1")),
        content: |_| (),
    },
    Operation {
        name: "amend refcount_bits",
        applies: |start| start.snapshots && !start.name.contains("compat=0.10"),
        run: |start, file| change(start, file, |disk| amend(disk, "refcount_bits", "32")),
        content: |_| (),
    },
];

/// What the chosen call does, and those after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// It fails; the others do not.
    Error,
    /// It fails, and so does every later call that writes.
    Full,
    /// The first half of the sectors are written, and it fails; the others do not.
    Torn,
    /// It fails, and so does every later call.
    Gone,
}

const FAULTS: [Fault; 4] = [Fault::Error, Fault::Full, Fault::Torn, Fault::Gone];

struct Failing {
    file: MemFile,
    fault: Fault,
    fails_at: u64,
    calls: AtomicU64,
}

impl Failing {
    fn new(file: Vec<u8>, fault: Fault, fails_at: u64) -> Arc<Failing> {
        Arc::new(Failing { file: MemFile::from(file), fault, fails_at, calls: AtomicU64::new(0) })
    }

    fn call(&self, writes: bool) -> io::Result<()> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let fails = match self.fault {
            Fault::Error | Fault::Torn => call == self.fails_at,
            Fault::Full => writes && call >= self.fails_at,
            Fault::Gone => call >= self.fails_at,
        };
        match self.fault {
            _ if !fails => Ok(()),
            Fault::Full => Err(io::ErrorKind::StorageFull.into()),
            _ => Err(io::Error::other("injected")),
        }
    }
}

impl ReadAt for Failing {
    fn size(&self) -> io::Result<u64> {
        self.call(false)?;
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.call(false)?;
        self.file.read_at(buf, offset)
    }
}

impl WriteAt for Failing {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.call(true).or_else(|error| {
            let half = ((offset + buf.len() as u64 / 2) & !511).saturating_sub(offset) as usize;
            // No bytes would still make the file longer.
            if self.fault == Fault::Torn && half > 0 {
                self.file.write_all_at(&buf[..half], offset)?;
            }
            Err(error)
        })?;
        self.file.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.call(true)?;
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.call(true)
    }
}

/// Adds a cluster that is allocated, and not used, for a repair to find.
fn leak(file: &mut Vec<u8>) {
    let number = |file: &[u8], at: usize| u64::from_be_bytes(file[at..at + 8].try_into().unwrap()) as usize;
    let cluster_size = 1 << u32::from_be_bytes(file[20..24].try_into().unwrap());
    let clusters = file.len().div_ceil(cluster_size);
    let (counts, table) = (cluster_size / 2, number(file, 48));
    let block = number(file, table + clusters / counts * 8);
    file.resize((clusters + 1) * cluster_size, 9);
    file[block + clusters % counts * 2 + 1] = 1;
}

/// At most two images of each kind: the matrix is large.
fn images() -> Vec<Start> {
    let mut kinds = std::collections::HashMap::new();
    let kind = |start: &Start| {
        let format = start.name.split([' ', ',']).next().unwrap_or_default().to_owned();
        (format, start.backing.is_some(), start.snapshots, start.name.contains("compat=0.10"))
    };
    let mut starts = starts::all();
    starts.retain(|start| {
        let count = kinds.entry(kind(start)).or_insert(0);
        *count += 1;
        *count <= 2
    });
    starts
}

#[test]
fn every_call_of_every_change_can_fail() {
    let mut cases = std::collections::BTreeMap::new();
    for image in images() {
        for operation in OPERATIONS.iter().filter(|operation| (operation.applies)(&image)) {
            let mut start = image.clone();
            if operation.name == REPAIR {
                leak(&mut start.file);
            }
            let mut new = start.content.clone();
            (operation.content)(&mut new);
            let whole = Failing::new(start.file.clone(), Fault::Error, u64::MAX);
            match (operation.run)(&start, whole.clone()) {
                // Not every image can be changed in every way.
                Err(error) if error.kind() == ErrorKind::Unsupported => continue,
                done => done.unwrap_or_else(|error| panic!("{}, {}: {error}", start.name, operation.name)),
            }
            assert!(start.read(whole.file.to_vec()) == new, "{}, {}", start.name, operation.name);
            // There may be nothing but zeros already.
            let is_written = whole.file.to_vec() != start.file || operation.name.starts_with("write");
            assert!(is_written, "{}, {}: nothing is written", start.name, operation.name);
            let calls = whole.calls.load(Ordering::Relaxed);
            for fault in FAULTS {
                let mut seen = start.file.clone();
                for call in 0..calls {
                    let file = Failing::new(start.file.clone(), fault, call);
                    let result = (operation.run)(&start, file.clone());
                    let context = format!("{}, {}, {fault:?} at call {call} of {calls}", start.name, operation.name);
                    if fault == Fault::Gone {
                        assert!(result.is_err(), "{context}: a failure is not reported");
                    }
                    *cases.entry(operation.name).or_insert(0) += 1;
                    let bytes = file.file.to_vec();
                    if bytes != seen {
                        check(&start, &new, &bytes, result.is_ok(), &context);
                        seen = bytes;
                    }
                }
            }
        }
    }
    assert_eq!(cases.len(), OPERATIONS.len(), "{cases:?}");
    eprintln!("cases: {cases:?}");
}

/// The image opens; its sectors are old or new, and the new ones after a success; nothing but leaks is found in it, also after
/// another write.
fn check(start: &Start, new: &[u8], file: &[u8], is_done: bool, context: &str) {
    let found = start.read(file.to_vec());
    let old = &start.content;
    assert!([old.len(), new.len()].contains(&found.len()), "{context}: the size is {}", found.len());
    assert!(!is_done || found == new, "{context}: success, but not the new content");
    let sector = |content: &[u8], at: usize, len: usize| {
        let mut sector = content.get(at..content.len().min(at + len)).unwrap_or_default().to_vec();
        sector.resize(len, 0);
        sector
    };
    for (index, now) in found.chunks(512).enumerate() {
        let is_known = [old, new].iter().any(|content| sector(content, index * 512, now.len()) == now);
        assert!(is_known, "{context}: sector {index} is neither old nor new");
    }
    let assert_consistent = |file: &[u8], context: &str| {
        if let Ok(report) = OpenOptions::new().check_source(Arc::new(MemFile::from(file.to_vec()))) {
            assert_eq!((report.corruptions, report.check_errors), (0, 0), "{context}: {:?}", report.messages);
        }
    };
    assert_consistent(file, context);
    let context = format!("{context}, and a write");
    let again = Arc::new(MemFile::from(file.to_vec()));
    change(start, again.clone(), |disk| disk.write_all_at(&[8; 1000], 200_000))
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    let mut expected = found;
    expected[200_000..201_000].fill(8);
    let again = again.to_vec();
    assert!(start.read(again.clone()) == expected, "{context}: other content");
    assert_consistent(&again, &context);
}
