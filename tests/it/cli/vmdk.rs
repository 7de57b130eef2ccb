//! VMDK: info, creation, conversion and overlays.

use std::fs;
use std::process::Command;

use serde_json::Value;

use super::{IMGCONV, assert_json, fail, imgconv, json, qemu_json, succeed};
use crate::support::TempDir;
use crate::support::pattern::Pattern;
use crate::support::tools::{needs_qemu, qemu_img};

const KINDS: [&str; 6] =
    ["monolithicSparse", "streamOptimized", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "vmfs"];

/// Converts our info to that of qemu-img, which has no access and an empty format for sparse extents in one file.
fn to_qemu_info(info: &mut Value) {
    super::round_file_length(info);
    let data = info["format-specific"]["data"].as_object_mut().unwrap();
    assert_eq!(data.remove("adapter-type"), Some("lsilogic".into()));
    assert_eq!(data.remove("hardware-version"), Some("4".into()));
    for extent in data["extents"].as_array_mut().unwrap() {
        assert!(matches!(extent.as_object_mut().unwrap().remove("access"), Some(Value::String(_))));
        assert_eq!(extent["format"], "SPARSE");
        extent["format"] = "".into();
    }
}

#[test]
fn info_matches_qemu_img() {
    needs_qemu!("info of a VMDK");
    let dir = TempDir::new();
    dir.file("source.raw", &Pattern::Islands.make(1 << 20));
    succeed(&dir, &["convert", "source.raw", "base.vmdk"]);
    succeed(&dir, &["convert", "-O", "vmdk", "-c", "source.raw", "stream.vmdk"]);
    succeed(&dir, &["create", "-q", "-B", "base.vmdk", "child.vmdk"]);
    for name in ["base.vmdk", "stream.vmdk", "child.vmdk"] {
        let mut ours = json(&dir, &["info", "--output", "json", name]);
        to_qemu_info(&mut ours);
        let mut theirs = qemu_json(&dir, &["info", "--output=json", name]);
        // qemu-img shows the file name, we show the name in the descriptor.
        let extent = &mut theirs["format-specific"]["data"]["extents"][0];
        assert_eq!(extent["filename"], name);
        extent["filename"] = ours["format-specific"]["data"]["extents"][0]["filename"].clone();
        assert_json(&ours, &theirs, name);
    }
    let args = ["info", "--output=json", "--backing-chain"];
    let mut ours = json(&dir, &[&args[..], &["--references", "beside", "child.vmdk"]].concat());
    ours.as_array_mut().unwrap().iter_mut().for_each(to_qemu_info);
    assert_json(&ours, &qemu_json(&dir, &[&args[..], &["child.vmdk"]].concat()), "chain");
    let text = succeed(&dir, &["info", "child.vmdk"]);
    assert!(text.contains("backing file: base.vmdk\nbacking file format: vmdk\n"), "{text}");
}

#[test]
fn every_subformat_is_created_and_converted() {
    let dir = TempDir::new();
    let guest = Pattern::Tail.make(3 << 20);
    dir.file("source.raw", &guest);
    for kind in KINDS {
        let list = format!("subformat={kind}");
        succeed(&dir, &["create", "-q", "-f", "vmdk", "-o", &list, "empty.vmdk", "5G"]);
        let info = json(&dir, &["info", "--output", "json", "empty.vmdk"]);
        assert_eq!(info["virtual-size"], 5_u64 << 30, "{kind}");
        assert_eq!(info["format-specific"]["data"]["create-type"], kind);
        assert!(succeed(&dir, &["map", "--references", "beside", "empty.vmdk"]).lines().count() <= 4, "{kind}");
        succeed(&dir, &["convert", "-o", &list, "source.raw", "disk.vmdk"]);
        succeed(&dir, &["compare", "-s", "--references", "beside", "source.raw", "disk.vmdk"]);
    }
    let refused = fail(&dir, 1, &["convert", "disk.vmdk", "x.raw"]);
    assert!(refused.contains("disk-flat.vmdk") && refused.contains("--references"), "{refused}");
}

