//! A server: an opened image as an export, for reading, or for writing too.

mod export;
mod handshake;
mod listener;
#[cfg(test)]
mod tests;
mod transmission;
mod write;

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpListener;
#[cfg(unix)]
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use super::protocol::{self, MAX_STRING};
use super::socket::Socket;
#[cfg(feature = "disk")]
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::tls;
use export::Export;
use handshake::Outcome;
use listener::Listener;

/// Time for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// Time in which a client has to go on with taking a reply. It may send its next request at any time.
const TAKES_REPLY: Duration = Duration::from_secs(60);
/// Time between two looks at the flag that ends the server.
const INTERVAL: Duration = Duration::from_millis(100);
/// Default number of connections.
const CONNECTIONS: usize = 16;

/// Exports an image to NBD clients over any number of connections, with its map of data, holes and zeros: read-only, or for [writing](Self::writable).
///
/// Each connection is served by a thread, in about 1 MiB of memory. Without [TLS](Server::tls) there is no authentication and no encryption: let a TCP
/// listener be one of the loopback address, or let a Unix socket be in a directory that only the clients can enter.
///
/// ```
/// use std::net::TcpListener;
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicBool, Ordering};
/// use std::thread;
///
/// use diskimage::io::MemFile;
/// use diskimage::nbd::{self, Server};
/// use diskimage::{Converter, Format, OpenOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let file = Arc::new(MemFile::new());
/// Converter::new(Format::QCOW2).create_to(1 << 30, file.clone())?;
/// let stop = Arc::new(AtomicBool::new(false));
/// let server = Server::new(OpenOptions::new().open_source(file)?)?.cancel(stop.clone());
///
/// let listener = TcpListener::bind("127.0.0.1:0")?;
/// let uri = format!("nbd://{}/", listener.local_addr()?);
/// let server = thread::spawn(move || server.serve_tcp(listener));
///
/// // The clients of the server see the guest data.
/// let disk = OpenOptions::new().open_source(Arc::new(nbd::connect(&uri)?))?;
/// assert_eq!((disk.format(), disk.virtual_size()), (Format::RAW, 1 << 30));
/// drop(disk);
///
/// stop.store(true, Ordering::Relaxed);
/// server.join().expect("the server does not panic")?;
/// # Ok(())
/// # }
/// ```
pub struct Server {
    export: Export,
    name: String,
    connections: usize,
    once: bool,
    tls: Option<tls::Server>,
    cancel: Option<Arc<AtomicBool>>,
    on_error: Option<Arc<ReportError>>,
}

type ReportError = dyn Fn(&Error) + Send + Sync;

impl Server {
    /// A server of `image`. Its only export is the default one, with an empty name.
    ///
    /// # Errors
    /// [`Error::Usage`] for an image that can be read once only.
    pub fn new(image: Image) -> Result<Server> {
        if image.is_in_order() {
            return Err(Error::Usage("an image that is read in one pass cannot be exported".into()));
        }
        Ok(Server::with_export(Export::Image(image)))
    }

    /// A server of a disk that clients read and write. A flush of one client makes durable what all of them wrote; who owns the disk flushes
    /// it at the end.
    ///
    /// ```
    /// use std::sync::Arc;
    /// # use std::io::{self, Read, Write};
    ///
    /// use diskimage::OpenOptions;
    /// use diskimage::io::MemFile;
    /// use diskimage::nbd::Server;
    ///
    /// # struct Stream;
    /// # impl Read for Stream {
    /// #     fn read(&mut self, _: &mut [u8]) -> io::Result<usize> { Ok(0) }
    /// # }
    /// # impl Write for Stream {
    /// #     fn write(&mut self, buf: &[u8]) -> io::Result<usize> { Ok(buf.len()) }
    /// #     fn flush(&mut self) -> io::Result<()> { Ok(()) }
    /// # }
    /// # fn accept() -> Stream { Stream }
    /// let file = Arc::new(MemFile::from(vec![0; 1 << 20]));
    /// let disk = Arc::new(OpenOptions::new().format(diskimage::Format::RAW).open_disk_in(file)?);
    /// let server = Server::writable(disk.clone());
    /// let _ = server.serve_stream(accept());
    /// disk.flush()?;
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[cfg(feature = "disk")]
    pub fn writable(disk: Arc<Disk>) -> Server {
        Server::with_export(Export::Disk(disk))
    }

