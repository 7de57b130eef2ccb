//! The binary header (section 2.1) and its second copy.

use zeroize::Zeroizing;

use crate::crypto::Hash;
use crate::driver::OpenContext;
use crate::error::{Error, Problem, Result};
use crate::format::luks::{FIELDS, FORMAT_NAME};
use crate::format::shared::signature::{LUKS, LUKS2_SECOND as SECOND};
use crate::format::shared::table;
use crate::io::ReadAt;
use crate::name::Name;

/// Length of the binary header in bytes; the JSON follows.
const LEN: u64 = 4096;
/// Smallest and largest length of a copy with its JSON, which is a power of two.
const MIN_SIZE: u64 = 16 << 10;
const MAX_SIZE: u64 = 4 << 20;
const CHECKSUM: std::ops::Range<usize> = 448..512;

/// A valid copy of the header.
#[derive(Debug)]
pub(in crate::format::luks) struct HeaderCopy {
    /// Offset in the file.
    pub at: u64,
    /// Length with the JSON, in bytes.
    pub size: u64,
    /// The copy with the higher number is the current one.
    sequence: u64,
    pub label: Name,
    pub uuid: Name,
    /// The metadata, up to its NUL.
    pub json: Vec<u8>,
}

impl HeaderCopy {
    /// File offset of the JSON.
    pub fn json_at(&self) -> u64 {
        self.at + LEN
    }

    /// Reads the current copy. The second result is a warning if the other copy is damaged.
    ///
    /// # Errors
    /// If no copy is valid: the error of the first one.
    pub fn read(file: &dyn ReadAt, cx: &OpenContext<'_>) -> Result<(HeaderCopy, Option<String>)> {
        let first = usable(HeaderCopy::read_at(file, 0, cx))?;
        let second = match &first {
            Ok(first) => usable(HeaderCopy::read_at(file, first.size, cx))?,
            // Its offset is that of its length.
            Err(_) => {
                let sizes = std::iter::successors(Some(MIN_SIZE), |size| Some(size * 2));
                let mut copies = sizes.take_while(|size| *size <= MAX_SIZE).map(|at| HeaderCopy::read_at(file, at, cx));
                copies.find(Result::is_ok).unwrap_or_else(|| Err(missing()))
            }
        };
        match (first, second) {
            (Ok(first), Ok(second)) if second.sequence > first.sequence => Ok((second, None)),
            (Ok(first), Ok(_)) => Ok((first, None)),
            (Ok(first), Err(error)) => Ok((first, Some(format!("the second header is not valid: {error}")))),
            (Err(error), Ok(second)) => Ok((second, Some(format!("the first header is not valid: {error}")))),
            (Err(error), Err(_)) => Err(error),
        }
    }

    fn read_at(file: &dyn ReadAt, at: u64, cx: &OpenContext<'_>) -> Result<HeaderCopy> {
        let field = |name, offset: u64| FIELDS.at(name, at + offset);
        field("LUKS2 header", 0).within(at, LEN, table::length(file)?)?;
        let mut head = [0; 512];
        table::read(file, &mut head, at)?;
        let u64_at = |offset: usize| {
            head.get(offset..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_be_bytes(*bytes))
        };
        let magic: &[u8; 6] = if at == 0 { LUKS } else { SECOND };
        let version = u64_at(0) & 0xffff;
        if !head.starts_with(magic) || version != 2 {
            let rule = "must be \"LUKS\" or \"SKUL\" and version 2";
            return Err(field("LUKS2 magic", 0).fault(Problem::Rule { value: u64_at(0), rule }));
        }
        let size = u64_at(8);
        if !size.is_power_of_two() || !(MIN_SIZE..=MAX_SIZE).contains(&size) {
            let rule = "must be a power of two from 16 KiB to 4 MiB";
            return Err(field("hdr_size", 8).fault(Problem::Rule { value: size, rule }));
        }
        if u64_at(256) != at {
            let rule = "must be the offset of the header itself";
            return Err(field("hdr_offset", 256).fault(Problem::Rule { value: u64_at(256), rule }));
        }
        let text = |offset: usize, len: usize| {
            let bytes = head.get(offset..offset + len).unwrap_or_default();
            Name::from(bytes.split(|byte| *byte == 0).next().unwrap_or_default())
        };
        let mut bytes = Zeroizing::new(table::read_table(file, at, size, field("LUKS2 header", 8), cx.budget)?);
        verify(&mut bytes, &text(72, 32), at)?;
        let json = bytes.get(LEN as usize..).unwrap_or_default();
        let json = json.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(HeaderCopy { at, size, sequence: u64_at(16), label: text(24, 48), uuid: text(168, 40), json: json.to_vec() })
    }
}

