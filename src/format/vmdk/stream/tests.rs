//! Generated streams, complete, truncated and corrupt.

use std::io::Cursor;

use byteorder::{ByteOrder, LittleEndian};
use proptest::prelude::*;

use super::*;
use crate::codec::Codec;
use crate::convert::Converter;
use crate::format::Format;
use crate::format::vmdk::grains::Framing;
use crate::format::vmdk::marker;
use crate::format::vmdk::reader::tests::build::{Content as Grain, Order, Sparse, with_files};
use crate::image::Image;
use crate::image::OpenOptions;
use crate::io::MemFile;

/// A reader that returns few bytes at a time, with interruptions.
struct Dribble(Cursor<Vec<u8>>, usize);

impl Read for Dribble {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.1 += 1;
        if self.1.is_multiple_of(5) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let len = buf.len().min(1 + self.1 * 37 % 999);
        self.0.read(&mut buf[..len])
    }
}

fn image(bytes: &[u8]) -> Result<Image> {
    let options = OpenOptions::new().format(Format::by_name(FORMAT_NAME).unwrap());
    options.open_stream(Dribble(Cursor::new(bytes.to_vec()), 0))
}

/// Returns the guest data, converted to raw.
fn read(bytes: &[u8]) -> Result<Vec<u8>> {
    let out = Arc::new(MemFile::new());
    Converter::new(Format::RAW).threads(2).convert_to(&image(bytes)?, out.clone())?;
    Ok(out.to_vec())
}

fn kind(bytes: &[u8]) -> Option<&'static str> {
    read(bytes).err().map(|error| error.kind().as_str())
}

/// A stream in the layout of qemu: tables before the grains, no end-of-stream marker.
fn tables_first(grains: u64) -> Sparse {
    Sparse { footer: None, ..Sparse::stream(grains) }
}

/// Stream offsets of the grain markers, in ascending order.
fn grain_markers(sparse: &Sparse) -> Vec<usize> {
    let mut offsets: Vec<_> = sparse.build().places.iter().map(|place| place.0 as usize * 512).collect();
    offsets.retain(|offset| *offset > 512);
    offsets.sort_unstable();
    offsets
}

