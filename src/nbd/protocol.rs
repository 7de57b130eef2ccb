//! Numbers of the protocol, with the names of `doc/proto.md` of NetworkBlockDevice/nbd ("Values"), and reading and writing them. All
//! fields are big-endian.

use std::io::{self, Read};

/// "NBDMAGIC", the first bytes of a server ("Fixed newstyle negotiation").
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT": newstyle, and the start of each option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// The second number of the oldstyle negotiation, which is not supported.
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Longest string: of an export name, of a message ("Conventions").
pub const MAX_STRING: usize = 4096;
/// The longest payload that every peer has to accept ("Block size constraints").
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// The name of the metadata context with data, holes and zeros ("Metadata contexts").
pub const ALLOCATION: &str = "base:allocation";

/// Handshake flags, of both sides ("Flag fields", "Handshake flags").
pub mod handshake {
    pub const FIXED_NEWSTYLE: u16 = 1;
    pub const NO_ZEROES: u16 = 2;
}

/// Transmission flags of an export ("Transmission flags").
pub mod transmission {
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Option types ("Option types").
pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Option reply types ("Option reply types"). The highest bit is that of an error.
pub mod reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR + 1;
    pub const ERR_POLICY: u32 = ERROR + 2;
    pub const ERR_INVALID: u32 = ERROR + 3;
    pub const ERR_PLATFORM: u32 = ERROR + 4;
    pub const ERR_TLS_REQD: u32 = ERROR + 5;
    pub const ERR_UNKNOWN: u32 = ERROR + 6;
    pub const ERR_SHUTDOWN: u32 = ERROR + 7;
}

/// Information types of `NBD_REP_INFO`.
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Request types ("Request types").
pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISCONNECT: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Command flags ("Command flags").
pub mod command_flag {
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const REQ_ONE: u16 = 1 << 3;
}

/// Structured reply types ("Structured reply types"). The highest bit is that of an error.
pub mod chunk {
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const IS_ERROR: u16 = 1 << 15;
    pub const ERROR: u16 = IS_ERROR + 1;
    /// The flag of the last chunk of a reply.
    pub const DONE: u16 = 1;
}

/// Flags of an extent of `base:allocation`.
pub mod state {
    pub const HOLE: u32 = 1;
    pub const ZERO: u32 = 2;
}

/// Error values ("Error values").
pub mod error {
    pub const EPERM: u32 = 1;
    pub const EIO: u32 = 5;
    pub const ENOMEM: u32 = 12;
    pub const EINVAL: u32 = 22;
    pub const ENOSPC: u32 = 28;
    pub const EOVERFLOW: u32 = 75;
    pub const ENOTSUP: u32 = 95;
    pub const ESHUTDOWN: u32 = 108;
}

/// A request, without its payload ("Request message").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub len: u32,
}

impl Request {
    const LEN: usize = 28;

    pub fn to_bytes(self) -> [u8; Request::LEN] {
        let mut bytes = [0; Request::LEN];
        let parts: [&[u8]; 6] = [
            &REQUEST_MAGIC.to_be_bytes(),
            &self.flags.to_be_bytes(),
            &self.command.to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &self.len.to_be_bytes(),
        ];
        bytes.iter_mut().zip(parts.into_iter().flatten()).for_each(|(to, from)| *to = *from);
        bytes
    }

    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] at the end of the stream, [`io::ErrorKind::InvalidData`] for another magic number.
    pub fn read(from: &mut impl Read) -> io::Result<Request> {
        let magic = u32(from)?;
        if magic != REQUEST_MAGIC {
            return Err(violation(format!("the magic number of a request is {magic:#x}")));
        }
        Ok(Request { flags: u16(from)?, command: u16(from)?, cookie: u64(from)?, offset: u64(from)?, len: u32(from)? })
    }
}

/// Reads a number of 16 bits.
pub fn u16(from: &mut impl Read) -> io::Result<u16> {
    array(from).map(u16::from_be_bytes)
}

/// Reads a number of 32 bits.
pub fn u32(from: &mut impl Read) -> io::Result<u32> {
    array(from).map(u32::from_be_bytes)
}

/// Reads a number of 64 bits.
pub fn u64(from: &mut impl Read) -> io::Result<u64> {
    array(from).map(u64::from_be_bytes)
}

fn array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Reads a string whose length comes before it.
pub fn string(from: &mut impl Read) -> io::Result<String> {
    let len = u32(from)?;
    let len = usize::try_from(len).ok().filter(|len| *len <= MAX_STRING);
    let len = len.ok_or_else(|| violation(format!("a string is longer than {MAX_STRING} bytes")))?;
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes)?;
    String::from_utf8(bytes).map_err(|_| violation("a string is not UTF-8"))
}

/// Appends a string after its length.
pub fn push_string(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u32).to_be_bytes());
    to.extend(text.as_bytes());
}

/// Reads `len` bytes and forgets them, in bounded memory.
pub fn skip(from: &mut impl Read, len: u64) -> io::Result<()> {
    match io::copy(&mut from.take(len), &mut io::sink())? {
        skipped if skipped == len => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The error of a read, which at the end of the stream says what that is.
pub fn closed(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            io::Error::new(io::ErrorKind::ConnectionAborted, "the peer closed the connection")
        }
        _ => error,
    }
}

/// The error for a peer that breaks a rule of the protocol.
pub fn violation(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("NBD protocol violation: {}", problem.into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn requests_are_read_as_written(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) {
            let request = Request { flags, command, cookie, offset, len };
            prop_assert_eq!(Request::read(&mut &request.to_bytes()[..]).unwrap(), request);
        }

        #[test]
        fn strings_are_read_as_written(text in ".{0,300}") {
            let mut bytes = Vec::new();
            push_string(&mut bytes, &text);
            prop_assert_eq!(string(&mut &bytes[..]).unwrap(), text);
        }
    }

    #[test]
    fn a_string_is_bounded() {
        let kind = |bytes: &[u8]| string(&mut &*bytes).unwrap_err().kind();
        assert_eq!(kind(&u32::MAX.to_be_bytes()), io::ErrorKind::InvalidData);
        assert_eq!(kind(&[0, 0, 0, 2, b'a']), io::ErrorKind::UnexpectedEof);
        assert_eq!(kind(&[0, 0, 0, 1, 0xff]), io::ErrorKind::InvalidData);
    }

    #[test]
    fn what_is_skipped_has_to_be_there() {
        let mut bytes = &[1, 2, 3][..];
        skip(&mut bytes, 2).unwrap();
        assert_eq!(bytes, [3]);
        assert_eq!(skip(&mut bytes, u64::MAX).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
