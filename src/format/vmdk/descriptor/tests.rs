//! Descriptors of known writers, each rule with valid and invalid lines, and the file offsets in errors.

use proptest::prelude::*;

use super::*;
use crate::format::shared::signature::is_vmdk_descriptor;

/// By VMware Workstation on Windows.
const WORKSTATION: &str = "# Disk DescriptorFile
version=1
encoding=\"windows-1252\"
CID=a77f8ab1
parentCID=ffffffff
createType=\"monolithicSparse\"

# Extent description
RW 20971520 SPARSE \"Test.vmdk\"

# The Disk Data Base 
#DDB

ddb.adapterType = \"lsilogic\"
ddb.geometry.cylinders = \"1305\"
ddb.longContentID = \"a84c27bb79b67523158a5a73a77f8ab1\"
ddb.uuid = \"60 00 C2 9a f2 6c 48 d6-13 0c dc a5 d2 bc d9 18\"
";

fn parse(text: impl AsRef<[u8]>) -> Result<Descriptor> {
    Descriptor::parse(text.as_ref(), 0, &Limits::default())
}

fn message(text: impl AsRef<[u8]>) -> String {
    parse(text).unwrap_err().to_string()
}

/// A descriptor of the required lines and `lines`.
fn with(lines: &str) -> String {
    format!("version=1\ncreateType=custom\n{lines}\n")
}

/// The error for `line`, with the offset relative to its start.
fn line_error(line: &str) -> (String, u64) {
    let start = with("").len() as u64 - 1;
    match parse(with(line)).unwrap_err() {
        Error::Corrupt(fault) => (format!("{} {}", fault.field, fault.problem), fault.at - start),
        Error::Unsupported { feature, at, .. } => (feature.into_owned(), at.unwrap() - start),
        other => panic!("{line}: {other}"),
    }
}

#[test]
fn workstation_descriptor() {
    let descriptor = parse(WORKSTATION).unwrap();
    let extent = ExtentLine {
        access: Access::Rw,
        sectors: 20971520,
        kind: ExtentType::Sparse,
        file: Some("Test.vmdk".into()),
        offset: 0,
        at: WORKSTATION.find("RW").unwrap() as u64,
    };
    let database = [
        ("adapterType", "lsilogic"),
        ("geometry.cylinders", "1305"),
        ("longContentID", "a84c27bb79b67523158a5a73a77f8ab1"),
        ("uuid", "60 00 C2 9a f2 6c 48 d6-13 0c dc a5 d2 bc d9 18"),
    ];
    assert_eq!(
        descriptor,
        Descriptor {
            version: 1,
            cid: 0xa77f8ab1,
            parent_cid: None,
            create_type: "monolithicSparse",
            parent_hint: None,
            extents: vec![extent],
            database: database.map(|(key, value)| (key.into(), value.into())).into(),
        }
    );
    assert_eq!(descriptor.sectors(), 20971520);
    assert_eq!(descriptor.database_value("ADAPTERTYPE"), Some("lsilogic"));
    assert_eq!(descriptor.database_value("comment"), None);
    assert!(is_vmdk_descriptor(WORKSTATION.as_bytes()));
}

#[test]
fn equivalent_spellings() {
    let without_offsets = |text: &str| {
        let mut descriptor = parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        descriptor.extents.iter_mut().for_each(|extent| extent.at = 0);
        descriptor
    };
    let plain = without_offsets(WORKSTATION);
    let upper = |word: &str| WORKSTATION.replace(word, &word.to_ascii_uppercase());
    for text in [
        WORKSTATION.replace('\n', "\r\n"),
        WORKSTATION.replace('\n', "\r\r\n"),
        WORKSTATION.replace('\n', " \t\n\n \t"),
        WORKSTATION.replace('=', " \t= "),
        WORKSTATION.replace(" = ", "="),
        WORKSTATION.trim_end().to_owned(),
        format!("\u{feff}{WORKSTATION}"),
        format!("{WORKSTATION}\0\0RW 1 ZERO\n???"),
        format!("{WORKSTATION}version=9\ncid=1\nencoding=\"GBK\"\n"),
        format!(
            "{WORKSTATION}# Change Tracking File\nchangeTrackPath=\"a-ctk.vmdk\"\nisNativeSnapshot=\"no\"\nfoo=\"\n"
        ),
        WORKSTATION.replace("version=1\n", ""),
        WORKSTATION.replace("version=1", "version=\"1\""),
        WORKSTATION.replace("parentCID=ffffffff\n", ""),
        WORKSTATION.replace("\"monolithicSparse\"", "MONOLITHICSPARSE"),
        WORKSTATION.replace("RW 20971520 SPARSE ", "  rw\t 0020971520  Sparse"),
        WORKSTATION.replace("Test.vmdk\"", "Test.vmdk\" 0 "),
        format!("{WORKSTATION}parentFileNameHint=\"\""),
        upper("version"),
        upper("createType"),
        upper("parentCID"),
        upper("ddb."),
    ] {
        assert_eq!(without_offsets(&text), plain, "{text:?}");
    }
}

