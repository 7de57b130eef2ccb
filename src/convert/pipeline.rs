//! The worker threads. Each takes a work range, loads it, places it in its turn, and writes it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

#[cfg(feature = "hash")]
use super::hashing::Hashing;
use super::load::{Item, ItemKind, Loaded, Loader};
use super::plan::{Planner, Work};
use super::reflink::SystemFile;
use super::{Converter, Job, Progress, Report};
use crate::driver::{Placement, SparseWrite};
use crate::error::{Error, Result};
use crate::io::{self, WriteAt};

/// The digests of a conversion, as far as the job has them.
#[derive(Default)]
pub(super) struct Sums {
    /// Of what was stored.
    pub digest: u128,
    /// Of the contents.
    pub content: u128,
}

/// Converts all guest data of the job, and returns its digests. The caller finishes the writer.
pub(super) fn run(
    job: &Job<'_>,
    settings: &Converter,
    out: &dyn WriteAt,
    writer: &mut dyn SparseWrite,
    report: &mut Report,
) -> Result<Sums> {
    let planner = Planner::new(job, settings)?;
    let pipeline = Pipeline {
        job,
        out,
        settings,
        total: planner.total(),
        planner: Mutex::new(planner),
        turn: Mutex::new(Turn { seq: 0, writer, report, sums: Sums::default(), failure: None, abandoned: false }),
        next_turn: Condvar::new(),
        reported: Mutex::default(),
        cloned: AtomicU64::new(0),
        #[cfg(feature = "hash")]
        hashing: Hashing::new(job.hashes, job.source.virtual_size()),
    };
    thread::scope(|scope| {
        // Fewer threads give the same result, and little data is converted before a thread has started.
        let useful = usize::try_from(pipeline.total.div_ceil(job.chunk_size())).unwrap_or(usize::MAX);
        for _ in 1..most_threads(io::address_space()).min(settings.threads).min(useful) {
            if thread::Builder::new().spawn_scoped(scope, || pipeline.work()).is_err() {
                break;
            }
        }
        pipeline.work();
    });
    if let Some((_, error)) = lock(&pipeline.turn).failure.take() {
        return Err(error);
    }
    pipeline.report(pipeline.total);
    // At the end of the disk, and after the last work range.
    let (unreadable, doubtful) = {
        let mut planner = lock(&pipeline.planner);
        (planner.take_unreadable(), planner.take_doubtful())
    };
    let turn = &mut *lock(&pipeline.turn);
    unreadable.into_iter().for_each(|lost| turn.report.unreadable.add(lost));
    turn.report.doubtful = doubtful;
    turn.report.cloned_bytes = pipeline.cloned.load(Ordering::Relaxed);
    turn.report.written_bytes -= turn.report.cloned_bytes;
    #[cfg(feature = "hash")]
    {
        turn.report.digests = pipeline.hashing.finish();
    }
    Ok(std::mem::take(&mut turn.sums))
}

/// The number of threads that fit into a limit of address space.
///
/// An allocation that fails ends the process. The allocator of glibc reserves 64 MiB for each thread, and 128 MiB for a moment to
/// align them, so that many threads under a limit (`ulimit -v`) leave nothing for the memory itself.
fn most_threads(address_space: Option<u64>) -> usize {
    /// Of a thread, and of the rest of the process.
    const SHARE: u64 = 128 << 20;
    address_space
        .map_or(usize::MAX, |bytes| usize::try_from(bytes / SHARE).unwrap_or(usize::MAX).saturating_sub(1).max(1))
}

struct Pipeline<'a> {
    job: &'a Job<'a>,
    out: &'a dyn WriteAt,
    settings: &'a Converter,
    planner: Mutex<Planner<'a>>,
    turn: Mutex<Turn<'a>>,
    next_turn: Condvar,
    /// How much there is to do, as the planner counts it.
    total: u64,
    /// The last reported progress in bytes.
    reported: Mutex<u64>,
    /// Bytes that share the blocks of the source.
    cloned: AtomicU64,
    #[cfg(feature = "hash")]
    hashing: Hashing,
}

/// State of the thread whose turn it is.
struct Turn<'a> {
    /// Sequence number of the work range to be placed next.
    seq: u64,
    writer: &'a mut dyn SparseWrite,
    report: &'a mut Report,
    /// The digests of what has been placed.
    sums: Sums,
    /// The failure of the earliest work range, so that an image fails in the same way each time.
    failure: Option<(u64, Error)>,
    /// Whether a thread panicked, so that its turn never comes.
    abandoned: bool,
}

/// A contiguous write of one or more placements.
struct Write {
    out: Arc<dyn WriteAt>,
    offset: u64,
    source: Source,
}

