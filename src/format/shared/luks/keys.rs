//! Changes of the key slots of a volume (section 3, "Adding new passwords", "Revoking passwords").

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::unlock::check_area;
use super::volume::{KeyMaterial, iterations_for};
use super::{Header, SECTOR, SLOTS, STRIPES, Slot};
use crate::crypto::{SectorCipher, random};
use crate::driver::{KeyChange, OpenContext};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table::Fields;
use crate::io::{ReadAt, Storage};
use crate::limits::{Budget, Limits};
use crate::secret::Secret;

/// Time for a try of a secret, as in new volumes.
const ITER_TIME: Duration = Duration::from_secs(2);
/// Memory for the stripes of the longest key, in bytes.
const MEMORY: u64 = 16 << 20;
const SLOTS_AT: u64 = 208;
const SLOT_LEN: usize = 48;

/// The key slots of a volume that is unlocked.
pub(crate) struct KeySlots {
    header: Header,
    /// File offsets of the header and of the key slots, in bytes.
    range: Range<u64>,
    key: Zeroizing<Vec<u8>>,
    fields: Fields,
}

impl KeySlots {
    /// Unlocks the volume. The header and the key slots are in `range` of `file`.
    ///
    /// # Errors
    /// As [`Header::unlock`].
    pub fn open(
        file: &dyn ReadAt,
        header: Header,
        range: Range<u64>,
        cx: &OpenContext<'_>,
        fields: Fields,
    ) -> Result<KeySlots> {
        let key = header.unlock_key(file, range.clone(), cx, &fields)?;
        Ok(KeySlots { header, range, key, fields })
    }

    pub fn cipher(&self) -> Result<Arc<SectorCipher>> {
        self.header.cipher_with(&self.key, &self.fields)
    }

    /// Makes a change, and makes it durable.
    ///
    /// # Errors
    /// [`Error::Usage`] for a change that is refused, and errors of the storage.
    pub fn change(&mut self, file: &dyn Storage, change: &KeyChange) -> Result<()> {
        match change {
            KeyChange::Add { secret, slot, iter_time, force } => {
                let index = self.slot_for(*slot, *force)?;
                self.add(file, index, secret, iter_time.unwrap_or(ITER_TIME))
            }
            KeyChange::EraseSlot { slot, force } => {
                let is_active = self.slot(*slot)?.active;
                if !force && !is_active {
                    return Err(Error::Usage(format!("key slot {slot} is not active")));
                }
                if !force && self.active_count() == 1 {
                    let problem = "is the only active one: without it the disk is lost";
                    return Err(Error::Usage(format!("key slot {slot} {problem}")));
                }
                self.erase(file, *slot)
            }
            KeyChange::EraseSecret { secret, force } => {
                let slots = self.slots_with(file, secret)?;
                if slots.is_empty() {
                    return Err(Error::Usage("the secret unlocks no key slot".into()));
                }
                if !force && slots.len() == self.active_count() {
                    let problem = "the secret unlocks all active key slots: without them the disk is lost";
                    return Err(Error::Usage(problem.into()));
                }
                slots.into_iter().try_for_each(|slot| self.erase(file, slot))
            }
        }
    }

    fn slot(&self, index: usize) -> Result<&Slot> {
        let last = SLOTS - 1;
        let problem = || Error::Usage(format!("invalid key slot {index}: expected 0 to {last}"));
        self.header.slots.get(index).ok_or_else(problem)
    }

    fn active_count(&self) -> usize {
        self.header.slots.iter().filter(|slot| slot.active).count()
    }

    /// The slot for a new secret.
    fn slot_for(&self, given: Option<usize>, force: bool) -> Result<usize> {
        match given {
            Some(index) if self.slot(index)?.active && !force => {
                let problem = format!("key slot {index} is active: erase it first");
                Err(Error::Usage(problem))
            }
            Some(index) => Ok(index),
            None => {
                let free = self.header.slots.iter().position(|slot| !slot.active);
                free.ok_or_else(|| Error::Usage("all key slots are active".into()))
            }
        }
    }

    fn slots_with(&self, file: &dyn ReadAt, secret: &Secret) -> Result<Vec<usize>> {
        let (limits, budget) = (Limits::default(), Budget::new(MEMORY));
        let secrets = std::slice::from_ref(secret);
        let cx = OpenContext { secrets, ..OpenContext::new(&limits, &budget) };
        self.header.slots_of(file, &self.range, &cx, &self.fields)
    }

