//! Power cuts at every point between two events of the storage.

use std::sync::Arc;

use diskimage::OpenOptions;
use diskimage::io::MemFile;

use super::model::{Model, Step};
use super::starts;

/// The content after an operation, and the number of events until its end.
pub struct State {
    pub events: usize,
    pub content: Vec<u8>,
    pub step: Step,
}

#[test]
fn a_power_cut_leaves_old_or_new_sectors_and_leaks_at_most() {
    for start in starts::all() {
        for seed in super::seeds(1) {
            let mut model = Model::new(&start, seed);
            let mut states = vec![State { events: 0, content: model.content.clone(), step: Step::Flushed }];
            for _ in 0..40 {
                let step = model.step();
                states.push(State { events: model.file.count(), content: model.content.clone(), step });
            }
            model.file.replay(seed, |events, cut, file| {
                // The operation under way, and the last flush before.
                let now = states.iter().position(|state| state.events >= events).unwrap_or(states.len() - 1);
                let before = &states[..now];
                let flushed = before.iter().rposition(|state| state.step != Step::Changed).unwrap_or(0);
                let possible = &states[flushed..=now];
                let context = || format!("{}, seed {seed}, {events} events, {cut:?}", start.name);
                start.check_snapshots(&file, &model.snapshots);
                check_content(&start.read(file.clone()), possible, &context);
                if let Ok(report) = OpenOptions::new().check_source(Arc::new(MemFile::from(file))) {
                    assert_eq!(
                        (report.corruptions, report.check_errors),
                        (0, 0),
                        "{}: {:?}",
                        context(),
                        report.messages
                    );
                }
            });
        }
    }
}

/// Each sector must be that of one of the states.
pub fn check_content(found: &[u8], possible: &[State], context: &dyn Fn() -> String) {
    let sizes = possible.iter().any(|state| state.content.len() == found.len());
    assert!(sizes, "{}: the size is {}", context(), found.len());
    for (index, sector) in found.chunks(512).enumerate() {
        let at = index * 512;
        let is_known = possible.iter().any(|state| {
            let old = state.content.get(at..(at + sector.len()).min(state.content.len())).unwrap_or_default();
            // What a larger disk has more of is zeros.
            sector.starts_with(old) && sector[old.len()..].iter().all(|byte| *byte == 0)
        });
        assert!(is_known, "{}: sector {index} is neither old nor new", context());
    }
}

/// A change of the whole image, which must be there or not.
#[cfg(feature = "qcow2")]
type Change = (&'static str, fn(&diskimage::Disk) -> diskimage::Result<()>);

/// Changes of the header and of all tables: after a power cut the content is the same, and no structure contradicts another.
#[cfg(feature = "qcow2")]
#[test]
fn a_power_cut_during_a_change_of_the_image_is_not_seen() {
    use diskimage::driver::BitmapChange;
    use diskimage::{Name, Options};
    fn amend(disk: &diskimage::Disk, option: &str, value: &str) -> diskimage::Result<()> {
        let mut options = Options::new();
        options.set(option, value);
        disk.amend(&options)
    }
    let changes: [Change; 9] = [
        ("bitmap", |disk| {
            let add = BitmapChange::Add { granularity: None, enabled: true };
            for change in [add, BitmapChange::Disable, BitmapChange::Clear, BitmapChange::Remove] {
                disk.change_bitmap("marks", change)?;
                disk.change_bitmap("others", add).or_else(|error| match error.kind() {
                    diskimage::ErrorKind::Usage => Ok(()),
                    _ => Err(error),
                })?;
            }
            Ok(())
        }),
        ("rebase -u", |disk| disk.set_backing(Some(&Name::from("a longer name")), Some(diskimage::Format::RAW))),
        ("amend to version 2", |disk| amend(disk, "compat", "0.10")),
        ("amend to version 3", |disk| amend(disk, "compat", "1.1")),
        ("amend lazy_refcounts", |disk| amend(disk, "lazy_refcounts", "on")),
        ("amend refcount_bits", |disk| ["64", "2", "8"].iter().try_for_each(|bits| amend(disk, "refcount_bits", bits))),
        ("snapshot -c", |disk| disk.create_snapshot("one")),
        ("snapshot -c, -d", |disk| disk.create_snapshot("one").and_then(|()| disk.delete_snapshot("one"))),
        ("snapshot -c, -a", |disk| disk.create_snapshot("one").and_then(|()| disk.apply_snapshot("one"))),
    ];
    for start in starts::all().into_iter().filter(|start| start.snapshots) {
        for (name, change) in changes {
            // Holes of the image itself would show another backing file.
            if name == "rebase -u" && start.backing.is_none() {
                continue;
            }
            let file = Arc::new(super::recorder::Recorder::new(start.file.clone()));
            let storage: Arc<dyn diskimage::io::Storage> = file.clone();
            let disk = start.options().open_disk_in(storage).unwrap();
            match change(&disk) {
                // Not every image can have every feature.
                Err(error) if error.kind() == diskimage::ErrorKind::Unsupported => {}
                changed => changed.unwrap(),
            }
            disk.close().unwrap();
            file.replay(1, |events, cut, file| {
                let context = || format!("{}, {name}, {events} events, {cut:?}", start.name);
                assert!(start.read(file.clone()) == start.content, "{}", context());
                let report = OpenOptions::new().check_source(Arc::new(MemFile::from(file))).unwrap();
                assert_eq!((report.corruptions, report.check_errors), (0, 0), "{}: {:?}", context(), report.messages);
            });
        }
    }
}
