//! Offsets of the fields of a qcow2 image, to overwrite them.

/// A qcow2 image in memory whose fields can be overwritten.
#[derive(Clone)]
pub struct Qcow2(pub Vec<u8>);

impl Qcow2 {
    pub fn u32(&self, at: u64) -> u32 {
        let at = at as usize;
        u32::from_be_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    pub fn u64(&self, at: u64) -> u64 {
        let at = at as usize;
        u64::from_be_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        self.0[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    pub fn put_u32(&mut self, at: u64, value: u32) {
        self.put(at, &value.to_be_bytes());
    }

    pub fn put_u64(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_be_bytes());
    }

    pub fn cluster_size(&self) -> u64 {
        1 << self.u32(20)
    }

    /// Host offset of the L1 entry that maps a guest cluster.
    pub fn l1_entry(&self, cluster: u64) -> u64 {
        self.u64(40) + cluster / self.l2_entries() * 8
    }

    /// Host offset of the L2 entry of a guest cluster, whose L2 table must be allocated.
    pub fn l2_entry(&self, cluster: u64) -> u64 {
        let table = self.u64(self.l1_entry(cluster)) & 0x00ff_ffff_ffff_fe00;
        assert_ne!(table, 0, "guest cluster {cluster} has no L2 table");
        table + cluster % self.l2_entries() * self.entry_size()
    }

    fn entry_size(&self) -> u64 {
        let extended = self.u32(4) >= 3 && self.u64(72) & 0x10 != 0;
        if extended { 16 } else { 8 }
    }

    fn l2_entries(&self) -> u64 {
        self.cluster_size() / self.entry_size()
    }
}
