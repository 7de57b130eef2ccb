//! Synthetic chains.

use std::io::{Read, Seek, SeekFrom};

use super::*;
use crate::driver::{Extent, Location};
use crate::io::{MemFile, WriteAt};
use crate::testing::{Calls, SparseFile};

/// A layer with these extents, and holes between them.
struct Fake(ImageInfo, Vec<Extent>);

impl SparseRead for Fake {
    fn info(&self) -> &ImageInfo {
        &self.0
    }

    fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
        let offset = range.start;
        assert!(offset < self.0.virtual_size);
        let next = self.1.iter().find(|extent| offset < extent.end());
        let end = next.map_or(self.0.virtual_size, |extent| extent.offset);
        let hole = Extent { offset, len: end.saturating_sub(offset), kind: ExtentKind::Hole };
        Ok(next.filter(|_| end <= offset).map_or(hole, |extent| extent.clip(offset, extent.end())))
    }

    fn host_alignment(&self) -> Option<u64> {
        None
    }
}

const TOP: Location = Location { file: FileId(0), offset: 0 };

fn layer(virtual_size: u64, extents: Vec<Extent>, file: Vec<u8>) -> Layer {
    let info = ImageInfo { virtual_size, ..ImageInfo::default() };
    let files = vec![SourceFile::from_file(Arc::new(MemFile::from(file)), None).unwrap()];
    Layer { reader: Box::new(Fake(info, extents)), format: Format::RAW, files }
}

/// A layer with the data 1, 2, 3 and so on.
fn counting(len: u64) -> Layer {
    let data = Extent { offset: 0, len, kind: ExtentKind::Data(TOP) };
    layer(len, vec![data], (1..=len as u8).collect())
}

/// A disk of 100 bytes whose top has data at 10..12 and zeros at 12..14.
fn over(parent: Layer) -> Image {
    let data = Extent { offset: 10, len: 2, kind: ExtentKind::Data(TOP.advance(1)) };
    let zeros = Extent { offset: 12, len: 2, kind: ExtentKind::Zero { allocated: None } };
    Image::new(vec![layer(100, vec![data, zeros], vec![0, 201, 202]), parent])
}

#[test]
fn holes_read_as_the_parent_up_to_its_end() {
    for parent_len in [99, 100, 101, 13, 10, 1] {
        let image = over(counting(parent_len));
        let mut expected = [0; 100];
        for at in 0..parent_len.min(100) {
            expected[at as usize] = at as u8 + 1;
        }
        expected[10..14].copy_from_slice(&[201, 202, 0, 0]);
        let mut bytes = [7; 100];
        image.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, expected, "{parent_len}");
        for at in 0..100 {
            let mut byte = [7];
            image.read_exact_at(&mut byte, at).unwrap();
            assert_eq!(byte[0], expected[at as usize], "{at} over {parent_len}");
        }
    }
}

#[test]
fn spans_are_looked_up_through_the_layers() {
    let image = over(counting(99));
    let spans: Vec<_> = image.spans(5..u64::MAX).map(|span| span.unwrap()).collect();
    let span = |range: Range<u64>, kind, layer| Span {
        offset: range.start,
        len: range.end - range.start,
        kind,
        layer,
        host_hole: false,
    };
    let data = |offset| ExtentKind::Data(TOP.advance(offset));
    let expected = [
        span(5..10, data(5), 1),
        span(10..12, data(1), 0),
        span(12..14, ExtentKind::Zero { allocated: None }, 0),
        span(14..99, data(14), 1),
        span(99..100, ExtentKind::Hole, 0),
    ];
    assert_eq!(spans, expected);
    assert_eq!(image.spans(11..13).map(|span| span.unwrap().len).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(image.spans(100..200).count(), 0);
    assert_eq!(image.spans(0..0).count(), 0);
}

#[test]
fn holes_of_the_files_are_zeros() {
    let file = SparseFile::default();
    file.set_len(4096).unwrap();
    file.write_all_at(&[7; 512], 1024).unwrap();
    let file = Arc::new(file);
    let span = |offset, len, kind, host_hole| Span { offset, len, kind, layer: 0, host_hole };
    let at = |offset| TOP.advance(offset);
    let zero = |offset| ExtentKind::Zero { allocated: Some(at(offset)) };
    let (raw, other) = (
        [span(0, 1024, zero(0), false), span(1536, 2560, zero(1536), false)],
        [span(0, 1024, ExtentKind::Data(at(0)), true), span(1536, 2560, ExtentKind::Data(at(1536)), true)],
    );
    for (format, holes) in [(Format::RAW, raw), (Format::VHD, other)] {
        let mut layer = layer(4096, vec![Extent::new(0..4096, ExtentKind::Data(TOP))], Vec::new());
        layer.format = format;
        layer.files = vec![SourceFile::from_file(file.clone(), None).unwrap()];
        let image = Image::new(vec![layer]);
        let spans: Vec<_> = image.spans(0..u64::MAX).map(|span| span.unwrap()).collect();
        let data = span(1024, 512, ExtentKind::Data(at(1024)), false);
        assert_eq!(spans, [holes[0], data, holes[1]]);
        assert!(holes.iter().all(Span::is_zero) && !data.is_zero());
        file.take_calls();
        let mut bytes = [9; 4096];
        image.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[1024..1536] == [7; 512] && bytes[..1024] == [0; 1024] && bytes[1536..] == [0; 2560]);
        assert_eq!(file.take_calls(), Calls { reads: 1, queries: 0 }, "a single read does not look for holes");
    }
}

