//! A raw disk as a compressed file: independent members of gzip, or frames of zstd, in guest order.
//!
//! Blocks are encoded by the pipeline, on all cores, and placed one after the other. Zeros between them become parts that are made once
//! for each length. A file of zstd ends with a seek table. What is compressed can have other bytes around those of the disk, and leave out ranges of
//! the disk: it is the archive of a sparse file then.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::codec::{Codec, Encoder, Encoding};
use crate::driver::{CreateContext, Placement, SparseWrite, WriteSpec};
use crate::error::{Error, Result};
use crate::identifiers::ImageIdentifiers;
use crate::io::WriteAt;

/// Compression of a raw disk as a whole, for [`Converter::compress_output`](crate::Converter::compress_output).
///
/// ```
/// use diskimage::OutputCompression;
///
/// assert_eq!(OutputCompression::by_extension("zst"), Some(OutputCompression::Zstd));
/// assert_eq!(OutputCompression::Gzip.name(), "gzip");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OutputCompression {
    /// Members of gzip.
    Gzip,
    /// Frames of zstd with a seek table.
    Zstd,
}

impl OutputCompression {
    /// The name: "gzip" or "zstd".
    pub const fn name(self) -> &'static str {
        match self {
            OutputCompression::Gzip => "gzip",
            OutputCompression::Zstd => "zstd",
        }
    }

    /// Finds the compression for which `extension` (without the dot, in any case) is typical: "gz" or "zst".
    pub fn by_extension(extension: &str) -> Option<Self> {
        match extension.to_ascii_lowercase().as_str() {
            "gz" => Some(OutputCompression::Gzip),
            "zst" => Some(OutputCompression::Zstd),
            _ => None,
        }
    }
}

/// Bytes of data in a part.
pub(super) const BLOCK: u64 = 1 << 20;
/// Most zeros in a part: a reader at random has to decode it up to the byte it needs.
const ZEROS: u64 = 16 << 20;
/// Seek tables have a number of frames of 32 bits, limited to this (the seekable format).
const MAX_FRAMES: usize = 0x800_0000;

/// What is compressed.
pub(super) struct Content {
    /// Virtual size in bytes.
    pub size: u64,
    /// The guest ranges that are stored, in ascending order: whole blocks, except at the end of the disk. All others are zeros.
    pub runs: Vec<Range<u64>>,
    /// The bytes before and after the disk.
    pub head: Vec<u8>,
    pub tail: Vec<u8>,
}

impl Content {
    /// A disk of `size` bytes, and nothing else.
    pub fn disk(size: u64) -> Content {
        Content { size, runs: std::iter::once(0..size).collect(), head: Vec::new(), tail: Vec::new() }
    }
}

struct Writer {
    spec: WriteSpec,
    out: Arc<dyn WriteAt>,
    compression: OutputCompression,
    /// The encoded bytes before the disk, as long as they are not placed.
    head: Vec<u8>,
    runs: Vec<Range<u64>>,
    /// The first run with bytes that are not placed.
    run: usize,
    tail: Vec<u8>,
    /// Guest bytes below this offset are placed.
    done: u64,
    /// Bytes of the file that are allocated.
    at: u64,
    /// Lengths of each frame and of its data, for the seek table.
    frames: Vec<[u32; 2]>,
    /// Parts of zeros by their length.
    zeros: BTreeMap<u64, Vec<u8>>,
}

/// Creates the file.
pub(super) fn create(
    cx: &CreateContext<'_>,
    compression: OutputCompression,
    content: Content,
) -> Result<Box<dyn SparseWrite>> {
    if cx.compress || cx.backing.is_some() {
        return Err(Error::unsupported("raw", "compressed blocks or a backing file in a compressed file"));
    }
    cx.options.check("raw", &[])?;
    let codec = match compression {
        OutputCompression::Gzip => Codec::Gzip,
        OutputCompression::Zstd => Codec::Zstd,
    };
    codec.check_available().map_err(Error::missing_codec)?;
    // The level is stated, so that payloads of the source are not copied: they may hold more than the disk has, at its end.
    let encoding = Encoding { level: Some(Encoding::default_level(codec)), checksum: true, ..Encoding::new(codec) };
    let spec = WriteSpec {
        encoding: Some(encoding),
        always_encoded: true,
        unpadded_end: true,
        sequential: true,
        // What is between blocks is written here, when they are placed; a pipe would be waiting for a block then.
        dense: !cx.out.seeks(),
        ..WriteSpec::new(content.size, BLOCK)
    };
    let Content { runs, head, tail, .. } = content;
    let mut writer = Writer {
        spec,
        out: cx.out.clone(),
        compression,
        head: Vec::new(),
        runs,
        run: 0,
        tail,
        done: 0,
        at: 0,
        frames: Vec::new(),
        zeros: BTreeMap::new(),
    };
    writer.head = writer.encoded(&head)?;
    writer.at = writer.head.len() as u64;
    Ok(Box::new(writer))
}

