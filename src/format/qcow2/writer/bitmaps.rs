//! Persistent bitmaps of a new image: their bits are written while they are added, tables and directory at the end of the file.

use super::alloc::{Allocator, entries_in_clusters};
use super::{write, write_table};
use crate::driver::DirtyBitmap;
use crate::error::{Error, Result};
use crate::format::qcow2::FORMAT_NAME;
use crate::format::qcow2::bitmap::{Bitmap, BitmapFlags, MAX_BITMAPS, MAX_NAME, Part};
use crate::format::qcow2::extension::BitmapDirectory;
use crate::io::{WriteAt, write_zeros};

/// Largest number of bytes of bits that qemu reads.
const MAX_BITS: u64 = 512 << 20;

/// The bitmaps that have been added.
#[derive(Default)]
pub(super) struct Bitmaps(Vec<(Bitmap, Vec<u64>)>);

impl Bitmaps {
    /// Adds a bitmap of a disk of `virtual_size` bytes.
    pub fn add(
        &mut self,
        source: &DirtyBitmap,
        virtual_size: u64,
        cluster_bits: u32,
        alloc: &mut Allocator,
        out: &dyn WriteAt,
    ) -> Result<()> {
        let bits = virtual_size.div_ceil(source.granularity.max(1));
        self.check(source, bits.div_ceil(8))?;
        let cluster_size = 1u64 << cluster_bits;
        let stored = source.bits.size().map_err(Error::io("reading the size of a bitmap", None))?;
        let mut buf = vec![0; cluster_size as usize];
        let mut table = Vec::new();
        for at in (0..bits.div_ceil(8)).step_by(cluster_size as usize) {
            let len = stored.saturating_sub(at).min(cluster_size) as usize;
            let (head, tail) = buf.split_at_mut(len);
            source.bits.read_exact_at(head, at).map_err(Error::io("reading a bitmap", None))?;
            tail.fill(0);
            clear_from(&mut buf, bits - at * 8);
            table.push(self.write_part(&buf, alloc, out)?.encode());
        }
        let flags = if source.recording { BitmapFlags::AUTO } else { BitmapFlags::empty() };
        let bitmap = Bitmap {
            name: source.name.clone(),
            granularity: source.granularity,
            flags,
            table_offset: 0,
            table_size: table.len() as u32,
            is_usable: true,
            at: 0,
        };
        self.0.push((bitmap, table));
        Ok(())
    }

    /// Checks that qemu reads a bitmap of `len` bytes.
    fn check(&self, source: &DirtyBitmap, len: u64) -> Result<()> {
        let name = &source.name;
        let refuse = |problem: String| Err(Error::Usage(format!("{FORMAT_NAME}: bitmap '{name}': {problem}")));
        if self.0.iter().any(|(other, _)| other.name == *name) {
            return refuse("there are two bitmaps with this name".into());
        }
        if self.0.len() as u64 >= MAX_BITMAPS {
            return refuse(format!("an image has at most {MAX_BITMAPS} bitmaps"));
        }
        if !(1..=MAX_NAME).contains(&(name.as_bytes().len() as u64)) {
            return refuse(format!("invalid name, expected 1 to {MAX_NAME} bytes"));
        }
        if !source.granularity.is_power_of_two() || !(9..=31).contains(&source.granularity.ilog2()) {
            return refuse(format!(
                "invalid granularity {}: expected a power of two from 512 to 2 GiB",
                source.granularity
            ));
        }
        if len > MAX_BITS {
            return refuse(format!("its {len} bytes are more than {MAX_BITS}"));
        }
        Ok(())
    }

    fn write_part(&self, cluster: &[u8], alloc: &mut Allocator, out: &dyn WriteAt) -> Result<Part> {
        if let Some(part) = Part::of(cluster) {
            return Ok(part);
        }
        let offset = alloc.take(1)?.start;
        write(out, cluster, offset)?;
        Ok(Part::At(offset))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Clusters for the tables and the directory.
    pub fn clusters(&self, cluster_bits: u32) -> u64 {
        let tables = self.0.iter().map(|(_, table)| entries_in_clusters(table.len() as u64, cluster_bits));
        tables.sum::<u64>() + self.directory_len().div_ceil(1 << cluster_bits)
    }

    fn directory_len(&self) -> u64 {
        self.0.iter().map(|(bitmap, _)| bitmap.encode().len() as u64).sum()
    }

    /// Writes the tables and the directory to these clusters at `offset`.
    pub fn write(&mut self, offset: u64, cluster_bits: u32, out: &dyn WriteAt) -> Result<BitmapDirectory> {
        let mut at = offset;
        let mut directory = Vec::new();
        for (bitmap, table) in &mut self.0 {
            let len = entries_in_clusters(table.len() as u64, cluster_bits) << cluster_bits;
            write_table(out, table, at, len)?;
            bitmap.table_offset = at;
            directory.extend(bitmap.encode());
            at += len;
        }
        write(out, &directory, at)?;
        let (count, len) = (self.0.len() as u32, directory.len() as u64);
        let end = (at + len).next_multiple_of(1 << cluster_bits);
        write_zeros(out, at + len..end).map_err(Error::io("writing zeros", at + len))?;
        Ok(BitmapDirectory { count, len, offset: at, at: 0 })
    }
}

/// Clears the bits from number `count` on.
fn clear_from(bytes: &mut [u8], count: u64) {
    let Ok(first) = usize::try_from(count / 8) else { return };
    if let Some((partial, rest)) = bytes.get_mut(first..).and_then(<[u8]>::split_first_mut) {
        *partial &= (1u8 << (count % 8)) - 1;
        rest.fill(0);
    }
}