    /// Writes the stripes, and then the slot that points to them.
    fn add(&mut self, file: &dyn Storage, index: usize, secret: &Secret, iter_time: Duration) -> Result<()> {
        let (spec, hash) = self.header.algorithms(&self.fields)?;
        let iterations = iterations_for(self.fields.0, hash, self.key.len(), iter_time)?;
        let slot = Slot { active: true, iterations, stripes: STRIPES, ..*self.slot(index)? };
        let material = KeyMaterial::new(self.fields.0, &self.key, secret, (spec, hash, iterations))?;
        let area = self.area(index, material.bytes.len() as u64)?;
        file.write_all_at(&material.bytes, area.start).map_err(Error::io("writing a key slot", area.start))?;
        file.sync().map_err(Error::io("syncing", None))?;
        self.write_slot(file, index, Slot { salt: material.salt, ..slot })
    }

    /// Overwrites the stripes, so that a copy of the header is worth nothing, and marks the slot as free.
    fn erase(&mut self, file: &dyn Storage, index: usize) -> Result<()> {
        let slot = *self.slot(index)?;
        let len = u64::from(self.header.key_len) * u64::from(slot.stripes);
        let area = self.area(index, len.next_multiple_of(SECTOR))?;
        let mut noise = vec![0; (area.end - area.start) as usize];
        random(&mut noise)?;
        file.write_all_at(&noise, area.start).map_err(Error::io("erasing a key slot", area.start))?;
        file.sync().map_err(Error::io("syncing", None))?;
        self.write_slot(file, index, Slot { active: false, iterations: 0, salt: [0; 32], ..slot })
    }

    /// The file range of the stripes of a slot, which nothing else uses.
    fn area(&self, index: usize, len: u64) -> Result<Range<u64>> {
        let field = self.fields.at("key material", self.entry_at(index) + 40);
        let area = |slot: &Slot, len: u64| {
            let start = self.range.start.saturating_add(slot.offset());
            start..start.saturating_add(len)
        };
        let own = area(self.slot(index)?, len);
        check_area(own.clone(), self.range.start + Header::LEN as u64..self.range.end, field)?;
        let others = self.header.slots.iter().enumerate().filter(|(other, slot)| *other != index && slot.active);
        for (_, slot) in others {
            let other = area(slot, u64::from(self.header.key_len) * u64::from(slot.stripes));
            if own.start < other.end && other.start < own.end {
                return Err(field.fault(Problem::Overlap { offset: own.start, with: "another key slot" }));
            }
        }
        Ok(own)
    }

    fn entry_at(&self, index: usize) -> u64 {
        self.range.start + SLOTS_AT + (index * SLOT_LEN) as u64
    }

