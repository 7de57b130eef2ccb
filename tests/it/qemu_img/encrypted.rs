//! Encrypted images that are changed in place. No two have the same key, so that each program changes a copy of the same image.

use super::*;

const SECRETS: &str =
    "--object secret,id=a,data=hunter0 --object secret,id=b,data=hunter1 --object secret,id=c,data=hunter2";

/// Which of the secrets unlock the image, and the active slots.
fn unlocked(dir: &TempDir, format: &str, name: &str) -> (String, Vec<bool>) {
    let prefix = if format == "luks" { "" } else { "encrypt." };
    let opens = |id: &str| {
        let spec = format!("driver={format},file.filename={name},{prefix}key-secret={id}");
        run("qemu-img", &[], dir, &format!("map {SECRETS} --image-opts {spec}")).status.success()
    };
    let info = run("qemu-img", &[], dir, &format!("info {name}"));
    let slots: Vec<_> =
        String::from_utf8(info.stdout).unwrap().lines().filter(|l| l.contains("active:")).map(str::to_owned).collect();
    (slots.join(""), ["a", "b", "c"].map(opens).to_vec())
}

#[test]
fn key_slots_are_changed_as_by_qemu_img() {
    needs_qemu!("the key slots of qemu-img");
    for (format, prefix, options) in [("luks", "", ""), ("qcow2", "encrypt.", "encrypt.format=luks,")] {
        let dir = TempDir::new();
        let create =
            format!("create -q -f {format} {SECRETS} -o {options}{prefix}key-secret=a,{prefix}iter-time=10 disk 1M");
        assert!(run("qemu-img", &[], &dir, &create).status.success());
        let [theirs, ours] = twins(&dir);
        for (id, change) in [
            ("a", "state=active,new-secret=b,iter-time=10,keyslot=3"),
            ("a", "state=active,new-secret=c,iter-time=10"),
            ("b", "state=active,new-secret=c,iter-time=10,keyslot=0"),
            ("b", "state=active,keyslot=4"),
            ("b", "state=inactive"),
            ("b", "state=inactive,old-secret=a"),
            ("b", "state=inactive,old-secret=a"),
            ("b", "state=inactive,keyslot=1"),
            ("b", "state=inactive,keyslot=3"),
            ("b", "state=inactive,old-secret=b"),
            ("b", "state=inactive,old-secret=none"),
            ("b", "state=active,new-secret=a,iter-time=10,keyslot=3 --force"),
            ("a", "state=active,new-secret=b,iter-time=10"),
            ("a", "state=inactive,keyslot=3 --force"),
        ] {
            let change = change.split(',').map(|item| format!("{prefix}{item}")).collect::<Vec<_>>().join(",");
            let spec = format!("driver={format},file.filename=disk,{prefix}key-secret={id}");
            let line = format!("amend {SECRETS} --image-opts {spec} -o {change}");
            let (a, b) = (run("qemu-img", &[], &theirs, &line), run(IMGCONV, &["qemu-img"], &ours, &line));
            assert_eq!((b.status.code(), text(&b.stderr)), (a.status.code(), text(&a.stderr)), "{line}");
            if a.status.success() {
                assert_eq!(unlocked(&ours, format, "disk"), unlocked(&theirs, format, "disk"), "{line}");
            }
        }
    }
}

/// The guest data of an encrypted image, as qemu-img reads it.
fn plain(dir: &TempDir, spec: &str) -> Vec<u8> {
    let done = run("qemu-img", &[], dir, &format!("convert {SECRETS} --image-opts {spec} -O raw plain"));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    fs::read(dir.join("plain")).unwrap()
}

