//! The handshake of a server: fixed newstyle negotiation ("Newstyle negotiation", "Option haggling").

use std::io::{self, Read, Write};

use super::Server;
use crate::nbd::protocol::{self as protocol, handshake, info, option, reply, transmission, violation};

/// Longest data of an option in bytes. A client that sends more is disconnected.
const MAX_OPTION: u32 = 64 << 10;
/// The ID of the context `base:allocation`.
pub const ALLOCATION_ID: u32 = 1;

/// What a client has negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// Whether replies are structured.
    pub structured: bool,
    /// Whether the context `base:allocation` is selected.
    pub allocation: bool,
}

/// Where the negotiation leads.
pub enum Outcome {
    /// The client leaves without opening the export.
    Leaves,
    /// The client has opened the export.
    Opens(Session),
    /// The handshake of TLS is the next in the stream, and the negotiation goes on after it.
    Secures,
}

/// The flags of the client.
#[derive(Clone, Copy)]
pub struct Greeting(u32);

/// The beginning of the negotiation.
///
/// # Errors
/// Those of the stream; [`io::ErrorKind::InvalidData`] if the client breaks the protocol.
pub fn greet<S: Read + Write>(stream: &mut S) -> io::Result<Greeting> {
    let mut hello = [protocol::MAGIC, protocol::OPTION_MAGIC].map(u64::to_be_bytes).concat();
    hello.extend((handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES).to_be_bytes());
    stream.write_all(&hello)?;
    let flags = protocol::u32(stream)?;
    let known = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
    if flags & !u32::from(known) != 0 {
        return Err(violation(format!("unknown client flags {flags:#x}")));
    }
    Ok(Greeting(flags))
}

impl Greeting {
    fn has(self, flag: u16) -> bool {
        self.0 & u32::from(flag) != 0
    }
}

/// Negotiates with a client until it opens the export. A client that `must_secure` the connection can do nothing else.
///
/// # Errors
/// Those of the stream; [`io::ErrorKind::InvalidData`] if the client breaks the protocol.
pub fn negotiate<S: Read + Write>(
    stream: &mut S,
    greeting: Greeting,
    server: &Server,
    must_secure: bool,
) -> io::Result<Outcome> {
    let mut haggling = Haggling { stream, server, session: Session::default() };
    loop {
        let (option, data) = haggling.option()?;
        match option {
            // There is no way to refuse it.
            option::EXPORT_NAME if must_secure => return Ok(Outcome::Leaves),
            option::EXPORT_NAME => {
                let opened = haggling.export_name(&data, !greeting.has(handshake::NO_ZEROES))?;
                return Ok(opened.map_or(Outcome::Leaves, Outcome::Opens));
            }
            // The only option of the unfixed negotiation is that one.
            _ if !greeting.has(handshake::FIXED_NEWSTYLE) => {
                return Err(violation("an option without fixed newstyle negotiation"));
            }
            option::ABORT => {
                // The client may have closed the connection already.
                let _ = haggling.reply(option, reply::ACK, &[]);
                return Ok(Outcome::Leaves);
            }
            option::STARTTLS if must_secure && data.is_empty() => {
                haggling.reply(option, reply::ACK, &[])?;
                return Ok(Outcome::Secures);
            }
            option::STARTTLS if server.tls.is_some() => haggling.invalid(option)?,
            _ if must_secure => haggling.reply(option, reply::ERR_TLS_REQD, b"TLS is required")?,
            option::GO => {
                if haggling.inform(option, &data)? {
                    return Ok(Outcome::Opens(haggling.session));
                }
            }
            option::INFO => {
                haggling.inform(option, &data)?;
            }
            option::LIST => haggling.list(&data)?,
            option::STRUCTURED_REPLY => haggling.structured_reply(&data)?,
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => haggling.meta_context(option, &data)?,
            _ => haggling.reply(option, reply::ERR_UNSUP, b"unknown option")?,
        }
    }
}

struct Haggling<'a, S> {
    stream: &'a mut S,
    server: &'a Server,
    session: Session,
}

