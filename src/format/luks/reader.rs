//! Maps guest offsets to the encrypted payload, and decrypts it.

use std::ops::Range;
use std::sync::Arc;

use super::v2::{HeaderCopy, Metadata};
use super::{FIELDS, FORMAT_NAME};
use crate::crypto::{Decrypting, SectorCipher};
use crate::driver::{Extent, ExtentKind, FileId, Location, OpenContext, SparseRead};
use crate::error::{Error, Problem, Result};
use crate::format::shared::luks::KeySlots;
use crate::format::shared::luks::{Header, SECTOR};
use crate::format::shared::signature::LUKS;
use crate::format::shared::table::{self, Field};
use crate::info::ImageInfo;
use crate::io::ReadAt;

/// An open volume.
pub(super) struct Reader {
    info: ImageInfo,
    /// Offset of the guest data in bytes.
    payload: u64,
    /// The file with the guest data decrypted; `None` if only the properties were wanted.
    decrypted: Option<Arc<dyn ReadAt>>,
}

/// Where the guest data of a volume is, and its properties.
pub(super) struct Volume {
    pub info: ImageInfo,
    /// Offset of the guest data in bytes.
    pub payload: u64,
    /// The number of its first sector in initialization vectors, in units of 512 bytes.
    pub first: u64,
    keys: Keys,
}

/// The key slots.
enum Keys {
    V1(Box<Header>),
    V2 {
        metadata: Metadata,
        /// File offset of the metadata.
        at: u64,
    },
}

impl Volume {
    /// Reads the header of the volume whose guest data is in `file`.
    ///
    /// # Errors
    /// If the header is not valid, and errors of the storage.
    pub fn read(file: &dyn ReadAt, cx: &OpenContext<'_>) -> Result<Volume> {
        cx.refuse_snapshots(FORMAT_NAME)?;
        let header = header_file(file, cx);
        let read = || {
            let mut version = [0; 8];
            table::read(header, &mut version, 0)?;
            match version == [&LUKS[..], &[0, 1]].concat()[..] {
                true => Volume::read_v1(header, file, cx),
                false => Volume::read_v2(header, file, cx),
            }
        };
        read().map_err(|e| in_header(e, cx))
    }

    fn read_v1(header_file: &dyn ReadAt, file: &dyn ReadAt, cx: &OpenContext<'_>) -> Result<Volume> {
        let header = Header::read(header_file, 0, &FIELDS)?;
        let (payload, field) = (header.payload_offset(), FIELDS.at("payload offset", 104));
        check_payload(payload, Header::LEN as u64, field, cx)?;
        let info = describe(file, payload, None, SECTOR, field, cx)?;
        let info = ImageInfo { specific: header.describe(cx.detached_header.is_some()), ..info };
        Ok(Volume { info, payload, first: 0, keys: Keys::V1(Box::new(header)) })
    }

    fn read_v2(header_file: &dyn ReadAt, file: &dyn ReadAt, cx: &OpenContext<'_>) -> Result<Volume> {
        let (header, warning) = HeaderCopy::read(header_file, cx)?;
        let metadata = Metadata::parse(&header, cx)?;
        let (segment, at) = (&metadata.segment, header.json_at());
        let (payload, first, field) = (segment.offset, segment.iv_tweak, FIELDS.at("segment", at));
        check_payload(payload, 2 * header.size, field, cx)?;
        let mut info = describe(file, payload, segment.size, segment.sector_size, field, cx)?;
        info.warnings.extend(warning.map(Into::into));
        info.specific = metadata.describe(&header, cx.detached_header.is_some());
        Ok(Volume { info, payload, first, keys: Keys::V2 { metadata, at } })
    }

    /// Whether the header has the size of the guest data, which otherwise ends with the file.
    pub fn has_size(&self) -> bool {
        matches!(&self.keys, Keys::V2 { metadata, .. } if metadata.segment.size.is_some())
    }

