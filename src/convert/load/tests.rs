//! Items of work ranges.

use super::*;
use crate::codec::{Codec, Decoder, Encoding};
use crate::convert::plan::Planner;
use crate::convert::tests::{KIB, converted, islands, job, noise, open, qcow2, raw, text};

const BLOCK: u64 = 4 * KIB;

/// Loads the whole disk, and passes each work range to `look`.
fn load_all(job: &Job<'_>, mut look: impl FnMut(&Work, &Loader<'_>)) {
    let settings = qcow2("");
    let mut planner = Planner::new(job, &settings).unwrap();
    let mut loader = Loader::new(job).unwrap();
    while let Some(work) = planner.next().unwrap() {
        loader.load(&work).unwrap();
        look(&work, &loader);
    }
}

fn items(job: &Job<'_>) -> Vec<Item> {
    let mut found = Vec::new();
    load_all(job, |_, loader| found.extend_from_slice(loader.items()));
    found
}

fn encoded<'a>(mut job: Job<'a>, encoding: Encoding) -> Job<'a> {
    job.spec.encoding = Some(encoding);
    job
}

fn item(blocks: Range<u64>, kind: ItemKind) -> Item {
    Item { guest: blocks.start * BLOCK..blocks.end * BLOCK, kind }
}

/// Blocks of bytes, each filled with one.
fn filled(blocks: &[u8]) -> Vec<u8> {
    blocks.iter().flat_map(|byte| vec![*byte; BLOCK as usize]).collect()
}

#[test]
fn units_that_are_not_zero_are_data() {
    let mut bytes = filled(&[1, 1, 0, 0, 1, 0]);
    // One byte is enough, at either end of its unit.
    bytes[3 * BLOCK as usize - 1] = 1;
    bytes[5 * BLOCK as usize] = 1;
    let source = raw(&bytes);
    let expected = [item(0..3, ItemKind::Data), item(4..6, ItemKind::Data)];
    assert_eq!(items(&job(&source, None, 16 * BLOCK)), expected);
    assert_eq!(items(&Job { sparse: 0, ..job(&source, None, 16 * BLOCK) }), [item(0..6, ItemKind::Data)]);
    // Where old content is in the target, blocks are stored whole.
    let device = Job { starts_zeroed: false, ..job(&source, None, 2 * BLOCK) };
    assert_eq!(items(&device), [item(0..6, ItemKind::Data)]);
}

#[test]
fn units_around_an_island_are_padded_with_zeros() {
    // In a buffer that held something else.
    let source = islands(2 << 20, &[0..1 << 20, (1 << 20) + 10..(1 << 20) + 20]);
    let mut found = Vec::new();
    load_all(&job(&source, None, 64 * KIB), |work, loader| {
        for Item { guest, .. } in loader.items() {
            found.push((guest.clone(), loader.data(work.range.start, guest).to_vec()));
        }
    });
    let island = [vec![0; 10], vec![1; 10], vec![0; 4096 - 20]].concat();
    assert_eq!(found[1], (1 << 20..(1 << 20) + 4096, island));
    assert_eq!(found.len(), 2);
}

#[test]
fn units_that_differ_from_the_backing_image_are_stored() {
    let source = raw(&filled(&[1, 2, 3, 0, 4, 0, 5, 0, 0]));
    // It ends one block before the source.
    let base = raw(&filled(&[1, 1, 1, 9, 4, 0, 0, 9]));
    let over = |block_size| job(&source, Some(&base), block_size);
    let expected = [
        item(1..3, ItemKind::Data),
        item(3..4, ItemKind::Zero),
        item(6..7, ItemKind::Data),
        item(7..8, ItemKind::Zero),
    ];
    assert_eq!(items(&over(BLOCK)), expected);
    // A larger unit is stored whole.
    assert_eq!(items(&over(2 * BLOCK)), [item(0..4, ItemKind::Data), item(6..8, ItemKind::Data)]);
    assert_eq!(items(&Job { sparse: 0, ..over(BLOCK) }), [item(0..9, ItemKind::Data)]);
    let kinds: Vec<_> = items(&encoded(over(BLOCK), Encoding::new(Codec::Deflate)))
        .into_iter()
        .map(|Item { guest, kind }| (guest.start / BLOCK..guest.end / BLOCK, matches!(kind, ItemKind::Encoded { .. })))
        .collect();
    assert_eq!(kinds, [(1..2, true), (2..3, true), (3..4, false), (6..7, true), (7..8, false)]);
}

