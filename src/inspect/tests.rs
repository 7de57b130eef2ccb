use std::sync::Arc;

use super::{Judgement, Policy, Verdict};
use crate::io::MemFile;
use crate::{OpenOptions, Result};

fn judge(policy: &Policy, bytes: Vec<u8>) -> Judgement {
    policy.judge_source(&OpenOptions::new(), Arc::new(MemFile::from(bytes)))
}

fn checks(judgement: &Judgement) -> Vec<&'static str> {
    judgement.findings.iter().map(|finding| finding.check).collect()
}

/// A disk with the signature of an optical disc.
fn optical_disc() -> Vec<u8> {
    let mut disc = vec![0; 64 << 10];
    disc[0x8001..0x8006].copy_from_slice(b"CD001");
    disc
}

#[test]
fn raw_disks_are_judged_by_their_content() -> Result<()> {
    let default = Policy::default();
    assert_eq!(judge(&default, optical_disc()).verdict, Verdict::Safe);
    let disks_only = Policy::parse("content = ['disk']")?;
    let judged = judge(&disks_only, optical_disc());
    assert_eq!((judged.verdict, checks(&judged)), (Verdict::Unsafe, vec!["content"]));
    assert_eq!(judged.findings[0].value.as_deref(), Some("optical-disc"));
    assert_eq!(judge(&disks_only, vec![1; 512]).verdict, Verdict::Safe);
    Ok(())
}

#[test]
fn sizes_are_limited() -> Result<()> {
    let policy = Policy::parse("virtual-size = 4096\nfile-size = 4096\nexpansion = 1")?;
    assert_eq!(judge(&policy, vec![0; 4096]).verdict, Verdict::Safe);
    assert_eq!(checks(&judge(&policy, vec![0; 4608])), ["file-size", "virtual-size"]);
    Ok(())
}

#[test]
fn what_is_no_disk_is_refused() {
    let markup = b"<html><body>Not found</body></html>".repeat(20);
    let judged = judge(&Policy::default(), markup);
    assert_eq!((judged.verdict, checks(&judged), judged.format), (Verdict::Unsafe, vec!["format"], None));
    for file in [b"root:x:0:0:root:/root:/bin/bash\n".to_vec(), Vec::new()] {
        assert_eq!(checks(&judge(&Policy::default(), file)), ["content"]);
    }
    assert_eq!(judge(&Policy::default(), vec![0; 512]).verdict, Verdict::Safe);
}

#[cfg(all(feature = "qcow2", feature = "write"))]
mod qcow2 {
    use super::*;
    use crate::{Converter, Format, Options};
    #[cfg(feature = "deflate")]
    use crate::{Span, driver::ExtentKind};

    fn image(options: &str) -> Vec<u8> {
        let mut list = Options::new();
        list.add_list(options);
        let file = Arc::new(MemFile::new());
        Converter::new(Format::QCOW2).options(list).create_to(1 << 20, file.clone()).unwrap();
        file.to_vec()
    }

    #[test]
    fn a_good_image_is_safe_in_every_policy() -> Result<()> {
        for name in Policy::names() {
            let judged = judge(&Policy::built_in(name)?, image(""));
            assert_eq!(
                judged,
                Judgement {
                    verdict: Verdict::Safe,
                    format: Some("qcow2"),
                    virtual_size: Some(1 << 20),
                    ..Judgement::default()
                },
                "{name}"
            );
        }
        Ok(())
    }

    #[test]
    fn each_damage_has_its_check() {
        let number = |file: &[u8], at: usize| {
            let bytes: [u8; 8] = file[at..at + 8].try_into().unwrap();
            u64::from_be_bytes(bytes) as usize
        };
        let refcount_table = number(&image(""), 48);
        let refcounts = number(&image(""), refcount_table);
        // The field, its new value, the verdict and the check.
        let cases: [(usize, &[u8], Verdict, &str); 6] = [
            // The version.
            (4, &[0, 0, 0, 9], Verdict::Unknown, "features"),
            // An incompatible feature without a name.
            (72, &[0, 0, 0, 0, 0, 0, 1, 0], Verdict::Unknown, "features"),
            (72, &[0, 0, 0, 0, 0, 0, 0, 2], Verdict::Unsafe, "corrupt"),
            // The offset of the L1 table.
            (40, &[0, 0, 0, 0, 0, 0xff, 0, 0], Verdict::Unsafe, "structure"),
            // The refcount of the header.
            (refcounts, &[0, 0], Verdict::Unsafe, "metadata"),
            // The virtual size: 2^63.
            (24, &[0x80, 0, 0, 0, 0, 0, 0, 0], Verdict::Unsafe, "limits"),
        ];
        for (at, bytes, verdict, check) in cases {
            let mut file = image("");
            file[at..at + bytes.len()].copy_from_slice(bytes);
            let judged = judge(&Policy::default(), file);
            assert_eq!(
                (judged.verdict, checks(&judged).contains(&check)),
                (verdict, true),
                "{at}: {:?}",
                judged.findings
            );
        }
    }

