//! The handshake of a client: newstyle negotiation, which ends with an open export ("Newstyle negotiation", "Option haggling").

use std::io::{self, Read, Write};

use crate::nbd::protocol::{self as protocol, handshake, info, option, reply, transmission, violation};

/// Longest payload of an option reply that is read, in bytes: two strings and some numbers.
const MAX_OPTION_REPLY: u32 = 16 << 10;
/// Most replies to one option.
const MAX_REPLIES: usize = 1000;

/// An export and the ways of using it that were negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// Length in bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Offsets and lengths of requests are multiples of it, a power of two up to 64 KiB.
    pub min_block: u32,
    /// Longest payload in bytes, a multiple of `min_block` up to 32 MiB.
    pub max_payload: u32,
    /// Whether replies are structured.
    pub structured: bool,
    /// The ID of the metadata context that was asked for, if the server has it.
    pub context: Option<u32>,
}

impl Export {
    /// Whether the export has this transmission flag.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Opens the export `name`.
///
/// # Errors
/// As [`greet`] and [`Greeting::open`].
pub fn negotiate<S: Read + Write + ?Sized>(stream: &mut S, name: &str) -> io::Result<Export> {
    greet(stream)?.open(stream, name, protocol::ALLOCATION)
}

/// The flags that client and server have in common.
pub struct Greeting(u16);

/// The beginning of the negotiation.
///
/// # Errors
/// Those of the stream; [`io::ErrorKind::InvalidData`] if the server breaks the protocol.
pub fn greet<S: Read + Write + ?Sized>(mut stream: &mut S) -> io::Result<Greeting> {
    let magic = protocol::u64(&mut stream)?;
    if magic != protocol::MAGIC {
        return Err(violation("the peer is not an NBD server"));
    }
    match protocol::u64(&mut stream)? {
        protocol::OPTION_MAGIC => {}
        protocol::OLDSTYLE_MAGIC => return Err(unsupported("the server speaks the oldstyle protocol only")),
        _ => return Err(violation("the peer is not an NBD server")),
    }
    let flags = protocol::u16(&mut stream)?;
    let common = flags & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
    stream.write_all(&u32::from(common).to_be_bytes())?;
    Ok(Greeting(common))
}

impl Greeting {
    fn has(&self, flag: u16) -> bool {
        self.0 & flag != 0
    }

    /// Agrees on TLS, whose handshake is the next in the stream ("NBD_OPT_STARTTLS").
    ///
    /// # Errors
    /// Those of the stream, and of a server without TLS.
    pub fn start_tls<S: Read + Write + ?Sized>(&self, stream: &mut S) -> io::Result<()> {
        let mut options = Options { stream, zeroes: false };
        if !self.has(handshake::FIXED_NEWSTYLE) || !options.is_accepted(option::STARTTLS)? {
            return Err(unsupported("the server does not support TLS"));
        }
        Ok(())
    }

    /// Opens the export `name`, with this metadata context.
    ///
    /// # Errors
    /// Those of the stream; [`io::ErrorKind::NotFound`] if the server has no such export; [`io::ErrorKind::InvalidData`] if it breaks the
    /// protocol.
    pub fn open<S: Read + Write + ?Sized>(&self, stream: &mut S, name: &str, context: &str) -> io::Result<Export> {
        let mut options = Options { stream, zeroes: !self.has(handshake::NO_ZEROES) };
        if !self.has(handshake::FIXED_NEWSTYLE) {
            return options.export_name(name);
        }
        let structured = options.is_accepted(option::STRUCTURED_REPLY)?;
        let context = if structured { options.set_meta_context(name, context)? } else { None };
        let export = options.go(name)?;
        let export = match export {
            Some(export) => export,
            None => options.export_name(name)?,
        };
        Ok(Export { structured, context, ..export })
    }
}

/// The options phase.
struct Options<'a, S: ?Sized> {
    stream: &'a mut S,
    /// Whether 124 zeros follow the reply to `NBD_OPT_EXPORT_NAME`.
    zeroes: bool,
}

