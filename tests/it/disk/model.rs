//! A disk beside a plain array: random operations, which both must answer alike.

use std::sync::Arc;

use diskimage::io::{MemFile, ReadAt, Storage};
use diskimage::{Disk, OpenOptions, ReferencePolicy, Secret};

use super::recorder::Recorder;
use super::starts::SECRET;
use crate::support::Random;

/// An image to start with.
#[derive(Clone)]
pub struct Start {
    pub name: String,
    pub file: Vec<u8>,
    pub backing: Option<Vec<u8>>,
    /// The guest data.
    pub content: Vec<u8>,
    /// Whether the size can be changed.
    pub resizes: bool,
    /// Whether the disk can become smaller.
    pub shrinks: bool,
    /// Whether it has internal snapshots.
    pub snapshots: bool,
}

impl Start {
    /// How the image is opened.
    pub fn options(&self) -> OpenOptions {
        let options = OpenOptions::new().secret(Secret::new(SECRET));
        match &self.backing {
            None => options,
            Some(bytes) => {
                let backing: Arc<dyn ReadAt> = Arc::new(MemFile::from(bytes.clone()));
                options.reference_policy(ReferencePolicy::Any).resolver(move |_| Ok(backing.clone()))
            }
        }
    }

    /// The guest data of an image file.
    pub fn read(&self, file: Vec<u8>) -> Vec<u8> {
        let image = self.options().open_source(Arc::new(MemFile::from(file))).unwrap();
        let mut content = vec![0; image.virtual_size() as usize];
        image.read_exact_at(&mut content, 0).unwrap();
        content
    }

    /// Checks the contents of the snapshots that an image file lists.
    pub fn check_snapshots(&self, file: &[u8], known: &[Snapshot]) {
        let source = Arc::new(MemFile::from(file.to_vec()));
        for listed in self.options().inspect_source(source.clone()).unwrap().info.snapshots {
            let name = listed.name.to_string();
            let snapshot = known.iter().find(|snapshot| snapshot.name == name).unwrap();
            let image = self.options().snapshot(name).open_source(source.clone()).unwrap();
            let mut content = vec![0; image.virtual_size() as usize];
            image.read_exact_at(&mut content, 0).unwrap();
            assert!(content == snapshot.content, "{}: {} differs", self.name, snapshot.name);
        }
    }
}

/// A disk and what it must contain.
pub struct Model {
    pub start: Start,
    pub file: Arc<Recorder>,
    disk: Option<Disk>,
    pub content: Vec<u8>,
    /// All snapshots that were ever made, by name.
    pub snapshots: Vec<Snapshot>,
    random: Random,
}

/// A snapshot and its content.
#[derive(Clone)]
pub struct Snapshot {
    pub name: String,
    pub content: Vec<u8>,
    is_deleted: bool,
}

/// What a step has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Changed,
    Resized,
    Flushed,
}

impl Model {
    pub fn new(start: &Start, seed: u64) -> Model {
        let file = Arc::new(Recorder::new(start.file.clone()));
        let content = start.content.clone();
        let mut model =
            Model { start: start.clone(), file, disk: None, content, snapshots: Vec::new(), random: Random::new(seed) };
        model.open();
        model
    }

    fn open(&mut self) {
        let storage: Arc<dyn Storage> = self.file.clone();
        self.disk = Some(self.start.options().open_disk_in(storage).unwrap());
    }

    fn disk(&self) -> &Disk {
        self.disk.as_ref().unwrap()
    }

