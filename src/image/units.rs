//! Compressed units that reads share: parts of one unit are read one after the other, and by different threads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Result;

/// A unit of an image: its layer, host offset and guest offset.
pub(super) type UnitKey = (usize, u64, u64);

/// The units that were read last, decoded. Memory is bounded: by [`UnitCache::BYTES`], and one unit for each thread that reads.
#[derive(Default)]
pub(super) struct UnitCache {
    units: Mutex<Units>,
}

#[derive(Default)]
struct Units {
    /// The one used last is at the end.
    kept: Vec<(UnitKey, Arc<Unit>)>,
    /// The buffer of a unit that was dropped: new memory has to be cleared.
    spare: Vec<u8>,
}

/// A unit. The thread that decodes it has the lock, and others that need the unit wait.
struct Unit {
    len: usize,
    data: Mutex<Data>,
}

struct Data {
    bytes: Vec<u8>,
    /// How many bytes at the start of `bytes` are decoded: none, those that the first read needed, or all.
    decoded: usize,
}

impl UnitCache {
    /// Most bytes, and most units, that are kept: for each of several threads the unit at the end of its work range, which is also at the
    /// start of the next one, while others are read that have a part in two blocks.
    const BYTES: usize = 8 << 20;
    const UNITS: usize = 256;

    /// Calls `read` with the decoded bytes of the unit `key`, which has `len` bytes, or with its first `needed` bytes at least. Where they are not
    /// known, `decode` fills them: the first time no more than are needed, which is half of a unit for reads at random, and then all of
    /// them, since a unit that is read twice is likely to be read from its beginning to its end.
    ///
    /// # Errors
    /// Those of `decode`.
    pub fn with(
        &self,
        key: UnitKey,
        len: usize,
        needed: usize,
        decode: impl FnOnce(&mut [u8]) -> Result<()>,
        read: impl FnOnce(&[u8]),
    ) -> Result<()> {
        let unit = self.unit(key, len);
        let data = &mut *lock(&unit.data);
        if data.decoded < needed {
            let more = if data.decoded == 0 { needed.min(len) } else { len };
            data.decoded = 0;
            data.bytes.resize(more, 0);
            decode(&mut data.bytes)?;
            data.decoded = more;
        }
        read(&data.bytes);
        Ok(())
    }

    /// The unit `key`, which becomes the one used last.
    fn unit(&self, key: UnitKey, len: usize) -> Arc<Unit> {
        let Units { kept, spare } = &mut *lock(&self.units);
        let found = kept.iter().position(|(other, unit)| *other == key && unit.len == len);
        let unit = match found {
            Some(index) => kept.remove(index).1,
            None => {
                let data = Data { bytes: std::mem::take(spare), decoded: 0 };
                Arc::new(Unit { len, data: Mutex::new(data) })
            }
        };
        kept.push((key, unit.clone()));
        let mut bytes = 0;
        let staying = kept.iter().rev().take(Self::UNITS).take_while(|(_, unit)| {
            bytes += unit.len;
            bytes <= Self::BYTES.max(len)
        });
        let dropped = kept.len() - staying.count();
        for (_, unit) in kept.drain(..dropped) {
            if let Some(Unit { data, .. }) = Arc::into_inner(unit) {
                *spare = data.into_inner().unwrap_or_else(PoisonError::into_inner).bytes;
            }
        }
        unit
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A decoder that panicked has left a unit that is not decoded.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;
    use crate::error::Error;

    /// The first byte of the unit, and whether it was decoded now.
    fn read(cache: &UnitCache, number: u64, len: usize) -> (u8, bool) {
        let (mut first, mut is_new) = (0, false);
        let decode = |bytes: &mut [u8]| {
            is_new = true;
            bytes.fill(number as u8);
            Ok(())
        };
        cache.with((0, number, number), len, len, decode, |bytes| first = bytes[len - 1]).unwrap();
        (first, is_new)
    }

    #[test]
    fn units_are_kept_up_to_a_number_of_bytes() {
        let cache = UnitCache::default();
        let len = UnitCache::BYTES / 4;
        for number in 0..4 {
            assert_eq!(read(&cache, number, len), (number as u8, true));
        }
        for number in 0..4 {
            assert_eq!(read(&cache, number, len), (number as u8, false));
        }
        // Unit 0 was used least recently.
        assert_eq!(read(&cache, 4, len), (4, true));
        assert_eq!(read(&cache, 1, len), (1, false));
        assert_eq!(read(&cache, 0, len), (0, true));
        // A larger one is kept alone.
        assert_eq!(read(&cache, 9, 2 * UnitCache::BYTES), (9, true));
        assert_eq!(read(&cache, 9, 2 * UnitCache::BYTES), (9, false));
        assert_eq!(read(&cache, 1, len), (1, true));
        // As are small ones, up to a number.
        (0..400).for_each(|number| _ = read(&cache, number, 10));
        assert_eq!(lock(&cache.units).kept.len(), UnitCache::UNITS);
        assert_eq!(read(&cache, 399, 11), (143, true), "another length");
    }

    #[test]
    fn a_unit_is_decoded_in_part_once() {
        let cache = UnitCache::default();
        let mut decoded = Vec::new();
        for needed in [4, 3, 5, 2, 10] {
            let decode = |bytes: &mut [u8]| {
                decoded.push(bytes.len());
                bytes.fill(7);
                Ok(())
            };
            cache.with((0, 1, 1), 10, needed, decode, |bytes| assert_eq!(bytes[..needed], vec![7; needed])).unwrap();
        }
        assert_eq!(decoded, [4, 10]);
    }

    #[test]
    fn a_failure_is_not_kept() {
        let cache = UnitCache::default();
        let fail = |_: &mut [u8]| Err(Error::Cancelled);
        assert!(cache.with((0, 1, 1), 10, 10, fail, |_| panic!("nothing was decoded")).is_err());
        assert_eq!(read(&cache, 1, 10), (1, true));
    }

    #[cfg(not(target_family = "wasm"))] // WASI has no threads.
    #[test]
    fn a_unit_is_decoded_once() {
        let (cache, count) = (UnitCache::default(), AtomicUsize::new(0));
        let decode = |bytes: &mut [u8]| {
            count.fetch_add(1, Ordering::Relaxed);
            thread::sleep(std::time::Duration::from_millis(20));
            bytes.fill(7);
            Ok(())
        };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| cache.with((0, 1, 1), 10, 10, decode, |bytes| assert_eq!(bytes, [7; 10])).unwrap());
            }
        });
        assert_eq!(count.into_inner(), 1);
    }
}
