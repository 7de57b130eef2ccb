//! A client: an export of a server as a file.

mod connection;
mod connector;
mod handshake;
mod pool;
mod status;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::address::{Address, Tls};
use super::protocol::{self, command, transmission};
use super::socket::Socket;
use crate::error::{Error, Result};
use crate::io::{ReadAt, WriteAt, write_zeros};
use crate::tls;
use connection::{Connection, Failure};
pub use connector::Connector;
use handshake::Export;
use pool::Pool;
use status::Extents;

/// Time for connecting, and for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// The same for each connection after the first: a server at its limit of connections does not answer.
const FURTHER_HANDSHAKE: Duration = Duration::from_secs(3);
/// Time in which a server has to go on with a reply, or with taking a request.
const ANSWER: Duration = Duration::from_secs(300);
/// Most connections to a server that allows several.
const MAX_CONNECTIONS: usize = 4;
/// Most bytes that one request zeroes or trims.
const MAX_ZEROES: u64 = 1 << 30;
/// Most requests for one call of [`ReadAt::next_data`], after which the rest counts as data: of a hole of 256 TiB.
const MAX_STATUS_REQUESTS: usize = 1 << 16;

/// An export of an NBD server, which is read and written like a block device. See the [module](super) for an example.
///
/// Holes are known from the server's context `base:allocation`. A server that allows it has up to 4 connections, one for each
/// thread that reads or writes.
#[derive(Debug)]
pub struct Client {
    /// What messages call it.
    name: PathBuf,
    export: Export,
    /// Whether the metadata context is `base:allocation`.
    knows_holes: bool,
    pool: Pool,
    /// The part of the map of data and zeros that was asked for last.
    extents: Mutex<Extents>,
    /// Held while a part of a block is replaced.
    partial_writes: Mutex<()>,
}

impl Client {
    /// Connects to the server that `uri` names, and opens the export.
    pub(super) fn connect(uri: &str, settings: &Connector) -> Result<Client> {
        let failed = |error: Error| error.in_file(uri.as_ref());
        let target = Target::new(uri, settings)?;
        let connection = target.connect(HANDSHAKE).map_err(Error::io("connecting", None)).map_err(failed)?;
        let most = if connection.export().has(transmission::CAN_MULTI_CONN) { MAX_CONNECTIONS } else { 1 };
        let reconnect = move || target.connect(FURTHER_HANDSHAKE);
        let export = *connection.export();
        let client = Client::new(uri.into(), export, Pool::new(connection, most, reconnect));
        match &settings.context {
            None => Ok(client),
            Some(context) if export.context.is_none() => {
                let problem = format!("the server does not have the metadata context {context}");
                Err(failed(Error::io("connecting", None)(io::Error::new(io::ErrorKind::Unsupported, problem))))
            }
            Some(_) => Ok(Client { knows_holes: false, ..client }),
        }
    }