    #[cfg(feature = "deflate")]
    #[test]
    fn payloads_are_decoded_if_the_policy_says_so() -> Result<()> {
        let disk =
            OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(b"data".repeat(1 << 16))))?;
        let file = Arc::new(MemFile::new());
        Converter::new(Format::QCOW2).compress(true).convert_to(&disk, file.clone())?;
        let mut file = file.to_vec();
        let read = Policy::parse("read-data = true")?;
        assert_eq!(judge(&read, file.clone()).verdict, Verdict::Safe);
        let image = OpenOptions::new().open_source(Arc::new(MemFile::from(file.clone())))?;
        let Some(Ok(Span { kind: ExtentKind::Compressed(unit), .. })) = image.spans(0..1).next() else { panic!() };
        file[unit.at.offset as usize..][..4].fill(0xff);
        assert_eq!(judge(&Policy::default(), file.clone()).verdict, Verdict::Safe);
        let judged = judge(&read, file);
        assert_eq!((judged.verdict, checks(&judged)), (Verdict::Unsafe, vec!["structure"]));
        Ok(())
    }

    #[test]
    fn an_image_that_is_a_disc_too_is_refused() {
        let mut file = image("");
        file[0x8001..0x8006].copy_from_slice(b"CD001");
        assert_eq!(checks(&judge(&Policy::default(), file)), ["signatures"]);
        // Where other signatures come before, and after another volume descriptor.
        let places: [&[(usize, &[u8])]; 3] = [
            &[(0x8801, b"CD001")],
            &[(510, b"\x55\xaa"), (0x438, b"\x53\xef")],
            &[(512, b"EFI PART"), (0x400, b"\x10\x20\xf5\xf2")],
        ];
        for changes in places {
            let mut file = image("");
            changes.iter().for_each(|(at, bytes)| file[*at..at + bytes.len()].copy_from_slice(bytes));
            assert_eq!(checks(&judge(&Policy::default(), file)), ["signatures"], "{changes:x?}");
        }
    }

    #[test]
    fn an_empty_disk_is_refused() {
        let file = Arc::new(MemFile::new());
        Converter::new(Format::QCOW2).create_to(0, file.clone()).unwrap();
        assert_eq!(checks(&judge(&Policy::default(), file.to_vec())), ["content"]);
    }

    #[test]
    fn the_dirty_bit_is_for_the_policy() -> Result<()> {
        let mut file = image("lazy_refcounts=on");
        file[72 + 7] = 1;
        assert_eq!(judge(&Policy::default(), file.clone()).verdict, Verdict::Safe);
        assert_eq!(checks(&judge(&Policy::built_in("strict")?, file)), ["closed"]);
        Ok(())
    }
}

