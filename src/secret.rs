//! Passphrases of encrypted images.

use std::fmt;

use crate::error::{Error, Result};

/// A passphrase. Its bytes are wiped when it is dropped, and are never printed.
///
/// Every byte counts, a line feed at the end too, as for qemu-img and the key files of cryptsetup.
///
/// ```
/// use diskimage::Secret;
///
/// let secret = Secret::new("correct horse");
/// assert_eq!(format!("{secret:?}"), "Secret(..)");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// The passphrase of these bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Secret(bytes.into())
    }

    /// The passphrase whose bytes are encoded in base64, with padding. White space is ignored.
    ///
    /// # Errors
    /// [`Error::Usage`] for any other text, which is not part of the error.
    ///
    /// ```
    /// use diskimage::Secret;
    ///
    /// assert_eq!(Secret::from_base64("c2Vj\ncmV0")?, Secret::new("secret"));
    /// assert!(Secret::from_base64("c2VjcmV").is_err());
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[cfg(feature = "crypto")]
    pub fn from_base64(text: &str) -> Result<Self> {
        use base64ct::{Base64, Encoding};

        let text = Secret(text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect());
        let text = std::str::from_utf8(&text.0).unwrap_or_default();
        Base64::decode_vec(text).map(Secret).map_err(|_| Error::Usage("the secret is not valid base64".into()))
    }

    /// The bytes, for drivers.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        #[cfg(feature = "crypto")]
        zeroize::Zeroize::zeroize(&mut self.0);
        #[cfg(not(feature = "crypto"))]
        {
            self.0.fill(0);
            std::hint::black_box(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_printed() {
        let secret = Secret::new("hunter2");
        assert!(!format!("{secret:?} {:?}", Some(&secret)).contains("hunter"));
        assert_eq!(secret.as_bytes(), b"hunter2");
    }

    #[cfg(feature = "crypto")]
    #[test]
    fn base64() {
        assert_eq!(Secret::from_base64(" MTIz\n NDU2 ").unwrap().as_bytes(), b"123456");
        assert_eq!(Secret::from_base64("/+8=").unwrap().as_bytes(), [0xff, 0xef]);
        for text in ["MTIz=", "MTI", "_-8=", "hunter2"] {
            let error = Secret::from_base64(text).unwrap_err().to_string();
            assert!(!error.contains(text), "{error}");
        }
    }
}
