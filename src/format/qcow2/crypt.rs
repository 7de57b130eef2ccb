//! Encryption of guest data (qcow2 specification, "Header", `crypt_method`, and "Full disk encryption header pointer").
//!
//! Sectors of 512 bytes are encrypted on their own. Their number is that of their host offset with LUKS. Unallocated clusters and zero clusters
//! are not encrypted, nor is metadata.

use std::sync::Arc;

use super::header::{Encryption, Header};
use super::{FIELDS, FORMAT_NAME, luks};
use crate::crypto::Decrypting;
use crate::driver::OpenContext;
use crate::error::{Error, Result};
use crate::io::ReadAt;

/// The image file with its guest data decrypted.
///
/// # Errors
/// As [`luks::read`], and those of the key slots.
pub(super) fn decrypting(file: Arc<dyn ReadAt>, header: &Header, cx: &OpenContext<'_>) -> Result<Arc<dyn ReadAt>> {
    if header.has_data_file() {
        return Err(Error::unsupported(FORMAT_NAME, "encryption of an external data file"));
    }
    match luks::read(&*file, header)? {
        Some((luks, location)) => {
            let range = location.offset..location.offset.saturating_add(location.len);
            let cipher = luks.unlock(&*file, range, cx, &FIELDS)?;
            Ok(Arc::new(Decrypting::new(file, cipher, 0, 0)))
        }
        None => {
            let method = if header.encryption == Encryption::Aes { "AES" } else { "none" };
            Err(Error::unsupported(FORMAT_NAME, format!("encryption ({method})")))
        }
    }
}
