//! Tar archives: v7, ustar, old GNU and PAX, read in place.
//!
//! Described by POSIX.1-2017 "pax", sections "ustar Interchange Format" and "pax Extended Header", and the GNU tar manual,
//! "Basic Tar Format" and "Storing Sparse Files". Members that programs disagree about are refused.

mod header;
mod pax;
mod sparse;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashSet;

use crate::error::{Error, Problem, Result};
use crate::format::shared::table::{self, Fields};
use crate::io::{Piece, ReadAt};
use crate::limits::{Budget, LimitName, Limits};
use crate::name::Name;
use header::{Header, MAX_OCTAL};
#[cfg(feature = "write")]
pub(super) use header::{encode_end, encode_header};
use pax::Pax;
#[cfg(feature = "write")]
pub(super) use sparse::encode_file;

/// Name of the format.
pub(super) const FORMAT_NAME: &str = "tar";
const FIELDS: Fields = Fields(FORMAT_NAME);
/// Length in bytes of a header, and alignment of the data of a member.
pub(super) const BLOCK: u64 = 512;

/// A member of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// The name without `.` components; neither absolute nor with `..` components.
    pub name: Name,
    pub kind: Kind,
    /// Length of the file in bytes, with the holes of a sparse file.
    pub size: u64,
    /// Offset of the header in the archive.
    pub at: u64,
    /// The data, in ascending order, within `size` and within the archive.
    pub pieces: Vec<Piece>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    /// A hard or symbolic link.
    Link,
    Directory,
    /// A device, a FIFO or an unknown type.
    Other,
}

/// The members of an archive, in order.
///
/// # Errors
/// Errors of the storage; [`Error::Corrupt`] for an archive that ends within a member, a wrong checksum, a name that is absolute or
/// has a `..` component, and for whatever readers disagree about; [`Error::Limit`] for more members or a longer
/// name than the limits allow, or if the names and sparse maps need more memory than the budget has.
pub(crate) fn members(file: &dyn ReadAt, limits: &Limits, budget: &Budget) -> Result<Vec<Member>> {
    let mut archive = Archive::new(file, limits, budget)?;
    let mut members: Vec<Member> = Vec::new();
    while let Some(member) = archive.next()? {
        let field = FIELDS.at("number of members", member.at);
        field.within_limit(LimitName::Members, members.len() as u64 + 1, limits.members)?;
        members.push(member);
    }
    Ok(members)
}

/// Checks that no two files have one name: some programs see the first one, some the last one.
///
/// # Errors
/// [`Error::Corrupt`]
pub(crate) fn check_names(members: &[Member]) -> Result<()> {
    let mut names = HashSet::new();
    for (index, member) in members.iter().enumerate().filter(|(_, member)| member.kind == Kind::File) {
        if !names.insert(&member.name) {
            let finding = "another member has the same name";
            return Err(FIELDS.at("name", member.at).fault(Problem::Conflict { value: index as u64, finding }));
        }
    }
    Ok(())
}

/// Reads the headers of an archive one after the other.
pub(crate) struct Archive<'a> {
    file: &'a dyn ReadAt,
    len: u64,
    /// Offset of the next header.
    at: u64,
    limits: &'a Limits,
    budget: &'a Budget,
}

impl<'a> Archive<'a> {
    pub fn new(file: &'a dyn ReadAt, limits: &'a Limits, budget: &'a Budget) -> Result<Self> {
        Ok(Archive { file, len: table::length(file)?, at: 0, limits, budget })
    }

    /// The next member; `None` after the last one. An archive need not have blocks of zeros at its end.
    pub fn next(&mut self) -> Result<Option<Member>> {
        let mut pax = Pax::default();
        let mut long_name = None;
        loop {
            let at = self.at;
            let Some(header) = self.header()? else {
                return match pax.is_empty() && long_name.is_none() {
                    true => Ok(None),
                    false => {
                        let finding = "no member follows the extended header";
                        Err(FIELDS.at("header", at).fault(Problem::Conflict { value: at, finding }))
                    }
                };
            };
            // Also for headers that describe no member, of which there could be any number.
            self.budget.take(64, FORMAT_NAME, "header", at)?;
            match header.kind {
                b'x' | b'X' => {
                    let text = self.text(&header)?;
                    self.budget.take(text.len() as u64, FORMAT_NAME, "extended header", at)?;
                    pax.extend(&text, at)?;
                }
                b'g' => Pax::check_global(&self.text(&header)?, at)?,
                b'L' => long_name = Some(self.text(&header)?),
                // The target of a link.
                b'K' => drop(self.text(&header)?),
                // The label of the volume.
                b'V' => self.skip(&header, header.size)?,
                b'M' | b'N' => {
                    let feature = "multi-volume archives and old long names".into();
                    return Err(Error::Unsupported { format: FORMAT_NAME, feature, at: Some(at) });
                }
                _ => return self.member(&header, &pax, long_name).map(Some),
            }
        }
    }

