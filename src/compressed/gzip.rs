//! gzip: one or more members (RFC 1952).

use std::io;

use zlib_rs::crc32::crc32;
use zlib_rs::{Inflate, InflateFlush, Status};

use super::index::Index;
use super::input::Input;
use super::meter::{Decode, EmptyParts};
use crate::codec::gzip;
use crate::error::Problem;
use crate::io::ReadAt;
use crate::limits::Limits;

/// Largest sum of the lengths of name, comment and extra field in bytes. The format has no limit; writers store a file name.
const MAX_HEADER: u64 = 1 << 20;
/// Base-2 logarithm of the largest window (RFC 1951, section 2).
const WINDOW_BITS: u8 = 15;

/// ID1, ID2, and CM for DEFLATE.
const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];

/// Bits of FLG (section 2.3.1).
mod flag {
    pub const HCRC: u8 = 1 << 1;
    pub const EXTRA: u8 = 1 << 2;
    pub const NAME: u8 = 1 << 3;
    pub const COMMENT: u8 = 1 << 4;
    pub const RESERVED: u8 = 0xe0;
}

pub(super) struct Gzip {
    input: Input,
    inflate: Inflate,
    state: State,
    /// CRC-32 and length of the data of the member.
    crc: u32,
    len: u64,
    empty: EmptyParts,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first member.
    Start,
    /// In the compressed data of a member.
    Member,
    /// After a member.
    Between,
    Ended,
}

impl Gzip {
    pub fn new(input: Input) -> Gzip {
        let inflate = Inflate::new(false, WINDOW_BITS);
        Gzip { input, inflate, state: State::Start, crc: 0, len: 0, empty: EmptyParts::default() }
    }

    /// Reads the header of a member (section 2.3).
    fn open_member(&mut self) -> io::Result<()> {
        let mut header = Header { input: &mut self.input, crc: 0, left: MAX_HEADER };
        let at = header.input.at();
        let [id1, id2, method, flags, ..] = header.array::<10>()?;
        if [id1, id2, method] != MAGIC {
            let problem = Problem::Invalid { reason: "wrong magic".into() };
            return Err(header.input.corrupt("header", at, problem));
        }
        if flags & flag::RESERVED != 0 {
            let problem = Problem::Reserved { value: flags.into(), bits: (flags & flag::RESERVED).into() };
            return Err(header.input.corrupt("FLG", at + 3, problem));
        }
        if flags & flag::EXTRA != 0 {
            let len = u16::from_le_bytes(header.array()?);
            for _ in 0..len {
                header.array::<1>()?;
            }
        }
        for text in [flag::NAME, flag::COMMENT] {
            while flags & text != 0 && header.array::<1>()? != [0] {}
        }
        if flags & flag::HCRC != 0 {
            let (at, crc) = (header.input.at(), header.crc & 0xffff);
            let stored = u16::from_le_bytes(header.array()?);
            if u32::from(stored) != crc {
                return Err(self.input.mismatch("CRC-16 of the header", at, stored.into()));
            }
        }
        self.inflate.reset(false);
        (self.crc, self.len, self.state) = (0, 0, State::Member);
        Ok(())
    }

    /// Decodes data of the member; 0 at its end, with its checksum verified.
    fn inflate(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let (taken, made) = (self.inflate.total_in(), self.inflate.total_out());
            let data = self.input.data()?;
            let is_last = data.is_empty();
            let result = self.inflate.decompress(data, buf, InflateFlush::NoFlush);
            let taken = (self.inflate.total_in() - taken) as usize;
            let made = (self.inflate.total_out() - made) as usize;
            self.input.consume(taken);
            let status = match result {
                Ok(status) => status,
                Err(error) => return Err(self.input.invalid(self.inflate.error_message().unwrap_or(error.as_str()))),
            };
            let decoded = buf.get(..made).unwrap_or_default();
            self.crc = crc32(self.crc, decoded);
            self.len += made as u64;
            if status == Status::StreamEnd {
                self.close_member()?;
            }
            if status == Status::StreamEnd || made > 0 {
                return Ok(made);
            }
            if is_last {
                return Err(self.input.truncated());
            }
            if taken == 0 {
                return Err(self.input.invalid("the decoder makes no progress"));
            }
        }
    }

    /// Verifies the trailer (section 2.3.1).
    fn close_member(&mut self) -> io::Result<()> {
        let at = self.input.at();
        let [crc, len] = [u32::from_le_bytes(self.input.array()?), u32::from_le_bytes(self.input.array()?)];
        if crc != self.crc {
            return Err(self.input.mismatch("CRC32", at, crc.into()));
        }
        if u64::from(len) != self.len & u64::from(u32::MAX) {
            return Err(self.input.mismatch("ISIZE", at + 4, len.into()));
        }
        self.state = State::Between;
        self.empty.note(self.len, &self.input)
    }
}

impl Decode for Gzip {
    fn decode(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.state {
                State::Start => self.open_member()?,
                State::Member => match self.inflate(buf)? {
                    0 => {}
                    len => return Ok(len),
                },
                State::Between if self.input.peek(3)?.starts_with(&MAGIC) => self.open_member()?,
                State::Between => {
                    self.input.only_zeros_follow()?;
                    self.state = State::Ended;
                }
                State::Ended => return Ok(0),
            }
        }
    }

    fn input(&self) -> &Input {
        &self.input
    }
}

/// The header that is being read, with its checksum and the number of bytes that it may still have.
struct Header<'a> {
    input: &'a mut Input,
    crc: u32,
    left: u64,
}

impl Header<'_> {
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let bytes = self.input.array()?;
        self.crc = crc32(self.crc, &bytes);
        match self.left.checked_sub(N as u64) {
            Some(left) => self.left = left,
            None => {
                let at = self.input.at();
                return Err(self.input.limit(None, "length of the header", at, MAX_HEADER + 1, MAX_HEADER));
            }
        }
        Ok(bytes)
    }
}

/// Finds the members of a file of `file_len` bytes whose headers state their lengths: those that are written here, and BGZF (The SAM/BAM
/// Format Specification, section 4.1). `None` for a file with other members.
pub(super) fn read_index(file: &dyn ReadAt, file_len: u64, limits: &Limits) -> Option<Index> {
    let mut index = Index::default();
    let mut at = 0;
    while at < file_len {
        let mut header = [0; gzip::HEADER];
        file.read_exact_at(&mut header, at).ok()?;
        let (member_len, len) = gzip::lengths(&header).or_else(|| bgzf_lengths(file, &header, at))?;
        if member_len <= gzip::HEADER as u64 {
            return None;
        }
        index.push(at, member_len, len, None, limits)?;
        at += member_len;
    }
    (at == file_len).then_some(index)
}

/// The length of the BGZF member at `at` in bytes, and that of its data, which is in its trailer; `None` for another member.
fn bgzf_lengths(file: &dyn ReadAt, header: &[u8; gzip::HEADER], at: u64) -> Option<(u64, u64)> {
    const MAX_DATA: u32 = 1 << 16;
    let &[id1, id2, method, flag::EXTRA, _, _, _, _, _, _, 6, 0, b'B', b'C', 2, 0, low, high, ..] = header else {
        return None;
    };
    let member_len = u64::from(u16::from_le_bytes([low, high])) + 1;
    let mut isize = [0; 4];
    file.read_exact_at(&mut isize, at.checked_add(member_len)?.checked_sub(4)?).ok()?;
    let len = u32::from_le_bytes(isize);
    ([id1, id2, method] == MAGIC && len <= MAX_DATA).then_some((member_len, len.into()))
}