#[test]
fn probing() {
    for head in [
        "# Disk DescriptorFile\r\n\r\nVersion = 1\n",
        "version=1",
        "\u{feff}\n#\r\n VERSION\t=2",
        "version=9",
        "# disk descriptorfile\nCID=1",
    ] {
        assert!(is_vmdk_descriptor(head.as_bytes()), "{head:?}");
    }
    for head in [
        "",
        "#\rversion=1",
        "#version=1",
        "# just a comment\nversionless",
        "version",
        "xversion=1",
        "CID=1\nversion=1",
        "\0version=1",
    ] {
        assert!(!is_vmdk_descriptor(head.as_bytes()), "{head:?}");
    }
}

#[test]
fn extents_of_each_kind() {
    use Access::*;
    use ExtentType::*;
    let sector_max = u64::MAX / 512;
    let whole = format!("RW {sector_max} FLAT \"a\"");
    let far = format!("RW 1 FLAT \"a\" {}", sector_max - 1);
    for (line, access, sectors, kind, file, offset) in [
        ("RW 2048 FLAT \"a.raw\" 63", Rw, 2048, Flat, Some("a.raw"), 63),
        ("RDONLY 1 FLAT \"a\"", RdOnly, 1, Flat, Some("a"), 0),
        ("NOACCESS 7 ZERO", NoAccess, 7, Zero, None, 0),
        ("RW 2097152 ZERO \"/dev/sdc2\" 0", Rw, 2097152, Zero, None, 0),
        ("RW 4096 VMFS \"x-flat.vmdk\"", Rw, 4096, Vmfs, Some("x-flat.vmdk"), 0),
        ("RW 4096 VMFS \"x-flat.vmdk\" 8", Rw, 4096, Vmfs, Some("x-flat.vmdk"), 8),
        ("RW 4096 VMFSSPARSE \"x-delta.vmdk\"", Rw, 4096, VmfsSparse, Some("x-delta.vmdk"), 0),
        ("RW 4096 SESPARSE \"x\"", Rw, 4096, SeSparse, Some("x"), 0),
        ("RW 0 SPARSE \"disk.vmdk\"", Rw, 0, Sparse, Some("disk.vmdk"), 0),
        ("RW 1 FLAT \" a = b # c's.vmdk\" 2", Rw, 1, Flat, Some(" a = b # c's.vmdk"), 2),
        ("RW 9 FLAT \"/dev/sda\" 63 partitionUUID \"0b1c\"", Rw, 9, Flat, Some("/dev/sda"), 63),
        ("RW 1 SPARSE \"d:\\dir\\b.vmdk\"", Rw, 1, Sparse, Some("d:\\dir\\b.vmdk"), 0),
        (&whole, Rw, sector_max, Flat, Some("a"), 0),
        (&far, Rw, 1, Flat, Some("a"), sector_max - 1),
    ] {
        let at = with("").len() as u64 - 1;
        let limits = Limits { virtual_size: u64::MAX, ..Limits::default() };
        let extents = Descriptor::parse(with(line).as_bytes(), 0, &limits).unwrap().extents;
        assert_eq!(extents, [ExtentLine { access, sectors, kind, file: file.map(Name::from), offset, at }], "{line}");
    }
}