impl Writer {
    /// Allocates a part with `len` bytes of data.
    fn add(&mut self, stored: usize, len: u64) -> Result<u64> {
        let (at, stored_len) = (self.at, stored as u64);
        if self.compression == OutputCompression::Zstd {
            if self.frames.len() >= MAX_FRAMES {
                let (value, limit) = (self.spec.virtual_size, MAX_FRAMES as u64 * BLOCK);
                return Err(Error::limit("zstd", "size of the disk", value, limit));
            }
            self.frames.push([stored as u32, len as u32]);
        }
        self.at += stored_len;
        self.done += len;
        Ok(at)
    }

    /// Writes the zeros of the runs up to guest offset `until`.
    fn fill(&mut self, until: u64) -> Result<()> {
        while let Some(run) = self.runs.get(self.run).filter(|run| run.start < until) {
            let (start, end) = (self.done.max(run.start), run.end.min(until));
            if start >= end {
                if run.end > until {
                    break;
                }
                self.run += 1;
                continue;
            }
            let len = (end - start).min(ZEROS);
            self.done = start;
            let part = match self.zeros.remove(&len) {
                Some(part) => part,
                None => self.zeros_of(len)?,
            };
            let at = self.add(part.len(), len)?;
            self.out.write_all_at(&part, at).map_err(Error::io("writing zeros", at))?;
            self.zeros.insert(len, part);
        }
        Ok(())
    }

    /// A part of `len` zeros.
    fn zeros_of(&self, len: u64) -> Result<Vec<u8>> {
        self.part(&vec![0; len as usize])
    }

    /// The parts of `bytes`.
    fn encoded(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        bytes
            .chunks(BLOCK as usize)
            .map(|bytes| self.part(bytes))
            .collect::<Result<Vec<_>>>()
            .map(|parts| parts.concat())
    }

    fn part(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let Some(encoding) = &self.spec.encoding else { return Ok(Vec::new()) };
        let mut encoder = Encoder::new(encoding).map_err(Error::missing_codec)?;
        let part = encoder.encode(bytes, usize::MAX).map(<[u8]>::to_vec);
        part.ok_or_else(|| Error::unsupported(self.compression.name(), "the encoder failed"))
    }
}

impl SparseWrite for Writer {
    fn spec(&self) -> &WriteSpec {
        &self.spec
    }

    fn place(&mut self, _guest: Range<u64>) -> Result<Placement> {
        Err(Error::unsupported(self.compression.name(), "the encoder failed"))
    }

    fn place_compressed(&mut self, guest: Range<u64>, stored_len: u32) -> Result<Placement> {
        self.fill(guest.start)?;
        let len = guest.end - guest.start;
        self.done = guest.start;
        let at = self.add(stored_len as usize, len)?;
        let placement = Placement::new(self.out.clone(), at, len);
        // A pipe gets what is before the disk with the first block; a file at the end, so that it has no signature before.
        let before = if self.out.seeks() { Vec::new() } else { std::mem::take(&mut self.head) };
        Ok(Placement { offset: at - before.len() as u64, before, ..placement })
    }

    fn zero(&mut self, _guest: Range<u64>) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self, _identifiers: &ImageIdentifiers) -> Result<()> {
        let write =
            |out: &dyn WriteAt, bytes: &[u8], at: u64| out.write_all_at(bytes, at).map_err(Error::io("writing", at));
        let head = std::mem::take(&mut self.head);
        if !self.out.seeks() {
            // Unless a block took it along.
            write(&*self.out, &head, 0)?;
        }
        self.fill(self.spec.virtual_size)?;
        let tail = self.encoded(&self.tail)?;
        write(&*self.out, &tail, self.at)?;
        self.at += tail.len() as u64;
        if self.out.seeks() {
            write(&*self.out, &head, 0)?;
        }
        if self.at == 0 {
            // A file without data has one part all the same: it would have no signature.
            let part = self.zeros_of(0)?;
            let at = self.add(part.len(), 0)?;
            self.out.write_all_at(&part, at).map_err(Error::io("writing", at))?;
        }
        if self.compression == OutputCompression::Zstd {
            let table = seek_table(&self.frames);
            self.out.write_all_at(&table, self.at).map_err(Error::io("writing the seek table", self.at))?;
        }
        self.out.sync().map_err(Error::io("syncing", None))
    }
}

