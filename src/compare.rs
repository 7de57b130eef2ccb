//! Comparison of the guest data of two images.

use std::ops::Range;

use crate::error::Result;
use crate::image::{Image, Scratch, Span};
use crate::zero;

/// Result of [`compare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// The guest data is equal. If one disk is longer, the rest of it is zeros.
    Identical,
    /// The first byte that differs.
    Different {
        /// Guest offset in bytes.
        offset: u64,
    },
}

/// Bytes compared at once.
const STEP: u64 = 1 << 20;

/// Compares the guest data of two images. Ranges that are zeros in both by their metadata are not read.
///
/// # Errors
/// Errors of the storage and of the images.
///
/// ```
/// use std::sync::Arc;
///
/// use diskimage::io::MemFile;
/// use diskimage::{Comparison, Format, OpenOptions, compare};
///
/// let open = |bytes: Vec<u8>| OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(bytes)));
/// let (a, b) = (open(vec![1, 2, 3])?, open(vec![1, 2, 4])?);
/// assert_eq!(compare(&a, &b)?, Comparison::Different { offset: 2 });
/// # Ok::<(), diskimage::Error>(())
/// ```
pub fn compare(a: &Image, b: &Image) -> Result<Comparison> {
    compare_range(a, b, 0..u64::MAX)
}

/// As [`compare`], for a range of guest offsets in bytes. What is after the end of both disks is equal.
///
/// # Errors
/// As [`compare`].
///
/// ```
/// use std::sync::Arc;
///
/// use diskimage::io::MemFile;
/// use diskimage::{Comparison, Format, OpenOptions, compare_range};
///
/// let open = |bytes: Vec<u8>| OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(bytes)));
/// let (a, b) = (open(vec![1, 2, 3])?, open(vec![1, 2, 4])?);
/// assert_eq!(compare_range(&a, &b, 0..2)?, Comparison::Identical);
/// # Ok::<(), diskimage::Error>(())
/// ```
pub fn compare_range(a: &Image, b: &Image, range: Range<u64>) -> Result<Comparison> {
    let mut sides = [Side::new(a, range.clone()), Side::new(b, range.clone())];
    let end = a.virtual_size().max(b.virtual_size()).min(range.end);
    let mut at = range.start;
    while at < end {
        let [left, right] = &mut sides;
        let (x, y) = (left.span_at(at)?, right.span_at(at)?);
        let known = |span: Option<Span>| span.map_or(end, |span| span.end());
        let upto = known(x).min(known(y));
        // Common zeros are skipped at once; everything else is compared in steps.
        let zeros = [x, y].map(|span| span.is_none_or(|span| span.is_zero()));
        let upto = if zeros == [true, true] { upto } else { upto.min(at + STEP) };
        let difference = match zeros {
            [true, true] => None,
            [false, true] => first_nonzero(left.load(x, at, upto)?),
            [true, false] => first_nonzero(right.load(y, at, upto)?),
            [false, false] => first_difference(left.load(x, at, upto)?, right.load(y, at, upto)?),
        };
        if let Some(index) = difference {
            return Ok(Comparison::Different { offset: at + index as u64 });
        }
        at = upto;
    }
    Ok(Comparison::Identical)
}

/// One of the two images, with the current span.
struct Side<'a> {
    image: &'a Image,
    spans: crate::image::Spans<'a>,
    current: Option<Span>,
    scratch: Scratch,
    buf: Vec<u8>,
}

impl<'a> Side<'a> {
    fn new(image: &'a Image, range: Range<u64>) -> Self {
        Side { image, spans: image.spans(range), current: None, scratch: Scratch::default(), buf: Vec::new() }
    }

    /// The span that contains guest offset `at`, or `None` after the end of the disk. `at` ascends.
    fn span_at(&mut self, at: u64) -> Result<Option<Span>> {
        while self.current.is_none_or(|span| span.end() <= at) {
            match self.spans.next() {
                Some(span) => self.current = Some(span?),
                None => return Ok(None),
            }
        }
        Ok(self.current)
    }

