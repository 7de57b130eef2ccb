//! What a check of qcow2 or Parallels finds, in the words of qemu-img, which are made from those of the library.

use diskimage::{CheckKind, CheckMessage, CheckReport, RepairReport};

use crate::output;

/// The lines for all findings: entries, refcounts, then flags that do not go with them.
pub fn found(report: &CheckReport, cluster_size: Option<u32>) -> Vec<String> {
    let findings = findings(&report.messages, cluster_size);
    let mut lines: Vec<_> = findings.iter().filter_map(Finding::other).collect();
    lines.extend(findings.iter().filter_map(|finding| finding.count(None)));
    lines.extend(findings.iter().filter_map(|finding| finding.flag("ERROR", &findings)));
    lines
}

/// The lines for what was repaired: what was found before, and is not found now. A wrong refcount is told twice.
pub fn repaired(report: &RepairReport, cluster_size: Option<u32>) -> Vec<String> {
    let is_left = |message| report.after.messages.contains(message);
    // What is not wrong is told with what is left.
    let gone = report.before.messages.iter().filter(|message| !is_left(message) && message.kind() != CheckKind::Note);
    let findings = findings(gone, cluster_size);
    let mut lines: Vec<_> = findings.iter().filter_map(|finding| finding.count(None)).collect();
    lines.extend(findings.iter().filter_map(|finding| finding.count(Some("Repairing"))));
    lines.extend(findings.iter().filter_map(Finding::repaired_entry));
    // A flag that was right for the right refcount is not told.
    lines.extend(findings.iter().filter_map(|finding| finding.flag("Repairing", &[])));
    lines
}

/// A message of the library.
enum Finding<'a> {
    Count {
        severity: &'a str,
        cluster: u64,
        refcount: &'a str,
        expected: &'a str,
    },
    /// The flag of an entry, of the cluster `cluster`. It is set unless the refcount is 1.
    Flag {
        entry: String,
        cluster: u64,
        is_set: bool,
        message: &'a str,
    },
    /// An entry of the BAT of a Parallels image, or what is outside of all of them.
    Entry(String),
    Other(String),
}

fn findings<'a>(messages: impl IntoIterator<Item = &'a CheckMessage>, cluster_size: Option<u32>) -> Vec<Finding<'a>> {
    let parse = |message: &'a CheckMessage| {
        let known = wrong_count(message, cluster_size)
            .or_else(|| wrong_entry(message, cluster_size))
            .or_else(|| of_parallels(message, cluster_size).map(Finding::Entry));
        known.unwrap_or_else(|| Finding::Other(output::printable(message)))
    };
    messages.into_iter().map(parse).collect()
}

impl Finding<'_> {
    fn count(&self, instead: Option<&str>) -> Option<String> {
        let Finding::Count { severity, cluster, refcount, expected } = self else { return None };
        let severity = instead.unwrap_or(severity);
        Some(format!("{severity} cluster {cluster} refcount={refcount} reference={expected}"))
    }

    /// The line for a flag. The refcount, if it is not 1, is that of another finding.
    fn flag(&self, severity: &str, others: &[Finding<'_>]) -> Option<String> {
        let Finding::Flag { entry, cluster, is_set, message } = self else { return None };
        let refcount = match is_set {
            false => Some("1"),
            true => others.iter().find_map(|other| match other {
                Finding::Count { cluster: other, refcount, .. } if other == cluster => Some(*refcount),
                _ => None,
            }),
        };
        match refcount {
            Some(refcount) => Some(format!("{severity} OFLAG_COPIED {entry} refcount={refcount}")),
            None if others.is_empty() => None,
            None => Some(output::printable(message)),
        }
    }

    fn other(&self) -> Option<String> {
        match self {
            Finding::Other(line) => Some(line.clone()),
            Finding::Entry(what) => Some(format!("ERROR {what}")),
            Finding::Count { .. } | Finding::Flag { .. } => None,
        }
    }

    fn repaired_entry(&self) -> Option<String> {
        if let Finding::Entry(what) = self { Some(format!("Repairing {what}")) } else { None }
    }
}

/// The report of a Parallels image without the clusters between others, which qemu-img does not look for.
pub fn without_leaks_between(mut report: CheckReport) -> CheckReport {
    let between = |message: &CheckMessage| leaks(message, "between others");
    report.leaks = report.leaks.saturating_sub(report.messages.iter().filter_map(between).sum());
    report.messages.retain(|message| between(message).is_none());
    report
}

/// The number of leaked clusters at a place in a Parallels image.
fn leaks(message: &str, place: &str) -> Option<u64> {
    let count = message.strip_prefix("Leaked: ")?.strip_suffix(" are not referenced")?.strip_suffix(place)?;
    count.strip_suffix(" clusters ")?.parse().ok()
}

/// A finding in a Parallels image.
fn of_parallels(message: &str, cluster_size: Option<u32>) -> Option<String> {
    /// Host offset of the BAT, and bytes of its entries.
    const BAT: (u64, u64) = (64, 4);
    if message.starts_with("ERROR: the data area at ") {
        return Some("data_off field has incorrect value".to_owned());
    }
    if let Some(count) = leaks(message, "after all others") {
        let bytes = count.checked_mul(cluster_size?.into())?;
        return Some(format!("space leaked at the end of the image {bytes}"));
    }
    if let Some(shared) = message.strip_prefix("ERROR: cluster ") {
        let (index, _) = shared.strip_suffix(" overlaps another cluster")?.split_once(" at host offset ")?;
        return Some(format!("duplicate offset in BAT entry {index}"));
    }
    let (at, _) = message
        .strip_prefix("ERROR: parallels: corrupt image at file offset 0x")?
        .split_once(": BAT entry is out of bounds")?;
    let index = u64::from_str_radix(at, 16).ok()?.checked_sub(BAT.0)? / BAT.1;
    Some(format!("cluster {index} is outside image"))
}

