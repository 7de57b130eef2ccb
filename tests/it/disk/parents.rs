//! Other parents of disks whose formats know them by name and identity.

use std::path::Path;
use std::sync::Arc;

use diskimage::io::Storage;
use diskimage::{Converter, Format, Image, Name, OpenOptions, RebaseTo, ReferencePolicy};

use super::recorder::Recorder;
use super::starts::{self, content};
use crate::support::{TempDir, options, raw_image};

const NAME: &str = "another directory/with-a-much-longer-name-than-before.img";

#[test]
fn a_power_cut_leaves_the_old_or_the_new_parent() {
    let starts = starts::all().into_iter().filter(|start| start.backing.is_some());
    for start in starts.filter(|start| start.name.starts_with("vhd") || start.name.starts_with("vmdk")) {
        for names in [&[NAME, "s"][..], &["s", NAME]] {
            let file = Arc::new(Recorder::new(start.file.clone()));
            let disk = start.options().open_disk_in(file.clone() as Arc<dyn Storage>).unwrap();
            for name in names {
                disk.set_backing(Some(&Name::from(*name)), None).unwrap();
            }
            disk.close().unwrap();
            let mut found = std::collections::BTreeSet::new();
            file.replay(1, |events, cut, file| {
                let context = || format!("{}, {events} events, {cut:?}", start.name);
                let source = Arc::new(diskimage::io::MemFile::from(file.clone()));
                let info = start.options().inspect_source(source).unwrap().info;
                found.insert(info.backing.unwrap_or_else(|| panic!("{}", context())).name.to_string());
                assert!(start.read(file) == start.content, "{}", context());
            });
            let [last, other] = [names[1], names[0]].map(|name| found.iter().any(|found| found.ends_with(name)));
            assert!(found.len() == 3 && last && other, "{}: {found:?}", start.name);
        }
    }
}

/// All data is copied before; after a power cut, an image with a parent or without one reads the same.
#[test]
fn a_power_cut_while_the_parent_goes_is_not_seen() {
    let starts = starts::all().into_iter().filter(|start| start.backing.is_some());
    for start in starts.filter(|start| start.name.starts_with("vhd") || start.name.starts_with("vmdk")) {
        let file = Arc::new(Recorder::new(start.file.clone()));
        let disk = start.options().open_disk_in(file.clone() as Arc<dyn Storage>).unwrap();
        let mut content = start.content.clone();
        disk.write_all_at(&[3; 5000], 100_000).unwrap();
        content[100_000..105_000].fill(3);
        disk.flush().unwrap();
        let written = file.count();
        disk.rebase(None, &|_, _| ()).unwrap();
        disk.write_all_at(&[4; 5000], 200_000).unwrap();
        disk.close().unwrap();
        let mut found = std::collections::BTreeSet::new();
        file.replay(2, |events, cut, file| {
            let context = || format!("{}, {events} events, {cut:?}", start.name);
            let source = Arc::new(diskimage::io::MemFile::from(file.clone()));
            let has_parent = start.options().inspect_source(source.clone()).unwrap().info.backing.is_some();
            found.insert(has_parent);
            // The last write is there or not.
            let now = start.read(file);
            let is_right = |at: usize| now[at] == content[at] || (200_000..205_000).contains(&at) && now[at] == 4;
            assert!(events < written || (0..content.len()).all(is_right), "{}", context());
            let report = OpenOptions::new().check_source(source).unwrap();
            assert_eq!((report.corruptions, report.check_errors), (0, 0), "{}: {:?}", context(), report.messages);
        });
        assert_eq!(found.len(), 2, "{}", start.name);
        // Alone, it has everything.
        content[200_000..205_000].fill(4);
        let alone = OpenOptions::new().open_source(Arc::new(diskimage::io::MemFile::from(file.to_vec()))).unwrap();
        assert!(alone.layers().count() == 1 && read(&alone) == content, "{}", start.name);
    }
}

/// An image of `bytes` at a path, over another image if there is one.
fn make(format: Format, path: &Path, bytes: &[u8], over: Option<&str>) {
    let converter = Converter::new(format).options(options(if format == Format::VHDX { "block_size=1M" } else { "" }));
    match over {
        None => _ = converter.convert(&raw_image(bytes), path).unwrap(),
        Some(name) => {
            let base = beside().open(path.with_file_name(name)).unwrap();
            converter.backing(base, name).create(bytes.len() as u64, path).unwrap();
        }
    }
}

fn beside() -> OpenOptions {
    OpenOptions::new().reference_policy(ReferencePolicy::Beside)
}

fn read(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    image.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// The new parent has another identity, and other content in parts.
#[test]
fn a_disk_keeps_its_content_with_another_parent() {
    for (format, extension) in [(Format::VHDX, "vhdx"), (Format::VHD, "vhd"), (Format::VMDK, "vmdk")] {
        let dir = TempDir::new();
        let [old, new, top] = ["old", "new", "top"].map(|name| format!("{name}.{extension}"));
        let mut bytes = content(5);
        make(format, &dir.join(&old), &bytes, None);
        make(format, &dir.join(&top), &bytes, Some(&old));
        let disk = beside().open_disk(dir.join(&top)).unwrap();
        disk.write_all_at(&[3; 5000], 100_000).unwrap();
        let mut other = bytes.clone();
        other[200_000..300_000].fill(9);
        make(format, &dir.join(&new), &other, None);
        let image = beside().open(dir.join(&new)).unwrap();
        let name = Name::from(new.as_str());
        disk.rebase(Some(RebaseTo { image: &image, name: &name }), &|_, _| ()).unwrap();
        disk.close().unwrap();
        bytes[100_000..105_000].fill(3);
        std::fs::remove_file(dir.join(&old)).unwrap();
        let image = beside().open(dir.join(&top)).unwrap();
        assert!(read(&image) == bytes, "{format}");
        assert_eq!(image.layers().count(), 2, "{format}");
        drop(image);
        let with_qemu = crate::support::tools::find("a rebased image", &["qemu-img"]).is_some();
        let qemu_name = if format == Format::VHD { "vpc" } else { extension };
        if format == Format::VMDK && with_qemu {
            let found = crate::support::tools::read_with_qemu(&dir.join(&top), &["-f", "vmdk"]);
            assert!(found == bytes, "qemu reads something else");
        }
        // Without a parent.
        let disk = beside().open_disk(dir.join(&top)).unwrap();
        disk.rebase(None, &|_, _| ()).unwrap();
        disk.close().unwrap();
        std::fs::remove_file(dir.join(&new)).unwrap();
        assert!(read(&Image::open(dir.join(&top)).unwrap()) == bytes, "{format}");
        if with_qemu {
            let found = crate::support::tools::read_with_qemu(&dir.join(&top), &["-f", qemu_name]);
            assert!(found == bytes, "{format}: qemu reads something else");
        }
        let report = OpenOptions::new().check(dir.join(&top)).unwrap();
        assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 0), "{:?}", report.messages);
    }
}
