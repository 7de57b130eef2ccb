//! The disk data base of a new disk: geometry and identifiers.

use std::fmt::Write;

/// Cylinders, heads and sectors of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub cylinders: u64,
    pub heads: u64,
    pub sectors: u64,
}

impl Geometry {
    /// Returns the geometry of a disk of `sectors` sectors as VMware and qemu choose it: 16 heads for `ide`, with at
    /// most 16383 cylinders (ATA-5, 6.2.1), and 255 heads for SCSI. Cylinders are rounded down, but at least 1.
    pub fn new(sectors: u64, adapter_type: &str) -> Geometry {
        const SECTORS: u64 = 63;
        let (heads, max_cylinders) = if adapter_type.eq_ignore_ascii_case("ide") { (16, 16383) } else { (255, 65535) };
        Geometry { cylinders: (sectors / (heads * SECTORS)).clamp(1, max_cylinders), heads, sectors: SECTORS }
    }
}

/// Returns the value of `ddb.uuid`. VMware's prefix replaces the first three and a half bytes.
pub(crate) fn uuid(mut bytes: [u8; 16]) -> String {
    let [a, b, c, d, ..] = &mut bytes;
    (*a, *b, *c, *d) = (0x60, 0x00, 0xc2, 0x90 | *d & 0x0f);
    let mut text = String::with_capacity(47);
    for (i, byte) in bytes.iter().enumerate() {
        text += match i {
            0 => "",
            8 => "-",
            _ => " ",
        };
        // Only the prefix is in upper case.
        let _ = if i == 2 { write!(text, "{byte:02X}") } else { write!(text, "{byte:02x}") };
    }
    text
}

/// Returns the value of `ddb.longContentID`. The CID replaces the last four bytes.
pub(crate) fn long_content_id(bytes: [u8; 16], cid: u32) -> String {
    format!("{:032x}", u128::from_be_bytes(bytes) & !u128::from(u32::MAX) | u128::from(cid))
}
