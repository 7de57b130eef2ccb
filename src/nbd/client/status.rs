//! Data and zeros of an export, as the server describes them ("Metadata querying").

use std::io::{self, Read};
use std::ops::Range;

use crate::nbd::protocol::{self as protocol, state, violation};

/// Extents from an offset on, each ending where the next one begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents {
    start: u64,
    /// Offset of the end of each, and whether it reads as zeros. Neighbours differ.
    runs: Vec<(u64, bool)>,
}

impl Extents {
    /// Most extents that are kept: 1 MiB of memory. The server is asked again for the others.
    const CAPACITY: usize = 64 << 10;

    /// Reads `count` extents, the first of which begins at `start`.
    pub fn read(from: &mut impl Read, start: u64, count: u32) -> io::Result<Extents> {
        let (mut runs, mut at) = (Vec::<(u64, bool)>::new(), start);
        for index in 0..count {
            let (len, flags) = (protocol::u32(from)?, protocol::u32(from)?);
            at = match at.checked_add(len.into()) {
                Some(end) if len > 0 => end,
                _ => return Err(violation("an extent of 0 bytes, or one beyond 2^64")),
            };
            // A hole that does not read as zeros has contents.
            let is_zero = flags & state::ZERO != 0;
            let is_full = runs.len() == Self::CAPACITY;
            match runs.last_mut() {
                Some(last) if last.1 == is_zero => last.0 = at,
                _ if is_full => {
                    protocol::skip(from, 8 * u64::from(count - index - 1))?;
                    break;
                }
                _ => runs.push((at, is_zero)),
            }
        }
        Ok(Extents { start, runs })
    }

    /// The range that is known.
    pub fn range(&self) -> Range<u64> {
        self.start..self.runs.last().map_or(self.start, |(end, _)| *end)
    }

    /// The first range of data at or after `offset`, which is in the known range.
    pub fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        let first = self.runs.partition_point(|(end, _)| *end <= offset);
        let run = first + usize::from(self.runs.get(first)?.1);
        let (end, _) = self.runs.get(run)?;
        let start = if run == 0 { self.start } else { self.runs.get(run - 1)?.0 };
        Some(start.max(offset)..*end)
    }
}

/// Reads `count` extents, the first of which begins at `start`: each with its state.
pub fn read_states(from: &mut impl Read, start: u64, count: u32) -> io::Result<Vec<(Range<u64>, u32)>> {
    let mut at = start;
    let mut states = Vec::new();
    for index in 0..count {
        if states.len() == Extents::CAPACITY {
            protocol::skip(from, 8 * u64::from(count - index))?;
            break;
        }
        let (len, state) = (protocol::u32(from)?, protocol::u32(from)?);
        let end = at.checked_add(len.into()).filter(|end| *end > at);
        let end = end.ok_or_else(|| violation("an extent of 0 bytes, or one beyond 2^64"))?;
        states.push((at..end, state));
        at = end;
    }
    Ok(states)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(extents: &[(u32, u32)]) -> Vec<u8> {
        extents.iter().flat_map(|(len, flags)| [len.to_be_bytes(), flags.to_be_bytes()].concat()).collect()
    }

    fn read(start: u64, extents: &[(u32, u32)]) -> io::Result<Extents> {
        let bytes = bytes(extents);
        let mut rest = &bytes[..];
        let read = Extents::read(&mut rest, start, extents.len() as u32);
        assert!(rest.is_empty() || read.is_err());
        read
    }

    #[test]
    fn only_zeros_are_no_data() {
        let extents = read(100, &[(10, 0), (5, state::HOLE), (5, 4), (10, 3), (10, 2), (10, 0)]).unwrap();
        assert_eq!(extents.range(), 100..150);
        assert_eq!(extents.runs, [(120, false), (140, true), (150, false)]);
        assert_eq!(extents.next_data(100), Some(100..120));
        assert_eq!(extents.next_data(119), Some(119..120));
        assert_eq!(extents.next_data(120), Some(140..150));
        assert_eq!(extents.next_data(149), Some(149..150));
        assert_eq!(extents.next_data(150), None);
        assert_eq!(read(0, &[(10, 2)]).unwrap().next_data(3), None);
    }

    #[test]
    fn invalid_extents_are_refused() {
        assert!(read(0, &[(1, 0), (0, 0)]).is_err());
        assert!(read(u64::MAX - 1, &[(2, 0)]).is_err());
        assert!(Extents::read(&mut &[0, 0, 0, 1][..], 0, 1).is_err());
    }

    #[test]
    fn states_are_read() {
        let states = |list: &[(u32, u32)]| read_states(&mut &bytes(list)[..], 100, list.len() as u32);
        assert_eq!(states(&[(10, 7), (5, 0)]).unwrap(), [(100..110, 7), (110..115, 0)]);
        assert!(states(&[(10, 7), (0, 0)]).is_err());
        assert_eq!(states(&vec![(1, 1); 100_000]).unwrap().len(), Extents::CAPACITY);
    }

    #[test]
    fn memory_is_bounded() {
        let many: Vec<_> = (0..200_000).map(|index| (1, 2 * (index % 2))).collect();
        let extents = read(0, &many).unwrap();
        assert_eq!(extents.runs.len(), Extents::CAPACITY);
        assert_eq!(extents.range(), 0..Extents::CAPACITY as u64);
    }

    proptest! {
        #[test]
        fn data_equals_that_of_a_naive_search(list in prop::collection::vec((1..9_u32, 0..4_u32), 1..20), at in 0..100_u64) {
            let extents = read(0, &list).unwrap();
            let data: Vec<_> = list.iter().flat_map(|(len, flags)| vec![flags & 2 == 0; *len as usize]).collect();
            let start = (at as usize..data.len()).find(|at| data[*at]);
            let expected = start.map(|start| {
                let end = (start..data.len()).find(|at| !data[*at]).unwrap_or(data.len());
                start as u64..end as u64
            });
            prop_assert_eq!(extents.next_data(at), expected);
        }
    }
}
