//! Encryption of guest data (qcow2 specification, "Header", `crypt_method`, and "Full disk encryption header pointer").
//!
//! Sectors of 512 bytes are encrypted on their own. Their number is that of their host offset with LUKS, and that of their guest offset with
//! AES. Unallocated clusters and zero clusters are not encrypted, nor is metadata.

use std::sync::Arc;

use super::header::{Encryption, Header};
use super::{FIELDS, FORMAT_NAME, luks};
use crate::crypto::Decrypting;
use crate::driver::OpenContext;
use crate::error::{Error, Result};
use crate::format::shared::decryption::{Decryption, LegacyAes};
use crate::format::shared::luks::KeySlots;
use crate::io::ReadAt;

/// The decryption of the guest data of an encrypted image.
///
/// # Errors
/// As [`luks::read`], and those of the key slots.
pub(super) fn unlock(file: Arc<dyn ReadAt>, header: &Header, cx: &OpenContext<'_>) -> Result<Decryption> {
    if header.has_data_file() {
        return Err(Error::unsupported(FORMAT_NAME, "encryption of an external data file"));
    }
    match luks::read(&*file, header)? {
        Some((luks, location)) => {
            let range = location.offset..location.offset.saturating_add(location.len);
            let cipher = luks.unlock(&*file, range, cx, &FIELDS)?;
            Ok(Decryption::ByHost(Arc::new(Decrypting::new(file, cipher, 0, 0))))
        }
        None if header.encryption == Encryption::Aes => {
            LegacyAes::unlock(FORMAT_NAME, file, cx).map(Decryption::ByGuest)
        }
        None => Err(Error::unsupported(FORMAT_NAME, "this kind of encryption")),
    }
}

/// The key slots of an image that is encrypted with LUKS, unlocked.
///
/// # Errors
/// As [`unlock`].
pub(super) fn key_slots(file: &dyn ReadAt, header: &Header, cx: &OpenContext<'_>) -> Result<KeySlots> {
    let Some((luks, location)) = luks::read(file, header)? else {
        return Err(Error::unsupported(FORMAT_NAME, "this kind of encryption"));
    };
    let range = location.offset..location.offset.saturating_add(location.len);
    KeySlots::open(file, luks, range, cx, super::Fields(FORMAT_NAME))
}
