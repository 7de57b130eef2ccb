//! A volume group, as the text of its metadata describes it: physical volumes, and the logical volumes that use their extents.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::super::volume::{Found, kept};
use super::text::{Section, Value, parse, wrong};

const SECTOR: u64 = 512;

/// Logical volumes that are looked into. Each is read.
const MOST_VOLUMES: usize = 4096;

/// A volume group whose logical volumes do not share extents.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub name: String,
    /// In bytes.
    pub extent_size: u64,
    pub members: Vec<Member>,
    /// Those that a user sees, but for snapshots.
    pub volumes: Vec<Logical>,
}

/// A physical volume of a group.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub id: String,
    /// Length of the device in bytes.
    pub len: u64,
    /// Offset of the first extent in bytes.
    pub data: u64,
    /// Number of extents.
    pub count: u64,
    /// The extents that are in use, in ascending order, without overlaps.
    pub used: Vec<Range<u64>>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Logical {
    pub name: String,
    /// Its length in extents.
    pub count: u64,
    /// Where its extents are; or why that is not as simple.
    pub segments: Found<Vec<Segment>>,
}

/// Extents of a logical volume that are contiguous on a physical one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Index of the member.
    pub member: usize,
    /// The extents of the member.
    pub extents: Range<u64>,
}

impl Group {
    /// Parses the text. An error says why nothing in it is certain.
    pub fn parse(text: &[u8]) -> Found<Group> {
        let top = parse(text)?;
        if top.text("contents")? != b"Text Format Volume Group" || top.number("version")? != 1 {
            return kept("the LVM metadata is of an unknown version");
        }
        let mut sections = top.sections();
        let (Some((name, group)), None) = (sections.next(), sections.next()) else { return wrong("volume group") };
        check_group(group)?;
        let extent_size = group.number("extent_size")?.checked_mul(SECTOR).filter(|size| *size > 0);
        let Some(extent_size) = extent_size else { return wrong("extent_size") };
        let mut names = BTreeMap::new();
        let mut members = Vec::new();
        for (index, (name, section)) in group.section("physical_volumes")?.sections().enumerate() {
            members.push(Member::parse(section, extent_size)?);
            names.insert(name, index);
        }
        let volumes = logical_volumes(group, &names, &mut members)?;
        members.iter_mut().try_for_each(Member::check)?;
        Ok(Group { name: printed(name), extent_size, members, volumes })
    }
}

/// Checks that the group is in no state that others than its own tools could change.
fn check_group(group: &Section) -> Found<()> {
    only(group, "status", &["RESIZEABLE", "READ", "WRITE"], "the volume group")?;
    only(group, "flags", &[], "the volume group")?;
    let is_known =
        |name: &[u8]| [&b"physical_volumes"[..], b"logical_volumes", b"historical_logical_volumes"].contains(&name);
    match group.sections().find(|(name, _)| !is_known(name)) {
        Some((name, _)) => kept(format!("the volume group has an unknown section '{}'", printed(name))),
        None if group.has("lock_type") && group.text("lock_type")? != b"none" => {
            kept("the volume group is shared by several machines")
        }
        None => Ok(()),
    }
}

/// Checks that a list of flags has no others than those.
fn only(section: &Section, key: &str, known: &[&str], what: &str) -> Found<()> {
    let is_known =
        |value: &&Value| matches!(value, Value::Text(flag) if known.iter().any(|known| known.as_bytes() == *flag));
    match section.values(key)?.iter().find(|value| !is_known(value)) {
        None => Ok(()),
        Some(Value::Text(flag)) => kept(format!("{what} has the flag {}", printed(flag))),
        Some(Value::Number(_)) => wrong(key),
    }
}

impl Member {
    fn parse(section: &Section, extent_size: u64) -> Found<Member> {
        only(section, "status", &["ALLOCATABLE"], "a physical volume")?;
        only(section, "flags", &[], "a physical volume")?;
        let (len, data) = (section.number("dev_size")?, section.number("pe_start")?);
        let (Some(len), Some(data)) = (len.checked_mul(SECTOR), data.checked_mul(SECTOR)) else {
            return wrong("pe_start");
        };
        let count = section.number("pe_count")?;
        let end = count.checked_mul(extent_size).and_then(|bytes| bytes.checked_add(data));
        match end.is_some_and(|end| end <= len) {
            true => Ok(Member { id: printed(section.text("id")?), len, data, count, used: Vec::new() }),
            false => kept("the extents of a physical volume do not fit into it"),
        }
    }

    /// Sorts the extents in use, of which each is used once.
    fn check(&mut self) -> Found<()> {
        self.used.sort_unstable_by_key(|range| range.start);
        let shared = self.used.windows(2).any(|pair| matches!(pair, [a, b] if b.start < a.end));
        match shared || self.used.last().is_some_and(|last| last.end > self.count) {
            true => kept("logical volumes share extents, or have some that do not exist"),
            false => Ok(()),
        }
    }
}

