//! Data and holes of a file, with one query for each run of data.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::error::{Error, Result};
use crate::io::ReadAt;

/// The runs of data in a file. What was found is remembered: a file system can take as long to answer a query as to read the
/// data.
pub(crate) struct DataRuns {
    file: Arc<dyn ReadAt>,
    /// Length of the file in bytes.
    len: u64,
    window: Mutex<Window>,
    has_holes: OnceLock<bool>,
}

/// The part of the file that is known.
#[derive(Default)]
struct Window {
    range: Range<u64>,
    /// The runs of data in it, in ascending order, not adjacent.
    runs: Vec<Range<u64>>,
    /// Whether runs before the range have been forgotten.
    moved: bool,
}

impl DataRuns {
    /// Least length of a run. Some file systems answer with an empty run, at the offset that was asked for.
    const UNIT: u64 = 64 << 10;
    /// Largest number of runs that are remembered: 1 MiB of memory.
    const CAPACITY: usize = 64 << 10;

    /// The runs of data in `file`, which has `len` bytes. Nothing is queried yet.
    pub fn new(file: Arc<dyn ReadAt>, len: u64) -> DataRuns {
        DataRuns { file, len, window: Mutex::default(), has_holes: OnceLock::new() }
    }

    /// Whether holes are so much of the file that to look for them costs less than to read them.
    pub fn has_holes(&self) -> bool {
        *self.has_holes.get_or_init(|| match self.file.allocated() {
            Ok(Some(allocated)) => self.len.saturating_sub(allocated) > self.len / 16,
            // The storage cannot tell.
            _ => true,
        })
    }

    /// Whether the byte at `offset` is data, and the offset of the end of its run of data or hole. What is after the end of the file
    /// counts as data, so that reading it fails.
    ///
    /// # Errors
    /// If the storage cannot be queried.
    pub fn run_at(&self, offset: u64) -> Result<(bool, u64)> {
        if offset >= self.len {
            return Ok((true, u64::MAX));
        }
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if offset < window.range.start {
            // From the start of the file, since offsets in descending order would be a query each.
            let start = if window.moved { offset } else { 0 };
            *window = Window { range: start..start, runs: Vec::new(), moved: window.moved };
        } else if window.range.is_empty() {
            window.range = offset..offset;
        }
        while window.range.end <= offset {
            // In a file of more runs than are remembered, what lies between is not looked at: a directory and its copy are asked for in
            // turns, and each would move the window over all runs between them.
            if window.moved && window.range.end < offset {
                *window = Window { range: offset..offset, runs: Vec::new(), moved: true };
            }
            self.extend(&mut window)?;
        }
        let next = window.runs.partition_point(|run| run.end <= offset);
        Ok(match window.runs.get(next) {
            Some(run) if run.start <= offset => (true, run.end),
            Some(run) => (false, run.start),
            None => (false, window.range.end),
        })
    }

    /// Extends the window by the next hole and run of data.
    fn extend(&self, window: &mut Window) -> Result<()> {
        let at = window.range.end;
        let found = self.file.next_data(at).map_err(Error::io("looking for data", at))?;
        let data = found.map_or(self.len..self.len, |run| {
            let start = run.start.clamp(at, self.len);
            let end = if run.end > start { run.end } else { (start / Self::UNIT + 1) * Self::UNIT };
            start..end.min(self.len)
        });
        window.range.end = data.end;
        if data.is_empty() {
            return Ok(());
        }
        let full = window.runs.len() == Self::CAPACITY;
        match window.runs.last_mut() {
            Some(last) if last.end == data.start => last.end = data.end,
            _ if full => *window = Window { range: at..data.end, runs: vec![data], moved: true },
            _ => window.runs.push(data),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;

    const LEN: u64 = 1 << 20;

    /// A file with data in these ranges, in ascending order, that counts queries.
    struct Sparse {
        data: Vec<Range<u64>>,
        queries: AtomicUsize,
    }

    impl ReadAt for Sparse {
        fn size(&self) -> io::Result<u64> {
            Ok(LEN)
        }

        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }

        /// A range that begins before `offset`, as far as there is data.
        fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
            self.queries.fetch_add(1, Ordering::Relaxed);
            Ok(self.data.iter().find(|run| run.end > offset).cloned())
        }
    }

