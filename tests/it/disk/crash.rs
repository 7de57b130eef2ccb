//! Power cuts at every point between two events of the storage.

use std::sync::Arc;

use diskimage::OpenOptions;
use diskimage::io::MemFile;

use super::model::{Model, Step};
use super::starts;

/// The content after an operation, and the number of events until its end.
struct State {
    events: usize,
    content: Vec<u8>,
    step: Step,
}

#[test]
fn a_power_cut_leaves_old_or_new_sectors_and_leaks_at_most() {
    for start in starts::all() {
        for seed in 0..super::rounds(1) {
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
fn check_content(found: &[u8], possible: &[State], context: &dyn Fn() -> String) {
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