#[test]
fn a_longer_parent_is_clipped_by_a_shorter_middle_layer() {
    let image = Image::new(vec![layer(100, vec![], vec![]), layer(50, vec![], vec![]), counting(80)]);
    let mut bytes = [7; 100];
    image.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..50].iter().copied().eq(1..=50) && bytes[50..].iter().all(|&byte| byte == 0), "{bytes:?}");
}

#[test]
fn nothing_is_read_past_the_end() {
    let image = over(counting(100));
    for (len, offset) in [(1, 100), (101, 0), (2, 99), (1, u64::MAX), (0, 101)] {
        let error = image.read_exact_at(&mut vec![0; len], offset).unwrap_err();
        assert_eq!(error.kind().as_str(), "usage", "{len} at {offset}");
    }
    image.read_exact_at(&mut [], 100).unwrap();
    image.read_exact_at(&mut [0], 99).unwrap();
}

#[test]
fn an_image_as_a_file_ends_with_the_disk() {
    let image = over(counting(20));
    let file: &dyn ReadAt = &image;
    for (offset, len) in [(95, 5), (99, 1), (100, 0), (101, 0), (u64::MAX, 0)] {
        assert_eq!(file.read_at(&mut [7; 8], offset).unwrap(), len, "{offset}");
    }
    assert_eq!(file.read_exact_at(&mut [7; 8], 101).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    for (offset, data) in [(0, Some(0..10)), (11, Some(11..12)), (12, Some(14..20)), (20, None), (u64::MAX, None)] {
        assert_eq!(file.next_data(offset).unwrap(), data, "{offset}");
    }
}

#[test]
fn an_invalid_extent_of_a_driver_is_refused() {
    /// A driver that returns this extent for any offset.
    struct Fixed(ImageInfo, Extent);

    impl SparseRead for Fixed {
        fn info(&self) -> &ImageInfo {
            &self.0
        }

        fn extent_at(&self, _range: Range<u64>) -> Result<Extent> {
            Ok(self.1)
        }

        fn host_alignment(&self) -> Option<u64> {
            None
        }
    }

    let codec = crate::codec::Codec::Deflate;
    let unit = Compressed { at: TOP, stored_len: 1, codec, unit: 10, unit_len: 10, min_len: 10 };
    let hole = ExtentKind::Hole;
    for (offset, len, kind) in [
        (10, 0, hole),
        (0, 10, hole),
        (11, 5, hole),
        (10, u64::MAX, hole),
        (9, 5, ExtentKind::Compressed(unit)),
        (10, 11, ExtentKind::Compressed(unit)),
    ] {
        let reader = Fixed(ImageInfo::new("toy", 100), Extent { offset, len, kind });
        let image = Image::new(vec![Layer { reader: Box::new(reader), ..counting(100) }]);
        let error = image.read_exact_at(&mut [0; 10], 10).unwrap_err();
        assert_eq!(error.kind().as_str(), "usage", "{offset} {len}");
        assert_eq!(image.spans(10..100).count(), 1, "{offset} {len}");
    }
}

#[test]
fn a_stream_ends_with_the_disk() {
    let image = over(counting(100));
    let mut reader = image.reader();
    let mut bytes = [0; 8];
    assert_eq!(reader.seek(SeekFrom::End(-3)).unwrap(), 97);
    assert_eq!((reader.read(&mut bytes).unwrap(), &bytes[..4]), (3, &[98, 99, 100, 0][..]));
    assert_eq!(reader.read(&mut bytes).unwrap(), 0);
    for past in [SeekFrom::Start(100), SeekFrom::Start(u64::MAX), SeekFrom::End(7)] {
        reader.seek(past).unwrap();
        assert_eq!(reader.read(&mut bytes).unwrap(), 0, "{past:?}");
    }
    reader.seek(SeekFrom::Start(10)).unwrap();
    assert_eq!(reader.seek(SeekFrom::Current(-1)).unwrap(), 9);
    for wrong in [SeekFrom::Current(-10), SeekFrom::End(-101)] {
        assert_eq!(reader.seek(wrong).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
    // A failed seek keeps the position.
    assert_eq!((reader.read(&mut bytes[..2]).unwrap(), &bytes[..2]), (2, &[10, 201][..]));
}

#[test]
fn missing_bytes_are_an_error_with_their_range() {
    let data = Extent { offset: 0, len: 100, kind: ExtentKind::Data(TOP) };
    let image = Image::new(vec![layer(100, vec![data], vec![1; 60])]);
    image.read_exact_at(&mut [0; 60], 0).unwrap();
    let error = image.read_exact_at(&mut [0; 20], 50).unwrap_err();
    assert!(matches!(&error, Error::Guest { range, .. } if *range == (50..70)), "{error}");
    assert_eq!(error.kind().as_str(), "io");
}

#[test]
fn a_compressed_unit_is_short_only_beyond_the_end_of_the_disk() {
    // A stored block of DEFLATE (RFC 1951, section 3.2.4).
    let stored = [&[1, 50, 0, !50, !0][..], &[7; 50]].concat();
    let read = |min_len| {
        let stored_len = stored.len() as u32;
        let unit = Compressed { at: TOP, stored_len, codec: Codec::Deflate, unit: 0, unit_len: 100, min_len };
        let extent = Extent { offset: 0, len: 100, kind: ExtentKind::Compressed(unit) };
        let mut bytes = [0xee; 100];
        Image::new(vec![layer(100, vec![extent], stored.clone())]).read_exact_at(&mut bytes, 0).map(|()| bytes)
    };
    assert_eq!(read(50).unwrap()[..], [[7; 50], [0; 50]].concat());
    for min_len in [51, 100] {
        assert!(read(min_len).is_err(), "{min_len}");
    }
}

/// A reader whose log extends its file to 20 bytes.
struct Longer(Fake);

impl SparseRead for Longer {
    fn info(&self) -> &ImageInfo {
        self.0.info()
    }

    fn extent_at(&self, range: Range<u64>) -> Result<Extent> {
        self.0.extent_at(range)
    }

    fn image_file(&self) -> Option<Arc<dyn ReadAt>> {
        Some(Arc::new(MemFile::from(vec![0; 20])))
    }

    fn host_alignment(&self) -> Option<u64> {
        None
    }
}

#[test]
fn growth_to_the_length_with_log_entries_is_a_change() {
    use crate::io::WriteAt;

    let stored = Arc::new(MemFile::from(vec![0; 10]));
    let reader = Longer(Fake(ImageInfo::default(), Vec::new()));
    let file = SourceFile::from_file(stored.clone(), None).unwrap().seen_by(&reader).unwrap();
    assert_eq!(file.source.size().unwrap(), 20);
    file.check_unchanged().unwrap();
    stored.set_len(20).unwrap();
    assert!(matches!(file.check_unchanged(), Err(Error::Changed { before: 10, after: 20 })));
}

#[test]
fn handles_are_shared_between_threads() {
    fn is_shared<T: Send + Sync + 'static>() {}

    is_shared::<Image>();
    is_shared::<Reader<Arc<Image>>>();
    is_shared::<crate::convert::Converter>();
    is_shared::<crate::convert::Report>();
    is_shared::<OpenOptions>();
    is_shared::<Inspection>();
    is_shared::<crate::format::Formats>();
    is_shared::<crate::driver::CheckReport>();
    is_shared::<Error>();
}

/// A file that counts how often its length is queried.
struct Counting {
    file: MemFile,
    queries: std::sync::atomic::AtomicUsize,
}

impl ReadAt for Counting {
    fn size(&self) -> io::Result<u64> {
        self.queries.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
}

#[test]
fn the_length_of_a_file_is_queried_once_to_open_and_once_to_verify() {
    use crate::convert::Converter;

    let guest = Arc::new(MemFile::from(vec![7; 300 << 10]));
    let guest = OpenOptions::new().format(Format::RAW).open_source(guest).unwrap();
    for format in Format::all().filter(Format::can_create) {
        for compress in [false, true] {
            let file = Arc::new(MemFile::new());
            let converter = Converter::new(format).compress(compress);
            if converter.convert_to(&guest, file.clone()).is_err() {
                continue;
            }
            let file = Arc::new(Counting { file: MemFile::from(file.to_vec()), queries: Default::default() });
            let queries = || file.queries.load(std::sync::atomic::Ordering::Relaxed);
            let image = OpenOptions::new().open_source(file.clone()).unwrap();
            let mut bytes = vec![0; 300 << 10];
            image.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!((queries(), bytes.iter().all(|&byte| byte == 7)), (1, true), "{format}");
            Converter::new(Format::RAW).convert_to(&image, Arc::new(MemFile::new())).unwrap();
            assert_eq!(queries(), 2, "{format}");
        }
    }
}