/// Finds the logical volumes, and records in `members` what they use. `names` has the index of each member.
fn logical_volumes(group: &Section, names: &BTreeMap<&[u8], usize>, members: &mut [Member]) -> Found<Vec<Logical>> {
    let all = group.section("logical_volumes")?;
    if all.sections().count() > MOST_VOLUMES {
        return kept("the volume group has too many logical volumes");
    }
    let mut named = BTreeSet::new();
    let mut volumes = Vec::new();
    for (name, section) in all.sections() {
        let mut logical = Logical { name: printed(name), count: 0, segments: Ok(Vec::new()) };
        // Of a snapshot and its origin, without a name of its own. The volume with what differs is a hidden one.
        let mut is_link = false;
        let count = section.number("segment_count")?;
        if count != section.sections().filter(|(name, _)| name.starts_with(b"segment")).count() as u64 {
            return wrong("segment_count");
        }
        for index in 1..=count {
            let segment = section.section(&format!("segment{index}"))?;
            if segment.number("start_extent")? != logical.count {
                return wrong("start_extent");
            }
            let len = segment.number("extent_count")?;
            logical.count = logical.count.checked_add(len).map_or_else(|| wrong("extent_count"), Ok)?;
            let areas = areas(segment, len, names)?;
            areas.iter().for_each(|area| {
                if let Some(member) = members.get_mut(area.member) {
                    member.used.push(area.extents.clone());
                }
            });
            segment.for_each_text(&mut |text| {
                named.insert(text);
            });
            is_link |= segment.text("type")? == b"snapshot";
            match (&mut logical.segments, areas.as_slice()) {
                (Ok(segments), [area]) if area.extents.end - area.extents.start == len => segments.push(area.clone()),
                (Ok(_), _) => logical.segments = kept(reason(segment)?),
                (Err(_), _) => {}
            }
        }
        if !is_link && section.values("status")?.contains(&Value::Text(b"VISIBLE")) {
            volumes.push((name, section, logical));
        }
    }
    for (name, section, logical) in &mut volumes {
        let flags = only(section, "status", &["READ", "WRITE", "VISIBLE", "FIXED_MINOR"], "the logical volume")
            .and_then(|()| only(section, "flags", &["ACTIVATION_SKIP"], "the logical volume"));
        if let Err(reason) = flags {
            logical.segments = Err(reason);
        } else if named.contains(name) {
            // A snapshot, a cache: what is free now may be in use there.
            logical.segments = kept("another logical volume depends on it");
        }
    }
    Ok(volumes.into_iter().map(|(_, _, logical)| logical).collect())
}

/// The extents that a segment of `len` extents has on physical volumes: a run on each stripe. Segments of other types have none: they are made of
/// other logical volumes.
fn areas(segment: &Section, len: u64, names: &BTreeMap<&[u8], usize>) -> Found<Vec<Segment>> {
    if segment.text("type")? != b"striped" {
        let mut is_direct = false;
        segment.for_each_text(&mut |text| is_direct |= names.contains_key(text));
        return match is_direct {
            true => {
                kept(format!("a logical volume of the type {} is on a physical volume", printed(segment.text("type")?)))
            }
            false => Ok(Vec::new()),
        };
    }
    let (stripes, []) = segment.values("stripes")?.as_chunks() else { return wrong("stripes") };
    let count = stripes.len() as u64;
    if count == 0 || count != segment.number("stripe_count")? || len == 0 || !len.is_multiple_of(count) {
        return wrong("stripe_count");
    }
    let mut areas = Vec::new();
    for stripe in stripes {
        let &[Value::Text(name), Value::Number(start)] = stripe else { return wrong("stripes") };
        let Some(end) = start.checked_add(len / count) else { return wrong("stripes") };
        // Else it is a logical volume.
        if let Some(member) = names.get(name) {
            areas.push(Segment { member: *member, extents: start..end });
        }
    }
    Ok(areas)
}

/// Why the contents of a logical volume with this segment are not looked into.
fn reason(segment: &Section) -> Found<String> {
    match segment.text("type")? {
        b"striped" => Ok("the logical volume is striped".into()),
        name => Ok(format!("the logical volume is of the type {}", printed(name))),
    }
}

