//! zstd: one or more frames, and skippable frames (RFC 8878, section 3.1).

use std::io::{self, BufReader, Read};

use structured_zstd::decoding::{
    BlockDecodingStrategy, ContentChecksum, FrameContentSize, FrameDecoder, read_frame_header_info,
};

use super::Compression;
use super::index::{Index, Range};
use super::input::Input;
use super::meter::{Decode, EmptyParts};
use crate::io::ReadAt;
use crate::limits::{LimitName, Limits};

/// Length in bytes of the longest header of a frame (section 3.1.1.1).
const MAX_HEADER: usize = 18;
/// Bytes decoded at once, unless the window makes it more.
const STEP: usize = 256 << 10;
/// Windows that the format allows in bytes, at most (section 3.1.1.1.2).
const MAX_WINDOW: u64 = 1 << 31;

pub(super) struct Zstd {
    input: Input,
    decoder: FrameDecoder,
    state: State,
    /// Bytes of the frame that were decoded.
    len: u64,
    max_window: u64,
    empty: EmptyParts,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first frame.
    Start,
    Frame,
    Between,
    Ended,
}

impl Zstd {
    pub fn new(input: Input, limits: &Limits) -> Zstd {
        let max_window = limits.window.clamp(1 << 10, MAX_WINDOW);
        let mut decoder = FrameDecoder::new();
        decoder.set_content_checksum(ContentChecksum::Verify);
        // The window was checked against the limit before; if this one cannot be set, the decoder's own one holds.
        let _ = decoder.set_max_window_size(max_window);
        Zstd { input, decoder, state: State::Start, len: 0, max_window, empty: EmptyParts::default() }
    }

    /// Opens the next frame or moves past a skippable one; finds the end of the file.
    fn next_frame(&mut self) -> io::Result<()> {
        let at = self.input.at();
        let head = self.input.peek(MAX_HEADER)?;
        match head {
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                self.input.consume(4);
                let len = u32::from_le_bytes(self.input.array()?);
                self.input.skip(len.into())?;
                self.state = State::Between;
                self.empty.note(0, &self.input)
            }
            _ if self.state == State::Between && Compression::of(head).is_none() => {
                self.input.only_zeros_follow()?;
                self.state = State::Ended;
                Ok(())
            }
            _ => {
                match read_frame_header_info(head, false) {
                    Ok(info) if info.dictionary_id.is_some_and(|id| id != 0) => {
                        return Err(self.input.unsupported("dictionaries", at));
                    }
                    Ok(info) if info.window_size > self.max_window => {
                        return Err(self.input.limit(
                            Some(LimitName::Window),
                            "window size",
                            at,
                            info.window_size,
                            self.max_window,
                        ));
                    }
                    Ok(_) => {}
                    Err(_) if head.len() < MAX_HEADER => {
                        let rest = head.len();
                        self.input.consume(rest);
                        return Err(self.input.truncated());
                    }
                    Err(error) => return Err(self.input.invalid(error.to_string())),
                }
                if let Err(error) = self.decoder.reset(&mut self.input) {
                    return Err(self.input.failure(error.to_string()));
                }
                (self.state, self.len) = (State::Frame, 0);
                Ok(())
            }
        }
    }

    /// Decodes data of the frame; 0 at its end, with its checksum verified.
    fn decode_frame(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.decoder.read(buf) {
                Ok(0) => {}
                Ok(len) => {
                    self.len += len as u64;
                    return Ok(len);
                }
                Err(error) => return Err(self.input.invalid(error.to_string())),
            }
            if self.decoder.is_finished() {
                let verified = self.decoder.verify_content_size().and_then(|()| self.decoder.verify_content_checksum());
                if let Err(error) = verified {
                    return Err(self.input.invalid(error.to_string()));
                }
                self.state = State::Between;
                self.empty.note(self.len, &self.input)?;
                return Ok(0);
            }
            let step = BlockDecodingStrategy::UptoBytes(STEP);
            if let Err(error) = self.decoder.decode_blocks(&mut self.input, step) {
                return Err(self.input.failure(error.to_string()));
            }
        }
    }
}

impl Decode for Zstd {
    fn decode(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.state {
                State::Start | State::Between => self.next_frame()?,
                State::Frame => match self.decode_frame(buf)? {
                    0 => {}
                    len => return Ok(len),
                },
                State::Ended => return Ok(0),
            }
        }
    }

    fn input(&self) -> &Input {
        &self.input
    }
}

