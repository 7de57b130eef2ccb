//! The header of a member.

use std::ops::Range;

use super::{BLOCK, FIELDS};
use crate::error::{Error, Problem, Result};
use crate::format::shared::signature::{TAR_CHECKSUM, is_tar_checksum, tar_checksum};

const SIZE: Range<usize> = 124..136;
const MAGIC: Range<usize> = 257..265;
/// The magic and version of POSIX, and those of old GNU tar.
const USTAR: &[u8; 8] = b"ustar\x0000";
const GNU: &[u8; 8] = b"ustar  \0";
/// Largest size in the octal digits of ustar.
pub(super) const MAX_OCTAL: u64 = 0o777_7777_7777;

/// A header whose checksum is correct.
pub(super) struct Header {
    /// Its offset in the archive.
    pub at: u64,
    pub name: Vec<u8>,
    /// Length of the stored data in bytes.
    pub size: u64,
    /// The type flag.
    pub kind: u8,
    /// The block itself, for the fields of sparse files.
    pub block: [u8; BLOCK as usize],
}

impl Header {
    pub fn parse(block: &[u8; BLOCK as usize], at: u64) -> Result<Header> {
        let field = |range: Range<usize>| block.get(range).unwrap_or_default();
        check_sum(block, at)?;
        let size = number(field(SIZE)).ok_or_else(|| invalid("size", at + SIZE.start as u64))?;
        FIELDS.at("size", at + SIZE.start as u64).fits_u63(0, size)?;
        let mut name = until_nul(field(0..100)).to_vec();
        let prefix = until_nul(field(345..500));
        // Old GNU tar has times there.
        if field(257..263) == b"ustar\0" && !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
        Ok(Header { at, name, size, kind: block[156], block: *block })
    }

    /// The bytes of a field.
    pub fn field(&self, range: Range<usize>) -> &[u8] {
        self.block.get(range).unwrap_or_default()
    }
}

/// The error for a field that is not a number.
pub(super) fn invalid(name: &'static str, at: u64) -> Error {
    FIELDS
        .at(name, at)
        .fault(Problem::Rule { value: 0, rule: "must be an octal number or one in base 256, below 2^63" })
}

/// Checks the sum of all bytes.
fn check_sum(block: &[u8; BLOCK as usize], at: u64) -> Result<()> {
    let stored = block.get(TAR_CHECKSUM).and_then(number);
    let stored = stored.ok_or_else(|| invalid("checksum", at + TAR_CHECKSUM.start as u64))?;
    if is_tar_checksum(block, stored) {
        return Ok(());
    }
    let rule = "must be the sum of the bytes of the header";
    Err(FIELDS.at("checksum", at + TAR_CHECKSUM.start as u64).fault(Problem::Rule { value: stored, rule }))
}

pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number below 2^63: octal digits after blanks, ended by a blank or NUL, or where the first bit is set, base 256. An empty field
/// is 0.
pub(super) fn number(field: &[u8]) -> Option<u64> {
    let below_u63 = |value: u64| (value <= i64::MAX as u64).then_some(value);
    match field.split_first() {
        Some((first, rest)) if first & 0x80 != 0 => {
            // The next bit is the sign.
            let start = Some(u64::from(first & 0x7f)).filter(|start| start & 0x40 == 0);
            let value = rest
                .iter()
                .try_fold(start?, |value, byte| value.checked_mul(256).map(|value| value | u64::from(*byte)));
            below_u63(value?)
        }
        _ => {
            let text = field.split(|byte| *byte == 0).next().unwrap_or_default().trim_ascii();
            let digits = text.split(|byte| *byte == b' ').next().unwrap_or_default();
            let value = digits.iter().try_fold(0u64, |value, digit| match digit {
                b'0'..=b'7' => value.checked_mul(8).map(|value| value + u64::from(digit - b'0')),
                _ => None,
            });
            below_u63(value?)
        }
    }
}

/// The header of a file for an archive that is written: ustar; with a size above its 8 GiB or a name above its 100 bytes, as old
/// GNU tar writes it, which vSphere and VirtualBox read, other than PAX. `name` has at most 100 bytes.
pub(crate) fn encode_header(name: &str, size: u64, time: u64) -> [u8; BLOCK as usize] {
    let mut block = encode_gnu(name, size, time, b'0');
    if size <= MAX_OCTAL {
        put(&mut block, MAGIC.start, USTAR);
    }
    seal(block)
}

/// A header of old GNU tar, whose checksum is still missing.
pub(super) fn encode_gnu(name: &str, size: u64, time: u64, kind: u8) -> [u8; BLOCK as usize] {
    let mut block = [0; BLOCK as usize];
    put(&mut block, 0, name.as_bytes().get(..100).unwrap_or(name.as_bytes()));
    put(&mut block, 100, b"0000644\0");
    put(&mut block, 108, b"0000000\0");
    put(&mut block, 116, b"0000000\0");
    put(&mut block, SIZE.start, &encode_number(size));
    put(&mut block, 136, &encode_number(time.min(MAX_OCTAL)));
    put(&mut block, 156, &[kind]);
    put(&mut block, MAGIC.start, GNU);
    block
}

/// The header with its checksum.
pub(super) fn seal(mut block: [u8; BLOCK as usize]) -> [u8; BLOCK as usize] {
    let sum = tar_checksum(&block);
    put(&mut block, TAR_CHECKSUM.start, format!("{sum:06o}\0 ").as_bytes());
    block
}

/// A number in a field of 12 bytes: octal, or above 8 GiB in base 256.
pub(super) fn encode_number(number: u64) -> [u8; 12] {
    let mut field = [0; 12];
    if number > MAX_OCTAL {
        put(&mut field, 0, &[0x80]);
        put(&mut field, 4, &number.to_be_bytes());
    } else {
        put(&mut field, 0, format!("{number:011o}").as_bytes());
    }
    field
}

/// Writes `bytes` at index `at` of `block`.
pub(super) fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in block.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// The two blocks of zeros at the end of an archive.
pub(crate) fn encode_end() -> [u8; 2 * BLOCK as usize] {
    [0; 2 * BLOCK as usize]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers() {
        for (field, value) in [
            (&b"00000000017\0"[..], Some(15)),
            (b"00000205000 ", Some(0o205000)),
            (b"  17 \0      ", Some(15)),
            (b"777777777777", Some(0o7777_7777_7777)),
            (b"", Some(0)),
            (b"\0\0\0\0", Some(0)),
            (b"    ", Some(0)),
            (b"8", None),
            (b"-1", None),
            (b"1x", None),
            (b"7777777777777777777777777", None),
            (b"\x80\0\0\0\0\0\0\0\x02\0\0\0", Some(2 << 24)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX as u64)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(number(field), value, "{}", field.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn an_encoded_header_parses_to_the_same(
            name in "[a-z][a-z0-9._-]{0,99}",
            size in prop_oneof![0u64..1 << 20, MAX_OCTAL - 5..MAX_OCTAL + 5, 0u64..1 << 63],
            time in any::<u64>(),
        ) {
            let header = Header::parse(&encode_header(&name, size, time), 0).unwrap();
            prop_assert_eq!((header.name, header.size, header.kind), (name.into_bytes(), size, b'0'));
        }
    }
}
