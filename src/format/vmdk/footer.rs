//! The footer of a stream: a copy of the header with the sector of the grain directory (Virtual Disk Format 5.0,
//! "Stream-Optimized Compressed Sparse Extents").
//!
//! Usually it is the last sector with content. Anything may follow the stream, however: the padding of a tape, of an
//! archive or of an interrupted and resumed download. Then the footer is found by the markers from the start of the
//! file, as in a pipe. A search for its bytes from the end could find a forged one, since guests choose the bytes of
//! grains that do not compress.

use super::grains::max_payload_len;
use super::header::Header;
use super::marker::Marker;
use super::{FIELDS, SECTOR};
use crate::error::{Problem, Result};
use crate::format::shared::table;
use crate::io::ReadAt;

/// Largest zero padding in which the footer is searched from the end of the file, in bytes.
const MAX_PADDING: u64 = 1 << 20;
/// Bytes per read of this search, a multiple of the sector size.
const READ: usize = 16 << 10;

/// The footer of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    /// Its host offset. The marker of the footer is in the preceding sector.
    pub at: u64,
    /// Bytes of the file after the end of the stream.
    pub trailing: u64,
}

impl Footer {
    /// Finds the footer of the stream with this header in a file of `file_len` bytes.
    pub fn find(file: &dyn ReadAt, file_len: u64, header: &Header) -> Result<Footer> {
        let last = last_sector(file, file_len)?;
        let at = match last {
            Some(at) if follows_directory(file, file_len, at)? => Some(at),
            _ => follow_markers(file, file_len, header)?,
        };
        let Some(at) = at.or(last) else {
            let finding = "the file does not end with a footer; it may be truncated";
            return Err(FIELDS.at("gdOffset", 56).fault(Problem::Conflict { value: u64::MAX, finding }));
        };
        let footer_end = at + Header::LEN;
        // The end-of-stream marker may be missing.
        let has_end = matches!(read_marker(file, file_len, footer_end)?, Some(Marker::EndOfStream));
        let end = footer_end + if has_end { SECTOR } else { 0 };
        Ok(Footer { at, trailing: file_len.saturating_sub(end) })
    }

    /// A warning, if bytes follow the stream.
    pub fn warning(&self) -> Option<String> {
        (self.trailing > 0).then(|| format!("{} bytes after the end of the stream are ignored", self.trailing))
    }
}

/// Returns the host offset of the last sector that is not zeros, as the end-of-stream marker and padding are, if it is
/// a footer by its marker.
fn last_sector(file: &dyn ReadAt, file_len: u64) -> Result<Option<u64>> {
    let end = file_len / SECTOR * SECTOR;
    let mut buf = [0; READ];
    let mut at = end;
    while at > Header::LEN && end - at <= MAX_PADDING {
        let len = (at - Header::LEN).min(READ as u64);
        at -= len;
        let bytes = buf.get_mut(..len as usize).unwrap_or_default();
        table::read(file, bytes, at)?;
        if let Some(last) = bytes.iter().rposition(|&byte| byte != 0) {
            let at = at + last as u64 / SECTOR * SECTOR;
            let is_footer = matches!(read_marker(file, file_len, at - SECTOR)?, Some(Marker::Footer { .. }));
            return Ok(is_footer.then_some(at));
        }
    }
    Ok(None)
}

/// Whether the sector of the directory in the footer at host offset `at` is that of a directory before the footer, by its marker. In
/// two concatenated streams, the second footer counts sectors from its own header.
fn follows_directory(file: &dyn ReadAt, file_len: u64, at: u64) -> Result<bool> {
    let mut bytes = [0; Header::LEN as usize];
    table::read(file, &mut bytes, at)?;
    let sector = bytes.get(56..64).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    let Some(marker_at) =
        sector.checked_sub(1).and_then(|sector| sector.checked_mul(SECTOR)).filter(|marker| *marker < at)
    else {
        return Ok(false);
    };
    Ok(matches!(read_marker(file, file_len, marker_at)?, Some(Marker::GrainDirectory { .. })))
}

/// Follows the markers from the first one to the end-of-stream marker, at most to the end of the file. Returns the host
/// offset of the last footer.
fn follow_markers(file: &dyn ReadAt, file_len: u64, header: &Header) -> Result<Option<u64>> {
    let mut footer = None;
    let mut at = header.overhead.saturating_mul(SECTOR).max(Header::LEN);
    while let Some(marker) = read_marker(file, file_len, at)? {
        match marker {
            Marker::EndOfStream => break,
            Marker::Grain { lba, size }
                if lba >= header.capacity || u64::from(size) > max_payload_len(header.grain_bytes()) =>
            {
                break;
            }
            Marker::Footer { .. } => footer = Some(at + SECTOR),
            _ => {}
        }
        at = at.saturating_add(marker.total_len());
    }
    Ok(footer.filter(|at| at.saturating_add(Header::LEN) <= file_len))
}

/// Returns the marker at host offset `at`, unless there is none.
fn read_marker(file: &dyn ReadAt, file_len: u64, at: u64) -> Result<Option<Marker>> {
    if at.checked_add(SECTOR).is_none_or(|end| end > file_len) {
        return Ok(None);
    }
    let mut bytes = [0; Marker::LEN];
    table::read(file, &mut bytes, at)?;
    Ok(Marker::parse(&bytes, at).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::vmdk::reader::tests::build::Sparse;
    use crate::io::WriteAt;
    use crate::limits::Limits;
    use crate::testing::SparseFile;

    /// The directory before it tells that it is a footer of this stream, so that no grain is looked at.
    #[test]
    fn the_footer_is_found_from_the_end() {
        for padding in [0, 512, MAX_PADDING as usize - 1024] {
            let bytes = Sparse { footer: Some(padding), ..Sparse::stream(200) }.build().file;
            let header = Header::parse(&bytes[..512], 0, &Limits::default()).unwrap();
            let file = SparseFile::default();
            file.write_all_at(&bytes, 0).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
            file.take_calls();
            let footer = Footer::find(&file, bytes.len() as u64, &header).unwrap();
            assert_eq!((footer.at, footer.trailing), ((bytes.len() - padding - 1024) as u64, padding as u64));
            let reads = file.take_calls().reads;
            assert!(reads <= 8 + (padding / READ) as u64, "{reads}");
        }
    }
}
