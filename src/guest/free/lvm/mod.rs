//! LVM2: physical volumes, of which some extents are free, and logical volumes, with file systems of their own.
//!
//! What the metadata says counts only if all of it is here: the physical volumes of a group have the same text, and a text that is older than
//! that on another disk would take extents for free that are in use.

mod group;
mod mapped;
mod physical;
mod text;

use std::ops::Range;

use super::volume::{Found, Kept, kept};
use group::{Group, Logical, Member};
pub(super) use mapped::Mapped;
pub(super) use physical::{Physical, open};

/// A physical volume of the disk.
pub(super) struct Part {
    /// Guest offsets in bytes.
    pub range: Range<u64>,
    pub physical: Physical,
    /// The reason why it is kept, whatever LVM says.
    pub doubt: Option<Kept>,
}

/// What LVM tells of a disk.
#[derive(Debug, Default)]
pub(super) struct Lvm {
    /// Of each part, in their order.
    pub parts: Vec<PartSpace>,
    pub volumes: Vec<LogicalVolume>,
}

/// The extents of a physical volume.
#[derive(Clone, Debug)]
pub(super) struct PartSpace {
    /// Name of the volume group, and the bytes of all extents and of those that are free; `None` without a group.
    pub group: Option<(String, u64, u64)>,
    /// The free extents, in guest offsets, in ascending order.
    pub free: Found<Vec<Range<u64>>>,
}

/// A logical volume.
#[derive(Debug)]
pub(super) struct LogicalVolume {
    /// With the name of its group: `vg/root`.
    pub name: String,
    /// In bytes.
    pub len: u64,
    /// Where it is, in guest offsets, in its own order.
    pub pieces: Found<Vec<Range<u64>>>,
}

/// Finds the volume groups that the parts make up.
pub(super) fn examine(parts: &[Part]) -> Lvm {
    let without =
        PartSpace { group: None, free: kept("it has no LVM metadata, and no other volume of the disk has any of it") };
    let mut lvm = Lvm { parts: vec![without; parts.len()], volumes: Vec::new() };
    let mut texts: Vec<(&[u8], Found<Group>)> = Vec::new();
    for text in parts.iter().filter_map(|part| part.physical.text.as_deref()) {
        if !texts.iter().any(|(known, _)| *known == text) {
            texts.push((text, Group::parse(text)));
        }
    }
    for (index, (text, group)) in texts.iter().enumerate() {
        let others = texts.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, (_, group))| group);
        let holds = |part: &&Part| part.physical.text.as_deref() == Some(*text);
        match group {
            Ok(group) => {
                let doubt = contradiction(group, parts.iter().filter(holds), others);
                lvm.add(group, parts, text, doubt);
            }
            Err(reason) => {
                let holders = parts.iter().zip(&mut lvm.parts).filter(|(part, _)| holds(part));
                holders.for_each(|(_, space)| space.free = Err(reason.clone()));
            }
        }
    }
    lvm
}

/// Why the text of a group, which is on the parts of `holders`, cannot be trusted beside those of other groups. It may be the one that was
/// left behind when the group changed.
fn contradiction<'a>(
    group: &Group,
    mut holders: impl Iterator<Item = &'a Part>,
    others: impl Iterator<Item = &'a Found<Group>>,
) -> Option<Kept> {
    let has = |id: &str| group.members.iter().any(|member| member.id == id);
    let mut doubts = others.map(|other| match other {
        Ok(other) if other.members.iter().any(|member| has(&member.id)) => Some(Kept(CONTRADICTION.into())),
        Ok(_) => None,
        // It could be that of this group.
        Err(reason) => Some(reason.clone()),
    });
    match holders.all(|part| has(&part.physical.id)) {
        true => doubts.find_map(|doubt| doubt),
        false => Some(Kept(CONTRADICTION.into())),
    }
}

const CONTRADICTION: &str = "the physical volumes of its volume group contradict each other";

