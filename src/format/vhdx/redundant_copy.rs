//! Headers and region tables exist twice, with a signature and a checksum each.

use byteorder::{ByteOrder, LittleEndian};

use super::{FORMAT_NAME, checksum, checksum_matches};
use crate::error::{Fault, Problem, Result};
use crate::format::shared::table;
use crate::io::ReadAt;

/// One of the two copies of a structure of `N` bytes.
pub(super) struct RedundantCopy<const N: usize> {
    pub bytes: Box<[u8; N]>,
    /// Its host offset.
    pub at: u64,
    /// Why it is invalid.
    pub damage: Option<Fault>,
}

impl<const N: usize> RedundantCopy<N> {
    /// Reads the copy at host offset `at`, which must start with `signature`.
    pub fn read(file: &dyn ReadAt, at: u64, signature: Signature) -> Result<Self> {
        let mut bytes = Box::new([0; N]);
        table::read(file, &mut *bytes, at)?;
        let damage = check_integrity(&*bytes, at, signature).err();
        Ok(RedundantCopy { bytes, at, damage })
    }

    /// A warning if this copy is damaged; `structures` is the plural name of the structure.
    pub fn warning(&self, structures: &str) -> Option<String> {
        let Fault { field, at, problem, .. } = self.damage.as_ref()?;
        Some(format!(
            "one of the two {structures} is damaged, the other one is used: at file offset {at:#x}: {field} {problem}"
        ))
    }
}

/// The first bytes of a structure, and the rule that requires them.
#[derive(Clone, Copy)]
pub(super) struct Signature {
    pub bytes: &'static [u8; 4],
    pub rule: &'static str,
}

/// Checks the signature and the checksum of the structure at host offset `at`.
pub(super) fn check_integrity(bytes: &[u8], at: u64, signature: Signature) -> Result<(), Fault> {
    let value = |offset: usize| bytes.get(offset..offset + 4).map(LittleEndian::read_u32).unwrap_or_default().into();
    let fault = |name: &'static str, offset: u64, problem| Fault {
        format: FORMAT_NAME,
        field: name.into(),
        at: at + offset,
        problem,
    };
    if !bytes.starts_with(signature.bytes) {
        return Err(fault("Signature", 0, Problem::Rule { value: value(0), rule: signature.rule }));
    }
    if !checksum_matches(bytes) {
        return Err(fault("Checksum", 4, Problem::Conflict { value: value(4), finding: "checksum mismatch" }));
    }
    Ok(())
}

/// Writes the checksum of a structure into it.
pub(super) fn seal(bytes: &mut [u8]) {
    let checksum = checksum(bytes).to_le_bytes();
    bytes.iter_mut().skip(4).zip(checksum).for_each(|(byte, value)| *byte = value);
}
