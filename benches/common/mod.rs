//! What the benches share: content that looks like a disk's, and images of it in memory.

#![allow(dead_code, reason = "no bench needs all of it")]

use std::ops::Range;
use std::sync::Arc;

use diskimage::io::{MemFile, WriteAt};
use diskimage::{Converter, Format, Image, OpenOptions, Options};

/// Real bytes: this program, which is machine code, tables and text, over and over.
pub fn content(len: usize) -> Vec<u8> {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    program.into_iter().cycle().take(len).collect()
}

/// A disk of `size` bytes with content in those of its 4 KiB blocks whose number `holds_data` likes.
pub fn disk(size: usize, holds_data: impl Fn(usize) -> bool) -> Vec<u8> {
    let mut bytes = content(size);
    for (number, block) in bytes.chunks_mut(4096).enumerate() {
        if !holds_data(number) {
            block.fill(0);
        }
    }
    bytes
}

/// Which blocks of a disk hold data, with a name for it.
pub type Density = (&'static str, fn(usize) -> bool);

/// What to make, as people say it: a format, and how it is compressed if it is.
#[derive(Clone, Copy)]
pub struct Kind(pub &'static str);

impl Kind {
    /// Plain and compressed, of each format that the benches know.
    pub const ALL: [Kind; 4] = [Kind("raw"), Kind("qcow2"), Kind("qcow2-zlib"), Kind("qcow2-zstd")];

    /// A converter to this kind that does its work on one thread, so that a result is the cost of the work and not of the
    /// machine's load.
    pub fn converter(self) -> Converter {
        let (format, codec) = self.format_and_codec();
        let mut options = Options::new();
        if let Some(codec) = codec {
            options.set("compression_type", codec);
        }
        Converter::new(Format::by_name(format).unwrap()).options(options).compress(codec.is_some()).threads(1)
    }

    /// An image of this kind in memory that holds `disk`.
    pub fn image(self, disk: Vec<u8>) -> Image {
        let raw = open("raw", MemFile::from(disk));
        let file = Arc::new(MemFile::new());
        self.converter().convert_to(&raw, file.clone()).unwrap();
        open(self.format_and_codec().0, MemFile::from(file.to_vec()))
    }

    fn format_and_codec(self) -> (&'static str, Option<&'static str>) {
        match self.0.split_once('-') {
            Some((format, codec)) => (format, Some(codec)),
            None => (self.0, None),
        }
    }
}

/// An image in memory.
pub fn open(format: &str, file: MemFile) -> Image {
    OpenOptions::new().format(Format::by_name(format).unwrap()).open_source(Arc::new(file)).unwrap()
}

/// A file that forgets what is written to it.
pub struct Null;

impl WriteAt for Null {
    fn write_all_at(&self, buf: &[u8], _offset: u64) -> std::io::Result<()> {
        std::hint::black_box(buf);
        Ok(())
    }

    fn set_len(&self, _len: u64) -> std::io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn zero_range(&self, _range: Range<u64>) -> std::io::Result<()> {
        Ok(())
    }
}