/// Images that this crate reads as one disk, and QEMU as one with files of the host.
#[cfg(all(feature = "vmdk", feature = "write"))]
#[test]
fn files_that_only_qemu_sees_in_a_vmdk_are_refused() {
    use crate::{Converter, Format};

    const SECTOR: usize = 512;
    let disk = Arc::new(MemFile::new());
    Converter::new(Format::VMDK).create_to(1 << 20, disk.clone()).unwrap();
    let disk = disk.to_vec();
    assert_eq!(judge(&Policy::built_in("strict").unwrap(), disk.clone()).findings, []);
    let text_len = disk[SECTOR..].iter().position(|byte| *byte == 0).unwrap();
    let text = String::from_utf8(disk[SECTOR..SECTOR + text_len].to_vec()).unwrap();
    let hint = "parentFileNameHint=\"/etc/passwd\"\n";
    let with_header = |mut file: Vec<u8>, [offset, size]: [u64; 2]| {
        file[28..36].copy_from_slice(&offset.to_le_bytes());
        file[36..44].copy_from_slice(&size.to_le_bytes());
        file
    };
    let with_text = |text: &str| {
        let mut file = disk.clone();
        file[SECTOR..SECTOR + 20 * SECTOR].fill(0);
        file[SECTOR..SECTOR + text.len()].copy_from_slice(text.as_bytes());
        file
    };
    let elsewhere = |descriptor: [u64; 2]| {
        let mut file = with_text(hint);
        file.resize(file.len().next_multiple_of(SECTOR), 0);
        let end = (file.len() / SECTOR) as u64;
        file.extend(text.as_bytes());
        file.resize((end as usize + 20) * SECTOR, 0);
        with_header(file, if descriptor[1] == 0 { descriptor } else { [end, 20] })
    };
    let padded = format!("{text}{}\n", "#".repeat(2 * SECTOR - 1 - text.len()));
    for (file, what) in [
        (with_text(&format!("{text}RW\x0b8 FLAT \"/etc/passwd\" 0 a=b\n")), "a blank that is none"),
        (with_text(&format!("#\rRW 8 FLAT \"/etc/passwd\" 0\n{text}")), "a line end that is none"),
        (with_text(&format!("# createType=\"monolithicFlat\"\n{text}")), "another type"),
        (with_text(&format!("{text}parentFileNameHint=\n/etc/passwd\"=x\n")), "a name in the next line"),
    ] {
        let judged = judge(&Policy::default(), file);
        assert_eq!((judged.verdict, checks(&judged)), (Verdict::Unsafe, vec!["structure"]), "{what}");
    }
    for (file, what) in [
        (elsewhere([1, 20]), "a descriptor elsewhere"),
        (elsewhere([0, 0]), "no descriptor"),
        (with_header(with_text(&format!("{padded}{hint}")), [1, 2]), "after the descriptor"),
    ] {
        let judged = judge(&Policy::default(), file);
        assert_eq!((judged.verdict, checks(&judged)), (Verdict::Unsafe, vec!["ambiguities"]), "{what}");
    }
    for (text, check) in [
        ("#\x01\rx\nversion=1\n", "structure"),
        ("# Disk DescriptorFile\n#\x01\nCID=12345678\nversion=1\n", "external-files"),
    ] {
        let text = format!("{text}createType=\"monolithicFlat\"\nRW 8 FLAT \"/etc/passwd\" 0\n");
        assert_eq!(checks(&judge(&Policy::default(), text.into_bytes())), [check]);
    }
}

/// Files that QEMU takes for a descriptor of VMDK: a comment has any bytes up to the line feed.
#[cfg(all(feature = "vmdk", feature = "vhd", feature = "vdi", feature = "write"))]
#[test]
fn descriptors_that_only_qemu_sees_are_refused() -> Result<()> {
    use crate::{Converter, Format, Options};

    let image = |format, options: &str| {
        let mut list = Options::new();
        list.add_list(options);
        let file = Arc::new(MemFile::new());
        Converter::new(format).options(list).create_to(1 << 20, file.clone()).map(|_| file.to_vec())
    };
    let mut partitions = vec![0; 64 << 10];
    partitions[510..512].copy_from_slice(b"\x55\xaa");
    for (file, line_at, expected) in [
        (partitions, 64, "structure"),
        (optical_disc(), 64, "structure"),
        (image(Format::VHD, "subformat=fixed")?, 64, "signatures"),
        // The comment.
        (image(Format::VDI, "")?, 84, "signatures"),
    ] {
        assert_eq!(judge(&Policy::default(), file.clone()).findings, []);
        let mut crafted = file;
        crafted[..60].fill(0);
        crafted[..8].copy_from_slice(b"# text\0\xff");
        crafted[line_at..][..11].copy_from_slice(b"\nversion=1\n");
        let judged = judge(&Policy::default(), crafted);
        assert_eq!((judged.verdict, checks(&judged)), (Verdict::Unsafe, vec![expected]), "{:?}", judged.findings);
    }
    Ok(())
}

/// A fixed VHD whose guest disk is a LUKS volume, or a LUKS volume that ends as a VHD. It is opened as a VHD, and refused.
#[cfg(all(feature = "vhd", feature = "crypto", feature = "write"))]
#[test]
fn a_luks_volume_in_a_fixed_vhd_is_refused() -> Result<()> {
    use crate::{Converter, Format, Options};

    let mut volume = vec![0; 1 << 20];
    volume[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
    let disk = OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(volume.clone())))?;
    let (file, mut options) = (Arc::new(MemFile::new()), Options::new());
    options.set("subformat", "fixed");
    Converter::new(Format::VHD).options(options).convert_to(&disk, file.clone())?;
    let judged = judge(&Policy::default(), file.to_vec());
    assert_eq!((judged.verdict, checks(&judged)), (Verdict::Unsafe, vec!["signatures"]));
    let disk = OpenOptions::new().open_source(file)?;
    let mut guest = vec![0; 1 << 20];
    disk.read_exact_at(&mut guest, 0)?;
    assert!(guest == volume);
    Ok(())
}

