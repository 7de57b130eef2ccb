use proptest::prelude::*;

use super::*;

const AT: u64 = 0x21_0028;
const GUID: &str = "{7584f8fb-36d3-4091-afb5-b1afe587bfa8}";

fn locator(entries: &[(&str, &str)]) -> ParentLocator {
    ParentLocator { entries: entries.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect() }
}

/// Parses the item with `parts` replaced, each at its offset.
fn patched(locator: &ParentLocator, parts: &[(usize, &[u8])]) -> Result<ParentLocator> {
    let mut bytes = locator.encode();
    for (at, part) in parts {
        bytes[*at..at + part.len()].copy_from_slice(part);
    }
    ParentLocator::parse(&bytes, AT)
}

/// A locator as written by Windows 10.
fn windows() -> ParentLocator {
    locator(&[
        (LINKAGE, GUID),
        ("absolute_win32_path", "C:\\Projects\\dfvfs\\test_data\\ntfs-parent.vhdx"),
        ("relative_path", ".\\ntfs-parent.vhdx"),
        (
            "volume_path",
            "\\\\?\\Volume{9cdf8dfa-0000-0000-0000-501f00000000}\\Projects\\dfvfs\\test_data\\ntfs-parent.vhdx",
        ),
        (LINKAGE2, "{00000000-0000-0000-0000-000000000000}"),
    ])
}

#[test]
fn a_windows_locator() {
    // The header and the entries of the item. The strings follow in this order.
    const ITEM: [u32; 20] = [
        0xb04a_efb7,
        0x4a81_d19e,
        0xb825_89b7,
        0x1359_44e9,
        0x0005_0000,
        0x50,
        0x6c,
        0x4c_001c,
        0xb8,
        0xde,
        0x58_0026,
        0x136,
        0x150,
        0x24_001a,
        0x174,
        0x18a,
        0xb4_0016,
        0x23e,
        0x25c,
        0x4c_001e,
    ];
    let bytes = windows().encode();
    assert_eq!(bytes.len(), 680);
    assert_eq!(bytes[..80], *ITEM.map(u32::to_le_bytes).as_flattened());
    assert_eq!(ParentLocator::parse(&bytes, AT).unwrap(), windows());
}

/// 176 bytes: 44 of header and entries, 28 and 76 of the linkage, 26 and 2 of the path.
fn sample() -> ParentLocator {
    locator(&[(LINKAGE, GUID), ("relative_path", "a")])
}

#[test]
fn invalid_fields_are_refused_by_name() {
    let refused = |parts: &[(usize, &[u8])], expected: &str| {
        let error = patched(&sample(), parts).unwrap_err();
        assert_eq!(format!("{} {error}", error.kind()), expected);
    };
    let at = "vhdx: corrupt image at file offset";
    refused(
        &[(0, &[1, 2, 3, 4])],
        "unsupported vhdx: not supported at file offset 0x210028: parent locator type \
         04030201-d19e-4a81-b789-25b8e9445913",
    );
    refused(&[(18, &[14])], &format!("invalid-field {at} 0x21003a: KeyValueCount is 14, outside 0..=13"));
    refused(
        &[(18, &[0])],
        &format!("invalid-field {at} 0x21003a: KeyValueCount is 0x0: the key parent_linkage is missing"),
    );
    // Keys are case-sensitive.
    refused(
        &[(44, b"P")],
        &format!("invalid-field {at} 0x21003a: KeyValueCount is 0x2: the key parent_linkage is missing"),
    );
    for offset in [0, 43, 149, !0u32] {
        let expected = format!("invalid-field {at} 0x21003c: KeyOffset is {offset}, outside 44..=148");
        refused(&[(20, &offset.to_le_bytes())], &expected);
    }
    for offset in [0, 43, 101, !0u32] {
        let expected = format!("invalid-field {at} 0x210040: ValueOffset is {offset}, outside 44..=100");
        refused(&[(24, &offset.to_le_bytes())], &expected);
    }
    for len in [134, 0xfffe] {
        let finding = "keys and values are longer than the item";
        let expected = format!("invalid-field {at} 0x210044: KeyLength is {len:#x}: {finding}");
        refused(&[(28, &u16::to_le_bytes(len))], &expected);
    }
    let rule = "must not be 0";
    refused(&[(28, &[0])], &format!("invalid-field {at} 0x210044: KeyLength is 0x0, but {rule}"));
    refused(&[(30, &[0])], &format!("invalid-field {at} 0x210046: ValueLength is 0x0, but {rule}"));
    refused(&[(28, &[27])], &format!("invalid-field {at} 0x210044: KeyLength is 0x1b, not a multiple of 2"));
    refused(&[(30, &[75])], &format!("invalid-field {at} 0x210046: ValueLength is 0x4b, not a multiple of 2"));
    refused(
        &[(174, &[0])],
        &format!("invalid-field {at} 0x21004c: ValueOffset is 0xae: the key or value contains a NUL"),
    );
    refused(
        &[(72, b"(")],
        &format!("invalid-field {at} 0x210040: ValueOffset is 0x48: the value of this key is not a GUID in braces"),
    );

    let twice = locator(&[(LINKAGE, GUID), ("a", "1"), ("a", "2")]);
    assert_eq!(
        patched(&twice, &[]).unwrap_err().to_string(),
        format!("{at} 0x210054: KeyOffset is 0xa4: another entry has the same key")
    );
    let short = ParentLocator::parse(&sample().encode()[..19], AT).unwrap_err().to_string();
    assert_eq!(short, format!("{at} 0x210028: length of Parent Locator is 0x13, but must be at least 20"));
}

