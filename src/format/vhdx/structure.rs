//! All that is read of a file before its blocks.

use std::ops::Range;
use std::sync::Arc;

use super::HEADER_SECTION;
use super::header::{Header, Headers};
use super::log::{self, Replayed};
use super::metadata::Metadata;
use super::region::Regions;
use crate::driver::OpenContext;
use crate::error::Result;
use crate::format::shared::table;
use crate::io::ReadAt;
use crate::name::Name;

/// What a file says of itself, with its log replayed.
pub(super) struct Structure {
    /// The file as it is to be read.
    pub file: Arc<dyn ReadAt>,
    /// Length of that in bytes. What the log adds behind the stored bytes is a hole.
    pub file_len: u64,
    pub creator: Name,
    pub header: Header,
    pub regions: Regions,
    pub metadata: Metadata,
    /// Of the log, where it had to be replayed.
    pub replay: Option<Replay>,
    /// What is wrong with the header that is not the current one.
    pub header_warning: Option<String>,
    /// What is wrong with the region table that is not used.
    pub table_warning: Option<String>,
}

/// What replaying the log did.
pub(super) struct Replay {
    /// Log entries that were replayed.
    pub entries: u64,
    /// Bytes of the file that they change.
    pub bytes: u64,
    /// Newer entries that are of no complete sequence.
    pub left_out: u64,
}

impl Structure {
    /// In the order of the document: nothing but the headers may be looked at before the log is replayed (2.3.3).
    pub fn read(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<Structure> {
        let stored_len = table::length(&*file)?;
        let Headers { creator, header, at, warning } = Headers::read(&*file, stored_len)?;
        let (file, replay) = match log::replay(&file, stored_len, &header, at, cx.budget)? {
            Some(Replayed { file, entries, bytes, left_out }) => (file, Some(Replay { entries, bytes, left_out })),
            None => (file, None),
        };
        let file_len = table::length(&*file)?;
        let (regions, table_warning) = Regions::read(&*file, file_len, &header.log)?;
        let metadata = Metadata::read(&*file, &regions.metadata, cx.limits, cx.budget)?;
        Ok(Structure {
            file,
            file_len,
            creator,
            header,
            regions,
            metadata,
            replay,
            header_warning: warning,
            table_warning,
        })
    }

    /// What tells of a writer that did not come to its end, though it does not keep the image from being read.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        let replay =
            "the log has to be replayed; the image is read with the changes in it, and the file stays as it is";
        let replay = self.replay.is_some().then(|| replay.to_owned());
        let left_out = self.replay.as_ref().map_or(0, |replay| replay.left_out);
        let left_out = (left_out > 0)
            .then(|| format!("the log has {left_out} newer entries of no complete sequence, which are left out"));
        self.header_warning.iter().cloned().chain(replay).chain(left_out)
    }

    /// Where everything but the blocks is in the file, and what it is. None of it overlaps.
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
