//! Changes of the header that guest data does not depend on: the backing file, the data file, the version and features.

use byteorder::{BigEndian, ByteOrder};

use super::{FORMAT_NAME, Update};
use crate::codec::Codec;
use crate::driver::SparseUpdate;
use crate::error::{Error, Result};
use crate::format::qcow2::extension::{BACKING_FORMAT, BITMAPS, DATA_FILE, END, FEATURE_NAMES};
use crate::format::qcow2::header::{
    Autoclear, Compatible, Header, Incompatible, MAX_BACKING_NAME, V2_LENGTH, V3_WRITTEN_LENGTH,
};
use crate::format::shared::table;
use crate::info::{FileReference, ImageInfo};
use crate::name::Name;
use crate::options::Options;

/// What storage writes as a whole, in bytes.
const SECTOR: usize = 512;
/// The refcounts of version 2 have 16 bits.
const V2_REFCOUNT_ORDER: u32 = 4;

impl Update {
    /// Replaces the name and the format of the backing file.
    pub(super) fn replace_backing(&mut self, name: Option<&Name>, format: Option<&Name>) -> Result<()> {
        let len = name.map_or(0, |name| name.as_bytes().len() as u64);
        if len > MAX_BACKING_NAME {
            let limit = MAX_BACKING_NAME;
            return Err(Error::limit(FORMAT_NAME, "length of the backing file name", len, limit));
        }
        if self.is_raw_data_file() && name.is_some() {
            return Err(Error::unsupported(FORMAT_NAME, "a backing file with a raw data file"));
        }
        let mut header = self.header.clone();
        header.backing_file = name.cloned();
        header.extensions.backing_format = format.filter(|_| name.is_some()).cloned();
        self.replace_header(header)?;
        self.info.backing = name.map(|name| FileReference::new("backing file", name.clone(), format.cloned()));
        Ok(())
    }

    /// Checks options before the image is changed. Returns whether zero clusters have to be replaced, which version 2 does not have.
    pub(super) fn check_options(&self, options: &Options) -> Result<bool> {
        let known = ["compat", "lazy_refcounts", "refcount_bits", "data_file", "data_file_raw"];
        if let Some(name) = options.names().find(|name| !known.contains(name)) {
            return Err(Error::unsupported(FORMAT_NAME, format!("changing the option {name} of an existing image")));
        }
        let header = self.amended_header(options)?;
        Ok(header.version == 2 && self.header.version == 3)
    }

    /// Changes options of the image. For version 2, zero clusters have been replaced.
    pub(super) fn change_options(&mut self, options: &Options) -> Result<()> {
        let header = self.amended_header(options)?;
        if header == self.header {
            return Ok(());
        }
        self.flush()?;
        if header.refcount_order == self.header.refcount_order {
            return self.replace_header(header);
        }
        if self.header.version < header.version {
            // Version 2 has no other widths.
            self.replace_header(Header { refcount_order: self.header.refcount_order, ..header.clone() })?;
        }
        self.set_refcount_width(header.refcount_order)?;
        let header = self.amended_header(options)?;
        self.replace_header(header)
    }

    fn amended_header(&self, options: &Options) -> Result<Header> {
        let mut header = self.header.clone();
        let widths = [("1", 0), ("2", 1), ("4", 2), ("8", 3), ("16", 4), ("32", 5), ("64", 6)];
        if let Some(order) = options.choice(FORMAT_NAME, "refcount_bits", &widths)? {
            header.refcount_order = order;
        }
        let versions = [("0.10", 2), ("v2", 2), ("1.1", 3), ("v3", 3)];
        match options.choice(FORMAT_NAME, "compat", &versions)? {
            Some(2) if header.version == 3 => self.downgrade(&mut header)?,
            Some(3) if header.version == 2 => self.upgrade(&mut header)?,
            _ => {}
        }
        if header.version == 2 && header.refcount_order != V2_REFCOUNT_ORDER {
            let feature = match self.header.version {
                2 => "other refcounts than of 16 bits in an image of version 2",
                _ => "version 2 with other refcounts than of 16 bits",
            };
            return Err(Error::unsupported(FORMAT_NAME, feature));
        }
        let switch = [("on", true), ("true", true), ("off", false), ("false", false)];
        match options.choice(FORMAT_NAME, "lazy_refcounts", &switch)? {
            Some(true) if header.version == 2 => {
                return Err(Error::unsupported(FORMAT_NAME, "lazy refcounts in an image of version 2"));
            }
            Some(lazy) => header.compatible.set(Compatible::LAZY_REFCOUNTS, lazy),
            None => {}
        }
        if let Some(name) = options.value("data_file") {
            if !header.has_data_file() {
                return Err(Error::unsupported(FORMAT_NAME, "a data file for an image without one"));
            }
            header.extensions.data_file = Some(Name::from(name));
        }
        match options.choice(FORMAT_NAME, "data_file_raw", &switch)? {
            Some(true) if !header.autoclear.contains(Autoclear::RAW_DATA_FILE) => {
                return Err(Error::unsupported(FORMAT_NAME, "making the data file of an existing image a raw disk"));
            }
            Some(raw) => header.autoclear.set(Autoclear::RAW_DATA_FILE, raw),
            None => {}
        }
        Ok(header)
    }

