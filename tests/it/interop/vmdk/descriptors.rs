//! Descriptors of other programs and the extents they reference.

use std::path::PathBuf;

use crate::support::pattern::{Pattern, Random};
use crate::support::tools::{needs_qemu, read_with_qemu};
use crate::support::{TempDir, assert_same, content, open_beside, raw, raw_image, vmdk};
use diskimage::{Image, OpenOptions, ReferencePolicy, Result};

const MIB: usize = 1 << 20;

/// Returns a descriptor with this `createType` and these extent lines.
pub fn descriptor(create_type: &str, extents: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"{create_type}\"\n\n\
         # Extent description\n{extents}\n\n# The Disk Data Base\n#DDB\n\nddb.adapterType = \"ide\"\n"
    )
}

/// Creates a directory with the files `a.raw`, `b.raw` and `c.raw` of 1 MiB. Returns it with their contents.
fn three_files() -> (TempDir, [Vec<u8>; 3]) {
    let dir = TempDir::new();
    let files = [1, 2, 3].map(|seed| Random::new(seed).bytes(MIB));
    for (name, bytes) in ["a.raw", "b.raw", "c.raw"].iter().zip(&files) {
        dir.file(name, bytes);
    }
    (dir, files)
}

fn read(dir: &TempDir, text: impl AsRef<[u8]>) -> Result<Vec<u8>> {
    let path = dir.file("disk.vmdk", text.as_ref());
    let image = open_beside(&path)?;
    // By a conversion and directly.
    let target = dir.join("copy");
    raw().convert(&image, &target)?;
    let bytes = content(&image)?;
    assert_same(&std::fs::read(target).unwrap(), &bytes, "converted");
    Ok(bytes)
}

/// qemu-img skips extents that are not `RW`, which shifts the others.
#[test]
fn every_extent_keeps_its_position() {
    let (dir, [a, b, c]) = three_files();
    let zeros = vec![0; MIB];
    for create_type in ["monolithicFlat", "twoGbMaxExtentFlat", "2GbMaxExtentFlat", "custom", "vmfs", "vmfsThin"] {
        let text = descriptor(
            create_type,
            "RW 2048 FLAT \"a.raw\" 0\nRDONLY 2048 FLAT \"b.raw\" 0\nRW 2048 ZERO\nRW 2048 FLAT \"c.raw\" 0",
        );
        let expected = [&a[..], &b, &zeros, &c].concat();
        assert_same(&read(&dir, text).unwrap(), &expected, create_type);
    }
    let text = descriptor(
        "custom",
        "NOACCESS 63 ZERO\nNOACCESS 2 FLAT \"a.raw\" 1\nRDONLY 1 ZERO \"a.raw\"\nRW 3 FLAT \"b.raw\" 2045\nRW 1 VMFS \"c.raw\"",
    );
    let expected = [&zeros[..63 * 512], &a[512..1536], &zeros[..512], &b[2045 * 512..], &c[..512]].concat();
    assert_same(&read(&dir, text).unwrap(), &expected, "parts of files");
    // One file can hold several extents, in any order.
    let text = descriptor("custom", "RW 1024 FLAT \"a.raw\" 1024\nRW 0 ZERO\nRW 1024 FLAT \"a.raw\" 0");
    assert_same(&read(&dir, text).unwrap(), &[&a[MIB / 2..], &a[..MIB / 2]].concat(), "one file");
}

#[test]
fn sparse_and_flat_extents_in_one_disk() {
    let (dir, [a, ..]) = three_files();
    let [sparse, stream] = [Pattern::Islands, Pattern::Dense].map(|pattern| pattern.make(MIB));
    vmdk("").convert(&raw_image(&sparse), dir.join("sparse.vmdk")).unwrap();
    vmdk("subformat=streamOptimized").convert(&raw_image(&stream), dir.join("stream.vmdk")).unwrap();
    let text = descriptor(
        "custom",
        "RW 2048 SPARSE \"sparse.vmdk\"\nRW 2048 FLAT \"a.raw\" 0\nRDONLY 2048 SPARSE \"stream.vmdk\"",
    );
    assert_same(&read(&dir, text).unwrap(), &[&sparse[..], &a, &stream].concat(), "custom");
    let text = descriptor("streamOptimized", "RDONLY 2048 SPARSE \"stream.vmdk\"");
    assert_same(&read(&dir, text).unwrap(), &stream, "a stream with a descriptor of its own");
    // The capacity of an extent may exceed its size in the descriptor, not the reverse.
    let text = descriptor("custom", "RW 2047 SPARSE \"sparse.vmdk\"\nRW 1 ZERO");
    assert_same(&read(&dir, text).unwrap()[..2047 * 512], &sparse[..2047 * 512], "a part");
    let error = read(&dir, descriptor("custom", "RW 2049 SPARSE \"sparse.vmdk\"")).unwrap_err();
    assert_eq!(error.kind().as_str(), "invalid-field", "{error}");
}

