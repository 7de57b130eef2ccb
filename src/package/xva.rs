//! Exports of XenServer and XCP-ng: an archive with `ova.xml` and the disks in blocks of 1 MiB.
//!
//! The member `Ref:4/00000012` is block 12 of the disk `Ref:4`; `.checksum` (SHA-1) or `.xxhash` of its name follows it. A block that is
//! missing reads as zeros. The size of a disk is in `ova.xml`, a structure of XML-RPC. During a long run of zeros the exporter keeps the
//! connection alive with empty blocks, whose names the blocks after them can have again.

mod blocks;

use blocks::Block;
pub(super) use blocks::CheckedDisk;
use roxmltree::Node;

use super::tar::{Kind, Member};
use crate::error::{Error, Problem, Result};
use crate::format::shared::table::Fields;
use crate::format::shared::xml;
use crate::io::Piece;
use crate::limits::{Budget, Limits};
use crate::name::Name;

/// Name of the format.
pub(super) const FORMAT_NAME: &str = "xva";
const FIELDS: Fields = Fields(FORMAT_NAME);
/// The member that describes the machine.
pub(super) const DESCRIPTOR: &[u8] = b"ova.xml";
const BLOCK: u64 = 1 << 20;

/// A disk.
pub(super) struct Disk {
    pub name: Name,
    /// Virtual size in bytes.
    pub size: u64,
    /// Its blocks in the archive.
    pub pieces: Vec<Piece>,
    /// The same with their checksums.
    blocks: Vec<Block>,
}

impl Disk {
    /// Bytes stored.
    pub fn stored(&self) -> u64 {
        self.blocks.iter().map(|block| block.len).sum()
    }

    /// Number of blocks without a checksum.
    pub fn unchecked_count(&self) -> usize {
        self.blocks.iter().filter(|block| !block.has_checksum()).count()
    }
}

/// The disks of an archive with the given descriptor, in the order of their first blocks.
///
/// # Errors
/// [`Error::Corrupt`] for blocks that are not in ascending order, or after the end of their disk; [`Error::Unsupported`] for a descriptor that
/// is not understood.
pub(super) fn disks(members: &[Member], descriptor: &[u8], limits: &Limits) -> Result<Vec<Disk>> {
    let sizes = sizes(descriptor, limits)?;
    let mut disks: Vec<Disk> = Vec::new();
    // The block before, with its disk.
    let mut last: Option<(&Name, usize)> = None;
    for member in members.iter().filter(|member| member.kind == Kind::File) {
        let Some((name, block)) = block(member.name.as_bytes()) else {
            if let Some((block, index)) = last
                && let Some(suffix) = member.name.as_bytes().strip_prefix(block.as_bytes())
                && let Some(block) = disks.get_mut(index).and_then(|disk| disk.blocks.last_mut())
            {
                block.set_checksum(suffix, member)?;
            }
            last = None;
            continue;
        };
        last = None;
        let known = disks.iter().position(|disk| disk.name.as_bytes() == name);
        let index = known.unwrap_or(disks.len());
        if known.is_none() {
            let Some(size) = sizes.iter().find(|(own, _)| own.as_bytes() == name).map(|(_, size)| *size) else {
                return Err(Error::unsupported(FORMAT_NAME, "a disk that ova.xml does not describe"));
            };
            disks.push(Disk { name: Name::from(name), size, pieces: Vec::new(), blocks: Vec::new() });
        }
        let Some(disk) = disks.get_mut(index) else { continue };
        let field = FIELDS.at("block", member.at);
        let start = block.saturating_mul(BLOCK);
        field.within(start, member.size.min(BLOCK), disk.size)?;
        field.at_most(member.size, BLOCK)?;
        if member.size == 0 {
            continue;
        }
        let end = disk.blocks.last().map_or(0, Block::end);
        if start < end {
            return Err(field.fault(Problem::Overlap { offset: start, with: "the previous block" }));
        }
        if member.size < BLOCK && start + member.size < disk.size {
            return Err(field.fault(Problem::Truncated));
        }
        disk.blocks.push(Block::new(start, member.size));
        last = Some((&member.name, index));
        disk.pieces.extend(member.pieces.iter().map(|piece| Piece { start: start + piece.start, ..*piece }));
    }
    for disk in &disks {
        // An exporter writes the last block of each disk, even if it is zeros.
        if disk.blocks.last().is_none_or(|block| block.end() < disk.size) {
            return Err(FIELDS.at("last block", 0).fault(Problem::Truncated));
        }
    }
    Ok(disks)
}

