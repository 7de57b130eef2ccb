//! The log and the headers of an image that changes.

use std::sync::Arc;

use uuid::{Builder, Uuid, Variant, Version};

use super::Update;
use crate::error::{Error, Problem, Result};
use crate::format::shared::new_identifier;
use crate::format::vhdx::header::{HEADERS_AT, Header};
use crate::format::vhdx::log::{self, NewEntry};
use crate::format::vhdx::structure::Structure;
use crate::format::vhdx::{FIELDS, FORMAT_NAME};
use crate::io::Storage;

impl Update {
    /// Writes the changed sectors to the log, and makes that durable.
    pub(super) fn write_log(&mut self) -> Result<()> {
        let log = self.structure.header.log.clone();
        let log_guid = match self.log_guid {
            Some(guid) => guid,
            None => new_guid(self.structure.header.log_guid),
        };
        let (offset, sequence_number) = self.log_next;
        let sectors = self.pages.changed_pages();
        let file_len = self.bat.file_len;
        let entry =
            log::encode(&NewEntry { log_guid, sequence_number, tail: offset as u32, file_len, sectors: &sectors });
        let (len, log_len) = (entry.len() as u64, log.end - log.start);
        if len > log_len / 2 {
            return Err(Error::Usage("more changes than fit into the log".into()));
        }
        let (first, second) = entry.split_at((log_len - offset).min(len) as usize);
        for (part, at) in [(first, log.start + offset), (second, log.start)] {
            if !part.is_empty() {
                self.file.write_all_at(part, at).map_err(Error::io("writing the log", at))?;
            }
        }
        self.sync()?;
        self.log_next = ((offset + len) % log_len, sequence_number + 1);
        if self.log_guid.is_none() {
            self.structure.header.log_guid = log_guid;
            write_header(&*self.file, &mut self.structure)?;
            self.log_guid = Some(log_guid);
        }
        Ok(())
    }
}

/// Applies the log to the file, and empties it.
pub(super) fn replay(file: &Arc<dyn Storage>, structure: &mut Structure) -> Result<()> {
    if let Some(overlay) = &structure.overlay {
        overlay.write_to(&**file).map_err(Error::io("replaying the log", None))?;
        file.sync().map_err(Error::io("syncing", None))?;
    }
    structure.header.log_guid = Uuid::nil();
    write_header(&**file, structure)
}

/// Writes both headers, one after the other, so that one is valid at all times (2.2.2).
pub(super) fn write_header(file: &dyn Storage, structure: &mut Structure) -> Result<()> {
    for _ in HEADERS_AT {
        let header = &mut structure.header;
        header.sequence_number = header.sequence_number.checked_add(1).ok_or_else(|| {
            let problem = Problem::Range { value: u64::MAX, min: 0, max: u64::MAX - 2 };
            FIELDS.at("SequenceNumber", structure.header_at + 8).fault(problem)
        })?;
        let at = if structure.header_at == HEADERS_AT[0] { HEADERS_AT[1] } else { HEADERS_AT[0] };
        file.write_all_at(&Header::encode(header), at).map_err(Error::io("writing the header", at))?;
        file.sync().map_err(Error::io("syncing", None))?;
        structure.header_at = at;
    }
    Ok(())
}

pub(super) fn new_guid(old: Uuid) -> Uuid {
    let bytes = new_identifier(FORMAT_NAME, old.as_bytes());
    Builder::from_bytes_le(bytes).with_variant(Variant::RFC4122).with_version(Version::Random).into_uuid()
}