fn streams() -> impl Strategy<Value = Sparse> {
    let order = prop_oneof![Just(Order::Ascending), Just(Order::Descending), Just(Order::Interleaved)];
    let grains = prop::collection::vec(prop_oneof![Just(None), any::<u8>().prop_map(Some)], 1..60);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let sizes = (prop::sample::select(vec![1u64, 8, 128]), prop::sample::select(vec![1u32, 3, 512]), 0u64..128);
    (grains, order, flags, sizes).prop_map(|(grains, order, (footer, short, zlib), (grain, entries, tail))| Sparse {
        capacity: (grains.len() as u64 - 1) * grain + 1 + tail % grain,
        grain,
        entries,
        grains: grains.into_iter().map(|data| data.map_or(Grain::None, Grain::Data)).collect(),
        framing: Some((Framing::Marked, if zlib { Codec::Zlib } else { Codec::Deflate })),
        short,
        order,
        footer: footer.then_some(1000),
        ..Sparse::stream(1)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn streams_are_read(sparse in streams()) {
        prop_assert!(read(&sparse.build().file).unwrap() == sparse.guest());
    }

    #[test]
    fn truncated_streams_are_refused(sparse in streams(), cut in any::<prop::sample::Index>()) {
        let sparse = Sparse { footer: sparse.footer.map(|_| 0), ..sparse };
        let whole = sparse.build().file;
        let cut = cut.index(whole.len());
        let kind = kind(&whole[..cut]);
        prop_assert!(matches!(kind, Some("out-of-bounds" | "invalid-field" | "decode")), "{cut} of {}: {kind:?}", whole.len());
    }
}

#[test]
fn every_truncation_is_refused() {
    for sparse in [Sparse::stream(9), tables_first(9)] {
        let whole = sparse.build().file;
        assert!(read(&whole).unwrap() == sparse.guest());
        assert_eq!(kind(&[]), Some("usage"), "no image at all");
        for len in (512..whole.len()).step_by(512).chain(1..512).chain([whole.len() - 1]) {
            assert!(matches!(kind(&whole[..len]), Some("out-of-bounds" | "invalid-field")), "{len}");
        }
    }
}

#[test]
fn a_missing_footer_is_refused() {
    let whole = Sparse::stream(4).build().file;
    let footer_marker = whole.len() - 3 * 512;
    let without = [&whole[..footer_marker], &[0; 512]].concat();
    let error = read(&without).unwrap_err();
    assert!(error.to_string().contains("without a footer"), "{error}");
    // Padding after the end is read, so that the writing process does not fail.
    assert_eq!(kind(&[&whole[..], &[0xee; 5000]].concat()), None);
    // VMware's progress report and other unknown structures are skipped.
    let other = [marker::metadata_marker(4, 2).as_slice(), &[0xee; 1024]].concat();
    let first = grain_markers(&Sparse::stream(4))[0];
    assert_eq!(kind(&[&whole[..first], &other, &whole[first..]].concat()), None);
}

#[test]
fn grains_are_counted_by_tables_before_them() {
    let sparse = tables_first(9);
    let whole = sparse.build().file;
    let last = *grain_markers(&sparse).last().unwrap();
    // The same with an end-of-stream marker.
    let ended = |bytes: &[u8]| [bytes, &[0; 512]].concat();
    assert_eq!(kind(&ended(&whole)), None);
    for bytes in [whole[..last].to_vec(), ended(&whole[..last])] {
        let error = read(&bytes).unwrap_err();
        assert!(error.to_string().contains("the stream contains fewer grains"), "{error}");
    }
    // Anything may follow, also within a sector.
    for trailing in [&[0xee; 5000][..], b"x", &[0; 512], &[&[0; 512][..], &[0xee; 700]].concat()] {
        assert!(read(&[&whole[..], trailing].concat()).unwrap() == sparse.guest());
    }
    let error = read(&[&whole[..last], &[0xee; 5000]].concat()).unwrap_err();
    assert_eq!(error.kind().as_str(), "invalid-field");
    // A gap of zeros is not the end while grains are missing.
    assert!(read(&[&whole[..last], &[0; 1536], &whole[last..]].concat()).unwrap() == sparse.guest());
    // With a table elsewhere, only an end-of-stream marker shows that the stream is complete.
    let mut elsewhere = whole.clone();
    let directory = sparse.build().directories[0];
    LittleEndian::write_u32(&mut elsewhere[directory..], 1 << 16);
    assert_eq!(kind(&elsewhere), Some("out-of-bounds"));
    assert_eq!(kind(&ended(&elsewhere)), None);
}

#[test]
fn invalid_grain_markers_are_refused() {
    let sparse = Sparse { capacity: 60, ..Sparse::stream(8) };
    let built = sparse.build();
    let at = built.places[3].0 as usize * 512;
    let with = |lba: u64| {
        let mut bytes = built.file.clone();
        LittleEndian::write_u64(&mut bytes[at..], lba);
        read(&bytes)
            .map(drop)
            .map_err(|error| (error.kind().as_str(), error.to_string().contains(&format!("offset {at:#x}"))))
    };
    assert_eq!(with(24), Ok(()));
    assert_eq!(with(25), Err(("invalid-field", true)), "within a grain");
    assert_eq!(with(64), Err(("invalid-field", true)), "beyond the end of the disk");
    assert_eq!(with(1 << 60), Err(("invalid-field", true)));
    assert_eq!(with(16), Err(("overlap", true)), "the preceding grain");
    assert_eq!(with(32), Err(("overlap", false)), "the following grain");
    let sized = |size: u32| {
        let mut bytes = built.file.clone();
        LittleEndian::write_u32(&mut bytes[at + 8..], size);
        kind(&bytes)
    };
    assert_eq!(sized(1 << 20), Some("invalid-field"));
    assert!(sized(2).is_some());
}

/// An incompressible grain of 64 KiB.
fn noise(seed: u64) -> Vec<u8> {
    crate::testing::noise(64 << 10, seed)
}

/// A stream of `grains` incompressible grains of 64 KiB in the order `order`.
fn large(order: impl IntoIterator<Item = u64>, grains: u64) -> Vec<u8> {
    let capacity = grains * 128;
    let header = Sparse { grain: 128, entries: 512, capacity, grains: vec![], ..Sparse::stream(0) }.header();
    let mut bytes = crate::format::vmdk::header::Header { overhead: 1, ..header }.encode().to_vec();
    for grain in order {
        let block = noise(grain);
        // Stored blocks (RFC 1951), which are fast to generate.
        let mut payload = Vec::new();
        for (last, half) in block.chunks(32 << 10).enumerate() {
            let len = half.len() as u16;
            payload.extend([&[last as u8][..], &len.to_le_bytes(), &(!len).to_le_bytes(), half].concat());
        }
        bytes.extend(marker::grain_header(grain * 128, payload.len() as u32));
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend(marker::metadata_marker(marker::FOOTER, 1));
    bytes.extend([0; 1024]);
    bytes
}

#[test]
fn grains_may_be_somewhat_out_of_order() {
    let expected: Vec<_> = (0..160).flat_map(noise).collect();
    // 100 grains are below the read-ahead limit, 150 above.
    let swapped = |by: u64| (1..=by).chain([0]).chain(by + 1..160);
    assert!(read(&large(swapped(100), 160)).unwrap() == expected);
    let error = read(&large(swapped(150), 160)).unwrap_err();
    assert_eq!(error.kind().as_str(), "unsupported", "{error}");
    assert!(error.to_string().contains("read it from a file"), "{error}");
    // So is a grain that was already returned.
    let again = (0..160).chain([0]);
    assert_eq!(kind(&large(again, 160)), Some("unsupported"));
    assert_eq!(kind(&large((0..160).chain([159]), 160)), Some("overlap"));
}

#[test]
fn streams_are_read_once_and_in_order() {
    let whole = large(0..160, 160);
    let image = image(&whole).unwrap();
    let mut first = [0; 512];
    image.read_exact_at(&mut first, 0).unwrap();
    // The last grain again, and any distance ahead.
    image.read_exact_at(&mut first, 512).unwrap();
    assert!(first[..] == noise(0)[512..1024]);
    image.read_exact_at(&mut first, 159 << 16).unwrap();
    assert!(first[..] == noise(159)[..512]);
    assert_eq!(image.read_exact_at(&mut first, 0).unwrap_err().kind().as_str(), "usage");
}

#[test]
fn many_small_grains_are_handled_in_bounded_time_and_memory() {
    // Each grain has a payload of 20 bytes, in one sector of the stream.
    let grains = 100_000u64;
    let header = Sparse { capacity: grains, grain: 1, entries: 512, grains: vec![], ..Sparse::stream(0) }.header();
    let mut bytes = crate::format::vmdk::header::Header { overhead: 1, ..header }.encode().to_vec();
    let mut encoder = crate::codec::Encoder::new(&crate::codec::Encoding::new(Codec::Zlib)).unwrap();
    let payload = encoder.encode(&[7; 512], usize::MAX).unwrap().to_vec();
    bytes.reserve(grains as usize * 512);
    for grain in 0..grains {
        bytes.extend(marker::grain_header(grain, payload.len() as u32));
        bytes.extend(&payload);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend(marker::metadata_marker(marker::FOOTER, 1));
    bytes.extend([0; 1024]);
    with_files(&[], |cx| {
        let (reader, payloads) = open(Box::new(Cursor::new(bytes)), cx).unwrap();
        let started = std::time::Instant::now();
        let mut buf = vec![0; payload.len()];
        for grain in 0..grains {
            let extent = reader.extent_at(grain * 512..u64::MAX).unwrap();
            let ExtentKind::Compressed(unit) = extent.kind else { panic!("{extent:?}") };
            payloads.read_exact_at(&mut buf, unit.at.offset).unwrap();
            assert!(buf == payload);
        }
        // Takes about a second. Quadratic eviction takes minutes.
        assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
        // The first payload was evicted.
        assert!(payloads.read_exact_at(&mut buf, 512 + 12).is_err());
    });
}

#[test]
fn large_grains_stay_cached_for_slow_threads() {
    // Grains of 2 MiB: the byte limit of the cache alone would keep four.
    let header =
        Sparse { capacity: 12 << 12, grain: 1 << 12, entries: 512, grains: vec![], ..Sparse::stream(0) }.header();
    let mut bytes = crate::format::vmdk::header::Header { overhead: 1, ..header }.encode().to_vec();
    for grain in 0..12 {
        bytes.extend(marker::grain_header(grain << 12, 2 << 20));
        bytes.resize((bytes.len() + (2 << 20)).next_multiple_of(512), grain as u8);
    }
    bytes.extend(marker::metadata_marker(marker::FOOTER, 1));
    bytes.extend([0; 1024]);
    with_files(&[], |cx| {
        let (reader, payloads) = open(Box::new(Cursor::new(bytes)), cx).unwrap();
        let offsets = (0..12).map(|grain| match reader.extent_at(grain << 21..u64::MAX).unwrap().kind {
            ExtentKind::Compressed(unit) => unit.at.offset,
            other => panic!("{other:?}"),
        });
        let mut buf = vec![0; 2 << 20];
        let offsets: Vec<_> = offsets.inspect(|offset| payloads.read_exact_at(&mut buf, *offset).unwrap()).collect();
        // Ten grains later.
        payloads.read_exact_at(&mut buf, offsets[1]).unwrap();
        assert!(buf.iter().all(|&byte| byte == 1));
    });
}

#[test]
fn other_subformats_are_copied_first() {
    let plain = Sparse::plain(4).build().file;
    let bare = Sparse { framing: Some((Framing::Bare, Codec::Zlib)), ..Sparse::plain(4) }.build().file;
    for bytes in [plain, bare] {
        assert!(!is_stream(&Probe::new(&bytes, &[], u64::MAX)));
        let whole = OpenOptions::new().open_source(Arc::new(bytes.clone())).unwrap();
        let mut guest = vec![1; whole.virtual_size() as usize];
        whole.read_exact_at(&mut guest, 0).unwrap();
        assert!(read(&bytes).unwrap() == guest);
        // The guard of the driver itself.
        let (limits, budget) = (crate::limits::Limits::default(), crate::limits::Budget::new(1 << 20));
        let error = open(Box::new(Cursor::new(bytes)), &OpenContext::new(&limits, &budget)).err().unwrap();
        assert!(error.kind().as_str() == "unsupported" && error.to_string().contains("from a pipe"), "{error}");
    }
    assert!(image(b"# Disk DescriptorFile\nversion=1\n").is_err());
    assert_eq!(image(b"KDMV").err().unwrap().kind().as_str(), "out-of-bounds");
    // An overhead beyond the end of the stream.
    let mut bytes = Sparse::stream(4).build().file;
    LittleEndian::write_u64(&mut bytes[64..], u64::MAX);
    assert!(matches!(image(&bytes).err().unwrap().kind().as_str(), "limit" | "out-of-bounds"));
    LittleEndian::write_u64(&mut bytes[64..], 100_000);
    assert_eq!(image(&bytes).err().unwrap().kind().as_str(), "out-of-bounds");
}

#[test]
fn empty_disks_are_read() {
    assert!(read(&Sparse::stream(0).build().file).unwrap().is_empty());
}