/// What prevents nothing is for the policy; another size in another program is not.
#[cfg(all(feature = "vhd", feature = "write"))]
#[test]
fn what_other_programs_read_in_a_vhd_is_judged() -> Result<()> {
    use crate::{Converter, Format};

    let disk = OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(vec![7; 1 << 20])))?;
    let file = Arc::new(MemFile::new());
    Converter::new(Format::VHD).convert_to(&disk, file.clone())?;
    let good = file.to_vec();
    let strict = Policy::built_in("strict")?;
    assert_eq!(judge(&strict, good.clone()).findings, []);
    let number = |at: usize| good[at..at + 4].iter().fold(0, |number, byte| number << 8 | usize::from(*byte));
    let bitmap = 512 * number(number(512 + 20));
    let mut hiding = good.clone();
    hiding[bitmap] = 0x7f;
    assert_eq!(checks(&judge(&strict, hiding.clone())), ["warnings"]);
    assert_eq!(judge(&Policy::default(), hiding).findings, []);

    let mut sized = good;
    let end = sized.len() - 512;
    for footer in [0, end] {
        let footer = &mut sized[footer..footer + 512];
        footer[28..32].copy_from_slice(b"vpc ");
        footer[56..60].fill(0);
        footer[64..68].fill(0);
        let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
        footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    }
    assert_eq!(checks(&judge(&Policy::default(), sized)), ["ambiguities"]);
    Ok(())
}

#[test]
fn a_policy_lowers_limits() -> Result<()> {
    let policy = Policy::parse("limits = { virtual-size = 4096 }")?;
    assert_eq!(judge(&policy, vec![0; 4096]).verdict, Verdict::Safe);
    let judged = judge(&policy, vec![0; 4608]);
    assert_eq!((judged.verdict, checks(&judged)), (Verdict::Unsafe, vec!["limits"]));
    assert_eq!(judge(&Policy::default(), vec![0; 4608]).verdict, Verdict::Safe);
    Ok(())
}

/// A check needs more memory than opening the image does.
#[cfg(all(feature = "qcow2", feature = "vhd", feature = "vhdx", feature = "vdi", feature = "write"))]
#[test]
fn limits_hold_for_the_check_too() -> Result<()> {
    use crate::{Converter, Format};

    // The memory that opening each takes, but a few bytes.
    for (format, metadata) in [(Format::QCOW2, 8), (Format::VHD, 1), (Format::VHDX, 1), (Format::VDI, 1)] {
        let disk = OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(vec![7; 16 << 20])))?;
        let file = Arc::new(MemFile::new());
        Converter::new(format).convert_to(&disk, file.clone())?;
        let policy = Policy::parse(&format!("limits = {{ metadata = {metadata} }}"))?;
        policy.limit(&OpenOptions::new()).open_source(file.clone())?;
        let judged = judge(&policy, file.to_vec());
        assert_eq!((judged.verdict, checks(&judged)), (Verdict::Unsafe, vec!["limits"]), "{format}");
        assert!(judged.findings[0].message.contains("metadata"), "{}", judged.findings[0].message);
    }
    Ok(())
}

#[cfg(all(feature = "crypto", feature = "write"))]
#[test]
fn the_cost_of_key_slots_is_judged_without_a_secret() {
    use crate::{Converter, Format, Options, Secret};

    let mut options = Options::new();
    options.set("iter-time", "1");
    let file = Arc::new(MemFile::new());
    let converter = Converter::new(Format::LUKS).options(options).secret(Secret::new("secret"));
    converter.create_to(1 << 16, file.clone()).unwrap();
    let mut file = file.to_vec();
    assert_eq!(judge(&Policy::default(), file.clone()).verdict, Verdict::Safe);
    for (secret, expected) in [("secret", vec![]), ("wrong", vec!["encryption"])] {
        let options = OpenOptions::new().secret(Secret::new(secret));
        let judged = Policy::default().judge_source(&options, Arc::new(MemFile::from(file.clone())));
        assert_eq!(checks(&judged), expected, "{secret}");
    }
    // The iterations of the first slot.
    file[208 + 4..][..4].fill(0xff);
    let judged = judge(&Policy::default(), file);
    assert_eq!((judged.verdict, checks(&judged)), (Verdict::Unsafe, vec!["limits"]));
}