    fn write_slot(&mut self, file: &dyn Storage, index: usize, slot: Slot) -> Result<()> {
        let at = self.entry_at(index);
        if let Some(place) = self.header.slots.get_mut(index) {
            *place = slot;
        }
        let bytes = self.header.encode();
        let start = SLOTS_AT as usize + index * SLOT_LEN;
        let entry = bytes.get(start..start + SLOT_LEN).unwrap_or_default();
        file.write_all_at(entry, at).map_err(Error::io("writing the LUKS header", at))?;
        file.sync().map_err(Error::io("syncing", None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::shared::luks::{NewVolume, Parameters};
    use crate::io::MemFile;
    use crate::options::Options;

    const FIELDS: Fields = Fields("luks");
    /// File offset of the header.
    const AT: u64 = 512;

    /// A volume with the secret "a" in slot 0.
    fn volume() -> MemFile {
        let mut options = Options::new();
        options.add_list("cipher-alg=aes-128,cipher-mode=cbc,iter-time=1");
        let parameters = Parameters::parse("luks", "", &options).unwrap();
        let file = MemFile::new();
        NewVolume::new("luks", &parameters, Some(&Secret::new("a"))).unwrap().write(&file, AT).unwrap();
        file
    }

    fn open(file: &MemFile, secret: &str) -> Result<KeySlots> {
        let (limits, budget, secrets) = (Limits::default(), Budget::new(8 << 20), [Secret::new(secret)]);
        let cx = OpenContext { secrets: &secrets, ..OpenContext::new(&limits, &budget) };
        let header = Header::read(file, AT, &FIELDS).unwrap();
        let range = AT..AT + header.payload_offset();
        KeySlots::open(file, header, range, &cx, FIELDS)
    }

    fn add(secret: &str, slot: Option<usize>, force: bool) -> KeyChange {
        KeyChange::Add { secret: Secret::new(secret), slot, iter_time: Some(Duration::from_millis(1)), force }
    }

    fn erase(slot: usize, force: bool) -> KeyChange {
        KeyChange::EraseSlot { slot, force }
    }

    fn erase_secret(secret: &str, force: bool) -> KeyChange {
        KeyChange::EraseSecret { secret: Secret::new(secret), force }
    }

    #[test]
    fn each_secret_unlocks_the_same_key_until_it_is_erased() {
        let file = volume();
        let mut keys = open(&file, "a").unwrap();
        keys.change(&file, &add("b", Some(3), false)).unwrap();
        keys.change(&file, &add("c", None, false)).unwrap();
        assert_eq!(keys.header.slots.map(|slot| slot.active), [true, true, false, true, false, false, false, false]);
        assert_eq!(Header::read(&file, AT, &FIELDS).unwrap(), keys.header);
        for secret in ["a", "b", "c"] {
            assert!(open(&file, secret).unwrap().key == keys.key, "{secret}");
        }
        let before = file.to_vec();
        keys.change(&file, &erase(0, false)).unwrap();
        keys.change(&file, &erase_secret("b", false)).unwrap();
        assert!(open(&file, "a").is_err() && open(&file, "b").is_err() && open(&file, "c").is_ok());
        // The stripes of both are overwritten, and nothing else but their entries.
        let after = file.to_vec();
        let len = keys.header.key_len as usize * STRIPES as usize;
        for (index, changed) in [(0, true), (1, false), (3, true)] {
            let start = (AT + keys.header.slots[index].offset()) as usize;
            assert_eq!(before[start..start + len] != after[start..start + len], changed, "{index}");
            let unlike = (start..start + len).filter(|at| before[*at] != after[*at]).count();
            assert!(!changed || unlike > len * 9 / 10, "{unlike} of {len}");
        }
        assert_eq!(Header::read(&file, AT, &FIELDS).unwrap(), keys.header);
    }

    #[test]
    fn what_would_lose_the_disk_has_to_be_forced() {
        let file = volume();
        let mut keys = open(&file, "a").unwrap();
        let before = file.to_vec();
        for (change, message) in [
            (erase(0, false), "key slot 0 is the only active one"),
            (erase(1, false), "key slot 1 is not active"),
            (erase(8, true), "invalid key slot 8: expected 0 to 7"),
            (erase_secret("a", false), "unlocks all active key slots"),
            (erase_secret("x", true), "the secret unlocks no key slot"),
            (add("b", Some(0), false), "key slot 0 is active: erase it first"),
            (add("b", Some(8), false), "invalid key slot 8: expected 0 to 7"),
        ] {
            let error = keys.change(&file, &change).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        assert!(file.to_vec() == before);
        keys.change(&file, &add("b", Some(0), true)).unwrap();
        assert!(open(&file, "a").is_err() && open(&file, "b").is_ok());
        keys.change(&file, &erase_secret("b", true)).unwrap();
        assert!(open(&file, "b").is_err());
        keys.header.slots.iter_mut().for_each(|slot| slot.active = true);
        let error = keys.change(&file, &add("c", None, false)).unwrap_err().to_string();
        assert!(error.contains("all key slots are active"), "{error}");
    }

    #[test]
    fn the_stripes_of_a_slot_overlap_nothing() {
        let file = volume();
        let mut keys = open(&file, "a").unwrap();
        let sectors = (u64::from(keys.header.key_len) * u64::from(STRIPES)).div_ceil(SECTOR) as u32;
        let first = keys.header.slots[0].sector;
        for (sector, with) in [
            (first + sectors, None),
            (first + sectors - 1, Some("another key slot")),
            (1, Some("the header")),
            (keys.header.payload_sectors - sectors, None),
            (keys.header.payload_sectors - sectors + 1, Some("the guest data")),
        ] {
            keys.header.slots[1].sector = sector;
            let error = keys.area(1, u64::from(sectors) * SECTOR).err().map(|error| error.to_string());
            let at = AT + u64::from(sector) * SECTOR;
            let refused = "luks: corrupt image at file offset 0x328: key material points to";
            assert_eq!(error, with.map(|with| format!("{refused} {at:#x}, which overlaps {with}")));
        }
    }
}
