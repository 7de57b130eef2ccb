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
