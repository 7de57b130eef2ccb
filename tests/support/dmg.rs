//! Images of macOS, built from their parts: no program of another system writes them.

use std::ops::Range;

/// Types of runs.
pub const ZEROS: u32 = 0;
pub const RAW: u32 = 1;
pub const UNUSED: u32 = 2;
pub const ADC: u32 = 0x8000_0004;
pub const ZLIB: u32 = 0x8000_0005;
pub const BZIP2: u32 = 0x8000_0006;
pub const LZFSE: u32 = 0x8000_0007;
pub const XZ: u32 = 0x8000_0008;
pub const COMMENT: u32 = 0x7fff_fffe;
pub const END: u32 = 0xffff_ffff;

/// Host offset of the data fork, to which those of runs are relative. It is 0 in most images.
pub const DATA_FORK: u64 = 7;

/// An entry of a block table. The sector is that of the partition; the offset is that in the data of the partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmgRun {
    pub kind: u32,
    pub sector: u64,
    pub count: u64,
    pub offset: u64,
    pub len: u64,
}

/// An image whose runs are added in the order of the disk, in partitions of one table each.
#[derive(Clone, Debug, Default)]
pub struct DmgBuilder {
    data: Vec<u8>,
    tables: Vec<Vec<u8>>,
    runs: Vec<DmgRun>,
    /// First sector of the partition, and offset of its data in the data fork.
    first: (u64, u64),
    sectors: u64,
}

impl DmgBuilder {
    /// Adds a run of `count` sectors that is stored as `payload`.
    pub fn run(&mut self, kind: u32, count: u64, payload: &[u8]) -> &mut Self {
        let (first, data) = self.first;
        let offset = self.data.len() as u64 - data;
        self.runs.push(DmgRun { kind, sector: self.sectors - first, count, offset, len: payload.len() as u64 });
        self.sectors += count;
        self.data.extend(payload);
        self
    }

    /// Ends the partition, and begins the next one.
    pub fn end_partition(&mut self, checksum: u32) -> &mut Self {
        let (first, data) = self.first;
        let end =
            DmgRun { kind: END, sector: self.sectors - first, count: 0, offset: self.data.len() as u64 - data, len: 0 };
        self.runs.push(end);
        self.tables.push(block_table(first, self.sectors - first, data, checksum, &self.runs));
        self.runs.clear();
        self.first = (self.sectors, self.data.len() as u64);
        self
    }

    /// The image, whose last partition has been ended.
    pub fn build(&self) -> Vec<u8> {
        dmg(&self.data, &property_list(&self.tables), self.sectors)
    }

    /// The same with the data fork at the start of the file.
    pub fn build_at_start(&self) -> Vec<u8> {
        dmg_at(0, &self.data, &property_list(&self.tables), self.sectors)
    }

    /// The same with the block tables in a resource fork, as in old images.
    pub fn build_with_resources(&self) -> Vec<u8> {
        dmg_with_resources(&self.data, &resource_fork(&self.tables), self.sectors)
    }
}

/// A block table.
pub fn block_table(first: u64, count: u64, data: u64, checksum: u32, runs: &[DmgRun]) -> Vec<u8> {
    let mut table = b"mish\0\0\0\x01".to_vec();
    table.extend([first, count, data].iter().flat_map(|number| number.to_be_bytes()));
    // Sectors to be buffered, number of the partition.
    table.extend([2048_u32, 0].iter().flat_map(|number| number.to_be_bytes()));
    table.resize(64, 0);
    // CRC-32, of 32 bits.
    table.extend([2, 32, checksum].iter().flat_map(|number| number.to_be_bytes()));
    table.resize(200, 0);
    table.extend((runs.len() as u32).to_be_bytes());
    for run in runs {
        table.extend([run.kind, 0].iter().flat_map(|number| number.to_be_bytes()));
        table.extend([run.sector, run.count, run.offset, run.len].iter().flat_map(|number| number.to_be_bytes()));
    }
    table
}

/// A property list with these block tables, as hdiutil writes it.
pub fn property_list(tables: &[Vec<u8>]) -> String {
    let mut text = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n\
         <plist version=\"1.0\">\n<dict>\n\t<key>resource-fork</key>\n\t<dict>\n\t\t<key>blkx</key>\n\t\t<array>\n",
    );
    for (id, table) in tables.iter().enumerate() {
        text += "\t\t\t<dict>\n\t\t\t\t<key>Attributes</key>\n\t\t\t\t<string>0x0050</string>\n";
        text += &format!("\t\t\t\t<key>CFName</key>\n\t\t\t\t<string>part (Apple_HFS : {id})</string>\n");
        text += "\t\t\t\t<key>Data</key>\n\t\t\t\t<data>\n";
        for line in base64(table).as_bytes().chunks(44) {
            text += &format!("\t\t\t\t{}\n", String::from_utf8_lossy(line));
        }
        text += &format!("\t\t\t\t</data>\n\t\t\t\t<key>ID</key>\n\t\t\t\t<string>{id}</string>\n");
        text += &format!("\t\t\t\t<key>Name</key>\n\t\t\t\t<string>part (Apple_HFS : {id})</string>\n\t\t\t</dict>\n");
    }
    text + "\t\t</array>\n\t\t<key>plst</key>\n\t\t<array/>\n\t</dict>\n</dict>\n</plist>\n"
}

