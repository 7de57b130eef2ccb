//! A stream that takes bytes one after the other: a pipe, a socket, standard output.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard};

use super::WriteAt;

/// A stream as a file that is written from start to end, by several threads: each waits for its turn.
///
/// Every byte has to be written once, by any thread, and each thread writes at ascending offsets: a gap that is
/// never filled blocks forever. After a failure every call fails, and no thread blocks. A length set beyond what is written
/// promises zeros, which [`sync`](WriteAt::sync) writes.
///
/// # Examples
///
/// ```
/// use diskimage::io::{PipeTarget, WriteAt};
///
/// # fn main() -> std::io::Result<()> {
/// let mut stream = Vec::new();
/// let pipe = PipeTarget::new(&mut stream);
/// pipe.set_len(6)?;
/// pipe.write_all_at(b"data", 0)?;
/// pipe.sync()?;
/// drop(pipe);
/// assert_eq!(stream, b"data\0\0");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PipeTarget<W> {
    state: Mutex<State<W>>,
    moved: Condvar,
    /// What messages call it.
    path: Option<PathBuf>,
}

#[derive(Debug)]
struct State<W> {
    stream: W,
    /// Bytes written.
    position: u64,
    /// The length that was set.
    len: u64,
    /// The first failure. The number of bytes that it wrote is unknown.
    failure: Option<(io::ErrorKind, String)>,
}

impl<W: Write + Send> PipeTarget<W> {
    /// Writes to `stream`, whose current position is offset 0. [`sync`](WriteAt::sync) flushes its buffers.
    pub fn new(stream: W) -> Self {
        let state = State { stream, position: 0, len: 0, failure: None };
        PipeTarget { state: Mutex::new(state), moved: Condvar::new(), path: None }
    }

    /// Sets the path for messages.
    #[must_use]
    pub fn with_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.path = Some(path.into());
        self
    }

    fn lock(&self) -> io::Result<MutexGuard<'_, State<W>>> {
        let state = self.state.lock().map_err(|_| panicked())?;
        state.check()?;
        Ok(state)
    }
}

impl<W: Write + Send> WriteAt for PipeTarget<W> {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let _wake = Wake(&self.moved);
        let mut state = self.lock()?;
        while state.position < offset {
            state = self.moved.wait(state).map_err(|_| panicked())?;
            state.check()?;
        }
        state.write(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.lock()?;
        if len < state.position {
            return Err(not_seekable(len, state.position));
        }
        state.len = len;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        const ZEROS: &[u8] = &[0; 64 << 10];
        let _wake = Wake(&self.moved);
        let mut state = self.lock()?;
        while state.position < state.len {
            let (at, missing) = (state.position, state.len - state.position);
            state.write(&ZEROS[..missing.min(ZEROS.len() as u64) as usize], at)?;
        }
        let flushed = state.stream.flush();
        state.note(flushed)
    }

    fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    fn seeks(&self) -> bool {
        false
    }

    /// Lets everybody go who waits, and refuses all that follows.
    fn abandon(&self) {
        let _wake = Wake(&self.moved);
        if let Ok(mut state) = self.state.lock() {
            state.failure.get_or_insert((io::ErrorKind::Other, "it was abandoned".into()));
        }
    }
}

impl<W: Write> State<W> {
    /// Writes `buf` if the stream is at `offset`.
    fn write(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        let written = match self.position {
            position if position == offset => self.stream.write_all(buf),
            position => Err(not_seekable(offset, position)),
        };
        self.note(written)?;
        self.position = self.position.saturating_add(buf.len() as u64);
        Ok(())
    }

    /// Records an error. The thread that gets one stops, so other threads must not wait for its bytes.
    fn note(&mut self, result: io::Result<()>) -> io::Result<()> {
        result.inspect_err(|e| self.failure = Some((e.kind(), e.to_string())))
    }

    fn check(&self) -> io::Result<()> {
        match &self.failure {
            Some((kind, text)) => Err(io::Error::new(*kind, format!("the stream failed before: {text}"))),
            None => Ok(()),
        }
    }
}

/// Wakes all who wait, also when a write panics.
struct Wake<'a>(&'a Condvar);

impl Drop for Wake<'_> {
    fn drop(&mut self) {
        self.0.notify_all();
    }
}

fn not_seekable(offset: u64, position: u64) -> io::Error {
    let text = format!("the stream cannot go back to byte {offset}: it has {position} bytes already");
    io::Error::new(io::ErrorKind::NotSeekable, text)
}

