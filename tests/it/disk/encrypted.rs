//! LUKS volumes, and qcow2 with LUKS.

use std::sync::Arc;

use diskimage::io::{MemFile, ReadAt, Storage};
use diskimage::{Format, OpenOptions};

use super::model::Start;
use super::starts::{SIZE, content, image};

pub fn starts() -> Vec<Start> {
    let mut starts = vec![
        volume("iter-time=1"),
        volume("iter-time=1,cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv"),
        volume("version=2,iter-time=1,argon2-memory=64k,sector-size=4096"),
    ];
    #[cfg(feature = "qcow2")]
    for list in ["cluster_size=4k", "cluster_size=16k,extended_l2=on,encrypt.cipher-mode=cbc"] {
        let list = format!("{list},encrypt.format=luks,encrypt.iter-time=1");
        let content = content(5);
        let file = image(Format::QCOW2, &list, false, &content);
        let name = format!("qcow2 {list}");
        starts.push(Start { name, file, backing: None, content, resizes: true, shrinks: true, snapshots: true });
    }
    starts
}

fn volume(list: &str) -> Start {
    let content = content(list.len() as u64);
    let file = image(Format::LUKS, list, false, &content);
    // What is added is not zeros.
    Start {
        name: format!("luks {list}"),
        file,
        backing: None,
        content,
        resizes: false,
        shrinks: false,
        snapshots: false,
    }
}

/// What is added to a volume is undefined, as the content of a new one.
#[test]
fn volumes_grow_and_shrink() {
    for start in starts().into_iter().filter(|start| start.name.starts_with("luks")) {
        let file = Arc::new(MemFile::from(start.file.clone()));
        let open = || start.options().open_disk_in(file.clone()).unwrap();
        let disk = open();
        disk.resize(SIZE + 5000).unwrap();
        let grown = disk.size();
        assert!(grown - SIZE >= 5000 && grown - SIZE < 5000 + 4096, "{grown}");
        disk.close().unwrap();
        let now = start.read(file.to_vec());
        assert!(now.len() as u64 == grown && now[..SIZE as usize] == start.content, "{}", start.name);
        let disk = open();
        disk.resize(8192).unwrap();
        disk.close().unwrap();
        assert!(start.read(file.to_vec()) == start.content[..8192], "{}", start.name);
        assert_eq!(file.size().unwrap(), start.file.len() as u64 - SIZE + 8192);
    }
}

#[test]
fn the_secret_is_needed() {
    for start in starts() {
        let storage: Arc<dyn Storage> = Arc::new(MemFile::from(start.file));
        let error = OpenOptions::new().open_disk_in(storage).unwrap_err();
        assert_eq!(error.kind().as_str(), "secret", "{}: {error}", start.name);
    }
}

/// Images of qemu are written, in turns with it.
#[cfg(unix)]
#[test]
fn turns_with_qemu() {
    use crate::support::tools::{needs_qemu, qemu_img, run};
    use crate::support::{Random, TempDir};
    use diskimage::Secret;

    needs_qemu!("turns_with_qemu on encrypted images");
    const LEN: usize = 1 << 20;
    for (format, list) in
        [("luks", "iter-time=10,"), ("qcow2", "encrypt.format=luks,encrypt.iter-time=10,cluster_size=8k,encrypt.")]
    {
        let dir = TempDir::new();
        let key = dir.file("key", super::model::SECRET.as_bytes());
        let object = format!("secret,id=s,file={}", key.display());
        let image = dir.join("image");
        let list = format!("{list}key-secret=s");
        qemu_img(&[&"create", &"-q", &"-f", &format, &"--object", &object, &"-o", &list, &image, &LEN.to_string()]);
        let prefix = if format == "luks" { "" } else { "encrypt." };
        let description = format!("driver={format},file.filename={},{prefix}key-secret=s", image.display());
        let mut expected = vec![0; LEN];
        let mut random = Random::new(11);
        let by_qemu = |command: &str| {
            run("qemu-io", &["--object", &object, "--image-opts", &description, "-c", command]);
        };
        by_qemu(&format!("write -z 0 {LEN}"));
        for round in 1..12_u8 {
            let (at, len) = (random.below(900_000) as usize, random.below(100_000) as usize + 1);
            by_qemu(&format!("write -P {round} {at} {len}"));
            expected[at..at + len].fill(round);
            let disk = OpenOptions::new().secret(Secret::new(super::model::SECRET)).open_disk(&image).unwrap();
            let (at, len) = (random.below(900_000), random.below(100_000) as usize + 1);
            let bytes = random.bytes(len);
            disk.write_all_at(&bytes, at).unwrap();
            disk.close().unwrap();
            expected[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
            let raw = dir.file("expected.raw", &expected);
            let raw = format!("driver=raw,file.filename={}", raw.display());
            qemu_img(&[&"compare", &"-q", &"--object", &object, &"--image-opts", &description, &raw]);
            if format == "qcow2" {
                qemu_img(&[&"check", &"-q", &"--object", &object, &"--image-opts", &description]);
            }
        }
    }
}

/// A key that nobody would wait for is refused before it is derived.
#[test]
fn the_cost_of_a_new_key_is_limited() {
    use diskimage::driver::KeyChange;
    use diskimage::{ErrorKind, Secret};

    for start in starts().iter().filter(|start| !start.name.contains("version=2")) {
        let file = Arc::new(MemFile::from(start.file.clone()));
        let disk = start.options().open_disk_in(file.clone()).unwrap();
        let iter_time = Some(std::time::Duration::from_secs(1 << 32));
        let change = KeyChange::Add { secret: Secret::new("new"), slot: None, iter_time, force: false };
        assert_eq!(disk.change_keys(&change).unwrap_err().kind(), ErrorKind::Limit, "{}", start.name);
        disk.close().unwrap();
        assert!(file.to_vec() == start.file, "{}", start.name);
    }
}