    /// Opens the export of the server at the other end of a stream, such as a TLS connection or a pipe of SSH; an empty name is that of
    /// the default export. Time limits are those of the stream.
    ///
    /// # Errors
    /// Errors of the stream and of the server.
    ///
    /// ```no_run
    /// use std::net::TcpStream;
    /// use std::sync::Arc;
    ///
    /// use diskimage::OpenOptions;
    /// use diskimage::nbd::Client;
    ///
    /// let client = Client::from_stream(TcpStream::connect("localhost:10809")?, "disk")?;
    /// let image = OpenOptions::new().open_source(Arc::new(client))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_stream(mut stream: impl Read + Write + Send + 'static, export: &str) -> Result<Client> {
        let name = PathBuf::from(format!("NBD export '{export}'"));
        let negotiated = handshake::negotiate(&mut stream, export).map_err(protocol::closed);
        let negotiated = negotiated.map_err(Error::io("opening the export", None)).map_err(|e| e.in_file(&name))?;
        let closed = || Err(io::Error::new(io::ErrorKind::NotConnected, "the connection was closed after a failure"));
        let pool = Pool::new(Connection::new(Box::new(stream), negotiated), 1, closed);
        Ok(Client::new(name, negotiated, pool))
    }

    fn new(name: PathBuf, export: Export, pool: Pool) -> Client {
        Client { name, export, knows_holes: true, pool, extents: Mutex::default(), partial_writes: Mutex::default() }
    }

    /// Whether the server refuses to write.
    pub fn is_read_only(&self) -> bool {
        self.export.has(transmission::READ_ONLY)
    }

    /// The ranges from byte `offset` on, which is before the end of the export, with their states in the metadata context of the connection
    /// ([`Connector::context`], or else `base:allocation`): at least one, and not all.
    ///
    /// # Errors
    /// Errors of the server, which need not have the context.
    pub fn states(&self, offset: u64) -> io::Result<Vec<(Range<u64>, u32)>> {
        let Some(context) = self.export.context else {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the server does not have the metadata context"));
        };
        let (start, len) = self.status_request(offset);
        let read = |stream: &mut _, count| status::read_states(stream, start, count);
        let mut states = self.pool.with(|connection| connection.block_status(context, (start, len), read))?;
        states.retain(|(range, _)| range.end > offset);
        match states.first_mut() {
            Some((range, _)) => range.start = range.start.max(offset),
            None => return Err(protocol::violation("a reply without extents")),
        }
        Ok(states)
    }

    /// The start and the length of a request for the extents from `offset` on.
    fn status_request(&self, offset: u64) -> (u64, u32) {
        let start = self.block_at(offset).start;
        let most = u64::from(u32::MAX) - u64::from(u32::MAX) % self.min_block();
        (start, self.export.size.saturating_sub(start).min(most) as u32)
    }

    /// Tells the server that the data in `range` is not needed any more; what is read from there then is not defined. Does nothing if the
    /// server does not support it.
    ///
    /// # Errors
    /// As [`write_all_at`](WriteAt::write_all_at).
    pub fn trim(&self, range: Range<u64>) -> io::Result<()> {
        self.check_writable(range.end)?;
        if !self.export.has(transmission::SEND_TRIM) {
            return Ok(());
        }
        self.changing(|| {
            in_pieces(self.whole_blocks(&range), MAX_ZEROES, |piece, len| {
                Ok(self.pool.with(|connection| connection.execute(command::TRIM, piece.start, len))?)
            })
        })
    }

    fn min_block(&self) -> u64 {
        self.export.min_block.into()
    }

    /// The whole blocks in `range`; empty, at its start, if there are none.
    fn whole_blocks(&self, range: &Range<u64>) -> Range<u64> {
        let block = self.min_block();
        let start = range.start.checked_next_multiple_of(block).unwrap_or(u64::MAX);
        let end = range.end - range.end % block;
        if start < end { start..end } else { range.start..range.start }
    }

    /// The block with the byte at `offset`. The last one ends with the export.
    fn block_at(&self, offset: u64) -> Range<u64> {
        let start = offset - offset % self.min_block();
        start..(start + self.min_block()).min(self.export.size)
    }

    fn read_block(&self, block: &Range<u64>) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; (block.end - block.start) as usize];
        self.pool.with(|connection| connection.read(&mut bytes, block.start))?;
        Ok(bytes)
    }

    fn check_writable(&self, end: u64) -> io::Result<()> {
        if self.is_read_only() {
            return Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the export is read-only"));
        }
        match self.export.size {
            size if end <= size => Ok(()),
            size => {
                let problem = format!("the export has {size} bytes, and {end} are needed");
                Err(io::Error::new(io::ErrorKind::StorageFull, problem))
            }
        }
    }

    /// Writes whole blocks.
    fn write_blocks(&self, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            let (piece, rest) = buf.split_at(buf.len().min(self.export.max_payload as usize));
            self.pool.with(|connection| connection.write(piece, offset))?;
            (buf, offset) = (rest, offset + piece.len() as u64);
        }
        Ok(())
    }

    /// Replaces a part of the block with the byte at `offset`, and returns its length.
    fn write_in_block(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let _alone = lock(&self.partial_writes);
        let block = self.block_at(offset);
        let mut bytes = self.read_block(&block)?;
        let part = bytes.get_mut((offset - block.start) as usize..).unwrap_or_default();
        let len = part.len().min(buf.len());
        part.iter_mut().zip(buf).for_each(|(to, from)| *to = *from);
        self.write_blocks(&bytes, block.start)?;
        Ok(len)
    }

    /// Zeroes whole blocks.
    fn zero_blocks(&self, range: Range<u64>) -> io::Result<()> {
        in_pieces(range, MAX_ZEROES, |piece, len| {
            let zeroed = self.pool.with(|connection| connection.execute(command::WRITE_ZEROES, piece.start, len));
            match zeroed {
                // Some servers limit the length.
                Err(Failure::Refused(error))
                    if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) =>
                {
                    write_zeros(self, piece)
                }
                result => Ok(result?),
            }
        })
    }

    /// Changes the data, after which the map of it is asked for again.
    fn changing(&self, change: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let changed = change();
        *lock(&self.extents) = Extents::default();
        changed
    }

    fn write_all(&self, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            let is_aligned = offset.is_multiple_of(self.min_block());
            let whole = if is_aligned { buf.len() - buf.len() % self.export.min_block as usize } else { 0 };
            let (blocks, rest) = buf.split_at(whole);
            let written = match rest {
                _ if whole > 0 => self.write_blocks(blocks, offset).map(|()| whole),
                rest => self.write_in_block(rest, offset),
            }?;
            (buf, offset) = (buf.get(written..).unwrap_or_default(), offset + written as u64);
        }
        Ok(())
    }
}