/// Encodes a copy of the header with its JSON, which must fit into `size`.
pub(super) fn encode(at: u64, size: u64, sequence: u64, uuid: &str, salt: &[u8; 64], json: &[u8]) -> Vec<u8> {
    const ALGORITHM: Hash = Hash::Sha256;
    let mut bytes = vec![0; size as usize];
    let mut put = |offset: usize, value: &[u8]| {
        bytes.iter_mut().skip(offset).zip(value).for_each(|(byte, value)| *byte = *value);
    };
    put(0, if at == 0 { LUKS } else { SECOND });
    put(6, &2_u16.to_be_bytes());
    put(8, &size.to_be_bytes());
    put(16, &sequence.to_be_bytes());
    put(72, ALGORITHM.name().as_bytes());
    put(104, salt);
    put(168, uuid.as_bytes());
    put(256, &at.to_be_bytes());
    put(LEN as usize, json);
    let checksum = ALGORITHM.digest(&[&bytes]);
    bytes.iter_mut().skip(CHECKSUM.start).zip(&*checksum).for_each(|(byte, value)| *byte = *value);
    bytes
}

/// Verifies the checksum of a copy, which is calculated as if it were zero.
fn verify(bytes: &mut [u8], algorithm: &Name, at: u64) -> Result<()> {
    let hash = Hash::from_name(&algorithm.to_text())
        .ok_or_else(|| Error::unsupported(FORMAT_NAME, format!("header checksum {algorithm}")))?;
    let Some(field) = bytes.get_mut(CHECKSUM) else { return Err(missing()) };
    let stored = field.to_vec();
    field.fill(0);
    // The fuzzer does not find the checksum of a changed header.
    if cfg!(fuzzing) || stored.starts_with(&hash.digest(&[bytes])) {
        return Ok(());
    }
    let value = stored.first_chunk().map_or(0, |start| u64::from_be_bytes(*start));
    let finding = "the checksum of the header and its JSON is another one";
    Err(FIELDS.at("csum", at + CHECKSUM.start as u64).fault(Problem::Conflict { value, finding }))
}

fn missing() -> Error {
    FIELDS.at("second LUKS2 header", 0).fault(Problem::Missing)
}

/// Passes on the errors of the storage.
fn usable<T>(result: Result<T>) -> Result<Result<T>> {
    match result {
        Err(error @ Error::Io { .. }) => Err(error),
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemFile;
    use crate::limits::{Budget, Limits};

    /// Reads a file whose only header has another value in a field, and the checksum of that.
    fn changed(at: usize, value: &[u8]) -> Result<HeaderCopy> {
        let mut bytes = encode(0, MIN_SIZE, 1, "uuid", &[0; 64], b"{}");
        bytes.resize(4 * MIN_SIZE as usize, 0);
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes[CHECKSUM].fill(0);
        let size = bytes[8..].first_chunk().map_or(0, |size| u64::from_be_bytes(*size));
        let checksum = Hash::Sha256.digest(&[&bytes[..size as usize]]);
        bytes[CHECKSUM][..checksum.len()].copy_from_slice(&checksum);
        let (limits, budget) = (Limits::default(), Budget::new(1 << 20));
        HeaderCopy::read(&MemFile::from(bytes), &OpenContext::new(&limits, &budget)).map(|(copy, _)| copy)
    }

    #[test]
    fn fields_are_checked_although_the_checksum_is_valid() {
        for (at, value, message) in [
            (0, &b"SKUL"[..], "LUKS2 magic is 0x534b554cbabe0002, but must be"),
            (7, &[3], "LUKS2 magic is 0x4c554b53babe0003, but must be"),
            (8, &0x2000_u64.to_be_bytes(), "hdr_size is 0x2000, but must be a power of two from 16 KiB"),
            (8, &0x6000_u64.to_be_bytes(), "hdr_size is 0x6000, but must be a power of two from 16 KiB"),
            (256, &MIN_SIZE.to_be_bytes(), "hdr_offset is 0x4000, but must be the offset of the header itself"),
        ] {
            let error = changed(at, value).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        assert_eq!(changed(8, &(2 * MIN_SIZE).to_be_bytes()).unwrap().size, 2 * MIN_SIZE);
    }

    #[test]
    fn a_text_ends_with_its_field() {
        assert_eq!(changed(24, &[b'x'; 48]).unwrap().label, Name::from(&[b'x'; 48][..]));
    }
}