    fn sparse(data: Vec<Range<u64>>) -> (Arc<Sparse>, DataRuns) {
        let file = Arc::new(Sparse { data, queries: AtomicUsize::new(0) });
        (file.clone(), DataRuns::new(file, LEN))
    }

    /// Ranges that do not touch, some of which end after the file.
    fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
        prop::collection::vec((1u64..40_000, 1u64..40_000), 0..40).prop_map(|gaps| {
            let mut at = 0;
            let mut next = |(hole, data)| {
                let start = at + hole;
                at = start + data;
                start..at
            };
            gaps.into_iter().map(&mut next).collect()
        })
    }

    proptest! {
        #[test]
        fn runs_equal_those_of_a_naive_search(data in ranges(), offsets in prop::collection::vec(0..LEN, 1..60)) {
            let (file, runs) = sparse(data.clone());
            for offset in offsets {
                let run = data.iter().find(|run| run.end > offset);
                let expected = match run {
                    Some(run) if run.start <= offset => (true, run.end),
                    Some(run) => (false, run.start),
                    None => (false, LEN),
                };
                prop_assert_eq!(runs.run_at(offset).unwrap(), (expected.0, expected.1.min(LEN)));
            }
            // One for each run, one for the last hole; again for what was skipped at first.
            prop_assert!(file.queries.load(Ordering::Relaxed) <= 2 * (data.len() + 1));
        }
    }

    #[test]
    fn what_follows_the_end_is_data() {
        let (file, runs) = sparse(vec![0..1, 2..LEN + 5]);
        assert_eq!(runs.run_at(LEN - 1).unwrap(), (true, LEN));
        assert_eq!(runs.run_at(LEN).unwrap(), (true, u64::MAX));
        assert_eq!(file.queries.load(Ordering::Relaxed), 1);
    }

    /// As OpenZFS answers in the hole at the end of a file.
    #[test]
    fn an_empty_run_is_data_of_a_whole_unit() {
        struct EmptyRuns;
        impl ReadAt for EmptyRuns {
            fn size(&self) -> io::Result<u64> {
                Ok(LEN)
            }

            fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
                Err(io::ErrorKind::Unsupported.into())
            }

            fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
                Ok(Some(offset..offset))
            }
        }
        let runs = DataRuns::new(Arc::new(EmptyRuns), LEN);
        assert_eq!(runs.run_at(10).unwrap(), (true, DataRuns::UNIT));
        assert_eq!(runs.run_at(LEN - 1).unwrap(), (true, LEN));
    }

    /// Data in every other byte, of a file that counts queries.
    #[derive(Default)]
    struct Stripes(AtomicUsize);

    impl ReadAt for Stripes {
        fn size(&self) -> io::Result<u64> {
            Ok(u64::MAX)
        }

        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let start = offset.next_multiple_of(2);
            Ok(Some(start..start + 1))
        }
    }

    #[test]
    fn memory_is_bounded() {
        let most = DataRuns::CAPACITY as u64;
        let runs = DataRuns::new(Arc::new(Stripes::default()), u64::MAX);
        for offset in [0, 1, 2 * most + 10, 2 * most + 11, 4, 5, 4 * most] {
            assert_eq!(runs.run_at(offset).unwrap(), (offset.is_multiple_of(2), offset + 1), "{offset}");
            assert!(runs.window.lock().unwrap().runs.len() <= DataRuns::CAPACITY);
        }
    }

    /// As for the grain directory of VMDK and its copy.
    #[test]
    fn two_places_asked_for_in_turns_are_a_query_each() {
        let most = DataRuns::CAPACITY as u64;
        let file = Arc::new(Stripes::default());
        let runs = DataRuns::new(file.clone(), u64::MAX);
        for pair in 0..1000 {
            for start in [0, 10 * most] {
                let offset = start + 2 * pair;
                assert_eq!(runs.run_at(offset).unwrap(), (true, offset + 1));
            }
        }
        let queries = file.0.load(Ordering::Relaxed) as u64;
        assert!(queries <= most + 2 * 1000 + 1, "{queries}");
    }
}