/// A wrong refcount.
fn wrong_count(message: &str, cluster_size: Option<u32>) -> Option<Finding<'_>> {
    let (severity, rest) = message.split_once(": cluster at host offset 0x")?;
    let (offset, rest) = rest.split_once(": refcount is ")?;
    let (refcount, expected) = rest.split_once(", expected ")?;
    let cluster = u64::from_str_radix(offset, 16).ok()? / u64::from(cluster_size?);
    Some(Finding::Count { severity, cluster, refcount, expected })
}

/// A wrong entry: of an L2 table, or a flag of the L1 table.
fn wrong_entry(message: &str, cluster_size: Option<u32>) -> Option<Finding<'_>> {
    // The offset in an entry, without the flags.
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    let (_, rest) = message.strip_prefix("ERROR: qcow2: corrupt image at file offset 0x")?.split_once(": ")?;
    let (name, rest) = rest.split_once(" is ")?;
    let l1_index = name.strip_prefix("L1 entry ");
    if name != "L2 entry" && l1_index.is_none() {
        return None;
    }
    if let (None, Some(rest)) = (l1_index, rest.strip_prefix("out of bounds: ")) {
        let (len, rest) = rest.split_once(" bytes at ")?;
        let (offset, _) = rest.split_once(", ")?;
        let problem = "counting reference for region exceeding the end of the file by one cluster or more";
        let line = format!("ERROR: {problem}: offset {offset} size {:#x}", len.parse::<u64>().ok()?);
        return Some(Finding::Other(line));
    }
    let (entry, rest) = rest.strip_prefix("0x")?.split_once(", ")?;
    let offset = u64::from_str_radix(entry, 16).ok()? & OFFSET;
    let offset_of_data = l1_index.is_none().then_some(offset);
    if let (Some(offset), true) = (offset_of_data, rest.starts_with("not a multiple of")) {
        let line = format!("ERROR offset={offset:x}: Data cluster is not properly aligned; L2 entry corrupted.");
        return Some(Finding::Other(line));
    }
    let is_set = match rest.strip_prefix("but must have bit 63 ")? {
        "set, as the refcount is 1" => false,
        "clear, as the refcount is not 1" => true,
        _ => return None,
    };
    let entry = match l1_index {
        Some(index) => format!("L2 cluster: l1_index={index} l1_entry={entry}"),
        None => format!("data cluster: l2_entry={entry}"),
    };
    Some(Finding::Flag { entry, cluster: offset / u64::from(cluster_size?), is_set, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: &str = "qcow2: corrupt image at file offset 0x40000: L2 entry is";

    fn report(messages: &[(CheckKind, String)]) -> CheckReport {
        let mut report = CheckReport::default();
        messages.iter().for_each(|(kind, words)| report.message(*kind, || words.clone()));
        report
    }

    /// Expected: qemu-img 10.
    #[test]
    fn findings_are_told_as_by_qemu_img() {
        let error = |words: String| (CheckKind::Error, words);
        let before = [
            error(format!("{AT} 0x8000000000060000, but must have bit 63 clear, as the refcount is not 1")),
            error(format!("{AT} 0x8000000000050200, not a multiple of 65536")),
            (CheckKind::Leak, "cluster at host offset 0x60000: refcount is 2, expected 1".to_owned()),
            error(format!("{AT} 0x50000, but must have bit 63 set, as the refcount is 1")),
            error(AT.replace("L2 entry", "L1 entry 3") + " 0x40000, but must have bit 63 set, as the refcount is 1"),
            error(format!("{AT} out of bounds: 65536 bytes at 0x10000000, file length 0xa0000")),
            error("qcow2: corrupt image".to_owned()),
        ];
        let misaligned = "ERROR offset=50200: Data cluster is not properly aligned; L2 entry corrupted.";
        let outside = "ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset 0x10000000 size \
                       0x10000";
        assert_eq!(
            found(&report(&before), Some(65536)),
            [
                misaligned,
                outside,
                "ERROR: qcow2: corrupt image",
                "Leaked cluster 6 refcount=2 reference=1",
                "ERROR OFLAG_COPIED data cluster: l2_entry=8000000000060000 refcount=2",
                "ERROR OFLAG_COPIED data cluster: l2_entry=50000 refcount=1",
                "ERROR OFLAG_COPIED L2 cluster: l1_index=3 l1_entry=40000 refcount=1",
            ]
        );
        let mut repairs = RepairReport::default();
        (repairs.before, repairs.after) = (report(&before), report(&[before[1].clone()]));
        assert_eq!(
            repaired(&repairs, Some(65536)),
            [
                "Leaked cluster 6 refcount=2 reference=1",
                "Repairing cluster 6 refcount=2 reference=1",
                "Repairing OFLAG_COPIED data cluster: l2_entry=50000 refcount=1",
                "Repairing OFLAG_COPIED L2 cluster: l1_index=3 l1_entry=40000 refcount=1",
            ]
        );
    }
}