fn printed(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: &str = r#"vg0 {
        id = "USmnDs" seqno = 5 status = ["RESIZEABLE", "READ", "WRITE"] flags = [] extent_size = 2048
        physical_volumes {
            pv0 { id = "a" status = ["ALLOCATABLE"] flags = [] dev_size = 131072 pe_start = 2048 pe_count = 63 }
            pv1 { id = "b" status = [] dev_size = 131072 pe_start = 2048 pe_count = 62 }
        }
        logical_volumes {
            root { status = ["READ", "WRITE", "VISIBLE"] flags = [] segment_count = 2
                segment1 { start_extent = 0 extent_count = 16 type = "striped" stripe_count = 1 stripes = ["pv0", 0] }
                segment2 { start_extent = 16 extent_count = 4 type = "striped" stripe_count = 1 stripes = ["pv1", 24] } }
            fast { status = ["READ", "VISIBLE"] segment_count = 1
                segment1 { start_extent = 0 extent_count = 8 type = "striped" stripe_count = 2 stripes = ["pv0", 24, "pv1", 0] } }
            pool { status = ["READ", "WRITE", "VISIBLE"] segment_count = 1
                segment1 { start_extent = 0 extent_count = 2 type = "thin-pool" metadata = "pool_tmeta" pool = "pool_tdata" } }
            pool_tdata { status = ["READ", "WRITE"] segment_count = 1
                segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1 stripes = ["pv0", 60] } }
            pool_tmeta { status = ["READ", "WRITE"] segment_count = 1
                segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = ["pv0", 62] } }
        }
    }
    contents = "Text Format Volume Group"
    version = 1
    "#;

    fn parsed(changes: &[(&str, &str)]) -> Found<Group> {
        let mut text = GROUP.to_owned();
        for (from, to) in changes {
            assert!(text.contains(from), "{from}");
            text = text.replacen(from, to, 1);
        }
        Group::parse(text.as_bytes())
    }

    #[test]
    fn extents_of_all_volumes_are_in_use() {
        let group = parsed(&[]).unwrap();
        assert_eq!((group.name.as_str(), group.extent_size), ("vg0", 1 << 20));
        let used: Vec<_> = group.members.iter().map(|member| (member.id.as_str(), member.used.clone())).collect();
        assert_eq!(used, [("a", vec![0..16, 24..28, 60..62, 62..63]), ("b", vec![0..4, 24..28])]);
        assert_eq!((group.members[0].data, group.members[0].len, group.members[0].count), (1 << 20, 64 << 20, 63));
    }

    #[test]
    fn linear_volumes_are_mapped() {
        let group = parsed(&[]).unwrap();
        let told: Vec<_> = group.volumes.iter().map(|volume| (volume.name.as_str(), volume.count)).collect();
        assert_eq!(told, [("fast", 8), ("pool", 2), ("root", 20)]);
        let segment = |member, extents| Segment { member, extents };
        assert_eq!(group.volumes[2].segments, Ok(vec![segment(0, 0..16), segment(1, 24..28)]));
        assert_eq!(group.volumes[0].segments, kept("the logical volume is striped"));
        assert_eq!(group.volumes[1].segments, kept("the logical volume is of the type thin-pool"));
    }

    #[test]
    fn volumes_in_doubt_are_kept_alone() {
        for (from, to, reason) in [
            ("\"READ\", \"WRITE\", \"VISIBLE\"] flags = []", "\"VISIBLE\", \"LOCKED\"]", "flag LOCKED"),
            ("\"READ\", \"WRITE\", \"VISIBLE\"] flags = []", "\"VISIBLE\"] flags = [\"NEW\"]", "flag NEW"),
            ("\"pool_tmeta\"", "\"pool_tmeta\" origin = \"root\"", "depends on it"),
        ] {
            let group = parsed(&[(from, to)]).unwrap();
            let told = group.volumes[2].segments.as_ref().unwrap_err();
            assert!(told.0.contains(reason), "{told:?}");
        }
    }

    #[test]
    fn a_group_in_doubt_is_kept() {
        for (from, to, reason) in [
            ("\"RESIZEABLE\"", "\"EXPORTED\"", "EXPORTED"),
            ("\"RESIZEABLE\"", "\"PARTIAL\"", "PARTIAL"),
            ("flags = []", "flags = [\"X\"]", "flag X"),
            ("seqno = 5", "lock_type = \"sanlock\"", "several machines"),
            ("seqno = 5", "pools { }", "unknown section 'pools'"),
            ("[\"ALLOCATABLE\"] flags = []", "[\"ALLOCATABLE\"] flags = [\"MISSING\"]", "MISSING"),
            ("version = 1", "version = 2", "version"),
            ("contents", "content", "contents"),
            ("extent_size = 2048", "extent_size = 0", "extent_size"),
            ("extent_size = 2048", "extent_size = 18446744073709551615", "extent_size"),
            ("pe_count = 63", "pe_count = 64", "do not fit"),
            ("pe_count = 63", "pe_count = 18446744073709551615", "do not fit"),
            ("pe_count = 63", "pe_count = 62", "do not exist"),
            ("pe_start = 2048", "pe_start = 18446744073709551615", "pe_start"),
            ("[\"pv0\", 60]", "[\"pv0\", 15]", "share extents"),
            ("[\"pv0\", 60]", "[\"pv0\", 18446744073709551615]", "stripes"),
            ("[\"pv0\", 60]", "[\"pv0\"]", "stripes"),
            ("[\"pv0\", 60]", "[]", "stripe_count"),
            ("start_extent = 16", "start_extent = 15", "start_extent"),
            ("segment_count = 2", "segment_count = 1", "segment_count"),
            ("stripe_count = 2", "stripe_count = 1", "stripe_count"),
            ("extent_count = 8", "extent_count = 7", "stripe_count"),
            ("pool = \"pool_tdata\"", "pool = \"pv0\"", "type thin-pool is on a physical volume"),
            ("}\n    contents", "}\n vg1 { }\n    contents", "volume group"),
        ] {
            let told = parsed(&[(from, to)]).unwrap_err();
            assert!(told.0.contains(reason), "{to}: {told:?}");
        }
    }
}
