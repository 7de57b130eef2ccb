//! Sockets of both kinds, with a deadline for the handshake.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::address::ServerAddress;

/// A connected socket.
#[derive(Debug)]
pub struct Socket {
    stream: Stream,
    /// The time at which reads and writes have to be over, all together.
    deadline: Option<Instant>,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

impl Socket {
    /// Connects to a server before `deadline`, which then limits what is read and written.
    pub fn connect(address: &ServerAddress, deadline: Instant) -> io::Result<Socket> {
        let stream = match address {
            ServerAddress::Tcp { host, port } => connect_tcp(host, *port, deadline)?,
            #[cfg(unix)]
            ServerAddress::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
            #[cfg(not(unix))]
            ServerAddress::Unix(_) => {
                let problem = "Unix sockets are not supported on this system";
                return Err(io::Error::new(io::ErrorKind::Unsupported, problem));
            }
        };
        Ok(Socket { stream, deadline: Some(deadline) })
    }

    /// Limits the time for all that is read and written from now on.
    pub fn with_deadline(self, deadline: Instant) -> Socket {
        Socket { deadline: Some(deadline), ..self }
    }

    /// Limits the time of each read and of each write, in place of a deadline.
    pub fn set_timeouts(&mut self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        self.deadline = None;
        self.stream.set_timeouts(read, write)
    }

    /// A second handle of the same socket.
    pub fn try_clone(&self) -> io::Result<Socket> {
        let stream = match &self.stream {
            Stream::Tcp(stream) => Stream::Tcp(stream.try_clone()?),
            #[cfg(unix)]
            Stream::Unix(stream) => Stream::Unix(stream.try_clone()?),
        };
        Ok(Socket { stream, deadline: self.deadline })
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
        let left = time_left(deadline)?;
        self.stream.set_timeouts(Some(left), Some(left))
    }
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Socket {
        Socket { stream: Stream::Tcp(stream), deadline: None }
    }
}

#[cfg(unix)]
impl From<UnixStream> for Socket {
    fn from(stream: UnixStream) -> Socket {
        Socket { stream: Stream::Unix(stream), deadline: None }
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
fn connect_tcp(host: &str, port: u16, deadline: Instant) -> io::Result<Stream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, time_left(deadline)?) {
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

fn time_left(deadline: Instant) -> io::Result<Duration> {
    Some(deadline.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero()).ok_or_else(no_answer)
}

fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the peer does not answer")
}

/// An expired timeout is one of these, depending on the system.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => no_answer(),
        _ => error,
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.before_deadline()?;
        match &mut self.stream {
            Stream::Tcp(stream) => stream.read(buf),
            #[cfg(unix)]
            Stream::Unix(stream) => stream.read(buf),
        }
        .map_err(timed_out)
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.before_deadline()?;
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write(buf),
            #[cfg(unix)]
            Stream::Unix(stream) => stream.write(buf),
        }
        .map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
