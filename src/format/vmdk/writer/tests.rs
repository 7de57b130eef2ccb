//! Images by the writers, read by an independent simple reader and by qemu-img.

mod model;

use std::ffi::OsStr;
use std::sync::Arc;

use proptest::prelude::*;

use self::model::{Case, Dir, SPLIT, Step, Target, context, place};
use super::*;
use crate::driver::NewBacking;
use crate::error::Error;
use crate::format::vmdk::DRIVER;
use crate::format::vmdk::header::{Directory, Header};
use crate::image::OpenOptions;
use crate::info::{ImageInfo, Value};
use crate::io::MemFile;
use crate::options::Options;

const GRAIN: u64 = 64 << 10;
const TABLE: u64 = 512 * GRAIN;

const SUBFORMATS: [&str; 6] =
    ["monolithicSparse", "streamOptimized", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "vmfs"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![Just(1u64), Just(GRAIN), Just(512), 1..3 * GRAIN, (1u64..6).prop_map(|n| n * GRAIN)];
    let step = (0..4, len).prop_map(|(kind, len)| match kind {
        0 => Step::Skip(len),
        1 => Step::Zero(len),
        _ => Step::Store(len),
    });
    prop::collection::vec(step, 0..14)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn written_images_are_valid(
        subformat in prop::sample::select(SUBFORMATS.to_vec()), size in prop_oneof![1u64..2000, 1u64..700_000],
        steps in steps(), device in any::<bool>(), parent in any::<bool>(), zeroed in any::<bool>(),
    ) {
        let sparse = subformat == "monolithicSparse";
        let zeroed_grain = zeroed && matches!(subformat, "monolithicSparse" | "twoGbMaxExtentSparse");
        let options = format!("subformat={subformat}{}", if zeroed_grain { ",zeroed_grain=on" } else { "" });
        Case { size, options, device: device && sparse, parent: parent && sparse, steps }.verify();
    }
}

#[test]
fn tables_and_the_last_grain() {
    // A grain on both sides of a table boundary, a table without grains, and a last grain of one sector.
    let steps = [
        Step::Skip(TABLE - GRAIN),
        Step::Store(2 * GRAIN),
        Step::Skip(TABLE),
        Step::Skip(GRAIN / 2),
        Step::Store(GRAIN),
        Step::Skip(TABLE - GRAIN * 4),
        Step::Store(TABLE),
    ];
    for options in ["", "subformat=streamOptimized", "subformat=twoGbMaxExtentSparse"] {
        Case::new(3 * TABLE + 512, options, &steps).verify();
    }
}

#[test]
fn zero_grains_over_a_parent() {
    let steps = [Step::Store(GRAIN), Step::Zero(3 * GRAIN), Step::Skip(GRAIN), Step::Zero(TABLE), Step::Store(1)];
    for device in [false, true] {
        let case = |options: &str| {
            let plain = Case::new(TABLE + 9 * GRAIN + 512, options, &steps);
            Case { device, parent: true, ..plain }
        };
        let with_data = case("").verify();
        let with_entries = case("zeroed_grain=on").verify();
        if !device {
            assert_eq!(
                with_data.len() - with_entries.len(),
                (3 * GRAIN + TABLE) as usize,
                "each zero grain is allocated"
            );
        }
    }
}

#[test]
fn streams_are_written_sequentially() {
    // The target checks that writes are sequential.
    let steps: Vec<_> = (0..40).map(|n| if n % 3 == 0 { Step::Skip(n * GRAIN) } else { Step::Store(GRAIN) }).collect();
    for level in 1..=9 {
        let options = format!("subformat=streamOptimized,compression_level={level}");
        Case::new(3 * TABLE + 700, &options, &steps).verify();
    }
    Case::new(1, "subformat=streamOptimized", &[]).verify();
    let options = Options::new();
    let out = Arc::new(Target::device());
    let mut stream = Options::new();
    stream.add_list("subformat=streamOptimized");
    assert_eq!(create(&context(512, &stream, out.clone(), None)).err().unwrap().kind().as_str(), "unsupported");
    assert!(create(&context(512, &options, out, None)).is_ok());
}