#[test]
fn qemu_reads_the_same_data() {
    needs_qemu!("handwritten descriptors");
    let (dir, [a, b, _]) = three_files();
    let text = descriptor(
        "twoGbMaxExtentFlat",
        "RW 1000 FLAT \"a.raw\" 0\nRW 2048 FLAT \"b.raw\" 0\nRW 7 FLAT \"a.raw\" 2041",
    );
    let bytes = read(&dir, &text).unwrap();
    assert_same(&bytes, &[&a[..512_000], &b, &a[2041 * 512..]].concat(), "ours");
    assert_same(&read_with_qemu(&dir.join("disk.vmdk"), &["-f", "vmdk"]), &bytes, "qemu-img");
}

/// Descriptor of a disk on a datastore by ESXi 6.7 (strozfriedberg/vmdk-rs, `data/vmfs_thick.vmdk`).
const ESXI: &str = "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=0172e8a4\nparentCID=ffffffff\ncreateType=\"vmfs\"\n\n\
    # Extent description\nRW 4096 VMFS \"vmfs_thick-flat.vmdk\"\n\n# The Disk Data Base \n#DDB\n\n\
    ddb.adapterType = \"lsilogic\"\nddb.geometry.cylinders = \"2\"\nddb.geometry.heads = \"64\"\nddb.geometry.sectors = \"32\"\n\
    ddb.longContentID = \"c493b057f416b9534001df440172e8a4\"\nddb.uuid = \"60 00 C2 98 5d 08 de f2-a0 14 2e 05 94 9d d8 38\"\n\
    ddb.virtualHWVersion = \"14\"\n";

#[test]
fn spellings() {
    let dir = TempDir::new();
    let guest = Pattern::Dense.make(2 * MIB);
    dir.file("vmfs_thick-flat.vmdk", &guest);
    let with_type = |name| ESXI.replace("\"vmfs\"", &format!("\"{name}\""));
    for (what, text) in [
        ("unchanged", ESXI.to_owned()),
        ("CR LF", ESXI.replace('\n', "\r\n")),
        ("CR CR LF", ESXI.replace('\n', "\r\r\n")),
        ("capital letters", ESXI.to_uppercase().replace("VMFS_THICK-FLAT.VMDK", "vmfs_thick-flat.vmdk")),
        ("blanks", ESXI.replace('=', " =\t").replace("RW 4096 VMFS ", "  RW\t4096   VMFS  ")),
        ("NUL padding", ESXI.to_owned() + &"\0".repeat(3000)),
        ("no newline at the end", ESXI.trim_end().to_owned()),
        ("no quotes", ESXI.replace("\"vmfs\"", "vmfs")),
        ("vmfsPreallocated", with_type("vmfsPreallocated")),
        ("vmfsEagerZeroedThick", with_type("vmfsEagerZeroedThick")),
        ("vmfsThin", with_type("vmfsThin")),
        ("an unknown key", ESXI.replace("CID=0172e8a4", "CID=0172e8a4\nisNativeSnapshot=\"no\"\nsomething=else")),
        ("a short file", ESXI.to_owned() + "ddb.thinProvisioned = \"1\"\n"),
    ] {
        assert_same(&read(&dir, &text).unwrap_or_else(|e| panic!("{what}: {e}")), &guest, what);
        if what == "unchanged" && crate::support::tools::find("descriptors", &["qemu-img"]).is_some() {
            assert_same(&read_with_qemu(&dir.join("disk.vmdk"), &["-f", "vmdk"]), &guest, "qemu-img");
        }
    }
}

#[test]
fn file_names_in_other_encodings() {
    for (label, name, stored) in [
        ("windows-1252", "Gr\u{f6}\u{df}e\u{80}.raw".replace('\u{80}', "\u{20ac}"), &b"Gr\xf6\xdfe\x80.raw"[..]),
        ("Shift_JIS", "\u{8868}\u{793a}.raw".into(), b"\x95\x5c\x8e\xa6.raw"),
        ("GBK", "\u{78c1}\u{76d8}.raw".into(), b"\xb4\xc5\xc5\xcc.raw"),
        ("Big5", "\u{78c1}\u{789f}.raw".into(), b"\xba\xcf\xba\xd0.raw"),
        ("UTF-8", "\u{78c1}\u{76d8}.raw".into(), "\u{78c1}\u{76d8}.raw".as_bytes()),
    ] {
        let dir = TempDir::new();
        let guest = Random::new(5).bytes(4096);
        dir.file(&name, &guest);
        let text = descriptor("monolithicFlat", "RW 8 FLAT \"NAME\" 0");
        let text = text.replace("version=1", &format!("version=1\nencoding=\"{label}\""));
        let (before, after) = text.split_once("NAME").unwrap();
        let text = [before.as_bytes(), stored, after.as_bytes()].concat();
        assert_same(&read(&dir, text).unwrap_or_else(|e| panic!("{label}: {e}")), &guest, label);
    }
}