/// The disk and the number of a block.
fn block(name: &[u8]) -> Option<(&[u8], u64)> {
    let slash = name.iter().position(|byte| *byte == b'/')?;
    let (disk, digits) = (name.get(..slash)?, name.get(slash + 1..)?);
    let is_number = digits.len() >= 8 && digits.len() <= 16 && digits.iter().all(u8::is_ascii_digit);
    if !disk.starts_with(b"Ref:") || !is_number {
        return None;
    }
    Some((disk, std::str::from_utf8(digits).ok()?.parse().ok()?))
}

/// The identifiers of the VDI objects, with their virtual sizes.
fn sizes(descriptor: &[u8], limits: &Limits) -> Result<Vec<(String, u64)>> {
    let not_understood = || Error::unsupported(FORMAT_NAME, "an ova.xml that is not understood");
    let document =
        xml::text(&FIELDS, descriptor).and_then(|text| xml::parse(&FIELDS, text, &Budget::new(limits.metadata)));
    let document = document.map_err(|error| match error {
        error @ Error::Limit { .. } => error,
        _ => not_understood(),
    })?;
    let objects =
        document.descendants().filter(|node| node.has_tag_name("struct") && text_of(*node, "class") == Some("VDI"));
    Ok(objects
        .filter_map(|object| {
            let size = structure(member(object, "snapshot")?).and_then(|state| text_of(state, "virtual_size"))?;
            Some((text_of(object, "id")?.to_owned(), size.parse().ok().filter(|size| *size <= i64::MAX as u64)?))
        })
        .collect())
}

/// The value of the member `name` of a structure.
fn member<'a, 'input>(object: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    let child = |node: Node<'a, 'input>, tag: &str| node.children().find(|child| child.has_tag_name(tag));
    let mut members = object.children().filter(|node| node.has_tag_name("member"));
    let found = members.find(|node| child(*node, "name").and_then(|name| name.text()) == Some(name))?;
    child(found, "value")
}

fn structure<'a, 'input>(value: Node<'a, 'input>) -> Option<Node<'a, 'input>> {
    value.children().find(|child| child.has_tag_name("struct"))
}