    fn upgrade(&self, header: &mut Header) -> Result<()> {
        (header.version, header.header_length) = (3, V3_WRITTEN_LENGTH);
        self.snapshots()?.iter().try_for_each(|snapshot| snapshot.check_fields(header))
    }

    fn downgrade(&self, header: &mut Header) -> Result<()> {
        let unsupported = |feature: &'static str| Err(Error::unsupported(FORMAT_NAME, feature));
        if !header.incompatible.is_empty() || header.compression != Codec::Deflate {
            return unsupported("version 2 with features of version 3");
        }
        if header.nb_snapshots > 0 || header.extensions.bitmaps.is_some() {
            return unsupported("changing an image with snapshots or bitmaps to version 2");
        }
        (header.version, header.header_length) = (2, V2_LENGTH);
        (header.incompatible, header.compatible, header.autoclear) =
            (Incompatible::empty(), Compatible::empty(), Autoclear::empty());
        Ok(())
    }

    /// Replaces the header, in one sector where it fits in it, if need be without the table of the names of features, which is for messages only.
    pub(super) fn replace_header(&mut self, header: Header) -> Result<()> {
        self.clear_unknown_features()?;
        let header = Header { autoclear: header.autoclear & (Autoclear::BITMAPS | Autoclear::RAW_DATA_FILE), ..header };
        let mut cluster = vec![0; self.cluster_size().min(self.file_len) as usize];
        table::read(&*self.file, &mut cluster, 0)?;
        let whole = self.encode_header(&header, &cluster, true);
        let bytes = if whole.len() <= SECTOR { whole } else { self.encode_header(&header, &cluster, false) };
        if bytes.len() as u64 > self.cluster_size() {
            return Err(Error::unsupported(FORMAT_NAME, "names that do not fit in the first cluster"));
        }
        self.write_header(0, &bytes)?;
        let described: ImageInfo = super::super::reader::describe(&header);
        // What is known from elsewhere stays.
        let kept = self.info.specific.iter().filter(|(key, _)| described.property(key).is_none()).cloned();
        self.info.specific = described.specific.iter().cloned().chain(kept).collect();
        self.header = header;
        Ok(())
    }

    /// The header with its extensions, of which those that this crate does not know are taken from the old one, `cluster`.
    fn encode_header(&self, header: &Header, cluster: &[u8], with_features: bool) -> Vec<u8> {
        let mut bytes = header.encode();
        bytes.truncate(header.header_length as usize);
        // Fields of later versions of the format.
        if let (true, Some(rest)) = (
            header.header_length == self.header.header_length,
            cluster.get(V3_WRITTEN_LENGTH as usize..header.header_length as usize),
        ) {
            bytes.truncate(V3_WRITTEN_LENGTH as usize);
            bytes.extend(rest);
        }
        let mut put = |kind: u32, data: &[u8]| {
            bytes.extend(kind.to_be_bytes());
            bytes.extend((data.len() as u32).to_be_bytes());
            bytes.extend(data);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        };
        if let Some(format) = &header.extensions.backing_format {
            put(BACKING_FORMAT, format.as_bytes());
        }
        if let Some(name) = &header.extensions.data_file {
            put(DATA_FILE, name.as_bytes());
        }
        if let Some(Ok(directory)) = &header.extensions.bitmaps {
            put(BITMAPS, &directory.encode());
        }
        let mut at = self.header.header_length as usize;
        while let Some(head) = cluster.get(at..at + 8) {
            let (kind, len) = (BigEndian::read_u32(head), BigEndian::read_u32(&head[4..]) as usize);
            let Some(data) = cluster.get(at + 8..).and_then(|rest| rest.get(..len)) else { break };
            match kind {
                END => break,
                BACKING_FORMAT | DATA_FILE => {}
                // A damaged one stays as it is.
                BITMAPS if !matches!(header.extensions.bitmaps, Some(Err(_))) => {}
                FEATURE_NAMES if !with_features => {}
                _ => put(kind, data),
            }
            at += 8 + len.next_multiple_of(8);
        }
        put(END, &[]);
        let name = header.backing_file.as_ref().map_or(&[][..], Name::as_bytes);
        let offset = if name.is_empty() { 0 } else { bytes.len() as u64 };
        bytes.extend(name);
        if let Some(field) = bytes.get_mut(8..16) {
            BigEndian::write_u64(field, offset);
        }
        bytes
    }
}
