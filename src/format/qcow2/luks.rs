//! The LUKS header inside an image, whose location is in the encryption header extension. Offsets in it count from its start; its payload
//! offset has no meaning.

use super::FIELDS;
use super::extension::CryptoHeader;
use super::header::{Encryption, Header};
use crate::error::{Error, Problem, Result};
use crate::format::shared::{luks, table};
use crate::io::ReadAt;

/// Returns the location of the LUKS header, if the image has one.
///
/// # Errors
/// If the image is encrypted with LUKS and has no valid encryption header extension.
pub(super) fn location(header: &Header) -> Result<Option<CryptoHeader>> {
    match &header.extensions.crypto {
        None if header.encryption == Encryption::Luks => {
            let finding = "the encryption header extension with the offset of the LUKS header is missing";
            Err(FIELDS.at("crypt_method", 32).fault(Problem::Conflict { value: 2, finding }))
        }
        extension => extension.clone().transpose().map_err(Error::Corrupt),
    }
}

/// Reads the LUKS header; none unless the image is encrypted with LUKS.
///
/// # Errors
/// If the header is missing, out of bounds or invalid.
pub(super) fn read(file: &dyn ReadAt, header: &Header) -> Result<Option<(luks::Header, CryptoHeader)>> {
    let Some(location) = location(header)?.filter(|_| header.encryption == Encryption::Luks) else { return Ok(None) };
    let CryptoHeader { offset, len, at } = location;
    let file_len = table::length(file)?;
    FIELDS.at("encryption header offset", at).within(offset, len.max(luks::Header::LEN as u64), file_len)?;
    Ok(Some((luks::Header::read(file, offset, &FIELDS)?, location)))
}