/// The seek table: a skippable frame with the lengths of each frame and of its data, and a footer (zstd, contrib/seekable_format).
fn seek_table(frames: &[[u32; 2]]) -> Vec<u8> {
    const FRAME_MAGIC: u32 = 0x184d_2a5e;
    const FOOTER_MAGIC: u32 = 0x8f92_eab1;
    const FOOTER: usize = 9;
    let content_len = frames.len() * 8 + FOOTER;
    let mut table = Vec::with_capacity(8 + content_len);
    table.extend(FRAME_MAGIC.to_le_bytes());
    table.extend((content_len as u32).to_le_bytes());
    table.extend(frames.iter().flatten().flat_map(|len| len.to_le_bytes()));
    table.extend((frames.len() as u32).to_le_bytes());
    // No checksums in the table: each frame has its own.
    table.push(0);
    table.extend(FOOTER_MAGIC.to_le_bytes());
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::Converter;
    use crate::format::Format;
    use crate::image::OpenOptions;
    use crate::io::MemFile;
    use crate::testing::noise;

    /// A disk that ends within a sector, with a run of zeros that is longer than a part.
    fn disk() -> Vec<u8> {
        [&noise(3 << 20, 1)[..], &vec![0; 40 << 20], b"text", &vec![0; 5000]].concat()
    }

    fn written(disk: &[u8], compression: OutputCompression, threads: usize) -> Vec<u8> {
        let source = OpenOptions::new().format(Format::RAW).open_source(Arc::new(disk.to_vec())).unwrap();
        let file = Arc::new(MemFile::new());
        let converter = Converter::new(Format::RAW).compress_output(Some(compression)).threads(threads);
        converter.convert_to(&source, file.clone()).unwrap();
        file.to_vec()
    }

    #[test]
    fn the_file_does_not_depend_on_the_number_of_threads() {
        for compression in [OutputCompression::Gzip, OutputCompression::Zstd] {
            let one = written(&disk(), compression, 1);
            assert!(one == written(&disk(), compression, 4), "{compression:?}");
            assert!(one.len() < (3 << 20) + (200 << 10), "zeros are nearly free: {}", one.len());
        }
    }

    #[cfg(feature = "compressed")]
    #[test]
    fn what_is_written_is_read_at_any_offset_without_a_temporary_file() {
        for (disk, compression) in [disk(), vec![], vec![7], vec![0; 100 << 20]]
            .into_iter()
            .flat_map(|disk| [(disk.clone(), OutputCompression::Gzip), (disk, OutputCompression::Zstd)])
        {
            let file = Arc::new(written(&disk, compression, 2));
            let nowhere = crate::testing::TempDir::new().join("missing");
            let options = OpenOptions::new().temporary_directory(nowhere);
            if disk.len() <= 1 << 20 {
                // One part has no index.
                let opened = OpenOptions::new().open_source(file).unwrap();
                let mut found = vec![1; disk.len()];
                opened.read_exact_at(&mut found, 0).unwrap();
                assert_eq!((opened.virtual_size(), found), (disk.len() as u64, disk));
                continue;
            }
            let opened = options.open_source(file).unwrap();
            assert_eq!((opened.virtual_size(), opened.format()), (disk.len() as u64, Format::RAW));
            for at in [disk.len() - 5000, 30 << 20, 0] {
                let mut found = vec![1; 3000.min(disk.len() - at)];
                opened.read_exact_at(&mut found, at as u64).unwrap();
                assert!(found == disk[at..][..found.len()], "{compression:?} {at}");
            }
        }
    }

    #[cfg(feature = "compressed")]
    #[test]
    fn damage_is_noticed() {
        let data = noise(5000, 7);
        for compression in [OutputCompression::Gzip, OutputCompression::Zstd] {
            let file = written(&data, compression, 1);
            // In literals, which decode to other ones.
            let damaged = |at: usize| {
                let mut file = file.clone();
                file[at] ^= 1;
                let image = OpenOptions::new().open_source(Arc::new(MemFile::from(file)));
                image.and_then(|image| image.read_exact_at(&mut vec![0; 5000], 0))
            };
            assert!(damaged(file.len() / 2).is_err(), "{compression:?}");
        }
    }

    #[test]
    fn only_raw_disks_without_options_are_compressed_as_a_whole() {
        let create = |converter: Converter| converter.create_to(1 << 20, Arc::new(MemFile::new()));
        let gzip = Some(OutputCompression::Gzip);
        assert!(create(Converter::new(Format::RAW).compress_output(gzip)).is_ok());
        assert!(create(Converter::new(Format::RAW).compress_output(gzip).compress(true)).is_err());
        #[cfg(feature = "qcow2")]
        assert!(create(Converter::new(Format::QCOW2).compress_output(gzip)).is_err());
        let mut options = crate::options::Options::new();
        options.set("preallocation", "full");
        assert!(create(Converter::new(Format::RAW).options(options).compress_output(gzip)).is_err());
    }
}