impl ReadAt for Client {
    fn size(&self) -> io::Result<u64> {
        Ok(self.export.size)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = self.export.size.saturating_sub(offset).min(buf.len() as u64) as usize;
        if len == 0 {
            return Ok(0);
        }
        let block = self.block_at(offset);
        let whole = len.min(self.export.max_payload as usize);
        let whole = whole - whole % self.export.min_block as usize;
        if offset == block.start && whole > 0 {
            let part = buf.get_mut(..whole).unwrap_or_default();
            self.pool.with(|connection| connection.read(part, offset))?;
            return Ok(whole);
        }
        let bytes = self.read_block(&block)?;
        let rest = bytes.get((offset - block.start) as usize..).unwrap_or_default();
        let len = len.min(rest.len());
        buf.iter_mut().zip(rest).take(len).for_each(|(to, from)| *to = *from);
        Ok(len)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let Some(context) = self.export.context.filter(|_| self.knows_holes) else { return Ok(Some(offset..u64::MAX)) };
        let mut at = offset;
        for _ in 0..MAX_STATUS_REQUESTS {
            if at >= self.export.size {
                return Ok(None);
            }
            let mut known = lock(&self.extents);
            if !known.range().contains(&at) {
                let (start, len) = self.status_request(at);
                let read = |stream: &mut _, count| Extents::read(stream, start, count);
                match self.pool.with(|connection| connection.block_status(context, (start, len), read)) {
                    Ok(extents) => *known = extents,
                    // The server does not know: reading tells.
                    Err(Failure::Refused(_)) => return Ok(Some(at..u64::MAX)),
                    Err(Failure::Broken(error)) => return Err(error),
                }
            }
            match known.next_data(at) {
                Some(data) => return Ok(Some(data)),
                // Never backwards, if the extents do not reach what was asked for.
                None => at = known.range().end.max(at + 1),
            }
        }
        Ok(Some(at..u64::MAX))
    }

    fn name(&self) -> Option<&Path> {
        Some(&self.name)
    }
}

impl WriteAt for Client {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check_writable(offset.saturating_add(buf.len() as u64))?;
        self.changing(|| self.write_all(buf, offset))
    }

    /// The size of an export does not change; it has to be large enough.
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable(len)
    }

    fn sync(&self) -> io::Result<()> {
        if !self.export.has(transmission::SEND_FLUSH) {
            return Ok(());
        }
        // "NBD_FLAG_CAN_MULTI_CONN": a flush is one of the writes of all connections.
        Ok(self.pool.with(|connection| connection.execute(command::FLUSH, 0, 0))?)
    }

    /// The export has old content.
    fn starts_zeroed(&self) -> bool {
        false
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.name)
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        self.check_writable(range.end)?;
        let whole = self.whole_blocks(&range);
        if whole.is_empty() || !self.export.has(transmission::SEND_WRITE_ZEROES) {
            return write_zeros(self, range);
        }
        write_zeros(self, range.start..whole.start)?;
        write_zeros(self, whole.end..range.end)?;
        self.changing(|| self.zero_blocks(whole))
    }
}

/// Where to connect to, and how.
struct Target {
    address: Address,
    /// TLS, and the name that the certificate of the server has to be for.
    tls: Option<(tls::Client, String)>,
    cancel: Option<Arc<AtomicBool>>,
    /// The metadata context.
    context: String,
}

impl Target {
    fn new(uri: &str, settings: &Connector) -> Result<Target> {
        let address = Address::parse(uri)?;
        let secure = |tls: &Tls| Ok((tls::Client::new(tls.certificates.as_deref())?, tls.host(&address.server)));
        let tls = address.tls.as_ref().map(secure).transpose()?;
        let context = settings.context.clone().unwrap_or(protocol::ALLOCATION.into());
        Ok(Target { tls, address, cancel: settings.cancel.clone(), context })
    }

    /// Connects, and opens the export within `time`.
    fn connect(&self, time: Duration) -> io::Result<Connection> {
        let mut socket = Socket::connect(&self.address.server, Instant::now() + time, self.cancel.clone())?;
        let greeting = handshake::greet(&mut socket).map_err(protocol::closed)?;
        let name = &self.address.export;
        let Some((tls, host)) = &self.tls else {
            let export = greeting.open(&mut socket, name, &self.context).map_err(protocol::closed)?;
            socket.set_timeouts(Some(ANSWER), Some(ANSWER))?;
            return Ok(Connection::new(Box::new(socket), export));
        };
        greeting.start_tls(&mut socket).map_err(protocol::closed)?;
        let mut secured = tls.connect(socket, host).map_err(protocol::closed)?;
        let export = greeting.open(&mut secured, name, &self.context).map_err(protocol::closed)?;
        secured.stream().set_timeouts(Some(ANSWER), Some(ANSWER))?;
        Ok(Connection::new(Box::new(secured), export))
    }
}

/// Calls `each` with pieces of the range, and their lengths.
fn in_pieces(range: Range<u64>, most: u64, each: impl Fn(Range<u64>, u32) -> io::Result<()>) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(most);
        each(at..at + len, len as u32)?;
        at += len;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
