//! What the headers and the region tables have in common: a signature, a checksum, and a second one of their kind.

use byteorder::{ByteOrder, LittleEndian};

use super::{FORMAT_NAME, checksum, checksum_holds};
use crate::error::{Fault, Problem, Result};
use crate::format::shared::table;
use crate::io::ReadAt;

/// One of two structures of `N` bytes.
pub(super) struct RedundantCopy<const N: usize> {
    pub bytes: Box<[u8; N]>,
    /// Its byte offset in the file.
    pub at: u64,
    /// Why it does not count.
    pub damage: Option<Fault>,
}

impl<const N: usize> RedundantCopy<N> {
    /// Reads the one at offset `at`, which is to begin with `signature`.
    pub fn read(file: &dyn ReadAt, at: u64, signature: Signature) -> Result<Self> {
        let mut bytes = Box::new([0; N]);
        table::read(file, &mut *bytes, at)?;
        let damage = check_whole(&*bytes, at, signature).err();
        Ok(RedundantCopy { bytes, at, damage })
    }

    /// What is wrong with it, where the other one of the two `what` is used.
    pub fn warning(&self, what: &str) -> Option<String> {
        let Fault { field, at, problem, .. } = self.damage.as_ref()?;
        Some(format!(
            "one of the two {what} is damaged, the other one is used: at file offset {at:#x} {field} {problem}"
        ))
    }
}

/// The first bytes of a structure, and the rule that they are that.
#[derive(Clone, Copy)]
pub(super) struct Signature {
    pub bytes: &'static [u8; 4],
    pub rule: &'static str,
}

/// Checks what tells that the structure at offset `at` was written as a whole: its signature and its checksum.
pub(super) fn check_whole(bytes: &[u8], at: u64, signature: Signature) -> Result<(), Fault> {
    let fault = |name: &'static str, offset: usize, rule| {
        let value = bytes.get(offset..offset + 4).map(LittleEndian::read_u32).unwrap_or_default().into();
        Fault {
            format: FORMAT_NAME,
            field: name.into(),
            at: at + offset as u64,
            problem: Problem::Rule { value, rule },
        }
    };
    if !bytes.starts_with(signature.bytes) {
        return Err(fault("Signature", 0, signature.rule));
    }
    if !checksum_holds(bytes) {
        return Err(fault("Checksum", 4, "that of the content is another one"));
    }
    Ok(())
}

/// Puts the checksum of a structure into it.
pub(super) fn seal(bytes: &mut [u8]) {
    let checksum = checksum(bytes).to_le_bytes();
    bytes.iter_mut().skip(4).zip(checksum).for_each(|(byte, value)| *byte = value);
}