#[test]
fn children_verify_the_content_id_of_the_parent() {
    let dir = TempDir::new();
    let mut guest = Pattern::Dense.make(3 << 20);
    dir.file("old.raw", &guest);
    guest[1 << 20] ^= 1;
    dir.file("new.raw", &guest);
    succeed(&dir, &["convert", "-o", "cid=11111111", "old.raw", "base.vmdk"]);
    succeed(&dir, &["create", "-q", "-f", "vmdk", "-B", "base.vmdk", "empty.vmdk"]);
    succeed(&dir, &["compare", "--references", "beside", "empty.vmdk", "old.raw"]);
    succeed(&dir, &["convert", "-O", "vmdk", "-B", "base.vmdk", "new.raw", "child.vmdk"]);
    succeed(&dir, &["compare", "--references", "beside", "child.vmdk", "new.raw"]);
    assert!(fs::metadata(dir.join("child.vmdk")).unwrap().len() < 1 << 20, "only differing grains are stored");
    succeed(&dir, &["create", "-q", "--references", "beside", "-B", "child.vmdk", "grandchild.vmdk"]);
    succeed(&dir, &["compare", "--references", "beside", "grandchild.vmdk", "new.raw"]);
    if Command::new("qemu-img").arg("--version").output().is_ok() {
        for (image, raw) in [("empty.vmdk", "old.raw"), ("child.vmdk", "new.raw"), ("grandchild.vmdk", "new.raw")] {
            qemu_img(&[&"compare", &"-f", &"vmdk", &"-F", &"raw", &dir.join(image), &dir.join(raw)]);
        }
    }
    for args in [
        &["-o", "subformat=streamOptimized", "-B", "base.vmdk"][..],
        &["-B", "old.raw", "-F", "raw"],
        &["-o", "backing_fmt=vmdk"],
    ] {
        let refused = fail(&dir, 1, &[&["create", "-f", "vmdk"], args, &["x.vmdk", "3M"]].concat());
        assert!(refused.contains("backing_file"), "{args:?}: {refused}");
    }

    // The same data with another content ID.
    succeed(&dir, &["convert", "-o", "cid=22222222", "old.raw", "base.vmdk"]);
    let open = ["convert", "--references", "beside", "child.vmdk", "x.raw"];
    let refused = fail(&dir, 1, &open);
    for word in ["base.vmdk", "11111111", "22222222", "--allow-changed-backing"] {
        assert!(refused.contains(word), "{word}: {refused}");
    }
    fail(&dir, 1, &["info", "--backing-chain", "--references", "beside", "child.vmdk"]);
    fail(&dir, 1, &["create", "--references", "beside", "-B", "child.vmdk", "x.vmdk"]);
    assert!(!dir.join("x.raw").exists() && !dir.join("x.vmdk").exists());
    succeed(&dir, &[&open[..], &["--allow-changed-backing"]].concat());
    succeed(&dir, &["compare", "x.raw", "new.raw"]);
}

#[test]
fn a_disk_may_have_more_files_than_the_soft_limit() {
    let dir = TempDir::new();
    fs::File::create(dir.join("source.raw")).unwrap().set_len(100 << 30).unwrap();
    let run = |limit: &str, args: &str| {
        let script = format!("ulimit {limit} 30 && '{IMGCONV}' {args}");
        Command::new("sh").args(["-c", &script]).current_dir(dir.path()).output().unwrap()
    };
    for args in [
        "convert --no-sync -o subformat=twoGbMaxExtentSparse source.raw split.vmdk",
        "compare --references beside source.raw split.vmdk",
    ] {
        let done = run("-Sn", args);
        assert!(done.status.success(), "{args}: {}", String::from_utf8_lossy(&done.stderr));
    }
    assert_eq!(dir.names().len(), 1 + 1 + 51);
    // The hard limit is an error.
    let done = run("-n", "convert --references beside split.vmdk x.raw");
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&done.stderr).contains("split-s"), "{done:?}");
}

#[test]
fn warnings_are_shown() {
    let dir = TempDir::new();
    dir.file("source.raw", &Pattern::Islands.make(1 << 20));
    succeed(&dir, &["convert", "-o", "subformat=twoGbMaxExtentSparse", "source.raw", "disk.vmdk"]);
    // A single extent has no descriptor.
    let text = succeed(&dir, &["info", "disk-s001.vmdk"]);
    assert!(text.contains("\nwarning: no descriptor"), "{text}");
    let info = json(&dir, &["info", "--output", "json", "disk-s001.vmdk"]);
    assert!(info["warnings"][0].as_str().unwrap().contains("no descriptor"), "{info}");
    assert!(json(&dir, &["info", "--output", "json", "disk.vmdk"]).get("warnings").is_none());
    let done = imgconv(&dir, &["convert", "disk-s001.vmdk", "x.raw"]);
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success() && said.starts_with("imgconv: disk-s001.vmdk: no descriptor"), "{said}");
    succeed(&dir, &["convert", "-q", "disk-s001.vmdk", "x.raw"]);
}