    /// Does something at random.
    pub fn step(&mut self) -> Step {
        let range = self.range();
        let (from, to) = (range.start as usize, range.end as usize);
        match self.random.below(40) {
            0..18 => {
                let bytes = self.random.bytes(to - from);
                self.disk().write_all_at(&bytes, range.start).unwrap();
                self.content[from..to].copy_from_slice(&bytes);
            }
            18..24 => {
                self.disk().write_zeros(range).unwrap();
                self.content[from..to].fill(0);
            }
            24..29 => {
                self.disk().discard(range).unwrap();
                let mut now = vec![9; to - from];
                self.disk().read_exact_at(&mut now, from as u64).unwrap();
                for (new, old) in now.iter().zip(&mut self.content[from..to]) {
                    assert!(new == old || *new == 0, "{}: discarded {from}..{to}", self.start.name);
                    *old = *new;
                }
            }
            29..34 => {
                let mut bytes = vec![9; to - from];
                self.disk().read_exact_at(&mut bytes, range.start).unwrap();
                assert!(bytes == self.content[from..to], "{}: {from}..{to}", self.start.name);
            }
            34 | 35 if self.start.resizes => {
                let size = (self.content.len() as u64 / 2 + self.random.below(self.content.len() as u64)) & !511;
                let least = if self.start.shrinks { 4096 } else { self.content.len() as u64 };
                let size = size.clamp(least, 4 << 20);
                self.disk().resize(size).unwrap();
                assert_eq!(self.disk().size(), size);
                self.content.resize(size as usize, 0);
                return Step::Resized;
            }
            36 | 37 if self.start.snapshots => return self.change_snapshots(),
            36 => {
                self.disk.take().unwrap().close().unwrap();
                self.check();
                self.open();
                return Step::Flushed;
            }
            _ => {
                self.disk().flush().unwrap();
                self.check();
                return Step::Flushed;
            }
        }
        Step::Changed
    }

    /// Makes a snapshot, or goes back to one, or deletes one.
    fn change_snapshots(&mut self) -> Step {
        let present: Vec<usize> =
            (0..self.snapshots.len()).filter(|index| !self.snapshots[*index].is_deleted).collect();
        let chosen = present.get(self.random.below(4) as usize).copied();
        match (self.random.below(3), chosen) {
            (0, Some(index)) => {
                self.disk().apply_snapshot(&self.snapshots[index].name).unwrap();
                self.content = self.snapshots[index].content.clone();
                return Step::Resized;
            }
            (1, Some(index)) => {
                self.disk().delete_snapshot(&self.snapshots[index].name).unwrap();
                self.snapshots[index].is_deleted = true;
            }
            _ => {
                let name = format!("snapshot {}", self.snapshots.len());
                self.disk().create_snapshot(&name).unwrap();
                self.snapshots.push(Snapshot { name, content: self.content.clone(), is_deleted: false });
            }
        }
        self.check();
        Step::Flushed
    }

    /// Checks what others see of the image after a flush.
    fn check(&self) {
        let file = self.file.to_vec();
        let found = self.start.read(file.clone());
        assert_eq!(found.len(), self.content.len(), "{}", self.start.name);
        let wrong = found.iter().zip(&self.content).position(|(found, expected)| found != expected);
        assert_eq!(wrong, None, "{}: wrong content", self.start.name);
        self.start.check_snapshots(&file, &self.snapshots);
        let listed = self.disk.as_ref().map(|disk| disk.info().snapshots.len());
        let present = self.snapshots.iter().filter(|snapshot| !snapshot.is_deleted).count();
        assert!(listed.is_none_or(|listed| listed == present), "{}: {listed:?}", self.start.name);
        if let Ok(report) = OpenOptions::new().check_source(Arc::new(MemFile::from(file))) {
            let counts = (report.corruptions, report.leaks, report.check_errors);
            assert_eq!(counts, (0, 0, 0), "{}: {:?}", self.start.name, report.messages);
        }
    }

    /// A range of the disk: often short, sometimes aligned, now and then up to the end.
    fn range(&mut self) -> std::ops::Range<u64> {
        let size = self.content.len() as u64;
        let longest = [100, 5000, 70_000, size][self.random.below(4) as usize].min(size);
        let (mut start, len) = (self.random.below(size), self.random.below(longest) + 1);
        let mut end = (start + len).min(size);
        if self.random.below(3) == 0 {
            let unit = [512, 4096, 65536][self.random.below(3) as usize];
            start -= start % unit;
            end = end.next_multiple_of(unit).min(size);
        }
        start..end
    }
}
