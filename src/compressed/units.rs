//! A compressed file with an index, read at offsets and decoded by the threads that read it.
//!
//! Data is decoded in pieces. A thread that needs a piece takes the decoder of its unit and decodes up to it; one that finds the decoder
//! taken decodes the next unit ahead in the meantime. So the threads of a conversion, which read one after the other, decode on all
//! cores, and no unit has to be in memory as a whole.
//!
//! A file without an index is one unit of a known length. It is decoded once, in order, and so without a temporary file.
//!
//! Reads in another order decode units again. When that has cost more than decoding the whole file would, it is decoded to a temporary
//! file.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::available_parallelism;

use super::index::{Index, open_unit};
use super::{Compression, Sequential, decoder};
use crate::error::{Error, Problem};
use crate::io::ReadAt;
use crate::limits::{LimitName, Limits};
use crate::spool::spool;

/// Bytes decoded at once.
const PIECE: u64 = 1 << 20;
/// Bytes kept for each core after they were read once.
const RECENT: u64 = 2 << 20;
/// Bytes decoded ahead for each core but one: a block of `xz -6`, which has 24 MiB. With two thirds of it, the cores wait for each other.
const AHEAD: u64 = 24 << 20;
/// Decoded bytes that were not read yet, at most, unless more are decoded ahead: what was passed on the way to a later offset.
const UNREAD: u64 = 64 << 20;
/// Largest dictionary of the units that are decoded ahead, in bytes.
const AHEAD_WINDOW: u64 = 32 << 20;

/// Buffers that are kept for other pieces: memory that threads free and allocate again and again is scattered.
const FREE: usize = 32;
/// Pieces that a thread decodes for others on the way to its own: those of a conversion are at most that far apart.
const NEAR: u64 = 16;

/// Pieces that the threads of a conversion need at a time, for each of them.
const AT_A_TIME: u64 = 2;

/// Bytes at the end of a file from which formats are detected.
const END: u64 = 512;

/// A decoder that starts at the beginning of its unit.
type UnitDecoder = Box<dyn Read + Send>;
/// Checks the last bytes of the decompressed file, up to 512.
pub(crate) type EndCheck = Box<dyn Fn(&[u8]) -> Result<(), Error> + Send + Sync>;

/// What a file of one unit needs besides its index.
pub(super) struct Once {
    /// The decoder of the whole file, which nothing has been read from yet.
    pub decoder: UnitDecoder,
    pub check_end: EndCheck,
}

pub(super) struct UnitFile {
    file: Arc<dyn ReadAt>,
    compression: Compression,
    limits: Limits,
    directory: PathBuf,
    index: Index,
    shared: Mutex<Shared>,
    /// A piece is there, or a decoder is free.
    changed: Condvar,
    spooled: OnceLock<Arc<dyn ReadAt>>,
    /// For a file of one unit that is decoded once: its length may be wrong.
    check_end: Option<EndCheck>,
    cores: u64,
}

/// State of all threads.
#[derive(Default)]
struct Shared {
    /// The units that are being decoded, by their number.
    active: BTreeMap<usize, Active>,
    /// Decoded pieces, by the number of the unit and the number in it.
    pieces: BTreeMap<(usize, u64), Piece>,
    /// Bytes of the pieces that were read, and of those that were not.
    read: u64,
    unread: u64,
    most_read: u64,
    most_unread: u64,
    /// Buffers of dropped pieces, to be used again.
    free: Vec<Vec<u8>>,
    /// Counts uses.
    clock: u64,
    /// Bytes decoded altogether.
    decoded: u64,
    /// Units of which something was read, and whose checksum has not been verified.
    open: BTreeSet<usize>,
    /// Units that do not decode, with the number of the first piece that does not.
    failed: BTreeMap<usize, u64>,
    /// Pieces that threads wait for.
    wanted: BTreeMap<(usize, u64), u32>,
    /// The decoder of the whole file, before its first use.
    first: Option<UnitDecoder>,
}

struct Active {
    /// `None` while a thread decodes.
    decoder: Option<UnitDecoder>,
    /// Number of the next piece.
    next: u64,
    used: u64,
}

struct Piece {
    bytes: Vec<u8>,
    used: u64,
    is_read: bool,
}

/// The next step of a thread that needs a piece.
enum Step {
    Decode(usize, UnitDecoder, u64),
    Wait,
    /// Decoding to a temporary file.
    Spool,
}

