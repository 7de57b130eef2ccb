//! Swap space of Linux (Linux kernel, include/linux/swap.h): the first page describes it; what was swapped out means nothing to a system that
//! starts.

use super::volume::{Fields, Found, FreeRanges, Volume, kept};
use super::{Described, FileSystem, uuid_text};

pub(super) struct Swap {
    page: u64,
    last_page: u64,
    version: u32,
    uuid: [u8; 16],
    label: [u8; 16],
}

/// Opens the swap space, if the volume is one. The signature is at the end of the first page, whose size depends on the machine.
pub(super) fn open(volume: &Volume) -> Found<Option<Box<dyn FileSystem>>> {
    for page in [4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10] {
        match volume.peek::<10>(page - 10)?.as_ref() {
            Some(b"SWAPSPACE2") => {
                let header = volume.read(1024, 68)?;
                let fields = Fields(&header);
                return Ok(Some(Box::new(Swap {
                    page,
                    last_page: fields.le32(4)?.into(),
                    version: fields.le32(0)?,
                    uuid: fields.bytes(12)?,
                    label: fields.bytes(28)?,
                })));
            }
            // Of a system that is suspended to disk.
            Some(b"S1SUSPEND\0" | b"S2SUSPEND\0" | b"ULSUSPEND\0" | b"LINHIB0001") => {
                return kept("a hibernated system is in the swap space");
            }
            _ => {}
        }
    }
    Ok(None)
}

impl FileSystem for Swap {
    fn describe(&self) -> Described {
        let size = (self.last_page + 1) * self.page;
        Described {
            name: "swap",
            label: self.label.to_vec(),
            uuid: Some(uuid_text(&self.uuid)),
            size,
            free: Some(size - self.page),
        }
    }

    fn free(&self, volume: &Volume, free: &mut FreeRanges) -> Found<()> {
        let end = (self.last_page + 1) * self.page;
        if self.version != 1 || self.last_page == 0 || end > volume.len() {
            return kept("the header of the swap space is not valid");
        }
        free.add(self.page..end);
        Ok(())
    }
}