impl<S: Read + Write> Haggling<'_, S> {
    /// Reads an option and its data.
    fn option(&mut self) -> io::Result<(u32, Vec<u8>)> {
        let magic = protocol::u64(self.stream)?;
        if magic != protocol::OPTION_MAGIC {
            return Err(violation(format!("the magic number of an option is {magic:#x}")));
        }
        let (option, len) = (protocol::u32(self.stream)?, protocol::u32(self.stream)?);
        if len > MAX_OPTION {
            return Err(violation(format!("an option with {len} bytes, expected at most {MAX_OPTION}")));
        }
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data)?;
        Ok((option, data))
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let mut message = Vec::with_capacity(20 + data.len());
        message.extend(protocol::OPTION_REPLY_MAGIC.to_be_bytes());
        message.extend([option, kind, data.len() as u32].map(u32::to_be_bytes).concat());
        message.extend(data);
        self.stream.write_all(&message)
    }

    fn has_export(&self, name: &str) -> bool {
        // An empty name is that of the default export.
        name.is_empty() || name == self.server.name
    }

    /// The size and the transmission flags.
    fn export(&self) -> [u8; 10] {
        // A flush is one of all that was written, whichever connection it came by.
        let several = if self.server.connections > 1 { transmission::CAN_MULTI_CONN } else { 0 };
        let writing = match self.server.export.is_writable() {
            true => transmission::SEND_FUA | transmission::SEND_TRIM | transmission::SEND_WRITE_ZEROES,
            false => transmission::READ_ONLY,
        };
        let flags = transmission::HAS_FLAGS | transmission::SEND_FLUSH | writing | several;
        let mut bytes = [0; 10];
        let parts = self.server.export.size().to_be_bytes().into_iter().chain(flags.to_be_bytes());
        bytes.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
        bytes
    }

    /// "NBD_OPT_EXPORT_NAME": there is no reply to an unknown name, but the end of the connection.
    fn export_name(&mut self, name: &[u8], zeroes: bool) -> io::Result<Option<Session>> {
        if !std::str::from_utf8(name).is_ok_and(|name| self.has_export(name)) {
            return Ok(None);
        }
        let mut answer = self.export().to_vec();
        answer.resize(answer.len() + if zeroes { 124 } else { 0 }, 0);
        self.stream.write_all(&answer)?;
        Ok(Some(self.session))
    }

    /// "NBD_OPT_INFO", "NBD_OPT_GO": describes the export, and returns whether there is one of this name.
    fn inform(&mut self, option: u32, mut data: &[u8]) -> io::Result<bool> {
        let from = &mut data;
        let Ok(name) = protocol::string(from) else { return self.invalid(option).map(|()| false) };
        let Ok(count) = protocol::u16(from) else { return self.invalid(option).map(|()| false) };
        let wanted: Vec<_> = data.chunks(2).map(|mut bytes| protocol::u16(&mut bytes).ok()).collect();
        if wanted.len() != usize::from(count) || wanted.contains(&None) {
            return self.invalid(option).map(|()| false);
        }
        if !self.has_export(&name) {
            return self.reply(option, reply::ERR_UNKNOWN, b"no such export").map(|()| false);
        }
        let export = [&info::EXPORT.to_be_bytes()[..], &self.export()].concat();
        self.reply(option, reply::INFO, &export)?;
        if wanted.contains(&Some(info::NAME)) {
            let name = [&info::NAME.to_be_bytes()[..], self.server.name.as_bytes()].concat();
            self.reply(option, reply::INFO, &name)?;
        }
        // "Block size constraints": requests of any length at any offset.
        let block = self.server.export.with_image(|image| image.info().block_size);
        let block = block.filter(|size| size.is_power_of_two());
        let preferred = block.unwrap_or(0).clamp(4096, protocol::MAX_PAYLOAD);
        let mut blocks = info::BLOCK_SIZE.to_be_bytes().to_vec();
        blocks.extend([1, preferred, protocol::MAX_PAYLOAD].map(u32::to_be_bytes).concat());
        self.reply(option, reply::INFO, &blocks)?;
        self.reply(option, reply::ACK, &[]).map(|()| true)
    }

    fn list(&mut self, data: &[u8]) -> io::Result<()> {
        if !data.is_empty() {
            return self.invalid(option::LIST);
        }
        let mut export = Vec::new();
        protocol::push_string(&mut export, &self.server.name);
        self.reply(option::LIST, reply::SERVER, &export)?;
        self.reply(option::LIST, reply::ACK, &[])
    }

    fn structured_reply(&mut self, data: &[u8]) -> io::Result<()> {
        if !data.is_empty() {
            return self.invalid(option::STRUCTURED_REPLY);
        }
        self.session.structured = true;
        self.reply(option::STRUCTURED_REPLY, reply::ACK, &[])
    }

    /// Lists or selects contexts, of which there is one.
    fn meta_context(&mut self, option: u32, mut data: &[u8]) -> io::Result<()> {
        let is_list = option == option::LIST_META_CONTEXT;
        if !is_list {
            // "Issuing this command replaces all previously-set metadata contexts."
            self.session.allocation = false;
        }
        let from = &mut data;
        let (Ok(name), Ok(count)) = (protocol::string(from), protocol::u32(from)) else { return self.invalid(option) };
        let mut queries = Vec::new();
        for _ in 0..count {
            // Each takes bytes of the data, which are bounded.
            match protocol::string(from) {
                Ok(query) => queries.push(query),
                Err(_) => return self.invalid(option),
            }
        }
        if !data.is_empty() || !self.session.structured {
            return self.invalid(option);
        }
        if !self.has_export(&name) {
            return self.reply(option, reply::ERR_UNKNOWN, b"no such export");
        }
        let selects = |query: &String| query == protocol::ALLOCATION || is_list && query == "base:";
        if queries.iter().any(selects) || is_list && queries.is_empty() {
            let id = if is_list { 0 } else { ALLOCATION_ID };
            let context = [&id.to_be_bytes()[..], protocol::ALLOCATION.as_bytes()].concat();
            self.reply(option, reply::META_CONTEXT, &context)?;
            self.session.allocation |= !is_list;
        }
        self.reply(option, reply::ACK, &[])
    }

    fn invalid(&mut self, option: u32) -> io::Result<()> {
        self.reply(option, reply::ERR_INVALID, b"invalid data")
    }
}