/// A file with a data fork, a property list, and a trailer.
pub fn dmg(data: &[u8], property_list: &str, sectors: u64) -> Vec<u8> {
    dmg_at(DATA_FORK, data, property_list, sectors)
}

fn dmg_at(data_fork: u64, data: &[u8], property_list: &str, sectors: u64) -> Vec<u8> {
    let mut file = vec![0xee; data_fork as usize];
    file.extend(data);
    let plist_at = file.len() as u64;
    file.extend(property_list.as_bytes());
    file.extend(trailer(data_fork, data, plist_at..file.len() as u64, sectors));
    file
}

/// A resource fork with these block tables ("Inside Macintosh: More Macintosh Toolbox", chapter 1, "Resource File Format").
pub fn resource_fork(tables: &[Vec<u8>]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut references = Vec::new();
    for (id, table) in tables.iter().enumerate() {
        references.extend([0, id as u8, 0xff, 0xff]);
        references.extend((data.len() as u32).to_be_bytes());
        references.extend([0; 4]);
        data.extend((table.len() as u32).to_be_bytes());
        data.extend(table);
    }
    let numbers16 = |numbers: &[u16]| numbers.iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<_>>();
    // Offsets of the types and of the names; the last types; each type with its last resource, and the offset of its references.
    let count = tables.len() as u16;
    let map = [
        vec![0; 24],
        numbers16(&[28, 28 + 18 + 12 * (count + 1), 1]),
        b"plst".to_vec(),
        numbers16(&[0, 18]),
        b"blkx".to_vec(),
        numbers16(&[count.wrapping_sub(1), 30]),
        [0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0].to_vec(),
        references,
    ]
    .concat();
    // 240 bytes of the system and of the application follow the header, which the map begins with as well.
    let header = [256, 256 + data.len() as u32, data.len() as u32, map.len() as u32];
    let header = header.map(u32::to_be_bytes).concat();
    [&header[..], &[0; 240], &data, &header, &map[16..]].concat()
}

/// A file with a data fork, a resource fork, and a trailer.
pub fn dmg_with_resources(data: &[u8], resources: &[u8], sectors: u64) -> Vec<u8> {
    let mut file = vec![0xee; DATA_FORK as usize];
    file.extend(data);
    let mut trailer = trailer(DATA_FORK, data, 0..0, sectors);
    trailer[40..48].copy_from_slice(&(file.len() as u64).to_be_bytes());
    trailer[48..56].copy_from_slice(&(resources.len() as u64).to_be_bytes());
    file.extend(resources);
    file.extend(trailer);
    file
}

/// A trailer.
fn trailer(data_fork: u64, data: &[u8], property_list: Range<u64>, sectors: u64) -> [u8; 512] {
    let mut trailer = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| trailer[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"koly\0\0\0\x04\0\0\x02\0\0\0\0\x01");
    put(24, &data_fork.to_be_bytes());
    put(32, &(data.len() as u64).to_be_bytes());
    put(56, &[0, 0, 0, 1, 0, 0, 0, 1]);
    // CRC-32, of 32 bits.
    put(80, &[0, 0, 0, 2, 0, 0, 0, 32]);
    put(88, &crc32fast::hash(data).to_be_bytes());
    put(216, &property_list.start.to_be_bytes());
    put(224, &(property_list.end - property_list.start).to_be_bytes());
    put(488, &[0, 0, 0, 1]);
    put(492, &sectors.to_be_bytes());
    trailer
}

/// Base64 in one line.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let number = group.iter().chain(&[0; 2]).take(3).fold(0, |number, byte| number << 8 | usize::from(*byte));
        for digit in 0..4 {
            let shown = digit <= group.len();
            text.push(if shown { DIGITS[number >> (18 - 6 * digit) & 63].into() } else { '=' });
        }
    }
    text
}

/// Encodes with Apple Data Compression, greedily: no program does. The least match has 3 bytes.
pub fn adc(data: &[u8]) -> Vec<u8> {
    let mut last_seen = std::collections::HashMap::new();
    let mut stored = Vec::new();
    let (mut at, mut literals) = (0, 0);
    let flush = |stored: &mut Vec<u8>, bytes: &[u8]| {
        for piece in bytes.chunks(128) {
            stored.push(0x80 | (piece.len() - 1) as u8);
            stored.extend(piece);
        }
    };
    while at < data.len() {
        let key = data.get(at..at + 3);
        let found = key.and_then(|key| last_seen.insert(key, at)).filter(|from| at - from <= 0x10000);
        let len =
            found.map_or(0, |from| data[at..].iter().zip(&data[from..]).take(67).take_while(|(a, b)| a == b).count());
        let distance = at - found.unwrap_or(at);
        match (len, distance) {
            (3..=18, 1..=0x400) => {
                flush(&mut stored, &data[literals..at]);
                stored.extend([((len - 3) << 2 | (distance - 1) >> 8) as u8, (distance - 1) as u8]);
            }
            (4.., 1..) => {
                flush(&mut stored, &data[literals..at]);
                stored.push(0x40 | (len - 4) as u8);
                stored.extend(((distance - 1) as u16).to_be_bytes());
            }
            _ => {
                at += 1;
                continue;
            }
        }
        at += len;
        literals = at;
    }
    flush(&mut stored, &data[literals..]);
    stored
}