    /// As [`unlock`](Self::unlock), for changes of the key slots; `None` for volumes of version 2 and detached headers, whose slots are not
    /// changed.
    pub fn key_slots(&self, file: &dyn ReadAt, cx: &OpenContext<'_>) -> Result<Option<KeySlots>> {
        match &self.keys {
            Keys::V1(header) if cx.detached_header.is_none() => {
                let range = 0..self.payload;
                KeySlots::open(file, (**header).clone(), range, cx, super::Fields(FORMAT_NAME)).map(Some)
            }
            Keys::V1(_) | Keys::V2 { .. } => Ok(None),
        }
    }

    /// Finds the key. The arguments are those of [`read`](Self::read).
    ///
    /// # Errors
    /// As [`Header::unlock`].
    pub fn unlock(self, file: &dyn ReadAt, cx: &OpenContext<'_>) -> Result<Arc<SectorCipher>> {
        let header_file = header_file(file, cx);
        let unlocked = match self.keys {
            Keys::V1(header) => {
                let end = if cx.detached_header.is_some() { u64::MAX } else { self.payload };
                header.unlock(header_file, 0..end, cx, &FIELDS)
            }
            Keys::V2 { metadata, at } => metadata.unlock(header_file, at, cx),
        };
        unlocked.map_err(|e| in_header(e, cx))
    }
}

/// The file with the header and the key slots of the volume whose guest data is in `file`.
fn header_file<'a>(file: &'a dyn ReadAt, cx: &OpenContext<'a>) -> &'a dyn ReadAt {
    cx.detached_header.map_or(file, |header| header.file)
}

/// The error about the header, in the file where that is.
fn in_header(error: Error, cx: &OpenContext<'_>) -> Error {
    error.in_file_at(cx.detached_header.and_then(|header| header.path))
}

/// Refuses guest data that begins within the headers, the first `headers` bytes, unless that are those of another file.
fn check_payload(payload: u64, headers: u64, field: Field, cx: &OpenContext<'_>) -> Result<()> {
    let rule = "must be after the header; if that is a detached header, the file with the guest data is needed too";
    match payload < headers && cx.detached_header.is_none() {
        true => Err(field.fault(Problem::Rule { value: payload, rule })),
        false => Ok(()),
    }
}

/// The properties of a volume whose guest data begins at byte `payload`. Without a size it ends with the file.
fn describe(
    file: &dyn ReadAt,
    payload: u64,
    size: Option<u64>,
    sector_size: u64,
    field: Field,
    cx: &OpenContext<'_>,
) -> Result<ImageInfo> {
    let file_len = table::length(file)?;
    field.within(payload, size.unwrap_or(0), file_len)?;
    let len = size.unwrap_or(file_len - payload);
    let virtual_size = len / sector_size * sector_size;
    cx.check_virtual_size(FORMAT_NAME, virtual_size)?;
    let mut info = ImageInfo { encryption: Some("LUKS"), ..ImageInfo::new(FORMAT_NAME, virtual_size) };
    if len != virtual_size {
        info.warnings.push("the volume ends within a sector, which is not part of the disk".into());
    }
    Ok(info)
}

impl Reader {
    pub fn open(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Reader> {
        let volume = Volume::read(&*file, cx)?;
        let (info, payload, first) = (volume.info.clone(), volume.payload, volume.first);
        let decrypted: Option<Arc<dyn ReadAt>> = match cx.inspect {
            true => None,
            false => {
                let cipher = volume.unlock(&*file, cx)?;
                Some(Arc::new(Decrypting::new(file, cipher, payload, first)))
            }
        };
        Ok(Reader { info, payload, decrypted })
    }
}

impl SparseRead for Reader {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
        self.info.check_offset(range.start)?;
        let at = Location { file: FileId::default(), offset: self.payload + range.start };
        Ok(Extent::new(range, ExtentKind::Data(at)))
    }

    fn image_file(&self) -> Option<Arc<dyn ReadAt>> {
        self.decrypted.clone()
    }

    fn host_alignment(&self) -> Option<u64> {
        None
    }
}
