//! Helpers of the benches: content as on a real disk, and images of it in memory.

#![allow(dead_code, reason = "no bench needs all of it")]

use std::ops::Range;
use std::sync::Arc;

use diskimage::io::{MemFile, WriteAt};
use diskimage::{Converter, Format, Image, OpenOptions, Options, Secret};

/// Real bytes: this program (machine code, tables and text), repeated.
pub fn content(len: usize) -> Vec<u8> {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    program.into_iter().cycle().take(len).collect()
}

/// A disk of `size` bytes with content in those 4 KiB blocks for whose index `holds_data` is true.
pub fn disk(size: usize, holds_data: impl Fn(usize) -> bool) -> Vec<u8> {
    let mut bytes = content(size);
    for (number, block) in bytes.chunks_mut(4096).enumerate() {
        if !holds_data(number) {
            block.fill(0);
        }
    }
    bytes
}

/// A name, and which blocks of a disk hold data.
pub type Density = (&'static str, fn(usize) -> bool);

/// A format, and how it is compressed if it is.
#[derive(Clone, Debug)]
pub struct Kind {
    /// The format's name, with that of the codec: "qcow2-zstd".
    pub name: String,
    pub format: Format,
    compress: bool,
    codec: Option<&'static str>,
}

impl Kind {
    /// Every format that can be written, uncompressed and with each of its codecs.
    pub fn all() -> Vec<Kind> {
        Format::all().filter(Format::can_create).flat_map(Kind::of_format).collect()
    }

    fn of_format(format: Format) -> Vec<Kind> {
        let mut kinds = vec![Kind { name: format.name().to_owned(), format, compress: false, codec: None }];
        let types = format.options().iter().find(|option| option.name == "compression_type");
        // Another name of zlib.
        let codecs = types.iter().flat_map(|option| option.values.split('|')).filter(|codec| *codec != "deflate");
        kinds.extend(codecs.map(|codec| Kind {
            name: format!("{format}-{codec}"),
            format,
            compress: true,
            codec: Some(codec),
        }));
        let compressed = Kind { name: format!("{format}-compressed"), format, compress: true, codec: None };
        if types.is_none() && compressed.converter().create_to(0, Arc::new(MemFile::new())).is_ok() {
            kinds.push(compressed);
        }
        kinds
    }

    /// Finds a kind by its name.
    pub fn by_name(name: &str) -> Kind {
        Kind::all().into_iter().find(|kind| kind.name == name).unwrap()
    }

    pub fn is_compressed(&self) -> bool {
        self.compress
    }

    /// A converter to this kind. It has one thread, so that a result is the cost of the work, whatever the load of the machine.
    pub fn converter(&self) -> Converter {
        let mut options = Options::new();
        if let Some(codec) = self.codec {
            options.set("compression_type", codec);
        }
        if self.format.options().iter().any(|option| option.name == "iter-time") {
            options.set("iter-time", "1");
        }
        Converter::new(self.format).options(options).compress(self.compress).threads(1).secret(Secret::new("secret"))
    }

    /// An image of this kind in memory that holds `disk`.
    pub fn image(&self, disk: Vec<u8>) -> Image {
        let raw = open(Format::RAW, MemFile::from(disk));
        let file = Arc::new(MemFile::new());
        self.converter().convert_to(&raw, file.clone()).unwrap();
        open(self.format, MemFile::from(file.to_vec()))
    }
}

/// An image in memory.
pub fn open(format: Format, file: MemFile) -> Image {
    OpenOptions::new().format(format).secret(Secret::new("secret")).open_source(Arc::new(file)).unwrap()
}

/// A target that discards what is written.
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