#[cfg(all(feature = "vdi", feature = "vhdx", feature = "write"))]
#[test]
fn what_follows_the_last_block_is_for_the_policy() -> Result<()> {
    use crate::{Converter, Format};

    for format in [Format::VDI, Format::VHDX] {
        let disk = OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(vec![7; 1 << 20])))?;
        let file = Arc::new(MemFile::new());
        Converter::new(format).convert_to(&disk, file.clone())?;
        let mut file = file.to_vec();
        let tight = Policy::parse("leaks = false")?;
        assert_eq!(
            judge(&tight, file.clone()),
            Judgement {
                verdict: Verdict::Safe,
                format: Some(format.name()),
                virtual_size: Some(1 << 20),
                ..Judgement::default()
            }
        );
        file.extend(vec![7; 1 << 20]);
        assert_eq!(checks(&judge(&tight, file.clone())), ["leaks"], "{format}");
        assert_eq!(judge(&Policy::default(), file).verdict, Verdict::Safe);
    }
    Ok(())
}

#[cfg(feature = "packages")]
#[test]
fn the_disks_of_a_descriptor_are_other_files() -> Result<()> {
    let descriptor = br#"<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"><References><File href="a.img" id="f"/></References>
<DiskSection><Disk diskId="d" fileRef="f"/></DiskSection></Envelope>"#;
    for (policy, verdict, expected) in [
        ("", Verdict::Unsafe, vec!["external-files"]),
        ("external-files = true", Verdict::Safe, vec![]),
        ("external-files = true\nread-data = true", Verdict::Unknown, vec!["external-files"]),
    ] {
        let judged = judge(&Policy::parse(policy)?, descriptor.to_vec());
        assert_eq!((judged.verdict, checks(&judged)), (verdict, expected), "{policy}");
        assert_eq!(judged.external_files, [crate::Name::from("a.img")]);
    }
    Ok(())
}

#[cfg(feature = "packages")]
#[test]
fn manifests_are_verified_with_the_data() -> Result<()> {
    use crate::package::tar::tests::entry;

    let descriptor = br#"<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"><References><File href="a.img" id="f"/></References>
<DiskSection><Disk diskId="d" fileRef="f"/></DiskSection></Envelope>"#;
    let package = |manifest: &str| {
        let (disk, manifest) = (entry("a.img", b'0', &[0; 512]), entry("vm.mf", b'0', manifest.as_bytes()));
        [entry("vm.ovf", b'0', descriptor), manifest, disk, vec![0; 1024]].concat()
    };
    // The SHA-1 of 512 zeros.
    let (good, bad) = (
        "SHA1(a.img)= 5c3eb80066420002bc3dcc7ca4ab6efad7ed4ae5\n",
        "SHA1(a.img)= 5c3eb80066420002bc3dcc7ca4ab6efad7ed4ae6\n",
    );
    let read = Policy::parse("read-data = true")?;
    assert_eq!(judge(&read, package(good)).findings, []);
    assert_eq!(judge(&Policy::default(), package(bad)).findings, []);
    let judged = judge(&read, package(bad));
    assert_eq!((judged.verdict, checks(&judged)), (Verdict::Unsafe, vec!["packages"]));
    Ok(())
}

#[cfg(all(feature = "compressed", feature = "qcow2", feature = "write"))]
#[test]
fn a_compressed_file_is_decoded_once() -> Result<()> {
    use crate::compressed::Compression;
    use crate::compressed::tests::encode;
    use crate::testing::{CountedFile, noise};
    use crate::{Converter, Format};

    let guest = Arc::new(MemFile::from(noise(4 << 20, 1)));
    let disk = OpenOptions::new().format(Format::RAW).open_source(guest)?;
    let image = Arc::new(MemFile::new());
    Converter::new(Format::QCOW2).convert_to(&disk, image.clone())?;
    let stored = encode(Compression::Gzip, &image.to_vec());
    let file = Arc::new(CountedFile::from(stored.clone()));
    let judged = Policy::parse("read-data = true")?.judge_source(&OpenOptions::new(), file.clone());
    assert_eq!((judged.verdict, judged.compression), (Verdict::Safe, vec!["gzip"]));
    // And the ends, which tell the format.
    let (read, stored) = (file.bytes_read(), stored.len() as u64);
    assert!((stored..stored + (1 << 20)).contains(&read), "{read} bytes of {stored}");
    Ok(())
}