#[test]
fn invalid_extents_are_refused() {
    let far = format!("RW 2 FLAT \"a\" {}", u64::MAX / 512 - 1);
    for (line, what, at) in [
        ("RW", "extent size is 0x0, but must be a decimal number", 2),
        ("RW -1 ZERO", "extent size is 0x2d, but must be a decimal number", 3),
        ("RW 0x10 ZERO", "extent size is 0x30, but must be a decimal number", 3),
        ("RW 36028797018963968 ZERO", "extent size is 36028797018963968, outside 0..=36028797018963967", 3),
        ("RW 18446744073709551616 ZERO", "extent size is 18446744073709551615, outside 0..=36028797018963967", 3),
        ("RW 1", "extent type ", 4),
        ("RW 1 PMEM \"a\"", "extent type PMEM", 5),
        ("RW 1 vmfsrdm \"a\"", "extent type vmfsrdm (a raw device map)", 5),
        ("RW 1 VMFSRAW \"a\"", "extent type VMFSRAW (a raw device)", 5),
        ("RW 1 FLAT", "extent file name is 0x0, but must be a quoted name", 9),
        ("RW 1 FLAT a.raw 0", "extent file name is 0x61, but must be a quoted name", 10),
        ("RW 1 FLAT \"a.raw", "extent file name is 0x22, but must be a quoted name", 10),
        ("RW 1 VMFS \"\"", "extent file name is 0x22, but must be a quoted name", 10),
        ("RW 1 FLAT \"a\" -1", "extent offset is 0x2d, but must be a decimal number", 14),
        (&far, "extent offset is 36028797018963966, outside 0..=36028797018963965", 14),
        ("RW 1 SPARSE \"a\" 1", "extent offset is 1, outside 0..=0", 16),
        (
            "WO 1 ZERO",
            "line is 0x57, but must be a comment, key=value, or an extent that begins with RW, RDONLY or NOACCESS",
            0,
        ),
        (
            "=1",
            "line is 0x3d, but must be a comment, key=value, or an extent that begins with RW, RDONLY or NOACCESS",
            0,
        ),
    ] {
        assert_eq!(line_error(line), (what.to_owned(), at), "{line}");
    }
}

#[test]
fn header_values() {
    let zero = |lines: &str| with(&format!("{lines}\nRW 1 ZERO"));
    for (value, cid) in [("0", 0), ("4f1bed8", 0x4f1bed8), ("FFFFFFFE", 0xfffffffe), ("\"0001\"", 1)] {
        let descriptor = parse(zero(&format!("CID={value}\nparentCID={value}"))).unwrap();
        assert_eq!((descriptor.cid, descriptor.parent_cid), (cid, Some(cid)), "{value}");
    }
    assert_eq!(parse(zero("")).unwrap().cid, 0xfffffffe);
    for value in ["", "xyz", "+1", "100000000", "0x1"] {
        assert!(line_error(&format!("CID={value}\nRW 1 ZERO")).0.contains("must be a hexadecimal 32-bit number"));
    }
    let hint = |value: &str| parse(zero(&format!("parentFileNameHint={value}"))).map(|found| found.parent_hint);
    assert_eq!(hint("\"a = b.vmdk\"").unwrap(), Some("a = b.vmdk".into()));
    assert_eq!(hint("\"C:\\dir\\a.vmdk\"").unwrap(), Some("C:\\dir\\a.vmdk".into()));
    assert_eq!(hint("\"a.vmdk").unwrap_err().kind().as_str(), "invalid-field");
    for hidden in
        ["# parentFileNameHint=\"/etc/passwd\"", "xparentFileNameHint=\"a\"", "ddb.x=\"parentFileNameHint=\"a\""]
    {
        assert!(line_error(&format!("{hidden}\nRW 1 ZERO")).0.contains("nowhere else"), "{hidden}");
    }
    assert_eq!(hint("\"parentFileNameHint\"").unwrap_err().kind().as_str(), "invalid-field");
    for hidden in
        ["#createType=\"monolithicFlat\"", "# parentCID=1", "PARENTCID=1\nparentCID=2", "ddb.createtype=\"x\""]
    {
        assert!(line_error(&format!("{hidden}\nRW 1 ZERO")).0.contains("nowhere else"), "{hidden}");
    }
    // QEMU would read a name from the next line.
    for empty in ["", "\n/etc/passwd\"=x", " \"\""] {
        assert!(hint(empty).is_err(), "{empty}");
    }
    assert_eq!(hint("\"\"").unwrap(), None);

    let comment = parse(zero("ddb.comment=\"a \\\"b\\\" = c\"")).unwrap();
    assert_eq!(comment.database_value("comment"), Some("a \\\"b\\\" = c"));

    for version in 1..=3 {
        let text = zero("").replace("version=1", &format!("version={version}"));
        assert_eq!(parse(text).unwrap().version, version);
    }
    for (version, what) in [
        ("0", "vmdk: not supported at file offset 0x8: descriptor version 0"),
        ("4", "vmdk: not supported at file offset 0x8: descriptor version 4"),
        ("99999999999999999999", "vmdk: not supported at file offset 0x8: descriptor version 99999999999999999999"),
        ("one", "vmdk: corrupt image at file offset 0x8: version is 0x6f, but must be a decimal number"),
    ] {
        assert_eq!(message(zero("").replace("version=1", &format!("version={version}"))), what);
    }
    assert_eq!(line_error("keyID=1\nRW 1 ZERO"), ("encryption".to_owned(), 6));
    let missing =
        |field| format!("vmdk: corrupt image at file offset 0x0: {field} is 0x0, but must be present in a descriptor");
    assert_eq!(message(""), missing("createType"));
    assert_eq!(message(with("")), missing("extent description"));
}