#[test]
fn empty_disks_are_refused() {
    for subformat in SUBFORMATS {
        let mut options = Options::new();
        options.set("subformat", subformat.to_owned());
        let dir = Dir::new("disk.vmdk");
        let error = create(&context(0, &options, Arc::new(Target::counting()), Some(&dir))).err().unwrap();
        assert_eq!(error.to_string(), "vmdk: not supported: an empty disk, which qemu does not open");
        assert!(dir.names().is_empty());
    }
}

#[test]
fn an_image_created_empty_has_its_tables_before_the_grains() {
    let mut options = Options::new();
    options.add_list("subformat=streamOptimized");
    let file = Arc::new(MemFile::new());
    let cx = CreateContext { empty: true, ..CreateContext::new(3 << 30, &options, file.clone()) };
    let mut writer = create(&cx).unwrap();
    // It is no writer of compressed grains.
    assert_eq!(writer.place(0..GRAIN).unwrap_err().kind().as_str(), "unsupported");
    assert_eq!(writer.place_compressed(0..GRAIN, 100).unwrap_err().kind().as_str(), "unsupported");
    writer.finish(&cx.identifiers).unwrap();
    let header = Header::parse(&file.to_vec(), 0, &Limits::default()).unwrap();
    assert_eq!((header.version, header.flags.bits()), (3, 0x30003));
    assert_eq!((header.redundant_directory, header.directory), (Some(Directory::At(21)), Directory::At(406)));
    // The first grain that its owner appends follows the tables.
    assert_eq!(file.to_vec().len() as u64, header.overhead * 512);
    let image = OpenOptions::new().open_source(file).unwrap();
    assert_eq!(image.virtual_size(), 3 << 30);
    assert!(image.spans(0..u64::MAX).all(|span| span.unwrap().is_zero()));
}

#[test]
fn extents_end_at_2047_mib() {
    for (subformat, letter) in [("twoGbMaxExtentSparse", 's'), ("twoGbMaxExtentFlat", 'f')] {
        for (size, lens) in [
            (SPLIT - 512, vec![SPLIT - 512]),
            (SPLIT, vec![SPLIT]),
            (SPLIT + 512, vec![SPLIT, 512]),
            (3 * SPLIT, vec![SPLIT; 3]),
            (2 * SPLIT + 100, vec![SPLIT, SPLIT, 512]),
        ] {
            let dir = Dir::new("disk.vmdk");
            let mut options = Options::new();
            options.set("subformat", subformat.to_owned());
            let out = Arc::new(Target::counting());
            let mut writer = create(&context(size, &options, out.clone(), Some(&dir))).unwrap();
            let names: Vec<_> = (1..=lens.len()).map(|number| format!("disk-{letter}{number:03}.vmdk")).collect();
            assert_eq!(dir.names(), names);
            // A range across the boundary is split.
            if size > SPLIT {
                let guest = SPLIT - GRAIN..(SPLIT + GRAIN).min(size.next_multiple_of(512));
                let first = writer.place(guest.clone()).unwrap();
                assert_eq!(first.len, GRAIN);
                let second = writer.place(SPLIT..guest.end).unwrap();
                assert_eq!(second.len, guest.end - SPLIT);
                assert!(!Arc::ptr_eq(&first.out, &second.out));
                if letter == 'f' {
                    assert_eq!((first.offset, second.offset), (SPLIT - GRAIN, 0));
                }
            }
            assert!(writer.place(size.next_multiple_of(512)..size + 1024).is_err(), "beyond the end of the disk");
            writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
            let text = String::from_utf8(out.text()).unwrap();
            let word = if letter == 'f' { "FLAT" } else { "SPARSE" };
            for (len, name) in lens.iter().zip(&names) {
                let offset = if letter == 'f' { " 0" } else { "" };
                let line = format!("RW {} {word} \"{name}\"{offset}\n", len / 512);
                assert!(text.contains(&line), "{line} {text}");
            }
        }
    }
}

