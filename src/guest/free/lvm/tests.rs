use super::*;

const MIB: u64 = 1 << 20;

/// The text of a group with a volume of four extents on each of its physical volumes.
fn text(ids: &[&str]) -> Vec<u8> {
    let physical = |(index, id): (usize, &&str)| {
        format!("pv{index} {{ id = \"{id}\" dev_size = 32768 pe_start = 2048 pe_count = 15 }}\n")
    };
    let logical = |index| {
        format!(
            "lv{index} {{ status = [\"VISIBLE\"] segment_count = 1 segment1 {{ start_extent = 0 extent_count = 4 type = \"striped\" \
             stripe_count = 1 stripes = [\"pv{index}\", {index}] }} }}\n"
        )
    };
    let physical: String = ids.iter().enumerate().map(physical).collect();
    let logical: String = (0..ids.len()).map(logical).collect();
    let text = format!(
        "vg {{ extent_size = 2048 physical_volumes {{ {physical} }} logical_volumes {{ {logical} }} }}\n\
         contents = \"Text Format Volume Group\" version = 1\n"
    );
    text.into_bytes()
}

fn part(start: u64, id: &str, text: Option<&[u8]>) -> Part {
    let areas = std::iter::once(4096..MIB).collect();
    let physical = Physical { id: id.into(), len: 16 * MIB, data: MIB, areas, text: text.map(<[u8]>::to_vec) };
    Part { range: start..start + 16 * MIB, physical, doubt: None }
}

/// Whatever the volumes are kept for, all are.
fn reason(lvm: &Lvm) -> &str {
    let all = lvm.parts.iter().map(|part| part.free.as_ref().unwrap_err());
    let all: Vec<_> = all.chain(lvm.volumes.iter().map(|volume| volume.pieces.as_ref().unwrap_err())).collect();
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{all:?}");
    &all[0].0
}

#[test]
fn a_group_on_two_partitions() {
    let text = text(&["a", "b"]);
    for own in [Some(&text[..]), None] {
        let lvm = examine(&[part(0, "a", Some(&text)), part(32 * MIB, "b", own)]);
        let free: Vec<_> = lvm.parts.iter().map(|part| part.free.clone().unwrap()).collect();
        let at = |range: Range<u64>| range.start * MIB..range.end * MIB;
        assert_eq!(free, [vec![at(5..16)], vec![at(33..34), at(38..48)]]);
        assert_eq!(lvm.parts[1].group, Some(("vg".into(), 15 * MIB, 11 * MIB)));
        let told: Vec<_> = lvm.volumes.iter().map(|v| (v.name.as_str(), v.len, v.pieces.clone().unwrap())).collect();
        assert_eq!(told, [("vg/lv0", 4 * MIB, vec![at(1..5)]), ("vg/lv1", 4 * MIB, vec![at(34..38)])]);
    }
}

#[test]
fn what_is_not_all_here_is_kept() {
    let (one, both) = (text(&["a"]), text(&["a", "b"]));
    let mut other = both.clone();
    other.push(b'\n');
    let (first, second) = (|| part(0, "a", Some(&both)), || part(16 * MIB, "b", Some(&both)));
    let small = |change: &dyn Fn(&mut Part)| {
        let mut part = part(0, "a", Some(&one));
        change(&mut part);
        vec![part]
    };
    for (parts, expected) in [
        (vec![first()], "is on another disk"),
        (vec![first(), second(), part(32 * MIB, "b", None)], "has copies"),
        (vec![first(), part(16 * MIB, "b", Some(&other))], "contradict each other"),
        (vec![part(0, "a", Some(b"vg {"))], "not valid"),
        (vec![part(0, "a", None)], "no LVM metadata"),
        (small(&|part| part.physical.data += 512), "contradicts the metadata"),
        (small(&|part| part.physical.len -= 512), "contradicts the metadata"),
        (small(&|part| part.range.end -= 512), "contradicts the metadata"),
        (small(&|part| part.physical.areas.push(16 * MIB - 512..17 * MIB)), "contradicts the metadata"),
        (small(&|part| part.physical.areas[0].end += 512), "contradicts the metadata"),
        (small(&|part| part.doubt = Some(Kept("in doubt".into()))), "in doubt"),
    ] {
        let lvm = examine(&parts);
        assert!(reason(&lvm).contains(expected), "{expected}: {lvm:?}");
    }
    assert!(examine(&small(&|_| ())).parts[0].free.is_ok());
}

/// The text of the first one was left behind: the group got another physical volume, and its volumes were moved since.
#[test]
fn volumes_of_an_old_text_are_kept() {
    let (old, new) = (text(&["a"]), text(&["a", "b"]));
    let (first, second) = (|| part(0, "a", Some(&old)), || part(16 * MIB, "b", Some(&new)));
    for parts in [[first(), second()], [second(), first()]] {
        let lvm = examine(&parts);
        assert!(reason(&lvm).contains("contradict each other"), "{lvm:?}");
        assert_eq!(lvm.volumes.len(), 3);
    }
    // One that cannot be read may be of the same group.
    let lvm = examine(&[first(), part(16 * MIB, "b", Some(b"vg {"))]);
    assert!(reason(&lvm).contains("not valid") && lvm.volumes.len() == 1, "{lvm:?}");
    // A text that does not name the physical volume that has it.
    let lvm = examine(&[first(), part(16 * MIB, "b", Some(&old))]);
    assert!(lvm.parts[0].free.is_err() && lvm.volumes[0].pieces.is_err(), "{lvm:?}");
}

#[test]
fn groups_are_independent() {
    let (a, b) = (text(&["a"]), text(&["b", "c"]));
    let lvm = examine(&[part(0, "b", Some(&b)), part(16 * MIB, "a", Some(&a)), part(32 * MIB, "x", None)]);
    let kept: Vec<_> = lvm.parts.iter().map(|part| part.free.is_err()).collect();
    assert_eq!(kept, [true, false, true]);
    let kept: Vec<_> = lvm.volumes.iter().map(|volume| volume.pieces.is_err()).collect();
    assert_eq!(kept, [true, true, false]);
}
