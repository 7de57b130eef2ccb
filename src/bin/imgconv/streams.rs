//! Standard input and output as images: bytes that come and go in order.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use diskimage::Error;
use diskimage::io::PipeTarget;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::failure::Failure;
use crate::signals::Cancelled;

/// What a pipe holds, and so what one read can give.
const BUFFER: usize = 64 << 10;
/// How long a signal may have to wait for a read that waits for bytes, in milliseconds.
const PATIENCE: u16 = 50;

/// Standard input, until `cancelled` is set.
pub fn input(cancelled: Arc<AtomicBool>) -> Result<impl Read + Send + 'static, Failure> {
    let file = file(io::stdin().as_fd(), "opening standard input")?;
    Ok(BufReader::with_capacity(BUFFER, Input { file, cancelled }))
}

/// Standard output, without the buffer that looks for ends of lines.
pub fn output() -> Result<PipeTarget<File>, Failure> {
    Ok(PipeTarget::new(file(io::stdout().as_fd(), "opening standard output")?).with_path("standard output"))
}

fn file(stream: BorrowedFd<'_>, action: &'static str) -> Result<File, Failure> {
    let owned = stream.try_clone_to_owned().map_err(Error::io(action, None))?;
    Ok(File::from(owned))
}

/// A stream of which nobody knows when its next bytes come, if ever.
struct Input {
    file: File,
    cancelled: Arc<AtomicBool>,
}

impl Read for Input {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // A signal does not end a read, and may come to another thread.
        while !self.cancelled.load(Ordering::Relaxed) {
            let mut readable = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
            match poll(&mut readable, PollTimeout::from(PATIENCE)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return self.file.read(buf),
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other(Cancelled))
    }
}