#[test]
fn a_linkage_is_a_guid_in_braces() {
    let upper = GUID.to_uppercase();
    for value in [GUID, upper.as_str()] {
        assert_eq!(parse_linkage(value), Some(uuid!("7584f8fb-36d3-4091-afb5-b1afe587bfa8")));
    }
    for value in [
        "",
        "{}",
        "7584f8fb-36d3-4091-afb5-b1afe587bfa8",
        "{7584f8fb-36d3-4091-afb5-b1afe587bfa8",
        "{7584f8fb-36d3-4091-afb5-b1afe587bfag}",
        "{7584f8fb36d34091afb5b1afe587bfa8}",
        "{{7584f8fb-36d3-4091-afb5-b1afe587bfa8}}",
        "{urn:uuid:7584f8fb-36d3-4091-afb5-b1afe587bfa8}",
        "{7584f8fb-36d3-4091-afb5-b1afe587bfa8} ",
    ] {
        assert_eq!(parse_linkage(value), None, "{value}");
        for key in [LINKAGE, LINKAGE2].into_iter().filter(|_| !value.is_empty()) {
            let other = if key == LINKAGE { LINKAGE2 } else { LINKAGE };
            assert_eq!(
                patched(&locator(&[(key, value), (other, GUID)]), &[]).unwrap_err().kind().as_str(),
                "invalid-field"
            );
        }
    }
}

#[test]
fn unknown_keys_are_ignored() {
    let entries =
        [("x", "1"), (LINKAGE, GUID), ("Relative_path", "b"), ("relative_path", "a"), ("relative_path2", "c")];
    assert_eq!(patched(&locator(&entries), &[]).unwrap(), sample());
}

#[test]
fn overlapping_strings_do_not_multiply_memory() {
    const COUNT: u16 = 40_000;
    let mut bytes = sample().encode();
    bytes[18..20].copy_from_slice(&COUNT.to_le_bytes());
    bytes.truncate(20);
    let start = 20 + 12 * u32::from(COUNT);
    // Each key is different and starts one character after the preceding key.
    for number in 0..u32::from(COUNT) {
        bytes.extend([start + number * 2, start].map(u32::to_le_bytes).as_flattened());
        bytes.extend([0xfe, 0xff, 0xfe, 0xff]);
    }
    bytes.extend((1..=u16::MAX).chain(1..=u16::MAX).flat_map(u16::to_le_bytes));
    assert!(bytes.len() <= 1 << 20);
    let error = ParentLocator::parse(&bytes, AT).unwrap_err().to_string();
    let expected = "vhdx: corrupt image at file offset 0x21005c: KeyLength is 0xfffe: keys and values are longer";
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn references_have_all_paths_and_identities() {
    let names = |reference: &FileReference| -> Vec<String> {
        [&reference.name].into_iter().chain(&reference.alternatives).map(|name| name.to_text().into_owned()).collect()
    };
    let reference = windows().reference();
    assert_eq!((reference.role, &reference.format), ("parent", &Some(Name::from("vhdx"))));
    assert_eq!(
        names(&reference),
        [
            "ntfs-parent.vhdx",
            "//?/Volume{9cdf8dfa-0000-0000-0000-501f00000000}/Projects/dfvfs/test_data/ntfs-parent.vhdx",
            "C:/Projects/dfvfs/test_data/ntfs-parent.vhdx",
        ]
    );
    let first = Name::from("data write GUID 7584f8fb-36d3-4091-afb5-b1afe587bfa8");
    assert_eq!((&reference.identities[..], reference.beside), (&[first.clone()][..], None));

    // During a merge the parent can have either identity.
    let second = "{ABCDEF00-0000-0000-0000-000000000001}";
    let reference = locator(&[(LINKAGE2, second), ("relative_path", "..\\x\\a.vhdx"), (LINKAGE, GUID)]).reference();
    assert_eq!(names(&reference), ["../x/a.vhdx", "a.vhdx"]);
    let second = Name::from("data write GUID abcdef00-0000-0000-0000-000000000001");
    assert_eq!(reference.identities, [first.clone(), second]);

    // Without a path the parent is searched in the directory of the image.
    let reference = locator(&[(LINKAGE, GUID)]).reference();
    assert_eq!((reference.name, reference.beside), (first.clone(), Some("vhdx")));
    assert_eq!(reference.identities, [first]);
}

proptest! {
    #[test]
    fn encoded_locators_parse(
        guids: [u128; 2],
        paths in prop::array::uniform3("[^\0]{1,40}"),
        order in Just([0, 1, 2, 3, 4]).prop_shuffle(),
        count in 1usize..=5,
    ) {
        let [first, second] = guids.map(|guid| format!("{{{}}}", Uuid::from_u128(guid)));
        let [a, b, c] = paths;
        let all = [(LINKAGE, first), (LINKAGE2, second), (PATHS[0], a), (PATHS[1], b), (PATHS[2], c)];
        let chosen = order.into_iter().filter(|index| *index < count);
        let entries = chosen.map(|index| (all[index].0.to_owned(), all[index].1.clone())).collect();
        let locator = ParentLocator { entries };
        prop_assert_eq!(patched(&locator, &[]).unwrap(), locator);
    }

    #[test]
    fn any_change_is_parsed_or_refused(changes in prop::collection::vec((16usize..176, any::<u8>()), 1..6)) {
        let changes: Vec<_> = changes.into_iter().map(|(at, byte)| (at, [byte])).collect();
        let parts: Vec<_> = changes.iter().map(|(at, byte)| (*at, &byte[..])).collect();
        if let Ok(locator) = patched(&sample(), &parts) {
            prop_assert!(!locator.reference().identities.is_empty());
        }
    }
}