/// The text of a value, which may be in an element for its type.
fn text_of<'a>(object: Node<'a, '_>, name: &str) -> Option<&'a str> {
    let value = member(object, name)?;
    value.descendants().find(|node| node.is_text()).and_then(|node| node.text()).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(size: &str) -> Vec<u8> {
        let member = |name: &str, value: &str| format!("<member><name>{name}</name><value>{value}</value></member>");
        let vdi = member("class", "VDI")
            + &member("id", "Ref:4")
            + &member("snapshot", &format!("<struct>{}</struct>", member("virtual_size", size)));
        let objects = format!("<array><data><value><struct>{vdi}</struct></value></data></array>");
        format!("<value><struct>{}</struct></value>", member("objects", &objects)).into_bytes()
    }

    fn file(name: &str, size: u64) -> Member {
        let pieces = vec![Piece { start: 0, len: size, offset: 512 }];
        Member { name: Name::from(name), kind: Kind::File, size, at: 0, pieces }
    }

    #[test]
    fn blocks_are_placed_by_their_numbers() {
        let members = [
            file("ova.xml", 10),
            file("Ref:4/00000000", BLOCK),
            file("Ref:4/00000000.checksum", 40),
            file("Ref:4/00000002", 1000),
            file("other/00000002", 1000),
        ];
        let found = disks(&members, &descriptor("2098152"), &Limits::default()).unwrap();
        assert_eq!((found.len(), found[0].size, found[0].stored()), (1, 2 * BLOCK + 1000, BLOCK + 1000));
        let pieces: Vec<_> = found[0].pieces.iter().map(|piece| (piece.start, piece.len)).collect();
        assert_eq!(pieces, [(0, BLOCK), (2 * BLOCK, 1000)]);
    }

    #[test]
    fn the_pieces_of_a_sparse_block_are_within_it() {
        let mut block = file("Ref:4/00000001", BLOCK);
        block.pieces = vec![Piece { start: 0, len: 512, offset: 512 }, Piece { start: 4096, len: 512, offset: 1024 }];
        let members = [file("ova.xml", 10), file("Ref:4/00000000", BLOCK), block];
        let found = disks(&members, &descriptor("2097152"), &Limits::default()).unwrap();
        let starts: Vec<_> = found[0].pieces.iter().map(|piece| piece.start).collect();
        assert_eq!((starts, found[0].unchecked_count()), (vec![0, BLOCK, BLOCK + 4096], 2));
    }

    #[test]
    fn the_number_of_a_block_has_8_to_16_digits() {
        assert_eq!(block(b"Ref:4/00000012"), Some((&b"Ref:4"[..], 12)));
        assert_eq!(block(b"Ref:4/0000000000000012"), Some((&b"Ref:4"[..], 12)));
        for name in ["Ref:4/0000012", "Ref:4/00000000000000012", "Ref:4/0000001x", "other/00000012", "00000012"] {
            assert_eq!(block(name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn empty_blocks_keep_a_connection_alive() {
        let members = [
            file("ova.xml", 10),
            file("Ref:4/00000001", 0),
            file("Ref:4/00000001.xxhash", 16),
            file("Ref:4/00000001", BLOCK),
            file("Ref:4/00000001.xxhash", 16),
            file("Ref:4/00000002", BLOCK),
            file("Ref:4/00000001.xxhash", 16),
        ];
        let found = disks(&members, &descriptor("3145728"), &Limits::default()).unwrap();
        assert_eq!((found[0].pieces.len(), found[0].stored(), found[0].unchecked_count()), (2, 2 * BLOCK, 1));
    }

    #[test]
    fn hostile_blocks_are_refused() {
        let refused = |members: &[Member], size: &str| {
            disks(members, &descriptor(size), &Limits::default()).err().unwrap().to_string()
        };
        let one = |name: &str, size| [file(name, size)];
        assert!(refused(&one("Ref:4/00000003", BLOCK), "3145728").contains("out of bounds"));
        assert!(refused(&one("Ref:4/9999999999999999", 1), "3145728").contains("out of bounds"));
        assert!(refused(&one("Ref:4/00000000", BLOCK + 1), "3145728").contains("above the limit"));
        let twice = [file("Ref:4/00000001", BLOCK), file("Ref:4/000000001", BLOCK)];
        assert!(refused(&twice, "3145728").contains("overlaps"));
        // A block that is cut off, and an archive without the last one.
        for block in [file("Ref:4/00000001", 5), file("Ref:4/00000001", BLOCK), file("Ref:4/00000002", BLOCK - 1)] {
            let problem = refused(&[block], "3145728");
            assert!(problem.contains("truncated"), "{problem}");
        }
        let short = [file("Ref:4/00000000", 5), file("Ref:4/00000001", BLOCK), file("Ref:4/00000002", BLOCK)];
        assert!(refused(&short, "3145728").contains("truncated"));
        let long = [file("Ref:4/00000002", BLOCK), file("Ref:4/00000002.checksum", 65)];
        assert!(refused(&long, "3145728").contains("above the limit"));
        assert!(refused(&one("Ref:5/00000000", 1), "3145728").contains("does not describe"));
        assert!(refused(&one("Ref:4/00000000", 1), "x").contains("does not describe"));
        for text in ["<", "<!DOCTYPE a><a/>"] {
            assert!(disks(&[], text.as_bytes(), &Limits::default()).is_err());
        }
    }
}
