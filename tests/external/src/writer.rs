//! Writing toy images: header, table, then the clusters in the order of their allocation.

use std::ops::Range;
use std::sync::Arc;

use diskimage::driver::{CreateContext, Placement, SparseWrite, WriteSpec};
use diskimage::io::WriteAt;
use diskimage::{Error, ImageIdentifiers, Result};

use crate::NAME;
use crate::header::{CLUSTER_SIZES, HEADER_LEN, Header};

const DEFAULT_CLUSTER_SIZE: u64 = 64 << 10;

struct Writer {
    out: Arc<dyn WriteAt>,
    header: Header,
    table: Vec<u32>,
    /// The next free host cluster.
    next: u32,
    spec: WriteSpec,
}

pub fn create(cx: &CreateContext<'_>) -> Result<Box<dyn SparseWrite>> {
    if cx.compress {
        return Err(Error::unsupported(NAME, "compression"));
    }
    if cx.backing.is_some() {
        return Err(Error::unsupported(NAME, "backing files"));
    }
    let cluster_size = cx.options.power_of_two(NAME, "cluster_size", CLUSTER_SIZES)?.unwrap_or(DEFAULT_CLUSTER_SIZE);
    let header = Header { virtual_size: cx.size.next_multiple_of(512), cluster_size, table_offset: HEADER_LEN as u64 };
    // Host clusters have numbers of 32 bits, and each guest cluster may need one.
    let limit = u64::from(u32::MAX) / 2 * cluster_size;
    if header.virtual_size > limit {
        return Err(Error::Limit {
            name: None,
            format: NAME,
            field: "virtual size".into(),
            at: None,
            value: cx.size,
            limit,
        });
    }
    let first = (header.table_offset + header.table_len()).div_ceil(cluster_size);
    Ok(Box::new(Writer {
        out: cx.out.clone(),
        table: vec![0; header.cluster_count() as usize],
        next: first as u32,
        spec: WriteSpec::new(header.virtual_size, cluster_size),
        header,
    }))
}

impl SparseWrite for Writer {
    fn spec(&self) -> &WriteSpec {
        &self.spec
    }

    fn place(&mut self, guest: Range<u64>) -> Result<Placement> {
        let size = self.header.cluster_size;
        let offset = u64::from(self.next) * size;
        for cluster in guest.start / size..guest.end.div_ceil(size) {
            self.table[cluster as usize] = self.next;
            self.next += 1;
        }
        Ok(Placement::new(self.out.clone(), offset, guest.end - guest.start))
    }

    fn place_compressed(&mut self, _guest: Range<u64>, _stored_len: u32) -> Result<Placement> {
        Err(Error::unsupported(NAME, "compression"))
    }

    fn zero(&mut self, _guest: Range<u64>) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self, _identifiers: &ImageIdentifiers) -> Result<()> {
        let table: Vec<u8> = self.table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        let len = u64::from(self.next) * self.header.cluster_size;
        self.out.set_len(len).map_err(Error::io("setting the file length", None))?;
        let at = self.header.table_offset;
        self.out.write_all_at(&table, at).map_err(Error::io("writing the table", at))?;
        self.out.sync().map_err(Error::io("syncing the table", None))?;
        self.out.write_all_at(&self.header.encode(), 0).map_err(Error::io("writing the header", 0))?;
        self.out.sync().map_err(Error::io("syncing the header", None))
    }
}