impl Lvm {
    /// Adds the group with this text, of which all is kept if there is a doubt.
    fn add(&mut self, group: &Group, parts: &[Part], text: &[u8], doubt: Option<Kept>) {
        let of = |member: &Member| {
            let same = parts.iter().enumerate().filter(|(_, part)| part.physical.id == member.id);
            same.collect::<Vec<_>>()
        };
        let found: Vec<_> = group.members.iter().map(of).collect();
        let complete = group.members.iter().zip(&found).map(|(member, found)| check(group, member, found, text));
        let complete: Found<Vec<&Part>> = doubt.map_or_else(|| complete.collect(), Err);
        for (member, found) in group.members.iter().zip(&found) {
            let bytes = |extents: u64| extents.saturating_mul(group.extent_size);
            let unused = unused(member);
            let count = unused.iter().map(|range| range.end - range.start).sum();
            for (index, part) in found {
                let free = match &complete {
                    Ok(_) => Ok(unused.iter().map(|extents| group.on_disk(part, member, extents)).collect()),
                    Err(reason) => Err(reason.clone()),
                };
                let space = PartSpace { group: Some((group.name.clone(), bytes(member.count), bytes(count))), free };
                self.parts.iter_mut().skip(*index).take(1).for_each(|part| *part = space.clone());
            }
        }
        let volumes = group.volumes.iter().map(|volume| LogicalVolume {
            name: format!("{}/{}", group.name, volume.name),
            len: volume.count.saturating_mul(group.extent_size),
            pieces: complete.clone().and_then(|parts| group.pieces(&parts, volume)),
        });
        self.volumes.extend(volumes);
    }
}

/// The only part that is the member of the group with this text.
fn check<'a>(group: &Group, member: &Member, found: &[(usize, &'a Part)], text: &[u8]) -> Found<&'a Part> {
    let [(_, part)] = found else {
        return kept(match found.is_empty() {
            true => "a physical volume of its volume group is on another disk",
            false => "the disk has copies of its physical volume",
        });
    };
    if let Some(doubt) = &part.doubt {
        return Err(doubt.clone());
    }
    let physical = &part.physical;
    if physical.text.as_deref().is_some_and(|own| own != text) {
        return kept(CONTRADICTION);
    }
    // The extents fit into the device, as the group says.
    let end = member.data + member.count * group.extent_size;
    let is_sound = physical.data == member.data
        && member.len <= physical.len
        && end <= part.range.end - part.range.start
        && physical.areas.iter().all(|area| area.end <= member.data || area.start >= end);
    if is_sound { Ok(part) } else { kept("the label of LVM contradicts the metadata") }
}

/// The extents of the member that are not in use.
fn unused(member: &Member) -> Vec<Range<u64>> {
    let starts = std::iter::once(0).chain(member.used.iter().map(|used| used.end));
    let ends = member.used.iter().map(|used| used.start).chain([member.count]);
    starts.zip(ends).map(|(start, end)| start..end).filter(|range| !range.is_empty()).collect()
}

impl Group {
    /// The guest range of extents, which fit into the part.
    fn on_disk(&self, part: &Part, member: &Member, extents: &Range<u64>) -> Range<u64> {
        let first = part.range.start + member.data;
        first + extents.start * self.extent_size..first + extents.end * self.extent_size
    }

    /// The guest ranges of a linear volume.
    fn pieces(&self, parts: &[&Part], volume: &Logical) -> Found<Vec<Range<u64>>> {
        let segments = volume.segments.as_ref().map_err(Kept::clone)?.iter();
        let piece = |segment: &group::Segment| {
            let (part, member) = (parts.get(segment.member)?, self.members.get(segment.member)?);
            Some(self.on_disk(part, member, &segment.extents))
        };
        Ok(segments.filter_map(piece).collect())
    }
}

#[cfg(test)]
mod tests;
