//! LUKS version 1, as a file of its own and inside qcow2 ("LUKS1 On-Disk Format Specification", version 1.2.3).

mod header;
#[cfg(feature = "crypto")]
mod keys;
#[cfg(feature = "crypto")]
mod parameters;
#[cfg(feature = "crypto")]
mod unlock;
#[cfg(feature = "crypto")]
mod volume;

pub(crate) use header::{Header, SECTOR};
#[cfg(feature = "crypto")]
pub(crate) use header::{SLOTS, STRIPES, Slot};
#[cfg(feature = "crypto")]
pub(crate) use keys::KeySlots;
#[cfg(feature = "crypto")]
pub(crate) use parameters::Parameters;
#[cfg(feature = "crypto")]
pub(crate) use unlock::{Attempts, check_area, cipher_name, unsupported_cipher};
#[cfg(feature = "crypto")]
pub(crate) use volume::{NewVolume, new_header_len};