    fn with_export(export: Export) -> Server {
        let name = String::new();
        Server { export, name, connections: CONNECTIONS, once: false, tls: None, cancel: None, on_error: None }
    }

    /// Sets the name of the export, which clients can leave empty as well.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name with a NUL character or of more than 4096 bytes.
    pub fn export_name(mut self, name: impl Into<String>) -> Result<Server> {
        self.name = name.into();
        match self.name.len() {
            0..=MAX_STRING if !self.name.contains('\0') => Ok(self),
            _ => {
                let problem = format!("an export name must have no NUL character and at most {MAX_STRING} bytes");
                Err(Error::Usage(problem))
            }
        }
    }

    /// Sets the largest number of connections, at least 1. Further clients wait. Default: 16.
    #[must_use]
    pub fn connections(mut self, connections: usize) -> Server {
        self.connections = connections.max(1);
        self
    }

    /// Whether the server ends when there was a client that opened the export, and none is connected any more. Default: false.
    #[must_use]
    pub fn once(mut self, once: bool) -> Server {
        self.once = once;
        self
    }

    /// Requires TLS of all clients that connect to a socket. The directory has the certificate of the server and its key, `server-cert.pem` and
    /// `server-key.pem`. If it has a `ca-cert.pem`, clients are known by a certificate which that authority has signed; otherwise everyone can connect.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without the feature `tls`, and for a processor without TLS; [`Error::Usage`] for what is no certificate; errors of the
    /// files.
    ///
    /// ```no_run
    /// use diskimage::Image;
    /// use diskimage::nbd::Server;
    ///
    /// let server = Server::new(Image::open("disk.qcow2")?)?.tls("/etc/pki/nbd")?;
    /// # let _ = server;
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    pub fn tls(mut self, certificates: impl AsRef<Path>) -> Result<Server> {
        self.tls = Some(tls::Server::new(certificates.as_ref())?);
        Ok(self)
    }

    /// Ends the server, and all its connections, soon after `cancel` becomes true.
    #[must_use]
    pub fn cancel(mut self, cancel: Arc<AtomicBool>) -> Server {
        self.cancel = Some(cancel);
        self
    }

    /// Calls `report` with each error of the image or disk, from any thread. Clients learn only that there is one: its message names files of this
    /// machine.
    #[must_use]
    pub fn on_error(mut self, report: impl Fn(&Error) + Send + Sync + 'static) -> Server {
        self.on_error = Some(Arc::new(report));
        self
    }

    /// Serves clients over TCP, until the server is [cancelled](Self::cancel) or has served [once](Self::once).
    ///
    /// # Errors
    /// Those of the system. What clients do is no error.
    pub fn serve_tcp(&self, listener: TcpListener) -> Result<()> {
        self.serve(&Listener::Tcp(listener))
    }

    /// Serves clients over a Unix socket, as [`serve_tcp`](Self::serve_tcp) does. The file of the socket remains.
    ///
    /// # Errors
    /// As [`serve_tcp`](Self::serve_tcp).
    #[cfg(unix)]
    pub fn serve_unix(&self, listener: UnixListener) -> Result<()> {
        self.serve(&Listener::Unix(listener))
    }

