//! LUKS: volumes and encrypted qcow2 images of `qemu-img` are read and the other way round, with every cipher that both have; `cryptsetup`
//! opens what is written, and its volumes are read; libluksde and dissect.fve decrypt the same bytes.

mod detached;
mod legacy;

use std::fs;
use std::path::Path;

use crate::support::pattern::Pattern;
use crate::support::tools::{DISSECT_FVE, LIBLUKSDE, find, needs_qemu, output, qemu_img, run};
use crate::support::{Random, TempDir, assert_same, content, format, open_raw, options, raw_image};
use diskimage::{Converter, Image, OpenOptions, Result, Secret};

const PASSPHRASE: &str = "correct horse battery staple\n";
/// Options of `qemu-img` and of ours.
const CIPHERS: [&str; 10] = [
    "",
    "cipher-alg=aes-128,hash-alg=sha1",
    "cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha512",
    "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=plain,hash-alg=ripemd160",
    "cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=plain64,hash-alg=sha224",
    "cipher-alg=serpent-256,hash-alg=sha384",
    "cipher-alg=serpent-128,cipher-mode=cbc,ivgen-alg=plain64",
    "cipher-alg=twofish-256,ivgen-alg=plain",
    "cipher-alg=twofish-128,cipher-mode=cbc,ivgen-alg=plain64,hash-alg=sha1",
    "cipher-alg=serpent-256,cipher-mode=cbc,ivgen-alg=essiv",
];

fn secret() -> Secret {
    Secret::new(PASSPHRASE)
}

fn open(path: &Path) -> Result<Image> {
    OpenOptions::new().secret(secret()).open(path)
}

/// A converter to `name` with these options of the encryption.
fn converter(name: &str, list: &str) -> Converter {
    Converter::new(format(name)).options(options(list)).secret(secret()).sync(false)
}

/// The options with the prefix that qcow2 has for them.
fn prefixed(list: &str) -> String {
    let items = list.split(',').filter(|item| !item.is_empty()).map(|item| format!(",encrypt.{item}"));
    format!("encrypt.format=luks,encrypt.iter-time=10{}", items.collect::<String>())
}

fn iter_time(list: &str) -> String {
    if list.is_empty() { "iter-time=10".to_owned() } else { format!("iter-time=10,{list}") }
}

/// The argument of `--object` for the passphrase, in a file of `dir`.
fn object(dir: &TempDir) -> String {
    format!("secret,id=sec0,file={}", dir.file("passphrase", PASSPHRASE.as_bytes()).display())
}

/// Creates an image with `qemu-img`. False if this build of it does not have the cipher.
fn create_with_qemu(dir: &TempDir, format: &str, list: &str, source: &Path, target: &Path) -> bool {
    let args = ["convert", "-f", "raw", "-O", format, "--object", &object(dir), "-o", list];
    let args: Vec<_> = args.iter().map(AsRef::as_ref).chain([source.as_os_str(), target.as_os_str()]).collect();
    let done = output("qemu-img", &args);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() || said.contains("not supported") || said.contains("nsupported"), "{list}: {said}");
    done.status.success()
}

fn read_with_qemu(dir: &TempDir, description: &str) -> Vec<u8> {
    let out = dir.join("by-qemu");
    qemu_img(&[&"convert", &"--object", &object(dir), &"--image-opts", &description, &"-O", &"raw", &out]);
    fs::read(out).unwrap()
}

#[test]
fn volumes_in_both_directions() {
    needs_qemu!("LUKS volumes of every cipher");
    let guest = Pattern::Islands.make((1 << 20) + 512);
    let mut tried = 0;
    for list in CIPHERS {
        let dir = TempDir::new();
        let source = dir.file("source.raw", &guest);
        let theirs = dir.join("theirs.luks");
        let list = format!("key-secret=sec0,{}", iter_time(list));
        if create_with_qemu(&dir, "luks", &list, &source, &theirs) {
            tried += 1;
            assert_same(&content(&open(&theirs).unwrap()).unwrap(), &guest, &format!("of qemu-img, {list}"));
        }
        let ours = dir.join("ours.luks");
        let own_list = list.strip_prefix("key-secret=sec0,").unwrap();
        converter("luks", own_list).convert(&open_raw(&source), &ours).unwrap();
        assert_same(&content(&open(&ours).unwrap()).unwrap(), &guest, &format!("ours, {list}"));
        if theirs.exists() {
            let description = format!("driver=luks,file.filename={},key-secret=sec0", ours.display());
            assert_same(&read_with_qemu(&dir, &description), &guest, &format!("by qemu-img, {list}"));
            assert_eq!(fs::metadata(&ours).unwrap().len(), fs::metadata(&theirs).unwrap().len(), "the same layout");
        }
    }
    assert!(tried >= 5, "qemu-img has {tried} of the ciphers");
}