    /// Reads the header at the current offset, and moves after it. `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>> {
        let at = self.at;
        let mut block = [0; BLOCK as usize];
        let rest = self.len.saturating_sub(at);
        let Some(bytes) = block.get_mut(..rest.min(BLOCK) as usize) else { return Ok(None) };
        table::read(self.file, bytes, at)?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        FIELDS.at("header", at).within(at, BLOCK, self.len)?;
        self.at = at + BLOCK;
        Header::parse(&block, at).map(Some)
    }

    fn member(&mut self, header: &Header, pax: &Pax, long_name: Option<Vec<u8>>) -> Result<Member> {
        let at = header.at;
        // The size of an extended header is that of the file, not of the headers between (GHSA-3cv2-h65g-fgmm).
        let stored = match pax.size(at)? {
            // A size that does not fit into the header is 0 there, or any; another one is read by some programs.
            Some(size) if size != header.size && header.size != 0 && size <= MAX_OCTAL => {
                let finding = "the extended header states another size";
                return Err(FIELDS.at("size", at + 124).fault(Problem::Conflict { value: header.size, finding }));
            }
            Some(size) => size,
            None => header.size,
        };
        let name = pax.name().map(<[u8]>::to_vec).or(long_name);
        let name = name.as_deref().unwrap_or(&header.name);
        let is_directory = header.kind == b'5' || matches!(header.kind, 0 | b'0') && name.ends_with(b"/");
        let kind = match header.kind {
            _ if is_directory => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' | b'2' => Kind::Link,
            b'D' => Kind::Directory,
            _ => Kind::Other,
        };
        if stored != 0 && matches!(header.kind, b'1'..=b'6') {
            let rule = "must be 0 for anything but a file";
            return Err(FIELDS.at("size", at + 124).fault(Problem::Rule { value: stored, rule }));
        }
        let name = normalized(name, at)?;
        if kind == Kind::File && name.as_bytes().is_empty() {
            return Err(FIELDS.at("name", at).fault(Problem::Rule { value: 0, rule: "a file must have a name" }));
        }
        self.budget.take(256 + name.as_bytes().len() as u64, FORMAT_NAME, "member", at)?;
        let (size, pieces) = match kind {
            Kind::File if header.kind == b'S' => self.old_sparse(header, stored)?,
            Kind::File if pax.is_sparse() => self.pax_sparse(pax, header, stored)?,
            Kind::File => {
                FIELDS.at("size", at + 124).within(self.at, stored, self.len)?;
                let piece = Piece { start: 0, len: stored, offset: self.at };
                (stored, if stored == 0 { Vec::new() } else { vec![piece] })
            }
            _ => (stored, Vec::new()),
        };
        if kind != Kind::File || header.kind != b'S' && !pax.is_sparse() {
            self.skip(header, stored)?;
        }
        Ok(Member { name, kind, size, at, pieces })
    }

    /// Moves after `size` bytes of data. The padding of the last member may be missing.
    fn skip(&mut self, header: &Header, size: u64) -> Result<()> {
        FIELDS.at("size", header.at + 124).within(self.at, size, self.len)?;
        self.at = (self.at + size).next_multiple_of(BLOCK).min(self.len);
        Ok(())
    }

    /// The data of a header that describes the next member, without a NUL at its end.
    fn text(&mut self, header: &Header) -> Result<Vec<u8>> {
        let field = FIELDS.at("size of extended header", header.at + 124);
        field.within_limit(LimitName::NameLength, header.size, self.limits.name_length)?;
        let offset = self.at;
        self.skip(header, header.size)?;
        let field = FIELDS.at("extended header", header.at);
        // Only the text of one member is kept at a time.
        let mut text = table::read_table(self.file, offset, header.size, field, &Budget::new(header.size))?;
        if matches!(header.kind, b'L' | b'K') {
            text.truncate(text.iter().position(|byte| *byte == 0).unwrap_or(text.len()));
        }
        Ok(text)
    }
}

/// The name without `.` components and repeated slashes.
fn normalized(name: &[u8], at: u64) -> Result<Name> {
    let refuse = |rule| Err(FIELDS.at("name", at).fault(Problem::Rule { value: name.len() as u64, rule }));
    if name.starts_with(b"/") {
        return refuse("a name must not be absolute");
    }
    if name.contains(&0) {
        return refuse("a name must not contain NUL");
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return refuse("a name must not have a '..' component"),
            part => parts.push(part),
        }
    }
    Ok(Name::from(&*parts.join(&b'/')))
}