#[test]
fn create_types() {
    for spelling in CREATE_TYPES {
        let text = format!("createType=\"{}\"\nRW 1 ZERO", spelling.to_ascii_lowercase());
        assert_eq!(parse(text).unwrap().create_type, *spelling);
    }
    // The device is named even if its extents cannot be parsed.
    for (name, feature) in [
        ("FULLDEVICE", "createType FULLDEVICE (a host disk)"),
        ("partitionedDevice", "createType partitionedDevice (partitions of a host disk)"),
        ("vmfsRaw", "createType vmfsRaw (a raw device)"),
        ("vmfsRDM", "createType vmfsRDM (a raw device map)"),
        ("vmfsRDMP", "createType vmfsRDMP (a raw device map)"),
        ("vmfsRawDeviceMap", "createType vmfsRawDeviceMap (a raw device map)"),
        ("vmfsPassthroughRawDeviceMap", "createType vmfsPassthroughRawDeviceMap (a raw device map)"),
        ("vmfsx\u{1b}", "createType vmfsx\\u{1b}"),
    ] {
        let text = format!("createType=\"{name}\"\nRW 1 ODD");
        assert_eq!(message(text), format!("vmdk: not supported at file offset 0xc: {feature}"));
    }
}

#[test]
fn names_in_other_encodings() {
    // Each second byte of ソ (Shift_JIS 83 5c), 誠 (GBK d5 5c) and 功 (Big5 a5 5c) is a backslash, that of ポ (83 7c) a
    // bar.
    for (label, stored, name) in [
        ("", &b"Gr\xc3\xb6\xc3\x9fe"[..], "Größe".as_bytes()),
        ("UTF-8", b"Gr\xc3\xb6\xc3\x9fe", "Größe".as_bytes()),
        ("UTF-8", b"Gr\xf6\xdfe", b"Gr\xf6\xdfe"),
        ("windows-1252", b"Gr\xf6\xdfe \x80", "Größe €".as_bytes()),
        ("SHIFT_JIS", b"\x83\x5c\x83\x7c \x8e\xa5", "ソポ 磁".as_bytes()),
        ("windows-932", b"\x83\x5c", "ソ".as_bytes()),
        ("GBK", b"\xd5\x5c\xb4\xc5", "誠磁".as_bytes()),
        ("windows-936", b"\xd5\x5c", "誠".as_bytes()),
        ("Big5", b"\xa5\x5c", "功".as_bytes()),
        // A truncated character, an unknown encoding, and encodings that are not ASCII-compatible.
        ("GBK", b"\xb4", b"\xb4"),
        ("windows-1", b"\xf6", b"\xf6"),
        ("UTF-16LE", b"ab", b"ab"),
        ("ISO-2022-JP", b"\x1b$B", b"\x1b$B"),
    ] {
        for key in ["encoding", "ddb.encoding"] {
            let mut text = b"createType=vmfs\nparentFileNameHint=\"".to_vec();
            text.extend([stored, b"\"\nRW 1 VMFS \"", stored, b"\"\n"].concat());
            if !label.is_empty() {
                text.extend(format!("{key} = \"{label}\"\n").into_bytes());
            }
            let descriptor = parse(text).unwrap();
            assert_eq!(descriptor.parent_hint, Some(name.into()), "{label}");
            assert_eq!(descriptor.extents[0].file, Some(name.into()), "{label}");
        }
    }
    let both = parse(b"createType=vmfs\nRW 1 VMFS \"\xf6\"\nddb.encoding=\"GBK\"\nencoding=\"windows-1252\"").unwrap();
    assert_eq!(both.extents[0].file, Some("ö".into()));
}