/// Footer of a seek table: the number of frames, a descriptor and the magic (the seekable format, contrib/seekable_format).
const SEEK_FOOTER: u64 = 9;
const SEEK_MAGIC: [u8; 4] = 0x8f92_eab1_u32.to_le_bytes();
/// Magic of the skippable frame that a seek table is.
const SEEK_FRAME: [u8; 4] = 0x184d_2a5e_u32.to_le_bytes();
/// Reads for finding frames by the headers of all blocks, at most: a file of small blocks is decoded faster.
const MAX_SCAN: u32 = 1 << 20;

/// Finds the frames of a file of `file_len` bytes: by its seek table, or else by their headers, which must state the size of the data.
/// `None` for a file that is not valid, or whose index exceeds the limits.
pub(super) fn read_index(file: &dyn ReadAt, file_len: u64, limits: &Limits) -> Option<Index> {
    read_seek_table(file, file_len, limits).or_else(|| scan(file, file_len, limits))
}

fn array<const N: usize>(file: &dyn ReadAt, at: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
}

fn read_seek_table(file: &dyn ReadAt, file_len: u64, limits: &Limits) -> Option<Index> {
    let footer_at = file_len.checked_sub(SEEK_FOOTER)?;
    let [n0, n1, n2, n3, descriptor, magic @ ..] = array::<{ SEEK_FOOTER as usize }>(file, footer_at)?;
    // Bits 2 to 6 are reserved.
    if magic != SEEK_MAGIC || descriptor & 0x7c != 0 {
        return None;
    }
    let count = u64::from(u32::from_le_bytes([n0, n1, n2, n3]));
    let entry_len = if descriptor & 0x80 == 0 { 8 } else { 12 };
    let table_len = count.checked_mul(entry_len)?;
    let table_at = footer_at.checked_sub(table_len)?;
    let frame_at = table_at.checked_sub(8)?;
    let [m0, m1, m2, m3, len @ ..] = array::<8>(file, frame_at)?;
    if [m0, m1, m2, m3] != SEEK_FRAME || u64::from(u32::from_le_bytes(len)) != table_len + SEEK_FOOTER {
        return None;
    }
    let mut index = Index::default();
    let mut at = 0_u64;
    let mut entries = BufReader::new(Range::new(file, table_at, footer_at));
    let mut entry = [0; 12];
    for _ in 0..count {
        let entry = entry.get_mut(..entry_len as usize)?;
        entries.read_exact(entry).ok()?;
        let ([stored, len], _) = entry.as_chunks::<4>().0.split_first_chunk::<2>()?;
        let (stored, len) = (u32::from_le_bytes(*stored).into(), u32::from_le_bytes(*len).into());
        index.push(at, stored, len, None, limits)?;
        at = at.checked_add(stored)?;
    }
    (at == frame_at).then_some(index)
}

/// Finds the frames by the headers of frames and blocks (sections 3.1.1.1 and 3.1.1.2).
fn scan(file: &dyn ReadAt, file_len: u64, limits: &Limits) -> Option<Index> {
    let mut index = Index::default();
    let (mut at, mut reads) = (0, 0);
    while at < file_len {
        let mut head = [0; MAX_HEADER];
        let head = head.get_mut(..(file_len - at).min(MAX_HEADER as u64) as usize)?;
        file.read_exact_at(head, at).ok()?;
        reads += 1;
        if let [0x50..=0x5f, 0x2a, 0x4d, 0x18, l0, l1, l2, l3, ..] = *head {
            at = at.checked_add(8 + u64::from(u32::from_le_bytes([l0, l1, l2, l3])))?;
        } else {
            let info = read_frame_header_info(head, false).ok()?;
            let FrameContentSize::Known(len) = info.content_size else { return None };
            let start = at;
            at += info.header_size as u64;
            loop {
                let [b0, b1, b2] = array(file, at)?;
                reads += 1;
                let header = u32::from_le_bytes([b0, b1, b2, 0]);
                // Of a block that repeats one byte, the size is that of the data.
                let stored = if header >> 1 & 3 == 1 { 1 } else { header >> 3 };
                at = at.checked_add(3 + u64::from(stored))?;
                if header & 1 == 1 {
                    break;
                }
                if reads > MAX_SCAN || at >= file_len {
                    return None;
                }
            }
            at += if info.content_checksum { 4 } else { 0 };
            index.push(start, at - start, len, None, limits)?;
        }
        if reads > MAX_SCAN {
            return None;
        }
    }
    (at == file_len).then_some(index)
}
