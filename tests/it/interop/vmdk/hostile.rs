//! Images with a single invalid field, which is named in the error before memory is allocated by its value.

use std::sync::Arc;

use crate::support::pattern::Pattern;
use crate::support::{content, convert, format, options, raw_image, vmdk};
use diskimage::io::MemFile;
use diskimage::{Converter, OpenOptions, Result};

/// Creates a disk of 200 KiB.
fn image(list: &str) -> Vec<u8> {
    let converter = Converter::new(format("vmdk")).options(options(list));
    convert(&converter, &raw_image(&Pattern::Dense.make(200 << 10))).0
}

fn read(bytes: Vec<u8>) -> Result<Vec<u8>> {
    OpenOptions::new()
        .format(format("vmdk"))
        .open_source(Arc::new(MemFile::from(bytes)))
        .and_then(|image| content(&image))
}

#[test]
fn invalid_metadata_fields() {
    let whole = image("subformat=monolithicSparse,cid=1");
    let u64_at = |at: usize| u64::from_le_bytes(whole[at..at + 8].try_into().unwrap());
    let (redundant, directory) = (u64_at(48) as usize * 512, u64_at(56) as usize * 512);
    let table =
        |directory: usize| u32::from_le_bytes(whole[directory..directory + 4].try_into().unwrap()) as usize * 512;
    let max = &[0xff; 8][..];
    let far = &0x7fff_ffff_u32.to_le_bytes()[..];
    for (what, changes, kind) in [
        ("magic", &[(0, &b"KDMW"[..])][..], "invalid-field"),
        ("version 0", &[(4, &[0][..])], "unsupported"),
        ("version 4", &[(4, &[4])], "unsupported"),
        ("an unknown flag", &[(8, &0x0004_0003_u32.to_le_bytes())], "unsupported"),
        ("markers without compression", &[(8, &0x0002_0003_u32.to_le_bytes())], "unsupported"),
        ("the largest capacity", &[(12, max)], "invalid-field"),
        ("a large capacity", &[(12, &(1_u64 << 53).to_le_bytes())], "out-of-bounds"),
        ("a capacity below the size of the extent", &[(12, &[1, 0])], "invalid-field"),
        ("grain 0", &[(20, &[0; 8])], "invalid-field"),
        ("grain 3", &[(20, &[3])], "invalid-field"),
        ("the largest grain", &[(20, max)], "invalid-field"),
        ("a descriptor out of bounds", &[(28, &(1_u64 << 40).to_le_bytes())], "out-of-bounds"),
        ("the largest descriptor", &[(36, max)], "invalid-field"),
        ("no entries in a table", &[(44, &[0; 4])], "invalid-field"),
        ("the largest number of entries in a table", &[(44, &max[..4])], "invalid-field"),
        (
            "directories out of bounds",
            &[(48, &(1_u64 << 40).to_le_bytes()), (56, &(1_u64 << 41).to_le_bytes())],
            "out-of-bounds",
        ),
        ("changed newlines", &[(73, b"\r\n \n")], "invalid-field"),
        ("an unknown compression algorithm", &[(8, &0x0001_0003_u32.to_le_bytes()), (77, &[2])], "unsupported"),
        ("tables of both directories out of bounds", &[(redundant, far), (directory, far)], "out-of-bounds"),
        ("a grain out of bounds", &[(table(directory), far)], "out-of-bounds"),
        (
            "a grain that ends out of bounds",
            &[(table(directory), &((whole.len() / 512) as u32 - 1).to_le_bytes())],
            "out-of-bounds",
        ),
    ] {
        let mut bytes = whole.clone();
        for (at, change) in changes {
            bytes[*at..at + change.len()].copy_from_slice(change);
        }
        let error = read(bytes).err().unwrap_or_else(|| panic!("{what} was read"));
        assert_eq!(error.kind().as_str(), kind, "{what}: {error}");
    }
}

/// Grains that overlap metadata or another grain.
#[test]
fn overlapping_grains() {
    let whole = image("subformat=monolithicSparse,cid=1");
    let directory = u64::from_le_bytes(whole[56..64].try_into().unwrap()) as usize * 512;
    let table = u32::from_le_bytes(whole[directory..directory + 4].try_into().unwrap()) as usize * 512;
    let first = whole[table..table + 4].to_vec();
    for (what, at, sector) in [
        ("the descriptor", table, 1_u32.to_le_bytes().to_vec()),
        ("the directory", table, ((directory / 512) as u32).to_le_bytes().to_vec()),
        ("the first grain", table + 4, first),
    ] {
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&sector);
        let opened = OpenOptions::new().format(format("vmdk")).open_source(Arc::new(MemFile::from(bytes))).unwrap();
        let error = vmdk("").convert_to(&opened, Arc::new(MemFile::new())).expect_err(what);
        assert_eq!(error.kind().as_str(), "overlap", "{what}: {error}");
    }
}