#[test]
fn total_size_is_limited() {
    let gigabyte = Limits { virtual_size: 1 << 30, extents: 3, ..Limits::default() };
    let parse = |lines: &str| Descriptor::parse(with(lines).as_bytes(), 0x200, &gigabyte);
    assert_eq!(parse("RW 2097151 ZERO\nNOACCESS 1 ZERO\nRDONLY 0 ZERO").unwrap().sectors(), 2097152);
    let at = 0x200 + with("").len() as u64 - 1;
    for (lines, what) in [
        (
            "RW 2097151 ZERO\nRW 2 ZERO",
            format!(
                "vmdk: sum of the extent sizes at file offset {at:#x} is 1073742336, above the limit of 1073741824 (virtual-size)"
            ),
        ),
        (
            "RW 36028797018963967 ZERO\nRW 1 ZERO",
            format!(
                "vmdk: corrupt image at file offset {:#x}: sum of the extent sizes is 36028797018963968, outside \
                 0..=36028797018963967",
                at + 26
            ),
        ),
        (
            "RW 1 ZERO\nRW 1 ZERO\nRW 1 ZERO\nRW 1 ZERO",
            format!("vmdk: number of extents at file offset {:#x} is 4, above the limit of 3 (extents)", at + 30),
        ),
    ] {
        assert_eq!(parse(lines).unwrap_err().to_string(), what);
    }
    let many = with(&"ddb.a=b\n".repeat(5000));
    assert!(message(many).contains("number of ddb entries"));
}

/// qemu-img 10.0.2 reads this text, but skips the ZERO extent.
#[test]
fn descriptors_are_encoded() {
    let extent = |kind, file: Option<&str>, offset| ExtentLine {
        access: Access::Rw,
        sectors: 2048,
        kind,
        file: file.map(Name::from),
        offset,
        at: 0,
    };
    let mut descriptor = Descriptor {
        version: 1,
        cid: 0x00c0ffee,
        parent_cid: Some(0xfffffffe),
        create_type: "monolithicFlat",
        parent_hint: Some("base.vmdk".into()),
        extents: vec![
            extent(ExtentType::Flat, Some("Größe 1.raw"), 0),
            extent(ExtentType::Zero, None, 0),
            extent(ExtentType::Vmfs, Some("b-flat.vmdk"), 0),
        ],
        database: vec![("adapterType".into(), "ide".into())],
    };
    let text = "# Disk DescriptorFile
version=1
encoding=\"UTF-8\"
CID=00c0ffee
parentCID=fffffffe
createType=\"monolithicFlat\"
parentFileNameHint=\"base.vmdk\"

# Extent description
RW 2048 FLAT \"Größe 1.raw\" 0
RW 2048 ZERO
RW 2048 VMFS \"b-flat.vmdk\"

# The Disk Data Base
#DDB

ddb.adapterType = \"ide\"
";
    assert_eq!(String::from_utf8(descriptor.encode().unwrap()).unwrap(), text);

    for name in [&b"a\"b"[..], b"a\nRW 1 ZERO", b"a\r", b"a\0", b"a\xff", b""] {
        let hint = Descriptor { parent_hint: Some(name.into()), ..descriptor.clone() };
        assert_eq!(hint.encode().unwrap_err().kind().as_str(), "usage", "{name:?}");
        let mut file = descriptor.clone();
        file.extents[0].file = Some(name.into());
        assert_eq!(file.encode().unwrap_err().kind().as_str(), "usage", "{name:?}");
    }
    for (key, value) in [("a", "\""), ("a", "b\n"), ("a=", "b"), ("a b", "c"), ("a\n", "b")] {
        descriptor.database = vec![(key.into(), value.into())];
        assert_eq!(descriptor.encode().unwrap_err().kind().as_str(), "usage", "{key} {value}");
    }
}