#[test]
fn files_are_limited_to_2_tib() {
    let create = |list: &str, size: u64| {
        let mut options = Options::new();
        options.add_list(list);
        super::create(&context(size, &options, Arc::new(Target::counting()), None))
    };
    let mut writer = create("", 4 << 40).unwrap();
    let mut at = 0;
    let error = loop {
        match writer.place(at..4 << 40) {
            Ok(placement) => at += placement.len,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind().as_str(), "limit", "{error}");
    let metadata = 2 * ((4 << 40) / TABLE * 2052);
    assert!(at < 2 << 40 && at + metadata + TABLE > 2 << 40, "{at:#x}");

    let mut writer = create("subformat=streamOptimized", 4 << 40).unwrap();
    let mut at = 0;
    let error = loop {
        match writer.place_compressed(at..at + GRAIN, 1 << 31) {
            Ok(_) => at += GRAIN,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind().as_str(), "limit", "{error}");
    assert_eq!(at, 1024 * GRAIN, "1024 times 2 GiB");

    for list in ["", "subformat=streamOptimized"] {
        assert!(create(list, 64 << 40).is_ok());
        for size in [(64 << 40) + 1, i64::MAX as u64 & !511] {
            assert_eq!(create(list, size).err().unwrap().kind().as_str(), "limit", "{list} {size:#x}");
        }
    }
    let dir = Dir::new("disk.vmdk");
    let mut split = Options::new();
    split.add_list("subformat=twoGbMaxExtentSparse");
    let error = super::create(&context(8192 * SPLIT + 1, &split, Arc::new(Target::counting()), Some(&dir)));
    assert_eq!(error.err().unwrap().kind().as_str(), "limit");
    assert!(dir.names().is_empty(), "no file is created before the size is checked");
}

#[test]
fn extent_file_names() {
    for (image, names) in [
        ("disk.vmdk", ["disk-flat.vmdk", "disk-s001.vmdk"]),
        ("disk", ["disk-flat.vmdk", "disk-s001.vmdk"]),
        ("a.b.c.vmdk", ["a.b.c-flat.vmdk", "a.b.c-s001.vmdk"]),
        ("disk.IMG", ["disk-flat.IMG", "disk-s001.IMG"]),
        (".vmdk", [".vmdk-flat.vmdk", ".vmdk-s001.vmdk"]),
        ("ä ö.vmdk", ["ä ö-flat.vmdk", "ä ö-s001.vmdk"]),
        ("disk.", ["disk-flat.", "disk-s001."]),
    ] {
        for (subformat, name) in ["monolithicFlat", "twoGbMaxExtentSparse"].iter().zip(names) {
            let dir = Dir::new(image);
            let mut options = Options::new();
            options.set("subformat", (*subformat).to_owned());
            let out = Arc::new(Target::new());
            create(&context(512, &options, out.clone(), Some(&dir)))
                .unwrap()
                .finish(&ImageIdentifiers::pinned(0))
                .unwrap();
            assert_eq!(dir.names(), [name]);
            assert!(String::from_utf8(out.text()).unwrap().contains(&format!("\"{name}\"")));
        }
    }
    // A name that a descriptor cannot hold is refused before a file is created.
    let mut images = vec![OsStr::new("a\"b.vmdk"), OsStr::new("a\nb.vmdk")];
    #[cfg(unix)]
    images.push(std::os::unix::ffi::OsStrExt::from_bytes(b"\xff.vmdk"));
    for image in images.drain(..) {
        let dir = Dir::new(image);
        let mut options = Options::new();
        options.add_list("subformat=monolithicFlat");
        let error = create(&context(512, &options, Arc::new(Target::new()), Some(&dir))).err().unwrap();
        assert_eq!(error.kind().as_str(), "usage", "{error}");
        assert!(dir.names().is_empty());
        // The name in an embedded descriptor is not needed.
        let plain = Options::new();
        assert!(create(&context(512, &plain, Arc::new(Target::new()), Some(&dir))).is_ok());
    }
    // Without a directory, an image can have only one file.
    for subformat in &SUBFORMATS[2..] {
        let mut options = Options::new();
        options.set("subformat", (*subformat).to_owned());
        let error = create(&context(512, &options, Arc::new(Target::new()), None)).err().unwrap();
        assert_eq!(error.kind().as_str(), "unsupported", "{subformat}");
    }
}

/// Creates an empty image and returns its descriptor.
fn create_empty(list: &str, compress: bool, parent: Option<&ImageInfo>) -> Result<String> {
    let mut options = Options::new();
    options.add_list(list);
    options.check(DRIVER.name, DRIVER.options)?;
    let (out, dir) = (Arc::new(Target::new()), Dir::new("disk.vmdk"));
    let backing = parent.map(|info| NewBacking::new(Name::from("base.vmdk"), info));
    let context = context(10 << 30, &options, out.clone(), Some(&dir));
    let mut writer = create(&CreateContext { compress, backing, ..context })?;
    writer.finish(&ImageIdentifiers::pinned(0))?;
    Ok(String::from_utf8_lossy(&out.text()).into_owned())
}

#[test]
fn options_are_written_to_the_descriptor() {
    let parent =
        ImageInfo { format: "vmdk", specific: vec![("cid", Value::Number(0xabcd_ef01))], ..ImageInfo::default() };
    for (list, lines) in [
        (
            "",
            &[
                "version=1\n",
                "parentCID=ffffffff\n",
                "createType=\"monolithicSparse\"\n",
                "RW 20971520 SPARSE \"disk.vmdk\"\n",
                "ddb.adapterType = \"lsilogic\"\n",
                "ddb.encoding = \"UTF-8\"\n",
                "ddb.geometry.heads = \"255\"\n",
                "ddb.geometry.sectors = \"63\"\n",
                "ddb.geometry.cylinders = \"1305\"\n",
                "ddb.virtualHWVersion = \"4\"\n",
                "ddb.toolsVersion = \"2147483647\"\n",
            ][..],
        ),
        ("adapter_type=ide", &["ddb.adapterType = \"ide\"\n", "ddb.geometry.heads = \"16\"\n"]),
        ("adapter_type=buslogic,hwversion=21", &["\"buslogic\"\n", "ddb.virtualHWVersion = \"21\"\n"]),
        ("adapter_type=legacyESX,toolsversion=7", &["\"legacyESX\"\n", "ddb.toolsVersion = \"7\"\n"]),
        ("cid=0000beef", &["CID=0000beef\n", "0000beef\"\n"]),
        ("cid=0xFFFFFFFD", &["CID=fffffffd\n"]),
        ("subformat=streamOptimized", &["createType=\"streamOptimized\"\n", "SPARSE \"generated-stream.vmdk\"\n"]),
        ("subformat=vmfs", &["createType=\"vmfs\"\n", "VMFS \"disk-flat.vmdk\"\n"]),
        ("subformat=monolithicFlat", &["createType=\"monolithicFlat\"\n", "FLAT \"disk-flat.vmdk\" 0\n"]),
    ] {
        let text = create_empty(list, false, None).unwrap();
        lines.iter().for_each(|line| assert!(text.contains(line), "{list}: {line}\n{text}"));
        assert!(!text.contains("parentFileNameHint"));
    }
    let text = create_empty("", false, Some(&parent)).unwrap();
    assert!(text.contains("parentCID=abcdef01\n") && text.contains("parentFileNameHint=\"base.vmdk\"\n"), "{text}");
    assert!(create_empty("", true, None).unwrap().contains("createType=\"streamOptimized\"\n"));
    // The content ID determines the other identifiers.
    assert_eq!(create_empty("cid=1", false, None).unwrap(), create_empty("cid=00000001", false, None).unwrap());
    let ids = |text: String| {
        let wanted = |line: &&str| ["CID", "longContentID", "uuid"].iter().any(|key| line.contains(key));
        text.lines().filter(wanted).map(str::to_owned).collect::<Vec<_>>()
    };
    let [one, two] = ["cid=1", "cid=2"].map(|list| ids(create_empty(list, false, None).unwrap()));
    assert!(one.len() == 4 && one.iter().zip(&two).filter(|(one, two)| one == two).count() == 1, "{one:?} {two:?}");
}

#[test]
fn conflicting_options_are_refused() {
    let raw = ImageInfo { format: "raw", ..ImageInfo::default() };
    let no_cid = ImageInfo { format: "vmdk", ..ImageInfo::default() };
    let parent = ImageInfo { format: "vmdk", specific: vec![("cid", Value::Number(1))], ..ImageInfo::default() };
    for (list, compress, backing, name) in [
        ("subformat=thick", false, None, "subformat"),
        ("subformat=monolithicSparse", true, None, "subformat"),
        ("subformat=vmfs", true, None, "subformat"),
        ("adapter_type=nvme", false, None, "adapter_type"),
        ("hwversion=0", false, None, "hwversion"),
        ("hwversion=100", false, None, "hwversion"),
        ("toolsversion=2147483648", false, None, "toolsversion"),
        ("compression_level=1", false, None, "compression_level"),
        ("compression_level=0", true, None, "compression_level"),
        ("compression_level=10", true, None, "compression_level"),
        ("zeroed_grain=on", true, None, "zeroed_grain"),
        ("zeroed_grain=on,subformat=monolithicFlat", false, None, "zeroed_grain"),
        ("zeroed_grain=maybe", false, None, "zeroed_grain"),
        ("cid=fffffffe", false, None, "cid"),
        ("cid=ffffffff", false, None, "cid"),
        ("cid=100000000", false, None, "cid"),
        ("cid=+1", false, None, "cid"),
        ("cid=", false, None, "cid"),
        ("cid=xyz", false, None, "cid"),
        ("backing_file=base.vmdk", false, None, "backing_file"),
        ("backing_fmt=vmdk", false, None, "backing_fmt"),
        ("subformat=twoGbMaxExtentSparse", false, Some(&parent), "backing_file"),
        ("", true, Some(&parent), "backing_file"),
        ("", false, Some(&raw), "backing_file"),
        ("", false, Some(&no_cid), "backing_file"),
        ("size=1", false, None, "size"),
    ] {
        let error = create_empty(list, compress, backing).unwrap_err();
        assert!(matches!(&error, Error::Option { name: found, .. } if *found == name), "{list}: {error}");
    }
    create_empty("backing_file=base.vmdk,backing_fmt=vmdk", false, Some(&parent)).unwrap();
}

#[test]
fn grains_can_be_placed_in_parts() {
    let options = Options::new();
    let out = Arc::new(Target::new());
    let mut writer = create(&context(4 * GRAIN, &options, out.clone(), None)).unwrap();
    let granule = writer.spec().granule;
    assert_eq!(granule, 512);
    for at in [512, 2048, GRAIN - 512] {
        place(&mut *writer, at, &[at as u8 | 1; 512]);
    }
    writer.finish(&ImageIdentifiers::pinned(0)).unwrap();
    let guest = model::read(&out.file.to_vec(), &Dir::new("x"), None);
    for (sector, bytes) in guest.chunks(512).enumerate() {
        let at = sector * 512;
        let expected = if [512, 2048, GRAIN as usize - 512].contains(&at) { at as u8 | 1 } else { 0 };
        assert!(bytes.iter().all(|&byte| byte == expected), "{at}");
    }
}