    /// Serves the client at the other end of a stream until it disconnects. Time limits are those of the stream, and TLS is an affair of the
    /// caller.
    ///
    /// # Errors
    /// Errors of the stream, and of the kind [`io::ErrorKind::InvalidData`] if the client breaks the protocol.
    ///
    /// ```no_run
    /// use diskimage::Image;
    /// use diskimage::nbd::Server;
    ///
    /// # struct TlsStream(std::net::TcpStream);
    /// # impl std::io::Read for TlsStream {
    /// #     fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> { self.0.read(buf) }
    /// # }
    /// # impl std::io::Write for TlsStream {
    /// #     fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> { self.0.write(buf) }
    /// #     fn flush(&mut self) -> std::io::Result<()> { Ok(()) }
    /// # }
    /// # fn accept() -> TlsStream { unimplemented!() }
    /// let server = Server::new(Image::open("disk.qcow2")?)?;
    /// server.serve_stream(accept())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn serve_stream(&self, mut stream: impl Read + Write) -> io::Result<()> {
        let serve = || {
            let greeting = handshake::greet(&mut stream)?;
            match handshake::negotiate(&mut stream, greeting, self, false)? {
                Outcome::Opens(session) => transmission::run(stream, session, self),
                Outcome::Leaves | Outcome::Secures => Ok(()),
            }
        };
        serve().map_err(protocol::closed)
    }

    fn serve(&self, listener: &Listener) -> Result<()> {
        let failed = |action: &'static str| Error::io(action, None);
        listener.set_nonblocking().map_err(failed("setting up the socket"))?;
        let clients = Clients::default();
        thread::scope(|scope| {
            // Also after a panic: the scope waits for the threads of all clients.
            let _ends = ShutsDown(&clients);
            loop {
                if self.is_cancelled() {
                    return Ok(());
                }
                let state = clients.lock();
                if self.once && state.opened && state.sockets.is_empty() {
                    return Ok(());
                }
                if state.sockets.len() >= self.connections {
                    drop(clients.left.wait_timeout(state, INTERVAL).unwrap_or_else(PoisonError::into_inner));
                    continue;
                }
                drop(state);
                listener.wait(INTERVAL).map_err(failed("waiting for clients"))?;
                match listener.accept() {
                    Ok(socket) => self.start(scope, &clients, socket),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // The client is gone already, or there are too many open files, which other clients may close.
                    Err(_) => thread::sleep(INTERVAL),
                }
            }
        })
    }

    /// Serves a client in a thread of its own.
    fn start<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, clients: &'scope Clients, socket: Socket) {
        // Without a second handle, its thread could not be ended.
        let Ok(handle) = socket.try_clone() else { return };
        let id = clients.add(handle);
        let serve = move || {
            let _leaves = Leaves(clients, id);
            // What a client does is its own affair.
            let _ = self.serve_socket(socket, clients);
        };
        if thread::Builder::new().spawn_scoped(scope, serve).is_err() {
            clients.remove(id);
        }
    }

    fn serve_socket(&self, socket: Socket, clients: &Clients) -> io::Result<()> {
        let mut socket = socket.with_deadline(Instant::now() + HANDSHAKE);
        let greeting = handshake::greet(&mut socket)?;
        match (handshake::negotiate(&mut socket, greeting, self, self.tls.is_some())?, &self.tls) {
            (Outcome::Opens(session), _) => {
                clients.lock().opened = true;
                socket.set_timeouts(None, Some(TAKES_REPLY))?;
                transmission::run(socket, session, self)
            }
            (Outcome::Secures, Some(tls)) => {
                let mut secured = tls.accept(socket)?;
                let Outcome::Opens(session) = handshake::negotiate(&mut secured, greeting, self, false)? else {
                    return Ok(());
                };
                clients.lock().opened = true;
                secured.stream().set_timeouts(None, Some(TAKES_REPLY))?;
                transmission::run(secured, session, self)
            }
            (Outcome::Leaves | Outcome::Secures, _) => Ok(()),
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Server { export, name, connections, once, .. } = self;
        f.debug_struct("Server")
            .field("export", export)
            .field("name", name)
            .field("connections", connections)
            .field("once", once)
            .finish_non_exhaustive()
    }
}

/// The clients that are connected.
#[derive(Default)]
struct Clients {
    state: Mutex<State>,
    left: Condvar,
}

#[derive(Default)]
struct State {
    /// A handle of the socket of each.
    sockets: Vec<(u64, Socket)>,
    next_id: u64,
    /// Whether one has opened the export.
    opened: bool,
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, socket: Socket) -> u64 {
        let mut state = self.lock();
        state.next_id += 1;
        let id = state.next_id;
        state.sockets.push((id, socket));
        id
    }

    fn remove(&self, id: u64) {
        self.lock().sockets.retain(|(other, _)| *other != id);
        self.left.notify_all();
    }
}

/// Removes a client when its thread ends.
struct Leaves<'a>(&'a Clients, u64);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.remove(self.1);
    }
}

/// Disconnects all clients when the server ends.
struct ShutsDown<'a>(&'a Clients);

impl Drop for ShutsDown<'_> {
    fn drop(&mut self) {
        self.0.lock().sockets.iter().for_each(|(_, socket)| socket.shut_down());
    }
}
