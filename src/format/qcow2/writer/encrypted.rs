//! The encryption of a new image: a LUKS header in clusters of its own, and a file that encrypts guest data by its host offset. Or the
//! legacy encryption, by the guest offset.

use std::sync::Arc;

use super::alloc::Allocator;
use crate::crypto::Encrypting;
use crate::driver::CreateContext;
use crate::error::{Error, Result};
use crate::format::qcow2::FORMAT_NAME;
use crate::format::qcow2::extension::CryptoHeader;
use crate::format::qcow2::header::{Encryption, Header};
use crate::format::qcow2::options::NewEncryption;
use crate::format::shared::decryption::NewLegacyAes;
use crate::format::shared::luks::{NewVolume, Parameters};
use crate::io::WriteAt;
use crate::options::wrong;

pub(super) enum Encrypted {
    Luks(Box<Luks>),
    Aes(NewLegacyAes),
}

pub(super) struct Luks {
    /// The image file, for guest data.
    pub data: Arc<dyn WriteAt>,
    volume: NewVolume,
    /// Host offset of the LUKS header.
    offset: u64,
}

impl Encrypted {
    /// Adds the encryption to the header of the image.
    pub fn new(
        encryption: &NewEncryption,
        cx: &CreateContext<'_>,
        alloc: &mut Allocator,
        header: &mut Header,
    ) -> Result<Encrypted> {
        match encryption {
            NewEncryption::Luks(parameters) => {
                Luks::new(parameters, cx, alloc, header).map(|luks| Encrypted::Luks(Box::new(luks)))
            }
            NewEncryption::Aes => {
                header.encryption = Encryption::Aes;
                NewLegacyAes::new(FORMAT_NAME, cx.secret).map(Encrypted::Aes)
            }
        }
    }
}

impl Luks {
    /// Allocates the clusters of the LUKS header, and names them in the header of the image.
    fn new(
        parameters: &Parameters,
        cx: &CreateContext<'_>,
        alloc: &mut Allocator,
        header: &mut Header,
    ) -> Result<Luks> {
        let volume = NewVolume::new(FORMAT_NAME, parameters, cx.secret)?;
        let len = volume.header_len();
        let run = alloc.take(len.div_ceil(header.cluster_size()))?;
        if run.end - run.start < len {
            // The next refcount block would be within it.
            let problem = "the LUKS header does not fit between two refcount blocks; use a larger cluster_size";
            return Err(wrong(FORMAT_NAME, "cluster_size", problem));
        }
        if !cx.out.starts_zeroed() {
            cx.out.zero_range(run.clone()).map_err(Error::io("clearing the LUKS header", run.start))?;
        }
        header.encryption = Encryption::Luks;
        header.extensions.crypto = Some(Ok(CryptoHeader { offset: run.start, len, at: 0 }));
        if header.encode().len() as u64 > header.cluster_size() {
            return Err(wrong(FORMAT_NAME, "cluster_size", "too small for the header; use a larger one"));
        }
        let data = Arc::new(Encrypting::new(cx.out.clone(), volume.cipher.clone(), 0, 0));
        Ok(Luks { data, volume, offset: run.start })
    }

    /// Writes the LUKS header.
    pub fn write(&self, out: &dyn WriteAt) -> Result<()> {
        self.volume.write(out, self.offset)
    }
}