#[test]
fn zeros_between_data_are_stored_in_a_complete_image() {
    let source = raw(&filled(&[1, 0, 0, 1, 0, 2]));
    let complete = |block_size| Job { complete: true, ..job(&source, None, block_size) };
    let expected = [
        item(0..1, ItemKind::Data),
        item(1..3, ItemKind::Zero),
        item(3..4, ItemKind::Data),
        item(4..5, ItemKind::Zero),
        item(5..6, ItemKind::Data),
    ];
    assert_eq!(items(&complete(BLOCK)), expected);
    // Units are whole blocks, where the format has smaller ones too.
    assert_eq!(items(&Job { sparse: 512, ..complete(2 * BLOCK) }), [item(0..6, ItemKind::Data)]);
    // What the metadata tells is not cut into chunks.
    let last = (1 << 40) - BLOCK..1 << 40;
    let empty = islands(1 << 40, std::slice::from_ref(&last));
    let mut works = 0;
    load_all(&Job { complete: true, ..job(&empty, None, BLOCK) }, |work, loader| {
        let ends = (loader.items().first().map(|i| i.guest.start), loader.items().last().map(|i| i.guest.end));
        assert_eq!(ends, (Some(work.range.start), Some(work.range.end)));
        works += 1;
    });
    assert_eq!(works, 1024 + 1);
}

#[test]
fn incompressible_blocks_are_stored_uncompressed() {
    for codec in [Codec::Deflate, Codec::Zstd] {
        let source = raw(&[noise(BLOCK, 1), text(BLOCK), vec![0; BLOCK as usize], noise(BLOCK, 2)].concat());
        let job = encoded(job(&source, None, BLOCK), Encoding::new(codec));
        let found = items(&job);
        let ItemKind::Encoded { bytes: place, passthrough: false } = &found[1].kind else { panic!("{found:?}") };
        assert!(place.start == 0 && place.len() < BLOCK as usize, "{place:?}");
        let packed = ItemKind::Encoded { bytes: place.clone(), passthrough: false };
        let expected = [item(0..1, ItemKind::Data), item(1..2, packed), item(3..4, ItemKind::Data)];
        assert_eq!(found, expected);
    }
}

