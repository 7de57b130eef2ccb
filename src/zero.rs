//! Zero detection.
//!
//! Every converted byte is tested here first, so that these routines run at the speed of memory.

use std::iter::FusedIterator;
use std::ops::Range;

/// Bytes tested between two branches: enough to make the branch cheap beside the loads, few enough to stop soon after the
/// first data.
const LANE: usize = 128;

/// Whether every byte of `bytes` is zero. True for an empty slice.
///
/// ```
/// use diskimage::zero::is_zero;
///
/// assert!(is_zero(&[0; 4096]));
/// assert!(!is_zero(&[0, 0, 1]));
/// ```
#[inline]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Data rarely starts with sixteen zeros, so that this test decides most cases.
    if let Some(head) = bytes.first_chunk()
        && u128::from_ne_bytes(*head) != 0
    {
        return false;
    }
    let (lanes, rest) = bytes.as_chunks::<LANE>();
    lanes.iter().all(is_zero_lane) && rest.iter().all(|&byte| byte == 0)
}

/// The number of zero bytes at the start of `bytes`.
pub(crate) fn leading_zeros(bytes: &[u8]) -> usize {
    leading(bytes, [0; 8], is_zero_lane)
}

/// The number of bytes at the start of `bytes` that repeat `pattern`.
pub(crate) fn leading_repeats(bytes: &[u8], pattern: [u8; 8]) -> usize {
    leading(bytes, pattern, |lane| repeats_in_lane(lane, pattern))
}

/// The same, with a test of whole lanes.
fn leading(bytes: &[u8], pattern: [u8; 8], repeats: impl Fn(&[u8; LANE]) -> bool) -> usize {
    let (lanes, _) = bytes.as_chunks::<LANE>();
    let start = lanes.iter().take_while(|lane| repeats(lane)).count() * LANE;
    let (words, _) = bytes.get(start..).unwrap_or_default().as_chunks::<8>();
    let start = start + words.iter().take_while(|word| **word == pattern).count() * 8;
    start + bytes.get(start..).unwrap_or_default().iter().zip(pattern).take_while(|(a, b)| *a == b).count()
}

#[inline]
fn is_zero_lane(lane: &[u8; LANE]) -> bool {
    repeats_in_lane(lane, [0; 8])
}

/// Has no branch within the lane, so that the compiler vectorizes it.
#[inline]
fn repeats_in_lane(lane: &[u8; LANE], pattern: [u8; 8]) -> bool {
    let (words, _) = lane.as_chunks::<8>();
    let pattern = u64::from_ne_bytes(pattern);
    words.iter().fold(0, |any, word| any | (u64::from_ne_bytes(*word) ^ pattern)) == 0
}

/// Iterates over the maximal runs of granules that have a byte other than zero, as ascending byte ranges of `bytes`.
///
/// A granule has `granule` bytes, counted from the start of `bytes`; the last one may be short. Runs are never adjacent.
/// `granule` is a power of two, at least 512 for speed; 0 means 1.
///
/// ```
/// use diskimage::zero::data_runs;
///
/// let mut bytes = vec![0; 4096];
/// bytes[700] = 1;
/// assert!(data_runs(&bytes, 512).eq([512..1024]));
/// ```
pub fn data_runs(bytes: &[u8], granule: usize) -> DataRuns<'_> {
    DataRuns { bytes, granule: granule.max(1), at: 0 }
}

/// The iterator of [`data_runs`].
#[derive(Clone, Debug)]
pub struct DataRuns<'a> {
    bytes: &'a [u8],
    granule: usize,
    /// Current position in bytes: a granule boundary, or the end.
    at: usize,
}

impl DataRuns<'_> {
    /// The end of the run of zero granules, or of data granules, that begins at `start`.
    fn end_of(&self, zero: bool, start: usize) -> usize {
        let rest = self.bytes.get(start..).unwrap_or_default();
        match rest.chunks(self.granule).position(|chunk| is_zero(chunk) != zero) {
            Some(granules) => start + granules * self.granule,
            None => self.bytes.len(),
        }
    }
}

impl Iterator for DataRuns<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let start = self.end_of(true, self.at);
        self.at = self.end_of(false, start);
        (start < self.at).then_some(start..self.at)
    }
}

impl FusedIterator for DataRuns<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::iter;

    fn naive_is_zero(bytes: &[u8]) -> bool {
        bytes.iter().all(|&byte| byte == 0)
    }

    fn naive_data_runs(bytes: &[u8], granule: usize) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (index, chunk) in bytes.chunks(granule).enumerate() {
            let start = index * granule;
            match runs.last_mut() {
                _ if naive_is_zero(chunk) => {}
                Some(last) if last.end == start => last.end += chunk.len(),
                _ => runs.push(start..start + chunk.len()),
            }
        }
        runs
    }

    /// Zeros, with a few bytes that may not be.
    fn sparse(max: usize) -> impl Strategy<Value = Vec<u8>> {
        (0..max, vec((any::<usize>(), any::<u8>()), 0..6)).prop_map(|(len, marks)| {
            let mut bytes = vec![0; len];
            for (at, value) in marks {
                if len > 0 {
                    bytes[at % len] = value;
                }
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn is_zero_equals_a_naive_version(bytes in sparse(3000), skip in 0_usize..40) {
            let bytes = &bytes[skip.min(bytes.len())..];
            prop_assert_eq!(is_zero(bytes), naive_is_zero(bytes));
        }

        #[test]
        fn leading_zeros_equal_a_naive_version(bytes in sparse(3000), skip in 0_usize..40) {
            let bytes = &bytes[skip.min(bytes.len())..];
            let naive = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
            prop_assert_eq!(leading_zeros(bytes), naive);
        }

        #[test]
        fn data_runs_equal_a_naive_version(bytes in sparse(40_000), log in 9_u32..13) {
            let granule = 1 << log;
            let runs: Vec<_> = data_runs(&bytes, granule).collect();
            prop_assert_eq!(runs, naive_data_runs(&bytes, granule));
        }
    }

    #[test]
    fn one_byte_is_found_at_any_index() {
        for len in [1, 15, 16, 17, 127, 128, 129, 300, 513] {
            for at in 0..len {
                let mut bytes = vec![0; len];
                assert!(is_zero(&bytes));
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "byte {at} of {len}");
            }
        }
    }

    #[test]
    fn edges() {
        assert!(is_zero(&[]));
        assert_eq!(data_runs(&[], 512).next(), None);
        assert_eq!(data_runs(&[0; 1000], 512).next(), None);
        assert!(data_runs(&[1; 1000], 512).eq(iter::once(0..1000)));
        assert!(data_runs(&[0, 1, 0], 0).eq(iter::once(1..2)));
        let mut bytes = [0; 1025];
        bytes[1024] = 1;
        let mut runs = data_runs(&bytes, 512);
        assert_eq!(runs.next(), Some(1024..1025));
        assert_eq!((runs.next(), runs.next()), (None, None));
    }
}
