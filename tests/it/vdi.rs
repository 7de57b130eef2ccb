//! Parents of VDI images, which are known by their UUID only: found beside the image, as the reference policy allows.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::support::{TempDir, content, format, options, raw_image};
use diskimage::{Converter, Error, Image, OpenOptions, ReferencePolicy, ReferenceProblem, Result};

const SIZE: usize = 3 << 20;
/// Host offset of the block map in images of this crate.
const MAP: usize = 1 << 20;
const BASE: &str = "6a37380f-5548-4359-90f4-3bcea33d6cdb";
const CHILD: &str = "4d13fb7f-e426-41e3-b8de-0a27c09a4047";
const GRANDCHILD: &str = "fc3d36ea-a175-4582-8c5c-e47d80650cee";

/// An image with a block for each of these bytes, filled with it. Blocks of zeros are free.
fn image(path: &Path, uuid: &str, blocks: [u8; 3]) -> PathBuf {
    let guest: Vec<u8> = blocks.iter().flat_map(|byte| vec![*byte; SIZE / 3]).collect();
    let converter = Converter::new(format("vdi")).options(options(&format!("uuid={uuid}"))).sync(false);
    converter.convert(&raw_image(&guest), path).unwrap();
    path.to_owned()
}

/// Turns an image into an overlay of `parent` with a zero block at the end, as VirtualBox would write it.
fn set_parent(path: &Path, parent: &Path) {
    let (mut file, parent) = (fs::read(path).unwrap(), fs::read(parent).unwrap());
    file[76] = 4;
    file[424..456].copy_from_slice(&parent[392..424]);
    file[MAP + 8..MAP + 12].copy_from_slice(&0xffff_fffe_u32.to_le_bytes());
    fs::write(path, file).unwrap();
}

fn open(path: &Path, references: ReferencePolicy) -> Result<Image> {
    OpenOptions::new().reference_policy(references).open(path)
}

#[track_caller]
fn problem(path: &Path, references: ReferencePolicy) -> ReferenceProblem {
    match open(path, references).err().unwrap().root() {
        Error::Reference { problem, name, .. } => {
            assert!(name.to_text().len() == 42, "{name}");
            problem.clone()
        }
        other => panic!("{other}"),
    }
}

#[track_caller]
fn blocks(path: &Path, references: ReferencePolicy) -> [u8; 3] {
    let bytes = content(&open(path, references).unwrap()).unwrap();
    let blocks = [0, 1, 2].map(|block| bytes[block * SIZE / 3]);
    assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == blocks[at * 3 / SIZE]));
    blocks
}

#[test]
fn the_parent_is_found_under_any_name() {
    let dir = TempDir::new();
    let base = image(&dir.join("the disk.VDI"), BASE, [1, 2, 3]);
    let child = image(&dir.join("child.vdi"), CHILD, [0, 4, 0]);
    set_parent(&child, &base);
    let grandchild = image(&dir.join("x.vdi"), GRANDCHILD, [0, 0, 0]);
    set_parent(&grandchild, &child);
    // Other files that are not the parent.
    dir.file("broken.vdi", b"<<< ");
    dir.file("empty.vdi", b"");
    fs::create_dir(dir.join("directory.vdi")).unwrap();
    symlink("the disk.VDI", dir.join("link.vdi")).unwrap();
    fs::hard_link(&base, dir.join("second name.vdi")).unwrap();
    for references in [ReferencePolicy::Beside, ReferencePolicy::Any] {
        assert_eq!(blocks(&grandchild, references), [1, 4, 0]);
        let chain = OpenOptions::new().reference_policy(references).inspect_chain(&grandchild).unwrap();
        assert_eq!(chain.len(), 3);
    }
    assert_eq!(problem(&grandchild, ReferencePolicy::Deny), ReferenceProblem::NotAllowed);
}

#[test]
fn the_file_name_of_virtualbox_is_tried_first() {
    let dir = TempDir::new();
    let base = image(&dir.join(&format!("{{{BASE}}}.vdi")), BASE, [1, 2, 3]);
    image(&dir.join("another.vdi"), BASE, [7, 7, 7]);
    let child = image(&dir.join("child.vdi"), CHILD, [0, 4, 0]);
    set_parent(&child, &base);
    assert_eq!(blocks(&child, ReferencePolicy::Beside), [1, 4, 0]);
    // Its UUID is checked.
    image(&base, GRANDCHILD, [5, 5, 5]);
    assert!(matches!(problem(&child, ReferencePolicy::Beside), ReferenceProblem::Changed { .. }));
}

#[test]
fn no_or_several_candidates_are_refused_with_the_uuid() {
    let dir = TempDir::new();
    let base = image(&dir.join("base.vdi"), BASE, [1, 2, 3]);
    let child = image(&dir.join("child.vdi"), CHILD, [0, 4, 0]);
    set_parent(&child, &base);
    fs::copy(&base, dir.join("copy.vdi")).unwrap();
    let identity = format!("UUID {BASE}");
    let refused = |expected: fn(diskimage::Name) -> ReferenceProblem| {
        for references in [ReferencePolicy::Beside, ReferencePolicy::Any] {
            assert_eq!(problem(&child, references), expected(identity.as_str().into()));
        }
        let text = open(&child, ReferencePolicy::Beside).err().unwrap().to_string();
        assert!(text.contains(&identity) && text.contains("child.vdi: vdi: the parent"), "{text}");
    };
    refused(ReferenceProblem::SeveralBeside);
    fs::rename(&base, dir.join("base.img")).unwrap();
    assert_eq!(blocks(&child, ReferencePolicy::Beside), [1, 4, 0]);
    fs::remove_file(dir.join("copy.vdi")).unwrap();
    refused(ReferenceProblem::NoneBeside);
    // Symbolic links are not followed.
    symlink("base.img", dir.join("link.vdi")).unwrap();
    refused(ReferenceProblem::NoneBeside);
}

#[test]
fn the_parent_directory_is_searched_only_under_policy_any() {
    let dir = TempDir::new();
    fs::create_dir(dir.join("Snapshots")).unwrap();
    let base = image(&dir.join("base.vdi"), BASE, [1, 2, 3]);
    let child = image(&dir.join("Snapshots/child.vdi"), CHILD, [0, 4, 0]);
    set_parent(&child, &base);
    assert_eq!(blocks(&child, ReferencePolicy::Any), [1, 4, 0]);
    assert!(matches!(problem(&child, ReferencePolicy::Beside), ReferenceProblem::NoneBeside(_)));
}

#[test]
fn an_image_is_not_its_own_parent() {
    let dir = TempDir::new();
    let child = image(&dir.join("child.vdi"), CHILD, [0, 4, 0]);
    set_parent(&child, &child);
    assert!(matches!(problem(&child, ReferencePolicy::Any), ReferenceProblem::NoneBeside(_)));
    let base = image(&dir.join("base.vdi"), BASE, [1, 2, 3]);
    set_parent(&child, &base);
    set_parent(&base, &child);
    let error = open(&child, ReferencePolicy::Any).err().unwrap();
    assert!(matches!(error.root(), Error::Reference { problem: ReferenceProblem::Loop, .. }), "{error}");
}
