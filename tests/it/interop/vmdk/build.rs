//! Generates streams in the layouts of VMware, open-vmdk and qemu.

use self::Maker::{OpenVmdk, Qemu, Vmware};
use diskimage::codec::{Codec, Encoder, Encoding};

pub const GRAIN: usize = 64 << 10;
const TABLE_GRAINS: usize = 512;

/// The program whose layout a stream has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// Tables after the grains, a footer and an end-of-stream marker. Also VirtualBox.
    Vmware,
    /// Tables before the grains, and an end-of-stream marker.
    OpenVmdk,
    /// Tables before the grains, no end-of-stream marker.
    Qemu,
}

/// The encoding of grains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Zlib,
    /// Raw deflate (RFC 1951), without header and checksum.
    Deflate,
    /// Raw deflate with stored blocks.
    Stored,
}

impl Packing {
    fn pack(self, grain: &[u8]) -> Vec<u8> {
        let codec = match self {
            Packing::Zlib => Codec::Zlib,
            Packing::Deflate => Codec::Deflate,
            Packing::Stored => {
                let (first, last) = grain.split_at(GRAIN / 2);
                let block = |is_last: u8, part: &[u8]| {
                    let len = (part.len() as u16).to_le_bytes();
                    [&[is_last, len[0], len[1], !len[0], !len[1]], part].concat()
                };
                return [block(0, first), block(1, last)].concat();
            }
        };
        Encoder::new(&Encoding::new(codec)).unwrap().encode(grain, usize::MAX).unwrap().to_vec()
    }
}

/// A stream in the layout of `maker` with the grains of `order`; other grains are zeros.
pub struct Build<'a> {
    pub maker: Maker,
    pub guest: &'a [u8],
    pub order: Vec<usize>,
    pub packing: Packing,
    /// Zero bytes after the end.
    pub padding: usize,
}

pub struct Built {
    pub bytes: Vec<u8>,
    /// Offsets of the grain markers, in stream order.
    pub markers: Vec<usize>,
}

impl Build<'_> {
    pub fn build(&self) -> Built {
        let sectors = self.guest.len() / 512;
        let tables = self.guest.len().div_ceil(GRAIN * TABLE_GRAINS);
        let (directory_sectors, table_sectors) = ((tables * 4).div_ceil(512), 4);
        let set = directory_sectors + tables * table_sectors;
        let copies = match self.maker {
            Vmware => 0,
            OpenVmdk => 1,
            Qemu => 2,
        };
        // open-vmdk does not align the grains.
        let overhead = if self.maker == OpenVmdk { 21 + set } else { (21 + copies * set).next_multiple_of(128) };
        let mut bytes = vec![0; overhead * 512];
        let text = super::descriptors::descriptor("streamOptimized", &format!("RDONLY {sectors} SPARSE \"a.vmdk\""));
        bytes[512..512 + text.len()].copy_from_slice(text.as_bytes());

        let mut entries = vec![0_u32; tables * TABLE_GRAINS];
        let mut markers = Vec::new();
        for &grain in &self.order {
            let start = grain * GRAIN;
            let mut data = self.guest[start..self.guest.len().min(start + GRAIN)].to_vec();
            data.resize(GRAIN, 0);
            let payload = self.packing.pack(&data);
            entries[grain] = (bytes.len() / 512) as u32;
            markers.push(bytes.len());
            bytes.extend((start as u64 / 512).to_le_bytes());
            bytes.extend((payload.len() as u32).to_le_bytes());
            bytes.extend(payload);
            pad(&mut bytes);
        }
        let directory_at = match self.maker {
            Vmware => {
                let mut directory = Vec::new();
                for table in entries.chunks(TABLE_GRAINS) {
                    if table.iter().all(|&entry| entry == 0) {
                        directory.push(0);
                        continue;
                    }
                    marker(&mut bytes, 4, 1);
                    directory.push((bytes.len() / 512) as u32);
                    bytes.extend(table.iter().flat_map(|entry| entry.to_le_bytes()));
                }
                marker(&mut bytes, directory_sectors as u64, 2);
                let at = bytes.len() / 512;
                bytes.extend(directory.iter().flat_map(|entry| entry.to_le_bytes()));
                pad(&mut bytes);
                marker(&mut bytes, 1, 3);
                bytes.extend(self.header(sectors, at as u64, overhead));
                u64::MAX
            }
            OpenVmdk | Qemu => {
                let mut sector = 21;
                for _ in 0..copies {
                    let (directory, first) = (sector * 512, sector + directory_sectors);
                    for table in 0..tables {
                        let sector = (first + table * table_sectors) as u32;
                        bytes[directory + table * 4..][..4].copy_from_slice(&sector.to_le_bytes());
                    }
                    for (index, entry) in entries.iter().enumerate() {
                        bytes[first * 512 + index * 4..][..4].copy_from_slice(&entry.to_le_bytes());
                    }
                    sector += set;
                }
                (21 + (copies - 1) * set) as u64
            }
        };
        if self.maker != Qemu {
            marker(&mut bytes, 0, 0);
        }
        bytes.resize(bytes.len() + self.padding, 0);
        let header = self.header(sectors, directory_at, overhead);
        bytes[..512].copy_from_slice(&header);
        Built { bytes, markers }
    }

    fn header(&self, sectors: usize, directory: u64, overhead: usize) -> [u8; 512] {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"KDMV\x03\0\0\0");
        put(8, &(0x30001_u32 | if self.maker == Qemu { 2 } else { 0 }).to_le_bytes());
        for (at, value) in [(12, sectors), (20, 128), (28, 1), (36, 20), (64, overhead)] {
            put(at, &(value as u64).to_le_bytes());
        }
        put(44, &512_u32.to_le_bytes());
        put(48, &(if self.maker == Qemu { 21_u64 } else { 0 }).to_le_bytes());
        put(56, &directory.to_le_bytes());
        put(73, b"\n \r\n\x01");
        header
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
}

fn marker(bytes: &mut Vec<u8>, sectors: u64, kind: u32) {
    bytes.extend(sectors.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(kind.to_le_bytes());
    pad(bytes);
}

/// Returns the indexes of the nonzero grains.
pub fn grains(guest: &[u8]) -> Vec<usize> {
    let zeros = [0; GRAIN];
    let not_zero = |(index, grain): (usize, &[u8])| (*grain != zeros[..grain.len()]).then_some(index);
    guest.chunks(GRAIN).enumerate().filter_map(not_zero).collect()
}
