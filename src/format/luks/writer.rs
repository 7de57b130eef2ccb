//! Writes a volume: the guest data through an encrypting file, then the key slots, then the header.

use std::ops::Range;
use std::sync::Arc;

use super::options::V2Options;
use super::reader::Volume;
use super::v2;
use super::{FIELDS, FORMAT_NAME};
use crate::crypto::{Encrypting, SectorCipher};
use crate::driver::{CreateContext, FileSize, OpenContext, Placement, SparseWrite, WriteSpec};
use crate::error::{Error, Result, SecretProblem};
use crate::format::shared::luks::{NewVolume, Parameters, new_header_len};
use crate::format::shared::whole_sectors_of;
use crate::identifiers::ImageIdentifiers;
use crate::info::ImageInfo;
use crate::io::{ReadAt, WriteAt};
use crate::limits::{Budget, Limits};

/// A volume that is being written.
pub(super) struct Writer {
    out: Arc<dyn WriteAt>,
    /// Encrypts what is written to `out`. It is always the same one: writes are merged where the file is.
    encrypted: Arc<dyn WriteAt>,
    spec: WriteSpec,
    /// Offset of the guest data in bytes.
    payload: u64,
    /// The header and the key slots to write; `None` for an existing volume.
    new: Option<New>,
}

/// A new header with its key slots.
enum New {
    V1(Box<NewVolume>),
    V2(v2::NewVolume),
}

impl Writer {
    pub fn create(cx: &CreateContext<'_>) -> Result<Writer> {
        refuse_features(cx)?;
        let parameters = Parameters::parse(FORMAT_NAME, "", cx.options)?;
        let volume = match V2Options::parse(cx.options)? {
            None => New::V1(Box::new(NewVolume::new(FORMAT_NAME, &parameters, cx.secret)?)),
            Some(options) => New::V2(v2::NewVolume::new(&parameters, &options, cx)?),
        };
        let (cipher, payload) = match &volume {
            New::V1(volume) => (&volume.cipher, volume.header_len()),
            New::V2(volume) => (&volume.cipher, volume.header_len()),
        };
        let writer = Writer::new(cx, cipher.clone(), payload, 0)?;
        // A device that is too small is refused before anything is written.
        let len = payload + writer.spec.virtual_size;
        cx.out.set_len(len).map_err(Error::io("setting the length", len))?;
        if !cx.out.starts_zeroed() {
            // Of an old volume not even the key slots are left.
            cx.out.zero_range(0..payload).map_err(Error::io("clearing the header", 0))?;
        }
        Ok(Writer { new: Some(volume), ..writer })
    }

    /// Writes guest data into the volume in `file`, which is the same as the output.
    pub fn open(file: Arc<dyn ReadAt>, cx: &CreateContext<'_>) -> Result<Writer> {
        refuse_features(cx)?;
        let Some(secret) = cx.secret else {
            return Err(Error::Secret { format: FORMAT_NAME, problem: SecretProblem::Missing });
        };
        let limits = Limits::default();
        let budget = Budget::new(limits.metadata);
        let secrets = std::slice::from_ref(secret);
        let cx_open = OpenContext { secrets, ..OpenContext::new(&limits, &budget) };
        let volume = Volume::read(&*file, &cx_open)?;
        FIELDS.at("size of the source", 0).at_most(cx.size, volume.info.virtual_size)?;
        let (payload, first) = (volume.payload, volume.first);
        Writer::new(cx, volume.unlock(&*file, &cx_open)?, payload, first)
    }

    fn new(cx: &CreateContext<'_>, cipher: Arc<SectorCipher>, payload: u64, first: u64) -> Result<Writer> {
        let sector_size = cipher.sector_size() as u64;
        let spec = WriteSpec {
            virtual_size: virtual_size(cx.size, payload, sector_size)?,
            block_size: sector_size,
            granule: sector_size,
            // What is not written decrypts to garbage.
            dense: true,
            ..WriteSpec::default()
        };
        let encrypted = Arc::new(Encrypting::new(cx.out.clone(), cipher, payload, first));
        Ok(Writer { out: cx.out.clone(), encrypted, spec, payload, new: None })
    }
}

/// Measures a new volume. No secret is needed, since no key is made.
pub(super) fn measure(cx: &CreateContext<'_>, _source: Option<&ImageInfo>) -> Result<FileSize> {
    refuse_features(cx)?;
    let parameters = Parameters::parse(FORMAT_NAME, "", cx.options)?;
    let (payload, sector_size) = match V2Options::parse(cx.options)? {
        None => (new_header_len(&parameters), 512),
        Some(options) => (v2::PAYLOAD, options.sector_size),
    };
    let size = virtual_size(cx.size, payload, sector_size)?;
    Ok(FileSize { dense: true, ..FileSize::new(payload, size, sector_size) })
}

/// Rounds `size` up to whole sectors, which fit into a file after the header.
fn virtual_size(size: u64, payload: u64, sector_size: u64) -> Result<u64> {
    whole_sectors_of(FORMAT_NAME, size, sector_size, (i64::MAX as u64).saturating_sub(payload))
}

/// Fails for a request that an encrypted volume cannot meet.
fn refuse_features(cx: &CreateContext<'_>) -> Result<()> {
    if cx.compress {
        return Err(Error::unsupported(FORMAT_NAME, "compression"));
    }
    if cx.backing.is_some() {
        return Err(Error::unsupported(FORMAT_NAME, "backing files"));
    }
    Ok(())
}

impl SparseWrite for Writer {
    fn spec(&self) -> &WriteSpec {
        &self.spec
    }

    fn place(&mut self, guest: Range<u64>) -> Result<Placement> {
        Ok(Placement::new(self.encrypted.clone(), self.payload + guest.start, guest.end - guest.start))
    }

    fn place_compressed(&mut self, _guest: Range<u64>, _stored_len: u32) -> Result<Placement> {
        Err(Error::unsupported(FORMAT_NAME, "compression"))
    }

    fn zero(&mut self, guest: Range<u64>) -> Result<()> {
        let range = self.payload + guest.start..self.payload + guest.end;
        let at = range.start;
        self.encrypted.zero_range(range).map_err(Error::io("writing zeros", at))
    }

    fn finish(&mut self, _identifiers: &ImageIdentifiers) -> Result<()> {
        self.out.sync().map_err(Error::io("syncing", None))?;
        match &self.new {
            None => return Ok(()),
            Some(New::V1(volume)) => volume.write(&*self.out, 0)?,
            Some(New::V2(volume)) => volume.write(&*self.out)?,
        }
        self.out.sync().map_err(Error::io("syncing", None))
    }
}