#[test]
fn devices_are_refused_by_name() {
    let (dir, _) = three_files();
    for name in [
        "fullDevice",
        "partitionedDevice",
        "vmfsRaw",
        "vmfsRDM",
        "vmfsRawDeviceMap",
        "vmfsRDMP",
        "vmfsPassthroughRawDeviceMap",
    ] {
        let error = read(&dir, descriptor(name, "RW 2048 FLAT \"a.raw\" 0")).unwrap_err();
        assert_eq!(error.kind().as_str(), "unsupported", "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    for kind in ["VMFSRDM", "VMFSRAW"] {
        let error = read(&dir, descriptor("vmfs", &format!("RW 2048 {kind} \"a.raw\""))).unwrap_err();
        assert_eq!(error.kind().as_str(), "unsupported", "{error}");
        assert!(error.to_string().contains(kind), "{error}");
    }
}

/// Extent files of an untrusted descriptor are opened only as the policy allows.
#[test]
fn the_reference_policy_applies_to_extents() {
    let (dir, [a, ..]) = three_files();
    let inner = TempDir::under(dir.path());
    std::os::unix::fs::symlink(dir.join("a.raw"), inner.join("link.raw")).unwrap();
    std::fs::write(inner.join("a.raw"), &a).unwrap();
    let outside = dir.join("a.raw").to_str().unwrap().to_owned();
    let inside = inner.join("a.raw").to_str().unwrap().to_owned();
    let denied = ["a.raw", "link.raw", "../a.raw", "missing.raw", &outside, &inside, "/etc/passwd", "/dev/zero"];
    for name in denied {
        let path: PathBuf =
            inner.file("disk.vmdk", descriptor("monolithicFlat", &format!("RW 2048 FLAT \"{name}\" 0")).as_bytes());
        let open = |references| OpenOptions::new().reference_policy(references).open(&path);
        let error = Image::open(&path).err().unwrap();
        assert_eq!(error.kind().as_str(), "reference", "{name}: {error}");
        match open(ReferencePolicy::Beside) {
            Ok(image) => {
                assert!(name.ends_with("a.raw") && name != "../a.raw" && name != outside, "{name}");
                assert_same(&content(&image).unwrap(), &a, name);
            }
            Err(error) if name == "missing.raw" => {
                assert_eq!(error.kind().as_str(), "io", "{error}")
            }
            Err(error) => {
                assert!(name != "a.raw" && name != inside, "{name}: {error}");
                assert_eq!(error.kind().as_str(), "reference", "{name}: {error}");
            }
        }
        if name.ends_with("a.raw") || name == "link.raw" {
            assert_same(&content(&open(ReferencePolicy::Any).unwrap()).unwrap(), &a, name);
        } else {
            open(ReferencePolicy::Any).expect_err(name);
        }
    }
    // A descriptor that is its own extent, and extents out of bounds of their files.
    for (line, kind) in [
        ("RW 1 FLAT \"disk.vmdk\" 0", "reference"),
        ("RW 2049 FLAT \"a.raw\" 0", "out-of-bounds"),
        ("RW 2048 FLAT \"a.raw\" 1", "out-of-bounds"),
        ("RW 36028797018963967 FLAT \"a.raw\" 36028797018963967", "invalid-field"),
    ] {
        let error = read(&inner, descriptor("monolithicFlat", line)).unwrap_err();
        assert_eq!(error.kind().as_str(), kind, "{line}: {error}");
    }
}

#[test]
fn large_totals_are_refused() {
    let (dir, _) = three_files();
    for line in ["RW 36028797018963967 ZERO\n", "RW 18014398509481984 ZERO\n", "RW 9007199254740992 ZERO\n"] {
        let error = read(&dir, descriptor("custom", &line.repeat(4))).unwrap_err();
        assert!(["limit", "invalid-field"].contains(&error.kind().as_str()), "{line}: {error}");
    }
    // A large empty disk is read without delay.
    let path = dir.file("disk.vmdk", descriptor("custom", &"RW 34359738368 ZERO\n".repeat(3)).as_bytes());
    let image = open_beside(&path).unwrap();
    assert_eq!(image.virtual_size(), 48 << 40);
    assert!(image.spans(0..u64::MAX).all(|span| span.unwrap().is_zero()));
}