    fn load(&mut self, span: Option<Span>, from: u64, to: u64) -> Result<&[u8]> {
        self.buf.resize((to - from) as usize, 0);
        if let Some(span) = span {
            self.image.load(&span.clip(from, to), &mut self.buf, &mut self.scratch)?;
        }
        Ok(&self.buf)
    }
}

fn first_nonzero(bytes: &[u8]) -> Option<usize> {
    if zero::is_zero(bytes) { None } else { bytes.iter().position(|&byte| byte != 0) }
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b { None } else { a.iter().zip(b).position(|(x, y)| x != y) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::convert::Converter;
    use crate::format::Format;
    use crate::image::OpenOptions;
    use crate::io::{MemFile, ReadAt};

    fn open(file: Arc<dyn ReadAt>, format: Format) -> Image {
        OpenOptions::new().format(format).open_source(file).unwrap()
    }

    fn raw(bytes: &[u8]) -> Image {
        open(Arc::new(MemFile::from(bytes.to_vec())), Format::RAW)
    }

    /// The same disk as qcow2, where zeros are holes.
    fn qcow2(bytes: &[u8]) -> Image {
        let file = Arc::new(MemFile::new());
        Converter::new(Format::QCOW2).convert_to(&raw(bytes), file.clone()).unwrap();
        open(file, Format::QCOW2)
    }

    /// Compares in both directions and through both formats.
    fn compared(a: &[u8], b: &[u8]) -> Comparison {
        let results = [(raw(a), raw(b)), (qcow2(a), raw(b)), (raw(a), qcow2(b)), (qcow2(a), qcow2(b))].map(|(a, b)| {
            let result = compare(&a, &b).unwrap();
            assert_eq!(compare(&b, &a).unwrap(), result);
            result
        });
        assert!(results.iter().all(|result| *result == results[0]), "{results:?}");
        results[0]
    }

    const LEN: usize = 2 * STEP as usize + 777;

    #[test]
    fn the_first_byte_that_differs_is_found() {
        let mut ours = vec![0; LEN];
        ours[300_000..LEN].fill(5);
        assert_eq!(compared(&ours, &ours), Comparison::Identical);
        // In zeros of both, at the ends of steps, at the end of the disk.
        for at in [0, 1, 299_999, 300_000, STEP as usize - 1, STEP as usize, 2 * STEP as usize, LEN - 1] {
            let mut theirs = ours.clone();
            theirs[LEN - 1] ^= 1;
            theirs[at] = 9;
            assert_eq!(compared(&ours, &theirs), Comparison::Different { offset: at as u64 });
        }
    }

    #[test]
    fn only_the_range_is_compared() {
        let ours = vec![5; LEN];
        let mut theirs = ours.clone();
        (theirs[700], theirs[LEN - 2]) = (1, 1);
        let different = |offset| Comparison::Different { offset };
        for (range, expected) in [
            (0..700, Comparison::Identical),
            (0..701, different(700)),
            (701..LEN as u64 - 2, Comparison::Identical),
            (701..u64::MAX, different(LEN as u64 - 2)),
            (LEN as u64..u64::MAX, Comparison::Identical),
        ] {
            assert_eq!(compare_range(&raw(&ours), &qcow2(&theirs), range.clone()).unwrap(), expected, "{range:?}");
        }
    }

    #[test]
    fn a_longer_tail_has_to_be_zeros() {
        for len in [0, 1, 512, 70_000, STEP as usize + 1] {
            let ours = vec![5; len];
            let mut longer = ours.clone();
            longer.resize(LEN, 0);
            assert_eq!(compared(&ours, &longer), Comparison::Identical, "{len}");
            for at in [len, LEN - 1] {
                let mut longer = longer.clone();
                longer[at] = 1;
                assert_eq!(compared(&ours, &longer), Comparison::Different { offset: at as u64 }, "{len}");
            }
        }
    }
}
