//! All metadata except the BAT entries.

use std::ops::Range;
use std::sync::Arc;

use super::HEADER_SECTION;
use super::header::{Header, Headers};
use super::log::{self, Overlay, Replayed};
use super::metadata::Metadata;
use super::region::{self, Regions};
use crate::driver::OpenContext;
use crate::error::Result;
use crate::format::shared::table;
use crate::io::ReadAt;
use crate::name::Name;

/// The metadata of a file, with its log replayed.
pub(super) struct Structure {
    /// The image file with its log replayed.
    pub file: Arc<dyn ReadAt>,
    /// Its length in bytes. Bytes that the log adds are a hole.
    pub file_len: u64,
    pub creator: Name,
    pub header: Header,
    /// Host offset of the header.
    pub header_at: u64,
    pub regions: Regions,
    pub metadata: Metadata,
    /// The log replay, if the log was not empty.
    pub replay: Option<Replay>,
    /// The file with the changes of the log, if it has any.
    pub overlay: Option<Arc<Overlay>>,
    /// A warning if the other header is damaged.
    pub header_warning: Option<String>,
    /// A warning if the other region table is damaged or differs.
    pub table_warning: Option<String>,
}

/// The effect of the log replay.
pub(super) struct Replay {
    /// Number of replayed log entries.
    pub entries: u64,
    /// Bytes of the file that they change.
    pub bytes: u64,
    /// Number of newer entries, which belong to no complete sequence.
    pub skipped: u64,
}

impl Structure {
    /// Reads the metadata. The log is replayed before anything except the headers is read (2.3.3).
    pub fn read(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Structure> {
        let file_len_on_disk = table::length(&*file)?;
        let Headers { creator, header, at, warning } = Headers::read(&*file, file_len_on_disk)?;
        // The headers are written in place, and a reader must find the same log before and after the replay.
        let fixed = [(0..region::TABLES_AT[0], "the headers"), (header.log.clone(), "the log")];
        let on_disk = file.clone();
        let (file, overlay, replay) = match log::replay(&file, file_len_on_disk, (&header, at), &fixed, cx.budget)? {
            Some(Replayed { file, overlay, entries, bytes, skipped }) => {
                (file, overlay, Some(Replay { entries, bytes, skipped }))
            }
            None => (file, None, None),
        };
        let file_len = table::length(&*file)?;
        let (regions, table_warning) = Regions::read(&*file, file_len, &header.log)?;
        if table_warning.is_some() && replay.is_some() {
            region::refuse_damage(&*on_disk, &*file)?;
        }
        let metadata = Metadata::read(&*file, &regions.metadata, cx.limits, cx.budget)?;
        Ok(Structure {
            file,
            file_len,
            creator,
            header,
            header_at: at,
            regions,
            metadata,
            replay,
            overlay,
            header_warning: warning,
            table_warning,
        })
    }

    /// Notes on traces of a killed writer, which do not prevent reading.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        let replay = self.replay.as_ref().map(|replay| match replay.entries {
            0 => "the log is marked as not empty, but has no entries: there is nothing to replay".to_owned(),
            _ => "the log is not empty; it is replayed in memory, and the file is not changed".to_owned(),
        });
        let skipped = self.replay.as_ref().map_or(0, |replay| replay.skipped);
        let skipped = (skipped > 0).then(|| format!("{skipped} newer log entries of incomplete sequences are ignored"));
        self.header_warning.iter().cloned().chain(replay).chain(skipped)
    }

    /// Host ranges outside the blocks and their content. They do not overlap.
    pub fn ranges(&self) -> impl Iterator<Item = (Range<u64>, &'static str)> {
        let Regions { bat, metadata, others } = &self.regions;
        let known = [
            (0..HEADER_SECTION, "the header section"),
            (self.header.log.clone(), "the log"),
            (metadata.range.clone(), "the metadata region"),
            (bat.range.clone(), "the BAT region"),
        ];
        known.into_iter().chain(others.iter().map(|region| (region.range.clone(), "another region")))
    }
}