/// The image is what counts, not the file that it is stored in.
#[cfg(all(feature = "compressed", feature = "packages", feature = "qcow2", feature = "write"))]
#[test]
fn signatures_are_found_in_compressed_files_and_packages() {
    use crate::compressed::Compression;
    use crate::compressed::tests::encode;
    use crate::package::tar::tests::entry;
    use crate::{Converter, Format};

    let image = Arc::new(MemFile::new());
    Converter::new(Format::QCOW2).create_to(1 << 20, image.clone()).unwrap();
    let good = image.to_vec();
    let mut disc = good.clone();
    disc[0x8001..0x8006].copy_from_slice(b"CD001");
    for (image, expected) in [(good, vec![]), (disc, vec!["signatures"])] {
        let package = [entry("a.qcow2", b'0', &image), vec![0; 1024]].concat();
        for file in [encode(Compression::Gzip, &image), encode(Compression::Zstd, &package), package] {
            assert_eq!(checks(&judge(&Policy::default(), file)), expected);
        }
    }
}

#[test]
fn a_ramdisk_is_for_the_policy() -> Result<()> {
    let mut archive = b"070701".to_vec();
    archive.extend(b"0".repeat(104));
    archive.resize(1024, 0);
    for (policy, expected) in [("content = ['ramdisk']", vec![]), ("content = ['disk']", vec!["content"])] {
        assert_eq!(checks(&judge(&Policy::parse(policy)?, archive.clone())), expected);
    }
    Ok(())
}

#[cfg(unix)]
#[test]
fn a_file_that_changes_meanwhile_is_not_safe() {
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;
    use std::time::{Duration, SystemTime};

    use crate::io::{FileSource, ReadAt};
    use crate::testing::TempDir;

    /// A file that somebody writes to at this offset, if there is one, each time that it is read.
    struct Changing(FileSource, PathBuf, Option<u64>);

    impl ReadAt for Changing {
        fn size(&self) -> io::Result<u64> {
            self.0.size()
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            if let Some(at) = self.2 {
                File::options().write(true).open(&self.1)?.write_all_at(&[8], at)?;
            }
            self.0.read_at(buf, offset)
        }

        fn as_file(&self) -> Option<&File> {
            self.0.as_file()
        }
    }

    let dir = TempDir::new();
    for (at, expected) in [(None, &[][..]), (Some(7), &["readable"]), (Some(5000), &["readable"])] {
        let path = dir.file("disk.raw", &[7; 4096]);
        let old = SystemTime::now() - Duration::from_secs(60);
        File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        let source = Changing(FileSource::open(&path).unwrap(), path, at);
        assert_eq!(checks(&Policy::default().judge_source(&OpenOptions::new(), Arc::new(source))), expected, "{at:?}");
    }
}

#[test]
fn the_data_of_a_refused_disk_is_not_read() -> Result<()> {
    use crate::testing::CountedFile;

    for (policy, read_all) in [("read-data = true", true), ("read-data = true\nvirtual-size = '1M'", false)] {
        let file = Arc::new(CountedFile::from(vec![7; 8 << 20]));
        let judged = Policy::parse(policy)?.judge_source(&OpenOptions::new(), file.clone());
        assert_eq!((judged.verdict == Verdict::Safe, file.bytes_read() >= 8 << 20), (read_all, read_all));
    }
    Ok(())
}

/// What the check of a driver finds has the same fields as what opening the image fails with, and is told once.
#[cfg(all(feature = "vhdx", feature = "write"))]
#[test]
fn findings_of_a_check_have_field_and_offset() -> Result<()> {
    use crate::{Converter, Format};

    let disk = OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(vec![7; 32 << 20])))?;
    let file = Arc::new(MemFile::new());
    Converter::new(Format::VHDX).convert_to(&disk, file.clone())?;
    let mut file = file.to_vec();
    file.truncate(file.len() - (1 << 20));
    for policy in ["read-data = false", "read-data = true"] {
        let judged = judge(&Policy::parse(policy)?, file.clone());
        let [finding] = judged.findings.as_slice() else { panic!("{:?}", judged.findings) };
        assert_eq!((finding.check, finding.field.as_deref()), ("structure", Some("payload BAT entry")));
        assert!(finding.offset.is_some() && finding.value.is_some() && judged.verdict == Verdict::Unsafe);
    }
    Ok(())
}
