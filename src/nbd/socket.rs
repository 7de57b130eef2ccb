//! Sockets of both kinds, with a deadline for the handshake, and of clients that can be cancelled.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::address::ServerAddress;
use crate::error::Error;

/// How often a socket that waits looks whether the caller has cancelled.
const INTERVAL: Duration = Duration::from_millis(200);

/// A connected socket.
#[derive(Debug)]
pub struct Socket {
    stream: Stream,
    /// The time at which reads and writes have to be over, all together.
    deadline: Option<Instant>,
    /// The time for each read and for each write, without a deadline.
    timeouts: [Option<Duration>; 2],
    cancel: Option<Arc<AtomicBool>>,
}

/// What is timed.
#[derive(Clone, Copy)]
enum Action {
    Read,
    Write,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

impl Socket {
    /// Connects to a server before `deadline`, which then limits what is read and written. All of it ends soon after `cancel` becomes true.
    pub fn connect(address: &ServerAddress, deadline: Instant, cancel: Option<Arc<AtomicBool>>) -> io::Result<Socket> {
        let stream = match address {
            ServerAddress::Tcp { host, port } => connect_tcp(host, *port, deadline, cancel.as_deref())?,
            #[cfg(unix)]
            ServerAddress::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
            #[cfg(not(unix))]
            ServerAddress::Unix(_) => {
                let problem = "Unix sockets are not supported on this system";
                return Err(io::Error::new(io::ErrorKind::Unsupported, problem));
            }
        };
        Ok(Socket { deadline: Some(deadline), cancel, ..stream.into() })
    }

    /// Limits the time for all that is read and written from now on.
    pub fn with_deadline(self, deadline: Instant) -> Socket {
        Socket { deadline: Some(deadline), ..self }
    }

    /// Limits the time of each read and of each write, in place of a deadline.
    pub fn set_timeouts(&mut self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        self.deadline = None;
        self.timeouts = [read, write];
        let [read, write] = self.timeouts.map(|time| self.interval(time));
        self.stream.set_timeouts(read, write)
    }

    /// The time to wait at once, of all the time.
    fn interval(&self, time: Option<Duration>) -> Option<Duration> {
        match self.cancel {
            None => time,
            Some(_) => Some(time.map_or(INTERVAL, |time| time.min(INTERVAL))),
        }
    }

    /// A second handle of the same socket.
    pub fn try_clone(&self) -> io::Result<Socket> {
        let stream = match &self.stream {
            Stream::Tcp(stream) => Stream::Tcp(stream.try_clone()?),
            #[cfg(unix)]
            Stream::Unix(stream) => Stream::Unix(stream.try_clone()?),
        };
        let (timeouts, cancel) = (self.timeouts, self.cancel.clone());
        Ok(Socket { stream, deadline: self.deadline, timeouts, cancel })
    }

    /// Ends reads and writes of all handles.
    pub fn shut_down(&self) {
        // One that the peer has closed is shut down already.
        let _ = match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
            #[cfg(unix)]
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    /// Sets the time that is left before the deadline.
    fn before_deadline(&self) -> io::Result<()> {
        let Some(deadline) = self.deadline else { return Ok(()) };
        let left = self.interval(Some(time_left(deadline)?));
        self.stream.set_timeouts(left, left)
    }

    /// Reads or writes, as long as there is time and the caller has not cancelled.
    fn wait_for<T>(&mut self, action: Action, mut try_it: impl FnMut(&mut Stream) -> io::Result<T>) -> io::Result<T> {
        let start = self.cancel.as_ref().map(|_| Instant::now());
        loop {
            if self.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                return Err(Error::Cancelled.into());
            }
            self.before_deadline()?;
            let error = match try_it(&mut self.stream) {
                Err(error) if is_pause(&error) => error,
                result => return result,
            };
            let limit = self.timeouts[action as usize].filter(|_| self.deadline.is_none());
            let is_over = |start: Instant| limit.is_some_and(|limit| start.elapsed() >= limit);
            match start {
                _ if error.kind() == io::ErrorKind::Interrupted => {}
                Some(start) if !is_over(start) => {}
                _ => return Err(no_answer()),
            }
        }
    }
}

impl From<Stream> for Socket {
    fn from(stream: Stream) -> Socket {
        Socket { stream, deadline: None, timeouts: [None; 2], cancel: None }
    }
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Socket {
        Stream::Tcp(stream).into()
    }
}

#[cfg(unix)]
impl From<UnixStream> for Socket {
    fn from(stream: UnixStream) -> Socket {
        Stream::Unix(stream).into()
    }
}

impl Stream {
    fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.set_read_timeout(read).and_then(|()| stream.set_write_timeout(write)),
            #[cfg(unix)]
            Stream::Unix(stream) => stream.set_read_timeout(read).and_then(|()| stream.set_write_timeout(write)),
        }
    }
}

/// Connects to the first address of the host that answers.
fn connect_tcp(host: &str, port: u16, deadline: Instant, cancel: Option<&AtomicBool>) -> io::Result<Stream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match connect_to(address, time_left(deadline)?, cancel) {
            Ok(stream) => {
                // A request is written in two parts, of which the second must not wait for an answer to the first.
                stream.set_nodelay(true)?;
                return Ok(Stream::Tcp(stream));
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Connects to an address. No system call for it can be cancelled, so that a thread waits for it, which ends with the process at the latest.
fn connect_to(address: SocketAddr, time: Duration, cancel: Option<&AtomicBool>) -> io::Result<TcpStream> {
    let Some(cancel) = cancel else { return TcpStream::connect_timeout(&address, time) };
    let (sender, receiver) = mpsc::channel();
    let connect = move || drop(sender.send(TcpStream::connect_timeout(&address, time)));
    if thread::Builder::new().spawn(connect).is_err() {
        return TcpStream::connect_timeout(&address, time);
    }
    loop {
        match receiver.recv_timeout(INTERVAL) {
            Ok(connected) => return connected,
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(no_answer()),
            Err(mpsc::RecvTimeoutError::Timeout) if cancel.load(Ordering::Relaxed) => {
                return Err(Error::Cancelled.into());
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
    }
}

fn time_left(deadline: Instant) -> io::Result<Duration> {
    Some(deadline.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero()).ok_or_else(no_answer)
}

fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the peer does not answer")
}

/// Whether nothing has happened yet: an expired timeout is one of these, depending on the system.
fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.wait_for(Action::Read, |stream| match stream {
            Stream::Tcp(stream) => stream.read(buf),
            #[cfg(unix)]
            Stream::Unix(stream) => stream.read(buf),
        })
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.wait_for(Action::Write, |stream| match stream {
            Stream::Tcp(stream) => stream.write(buf),
            #[cfg(unix)]
            Stream::Unix(stream) => stream.write(buf),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