/// A reply to an option.
struct Reply {
    kind: u32,
    data: Vec<u8>,
}

impl<S: Read + Write + ?Sized> Options<'_, S> {
    fn send(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let mut message = Vec::with_capacity(16 + data.len());
        message.extend(protocol::OPTION_MAGIC.to_be_bytes());
        message.extend(option.to_be_bytes());
        message.extend((data.len() as u32).to_be_bytes());
        message.extend(data);
        self.stream.write_all(&message)
    }

    fn reply(&mut self, option: u32) -> io::Result<Reply> {
        let from = &mut self.stream;
        if protocol::u64(from)? != protocol::OPTION_REPLY_MAGIC {
            return Err(violation("wrong magic number of an option reply"));
        }
        let (answered, kind, len) = (protocol::u32(from)?, protocol::u32(from)?, protocol::u32(from)?);
        if answered != option {
            return Err(violation(format!("option {option} was sent, option {answered} answered")));
        }
        if len > MAX_OPTION_REPLY {
            return Err(violation(format!("an option reply of {len} bytes, expected at most {MAX_OPTION_REPLY}")));
        }
        let mut data = vec![0; len as usize];
        from.read_exact(&mut data)?;
        Ok(Reply { kind, data })
    }

    /// Sends an option without data, and returns whether the server accepts it.
    fn is_accepted(&mut self, option: u32) -> io::Result<bool> {
        self.send(option, &[])?;
        match self.reply(option)? {
            Reply { kind: reply::ACK, .. } => Ok(true),
            refusal if refusal.is_final() => Err(refusal.into_error()),
            Reply { kind: reply::ERROR.., .. } => Ok(false),
            Reply { kind, .. } => Err(unexpected(kind)),
        }
    }

    /// Selects a metadata context, and returns its ID.
    fn set_meta_context(&mut self, name: &str, context: &str) -> io::Result<Option<u32>> {
        let mut data = Vec::new();
        protocol::push_string(&mut data, name);
        data.extend(1_u32.to_be_bytes());
        protocol::push_string(&mut data, context);
        self.send(option::SET_META_CONTEXT, &data)?;
        let mut id = None;
        for _ in 0..MAX_REPLIES {
            match self.reply(option::SET_META_CONTEXT)? {
                Reply { kind: reply::META_CONTEXT, data } => {
                    let mut data = &data[..];
                    let own = protocol::u32(&mut data).map_err(|_| violation("a context without an ID"))?;
                    if data == context.as_bytes() {
                        id = Some(own);
                    }
                }
                Reply { kind: reply::ACK, .. } => return Ok(id),
                refusal if refusal.is_final() => return Err(refusal.into_error()),
                Reply { kind: reply::ERROR.., .. } => return Ok(None),
                Reply { kind, .. } => return Err(unexpected(kind)),
            }
        }
        Err(violation("too many replies to one option"))
    }

    /// Opens the export with `NBD_OPT_GO`; `None` if the server does not know this option.
    fn go(&mut self, name: &str) -> io::Result<Option<Export>> {
        let mut data = Vec::new();
        protocol::push_string(&mut data, name);
        data.extend(1_u16.to_be_bytes());
        data.extend(info::BLOCK_SIZE.to_be_bytes());
        self.send(option::GO, &data)?;
        let (mut export, mut blocks) = (None, None);
        for _ in 0..MAX_REPLIES {
            match self.reply(option::GO)? {
                Reply { kind: reply::INFO, data } => {
                    let mut data = &data[..];
                    let short = |_| violation("a truncated information reply");
                    match protocol::u16(&mut data).map_err(short)? {
                        info::EXPORT => {
                            let size = protocol::u64(&mut data).map_err(short)?;
                            export = Some((size, protocol::u16(&mut data).map_err(short)?));
                        }
                        info::BLOCK_SIZE => {
                            let min = protocol::u32(&mut data).map_err(short)?;
                            let _preferred = protocol::u32(&mut data).map_err(short)?;
                            blocks = Some((min, protocol::u32(&mut data).map_err(short)?));
                        }
                        // "The client MUST ignore information types it does not understand."
                        _ => {}
                    }
                }
                Reply { kind: reply::ACK, .. } => {
                    let (size, flags) = export.ok_or_else(|| violation("no size of the export"))?;
                    return checked(size, flags, blocks).map(Some);
                }
                Reply { kind: reply::ERR_UNSUP, .. } => return Ok(None),
                refusal if refusal.kind >= reply::ERROR => return Err(refusal.into_error()),
                Reply { kind, .. } => return Err(unexpected(kind)),
            }
        }
        Err(violation("too many replies to one option"))
    }

    /// Opens the export with `NBD_OPT_EXPORT_NAME`. A server that does not have it closes the connection.
    fn export_name(&mut self, name: &str) -> io::Result<Export> {
        self.send(option::EXPORT_NAME, name.as_bytes())?;
        let closed = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(io::ErrorKind::NotFound, "the server has no such export"),
            _ => error,
        };
        let size = protocol::u64(&mut self.stream).map_err(closed)?;
        let flags = protocol::u16(&mut self.stream)?;
        if self.zeroes {
            protocol::skip(&mut self.stream, 124)?;
        }
        checked(size, flags, None)
    }
}