fn panicked() -> io::Error {
    io::Error::other("the stream failed before: a write panicked")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Takes so many bytes; then it fails, or panics.
    struct Short {
        left: usize,
        panics: bool,
    }

    impl Write for Short {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            let n = buf.len().min(self.left);
            self.left -= n;
            assert!(n > 0 || !self.panics, "the stream is full");
            if n > 0 { Ok(n) } else { Err(io::Error::new(io::ErrorKind::BrokenPipe, "nobody reads")) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Runs `fail` while three threads wait for byte 10 and later ones, and returns their errors. No thread may hang.
    fn released<W: Write + Send + 'static>(stream: W, fail: impl FnOnce(&PipeTarget<W>)) -> Vec<io::Error> {
        let pipe = std::sync::Arc::new(PipeTarget::new(stream));
        let (tell, told) = mpsc::channel();
        for offset in [10, 20, u64::MAX] {
            let (pipe, tell) = (pipe.clone(), tell.clone());
            thread::spawn(move || tell.send(pipe.write_all_at(b"late", offset)).unwrap());
        }
        assert!(told.recv_timeout(Duration::from_millis(50)).is_err(), "somebody did not wait");
        fail(&pipe);
        let errors = (0..3).map(|_| told.recv_timeout(Duration::from_secs(10)).expect("nobody hangs").unwrap_err());
        let errors: Vec<_> = errors.collect();
        for result in [pipe.write_all_at(b"more", 0), pipe.write_all_at(b"more", 30), pipe.set_len(100), pipe.sync()] {
            assert_eq!(result.unwrap_err().kind(), errors[0].kind());
        }
        errors
    }

    #[test]
    fn threads_write_in_the_order_of_the_offsets() {
        let expected: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        // Pieces of 1 to 997 bytes, dealt to the threads in turn.
        let mut pieces = vec![Vec::new(); 7];
        let (mut at, mut n) = (0, 0);
        while at < expected.len() {
            let end = expected.len().min(at + 1 + n * 131 % 997);
            pieces[n % 7].push(at..end);
            (at, n) = (end, n + 1);
        }
        let mut stream = Vec::new();
        let pipe = PipeTarget::new(&mut stream);
        assert!(!pipe.seeks() && pipe.starts_zeroed());
        thread::scope(|scope| {
            // The first piece comes last.
            for pieces in pieces.into_iter().rev() {
                let (pipe, expected) = (&pipe, &expected);
                scope.spawn(move || {
                    for piece in pieces {
                        pipe.write_all_at(b"", u64::MAX).unwrap();
                        pipe.write_all_at(&expected[piece.clone()], piece.start as u64).unwrap();
                    }
                });
            }
        });
        pipe.sync().unwrap();
        drop(pipe);
        assert!(stream == expected);
    }

    #[test]
    fn a_failure_is_everybodys() {
        for error in released(Short { left: 7, panics: false }, |pipe| {
            assert_eq!(pipe.write_all_at(b"ten bytes.", 0).unwrap_err().to_string(), "nobody reads");
        }) {
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
            assert_eq!(error.to_string(), "the stream failed before: nobody reads");
        }
        for error in released(Short { left: 7, panics: true }, |pipe| {
            let panicked = thread::scope(|scope| scope.spawn(|| pipe.write_all_at(b"ten bytes.", 0)).join());
            assert!(panicked.is_err());
        }) {
            assert_eq!(error.to_string(), "the stream failed before: a write panicked");
        }
        for error in released(io::sink(), PipeTarget::abandon) {
            assert_eq!(error.to_string(), "the stream failed before: it was abandoned");
        }
    }

    #[test]
    fn going_back_is_refused() {
        let mut stream = Vec::new();
        let pipe = PipeTarget::new(&mut stream);
        pipe.write_all_at(b"header", 0).unwrap();
        let error = pipe.write_all_at(b"HEADER", 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotSeekable);
        assert_eq!(error.to_string(), "the stream cannot go back to byte 0: it has 6 bytes already");
        drop(pipe);
        assert_eq!(stream, b"header");
        // Who went back does not come again, and others may wait for it.
        for error in released(io::sink(), |pipe| {
            pipe.write_all_at(b"five.", 0).unwrap();
            pipe.write_all_at(b"five.", 4).unwrap_err();
        }) {
            assert_eq!(error.kind(), io::ErrorKind::NotSeekable);
        }
    }

    #[test]
    fn a_length_is_a_promise_of_zeros() {
        let mut stream = Vec::new();
        let pipe = PipeTarget::new(&mut stream);
        pipe.set_len(0).unwrap();
        pipe.set_len(100_000).unwrap();
        pipe.write_all_at(b"data", 0).unwrap();
        assert_eq!(pipe.set_len(3).unwrap_err().kind(), io::ErrorKind::NotSeekable);
        pipe.zero_range(4..10).unwrap();
        pipe.write_all_at(b"more", 10).unwrap();
        pipe.sync().unwrap();
        pipe.sync().unwrap();
        drop(pipe);
        assert!(stream == [&b"data\0\0\0\0\0\0more"[..], &[0; 99_986]].concat());
    }
}