#[test]
fn encrypted_qcow2_in_both_directions() {
    needs_qemu!("encrypted qcow2 images");
    // Zeros, data, and a last cluster that is not whole.
    let guest = [Pattern::Islands.make(3 << 20), vec![0; 5 << 20], Pattern::Dense.make((300 << 10) + 512)].concat();
    for (list, more) in [
        ("", ""),
        ("cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv", ",cluster_size=4k"),
        ("cipher-alg=twofish-256", ",compat=0.10,cluster_size=1M"),
        ("hash-alg=sha1", ",extended_l2=on,cluster_size=128k"),
        ("", ",preallocation=full"),
    ] {
        let dir = TempDir::new();
        let source = dir.file("source.raw", &guest);
        let (theirs, ours) = (dir.join("theirs.qcow2"), dir.join("ours.qcow2"));
        let list = format!("{}{more}", prefixed(list));
        if create_with_qemu(&dir, "qcow2", &format!("{list},encrypt.key-secret=sec0"), &source, &theirs) {
            assert_same(&content(&open(&theirs).unwrap()).unwrap(), &guest, &format!("of qemu-img, {list}"));
        }
        converter("qcow2", &list).convert(&open_raw(&source), &ours).unwrap();
        let image = open(&ours).unwrap();
        assert_eq!(image.info().encryption, Some("LUKS"));
        assert_same(&content(&image).unwrap(), &guest, &format!("ours, {list}"));
        let report = OpenOptions::new().check(&ours).unwrap();
        assert_eq!((report.corruptions, report.leaks, &*report.messages), (0, 0, &[][..]), "{list}");
        if theirs.exists() {
            let description = format!("driver=qcow2,file.filename={},encrypt.key-secret=sec0", ours.display());
            qemu_img(&[&"check", &"-q", &"--object", &object(&dir), &"--image-opts", &description]);
            assert_same(&read_with_qemu(&dir, &description), &guest, &format!("by qemu-img, {list}"));
        }
        if more.is_empty() {
            assert!(fs::metadata(&ours).unwrap().len() < 8 << 20, "zeros are not stored");
        }
    }
}

#[test]
fn a_chain_whose_images_have_different_secrets() {
    let dir = TempDir::new();
    let base_guest = Pattern::Dense.make(1 << 20);
    let mut guest = base_guest.clone();
    guest[70_000..80_000].fill(9);
    guest[200_000..400_000].fill(0);
    let list = prefixed("");
    let converter = |secret: &str| converter("qcow2", &list).secret(Secret::new(secret));
    converter("one").convert(&raw_image(&base_guest), dir.join("base.qcow2")).unwrap();
    let with = |secrets: &[&str]| {
        let options = OpenOptions::new().reference_policy(diskimage::ReferencePolicy::Beside);
        secrets.iter().fold(options, |options, secret| options.secret(Secret::new(*secret)))
    };
    let base = with(&["one"]).open(dir.join("base.qcow2")).unwrap();
    let overlay = dir.join("overlay.qcow2");
    converter("two").backing(base, "base.qcow2").convert(&raw_image(&guest), &overlay).unwrap();
    let image = with(&["one", "two"]).open(&overlay).unwrap();
    assert_eq!(image.layer_count(), 2);
    assert_same(&content(&image).unwrap(), &guest, "the chain");
    for secrets in [&[][..], &["one"], &["two"]] {
        let error = with(secrets).open(&overlay).err().unwrap();
        assert_eq!(error.kind().as_str(), "secret", "{error}");
        let culprit = if secrets == ["two"] { "base.qcow2" } else { "overlay.qcow2" };
        assert_eq!(error.path(), Some(&*dir.join(culprit)));
    }
}