/// Checks the numbers of an export.
fn checked(size: u64, flags: u16, blocks: Option<(u32, u32)>) -> io::Result<Export> {
    if size > i64::MAX as u64 {
        return Err(violation(format!("the export has {size} bytes, expected less than 2^63")));
    }
    if flags & transmission::HAS_FLAGS == 0 {
        return Err(violation("the transmission flags lack NBD_FLAG_HAS_FLAGS"));
    }
    // "Block size constraints": a client that knows none works best with whole sectors.
    let sector = if size.is_multiple_of(512) { 512 } else { 1 };
    let (min_block, max) = blocks.unwrap_or((sector, protocol::MAX_PAYLOAD));
    if !min_block.is_power_of_two() || min_block > 64 << 10 || max < min_block {
        return Err(violation(format!("block sizes from {min_block} to {max} bytes")));
    }
    let max = max.min(protocol::MAX_PAYLOAD);
    let max_payload = max - max % min_block;
    Ok(Export { size, flags, min_block, max_payload, structured: false, context: None })
}

impl Reply {
    /// Whether the server refuses every other option, too.
    fn is_final(&self) -> bool {
        matches!(self.kind, reply::ERR_TLS_REQD | reply::ERR_SHUTDOWN)
    }

    fn into_error(self) -> io::Error {
        let (kind, problem) = match self.kind {
            reply::ERR_UNKNOWN => (io::ErrorKind::NotFound, "the server has no such export".to_owned()),
            reply::ERR_TLS_REQD => return unsupported("the server requires TLS; use nbds:"),
            reply::ERR_POLICY => (io::ErrorKind::PermissionDenied, "refused by the policy of the server".to_owned()),
            reply::ERR_SHUTDOWN => (io::ErrorKind::ConnectionAborted, "the server is shutting down".to_owned()),
            reply::ERR_PLATFORM => (io::ErrorKind::Unsupported, "not supported by the server".to_owned()),
            kind => (io::ErrorKind::Other, format!("the server refuses the export with error {kind:#x}")),
        };
        io::Error::new(kind, with_message(problem, &self.data))
    }
}

/// The problem with the message of the server, which is text for people: control characters are left out.
pub fn with_message(problem: String, message: &[u8]) -> String {
    let message: String = String::from_utf8_lossy(message).chars().filter(|c| !c.is_control()).take(256).collect();
    if message.is_empty() { problem } else { format!("{problem}: {message}") }
}

fn unexpected(kind: u32) -> io::Error {
    violation(format!("unexpected option reply {kind:#x}"))
}

fn unsupported(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, problem)
}
