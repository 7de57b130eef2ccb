//! Data into existing images.

use super::*;

/// The ranges that `name` has itself, and which of them are zeros, as qemu-img sees them.
fn own_ranges(dir: &TempDir, name: &str) -> Vec<(u64, u64, bool)> {
    let done = run("qemu-img", &[], dir, &format!("map --output=json {name}"));
    let ranges: Vec<Value> = serde_json::from_slice(&done.stdout).unwrap();
    let own = ranges.iter().filter(|range| range["depth"] == 0 && range["present"] == true);
    let mut merged: Vec<(u64, u64, bool)> = Vec::new();
    for range in own {
        let (start, len) = (range["start"].as_u64().unwrap(), range["length"].as_u64().unwrap());
        let zero = range["data"] == false;
        match merged.last_mut() {
            Some((_, end, same)) if *end == start && *same == zero => *end = start + len,
            _ => merged.push((start, start + len, zero)),
        }
    }
    merged
}

#[test]
fn an_overlay_has_all_data_as_from_qemu_img() {
    needs_qemu!("overlays of qemu-img");
    let dir = directory();
    for (format, options, base) in [
        ("qcow2", "", "disk.raw -F raw"),
        ("qcow2", "-o compat=0.10", "disk.raw -F raw"),
        ("qcow2", "-o extended_l2=on", "disk.raw -F raw"),
        ("qed", "", "disk.raw -F raw"),
        ("qcow", "", "disk.raw -F raw"),
        ("vmdk", "", "disk.vmdk -F vmdk"),
    ] {
        let create = format!("create -q -f {format} {options} -b {base} x");
        let create = create.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(run("qemu-img", &[], &dir, &create).status.success(), "{create}");
        let line = format!("convert -n -O {format} disk.qcow2 x");
        let [theirs, ours] = assert_same(&dir, &line, Some("x"));
        if options != "-o extended_l2=on" {
            assert_eq!(own_ranges(&ours, "x"), own_ranges(&theirs, "x"), "{create}");
        }
        // It is independent of the backing file, as after `rebase -u`.
        let options = OpenOptions::new().detect_as_qemu(true).without_backing(true);
        let mut data = vec![9; 3 << 20];
        options.open(ours.join("x")).unwrap().read_exact_at(&mut data, 0).unwrap();
        assert!(data == fs::read(dir.join("disk.raw")).unwrap(), "{create}: other data without the backing file");
    }
}

#[test]
fn an_image_without_a_backing_file_has_zero_clusters_as_from_qemu_img() {
    needs_qemu!("existing images of qemu-img");
    let dir = directory();
    for line in [
        "convert -n -O qcow2 disk.qcow2 existing.qcow2",
        "convert -n --target-is-zero -O qcow2 disk.qcow2 existing.qcow2",
    ] {
        let [theirs, ours] = assert_same(&dir, line, Some("existing.qcow2"));
        assert_eq!(own_ranges(&ours, "existing.qcow2"), own_ranges(&theirs, "existing.qcow2"), "{line}");
    }
}

#[test]
fn an_image_that_is_more_than_its_data_is_changed_in_place_as_by_qemu_img() {
    needs_qemu!("existing images of qemu-img");
    let dir = directory();
    for line in [
        "create -q -f qcow2 -o data_file=data,data_file_raw=on external.qcow2 3M",
        "create -q -f qcow2 marked.qcow2 3M",
        "bitmap --add marked.qcow2 marks",
        "create -q -f qcow2 -b disk.raw -F raw saved.qcow2 4M",
        "snapshot -c before saved.qcow2",
    ] {
        assert!(run("qemu-img", &[], &dir, line).status.success(), "{line}");
    }
    for (line, target) in [
        ("convert -n -O qcow2 disk.qcow2 external.qcow2", "external.qcow2"),
        ("convert -n -O qcow2 disk.qcow2 marked.qcow2", "marked.qcow2"),
        ("convert -n -p -f raw -O qcow2 small.raw saved.qcow2", "saved.qcow2"),
        ("convert -n -S 0 -O qcow2 disk.qcow2 saved.qcow2", "saved.qcow2"),
    ] {
        let [theirs, ours] = assert_same(&dir, line, Some(target));
        for dir in [&theirs, &ours] {
            let checked = run("qemu-img", &[], dir, &format!("check {target}"));
            assert!(checked.status.success(), "{line}: {}", String::from_utf8_lossy(&checked.stderr));
        }
        if target == "external.qcow2" {
            assert!(fs::read(theirs.join("data")).unwrap() == fs::read(ours.join("data")).unwrap(), "{line}");
        }
    }
}

#[test]
fn bitmaps_of_the_active_state_go_with_a_snapshot_as_from_qemu_img() {
    needs_qemu!("bitmaps of qemu-img");
    let dir = directory();
    assert_same(&dir, "convert --bitmaps -l before -O qcow2 disk.qcow2 x", Some("x"));
}

#[test]
fn a_rebase_compresses_as_many_clusters_as_qemu_img() {
    needs_qemu!("compressed clusters of qemu-img");
    let dir = directory();
    let counts = |dir: &TempDir| {
        let done = run("qemu-img", &[], dir, "check --output=json top.qcow2");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let report: Value = serde_json::from_slice(&done.stdout).unwrap();
        ["compressed-clusters", "allocated-clusters", "leaks", "corruptions"].map(|key| report[key].as_u64())
    };
    let [theirs, ours] = assert_same(&dir, "rebase -c -b  top.qcow2", Some("top.qcow2"));
    assert_eq!(counts(&ours), counts(&theirs));
    assert!(counts(&ours)[0].is_some_and(|compressed| compressed > 0));
    // qemu goes on writing to it.
    qemu_io(&ours.join("top.qcow2"), &["write -c 3200k 64k".into(), "write 300k 100k".into()]);
    counts(&ours);
}