#[test]
fn encrypted_images_are_changed_in_place_as_by_qemu_img() {
    needs_qemu!("encrypted images of qemu-img");
    let dir = directory();
    for line in [
        "create -q -f qcow2 --object secret,id=a,data=hunter0 -o encrypt.format=luks,encrypt.key-secret=a,encrypt.iter-time=10 -b \
         disk.raw -F raw top.enc",
        "create -q -f luks --object secret,id=a,data=hunter0 -o key-secret=a,iter-time=10 disk.luks 1M",
    ] {
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(run("qemu-img", &[], &dir, &line).status.success());
    }
    let qcow2 = "driver=qcow2,file.filename=top.enc,encrypt.key-secret=a";
    let luks = "driver=luks,file.filename=disk.luks,key-secret=a";
    for (line, spec, defined) in [
        (format!("rebase {SECRETS} -b  --image-opts {qcow2}"), qcow2, u64::MAX),
        (format!("commit {SECRETS} -d --image-opts {qcow2}"), qcow2, u64::MAX),
        (format!("resize {SECRETS} --image-opts {qcow2} 5M"), qcow2, u64::MAX),
        (format!("resize {SECRETS} --image-opts {luks} +300k"), luks, 1 << 20),
        (format!("resize {SECRETS} --shrink --image-opts {luks} 100k"), luks, u64::MAX),
        (format!("check {SECRETS} -r all --image-opts {qcow2}"), qcow2, u64::MAX),
    ] {
        let [theirs, ours] = assert_same(&dir, &line, None);
        let (a, b) = (plain(&theirs, spec), plain(&ours, spec));
        let defined = a.len().min(usize::try_from(defined).unwrap_or(usize::MAX));
        assert_eq!(a.len(), b.len(), "{line}");
        assert!(a[..defined] == b[..defined], "{line}: other contents");
    }
}

/// A chain in which each image has a secret of its own, and a backing file that the overlay does not name.
#[test]
fn described_backing_files_are_used_as_by_qemu_img() {
    needs_qemu!("chains of encrypted images of qemu-img");
    let dir = directory();
    let create = |name: &str, id: &str| {
        format!(
            "create -q -f qcow2 {SECRETS} -o encrypt.format=luks,encrypt.key-secret={id},encrypt.iter-time=10 {name}"
        )
    };
    dir.file("moved.raw", &Pattern::Dense.make(3 << 20));
    for line in [
        format!("{} 3M", create("base", "a")),
        format!("{} -b base -F qcow2", create("top", "b")).replace("top -b base -F qcow2", "-b base -F qcow2 top"),
        format!(
            "convert -n {SECRETS} --target-image-opts disk.raw driver=qcow2,file.filename=base,encrypt.key-secret=a"
        ),
        "convert -O qcow2 moved.raw moved.qcow2".to_owned(),
    ] {
        let done = run("qemu-img", &[], &dir, &line);
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
    }
    let base = "driver=qcow2,file.filename=base,encrypt.key-secret=a";
    let top = "driver=qcow2,file.filename=top,encrypt.key-secret=b";
    let chain = format!("{top},backing.driver=qcow2,backing.file.filename=base,backing.encrypt.key-secret=a");
    let line = format!("commit {SECRETS} --image-opts {chain}");
    let [theirs, ours] = assert_same(&dir, &line, None);
    assert!(plain(&theirs, base) == plain(&ours, base) && plain(&theirs, &chain) == plain(&ours, &chain), "{line}");

    let moved = "driver=qcow2,file.filename=overlay.qcow2,backing.driver=qcow2,backing.file.filename=moved.qcow2";
    for (line, target) in [
        (format!("convert -O raw --image-opts {moved} x"), Some("x")),
        (format!("commit --image-opts {moved}"), Some("moved.qcow2")),
        (format!("map --output=json --image-opts {moved}"), None),
        // Without its secret, an image has properties only.
        (format!("info --output=json --image-opts {top}"), None),
        (format!("info --image-opts {top}"), None),
        (format!("check --image-opts {top}"), None),
        (format!("map --image-opts {top}"), None),
        (format!("resize --image-opts {top} 4M"), None),
    ] {
        assert_same(&dir, &line, target);
    }
}

#[test]
fn a_new_image_has_a_secret_that_qemu_takes() {
    needs_qemu!("secrets of qemu-img");
    let dir = directory();
    dir.file("binary", b"\x3a\xff");
    for line in [
        "create -q -f luks --object secret,id=s,file=binary -o key-secret=s x 1M",
        "create -q -f qcow2 --object secret,id=s,file=binary -o encrypt.format=luks,encrypt.key-secret=s x 1M",
    ] {
        assert_same(&dir, line, None);
    }
}
