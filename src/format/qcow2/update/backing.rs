//! The name of the backing file, in the header.

use byteorder::{BigEndian, ByteOrder};

use super::{FORMAT_NAME, Update};
use crate::error::{Error, Result};
use crate::format::qcow2::extension::{BACKING_FORMAT, END, FEATURE_NAMES};
use crate::format::qcow2::header::MAX_BACKING_NAME;
use crate::format::shared::table;
use crate::info::FileReference;
use crate::name::Name;

/// What storage writes as a whole, in bytes.
const SECTOR: usize = 512;

impl Update {
    /// Replaces the name and the format of the backing file. They are written in one sector where they fit in it, if need be without the table of
    /// the names of features, which is for messages only.
    pub(super) fn replace_backing(&mut self, name: Option<&Name>, format: Option<&Name>) -> Result<()> {
        let len = name.map_or(0, |name| name.as_bytes().len() as u64);
        if len > MAX_BACKING_NAME {
            let (field, limit) = ("length of the backing file name".into(), MAX_BACKING_NAME);
            return Err(Error::Limit { format: FORMAT_NAME, field, at: None, value: len, limit });
        }
        if self.is_raw_data_file() && name.is_some() {
            return Err(Error::unsupported(FORMAT_NAME, "a backing file with a raw data file"));
        }
        let mut cluster = vec![0; self.cluster_size().min(self.file_len) as usize];
        table::read(&*self.file, &mut cluster, 0)?;
        let whole = self.header_with(&cluster, name, format, true);
        let header = if whole.len() <= SECTOR { whole } else { self.header_with(&cluster, name, format, false) };
        if header.len() as u64 > self.cluster_size() {
            return Err(Error::unsupported(FORMAT_NAME, "a backing file name that does not fit in the first cluster"));
        }
        self.write_header(0, &header)?;
        self.header.backing_file = name.cloned();
        self.header.extensions.backing_format = format.cloned();
        self.info.backing = name.map(|name| FileReference::new("backing file", name.clone(), format.cloned()));
        Ok(())
    }

    /// The header with this name, and with all other extensions as they are.
    fn header_with(&self, cluster: &[u8], name: Option<&Name>, format: Option<&Name>, with_features: bool) -> Vec<u8> {
        let start = self.header.header_length as usize;
        let mut bytes = cluster.get(..start).unwrap_or_default().to_vec();
        let mut put = |kind: u32, data: &[u8]| {
            bytes.extend(kind.to_be_bytes());
            bytes.extend((data.len() as u32).to_be_bytes());
            bytes.extend(data);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        };
        if let Some(format) = format.filter(|_| name.is_some()) {
            put(BACKING_FORMAT, format.as_bytes());
        }
        let mut at = start;
        while let Some(head) = cluster.get(at..at + 8) {
            let (kind, len) = (BigEndian::read_u32(head), BigEndian::read_u32(&head[4..]) as usize);
            let Some(data) = cluster.get(at + 8..).and_then(|rest| rest.get(..len)) else { break };
            match kind {
                END => break,
                BACKING_FORMAT => {}
                FEATURE_NAMES if !with_features => {}
                _ => put(kind, data),
            }
            at += 8 + len.next_multiple_of(8);
        }
        put(END, &[]);
        let name = name.map_or(&[][..], Name::as_bytes);
        let offset = if name.is_empty() { 0 } else { bytes.len() as u64 };
        bytes.extend(name);
        if let Some(field) = bytes.get_mut(8..16) {
            BigEndian::write_u64(field, offset);
        }
        if let Some(field) = bytes.get_mut(16..20) {
            BigEndian::write_u32(field, name.len() as u32);
        }
        bytes
    }
}
