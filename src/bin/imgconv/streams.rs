//! Standard input and output as images, read and written sequentially.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use diskimage::Error;
use diskimage::io::{FileSource, PipeTarget, ReadAt};

use crate::failure::Failure;
use crate::signals::Cancelled;

/// Capacity of a pipe, and thus the most that one read returns.
const BUFFER: usize = 64 << 10;

/// Standard input, until `cancelled` is set.
pub fn input(cancelled: Arc<AtomicBool>) -> Result<impl Read + Send + 'static, Failure> {
    let file = own(&io::stdin()).map_err(Error::io("opening standard input", None))?;
    Ok(BufReader::with_capacity(BUFFER, Input { file, cancelled }))
}

/// Standard input as a file, if it is a file at its start (`<disk.raw`): its holes are known, and it is not copied. An empty one
/// is a stream, which is refused.
pub fn input_file() -> Option<FileSource> {
    let mut file = own(&io::stdin()).ok()?;
    let at_start = file.stream_position().ok()? == 0;
    FileSource::try_from(file).ok().filter(|source| at_start && source.size().is_ok_and(|size| size > 0))
}

/// Standard output as the file of an image.
pub fn output() -> Result<PipeTarget<File>, Failure> {
    Ok(PipeTarget::new(output_stream()?).with_path("standard output"))
}

/// Standard output, without line buffering.
pub fn output_stream() -> Result<File, Failure> {
    Ok(own(&io::stdout()).map_err(Error::io("opening standard output", None))?)
}

#[cfg(not(windows))]
fn own(stream: &impl std::os::fd::AsFd) -> io::Result<File> {
    Ok(stream.as_fd().try_clone_to_owned()?.into())
}

#[cfg(windows)]
fn own(stream: &impl std::os::windows::io::AsHandle) -> io::Result<File> {
    Ok(stream.as_handle().try_clone_to_owned()?.into())
}

/// A stream whose reads can block indefinitely.
struct Input {
    file: File,
    cancelled: Arc<AtomicBool>,
}

impl Read for Input {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // A signal does not interrupt a read, and may be delivered to another thread.
        while !self.cancelled.load(Ordering::Relaxed) {
            if is_readable(&self.file)? {
                return self.file.read(buf);
            }
        }
        Err(io::Error::other(Cancelled))
    }
}

/// Waits until the stream is readable, at most for the signal polling interval.
#[cfg(unix)]
fn is_readable(file: &File) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    match poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&PATIENCE)) {
        Err(rustix::io::Errno::INTR) => Ok(false),
        result => Ok(result? > 0),
    }
}

/// Pipes cannot be polled on this platform. A second interrupt ends the program.
#[cfg(not(unix))]
fn is_readable(_file: &File) -> io::Result<bool> {
    Ok(true)
}