/// `qemu-img` has to be told the secret of the backing file in its name.
#[test]
fn a_chain_by_qemu_names_the_secret_of_the_backing_file() {
    needs_qemu!("chains of encrypted images by qemu-img");
    let dir = TempDir::new();
    let guest = Pattern::Dense.make(1 << 20);
    let source = dir.file("source.raw", &guest);
    for (id, secret) in [("one", "1"), ("two", "2")] {
        dir.file(id, secret.as_bytes());
    }
    let object = |id: &str| format!("secret,id={id},file={}", dir.join(id).display());
    let list = |id: &str| format!("encrypt.format=luks,encrypt.iter-time=10,encrypt.key-secret={id}");
    let base = dir.join("base.qcow2");
    qemu_img(&[&"convert", &"-O", &"qcow2", &"--object", &object("one"), &"-o", &list("one"), &source, &base]);
    let file = base.display();
    let name = format!(r#"json:{{"driver":"qcow2","encrypt.key-secret":"one","file.filename":"{file}"}}"#);
    let objects = [object("one"), object("two")];
    let top = dir.join("top.qcow2");
    qemu_img(&[
        &"create",
        &"-f",
        &"qcow2",
        &"--object",
        &objects[0],
        &"--object",
        &objects[1],
        &"-b",
        &name,
        &"-F",
        &"qcow2",
        &"-o",
        &list("two"),
        &top,
    ]);
    let options = OpenOptions::new().reference_policy(diskimage::ReferencePolicy::Beside);
    let image = options.secret(Secret::new("2")).secret(Secret::new("1")).open(&top).unwrap();
    assert_same(&content(&image).unwrap(), &guest, "the chain");
}

/// Whether `cryptsetup` unlocks the volume with the passphrase.
fn unlocks(cryptsetup: &str, volume: &Path, key_file: &Path) -> bool {
    let key_file = format!("--key-file={}", key_file.display());
    let args = ["open", "--test-passphrase", &key_file, volume.to_str().unwrap()];
    output(cryptsetup, &args).status.success()
}

#[test]
fn cryptsetup_opens_written_volumes() {
    let Some(cryptsetup) = find("the LUKS volumes that we write, cryptsetup", &["cryptsetup"]) else { return };
    // It has no serpent and no twofish where the kernel does not help.
    for list in ["", "cipher-alg=aes-128,hash-alg=sha512", "cipher-alg=aes-192,cipher-mode=cbc,ivgen-alg=plain64"] {
        let dir = TempDir::new();
        let volume = dir.join("ours.luks");
        converter("luks", &iter_time(list)).create(1 << 20, &volume).unwrap();
        let said = String::from_utf8(run(&cryptsetup, &["luksDump", volume.to_str().unwrap()])).unwrap();
        let info = OpenOptions::new().inspect(&volume).unwrap().info;
        let uuid = info.specific.iter().find(|(key, _)| *key == "uuid").map(|(_, value)| format!("{value:?}")).unwrap();
        let shown = said.lines().find_map(|line| line.strip_prefix("UUID:")).unwrap().trim();
        assert!(uuid.contains(shown) && said.contains("Key Slot 0: ENABLED"), "{said}");
        let right = dir.file("right", PASSPHRASE.as_bytes());
        let wrong = dir.file("wrong", PASSPHRASE.trim_end().as_bytes());
        assert!(unlocks(&cryptsetup, &volume, &right) && !unlocks(&cryptsetup, &volume, &wrong), "{list}");
    }
    let guest = Pattern::Islands.make(1 << 20);
    for list in ["", ",sector-size=4096", ",cipher-alg=aes-128,hash-alg=sha512"] {
        let dir = TempDir::new();
        let volume = dir.join("ours.luks");
        let list = format!("version=2,iter-time=10,argon2-memory=1M{list}");
        converter("luks", &list).convert(&raw_image(&guest), &volume).unwrap();
        let said = String::from_utf8(run(&cryptsetup, &["luksDump", volume.to_str().unwrap()])).unwrap();
        assert!(said.contains("argon2id") && said.contains("16777216 [bytes]"), "{said}");
        let right = dir.file("right", PASSPHRASE.as_bytes());
        let wrong = dir.file("wrong", b"x");
        assert!(unlocks(&cryptsetup, &volume, &right) && !unlocks(&cryptsetup, &volume, &wrong), "{list}");
        if DISSECT_FVE.is_there("the LUKS2 volumes that we write, dissect.fve") {
            DISSECT_FVE.assert_reads("luks", &[(volume, guest.clone())]);
        }
    }
}

#[test]
fn volumes_of_cryptsetup_are_read() {
    let Some(cryptsetup) = find("LUKS volumes of cryptsetup", &["cryptsetup"]) else { return };
    // Whatever is in the volume is the ciphertext of something: other readers decrypt the same.
    let payload = Random::new(5).bytes(1 << 20);
    for (kind, list, payload_at) in [
        ("luks1", &["--pbkdf-force-iterations=1000"][..], 2 << 20),
        (
            "luks1",
            &["--cipher=aes-cbc-essiv:sha256", "--key-size=128", "--hash=sha1", "--pbkdf-force-iterations=1000"],
            1 << 20,
        ),
        (
            "luks2",
            &["--pbkdf=argon2id", "--pbkdf-force-iterations=4", "--pbkdf-memory=1024", "--pbkdf-parallel=2"],
            16 << 20,
        ),
        (
            "luks2",
            &["--pbkdf=argon2i", "--pbkdf-force-iterations=4", "--pbkdf-memory=64", "--sector-size=4096"],
            16 << 20,
        ),
        (
            "luks2",
            &[
                "--pbkdf=pbkdf2",
                "--pbkdf-force-iterations=1000",
                "--cipher=aes-xts-plain64",
                "--sector-size=1024",
                "--key-size=256",
            ],
            16 << 20,
        ),
        (
            "luks2",
            &[
                "--pbkdf=pbkdf2",
                "--pbkdf-force-iterations=1000",
                "--hash=sha512",
                "--cipher=aes-cbc-essiv:sha256",
                "--key-size=256",
            ],
            16 << 20,
        ),
    ] {
        let dir = TempDir::new();
        let volume = dir.join("theirs.luks");
        fs::write(&volume, [vec![0; payload_at], payload.clone()].concat()).unwrap();
        let key_file = dir.file("passphrase", PASSPHRASE.as_bytes());
        let key_file = format!("--key-file={}", key_file.display());
        let mut args = vec!["luksFormat", "--batch-mode", "--type", kind, &key_file];
        args.extend(list);
        args.push(volume.to_str().unwrap());
        run(&cryptsetup, &args);
        let image = open(&volume).unwrap_or_else(|e| panic!("{kind} {list:?}: {e}"));
        let guest = content(&image).unwrap();
        assert_eq!((guest.len(), &*image.info().warnings), (1 << 20, &[][..]), "{kind} {list:?}");
        assert_ne!(guest, payload);
        drop(image);
        let wrong = OpenOptions::new().secret(Secret::new("x")).open(&volume).err().unwrap();
        assert_eq!(wrong.kind().as_str(), "secret");
        // Written into, without a change of its header.
        let disk = Pattern::Dense.make(1 << 20);
        let before = fs::read(&volume).unwrap();
        Converter::new(format("luks")).existing(true).secret(secret()).convert(&raw_image(&disk), &volume).unwrap();
        assert_same(&content(&open(&volume).unwrap()).unwrap(), &disk, "written into");
        let after = fs::read(&volume).unwrap();
        assert_same(&after[..payload_at], &before[..payload_at], "the header");
        // It does not unlock volumes with cbc-essiv.
        if payload_at == 2 << 20 && LIBLUKSDE.is_there("LUKS1 volumes, libluksde") {
            LIBLUKSDE.assert_reads("luks", &[(volume.clone(), disk.clone())]);
        }
        if DISSECT_FVE.is_there("LUKS volumes, dissect.fve") {
            DISSECT_FVE.assert_reads("luks", &[(volume, disk)]);
        }
    }
}
