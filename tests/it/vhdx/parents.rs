//! Parents of differencing images: identified by GUID, found by name.

use std::fs;
use std::path::Path;

use super::{assert_reads, assert_sound, layer, numbered, over};
use crate::support::pattern::Random;
use crate::support::vhdx::{Block, MIB, Vhdx};
use crate::support::{TempDir, assert_same, content, open_beside, qcow2, raw_image, vhdx};
use diskimage::{Error, Image, OpenOptions, ReferencePolicy, ReferenceProblem};

#[track_caller]
fn problem(path: &Path, references: ReferencePolicy) -> ReferenceProblem {
    let result = OpenOptions::new().reference_policy(references).open(path);
    match result.err().unwrap().root() {
        Error::Reference { problem, .. } => problem.clone(),
        other => panic!("{other}"),
    }
}

fn child_of(parent: Vec<(&'static str, String)>) -> Vhdx {
    let mut child = Vhdx::new(MIB, MIB, 512);
    child.parent = Some(parent);
    child
}

/// An image of 1 MiB filled with `byte`.
fn base_of(path: &Path, number: u64, byte: u8) {
    let mut base = Vhdx::new(MIB, MIB, 512);
    base.data_write_guid = numbered(number).0;
    base.blocks = vec![Block::Full(vec![(0, vec![byte; 1 << 20])])];
    base.write(path);
}

#[test]
fn the_parent_is_identified_by_its_guid() {
    let dir = TempDir::new();
    let (base, child) = (dir.join("base.vhdx"), dir.join("child.vhdx"));
    base_of(&base, 1, 7);
    let name = || ("relative_path", ".\\base.vhdx".to_owned());
    let linkage = |key, number| (key, format!("{{{}}}", numbered(number).1));
    let upper = ("parent_linkage", format!("{{{}}}", numbered(1).1.to_uppercase()));
    for (parent, agrees) in [
        (vec![linkage("parent_linkage", 1), name()], true),
        (vec![upper, name()], true),
        (vec![linkage("parent_linkage", 2), name()], false),
        (vec![linkage("parent_linkage", 2), linkage("parent_linkage2", 1), name()], true),
        (vec![linkage("parent_linkage", 2), linkage("parent_linkage2", 3), name()], false),
        (vec![name(), linkage("parent_linkage", 1), ("parent_linkage2", format!("{{{}}}", uuid::Uuid::nil()))], true),
    ] {
        child_of(parent.clone()).write(&child);
        if agrees {
            assert_reads(&child, &vec![7; 1 << 20], &format!("{parent:?}"));
            continue;
        }
        let ReferenceProblem::Changed { expected, found } = problem(&child, ReferencePolicy::Beside) else {
            panic!("{parent:?}");
        };
        assert!(found.to_text().contains(&numbered(1).1), "{found}");
        assert!(expected.to_text().contains(&numbered(2).1), "{expected}");
        let allowed =
            OpenOptions::new().reference_policy(ReferencePolicy::Beside).allow_changed_backing(true).open(&child);
        assert_same(&content(&allowed.unwrap()).unwrap(), &[7; 1 << 20], "allowed");
    }
    // The parent must be a VHDX.
    crate::support::vpc("").create(MIB, &base).unwrap();
    child_of(vec![linkage("parent_linkage", 1), name()]).write(&child);
    assert!(open_beside(&child).is_err());
    fs::remove_file(&base).unwrap();
    assert_eq!(open_beside(&child).err().unwrap().kind().as_str(), "io");
}

#[test]
fn names_of_the_parent() {
    let dir = TempDir::new();
    let child = dir.join("child.vhdx");
    fs::create_dir(dir.join("sub")).unwrap();
    base_of(&dir.join("base.vhdx"), 1, 1);
    base_of(&dir.join("sub/base.vhdx"), 1, 2);
    let linkage = || ("parent_linkage", format!("{{{}}}", numbered(1).1));
    let absolute = dir.join("sub/base.vhdx").to_str().unwrap().to_owned();
    let volume = "\\\\?\\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\\disks\\base.vhdx".to_owned();
    let refused = || Err(ReferenceProblem::NotBeside);
    for (names, beside, any) in [
        (vec![("relative_path", ".\\base.vhdx".to_owned())], Ok(1), 1),
        (vec![("relative_path", "base.vhdx".to_owned())], Ok(1), 1),
        // Files elsewhere are searched in the directory of the image.
        (vec![("relative_path", ".\\sub\\base.vhdx".to_owned())], Ok(1), 2),
        (vec![("relative_path", "..\\gone\\base.vhdx".to_owned())], Ok(1), 1),
        (vec![("absolute_win32_path", "C:\\disks\\base.vhdx".to_owned())], Ok(1), 1),
        (vec![("absolute_win32_path", absolute.clone())], Ok(1), 2),
        (vec![("volume_path", volume.clone())], Ok(1), 1),
        (vec![("volume_path", volume), ("relative_path", "sub\\base.vhdx".to_owned())], Ok(1), 2),
        (vec![("relative_path", "sub\\other.vhdx".to_owned())], refused(), 0),
    ] {
        child_of([vec![linkage()], names.clone()].concat()).write(&child);
        assert_eq!(problem(&child, ReferencePolicy::Deny), ReferenceProblem::NotAllowed, "{names:?}");
        let read = |references| {
            let image = OpenOptions::new().reference_policy(references).open(&child)?;
            content(&image).map(|bytes| bytes[0])
        };
        match beside {
            Ok(byte) => {
                assert_eq!(read(ReferencePolicy::Beside).unwrap(), byte, "{names:?}");
                assert_eq!(read(ReferencePolicy::Any).unwrap(), any, "{names:?}");
            }
            Err(_) => {
                read(ReferencePolicy::Beside).unwrap_err();
                read(ReferencePolicy::Any).unwrap_err();
            }
        }
        // Inspecting the image opens no other file.
        let info = OpenOptions::new().inspect(&child).unwrap().info;
        assert!(info.backing.unwrap().name.to_text().ends_with(".vhdx"));
    }
}

/// Differencing images contain only the differences, and refer to the parent as Windows does.
#[test]
fn differencing_images() {
    let dir = TempDir::new();
    for (sector_size, list) in [(512, ""), (512, "block_size=1M"), (4096, ""), (4096, "block_size=1M")] {
        let mut random = Random::new(sector_size);
        let size = 5 * MIB + 3 * 4096;
        let base = layer(&mut random, size, 2 * MIB, sector_size, false);
        let base_path = dir.join("base.vhdx");
        base.write(&base_path);
        let mut guest = over(Vec::new(), &base);
        let target = dir.join("child.vhdx");
        let write = |guest: &[u8]| {
            let converter = vhdx(list).backing(Image::open(&base_path).unwrap(), "base.vhdx");
            converter.convert(&raw_image(guest), &target).unwrap()
        };
        assert_eq!(write(&guest).data_bytes, 0, "nothing differs");
        assert_reads(&target, &guest, "nothing differs");
        // One byte, some zeros, and a part of each of two blocks.
        guest[3 * 4096] ^= 1;
        guest[(1 << 20) + 4096..][..8192].fill(0);
        guest[(4 << 20) - 9000..][..20_000].copy_from_slice(&random.bytes(20_000));
        let report = write(&guest);
        assert!(report.data_bytes <= 4 * 4096 + 20_000 + 2 * 4096, "{report}");
        assert_reads(&target, &guest, &format!("{list}, sectors of {sector_size}"));
        assert_sound(&target, list);
        let info = OpenOptions::new().inspect(&target).unwrap().info;
        assert_eq!(info.backing.unwrap().name.to_text(), "base.vhdx");
        let own = |info: &diskimage::ImageInfo| info.identities.clone();
        assert_ne!(own(&OpenOptions::new().inspect(&base_path).unwrap().info), info.identities);
    }
}

#[test]
fn invalid_overlays_are_refused() {
    let dir = TempDir::new();
    let base = dir.join("base.vhdx");
    base_of(&base, 1, 1);
    let other = dir.join("other.qcow2");
    qcow2("").create(MIB, &other).unwrap();
    for (list, path, size, word) in [
        ("", &base, 2 * MIB, "backing_file"),
        ("", &other, MIB, "backing_file"),
        ("subformat=fixed", &base, MIB, "backing_file"),
        ("logical_sector_size=4096", &base, MIB, "logical_sector_size"),
    ] {
        let name = path.file_name().unwrap().to_str().unwrap();
        let converter = vhdx(list).backing(Image::open(path).unwrap(), name);
        let error = converter.create(size, dir.join("child.vhdx")).unwrap_err();
        assert!(matches!(error.root(), Error::Option { name, .. } if name == word), "{list}: {error}");
    }
    assert_eq!(vhdx("").create(0, dir.join("child.vhdx")).unwrap_err().kind().as_str(), "unsupported");
    assert_eq!(dir.names(), ["base.vhdx", "other.qcow2"]);
}
