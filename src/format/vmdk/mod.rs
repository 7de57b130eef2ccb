//! VMDK, the format of VMware.

mod cowd;
mod descriptor;
mod esxi;
mod grains;
mod header;
mod hosted;
mod marker;
mod options;
mod reader;
mod sesparse;
mod stream;
mod writer;

use std::ops::Range;

use crate::error::{Error, Result};
use crate::format::{Entry, Probe};
use crate::io::table::Field;

pub(crate) static FORMAT: Entry = Entry {
    name: FORMAT_NAME,
    aliases: &[],
    extensions: &["vmdk"],
    description: "VMware virtual disk, of any kind",
    options: options::OPTIONS,
    probe,
    open: |source, cx| Ok(Box::new(reader::Reader::open(source, cx)?)),
    create: writer::create,
    open_stream: Some(stream::open),
    check: None,
};

const FORMAT_NAME: &str = "vmdk";
/// Bytes in a sector, the unit of all offsets and sizes of this format.
const SECTOR: u64 = 512;

/// The binary files that this format has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Hosted,
    Cowd,
    SeSparse,
}

impl Kind {
    /// By the first bytes of a file; what is none of them may be a descriptor.
    fn of(start: &[u8]) -> Option<Kind> {
        if start.starts_with(header::MAGIC) {
            Some(Kind::Hosted)
        } else if start.starts_with(cowd::MAGIC) {
            Some(Kind::Cowd)
        } else if start.starts_with(&sesparse::MAGIC.to_le_bytes()) {
            Some(Kind::SeSparse)
        } else {
            None
        }
    }
}

fn probe(probe: &Probe<'_>) -> bool {
    Kind::of(probe.head).is_some() || descriptor::looks_like_descriptor(probe.head)
}

/// A field of this format, for messages.
fn field(name: &'static str, at: u64) -> Field {
    Field { format: FORMAT_NAME, name, at }
}

/// A descriptor as it stands in the sectors that are set aside for it.
fn embedded(text: &[u8], sectors: Range<u64>) -> Result<Vec<u8>> {
    let room = ((sectors.end - sectors.start) * SECTOR) as usize;
    if text.len() > room {
        let problem = format!("the descriptor has {} bytes, and there is room for {room}", text.len());
        return Err(Error::Usage(problem));
    }
    let mut bytes = text.to_vec();
    bytes.resize(room, 0);
    Ok(bytes)
}
