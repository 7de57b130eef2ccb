//! How much there is to convert, for progress: the data of a sparse disk, not its size.

use super::{Converter, Job};
use crate::image::{Image, Span};

/// What progress counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Amount {
    /// The bytes of data by the metadata, of which there are some.
    Data(u64),
    /// The guest offsets: all of the disk is work, or its data is not known.
    Disk,
}

/// Most spans that are looked at before a conversion. They are planned in less than a tenth of a second.
const SPANS: usize = 1 << 18;

impl Amount {
    /// The amount of `job`. A fault of the image is left to the conversion.
    pub fn of(job: &Job<'_>, settings: &Converter) -> Amount {
        if settings.progress.is_none() || job.dense() || job.hashes() || job.salvage.is_some() {
            return Amount::Disk;
        }
        let images = [Some(job.source), job.base];
        let bytes = images.into_iter().flatten().map(|image| data_bytes(image, settings)).sum::<Option<u64>>();
        bytes.filter(|bytes| *bytes > 0).map_or(Amount::Disk, Amount::Data)
    }

    /// How much is done after a work range that ends at guest offset `end`, with `data` bytes of data so far.
    pub fn done(self, data: u64, end: u64) -> u64 {
        match self {
            // A map that changed meanwhile is an error of its own.
            Amount::Data(total) => data.min(total),
            Amount::Disk => end,
        }
    }

    /// The total, for a disk of `size` bytes.
    pub fn total(self, size: u64) -> u64 {
        if let Amount::Data(total) = self { total } else { size }
    }
}

/// The bytes of data of `image` by its metadata; `None` if it costs too much to look at all of it.
fn data_bytes(image: &Image, settings: &Converter) -> Option<u64> {
    if !image.is_mapped_cheaply() {
        return None;
    }
    let mut bytes = 0u64;
    for (count, span) in image.spans(0..u64::MAX).enumerate() {
        if count == SPANS || settings.is_cancelled() {
            return None;
        }
        bytes = bytes.saturating_add(data_len(&span.ok()?));
    }
    Some(bytes)
}

/// The bytes of data of a span.
pub(super) fn data_len(span: &Span) -> u64 {
    if span.is_zero() { 0 } else { span.len }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::convert::Progress;
    use crate::convert::tests::{KIB, MIB, islands, qcow2};
    use crate::format::Format;
    use crate::testing::TempDir;

    const SIZE: u64 = 1 << 40;

    /// All calls of a conversion to `target`.
    fn calls(converter: Converter, source: &Image, target: &Path) -> Vec<(u64, u64)> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = seen.clone();
        let note = move |Progress { done, total }| all.lock().unwrap().push((done, total));
        converter.threads(1).progress(note).convert(source, target).unwrap();
        seen.lock().unwrap().clone()
    }

    /// A qcow2 image of 1 TiB with 64 KiB of data at the start, and twice as much at the end.
    fn image(dir: &TempDir, name: &str) -> PathBuf {
        let path = dir.path().join(name);
        let disk = islands(SIZE, &[0..64 * KIB, SIZE - 128 * KIB..SIZE]);
        qcow2("").convert(&disk, &path).unwrap();
        path
    }

    #[test]
    fn progress_counts_the_data_of_a_sparse_disk() {
        let dir = TempDir::new();
        let (source, target) = (Image::open(image(&dir, "source.qcow2")).unwrap(), dir.path().join("target"));
        let steps = [(64 * KIB, 192 * KIB), (192 * KIB, 192 * KIB)];
        assert_eq!(calls(qcow2(""), &source, &target), steps);
        // What is stored counts, and of an overlay also what it is compared to.
        let base = Image::open(image(&dir, "base.qcow2")).unwrap();
        let overlay = qcow2("").backing(base, "base.qcow2");
        assert_eq!(calls(overlay, &source, &target), steps.map(|(done, total)| (2 * done, 2 * total)));
        #[cfg(feature = "hash")]
        {
            let small = islands(3 * MIB, std::slice::from_ref(&(0..1)));
            let hashed = qcow2("").hash(crate::hash::HashAlgorithm::Blake3);
            assert_eq!(calls(hashed, &small, &target), [1, 2, 3].map(|done| (done * MIB, 3 * MIB)));
        }
        assert_eq!(calls(qcow2("").sparse(0), &islands(2 * MIB, &[]), &target), [(MIB, 2 * MIB), (2 * MIB, 2 * MIB)]);
    }

    #[test]
    fn a_disk_counts_whole_where_its_data_is_not_known() {
        let dir = TempDir::new();
        let target = dir.path().join("target");
        // Not a local file.
        let remote = islands(3 * MIB, std::slice::from_ref(&(MIB..MIB + 1)));
        assert_eq!(calls(qcow2(""), &remote, &target), [2, 3].map(|done| (done * MIB, 3 * MIB)));
        // Without data.
        let empty = dir.path().join("empty");
        qcow2("").create(SIZE, &empty).unwrap();
        assert_eq!(calls(qcow2(""), &Image::open(&empty).unwrap(), &target), [(SIZE, SIZE)]);
        // Payloads have to be read for their length.
        let stream = dir.path().join("stream.vmdk");
        Converter::new(Format::VMDK).compress(true).convert(&remote, &stream).unwrap();
        let stream = Image::open(&stream).unwrap();
        assert!(!stream.is_mapped_cheaply());
        assert_eq!(calls(qcow2(""), &stream, &target).last(), Some(&(3 * MIB, 3 * MIB)));
    }

    #[test]
    fn several_images_are_done_in_proportion() {
        let dir = TempDir::new();
        let source = Image::open(image(&dir, "source.qcow2")).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = seen.clone();
        let converter = qcow2("").threads(1).progress(move |now| all.lock().unwrap().push((now.done, now.total)));
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        converter.convert_all(&[(&source, &a), (&source, &b)]).unwrap();
        let third = SIZE / 3;
        assert_eq!(*seen.lock().unwrap(), [third, SIZE, SIZE + third, 2 * SIZE].map(|done| (done, 2 * SIZE)));
    }
}
