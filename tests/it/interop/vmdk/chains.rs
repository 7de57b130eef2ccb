//! Snapshot chains written by this crate and by qemu.

use std::path::Path;

use super::read_text;
use crate::interop::overlays::{changed, write_commands};
use crate::support::pattern::Pattern;
use crate::support::tools::{check_with_qemu_as, needs_qemu, qemu_img, qemu_io_as, read_with_qemu};
use crate::support::{TempDir, assert_same, content, open_beside, open_raw, raw_image, vmdk};
use diskimage::{Image, OpenOptions, ReferencePolicy};

#[test]
fn written_children() {
    needs_qemu!("written VMDK children");
    let dir = TempDir::new();
    let base_guest = Pattern::Islands.make(1 << 20);
    let base_source = dir.file("base.raw", &base_guest);
    let mut seed = 0;
    for base_kind in [
        "monolithicSparse",
        "monolithicSparse,zeroed_grain=on",
        "streamOptimized",
        "twoGbMaxExtentSparse",
        "monolithicFlat",
    ] {
        for base_by_us in [true, false] {
            let base = dir.join("base.vmdk");
            if base_by_us {
                vmdk(&format!("subformat={base_kind}")).convert(&open_raw(&base_source), &base).unwrap();
            } else {
                let options = format!("subformat={base_kind}");
                qemu_img(&[&"convert", &"-O", &"vmdk", &"-o", &options, &base_source, &base]);
            }
            for zeroed_grain in ["on", "off"] {
                seed += 1;
                let what = format!("zeroed_grain={zeroed_grain} over {base_kind}, by us: {base_by_us}, seed {seed}");
                let mut guest = changed(&base_guest, base_guest.len(), seed);
                // With whole zero grains over data.
                guest[128 << 10..(256 << 10) + 512].fill(0);
                let source = dir.file("source.raw", &guest);
                let target = dir.join("overlay.vmdk");
                let report = vmdk(&format!("zeroed_grain={zeroed_grain}"))
                    .backing(open_beside(&base).unwrap(), "base.vmdk")
                    .convert(&open_raw(&source), &target)
                    .unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(report.data_bytes < 1 << 20, "{what}: {report}");
                check_with_qemu_as("vmdk", &target);
                assert_same(&read_with_qemu(&target, &["-f", "vmdk"]), &guest, &what);
                let opened = open_beside(&target).unwrap();
                assert_eq!(opened.layer_count(), 2, "{what}");
                assert_same(&content(&opened).unwrap(), &guest, &what);
            }
        }
    }
}

/// `zeroed_grain=on` marks zeros over data, in version 2; `off` stores them.
#[test]
fn zeroed_grains_are_not_stored() {
    let dir = TempDir::new();
    let base_guest = Pattern::Incompressible.make(1 << 20);
    let base = dir.join("base.vmdk");
    vmdk("").convert(&raw_image(&base_guest), &base).unwrap();
    for (zeroed_grain, stored, version) in [("on", 0, 2), ("off", 1 << 20, 1)] {
        let target = dir.join("overlay.vmdk");
        vmdk(&format!("zeroed_grain={zeroed_grain}"))
            .backing(Image::open(&base).unwrap(), "base.vmdk")
            .convert(&raw_image(&[0; 1 << 20]), &target)
            .unwrap();
        let bytes = std::fs::read(&target).unwrap();
        assert_eq!(bytes[4], version);
        assert_eq!(bytes.len() & !0xf_ffff, stored, "{} bytes", bytes.len());
        assert_same(&content(&open_beside(&target).unwrap()).unwrap(), &[0; 1 << 20], zeroed_grain);
    }
}

