//! Repairs, which both programs make of copies of the same damaged image.

use std::os::unix::fs::FileExt;

use super::*;

/// Writes the big-endian `value` at byte `at`.
fn put(dir: &TempDir, name: &str, at: u64, value: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(dir.join(name)).unwrap();
    FileExt::write_all_at(&file, value, at).unwrap();
}

fn number(dir: &TempDir, name: &str, at: u64) -> u64 {
    let mut bytes = [0; 8];
    FileExt::read_exact_at(&fs::File::open(dir.join(name)).unwrap(), &mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}

#[test]
fn findings_and_repairs_are_told_as_by_qemu_img() {
    needs_qemu!("repairs of qemu-img");
    for line in [
        "check --output=json x",
        "check -r leaks --output=json x",
        "check -r all --output=json x",
        "check -r all x",
        "check -q -r all x",
    ] {
        let dir = TempDir::new();
        assert!(run("qemu-img", &[], &dir, "create -q -f qcow2 x 64k").status.success());
        qemu_io(&dir.join("x"), &["write 0 64k".into()]);
        // The refcount of the header is 2, and the flag of the L1 entry is missing.
        let refcounts = number(&dir, "x", number(&dir, "x", 48));
        put(&dir, "x", refcounts, &2u16.to_be_bytes());
        let l1 = number(&dir, "x", 40);
        let entry = number(&dir, "x", l1) & !(1 << 63);
        put(&dir, "x", l1, &entry.to_be_bytes());
        let [theirs, ours] = twins(&dir);
        let (a, b) = (run("qemu-img", &[], &theirs, line), run(IMGCONV, &["qemu-img"], &ours, line));
        assert_eq!((b.status.code(), text(&b.stderr)), (a.status.code(), text(&a.stderr)), "{line}");
        // The tables with a repaired flag are written anew, at the end of the file.
        let lines = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).to_lowercase().replace('-', " ");
            text.lines().filter(|line| !line.contains("image end offset")).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(lines(&b.stdout), lines(&a.stdout), "{line}");
        assert!(image(&theirs, "x") == image(&ours, "x"), "{line}: x differs");
        assert_eq!(number(&ours, "x", refcounts), number(&theirs, "x", refcounts), "{line}");
        assert_eq!(number(&ours, "x", refcounts) >> 48, if line.contains("-r") { 1 } else { 2 }, "{line}");
    }
}

#[test]
fn a_repair_clears_unknown_autoclear_bits_as_by_qemu_img() {
    needs_qemu!("repairs of qemu-img");
    const AUTOCLEAR: u64 = 88;
    let dir = TempDir::new();
    assert!(run("qemu-img", &[], &dir, "create -q -f qcow2 x 64k").status.success());
    put(&dir, "x", AUTOCLEAR, &(1u64 << 63).to_be_bytes());
    for (line, left) in [("check x", 1 << 63), ("check -r all x", 0)] {
        let [theirs, ours] = assert_same(&dir, line, None);
        assert_eq!(number(&theirs, "x", AUTOCLEAR), left, "{line}");
        assert_eq!(number(&ours, "x", AUTOCLEAR), left, "{line}");
    }
}

/// Offsets of little-endian fields of a Parallels image: that of the data area, and the BAT.
const DATA_OFF: u64 = 48;
const BAT: u64 = 64;

/// A directory with a Parallels image of two clusters, and its bytes.
fn parallels() -> (TempDir, Vec<u8>) {
    let dir = TempDir::new();
    assert!(run("qemu-img", &[], &dir, "create -q -f parallels x 4M").status.success());
    qemu_io_as("parallels", &dir.join("x"), &["write -P 1 0 1M".into(), "write -P 2 2M 1M".into()]);
    let whole = fs::read(dir.join("x")).unwrap();
    (dir, whole)
}

#[test]
fn parallels_images_are_repaired_as_by_qemu_img() {
    needs_qemu!("repairs of qemu-img");
    let (dir, whole) = parallels();
    let damages: [&dyn Fn(&TempDir); 3] = [
        &|dir| put(dir, "x", DATA_OFF, &[0xff; 4]),
        &|dir| put(dir, "x", whole.len() as u64 + (1 << 20) - 1, &[0]),
        &|_| {},
    ];
    for damage in damages {
        fs::write(dir.join("x"), &whole).unwrap();
        damage(&dir);
        for line in ["check x", "check -r leaks x", "check -r all x", "check -q -r all --output=json x"] {
            let [theirs, ours] = assert_same(&dir, line, None);
            assert!(fs::read(theirs.join("x")).unwrap() == fs::read(ours.join("x")).unwrap(), "{line}: x differs");
        }
    }
}

/// The copies of qemu-img may be where another cluster was before.
#[test]
fn shared_clusters_of_parallels_are_separated_as_by_qemu_img() {
    needs_qemu!("repairs of qemu-img");
    let (dir, whole) = parallels();
    put(&dir, "x", BAT, &whole[BAT as usize + 8..][..4]);
    let [theirs, ours] = twins(&dir);
    let line = "check -r all x";
    let (a, b) = (run("qemu-img", &[], &theirs, line), run(IMGCONV, &["qemu-img"], &ours, line));
    assert_eq!((b.status.code(), text(&b.stderr)), (a.status.code(), text(&a.stderr)));
    let repaired = |output: &Output| text(&output.stdout).lines().take(7).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(repaired(&b), repaired(&a));
    assert!(image(&theirs, "x") == image(&ours, "x"));
    assert!(run("qemu-img", &[], &ours, "check x").status.success());
    let bat = fs::read(ours.join("x")).unwrap();
    assert_ne!(bat[BAT as usize..][..4], bat[BAT as usize + 8..][..4]);
}
