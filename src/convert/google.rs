//! Writing images of Google Compute Engine. The map of a sparse file comes before its data, so that it is made from the metadata of the source.

use std::ops::Range;

use super::Converter;
use super::compressed_raw::{BLOCK, Content};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::package::google::{self, ALIGNMENT};

/// Largest number of runs of data, after which holes become data: readers keep the map in memory.
const MAX_RUNS: usize = 1 << 16;

impl Converter {
    /// Whether the new image is one of Google Compute Engine: the raw disk as the sparse file `disk.raw` in an archive of old GNU tar, which is
    /// compressed with gzip. The [format](Self::new) has to be raw. Default: false.
    ///
    /// The disk is padded with zeros to whole GiB. The image is written as a [compressed](Self::compress_output) one, in one pass by all threads. What is a hole
    /// of the new disk follows from the metadata of the source; in an image to a pipe, or of a source from one, the disk has no holes.
    ///
    /// ```no_run
    /// use diskimage::{Converter, Format, Image};
    ///
    /// let disk = Image::open("disk.qcow2")?;
    /// let report = Converter::new(Format::RAW).google_image(true).convert(&disk, "image.tar.gz")?;
    /// assert_eq!(report.virtual_size % (1 << 30), 0);
    /// # Ok::<(), diskimage::Error>(())
    /// ```
    #[must_use]
    pub fn google_image(mut self, google_image: bool) -> Self {
        self.google_image = google_image;
        self
    }

    /// The archive with the disk of `source`, or an empty one of `size` bytes. `has_map` is false if all of it is to be stored.
    pub(super) fn google_content(&self, source: Option<&Image>, size: u64, has_map: bool) -> Result<Content> {
        let rounded = size.max(1).checked_next_multiple_of(ALIGNMENT).filter(|size| *size <= i64::MAX as u64);
        let size = rounded.ok_or_else(|| Error::unsupported(google::FORMAT_NAME, "a disk of this size"))?;
        let runs = match source {
            // What cannot be mapped may be replaced by something else than zeros.
            Some(source) if has_map && !self.salvage && !source.is_in_order() => self.data_runs(source, MAX_RUNS)?,
            Some(_) => std::iter::once(0..size).collect(),
            None => Vec::new(),
        };
        let (head, tail) = google::envelope(size, &runs, self.time()?);
        Ok(Content { size, runs, head, tail })
    }

    /// The ranges of blocks that are not zeros by the metadata of the source, at most `most` of them.
    fn data_runs(&self, source: &Image, most: usize) -> Result<Vec<Range<u64>>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut smallest_hole = BLOCK;
        for span in source.spans(0..u64::MAX) {
            if self.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let span = span?;
            if span.is_zero() {
                continue;
            }
            add(&mut runs, span.offset / BLOCK * BLOCK..span.end().next_multiple_of(BLOCK), smallest_hole);
            while runs.len() > most {
                smallest_hole *= 2;
                for run in std::mem::take(&mut runs) {
                    add(&mut runs, run, smallest_hole);
                }
            }
        }
        Ok(runs)
    }
}