impl UnitFile {
    pub fn new(
        file: Arc<dyn ReadAt>,
        compression: Compression,
        limits: &Limits,
        directory: PathBuf,
        index: Index,
        once: Option<Once>,
    ) -> UnitFile {
        // A file that is decoded once is verified even if nothing of it is read.
        let open = once.iter().map(|_| 0).collect();
        let cores = available_parallelism().map_or(1, |cores| cores.get() as u64);
        let (first, check_end) = once.map(|once| (once.decoder, once.check_end)).unzip();
        UnitFile {
            file,
            compression,
            limits: limits.clone(),
            directory,
            index,
            shared: Mutex::new(Shared {
                first,
                open,
                most_read: cores * RECENT,
                most_unread: UNREAD.max(cores * AHEAD),
                ..Shared::default()
            }),
            changed: Condvar::new(),
            spooled: OnceLock::new(),
            check_end,
            cores,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of bytes of a piece.
    fn piece_len(&self, unit: usize, piece: u64) -> u64 {
        let len = self.index.units().get(unit).map_or(0, |unit| unit.len);
        len.saturating_sub(piece * PIECE).min(PIECE)
    }

    /// Reads within one piece.
    fn read_piece(&self, unit: usize, at: u64, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let key = (unit, at / PIECE);
        let mut shared = self.lock();
        *shared.wanted.entry(key).or_default() += 1;
        // What is decoded on the way to the end, from which formats are detected, would take the memory of what is decoded ahead.
        let next = shared.active.get(&unit).map_or(0, |active| active.next);
        let is_far = self.check_end.is_none() && key.1.saturating_sub(next) >= AT_A_TIME * self.cores.max(2);
        let result = loop {
            if let Some(len) = shared.copy(key, at % PIECE, buf) {
                break Ok(Some(len));
            }
            match self.next_step(&mut shared, key) {
                Ok(Step::Wait) => shared = self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner),
                Ok(Step::Decode(number, decoder, piece)) => {
                    drop(shared);
                    let decoded = self.decode(number, decoder, piece, number != unit || !is_far);
                    shared = self.lock();
                    // The failure of a unit ahead is reported to those who read it.
                    if let Err(error) = decoded
                        && number == unit
                    {
                        break Err(error);
                    }
                }
                Ok(Step::Spool) => break Ok(None),
                Err(error) => break Err(error),
            }
        };
        if let Some(count) = shared.wanted.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                shared.wanted.remove(&key);
            }
        }
        drop(shared);
        self.changed.notify_all();
        result
    }

    /// Finds what the thread can do that needs the piece `key`, which is not there.
    fn next_step(&self, shared: &mut Shared, key: (usize, u64)) -> io::Result<Step> {
        let (unit, piece) = key;
        if self.spooled.get().is_some() {
            return Ok(Step::Spool);
        }
        let is_passed = shared.active.get(&unit).is_some_and(|active| active.decoder.is_some() && active.next > piece);
        if is_passed {
            // It was dropped from memory.
            shared.active.remove(&unit);
        }
        if shared.failed.get(&unit).is_some_and(|first| *first <= piece) {
            // Decoding it again would fail again: what reads around damage does so sector by sector.
            let at = self.index.units().get(unit).map_or(0, |unit| unit.at);
            let problem = Problem::Invalid { reason: "it does not decode".into() };
            return Err(Error::corrupt(self.compression.name(), "compressed data", at, problem).into());
        }
        let is_first = shared.first.is_some();
        if !shared.active.contains_key(&unit) {
            let again = self.index.units().len() == 1 && !is_first;
            if again || shared.decoded > 2 * self.index.size() + (16 << 20) {
                return Ok(Step::Spool);
            }
            self.open(shared, unit, &self.limits)?;
        }
        // The unit goes on first, also for a thread that decodes another one in the meantime. A thread far ahead would drop the pieces that
        // the others need.
        let is_near = shared.active.get(&unit).is_some_and(|active| piece.saturating_sub(active.next) < NEAR);
        let comes_first = || shared.wanted.range((unit, 0)..key).all(|(_, count)| *count == 0);
        if (is_near || comes_first())
            && let Some((decoder, next)) = shared.take(unit)
        {
            return Ok(Step::Decode(unit, decoder, next));
        }
        Ok(self.help(shared, unit).unwrap_or(Step::Wait))
    }

    /// Takes the decoder of a unit ahead.
    fn help(&self, shared: &mut Shared, unit: usize) -> Option<Step> {
        let last = unit.saturating_add(self.cores as usize * 16).min(self.index.units().len().checked_sub(1)?);
        if shared.unread >= (self.cores - 1).max(1) * AHEAD {
            return None;
        }
        for ahead in unit + 1..=last {
            let is_whole = |shared: &Shared| {
                (0..)
                    .take_while(|piece| self.piece_len(ahead, *piece) > 0)
                    .all(|piece| shared.pieces.contains_key(&(ahead, piece)))
            };
            if !shared.active.contains_key(&ahead) {
                if is_whole(shared) {
                    continue;
                }
                // One for each core.
                if shared.active.range(unit..=last).count() as u64 >= self.cores {
                    return None;
                }
                // Where it fails, those who read it get the error.
                let window = self.limits.window.min(AHEAD_WINDOW);
                self.open(shared, ahead, &Limits { window, ..self.limits.clone() }).ok()?;
            }
            let active = shared.active.get(&ahead)?;
            if self.piece_len(ahead, active.next) > 0
                && let Some((decoder, next)) = shared.take(ahead)
            {
                return Some(Step::Decode(ahead, decoder, next));
            }
        }
        None
    }

    /// Opens the decoder of a unit.
    fn open(&self, shared: &mut Shared, number: usize, limits: &Limits) -> io::Result<()> {
        let unit = self.index.units().get(number).ok_or(io::ErrorKind::UnexpectedEof)?;
        let decoder = match shared.first.take() {
            Some(decoder) => decoder,
            None => Box::new(open_unit(&self.file, unit, self.compression, limits)?),
        };
        // Decoders have dictionaries; those that were not used for the longest time are dropped.
        while shared.active.len() as u64 > self.cores {
            let free = shared.active.iter().filter(|(_, active)| active.decoder.is_some());
            let Some(oldest) = free.min_by_key(|(_, active)| active.used).map(|(number, _)| *number) else { break };
            shared.active.remove(&oldest);
        }
        shared.clock += 1;
        shared.open.insert(number);
        shared.active.insert(number, Active { decoder: Some(decoder), next: 0, used: shared.clock });
        Ok(())
    }

    /// Decodes the next piece of a unit, which is `piece`, and keeps it if `keep` says so or a thread waits for it. At the end of the unit
    /// its checksum is verified.
    fn decode(&self, unit: usize, mut decoder: UnitDecoder, piece: u64, keep: bool) -> io::Result<()> {
        let mut release = Release { file: self, unit, is_taken: true };
        let len = self.piece_len(unit, piece);
        let is_last = self.piece_len(unit, piece + 1) == 0;
        let bytes = self.decode_piece(&mut decoder, len, is_last).inspect_err(|error| {
            if error.kind() == io::ErrorKind::InvalidData {
                self.lock().failed.insert(unit, piece);
            }
        })?;
        if let Some(check_end) = self.check_end.as_ref().filter(|_| is_last) {
            self.check_end(check_end, piece, &bytes)?;
        }
        // The memory of a decoder is free before another one is opened in its place.
        let decoder = if is_last { None } else { Some(decoder) };
        let shared = &mut *self.lock();
        shared.decoded += len;
        release.is_taken = false;
        if is_last {
            shared.open.remove(&unit);
            shared.active.remove(&unit);
        } else if let Some(active) = shared.active.get_mut(&unit) {
            (active.decoder, active.next) = (decoder, piece + 1);
        }
        if keep || shared.wanted.contains_key(&(unit, piece)) {
            shared.insert((unit, piece), bytes);
        } else {
            shared.reuse(bytes);
        }
        Ok(())
    }

    fn decode_piece(&self, decoder: &mut UnitDecoder, len: u64, is_last: bool) -> io::Result<Vec<u8>> {
        let mut bytes = self.lock().free.pop().unwrap_or_default();
        bytes.clear();
        bytes.reserve_exact(len as usize);
        decoder.by_ref().take(len).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < len || is_last && decoder.read(&mut [0])? > 0 {
            return Err(self.wrong_size().into());
        }
        Ok(bytes)
    }

    /// Checks the end of the file, in its last piece and the one before.
    fn check_end(&self, check_end: &EndCheck, piece: u64, bytes: &[u8]) -> Result<(), Error> {
        let shared = self.lock();
        let before = piece.checked_sub(1).and_then(|before| shared.pieces.get(&(0, before)));
        let mut end = before.map_or_else(Vec::new, |before| before.bytes.clone());
        drop(shared);
        end.extend_from_slice(bytes);
        check_end(end.get(end.len().saturating_sub(END as usize)..).unwrap_or_default())
    }

    /// The error for a file that is longer or shorter than assumed.
    fn wrong_size(&self) -> Error {
        Error::NotOnePass { format: self.compression.name(), finding: "it has another size than it states" }
    }

    /// The whole file, decoded to a temporary file.
    fn spooled(&self) -> io::Result<&Arc<dyn ReadAt>> {
        let shared = self.lock();
        if let Some(file) = self.spooled.get() {
            return Ok(file);
        }
        let stream = decoder(self.compression, Box::new(Sequential::new(self.file.clone())), &self.limits);
        let file =
            spool(stream, &self.directory, self.compression.name(), LimitName::Decompressed, self.limits.decompressed)?;
        if file.size()? != self.index.size() {
            return Err(self.wrong_size().into());
        }
        if let Some(check_end) = &self.check_end {
            let mut end = vec![0; self.index.size().min(END) as usize];
            let from = self.index.size() - end.len() as u64;
            file.read_exact_at(&mut end, from)?;
            check_end(&end)?;
        }
        let file = self.spooled.get_or_init(|| Arc::new(file));
        drop(shared);
        Ok(file)
    }
}

