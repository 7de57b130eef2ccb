//! Listening sockets of both kinds.

use std::io;
use std::net::TcpListener;
#[cfg(unix)]
use std::os::unix::net::UnixListener;
use std::time::Duration;

use crate::nbd::socket::Socket;

pub enum Listener {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener),
}

impl Listener {
    pub fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Listener::Tcp(listener) => listener.set_nonblocking(true),
            #[cfg(unix)]
            Listener::Unix(listener) => listener.set_nonblocking(true),
        }
    }

    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if no client waits.
    pub fn accept(&self) -> io::Result<Socket> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                // Some systems pass it on from the listener.
                stream.set_nonblocking(false)?;
                // The header of a reply must not wait for an answer to the one before.
                stream.set_nodelay(true)?;
                // A client that vanished would keep its connection for ever.
                #[cfg(unix)]
                rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
                Ok(stream.into())
            }
            #[cfg(unix)]
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                Ok(stream.into())
            }
        }
    }

    /// Waits until a client waits, a signal arrives, or the time is over.
    #[cfg(unix)]
    pub fn wait(&self, time: Duration) -> io::Result<()> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};

        let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
        let polled = match self {
            Listener::Tcp(listener) => poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&time)),
            Listener::Unix(listener) => poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&time)),
        };
        match polled {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for a part of the time.
    #[cfg(not(unix))]
    pub fn wait(&self, time: Duration) -> io::Result<()> {
        std::thread::sleep(time / 5);
        Ok(())
    }
}