#[test]
fn chains_by_qemu() {
    needs_qemu!("VMDK chains by qemu-img");
    for (seed, options) in ["", "zeroed_grain=on", "compat6=on"].into_iter().enumerate() {
        let dir = TempDir::new();
        let size = (3 << 20) + 512;
        let [base, middle, top] = ["base.vmdk", "middle.vmdk", "top.vmdk"].map(|name| dir.join(name));
        let source = dir.file("source.raw", &Pattern::Islands.make(size as usize));
        qemu_img(&[&"convert", &"-O", &"vmdk", &source, &base]);
        for (child, parent) in [(&middle, "base.vmdk"), (&top, "middle.vmdk")] {
            let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"create", &"-q", &"-f", &"vmdk"];
            if !options.is_empty() {
                args.extend([&"-o" as &dyn AsRef<std::ffi::OsStr>, &options]);
            }
            args.extend([&"-b" as &dyn AsRef<std::ffi::OsStr>, &parent, &"-F", &"vmdk", child]);
            qemu_img(&args);
            qemu_io_as("vmdk", child, &write_commands(size, seed as u64 + 70, 12));
        }
        let opened = open_beside(&top).unwrap();
        assert_eq!(opened.layer_count(), 3, "{options}");
        let theirs = read_with_qemu(&top, &["-f", "vmdk"]);
        assert_same(&content(&opened).unwrap(), &theirs, options);

        let denied = Image::open(&top).err().unwrap();
        assert_eq!(denied.kind().as_str(), "reference", "{denied}");
        drop(opened);
        // A write to the parent changes its content ID.
        qemu_io_as("vmdk", &base, &["write -P 77 0 512".into()]);
        let changed = open_beside(&top).err().unwrap();
        assert_eq!(changed.kind().as_str(), "reference", "{changed}");
        let allowed = OpenOptions::new()
            .reference_policy(ReferencePolicy::Beside)
            .allow_changed_backing(true)
            .open(&top)
            .unwrap();
        assert_eq!(allowed.layer_count(), 3);
        content(&allowed).unwrap();
    }
}

/// A parent hint with the path of another machine: the parent is found beside the child.
#[test]
fn parents_are_found_beside_the_child() {
    let base_guest = Pattern::Dense.make(1 << 20);
    let mut guest = base_guest.clone();
    guest[500_000] ^= 1;
    for hint in ["base.vmdk", "C:\\vms\\disk one\\base.vmdk", "/c/base.vmdk", "..\\base.vmdk", "vms/base.vmdk"] {
        for references in [ReferencePolicy::Beside, ReferencePolicy::Any] {
            let dir = TempDir::new();
            let (base, child) = (dir.join("base.vmdk"), dir.join("child.vmdk"));
            vmdk("").convert(&raw_image(&base_guest), &base).unwrap();
            vmdk("").backing(Image::open(&base).unwrap(), hint).convert(&raw_image(&guest), &child).unwrap();
            assert!(read_text(&child).contains(&format!("parentFileNameHint=\"{hint}\"")), "{hint}");
            let opened =
                OpenOptions::new().reference_policy(references).open(&child).unwrap_or_else(|e| panic!("{hint}: {e}"));
            assert_eq!(opened.file_path(1, Default::default()), Some(&*base), "{hint}");
            assert_same(&content(&opened).unwrap(), &guest, hint);
            std::fs::remove_file(&base).unwrap();
            OpenOptions::new().reference_policy(references).open(&child).expect_err("no parent");
        }
    }
}

#[test]
fn the_content_id_of_the_parent_must_match() {
    let dir = TempDir::new();
    let base_guest = Pattern::Dense.make(256 << 10);
    let convert = |cid: &str, name: &str| {
        let path = dir.join(name);
        vmdk(&format!("cid={cid}")).convert(&raw_image(&base_guest), &path).unwrap();
        path
    };
    let base = convert("0000abcd", "base.vmdk");
    let child = dir.join("child.vmdk");
    vmdk("").backing(Image::open(&base).unwrap(), "base.vmdk").convert(&raw_image(&base_guest), &child).unwrap();
    assert_same(&content(&open_beside(&child).unwrap()).unwrap(), &base_guest, "unchanged");
    for cid in ["0000abce", "abcd0000"] {
        convert(cid, "base.vmdk");
        let error = open_beside(&child).err().unwrap();
        assert_eq!(error.kind().as_str(), "reference", "{error}");
        let message = error.to_string();
        assert!(message.contains("0000abcd") && message.contains(cid), "{message}");
        let allowed = OpenOptions::new().reference_policy(ReferencePolicy::Beside).allow_changed_backing(true);
        assert_same(&content(&allowed.open(&child).unwrap()).unwrap(), &base_guest, cid);
    }
    // A parent that is not a VMDK.
    std::fs::write(&base, &base_guest).unwrap();
    assert!(open_beside(&child).is_err());
    refuse_a_link(&dir, &base, &child);
}

fn refuse_a_link(dir: &TempDir, base: &Path, child: &Path) {
    std::fs::remove_file(base).unwrap();
    let elsewhere = TempDir::under(dir.path());
    let real = elsewhere.join("real.vmdk");
    vmdk("cid=0000abcd").convert(&raw_image(&Pattern::Dense.make(256 << 10)), &real).unwrap();
    std::os::unix::fs::symlink(&real, base).unwrap();
    let error = open_beside(child).err().unwrap();
    assert_eq!(error.kind().as_str(), "reference", "{error}");
    OpenOptions::new().reference_policy(ReferencePolicy::Any).open(child).unwrap();
}
