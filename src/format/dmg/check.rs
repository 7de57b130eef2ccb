//! Checks the data fork: ADC, LZFSE, uncompressed and most xz runs have no other checksum.

use std::sync::Arc;

use zlib_rs::crc32::crc32;

use super::reader::Reader;
use super::run::RunKind;
use super::trailer::Trailer;
use crate::driver::{CheckKind, CheckReport, OpenContext};
use crate::error::Result;
use crate::format::shared::table;
use crate::io::ReadAt;

/// Bytes read at once.
const STEP: u64 = 1 << 20;

/// Opens the image, counts its runs, and compares the CRC-32 of the data fork with that in the trailer, if it has one. Where there is none,
/// that is told.
///
/// # Errors
/// If the image cannot be opened or read.
pub(super) fn check(file: Arc<dyn ReadAt>, cx: &OpenContext<'_>) -> Result<CheckReport> {
    let reader = Reader::open(file.clone(), cx)?;
    let mut report = CheckReport::default();
    let mut previous = None;
    for run in reader.runs() {
        report.total_clusters += 1;
        let host = run.host();
        if host.is_empty() {
            continue;
        }
        report.allocated_clusters += 1;
        report.compressed_clusters += u64::from(matches!(run.kind, RunKind::Compressed(..)));
        report.fragmented_clusters += u64::from(previous.is_some_and(|previous| previous != host.start));
        report.image_end_offset = report.image_end_offset.max(host.end);
        previous = Some(host.end);
    }
    let trailer = Trailer::read(&*file, cx)?;
    match trailer.data_checksum {
        Some(stated) => {
            let found = checksum(&*file, trailer.data_fork, trailer.data_len)?;
            if found != stated {
                report.corruption(|| {
                    format!("the CRC-32 of the data fork is {found:#010x}, and {stated:#010x} in the trailer")
                });
            }
        }
        None => report.message(CheckKind::NotChecked, || "the image has no checksum of a known kind".into()),
    }
    Ok(report)
}

/// The CRC-32 of `len` bytes at `start`.
fn checksum(file: &dyn ReadAt, start: u64, len: u64) -> Result<u32> {
    let (mut crc, mut at) = (0, start);
    let mut buf = vec![0; len.min(STEP) as usize];
    while at < start + len {
        buf.truncate((start + len - at).min(STEP) as usize);
        table::read(file, &mut buf, at)?;
        crc = crc32(crc, &buf);
        at += buf.len() as u64;
    }
    Ok(crc)
}