impl ReadAt for UnitFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.index.size())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if let Some(file) = self.spooled.get() {
            return file.read_at(buf, offset);
        }
        let Some((unit, at)) = self.index.locate(offset).filter(|_| !buf.is_empty()) else { return Ok(0) };
        match self.read_piece(unit, at, buf)? {
            Some(len) => Ok(len),
            None => self.spooled()?.read_at(buf, offset),
        }
    }

    /// Decodes the units to their end of which something was read.
    fn verify(&self) -> io::Result<()> {
        loop {
            let open = self.lock().open.first().copied();
            let Some(unit) = open.and_then(|number| self.index.units().get(number)) else { return Ok(()) };
            if self.spooled.get().is_some() {
                return Ok(());
            }
            self.read_at(&mut [0], unit.offset + unit.len - 1)?;
        }
    }
}

impl Shared {
    /// Copies from a piece, if it is there.
    fn copy(&mut self, key: (usize, u64), at: u64, buf: &mut [u8]) -> Option<usize> {
        self.clock += 1;
        let piece = self.pieces.get_mut(&key)?;
        piece.used = self.clock;
        let len = piece.bytes.len() as u64;
        let rest = piece.bytes.get(at as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        // Another thread may be about to read the rest.
        if !piece.is_read && n == rest.len() {
            piece.is_read = true;
            self.unread -= len;
            self.read += len;
        }
        buf.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        self.shrink();
        Some(n)
    }

    fn insert(&mut self, key: (usize, u64), bytes: Vec<u8>) {
        self.clock += 1;
        self.unread += bytes.len() as u64;
        let piece = Piece { bytes, used: self.clock, is_read: false };
        if let Some(old) = self.pieces.insert(key, piece) {
            *(if old.is_read { &mut self.read } else { &mut self.unread }) -= old.bytes.len() as u64;
        }
        self.shrink();
    }

    /// Takes the decoder of a unit, if no other thread has it, with the number of its next piece.
    fn take(&mut self, unit: usize) -> Option<(UnitDecoder, u64)> {
        self.clock += 1;
        let active = self.active.get_mut(&unit)?;
        active.used = self.clock;
        Some((active.decoder.take()?, active.next))
    }

    /// Drops the pieces that were not used for the longest time.
    fn shrink(&mut self) {
        for is_read in [true, false] {
            while if is_read { self.read > self.most_read } else { self.unread > self.most_unread } {
                let old = self.pieces.iter().filter(|(_, piece)| piece.is_read == is_read);
                let Some(key) = old.min_by_key(|(_, piece)| piece.used).map(|(key, _)| *key) else { break };
                let Some(Piece { bytes, .. }) = self.pieces.remove(&key) else { break };
                *(if is_read { &mut self.read } else { &mut self.unread }) -= bytes.len() as u64;
                self.reuse(bytes);
            }
        }
    }

    /// Keeps the buffer of a piece that was dropped.
    fn reuse(&mut self, bytes: Vec<u8>) {
        if self.free.len() < FREE {
            self.free.push(bytes);
        }
    }
}

/// Wakes the waiting threads after a step; after a failure, the decoder is gone.
struct Release<'a> {
    file: &'a UnitFile,
    unit: usize,
    /// Whether the decoder has not been put back.
    is_taken: bool,
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        if self.is_taken {
            self.file.lock().active.remove(&self.unit);
        }
        self.file.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::xz;
    use super::*;
    use crate::compressed::index;

    #[test]
    fn what_is_passed_on_the_way_to_the_end_is_not_kept() {
        const BLOCK: u64 = 24 << 20;
        let data = vec![7; 2 * BLOCK as usize];
        let file: Arc<dyn ReadAt> = Arc::new(xz(&data, lzma_rust2::CheckType::Crc32, Some(BLOCK)));
        let limits = Limits::default();
        let index = index::read(&file, file.size().unwrap(), Compression::Xz, &limits).unwrap();
        assert_eq!(index.units().len(), 2);
        let file = UnitFile::new(file, Compression::Xz, &limits, PathBuf::new(), index, None);
        file.read_exact_at(&mut [0; 512], 2 * BLOCK - 512).unwrap();
        let shared = file.lock();
        assert_eq!((shared.decoded, shared.pieces.len()), (BLOCK, 1));
    }
}
