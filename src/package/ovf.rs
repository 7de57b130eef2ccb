//! The descriptor of an OVF package, in the dialects that programs write.
//!
//! DMTF DSP0243 ("Open Virtualization Format Specification") 1.1.1 and 2.1.1: sections 7.1 "References" and 9.1 "DiskSection", and the
//! hardware items, in which the order of the disks is. Elements are found by their local names, since producers disagree about
//! prefixes and about which attributes have one.

mod hardware;
#[cfg(test)]
mod tests;
mod units;

use std::collections::HashSet;

use roxmltree::Node;

use crate::error::{Error, Problem, Result};
use crate::format::shared::table::Fields;
use crate::format::shared::xml;
use crate::limits::{Budget, LimitName, Limits};
use crate::name::Name;

/// Name of the format.
pub(super) const FORMAT_NAME: &str = "ovf";
const FIELDS: Fields = Fields(FORMAT_NAME);
/// Largest number of disks, each of which is compared with all others and all files. A virtual machine has at most a few hundred.
const MAX_DISKS: u64 = 1024;
/// How the namespaces of envelopes begin.
const NAMESPACES: [&str; 2] = ["http://schemas.dmtf.org/ovf/", "http://www.vmware.com/schema/ovf/"];

/// The parts of a descriptor that tell which files hold the disks.
#[derive(Debug, Default)]
pub(crate) struct Envelope {
    /// The files in the order of the references.
    pub files: Vec<File>,
    /// The disks in the order of the hardware, then of the disk section.
    pub disks: Vec<Disk>,
    /// What is odd, but does not matter for the content of the disks.
    pub warnings: Vec<String>,
}

/// A file of the package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub id: String,
    /// Its name, relative to the directory of the descriptor, as it is stated.
    pub href: Name,
    /// Its stated length in bytes, as it is stored.
    pub size: Option<u64>,
    /// Length in bytes of the files into which it is split, all but the last.
    pub chunk_size: Option<u64>,
}

/// A virtual disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    pub id: Name,
    /// Index of its file; `None` for an empty disk.
    pub file: Option<usize>,
    /// Capacity in bytes.
    pub capacity: Option<u64>,
    /// URI of the format.
    pub format: Option<Name>,
    /// The disk whose data the file does not repeat.
    pub parent: Option<Name>,
}

impl Envelope {
    /// Parses a descriptor.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for what is not well-formed XML in UTF-8, or not an envelope; for a disk or a reference that is ambiguous
    /// or refers to nothing. [`Error::Unsupported`] for a document type definition, [`Error::Limit`] for a longer text, a
    /// larger tree or more files than the limits allow, 1024 disks, 200,000 nodes, 200 levels or 500 attributes.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Envelope> {
        let len = bytes.len() as u64;
        FIELDS.at("length of the descriptor", 0).within_limit(LimitName::TextLength, len, limits.text_length)?;
        let document = xml::parse(&FIELDS, xml::text(&FIELDS, bytes)?, &Budget::new(limits.metadata))?;
        let root = document.root_element();
        let namespace = root.tag_name().namespace().unwrap_or_default();
        if root.tag_name().name() != "Envelope" || !NAMESPACES.iter().any(|known| namespace.starts_with(known)) {
            return Err(conflict(root, "root element", "not an envelope of OVF"));
        }
        let mut envelope = Envelope { files: files(root, limits)?, ..Envelope::default() };
        let mut disks = envelope.disks(root)?;
        for (id, is_file) in hardware::disks(root) {
            let found =
                disks.iter().position(|disk| disk.as_ref().is_some_and(|disk| disk.id.as_bytes() == id.as_bytes()));
            match (found.and_then(|at| disks.get_mut(at)).and_then(Option::take), is_file) {
                (Some(disk), false) => envelope.disks.push(disk),
                (_, true) => envelope.add_file_disk(id),
                // Named by two items, or not there: an item need not have a disk.
                (None, false) => {}
            }
        }
        envelope.disks.extend(disks.into_iter().flatten());
        Ok(envelope)
    }

    /// The disks of the disk section, in its order.
    fn disks(&mut self, root: Node<'_, '_>) -> Result<Vec<Option<Disk>>> {
        let mut disks: Vec<Option<Disk>> = Vec::new();
        for node in in_sections(root, "DiskSection", "Disk") {
            FIELDS.at("number of disks", 0).at_most(disks.len() as u64 + 1, MAX_DISKS)?;
            let id = attribute(node, "diskId").unwrap_or_default();
            let id = Name::from(id);
            if disks.iter().flatten().any(|other| other.id == id) {
                return Err(conflict(node, "diskId", "another disk has the same identifier"));
            }
            let file = match attribute(node, "fileRef").filter(|id| !id.is_empty()) {
                None => None,
                Some(wanted) => match self.files.iter().position(|file| file.id == wanted) {
                    Some(index) => Some(index),
                    None => return Err(conflict(node, "fileRef", "there is no file with this identifier")),
                },
            };
            let parent = attribute(node, "parentRef").filter(|id| !id.is_empty()).map(Name::from);
            let capacity = self.capacity(root, node, &id);
            disks.push(Some(Disk { id, file, capacity, format: attribute(node, "format").map(Name::from), parent }));
        }
        Ok(disks)
    }

    fn capacity(&mut self, root: Node<'_, '_>, node: Node<'_, '_>, id: &Name) -> Option<u64> {
        let stated = attribute(node, "capacity")?.trim();
        let number = match stated.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) {
            Some(key) => property(root, key)?,
            None => stated,
        };
        let unit = units::factor(attribute(node, "capacityAllocationUnits").unwrap_or_default());
        let bytes = number.parse::<u64>().ok().zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
        if bytes.is_none() {
            self.warnings.push(format!("the capacity of disk {id} is not understood"));
        }
        bytes
    }

    /// Adds a disk for an item that names a file.
    fn add_file_disk(&mut self, id: &str) {
        if let Some(file) = self.files.iter().position(|file| file.id == id)
            && !self.disks.iter().any(|disk| disk.file == Some(file))
        {
            self.disks.push(Disk { id: Name::from(id), file: Some(file), capacity: None, format: None, parent: None });
        }
    }
}