/// Adds a run, or extends the last one if the hole between them is smaller.
fn add(runs: &mut Vec<Range<u64>>, run: Range<u64>, smallest_hole: u64) {
    match runs.last_mut() {
        Some(last) if run.start < last.end.saturating_add(smallest_hole) => last.end = last.end.max(run.end),
        _ => runs.push(run),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    #[cfg(feature = "compressed")]
    use proptest::prelude::*;

    use super::*;
    use crate::format::Format;
    use crate::identifiers::Identifiers;
    use crate::image::OpenOptions;
    use crate::io::{MemFile, Piece, ReadAt, Window};
    use crate::testing::noise;

    fn converter() -> Converter {
        Converter::new(Format::RAW).google_image(true)
    }

    fn raw(disk: Vec<u8>) -> Image {
        OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(disk))).unwrap()
    }

    /// A disk with data at these blocks, and holes between them.
    fn with_holes(blocks: &[u64], len: u64) -> Image {
        let data: Arc<dyn ReadAt> = Arc::new(MemFile::from(noise(BLOCK, 1)));
        let pieces = blocks.iter().map(|block| Piece { start: block * BLOCK, len: 1000, offset: 0 }).collect();
        OpenOptions::new().format(Format::RAW).open_source(Arc::new(Window::new(data, pieces, len))).unwrap()
    }

    fn only(run: Range<u64>) -> Vec<Range<u64>> {
        std::iter::once(run).collect()
    }

    #[test]
    fn runs_are_whole_blocks_and_few() {
        let source = with_holes(&[0, 1, 3, 6, 100], 200 << 20);
        let runs = |most| converter().data_runs(&source, most).unwrap();
        assert_eq!(runs(100), [0..2 * BLOCK, 3 * BLOCK..4 * BLOCK, 6 * BLOCK..7 * BLOCK, 100 * BLOCK..101 * BLOCK]);
        assert_eq!(runs(3), [0..4 * BLOCK, 6 * BLOCK..7 * BLOCK, 100 * BLOCK..101 * BLOCK]);
        assert_eq!(runs(2), [0..7 * BLOCK, 100 * BLOCK..101 * BLOCK]);
        assert_eq!(runs(1), only(0..101 * BLOCK));
        let whole = raw(vec![1; 5]);
        assert_eq!(converter().data_runs(&whole, 9).unwrap(), only(0..BLOCK));
        assert_eq!(converter().google_content(Some(&whole), 5, false).unwrap().runs, only(0..1 << 30));
    }

    fn written(source: &Image, threads: usize) -> Vec<u8> {
        let file = Arc::new(MemFile::new());
        // The archive has a date.
        let converter = converter().identifiers(Identifiers::Reproducible { time: 1 });
        let report = converter.threads(threads).convert_to(source, file.clone()).unwrap();
        assert_eq!(report.virtual_size, source.virtual_size().next_multiple_of(1 << 30));
        assert_eq!(report.padding, report.virtual_size - source.virtual_size());
        file.to_vec()
    }

    #[test]
    fn the_image_does_not_depend_on_the_number_of_threads() {
        let source = with_holes(&[0, 3, 4, 5, 77], 80 << 20);
        let one = written(&source, 1);
        assert!(one == written(&source, 4));
        assert!(one.len() < 20_000 && one.starts_with(b"\x1f\x8b"), "{} bytes", one.len());
    }

    #[test]
    fn a_format_other_than_raw_and_another_compression_are_refused() {
        let create = |converter: Converter| converter.create_to(1 << 20, Arc::new(MemFile::new())).map(drop);
        create(converter()).unwrap();
        let gzip = Some(crate::convert::OutputCompression::Gzip);
        for converter in [
            Converter::new(Format::VMDK).google_image(true),
            converter().compress_output(gzip),
            converter().compress(true),
            converter().existing(true),
        ] {
            assert!(create(converter).is_err());
        }
        assert!(converter().google_content(None, i64::MAX as u64, true).is_err());
    }

    #[cfg(feature = "compressed")]
    fn assert_holds(bytes: Vec<u8>, source: &Image) {
        let image = OpenOptions::new().open_source(Arc::new(MemFile::from(bytes))).unwrap();
        let len = source.virtual_size();
        assert_eq!(image.virtual_size(), len.next_multiple_of(1 << 30));
        let (mut found, mut expected) = (vec![1; len as usize], vec![2; len as usize]);
        image.read_exact_at(&mut found, 0).unwrap();
        source.read_exact_at(&mut expected, 0).unwrap();
        assert!(found == expected);
        let mut end = [1; 4096];
        image.read_exact_at(&mut end, image.virtual_size() - 4096).unwrap();
        assert_eq!(end, [0; 4096]);
    }

    #[cfg(feature = "compressed")]
    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4))]
        #[test]
        fn what_is_written_reads_back(gaps in prop::collection::vec(1u64..6, 0..30), len in 1001u64..2000) {
            let mut blocks: Vec<u64> = Vec::new();
            for gap in gaps {
                blocks.push(blocks.last().map_or(0, |last| last + gap));
            }
            let source = with_holes(&blocks, (blocks.last().unwrap_or(&0) << 20) + len);
            assert_holds(written(&source, 2), &source);
        }
    }

    #[cfg(feature = "compressed")]
    #[test]
    fn an_image_to_a_pipe_has_no_holes() {
        #[derive(Clone, Default)]
        struct Shared(Arc<std::sync::Mutex<Vec<u8>>>);
        impl std::io::Write for Shared {
            fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend(buf);
                Ok(buf.len())
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let source = with_holes(&[1, 7], 9 << 20);
        let pipe = Shared::default();
        converter().threads(4).convert_to(&source, Arc::new(crate::io::PipeTarget::new(pipe.clone()))).unwrap();
        assert_holds(pipe.0.lock().unwrap().clone(), &source);
    }
}