/// The bytes of a write.
enum Source {
    /// Metadata between blocks.
    Metadata(Vec<u8>),
    /// Uncompressed data of a guest range.
    Data(Range<u64>),
    /// A range of the buffer of encoded blocks.
    Encoded(Range<usize>),
    /// A guest range whose data is in a file of the source, from a byte on.
    Cloned(Range<u64>, SystemFile, u64),
}

impl Pipeline<'_> {
    /// The loop of each thread, which ends with the disk or after a failure.
    fn work(&self) {
        let _abandon = Abandon(self);
        let mut loader = match Loader::new(self.job) {
            Ok(loader) => loader,
            Err(error) => return self.fail(u64::MAX, error),
        };
        let mut writes = Vec::new();
        while let Some(work) = self.take() {
            let loaded = if self.settings.is_cancelled() { Err(Error::Cancelled) } else { loader.load(&work) };
            let loaded = loaded.and_then(|loaded| self.limit_rate(loader.items()).map(|()| loaded));
            // The turn is taken after a failure too, since later work ranges wait for it.
            let placed = self.place(&work, loaded, loader.items(), &mut writes);
            let done = placed && self.write(&work, &mut loader, &writes) && self.hash(&work, &loader);
            if !done {
                return self.stop_hashing();
            }
        }
    }

    #[cfg(feature = "hash")]
    fn hash(&self, work: &Work, loader: &Loader<'_>) -> bool {
        self.job.hashes.is_empty() || self.hashing.add(work.seq, work.range.start, loader.contents(work))
    }

    #[cfg(not(feature = "hash"))]
    fn hash(&self, _work: &Work, _loader: &Loader<'_>) -> bool {
        true
    }

    /// Releases the other threads, since the turn of a later work range never comes.
    fn stop_hashing(&self) {
        #[cfg(feature = "hash")]
        self.hashing.stop();
    }

    fn take(&self) -> Option<Work> {
        let mut planner = lock(&self.planner);
        let turn = lock(&self.turn);
        if turn.failure.is_some() || turn.abandoned {
            return None;
        }
        drop(turn);
        match planner.next() {
            Ok(work) => work,
            Err(error) => {
                self.fail(u64::MAX, error);
                None
            }
        }
    }

    /// Waits until the data of these items may be written.
    fn limit_rate(&self, items: &[Item]) -> Result<()> {
        let Some(rate) = &self.settings.rate else { return Ok(()) };
        let data = items.iter().filter(|item| item.kind != ItemKind::Zero);
        rate.pass(data.map(|item| item.guest.end - item.guest.start).sum(), || {
            let turn = lock(&self.turn);
            self.settings.is_cancelled() || turn.failure.is_some() || turn.abandoned
        });
        if self.settings.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Waits for the turn of the work range, and places its items.
    fn place(&self, work: &Work, loaded: Result<Loaded>, items: &[Item], writes: &mut Vec<Write>) -> bool {
        let mut turn = lock(&self.turn);
        while turn.seq != work.seq && !turn.abandoned {
            turn = self.next_turn.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
        let result = match loaded {
            Ok(loaded) if turn.failure.is_none() && !turn.abandoned => {
                turn.sums.digest = turn.sums.digest.wrapping_add(loaded.digest);
                turn.sums.content = turn.sums.content.wrapping_add(loaded.content);
                loaded.unreadable.into_iter().for_each(|lost| turn.report.unreadable.add(lost));
                turn.place(items, writes).map_err(|e| e.in_file_at(self.job.target))
            }
            other => other.map(drop),
        };
        turn.seq += 1;
        let failed = turn.failure.is_some() || turn.abandoned || result.is_err();
        turn.note(work.seq, result);
        drop(turn);
        self.next_turn.notify_all();
        if !failed {
            self.report(work.done);
        }
        !failed
    }

    /// Reports progress, in ascending order.
    fn report(&self, done: u64) {
        if let Some(progress) = &self.settings.progress {
            let mut reported = lock(&self.reported);
            if done > *reported {
                *reported = done;
                progress(Progress { done, total: self.total });
            }
        }
    }

    fn write(&self, work: &Work, loader: &mut Loader<'_>, writes: &[Write]) -> bool {
        for Write { out, offset, source } in writes {
            let bytes = match source {
                Source::Metadata(bytes) => Ok(&bytes[..]),
                Source::Data(guest) => Ok(loader.data(work.range.start, guest)),
                Source::Encoded(bytes) => Ok(loader.encoded(bytes)),
                Source::Cloned(guest, file, from) => match self.clone(&**out, *offset, guest, *file, *from) {
                    Ok(true) => continue,
                    Ok(false) => loader.load_instead(work, guest),
                    Err(error) => Err(error.in_file_at(out.path().or(self.job.target))),
                },
            };
            let written = bytes.and_then(|bytes| {
                out.write_all_at(bytes, *offset).map_err(|e| {
                    let error = Error::io(format!("writing {} bytes", bytes.len()), *offset)(e);
                    error.in_file_at(out.path().or(self.job.target)).in_guest(work.range.clone())
                })
            });
            if let Err(error) = written {
                self.fail(work.seq, error);
                return false;
            }
        }
        true
    }

    /// Whether `guest` shares the blocks of the source now. Where the file system does not do it after all, it is copied.
    fn clone(&self, out: &dyn WriteAt, offset: u64, guest: &Range<u64>, file: SystemFile, from: u64) -> Result<bool> {
        let Some((reflinks, source)) = self.job.reflinks.as_ref().and_then(|all| Some((all, all.file(file)?))) else {
            return Ok(false);
        };
        let len = guest.end - guest.start;
        match out.clone_range(source, from, offset..offset + len) {
            Ok(()) => {
                self.cloned.fetch_add(len, Ordering::Relaxed);
                Ok(true)
            }
            Err(error) if reflinks.always => Err(Error::io(format!("sharing {len} bytes"), offset)(error)),
            Err(_) => Ok(false),
        }
    }

    fn fail(&self, seq: u64, error: Error) {
        lock(&self.turn).note(seq, Err(error));
    }
}

/// Releases the other threads when this one panics, so that the panic propagates.
struct Abandon<'a, 'b>(&'a Pipeline<'b>);

impl Drop for Abandon<'_, '_> {
    fn drop(&mut self) {
        if thread::panicking() {
            lock(&self.0.turn).abandoned = true;
            self.0.out.abandon();
            self.0.stop_hashing();
            self.0.next_turn.notify_all();
        }
    }
}

impl Turn<'_> {
    fn note(&mut self, seq: u64, result: Result<()>) {
        if let Err(error) = result
            && self.failure.as_ref().is_none_or(|(earliest, _)| seq < *earliest)
        {
            self.failure = Some((seq, error));
        }
    }

    /// Places `items`, and merges contiguous writes.
    fn place(&mut self, items: &[Item], writes: &mut Vec<Write>) -> Result<()> {
        writes.clear();
        for Item { guest, kind } in items {
            match kind {
                ItemKind::Zero => self.writer.zero(guest.clone())?,
                ItemKind::Data | ItemKind::Cloned(..) => {
                    let mut at = guest.start;
                    while at < guest.end {
                        let placement = self.writer.place(at..guest.end)?;
                        let next = at + placement.len;
                        let source = match kind {
                            ItemKind::Cloned(file, from) => Source::Cloned(at..next, *file, from + (at - guest.start)),
                            _ => Source::Data(at..next),
                        };
                        push_placed(writes, placement, source);
                        at = next;
                    }
                    self.report.data_bytes += guest.end - guest.start;
                    self.report.written_bytes += guest.end - guest.start;
                }
                ItemKind::Encoded { bytes, passthrough } => {
                    let placement = self.writer.place_compressed(guest.clone(), bytes.len() as u32)?;
                    push_placed(writes, placement, Source::Encoded(bytes.clone()));
                    let len = guest.end - guest.start;
                    self.report.data_bytes += len;
                    self.report.written_bytes += bytes.len() as u64;
                    self.report.compressed_blocks += 1;
                    self.report.compressed_bytes += len;
                    if *passthrough {
                        self.report.passthrough_blocks += 1;
                        self.report.passthrough_bytes += len;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Adds the writes of a placement: the metadata before the data, and the data.
fn push_placed(writes: &mut Vec<Write>, Placement { out, offset, before, .. }: Placement, source: Source) {
    let after = offset + before.len() as u64;
    if !before.is_empty() {
        push(writes, out.clone(), offset, Source::Metadata(before));
    }
    push(writes, out, after, source);
}

/// Adds a write, merged with the last one if they are contiguous in the file and in the buffer.
fn push(writes: &mut Vec<Write>, out: Arc<dyn WriteAt>, offset: u64, source: Source) {
    if let Some(last) = writes.last_mut()
        && Arc::ptr_eq(&last.out, &out)
        && last.offset + last.source.len() == offset
    {
        match (&mut last.source, &source) {
            (Source::Data(a), Source::Data(b)) if a.end == b.start => {
                a.end = b.end;
                return;
            }
            (Source::Encoded(a), Source::Encoded(b)) if a.end == b.start => {
                a.end = b.end;
                return;
            }
            (Source::Cloned(a, file, from), Source::Cloned(b, next, at))
                if a.end == b.start && file == next && *from + (a.end - a.start) == *at =>
            {
                a.end = b.end;
                return;
            }
            _ => {}
        }
    }
    writes.push(Write { out, offset, source });
}

impl Source {
    fn len(&self) -> u64 {
        match self {
            Source::Metadata(bytes) => bytes.len() as u64,
            Source::Data(guest) | Source::Cloned(guest, ..) => guest.end - guest.start,
            Source::Encoded(bytes) => bytes.len() as u64,
        }
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