#[test]
fn the_last_block_is_padded_before_encoding() {
    // The first chunk leaves the buffer full of other bytes.
    let bytes = text((1 << 20) + 700);
    let source = raw(&bytes);
    let base = raw(&vec![9; bytes.len()]);
    for (codec, base) in [(Codec::Deflate, None), (Codec::Zstd, None), (Codec::Deflate, Some(&base))] {
        let job = encoded(job(&source, base, 64 * KIB), Encoding::new(codec));
        let mut last = None;
        load_all(&job, |_, loader| {
            let Item { guest, kind: ItemKind::Encoded { bytes: place, .. } } = loader.items().last().unwrap() else {
                panic!()
            };
            last = Some((guest.clone(), loader.encoded(place).to_vec()));
        });
        let (guest, payload) = last.unwrap();
        assert_eq!(guest, 1 << 20..(1 << 20) + 1024);
        let mut block = vec![1; 64 << 10];
        assert_eq!(Decoder::new().decode(codec, &payload, &mut block).unwrap(), payload.len());
        assert_eq!(block[..700], bytes[1 << 20..]);
        assert!(block[700..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn passthrough_needs_the_default_encoding_and_the_same_unit() {
    let bytes = [text(3 * BLOCK), vec![0; BLOCK as usize], text(BLOCK + 512)].concat();
    // Zeros are stored too.
    let dense = qcow2("cluster_size=4k").compress(true).sparse(0);
    let file = converted(&dense, &raw(&bytes));
    let source = open(file.clone(), "qcow2");
    let default = Encoding::new(Codec::Deflate);
    let copies = |job: Job<'_>| -> Vec<bool> {
        let copied = |item: &Item| matches!(item.kind, ItemKind::Encoded { passthrough: true, .. });
        items(&job).iter().map(copied).collect()
    };
    let to = |block_size, encoding| encoded(job(&source, None, block_size), encoding);
    assert_eq!(copies(to(BLOCK, default.clone())), [true; 5], "all but the zeros");
    assert_eq!(copies(Job { sparse: 0, ..to(BLOCK, default.clone()) }), [true; 6]);
    let level = default.level.or(Some(Encoding::default_level(Codec::Deflate)));
    assert_eq!(copies(to(BLOCK, Encoding { level, ..default.clone() })), [false; 5]);
    assert_eq!(copies(to(BLOCK, Encoding { window_bits: 12, ..default.clone() })), [false; 5]);
    assert_eq!(copies(to(BLOCK, Encoding::new(Codec::Zstd))), [false; 5]);
    assert_eq!(copies(to(2 * BLOCK, default.clone())), [false; 3]);
    assert_eq!(copies(to(BLOCK / 2, default.clone())), [false; 9]);

    // Taken over as they are, to the byte, without what follows them in their sectors.
    let mut packed = Vec::new();
    load_all(&to(BLOCK, default.clone()), |_, loader| {
        for item in loader.items() {
            let ItemKind::Encoded { bytes: place, .. } = &item.kind else { panic!() };
            packed.push(loader.encoded(place).to_vec());
        }
    });
    let mut encoder = Encoder::new(&default).unwrap();
    let blocks = [&bytes[..3 * BLOCK as usize], &bytes[4 * BLOCK as usize..], &[0; BLOCK as usize - 512]].concat();
    let expected: Vec<_> =
        blocks.chunks(BLOCK as usize).map(|block| encoder.encode(block, block.len()).unwrap().to_vec()).collect();
    assert_eq!(packed, expected);
}

/// A frame whose header holds all arguments.
const FRAME: Frame = Frame {
    header_len: 12,
    header: |bytes, guest, len| {
        let (place, size) = bytes.split_at_mut(8);
        place.copy_from_slice(&guest.to_le_bytes());
        size.copy_from_slice(&len.to_le_bytes());
    },
    alignment: 512,
};

/// The items of a job with that frame: guest range, bytes, passthrough.
fn framed(mut job: Job<'_>) -> Vec<(Range<u64>, Vec<u8>, bool)> {
    job.spec.frame = Some(FRAME);
    job.spec.always_encoded = true;
    let mut found = Vec::new();
    load_all(&job, |_, loader| {
        let mut end = 0;
        for Item { guest, kind } in loader.items() {
            let ItemKind::Encoded { bytes: place, passthrough: copied } = kind else {
                panic!("{guest:?} is not encoded")
            };
            assert_eq!(place.start, end, "one after the other");
            end = place.end;
            let bytes = loader.encoded(place);
            assert!(bytes.len().is_multiple_of(512));
            let (header, rest) = bytes.split_at(12);
            assert_eq!(header[..8], guest.start.to_le_bytes());
            let len = u32::from_le_bytes(header[8..].try_into().unwrap()) as usize;
            assert!(
                rest.len() - len < 512 && rest[len..].iter().all(|&byte| byte == 0),
                "zeros, and no sector of them"
            );
            found.push((guest.clone(), rest[..len].to_vec(), *copied));
        }
    });
    found
}

#[test]
fn frames_surround_payloads_within_the_length_limit() {
    // Noise in one chunk and the next, with zeros between.
    let mut bytes = [noise(2 * BLOCK, 1), text(BLOCK), vec![0; BLOCK as usize], noise(BLOCK, 2)].concat();
    bytes.resize(1 << 20, 0);
    bytes.extend(noise(BLOCK + 700, 3));
    let source = raw(&bytes);
    for codec in [Codec::Zlib, Codec::Deflate, Codec::Zstd] {
        let found = framed(encoded(job(&source, None, BLOCK), Encoding::new(codec)));
        let starts: Vec<_> = found.iter().map(|(guest, _, _)| guest.start / BLOCK).collect();
        assert_eq!(starts, [0, 1, 2, 4, 256, 257]);
        assert_eq!(found[5].0, (1 << 20) + BLOCK..(1 << 20) + BLOCK + 1024);
        for (guest, payload, copied) in found {
            let mut block = vec![9; BLOCK as usize];
            assert_eq!(Decoder::new().decode(codec, &payload, &mut block).unwrap(), payload.len());
            let mut expected = bytes[guest.start as usize..bytes.len().min(guest.end as usize)].to_vec();
            expected.resize(BLOCK as usize, 0);
            assert!(block == expected && !copied);
            // Incompressible data grows, and is stored compressed regardless.
            assert_eq!(payload.len() > BLOCK as usize, guest.start / BLOCK != 2 && guest.end.is_multiple_of(BLOCK));
        }
    }
}

#[test]
fn passthrough_changes_the_wrapper_of_a_payload() {
    let bytes = [text(3 * BLOCK), vec![0; BLOCK as usize], noise(BLOCK, 1), text(BLOCK + 512)].concat();
    let file = converted(&qcow2("cluster_size=4k").compress(true), &raw(&bytes));
    let source = open(file, "qcow2");
    let found = framed(encoded(job(&source, None, BLOCK), Encoding::new(Codec::Zlib)));
    let copied: Vec<_> = found.iter().map(|(guest, _, copied)| (guest.start / BLOCK, *copied)).collect();
    assert_eq!(copied, [(0, true), (1, true), (2, true), (4, false), (5, true), (6, true)]);
    let deflated = framed(encoded(job(&source, None, BLOCK), Encoding::new(Codec::Deflate)));
    for ((guest, zlib, copied), (_, deflate, _)) in found.iter().zip(&deflated) {
        let mut block = vec![9; BLOCK as usize];
        assert_eq!(Decoder::new().decode(Codec::Zlib, zlib, &mut block).unwrap(), zlib.len());
        let there = &bytes[guest.start as usize..bytes.len().min(guest.end as usize)];
        assert!(block.starts_with(there) && block[there.len()..].iter().all(|&byte| byte == 0));
        assert!(!copied || zlib[2..zlib.len() - 4] == deflate[..], "the same stream in it");
    }
    // And out of it again.
    let options = |list: &str| {
        let mut options = crate::options::Options::new();
        options.add_list(list);
        options
    };
    let bytes = [text(3 * 64 * KIB), noise(64 * KIB, 1), text(64 * KIB)].concat();
    let vmdk = crate::convert::Converter::new(crate::format::Format::by_name("vmdk").unwrap());
    let file = converted(&vmdk.options(options("subformat=streamOptimized")), &raw(&bytes));
    let source = open(file, "vmdk");
    let job = encoded(job(&source, None, 64 * KIB), Encoding::new(Codec::Deflate));
    let copied =
        |item: Item| if let ItemKind::Encoded { passthrough: copied, .. } = item.kind { Some(copied) } else { None };
    let kinds: Vec<_> = items(&job).into_iter().map(copied).collect();
    // What would be longer than the block is not taken over where blocks may stay as they are.
    assert_eq!(kinds, [Some(true), Some(true), Some(true), None, Some(true)]);
}