/// Whether bytes can be the beginning of a descriptor.
pub(super) fn is_descriptor(head: &[u8]) -> bool {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let contains = |needle: &[u8]| text.windows(needle.len()).any(|window| window == needle);
    text.starts_with(b"<") && contains(b"Envelope") && NAMESPACES.iter().any(|namespace| contains(namespace.as_bytes()))
}

fn files(root: Node<'_, '_>, limits: &Limits) -> Result<Vec<File>> {
    let (mut files, mut ids): (Vec<File>, _) = (Vec::new(), HashSet::new());
    for node in in_sections(root, "References", "File") {
        FIELDS.at("number of files", 0).within_limit(LimitName::Members, files.len() as u64 + 1, limits.members)?;
        let id = attribute(node, "id").unwrap_or_default().to_owned();
        if !ids.insert(id.clone()) {
            return Err(conflict(node, "id of File", "another file has the same identifier"));
        }
        let Some(href) = attribute(node, "href").filter(|href| !href.is_empty()) else {
            return Err(conflict(node, "href", "missing"));
        };
        let number = |name: &'static str| match attribute(node, name).map(str::trim) {
            None | Some("") => Ok(None),
            Some(text) => text.parse::<u64>().map(Some).map_err(|_| conflict(node, name, "not a number below 2^64")),
        };
        let (size, chunk_size) = (number("size")?, number("chunkSize")?);
        if chunk_size == Some(0) {
            return Err(conflict(node, "chunkSize", "0"));
        }
        files.push(File { id, href: Name::from(href), size, chunk_size });
    }
    Ok(files)
}

/// The elements `name` in sections called `section`; in version 0.9, sections of this `xsi:type`.
fn in_sections<'a, 'input>(
    root: Node<'a, 'input>,
    section: &'static str,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'input>> {
    let is_section = move |node: &Node<'_, '_>| {
        node.tag_name().name() == section
            || attribute(*node, "type")
                .and_then(|kind| kind.strip_suffix("_Type"))
                .is_some_and(|kind| kind.rsplit(':').next() == Some(section))
    };
    root.descendants()
        .filter(move |node| node.tag_name().name() == name && node.parent().is_some_and(|parent| is_section(&parent)))
}

/// The attribute with this local name: that of an OVF namespace, or of none, or of any other.
fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    let own = || node.attributes().filter(|attribute| attribute.name() == name);
    let is_ovf = |namespace: Option<&str>| {
        namespace.is_some_and(|namespace| NAMESPACES.iter().any(|known| namespace.starts_with(known)))
    };
    own()
        .find(|attribute| is_ovf(attribute.namespace()))
        .or_else(|| own().find(|attribute| attribute.namespace().is_none()))
        .or_else(|| own().next())
        .map(|attribute| attribute.value())
}

/// The default of the property `key`.
fn property<'a>(root: Node<'a, '_>, key: &str) -> Option<&'a str> {
    let property = root
        .descendants()
        .find(|node| node.tag_name().name() == "Property" && attribute(*node, "key").is_some_and(|own| own == key))?;
    attribute(property, "value").map(str::trim)
}

fn conflict(node: Node<'_, '_>, field: &'static str, finding: &'static str) -> Error {
    let at = node.range().start as u64;
    FIELDS.at(field, at).fault(Problem::Conflict { value: at, finding })
}
