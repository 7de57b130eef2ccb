//! Packages: OVA, OVF, and archives with a disk.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use diskimage::io::MemFile;
use diskimage::{
    Converter, Error, ErrorKind, Format, Identifiers, Image, OpenOptions, Package, ReferencePolicy, Result,
};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use twox_hash::XxHash64;

use crate::support::pattern::Pattern;
use crate::support::tar::{archive, entry};
use crate::support::{TempDir, assert_same, content, convert, options, qcow2, raw, raw_image, vmdk};

const MIB: usize = 1 << 20;

fn stream(guest: &[u8]) -> Vec<u8> {
    convert(&vmdk("subformat=streamOptimized"), &raw_image(guest)).0
}

fn system() -> Vec<u8> {
    Pattern::Islands.make(MIB)
}

fn data() -> Vec<u8> {
    Pattern::Dense.make(2 * MIB)
}

/// A descriptor of files with these attributes besides the name, each of which is a disk.
fn descriptor(files: &[(&str, &str)]) -> Vec<u8> {
    let list = files.iter().enumerate();
    let references =
        list.clone().map(|(at, (href, more))| format!(r#"<File ovf:href="{href}" ovf:id="f{at}" {more}/>"#));
    let disks = list.map(|(at, _)| format!(r#"<Disk ovf:capacity="1" ovf:diskId="disk-{at}" ovf:fileRef="f{at}"/>"#));
    format!(
        r#"<?xml version="1.0"?><Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
        <References>{}</References><DiskSection><Info/>{}</DiskSection></Envelope>"#,
        references.collect::<String>(),
        disks.collect::<String>()
    )
    .into_bytes()
}

fn manifest(files: &[(&str, &[u8])]) -> Vec<u8> {
    let hex = |data: &[u8]| Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    files.iter().map(|(name, data)| format!("SHA256({name})= {}\r\n", hex(data))).collect::<String>().into_bytes()
}

/// The files of a package of two disks.
fn two_disks() -> Vec<(&'static str, Vec<u8>)> {
    let text = descriptor(&[("a.vmdk", ""), ("b%20b.vmdk", "")]);
    let files = vec![("vm.ovf", text), ("a.vmdk", stream(&system())), ("b b.vmdk", stream(&data()))];
    let list: Vec<_> = files.iter().map(|(name, data)| (*name, data.as_slice())).collect();
    let manifest = manifest(&list);
    [files, vec![("vm.mf", manifest)]].concat()
}

fn pack(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    archive(&files.iter().map(|(name, data)| (*name, data.as_slice())).collect::<Vec<_>>())
}

fn open(bytes: Vec<u8>) -> Result<Image> {
    OpenOptions::new().open_source(Arc::new(MemFile::from(bytes)))
}

fn open_disk(bytes: Vec<u8>, disk: &str) -> Result<Image> {
    OpenOptions::new().member(disk).open_source(Arc::new(MemFile::from(bytes)))
}

#[track_caller]
fn assert_holds(image: Result<Image>, guest: &[u8]) -> Image {
    let image = image.unwrap();
    assert_same(&content(&image).unwrap(), guest, "the disk of the package");
    image.verify().unwrap();
    image
}

#[test]
fn the_disks_of_an_ova_are_selected_by_number_name_and_identifier() {
    let package = pack(&two_disks());
    for disk in ["1", "a.vmdk", "disk-0"] {
        assert_holds(open_disk(package.clone(), disk), &system());
    }
    for disk in ["2", "b%20b.vmdk", "disk-1"] {
        assert_holds(open_disk(package.clone(), disk), &data());
    }
    let error = open(package.clone()).unwrap_err();
    assert!(matches!(&error, Error::SeveralDisks { disks } if disks.len() == 2), "{error}");
    assert_eq!(error.to_string(), "the package has several disks; select one of 1 'a.vmdk', 2 'b%20b.vmdk'");
    for wrong in ["0", "3", "c.vmdk", ""] {
        let error = open_disk(package.clone(), wrong).unwrap_err();
        assert!(matches!(error, Error::NoSuchDisk { .. }), "{wrong}: {error}");
    }
    let image = open_disk(package, "1").unwrap();
    assert_eq!((image.format(), image.package_warnings().count()), (Format::VMDK, 0));
    // The stated format is that of the disk, or of the file where no disk is selected.
    let options = OpenOptions::new().format(Format::RAW);
    let package: Arc<MemFile> = Arc::new(MemFile::from(pack(&two_disks())));
    let whole = options.open_source(package.clone()).unwrap();
    assert_eq!(whole.virtual_size(), package.to_vec().len() as u64);
    assert_eq!(options.member("1").open_source(package).unwrap().virtual_size(), stream(&system()).len() as u64);
    assert_eq!(open_disk(vec![0; 1024], "1").unwrap_err().kind(), ErrorKind::Usage);
}

#[test]
fn a_file_that_is_not_that_of_the_manifest_is_not_converted() {
    let dir = TempDir::new();
    let target = dir.file("disk.raw", b"old");
    for changed in ["vm.ovf", "a.vmdk", "b b.vmdk"] {
        let mut files = two_disks();
        let (_, bytes) = files.iter_mut().find(|(name, _)| *name == changed).unwrap();
        // A comment, or the unused end of a sector.
        match changed {
            "vm.ovf" => bytes.push(b'\n'),
            _ => *bytes.last_mut().unwrap() ^= 1,
        }
        let path = dir.file("vm.ova", &pack(&files));
        let convert = |disk: &str| {
            let image = OpenOptions::new().member(disk).open(&path)?;
            raw().convert(&image, &target)
        };
        let result = convert("1");
        match changed {
            "b b.vmdk" => {
                assert!(result.is_ok(), "the digest of another disk does not matter");
                fs::write(&target, "old").unwrap();
                assert_eq!(convert("2").unwrap_err().kind(), ErrorKind::Digest);
            }
            _ => assert_eq!(result.unwrap_err().kind(), ErrorKind::Digest, "{changed}"),
        }
        assert_eq!(fs::read(&target).unwrap(), b"old");
        assert_eq!(dir.names(), ["disk.raw", "vm.ova"]);
    }
}

#[test]
fn what_the_manifest_does_not_say_is_told() {
    let warnings = |files: &[(&str, Vec<u8>)]| {
        let image = open(pack(files)).unwrap();
        assert_same(&content(&image).unwrap(), &system(), "the disk");
        image.package_warnings().map(str::to_owned).collect::<Vec<_>>()
    };
    let text = descriptor(&[("a.vmdk", "")]);
    let disk = stream(&system());
    let files = vec![("x/vm.ovf", text.clone()), ("x/a.vmdk", disk.clone())];
    assert_eq!(warnings(&files), ["the package has no manifest: the file of the disk is not verified"]);
    let list = manifest(&[("vm.ovf", &text), ("gone", b""), ("a.vmdk", &disk)]);
    let odd = [files.clone(), vec![("x/vm.mf", [&list, &b"# note"[..]].concat())]].concat();
    assert_eq!(
        warnings(&odd),
        ["1 lines of the manifest are not understood", "the manifest lists gone, which is not in the package"]
    );
    let partial = [files, vec![("x/other.mf", manifest(&[("vm.ovf", &text)]))]].concat();
    assert_eq!(warnings(&partial), ["the manifest has no digest of a.vmdk"]);
    // Of the sizes, that of the disk counts.
    let text = String::from_utf8(text).unwrap().replace("ovf:capacity=\"1\"", "ovf:capacity=\"2000000\"");
    let smaller = vec![("vm.ovf", text.replace("f0\" />", "f0\" ovf:size=\"7\"/>").into_bytes()), ("a.vmdk", disk)];
    let found = warnings(&smaller);
    assert!(found[1].ends_with("but the descriptor states 7"), "{found:?}");
    assert_eq!(found[2], "the disk has 1048576 bytes, but the descriptor states 2000000");
}

#[test]
fn the_files_of_a_descriptor_are_opened_as_the_policy_allows() {
    let dir = TempDir::new();
    let directory = dir.join("vm");
    fs::create_dir(&directory).unwrap();
    let path = directory.join("vm.ovf");
    for (name, bytes) in two_disks() {
        fs::write(directory.join(name), bytes).unwrap();
    }
    let open = |policy, path: &Path| OpenOptions::new().reference_policy(policy).member("2").open(path);
    for path in [&path, &directory] {
        let image = open(ReferencePolicy::Beside, path).unwrap();
        assert_eq!(image.package_warnings().count(), 0);
        assert_holds(Ok(image), &data());
        let denied = open(ReferencePolicy::Deny, path).unwrap_err();
        assert_eq!(denied.kind(), ErrorKind::Reference);
        assert!(denied.to_string().contains("b%20b.vmdk"), "{denied}");
    }
    // Nothing but the descriptor is opened to describe it.
    let package = OpenOptions::new().package(&directory).unwrap().unwrap();
    assert_eq!((package.kind, package.disks.len(), package.members.len()), ("ovf", 2, 3));
    // The refusal does not depend on what exists.
    let message = |href: &str| {
        fs::write(&path, descriptor(&[(href, "")])).unwrap();
        let refuse = |policy| {
            let error = OpenOptions::new().reference_policy(policy).open(&path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Reference, "{href}: {error}");
            error.to_string().replace(href, "HREF")
        };
        [refuse(ReferencePolicy::Deny), refuse(ReferencePolicy::Beside)]
    };
    dir.file("outside.vmdk", &stream(&system()));
    assert_eq!(message("../outside.vmdk"), message("../missing.vmdk"));
    message("/etc/passwd");
    message("http://host/a.vmdk");
    message("%2e%2e/outside.vmdk");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(dir.join("outside.vmdk"), directory.join("link.vmdk")).unwrap();
        message("link.vmdk");
    }
    // A target that is a file of the package is refused.
    fs::remove_file(directory.join("vm.mf")).unwrap();
    fs::write(&path, descriptor(&[("a.vmdk", "")])).unwrap();
    let image = OpenOptions::new().reference_policy(ReferencePolicy::Beside).open(&path).unwrap();
    assert_eq!(raw().convert(&image, directory.join("a.vmdk")).unwrap_err().kind(), ErrorKind::Usage);
}

#[test]
fn chunks_are_joined() {
    let disk = stream(&data());
    let chunk = disk.len() / 3 + 1;
    let text = descriptor(&[("d.vmdk", &format!("ovf:size=\"{}\" ovf:chunkSize=\"{chunk}\"", disk.len()))]);
    let names = ["d.vmdk.000000000", "d.vmdk.000000001", "d.vmdk.000000002"];
    let mut files = vec![("vm.ovf", text)];
    files.extend(names.iter().copied().zip(disk.chunks(chunk).map(<[u8]>::to_vec)));
    let list: Vec<_> = files.iter().map(|(name, data)| (*name, data.as_slice())).collect();
    let with_manifest = [files.clone(), vec![("vm.mf", manifest(&list))]].concat();
    assert_holds(open(pack(&with_manifest)), &data());
    let mut damaged = with_manifest;
    damaged[3].1.pop();
    damaged[3].1.push(7);
    assert_eq!(open(pack(&damaged)).unwrap().verify().unwrap_err().kind(), ErrorKind::Digest);
    let mut missing = files.clone();
    missing.remove(2);
    assert_eq!(open(pack(&missing)).unwrap_err().kind(), ErrorKind::Reference);
    files[1].1.pop();
    let error = open(pack(&files)).unwrap_err();
    assert!(error.to_string().contains("another length"), "{error}");
    // Absurd numbers are refused before anything is searched.
    let text = descriptor(&[("d.vmdk", "ovf:size=\"18446744073709551615\" ovf:chunkSize=\"1\"")]);
    assert_eq!(open(pack(&[("vm.ovf", text)])).unwrap_err().kind(), ErrorKind::Limit);
}

#[test]
fn an_archive_without_a_descriptor_has_the_disk_that_its_content_shows() {
    let disk = system();
    let mut kernel = vec![0; 4096];
    kernel[0x1fe..0x206].copy_from_slice(b"\x55\xaa\0\0HdrS");
    let qcow2 = convert(&qcow2(""), &raw_image(&disk)).0;
    let uec = [
        ("a-blank.img", disk.clone()),
        ("a-vmlinuz", kernel.clone()),
        ("a-initrd", b"070701".to_vec()),
        ("README", b"x".to_vec()),
    ];
    assert_holds(open(pack(&uec)), &disk);
    let renamed =
        [("a.img", kernel), ("b.img", disk.clone()), ("c-floppy.img", vec![1; 512]), ("._b.img", vec![1; 512])];
    assert_holds(open(pack(&renamed)), &disk);
    // A box of libvirt, and the image of Google Compute Engine.
    assert_holds(open(pack(&[("metadata.json", b"{}".to_vec()), ("box.img", qcow2.clone())])), &disk);
    assert_holds(open(pack(&[("disk.raw", disk.clone())])), &disk);
    // The signature of an image counts more than a name.
    assert_holds(open(pack(&[("other.img", vec![1; 512]), ("disk", qcow2.clone())])), &disk);
    // A package within a package.
    let inner = pack(&[("vm.ovf", descriptor(&[("a.vmdk", "")])), ("a.vmdk", stream(&disk))]);
    let inner = pack(&[("vm.ova", inner)]);
    assert_holds(open(pack(&[("x.tar", inner.clone())])), &disk);
    let deep = pack(&[("z.tar", pack(&[("y.tar", pack(&[("x.tar", inner)]))]))]);
    assert_eq!(open(deep).unwrap_err().kind(), ErrorKind::Limit);
    let none = open(pack(&[("README", b"x".to_vec())])).unwrap_err();
    assert!(matches!(none, Error::Unreadable { format: "tar", .. }), "{none}");
    assert!(matches!(open(pack(&[("a.img", disk.clone()), ("b.img", disk)])), Err(Error::SeveralDisks { .. })));
}

#[test]
fn the_extents_of_a_disk_in_an_archive_are_found_in_it() {
    let disk = system();
    for kind in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "monolithicFlat"] {
        let dir = TempDir::new();
        vmdk(&format!("subformat={kind}")).convert(&raw_image(&disk), dir.join("disk.vmdk")).unwrap();
        let mut files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let member = |path: &std::path::PathBuf| {
            (format!("box/{}", path.file_name().unwrap().to_str().unwrap()), fs::read(path).unwrap())
        };
        let files: Vec<_> = files.iter().map(member).collect();
        assert!(files.len() > 1);
        let files: Vec<_> = files.iter().map(|(name, data)| (name.as_str(), data.clone())).collect();
        // A box of Vagrant for VMware has all of them. No permission is needed: they are in the file that was named.
        let others = [("metadata.json", b"{}".to_vec()), ("box/vm.vmx", b"x".to_vec())];
        assert_holds(open(pack(&[&files[..], &others].concat())), &disk);
        // Those of another directory are not meant.
        let renamed: Vec<_> =
            files.iter().map(|(name, data)| (name.replace("box/disk-", "other/disk-"), data.clone())).collect();
        let renamed: Vec<_> = renamed.iter().map(|(name, data)| (name.as_str(), data.clone())).collect();
        let missing = open(pack(&renamed)).unwrap_err();
        assert!(missing.to_string().contains("the package has no such file"), "{missing}");
    }
}

#[cfg(feature = "compressed")]
#[test]
fn compressed_packages_and_members_are_opened() {
    let dir = TempDir::new();
    let gzip = |bytes: &[u8]| {
        let deflated = diskimage_deflate(bytes);
        let mut file = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
        file.extend(deflated);
        file.extend(crc32fast::hash(bytes).to_le_bytes());
        file.extend((bytes.len() as u32).to_le_bytes());
        file
    };
    let disk = stream(&system());
    let packed = gzip(&disk);
    let text = descriptor(&[("a.vmdk.gz", "ovf:compression=\"gzip\"")]);
    let list = manifest(&[("vm.ovf", &text), ("a.vmdk.gz", &packed)]);
    assert_holds(open(pack(&[("vm.ovf", text), ("a.vmdk.gz", packed), ("vm.mf", list)])), &system());
    let whole = dir.file("image.tar.gz", &gzip(&pack(&[("disk.raw", system())])));
    assert_holds(Image::open(&whole), &system());
    assert_eq!(OpenOptions::new().package(&whole).unwrap().unwrap().disks.len(), 1);
}

/// Stored blocks of DEFLATE.
#[cfg(feature = "compressed")]
fn diskimage_deflate(bytes: &[u8]) -> Vec<u8> {
    let mut deflated = Vec::new();
    for block in bytes.chunks(65535) {
        deflated.push(0);
        deflated.extend((block.len() as u16).to_le_bytes());
        deflated.extend((!(block.len() as u16)).to_le_bytes());
        deflated.extend(block);
    }
    deflated.extend([1, 0, 0, 0xff, 0xff]);
    deflated
}

#[test]
fn packages_of_other_programs_are_read() {
    let stored = |name: &str| {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/packages")).join(name);
        Arc::new(MemFile::from(crate::support::gzip::unpack(&fs::read(path).unwrap())))
    };
    let image = OpenOptions::new().open_source(stored("vcloud.ova.gz")).unwrap();
    let digest: String = Sha256::digest(content(&image).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, "80a3721188e40218b08b26776bc53bdae81e4784fff71d71450a197319cba113");
    assert_eq!(image.package_warnings().count(), 1, "there is no manifest");
    let package = OpenOptions::new().package_source(stored("virtualbox.ovf.gz")).unwrap().unwrap();
    let disks: Vec<_> = package.disks.iter().map(|disk| (disk.name.to_string(), disk.capacity)).collect();
    assert_eq!(
        disks,
        [("corpus-disk001.vmdk".to_owned(), Some(5_523_456)), ("corpus-disk002.vmdk".to_owned(), Some(4_153_344))]
    );
}

#[test]
fn blocks_of_an_xva_are_a_disk() {
    let mut disk = vec![0; 3 * MIB];
    disk[..MIB].copy_from_slice(&system());
    disk[2 * MIB..].copy_from_slice(&Pattern::Dense.make(MIB));
    let member = |name: &str, value: &str| format!("<member><name>{name}</name><value>{value}</value></member>");
    let state = format!("<struct>{}</struct>", member("virtual_size", "3145728"));
    let vdi = [member("class", "VDI"), member("id", "Ref:7"), member("snapshot", &state)].concat();
    let text = format!(
        "<value><struct>{}</struct></value>",
        member("objects", &format!("<array><data><value><struct>{vdi}</struct></value></data></array>"))
    );
    let sums = [&disk[..MIB], &disk[2 * MIB..]].map(|block| {
        let sha1 = Sha1::digest(block).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        (sha1, format!("{:016X}", XxHash64::oneshot(0, block)))
    });
    let xva = |suffix: &str, first: &str, last: &str| {
        let (name, other) = (format!("Ref:7/00000000{suffix}"), format!("Ref:7/00000002{suffix}"));
        archive(&[
            ("ova.xml", text.as_bytes()),
            ("Ref:7/00000000", &disk[..MIB]),
            (&name, first.as_bytes()),
            // Keeps the connection alive.
            ("Ref:7/00000002", b""),
            (&other, b"EF46DB3751D8E999"),
            ("Ref:7/00000002", &disk[2 * MIB..]),
            (&other, last.as_bytes()),
        ])
    };
    let [(sha1, xxhash), (last_sha1, last_xxhash)] = &sums;
    for bytes in [xva(".checksum", sha1, last_sha1), xva(".xxhash", xxhash, last_xxhash), xva(".other", "", "")] {
        let image = open(bytes).unwrap();
        assert_eq!(image.format(), Format::RAW);
        assert!(image.spans(MIB as u64..2 * MIB as u64).all(|span| span.unwrap().is_zero()));
        assert_holds(Ok(image), &disk);
    }
    let warnings = |bytes| open(bytes).unwrap().package_warnings().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(warnings(xva(".checksum", sha1, last_sha1)), [""; 0]);
    assert_eq!(warnings(xva(".other", "", "")), ["2 blocks of Ref:7 have no checksum"]);
    for (bytes, kind) in [
        (xva(".checksum", sha1, sha1), ErrorKind::Digest),
        (xva(".xxhash", last_xxhash, last_xxhash), ErrorKind::Digest),
        (xva(".xxhash", &xxhash[1..], last_xxhash), ErrorKind::Digest),
        (xva(".xxhash", "no digits", last_xxhash), ErrorKind::InvalidField),
    ] {
        let image = open(bytes).unwrap();
        // Less than a block is not compared.
        let mut sector = [0; 512];
        image.read_exact_at(&mut sector, 0).unwrap();
        assert_eq!(image.verify().unwrap_err().kind(), kind);
        assert_eq!(raw().convert_to(&image, Arc::new(MemFile::new())).unwrap_err().kind(), kind);
    }
}

#[test]
fn hostile_packages_are_refused() {
    let text = descriptor(&[("a.vmdk", "")]);
    let with = |entries: &[Vec<u8>]| [entry("vm.ovf", b'0', &text), entries.concat()].concat();
    let disk = stream(&system());
    for (bytes, message) in [
        (with(&[entry("a.vmdk", b'2', b"")]), "neither a regular file"),
        (with(&[entry("a.vmdk", b'1', b"")]), "neither a regular file"),
        (with(&[entry("a.vmdk", b'5', b"")]), "neither a regular file"),
        (with(&[]), "the package has no such file"),
        (with(&[entry("../a.vmdk", b'0', &disk)]), "'..' component"),
        (with(&[entry("/a.vmdk", b'0', &disk)]), "must not be absolute"),
        (with(&[entry("a.vmdk", b'0', &disk), entry("./a.vmdk", b'0', &disk)]), "another member has the same name"),
        (with(&[entry("b.ovf", b'0', &text), entry("a.vmdk", b'0', &disk)]), "several OVF descriptors"),
        (with(&[entry("a.vmdk", b'0', b"404 Not Found")]), "the extension is that of vmdk"),
        (with(&[entry("a.vmdk", b'0', &disk)])[..5000].to_vec(), "out of bounds"),
        // A descriptor that names itself, or another one.
        (pack(&[("vm.ovf", descriptor(&[("vm.ovf", "")]))]), "a descriptor as the file of a disk"),
        (with(&[entry("a.vmdk", b'0', &text)]), "a descriptor as the file of a disk"),
    ] {
        let error = open(bytes).unwrap_err();
        assert!(error.to_string().contains(message), "{message}: {error}");
    }
    let delta = String::from_utf8(text.clone()).unwrap().replace("ovf:diskId", "ovf:parentRef=\"base\" ovf:diskId");
    let error = open(pack(&[("vm.ovf", delta.into_bytes()), ("a.vmdk", disk)])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    // An image inside of a package names no file outside of it.
    let dir = TempDir::new();
    dir.file("base.raw", &system());
    let base = raw_image(&system());
    qcow2("").backing(base, "base.raw").create(MIB as u64, dir.join("overlay.qcow2")).unwrap();
    let overlay = fs::read(dir.join("overlay.qcow2")).unwrap();
    let path = dir.file("vm.tar", &archive(&[("overlay.qcow2", &overlay)]));
    let error = OpenOptions::new().reference_policy(ReferencePolicy::Any).open(path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Reference, "{error}");
    // The package is not replaced by what is read from it.
    let path = dir.file("vm.ova", &archive(&[("disk.raw", &system())]));
    let image = Image::open(&path).unwrap();
    assert_eq!(raw().convert(&image, &path).unwrap_err().kind(), ErrorKind::Usage);
}

fn ova(list: &str, threads: usize, path: &Path) -> Vec<u8> {
    let converter = Converter::new(Format::VMDK)
        .options(options(list))
        .threads(threads)
        .sync(false)
        .identifiers(Identifiers::Reproducible { time: 1_700_000_000 });
    let disks = [raw_image(&system()), convert_to_qcow2(&data())];
    let reports = converter.convert_to_ova(&disks.iter().collect::<Vec<_>>(), path).unwrap();
    assert_eq!(reports.iter().map(|report| report.virtual_size).collect::<Vec<_>>(), [MIB as u64, 2 * MIB as u64]);
    fs::read(path).unwrap()
}

fn convert_to_qcow2(guest: &[u8]) -> Image {
    let bytes = convert(&qcow2("").compress(true), &raw_image(guest)).0;
    open(bytes).unwrap()
}

#[test]
fn a_written_ova_reads_back_and_is_deterministic() {
    let dir = TempDir::new();
    let path = dir.join("my vm.ova");
    for list in ["", "cpus=4,memory=8G,firmware=efi,controller=sata,nic=none,hwversion=10,name=a <b> & \"c\""] {
        let bytes = ova(list, 1, &path);
        assert_same(&ova(list, 4, &path), &bytes, "threads");
        assert_eq!(dir.names(), ["my vm.ova"]);
        for (disk, guest) in [("1", system()), ("my_vm-disk2.vmdk", data())] {
            let image = OpenOptions::new().member(disk).open(&path).unwrap();
            assert_eq!(image.package_warnings().count(), 0);
            assert_holds(Ok(image), &guest);
        }
        let package: Package = OpenOptions::new().package(&path).unwrap().unwrap();
        let roles: Vec<_> = package.members.iter().map(|member| (member.name.to_string(), member.role)).collect();
        assert_eq!(
            roles,
            [
                ("my_vm.ovf".to_owned(), "descriptor"),
                ("my_vm-disk1.vmdk".to_owned(), "disk"),
                ("my_vm-disk2.vmdk".to_owned(), "disk"),
                ("my_vm.mf".to_owned(), "manifest")
            ]
        );
        assert_eq!(package.disks[1].capacity, Some(2 * MIB as u64));
    }
    let nothing: [&Image; 0] = [];
    assert_eq!(Converter::new(Format::VMDK).convert_to_ova(&nothing, &path).unwrap_err().kind(), ErrorKind::Usage);
    let image = OpenOptions::new().member("1").open(&path).unwrap();
    let onto_itself = Converter::new(Format::VMDK).convert_to_ova(&[&image], &path).unwrap_err();
    assert_eq!(onto_itself.kind(), ErrorKind::Usage);
}

#[test]
fn several_images_get_their_names_together() {
    let dir = TempDir::new();
    let (one, other) = (raw_image(&system()), raw_image(&data()));
    let paths = [dir.join("one.qcow2"), dir.join("other.qcow2")];
    let converter = qcow2("");
    converter.convert_all(&[(&one, &paths[0]), (&other, &paths[1])]).unwrap();
    assert_holds(Image::open(&paths[1]), &data());
    let missing = dir.join("missing/other.qcow2");
    fs::remove_file(&paths[0]).unwrap();
    assert!(converter.convert_all(&[(&one, &paths[0]), (&other, &missing)]).is_err());
    assert_eq!(dir.names(), ["other.qcow2"]);
}

#[cfg(feature = "cli")]
mod cli {
    use serde_json::Value;

    use super::*;
    use crate::cli::{fail, imgconv, succeed};

    #[test]
    fn info_lists_members_and_disks() {
        let dir = TempDir::new();
        dir.file("vm.ova", &pack(&two_disks()));
        let text = succeed(&dir, &["info", "vm.ova"]);
        for line in [
            "package: ova",
            "    vm.ovf: descriptor, ",
            "    vm.mf: manifest, ",
            "disk 2: b%20b.vmdk",
            "file format: vmdk",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        let value: Value = serde_json::from_str(&succeed(&dir, &["info", "--output", "json", "vm.ova"])).unwrap();
        assert_eq!((&value["format"], &value["disks"][1]["image"]["virtual-size"]), (&"ova".into(), &(2 * MIB).into()));
        let one: Value =
            serde_json::from_str(&succeed(&dir, &["info", "--output=json", "--disk=2", "vm.ova"])).unwrap();
        assert_eq!(one["virtual-size"], 2 * MIB);
        // What cannot be opened does not hide the rest.
        dir.file("vm.ovf", &descriptor(&[("gone.vmdk", "")]));
        assert!(succeed(&dir, &["info", "vm.ovf"]).contains("not opened: "));
    }

    #[test]
    fn convert_takes_one_disk_or_all() {
        let dir = TempDir::new();
        dir.file("vm.ova", &pack(&two_disks()));
        let message = fail(&dir, 1, &["convert", "vm.ova", "disk.qcow2"]);
        assert!(message.ends_with("select one of 1 'a.vmdk', 2 'b%20b.vmdk'; set it with --disk, or take all with -O FMT and a directory, such as disks/, as TARGET\n"), "{message}");
        succeed(&dir, &["convert", "--disk", "2", "vm.ova", "disk.raw"]);
        assert_same(&fs::read(dir.join("disk.raw")).unwrap(), &data(), "disk 2");
        succeed(&dir, &["convert", "-O", "raw", "vm.ova", "out/"]);
        assert_same(&fs::read(dir.join("out/a.raw")).unwrap(), &system(), "disk 1");
        assert_same(&fs::read(dir.join("out/b%20b.raw")).unwrap(), &data(), "disk 2");
        assert!(fail(&dir, 1, &["convert", "vm.ova", "out"]).contains("set the format of its images with -O"));
        assert!(fail(&dir, 1, &["convert", "-O", "raw", "disk.raw", "out"]).contains("not a package"));
        // Nothing is left of a failure.
        let mut files = two_disks();
        *files[2].1.last_mut().unwrap() ^= 1;
        dir.file("bad.ova", &pack(&files));
        assert!(fail(&dir, 1, &["convert", "-O", "raw", "bad.ova", "new/"]).contains("digest mismatch"));
        assert!(!dir.join("new").exists());
    }

    #[test]
    fn convert_writes_an_ova() {
        let dir = TempDir::new();
        dir.file("a.raw", &system());
        dir.file("b.raw", &data());
        succeed(&dir, &["convert", "-O", "ova", "-o", "cpus=1,memory=512M", "a.raw", "b.raw", "vm.ova"]);
        assert_holds(OpenOptions::new().member("2").open(dir.join("vm.ova")), &data());
        let again = imgconv(&dir, &["convert", "a.raw", "b.raw", "again.ova"]);
        assert!(again.status.success() && again.stderr.is_empty());
        assert!(fail(&dir, 1, &["convert", "-O", "ova", "-o", "x=1", "a.raw", "x.ova"]).contains("option x"));
        assert!(!dir.join("x.ova").exists());
    }

    #[test]
    fn convert_writes_an_ova_to_a_pipe() {
        let dir = TempDir::new();
        dir.file("vm.raw", &system());
        let temporary = dir.join("temporary");
        fs::create_dir(&temporary).unwrap();
        let run = |target: &str, more: &[&str]| {
            let mut command = std::process::Command::new(crate::cli::IMGCONV);
            command.args(["convert", "-O", "ova"]).args(more).args(["vm.raw", target]);
            let done = command.current_dir(dir.path()).env("SOURCE_DATE_EPOCH", "1").output().unwrap();
            assert!(done.status.success() && done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
            done.stdout
        };
        run("vm.ova", &[]);
        let piped = run("-", &["--spool-dir", "temporary"]);
        assert_same(&piped, &fs::read(dir.join("vm.ova")).unwrap(), "the package");
        assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
        let missing = fail(&dir, 1, &["convert", "-O", "ova", "--spool-dir", "missing", "vm.raw", "-"]);
        assert!(missing.contains("missing"), "{missing}");
    }

    #[test]
    fn convert_writes_an_ovf_into_a_directory() {
        let dir = TempDir::new();
        dir.file("a.raw", &system());
        dir.file("b.raw", &data());
        fs::create_dir(dir.join("there")).unwrap();
        for target in ["vm", "there/"] {
            succeed(&dir, &["convert", "-O", "ovf", "-o", "firmware=efi", "a.raw", "b.raw", target]);
            let stem = target.trim_end_matches('/');
            let mut names: Vec<_> = fs::read_dir(dir.join(target))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            let expected = ["-disk1.vmdk", "-disk2.vmdk", ".mf", ".ovf"].map(|end| format!("{stem}{end}"));
            assert_eq!(names, expected);
            let options = OpenOptions::new().reference_policy(ReferencePolicy::Beside).member("2");
            let image = options.open(dir.join(target)).unwrap();
            assert_eq!(image.package_warnings().count(), 0);
            assert_holds(Ok(image), &data());
        }
        let full = fail(&dir, 1, &["convert", "-O", "ovf", "a.raw", "vm"]);
        assert!(full.contains("vm: the directory is not empty"), "{full}");
        assert!(fail(&dir, 1, &["convert", "-O", "ovf", "a.raw", "-"]).contains("directory"));
        // Nothing is left of a failure but the directory that was there.
        let mut files = two_disks();
        *files[1].1.last_mut().unwrap() ^= 1;
        dir.file("bad.ova", &pack(&files));
        fs::create_dir(dir.join("empty")).unwrap();
        for target in ["new", "empty"] {
            let said = fail(&dir, 1, &["convert", "-O", "ovf", "--disk", "1", "bad.ova", target]);
            assert!(said.contains("digest mismatch"), "{said}");
        }
        assert!(!dir.join("new").exists());
        assert_eq!(fs::read_dir(dir.join("empty")).unwrap().count(), 0);
        let missing = fail(&dir, 1, &["convert", "-O", "ovf", "a.raw", "no/where"]);
        assert!(missing.contains("creating the directory"), "{missing}");
    }

    #[test]
    fn packages_are_read_from_standard_input() {
        use std::io::Write;
        use std::process::{Command, Stdio};

        let dir = TempDir::new();
        let run = |args: &[&str], bytes: &[u8]| {
            let mut command = Command::new(crate::cli::IMGCONV);
            command.arg("convert").args(args).current_dir(dir.path()).env_remove("TMPDIR");
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(move || stdin.write_all(bytes));
                let done = child.wait_with_output().unwrap();
                (done.status.code(), String::from_utf8(done.stderr).unwrap())
            })
        };
        let package = pack(&two_disks());
        let succeeded = (Some(0), String::new());
        assert_eq!(run(&["--disk", "2", "-", "disk.raw"], &package), succeeded);
        assert_same(&fs::read(dir.join("disk.raw")).unwrap(), &data(), "disk 2");
        assert_eq!(run(&["-f", "vmdk", "--disk", "1", "-", "disk.raw"], &package), succeeded);
        assert_same(&fs::read(dir.join("disk.raw")).unwrap(), &system(), "disk 1");
        assert_eq!(run(&["-", "disk.raw"], &pack(&[("disk.raw", data())])), succeeded);
        assert_same(&fs::read(dir.join("disk.raw")).unwrap(), &data(), "the disk of the archive");
        // As they are.
        assert_eq!(run(&["-f", "raw", "-", "disk.raw"], &package), succeeded);
        assert_same(&fs::read(dir.join("disk.raw")).unwrap(), &package, "the bytes");
        let mut damaged = two_disks();
        *damaged[1].1.last_mut().unwrap() ^= 1;
        for (args, bytes, word) in [
            (&["-", "x.raw"][..], package.clone(), "select one of"),
            (&["--disk", "1", "-", "x.raw"], pack(&damaged), "digest mismatch"),
            (&["-", "x.raw"], package[..5000].to_vec(), "out of bounds"),
            (&["-", "x.raw"], descriptor(&[("a.vmdk", "")]), "not a disk"),
            (&["--disk", "1", "-f", "raw", "-", "x.raw"], vec![7; 4096], "not a package"),
            (&["--disk", "1", "-f", "vmdk", "-", "x.raw"], stream(&data()), "not a package"),
        ] {
            let (code, said) = run(args, &bytes);
            assert!(code == Some(1) && said.contains(word), "{args:?}: {said}");
        }
        assert_eq!(dir.names(), ["disk.raw"]);
    }

    #[test]
    fn disks_of_packages_are_compared() {
        let dir = TempDir::new();
        dir.file("vm.ova", &pack(&two_disks()));
        dir.file("a.raw", &system());
        succeed(&dir, &["compare", "--disk", "1", "vm.ova", "a.raw"]);
        succeed(&dir, &["compare", "a.raw", "--b-disk", "a.vmdk", "vm.ova"]);
        succeed(&dir, &["compare", "--a-disk", "2", "--b-disk", "disk-1", "vm.ova", "vm.ova"]);
        let different = imgconv(&dir, &["compare", "--a-disk=1", "--b-disk=2", "vm.ova", "vm.ova"]);
        assert_eq!(different.status.code(), Some(1));
        assert!(fail(&dir, 2, &["compare", "vm.ova", "a.raw"]).ends_with("; set it with --disk\n"));
        assert!(fail(&dir, 2, &["compare", "a.raw", "vm.ova"]).ends_with("; set it with --b-disk\n"));
    }

    #[test]
    fn convert_writes_images_of_google() {
        let dir = TempDir::new();
        dir.file("a.raw", &system());
        let said = imgconv(&dir, &["convert", "-O", "gcp", "a.raw", "image.tar.gz"]);
        assert!(said.status.success());
        let padding = (1 << 30) - MIB;
        assert_eq!(
            String::from_utf8(said.stderr).unwrap(),
            format!("imgconv: image.tar.gz: the disk was padded with {padding} zero bytes\n")
        );
        for (args, word) in [
            (&["-O", "gcp", "--compress-output", "zstd", "a.raw", "x.tar.gz"][..], "compression"),
            (&["-O", "gcp", "-c", "a.raw", "x.tar.gz"], "compress"),
            (&["-O", "gcp", "-o", "preallocation=full", "a.raw", "x.tar.gz"], "preallocation"),
            (&["a.raw", "x.tar.gz"], "-O"),
        ] {
            let said = fail(&dir, 1, &[&["convert"], args].concat());
            assert!(said.contains(word), "{said}");
        }
        assert_eq!(dir.names(), ["a.raw", "image.tar.gz"]);
    }
}
