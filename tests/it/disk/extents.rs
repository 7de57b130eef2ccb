//! Disks of several files: flat and split VMDK.

use std::io;
use std::sync::Arc;

use diskimage::io::{MemFile, ReadAt, Storage};
use diskimage::{Format, OpenOptions, ReferencePolicy};

use super::crash::{State, check_content};
use super::model::Step;
use super::recorder::Recorder;
use super::starts::image;
use crate::support::Random;

const EXTENT: usize = 1 << 20;

/// The descriptor and the extents, by number.
struct Split {
    name: &'static str,
    files: Vec<Vec<u8>>,
    content: Vec<u8>,
}

/// A disk of 2 MiB in extents of these types.
fn split(name: &'static str, create_type: &str, types: &[&str]) -> Split {
    let mut text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"{create_type}\"\n\n\
         # Extent description\n"
    );
    let (mut extents, mut content) = (Vec::new(), Vec::new());
    for (index, kind) in types.iter().enumerate() {
        let mut data = Random::new(index as u64).bytes(EXTENT);
        // Grains that are not allocated yet.
        data[200_000..700_000].fill(0);
        let place = if *kind == "FLAT" { " 0" } else { "" };
        text += &format!("RW {} {kind} \"{}\"{place}\n", EXTENT / 512, index + 1);
        extents.push(if *kind == "FLAT" { data.clone() } else { image(Format::VMDK, "", false, &data) });
        content.extend(data);
    }
    text += "\n# The Disk Data Base\n#DDB\n\nddb.adapterType = \"ide\"\n";
    extents.insert(0, text.into_bytes());
    Split { name, files: extents, content }
}

fn splits() -> Vec<Split> {
    let content = split("", "monolithicFlat", &["FLAT"]).content;
    vec![
        Split { name: "monolithicSparse", files: vec![image(Format::VMDK, "", false, &content)], content },
        split("monolithicFlat", "monolithicFlat", &["FLAT"]),
        split("twoGbMaxExtentFlat", "twoGbMaxExtentFlat", &["FLAT", "FLAT"]),
        split("twoGbMaxExtentSparse", "twoGbMaxExtentSparse", &["SPARSE", "SPARSE"]),
        split("custom", "custom", &["FLAT", "SPARSE"]),
    ]
}

/// How the image is opened whose files are these, by number.
fn options<F: Storage + 'static>(files: &[Arc<F>]) -> OpenOptions {
    let index = |name: &str, len: usize| name.parse().ok().filter(|index| (1..len).contains(index));
    let (found, written) = (files.to_vec(), files.to_vec());
    let file = move |files: &[Arc<F>], name: &str| match index(name, files.len()) {
        Some(index) => Ok(files[index].clone()),
        None => Err(io::Error::from(io::ErrorKind::NotFound)),
    };
    OpenOptions::new()
        .reference_policy(ReferencePolicy::Beside)
        .resolver(move |request| Ok(file(&found, &request.name.to_string())? as Arc<dyn ReadAt>))
        .storage_resolver(move |request| Ok(file(&written, &request.name.to_string())? as Arc<dyn Storage>))
}

fn read(files: Vec<Vec<u8>>) -> Vec<u8> {
    let files: Vec<Arc<MemFile>> = files.into_iter().map(|bytes| Arc::new(MemFile::from(bytes))).collect();
    let image = options(&files).open_source(files[0].clone()).unwrap();
    let mut content = vec![0; image.virtual_size() as usize];
    image.read_exact_at(&mut content, 0).unwrap();
    let report = options(&files).check_source(files[0].clone()).unwrap();
    assert_eq!((report.corruptions, report.check_errors), (0, 0), "{:?}", report.messages);
    content
}

#[test]
fn a_power_cut_leaves_old_or_new_sectors_in_all_extents() {
    for Split { name, files, content } in splits() {
        for seed in super::seeds(1) {
            let mut random = Random::new(seed);
            let recorders: Vec<_> = Recorder::several(files.clone()).into_iter().map(Arc::new).collect();
            let opened = options(&recorders).open_disk_in(recorders[0].clone() as Arc<dyn Storage>).unwrap();
            let (mut disk, mut content) = (Some(opened), content.clone());
            let mut states = vec![State { events: 0, content: content.clone(), step: Step::Flushed }];
            for _ in 0..30 {
                let open = disk.take().unwrap();
                let size = content.len() as u64;
                // Often across two extents.
                let start = [random.below(size), EXTENT as u64 - 3000][random.below(2) as usize].min(size - 1);
                let end = (start + random.below(90_000) + 1).min(size);
                let step = match random.below(12) {
                    0..6 => {
                        let bytes = random.bytes((end - start) as usize);
                        open.write_all_at(&bytes, start).unwrap();
                        content[start as usize..end as usize].copy_from_slice(&bytes);
                        Step::Changed
                    }
                    6 | 7 => {
                        open.write_zeros(start..end).unwrap();
                        content[start as usize..end as usize].fill(0);
                        Step::Changed
                    }
                    8 => {
                        // Down to the first sector of the last extent.
                        let least = (size as usize - 1) / EXTENT * EXTENT + 512;
                        let size = (size + random.below(300) * 512 - 150 * 512).max(least as u64);
                        open.resize(size).unwrap();
                        content.resize(size as usize, 0);
                        Step::Resized
                    }
                    _ => {
                        open.flush().unwrap();
                        Step::Flushed
                    }
                };
                disk = Some(open);
                states.push(State { events: recorders[0].count(), content: content.clone(), step });
            }
            disk.take().unwrap().close().unwrap();
            assert!(read(recorders.iter().map(|file| file.to_vec()).collect()) == content, "{name}, seed {seed}");
            recorders[0].replay_all(seed, |events, cut, files| {
                let now = states.iter().position(|state| state.events >= events).unwrap_or(states.len() - 1);
                let flushed = states[..now].iter().rposition(|state| state.step != Step::Changed).unwrap_or(0);
                let context = || format!("{name}, seed {seed}, {events} events, {cut:?}");
                check_content(&read(files), &states[flushed..=now], &context);
            });
        }
    }
}
