//! `imgconv measure` prints what `qemu-img measure` prints.

use std::ffi::OsStr;
use std::path::Path;

use crate::support::pattern::{Pattern, Random};
use crate::support::tools::{needs_qemu, qemu_img, run};
use crate::support::{TempDir, open_raw, qcow2};

const IMGCONV: &str = env!("CARGO_BIN_EXE_imgconv");
/// Without `iter-time`, qemu-img takes many seconds to measure an encrypted image.
const ENCRYPTION: &str = "encrypt.format=luks,encrypt.key-secret=sec0,encrypt.iter-time=10";

/// Both programs print the same with these arguments. Numbers are compared, in both styles.
#[track_caller]
fn assert_alike(secret: &Path, args: &[&dyn AsRef<OsStr>]) {
    let is_encrypted = args.iter().any(|arg| arg.as_ref().to_string_lossy().contains("iter-time"));
    let secret = format!("secret,id=sec0,file={}", secret.display());
    for style in ["json", "human"].into_iter().take(if is_encrypted { 1 } else { 2 }) {
        let mut all: Vec<&OsStr> = vec!["measure".as_ref(), "--output".as_ref(), style.as_ref()];
        all.extend(["--object".as_ref(), OsStr::new(&secret)]);
        all.extend(args.iter().map(|arg| arg.as_ref()));
        let [ours, theirs] = [IMGCONV, "qemu-img"].map(|program| String::from_utf8(run(program, &all)).unwrap());
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        match style {
            "json" => assert_eq!(value(&ours), value(&theirs), "{all:?}"),
            _ => assert_eq!(ours, theirs, "{all:?}"),
        }
    }
}

#[test]
fn empty_disks() {
    needs_qemu!("measure of empty disks");
    let dir = TempDir::new();
    let secret = dir.file("secret", b"secret");
    let mut random = Random::new(1);
    let lists = [
        "cluster_size=64k",
        "cluster_size=512,refcount_bits=64",
        "cluster_size=4k,refcount_bits=1",
        "cluster_size=2M,preallocation=metadata",
        "cluster_size=16k,extended_l2=on",
        "cluster_size=1M,extended_l2=on,refcount_bits=8,preallocation=falloc",
        "compat=0.10,preallocation=full",
        "cluster_size=8k,lazy_refcounts=on,refcount_bits=32",
    ];
    for (index, list) in lists.iter().enumerate() {
        // Around the ends of tables, and anywhere.
        for size in [0, 1, (64 << 30) - 512, random.below(1 << 36), random.below(1 << 24)] {
            assert_alike(&secret, &[&"-O", &"qcow2", &"-o", list, &"--size", &size.to_string()]);
        }
        let sectors = random.below(1 << 40) * 512;
        assert_alike(&secret, &[&"-O", &"raw", &"--size", &(sectors + index as u64).to_string()]);
        // qemu-img measures the speed of the key derivation, too.
        let Some(cipher) = ["aes-256", "serpent-192"].get(index) else { continue };
        let luks = format!("key-secret=sec0,iter-time=10,cipher-alg={cipher}");
        assert_alike(&secret, &[&"-O", &"luks", &"-o", &luks, &"--size", &sectors.to_string()]);
        let encrypted = format!("{ENCRYPTION},encrypt.cipher-alg={cipher},cluster_size={}", 4096 << index);
        assert_alike(&secret, &[&"-O", &"qcow2", &"-o", &encrypted, &"--size", &(sectors >> 10).to_string()]);
    }
}

#[test]
fn disks_with_data() {
    needs_qemu!("measure of disks with data");
    let dir = TempDir::new();
    let secret = dir.file("secret", b"secret");
    for pattern in [Pattern::Sparse, Pattern::Tail] {
        // Holes of the file, as a conversion makes them.
        let bytes = dir.file("bytes.raw", &pattern.make((4 << 20) + 1536));
        let raw = dir.join("disk.raw");
        crate::support::raw().convert(&open_raw(&bytes), &raw).unwrap();
        let (ours, theirs, compressed) =
            (dir.join("ours.qcow2"), dir.join("theirs.qcow2"), dir.join("compressed.qcow2"));
        qcow2("").convert(&open_raw(&raw), &ours).unwrap();
        qcow2("cluster_size=4k").compress(true).convert(&open_raw(&raw), &compressed).unwrap();
        qemu_img(&[&"convert", &"-q", &"-O", &"qcow2", &"-o", &"cluster_size=512", &raw, &theirs]);
        for source in [&raw, &ours, &theirs, &compressed] {
            for list in ["cluster_size=64k", "cluster_size=64k,preallocation=full", "cluster_size=2M,extended_l2=on"] {
                assert_alike(&secret, &[&"-O", &"qcow2", &"-o", &list, source]);
            }
            assert_alike(&secret, &[&"-O", &"raw", source]);
        }
        assert_alike(&secret, &[&"-f", &"raw", &"-O", &"qcow2", &"-o", &"cluster_size=1k", &raw]);
        assert_alike(&secret, &[&"-f", &"raw", &"-O", &"luks", &"-o", &"key-secret=sec0,iter-time=10", &raw]);
    }
}

#[test]
fn bitmaps_and_snapshots() {
    needs_qemu!("measure of bitmaps");
    let dir = TempDir::new();
    let secret = dir.file("secret", b"secret");
    let image = dir.join("disk.qcow2");
    qemu_img(&[&"create", &"-q", &"-f", &"qcow2", &image, &"10003456k"]);
    let alike = |compat: &str| {
        for cluster_size in ["512", "64k"] {
            let list = format!("compat={compat},cluster_size={}", if compat == "1.1" { cluster_size } else { "64k" });
            assert_alike(&secret, &[&"-O", &"qcow2", &"-o", &list, &image]);
        }
        assert_alike(&secret, &[&"-O", &"raw", &image]);
    };
    alike("1.1");
    for (index, granularity) in ["512", "64k", "1M"].iter().enumerate() {
        let name = "bitmap".repeat(10 * index + 1);
        qemu_img(&[&"bitmap", &"--add", &"-g", granularity, &image, &name]);
        alike("1.1");
    }
    alike("0.10");
    qemu_img(&[&"snapshot", &"-c", &"before", &image]);
    assert_alike(&secret, &[&"-O", &"qcow2", &"-l", &"before", &image]);
    assert_alike(&secret, &[&"-O", &"qcow2", &"-l", &"snapshot.name=before", &image]);
}
