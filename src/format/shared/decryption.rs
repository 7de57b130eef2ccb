//! The decryption of guest data by the drivers of qcow and qcow2, and the legacy encryption of new images.

use std::sync::Arc;

use crate::driver::Location;
use crate::io::ReadAt;

/// A warning for images with the legacy encryption.
pub(crate) const LEGACY_AES_WARNING: &str =
    "AES encryption does not tell a wrong secret from the right one: the disk is garbage with a wrong one";

/// How the guest data of an unlocked image is decrypted.
pub(crate) enum Decryption {
    /// By its host offset: the image file with its guest data decrypted.
    ByHost(Arc<dyn ReadAt>),
    /// By its guest offset.
    #[cfg(feature = "crypto")]
    ByGuest(LegacyAes),
}

impl Decryption {
    /// The image file. Data that is decrypted by its guest offset is not decrypted in it, but has no holes.
    pub fn image_file(&self) -> Arc<dyn ReadAt> {
        match self {
            Decryption::ByHost(file) => file.clone(),
            #[cfg(feature = "crypto")]
            Decryption::ByGuest(aes) => aes.view(u64::MAX, 0),
        }
    }

    /// The file with the data at the guest offset `guest`, if that depends on it.
    pub fn decrypted_file(&self, guest: u64, at: Location) -> Option<Arc<dyn ReadAt>> {
        #[cfg(not(feature = "crypto"))]
        let _ = (guest, at);
        match self {
            Decryption::ByHost(_) => None,
            #[cfg(feature = "crypto")]
            Decryption::ByGuest(aes) => Some(aes.view(at.offset, guest)),
        }
    }
}

#[cfg(feature = "crypto")]
pub(crate) use legacy_aes::{LegacyAes, NewLegacyAes};

/// The encryption that QEMU had before LUKS: AES-128 in CBC, by the number of the guest sector. The key is the passphrase itself.
#[cfg(feature = "crypto")]
mod legacy_aes {
    use std::sync::Arc;

    use zeroize::Zeroizing;

    use crate::crypto::Encrypting;
    use crate::crypto::{CipherSpec, Decrypting, SECTOR, SectorCipher};
    use crate::driver::OpenContext;
    use crate::error::{Error, Result, SecretProblem};
    use crate::io::ReadAt;
    use crate::io::WriteAt;
    use crate::secret::Secret;

    const KEY_LEN: usize = 16;

    pub(crate) struct LegacyAes {
        file: Arc<dyn ReadAt>,
        cipher: Arc<SectorCipher>,
    }

    impl LegacyAes {
        /// The decryption of the guest data in `file` with the first secret: nothing tells whether it is the right one.
        ///
        /// # Errors
        /// [`Error::Secret`] without a secret.
        pub fn unlock(format: &'static str, file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<LegacyAes> {
            let Some(secret) = cx.secrets.first() else {
                return Err(Error::Secret { format, problem: SecretProblem::Missing });
            };
            Ok(LegacyAes { file, cipher: cipher(format, secret)? })
        }

        /// The file with the guest byte `guest` at its host offset `host`, and what follows it in the file, decrypted.
        pub fn view(&self, host: u64, guest: u64) -> Arc<dyn ReadAt> {
            // Clusters are aligned to sectors on both sides.
            let start = host.saturating_sub(guest % SECTOR);
            Arc::new(Decrypting::new(self.file.clone(), self.cipher.clone(), start, guest / SECTOR))
        }
    }

    /// The encryption of a new image.
    pub(crate) struct NewLegacyAes(Arc<SectorCipher>);

    impl NewLegacyAes {
        /// # Errors
        /// [`Error::Secret`] without a secret.
        pub fn new(format: &'static str, secret: Option<&Secret>) -> Result<NewLegacyAes> {
            let secret = secret.ok_or(Error::Secret { format, problem: SecretProblem::Missing })?;
            cipher(format, secret).map(NewLegacyAes)
        }

        /// The file `out`, into which the guest data from the sector at byte `guest` on is written at byte `host`.
        pub fn view(&self, out: Arc<dyn WriteAt>, host: u64, guest: u64) -> Arc<dyn WriteAt> {
            Arc::new(Encrypting::new(out, self.0.clone(), host, guest / SECTOR))
        }
    }

    fn cipher(format: &'static str, secret: &Secret) -> Result<Arc<SectorCipher>> {
        // QEMU takes a text that ends at a NUL.
        let text = secret.as_bytes().split(|byte| *byte == 0).next().unwrap_or_default();
        let mut key = Zeroizing::new([0; KEY_LEN]);
        key.iter_mut().zip(text).for_each(|(key, byte)| *key = *byte);
        let spec = CipherSpec::parse("aes", "cbc-plain64");
        let cipher = spec.and_then(|spec| spec.with_key(&key[..], SECTOR as usize));
        cipher.map(Arc::new).ok_or_else(|| Error::unsupported(format, "encryption (AES)"))
    }
}

#[cfg(all(test, feature = "crypto", feature = "qcow", feature = "qcow2", feature = "write"))]
mod tests;