/// Values from images by VMware Workstation.
#[test]
fn geometry_and_identifiers() {
    for (sectors, adapter, cylinders, heads) in [
        (20971520, "lsilogic", 1305, 255),
        (125829120, "lsilogic", 7832, 255),
        (20480, "ide", 20, 16),
        (18432000, "IDE", 16383, 16),
        (4, "ide", 1, 16),
        (u64::MAX, "buslogic", 65535, 255),
    ] {
        assert_eq!(Geometry::new(sectors, adapter), Geometry { cylinders, heads, sectors: 63 }, "{sectors} {adapter}");
    }
    let bytes = 0xffff_ffea_f26c_48d6_130c_dca5_d2bc_d918_u128.to_be_bytes();
    assert_eq!(uuid(bytes), "60 00 C2 9a f2 6c 48 d6-13 0c dc a5 d2 bc d9 18");
    let bytes = 0x084c_27bb_79b6_7523_158a_5a73_0000_0000_u128.to_be_bytes();
    assert_eq!(long_content_id(bytes, 0xa77f8ab1), "084c27bb79b67523158a5a73a77f8ab1");
}

fn a_name() -> impl Strategy<Value = Name> {
    "[^\"\n\r\x0b\x0c\0]{1,12}".prop_map(Name::from)
}

fn an_extent() -> impl Strategy<Value = ExtentLine> {
    let access = prop::sample::select(ACCESS);
    let kind = prop::sample::select(EXTENT_TYPES);
    (access, kind, 0..1_u64 << 40, a_name(), 0..1_u64 << 40).prop_map(
        |((_, access), (_, kind), sectors, file, offset)| {
            let has_offset = matches!(kind, ExtentType::Flat | ExtentType::Vmfs);
            ExtentLine {
                access,
                sectors,
                kind,
                file: Some(file).filter(|_| kind != ExtentType::Zero),
                offset: if has_offset { offset } else { 0 },
                at: 0,
            }
        },
    )
}

fn a_descriptor() -> impl Strategy<Value = Descriptor> {
    (
        (1..=3_u32, any::<u32>(), prop::option::of(0..NO_PARENT)),
        prop::sample::select(CREATE_TYPES),
        prop::option::of(a_name()),
        prop::collection::vec(an_extent(), 1..5),
        prop::collection::vec(("[a-zA-Z][a-zA-Z.]{0,8}", "[^\"\n\r\x0b\x0c\0]{0,9}"), 0..5),
    )
        .prop_map(|((version, cid, parent_cid), create_type, parent_hint, extents, database)| Descriptor {
            version,
            cid,
            parent_cid,
            create_type,
            parent_hint,
            extents,
            database,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn descriptors_round_trip(descriptor in a_descriptor()) {
        let text = descriptor.encode().unwrap();
        let mut read = parse(&text).unwrap();
        for extent in &mut read.extents {
            let keyword = keyword(ACCESS, extent.access);
            prop_assert!(text[extent.at as usize..].starts_with(keyword.as_bytes()));
            extent.at = 0;
        }
        prop_assert_eq!(read, descriptor);
    }

    /// The offset of an error is within the text, and the size of a parsed descriptor is within the limit.
    #[test]
    fn arbitrary_text_is_parsed_or_refused(
        mutations in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(&b"\0\n\r \"=#9RWaF\xff\x83"[..])), 1..6),
        cut in any::<prop::sample::Index>(),
        at in prop::sample::select(&[0, 512, u64::MAX][..]),
    ) {
        let mut text = WORKSTATION.as_bytes().to_vec();
        for (index, byte) in mutations {
            *index.get_mut(&mut text) = byte;
        }
        if cut.index(2) == 0 {
            text.truncate(cut.index(text.len()));
        }
        match Descriptor::parse(&text, at, &Limits::default()) {
            Ok(descriptor) => prop_assert!(descriptor.sectors() <= Limits::default().virtual_size / SECTOR),
            Err(Error::Corrupt(fault)) => prop_assert!(fault.at >= at && fault.at - at <= text.len() as u64),
            Err(Error::Unsupported { .. } | Error::Limit { .. }) => {}
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}
