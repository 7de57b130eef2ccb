use std::sync::Arc;

use proptest::prelude::*;

use super::header::{MAX_OCTAL, encode_end, encode_header};
use super::*;
use crate::error::ErrorKind;
use crate::io::{MemFile, Window};

/// A record of an extended header, with its length found by trying.
pub(crate) fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let len = (1..).find(|len: &usize| len.to_string().len() + rest.len() == *len).unwrap();
    format!("{len}{rest}").into_bytes()
}

/// Writes a block with the type flag and the checksum.
fn seal(block: &mut [u8], kind: u8) {
    block[156] = kind;
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A header, the data, and its padding.
pub(crate) fn entry(name: &str, kind: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = encode_header(name, data.len() as u64, 0).to_vec();
    seal(&mut bytes, kind);
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn read(bytes: &[u8]) -> Result<Vec<Member>> {
    let members = members(&MemFile::from(bytes.to_vec()), &Limits::default(), &Budget::new(1 << 20))?;
    check_names(&members).map(|()| members)
}

/// The names and contents of the files.
fn files(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let file: Arc<dyn ReadAt> = Arc::new(MemFile::from(bytes.to_vec()));
    let files = read(bytes).unwrap().into_iter().filter(|member| member.kind == Kind::File);
    files
        .map(|member| {
            let mut content = vec![7; member.size as usize];
            Window::new(file.clone(), member.pieces, member.size).read_exact_at(&mut content, 0).unwrap();
            (member.name.to_text().into_owned(), content)
        })
        .collect()
}

/// How a sparse file is stored.
#[derive(Clone, Copy, Debug)]
enum Sparse {
    Old,
    Pax00,
    Pax01,
    Pax10,
}

/// A file with holes, in the naive way: one entry for each run of bytes that are not 0.
fn sparse(name: &str, content: &[u8], how: Sparse) -> Vec<u8> {
    let mut map: Vec<(usize, usize)> = Vec::new();
    for (at, byte) in content.iter().enumerate().filter(|(_, byte)| **byte != 0) {
        let _ = byte;
        match map.last_mut() {
            Some((start, len)) if *start + *len == at => *len += 1,
            _ => map.push((at, 1)),
        }
    }
    map.push((content.len(), 0));
    let data: Vec<u8> = map.iter().flat_map(|(at, len)| content[*at..at + len].to_vec()).collect();
    let list = |separator: &str| {
        let numbers: Vec<_> = map.iter().flat_map(|(at, len)| [at.to_string(), len.to_string()]).collect();
        numbers.join(separator)
    };
    let size = content.len().to_string();
    match how {
        Sparse::Old => {
            let mut header = encode_header(name, data.len() as u64, 0).to_vec();
            header[257..265].copy_from_slice(b"ustar  \0");
            let fields = |entry: &(usize, usize)| format!("{:011o}\0{:011o}\0", entry.0, entry.1).into_bytes();
            let (first, rest) = map.split_at(map.len().min(4));
            let first: Vec<u8> = first.iter().flat_map(fields).collect();
            header[386..][..first.len()].copy_from_slice(&first);
            header[482] = u8::from(!rest.is_empty());
            header[483..495].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
            seal(&mut header, b'S');
            for (index, entries) in rest.chunks(21).enumerate() {
                let mut block: Vec<u8> = entries.iter().flat_map(fields).collect();
                block.resize(512, 0);
                block[504] = u8::from(21 * (index + 1) < rest.len());
                header.extend(block);
            }
            header.extend(data);
            header.resize(header.len().next_multiple_of(512), 0);
            header
        }
        Sparse::Pax00 | Sparse::Pax01 => {
            let mut text =
                [record("GNU.sparse.size", &size), record("GNU.sparse.numblocks", &map.len().to_string())].concat();
            match how {
                Sparse::Pax00 => map.iter().for_each(|(at, len)| {
                    text.extend(record("GNU.sparse.offset", &at.to_string()));
                    text.extend(record("GNU.sparse.numbytes", &len.to_string()));
                }),
                _ => {
                    text.extend(record("GNU.sparse.map", &list(",")));
                    text.extend(record("GNU.sparse.name", name));
                }
            }
            [entry("PaxHeaders/x", b'x', &text), entry(name, b'0', &data)].concat()
        }
        Sparse::Pax10 => {
            let text = [
                record("GNU.sparse.major", "1"),
                record("GNU.sparse.minor", "0"),
                record("GNU.sparse.name", name),
                record("GNU.sparse.realsize", &size),
            ];
            let mut stored = format!("{}\n{}\n", map.len(), list("\n")).into_bytes();
            stored.resize(stored.len().next_multiple_of(512), 0);
            stored.extend(data);
            [entry("x", b'x', &text.concat()), entry("GNUSparseFile.0/x", b'0', &stored)].concat()
        }
    }
}

proptest! {
    #[test]
    fn what_a_naive_encoder_writes_reads_back(
        list in prop::collection::vec(
            (
                prop::collection::vec(prop_oneof![4 => Just(0u8), 1 => 1u8..], 0..1500),
                prop::option::of(prop::sample::select(vec![Sparse::Old, Sparse::Pax00, Sparse::Pax01, Sparse::Pax10])),
                prop::option::of(100usize..400),
            ),
            0..5,
        ),
        ended in any::<bool>(),
    ) {
        let (mut archive, mut expected) = (Vec::new(), Vec::new());
        for (index, (content, how, long)) in list.into_iter().enumerate() {
            let name = match (how, long) {
                (None, Some(len)) => format!("{index}{}", "n".repeat(len)),
                _ => format!("dir/{index}"),
            };
            match (how, long) {
                (Some(how), _) => archive.extend(sparse(&name, &content, how)),
                (None, None) => archive.extend(entry(&name, b'0', &content)),
                (None, Some(len)) if len % 2 == 0 => {
                    archive.extend(entry("long", b'L', format!("{name}\0").as_bytes()));
                    archive.extend(entry("n", b'0', &content));
                }
                // The size of the extended header is that of the file.
                (None, Some(_)) => {
                    archive.extend(entry("x", b'x', &[record("path", &name), record("size", &content.len().to_string())].concat()));
                    let mut file = entry("n", 0, &content);
                    file[124..136].fill(b'0');
                    seal(&mut file[..512], 0);
                    archive.extend(file);
                }
            }
            expected.push((name, content));
        }
        if ended {
            archive.extend(encode_end());
        }
        prop_assert_eq!(files(&archive), expected);
    }

    #[test]
    fn the_map_of_an_encoded_file_reads_back(
        list in prop::collection::vec((prop_oneof![1u64..5000, 1u64..1 << 45], 1u64..2000), 0..60),
        tail in prop_oneof![Just(0), 1u64..1 << 45],
    ) {
        let mut runs: Vec<std::ops::Range<u64>> = Vec::new();
        for (gap, len) in list {
            // The first run can be at the start.
            let start = runs.last().map_or(gap - 1, |last| last.end + gap);
            runs.push(start..start + len);
        }
        let size = runs.last().map_or(0, |last| last.end) + tail;
        let mut archive = encode_file("disk.raw", size, &runs, 7);
        let head = archive.len() as u64;
        prop_assert!(head.is_multiple_of(BLOCK));
        let stored: u64 = runs.iter().map(|run| run.end - run.start).sum();
        archive.resize((head + stored).next_multiple_of(BLOCK) as usize, 1);
        let members = read(&archive).unwrap();
        prop_assert_eq!((members.len(), members[0].size, members[0].kind), (1, size, Kind::File));
        let mut offset = head;
        for (piece, run) in members[0].pieces.iter().zip(&runs) {
            prop_assert_eq!((piece.start, piece.end(), piece.offset), (run.start, run.end, offset));
            offset += piece.len;
        }
        prop_assert_eq!(members[0].pieces.len(), runs.len());
    }

    #[test]
    fn damage_is_an_error_or_another_archive(
        flips in prop::collection::vec((0usize..6000, any::<u8>()), 1..6),
        cut in 0usize..6000,
    ) {
        let content: Vec<u8> = (0..1200).map(|at| u8::from(at % 30 == 0)).collect();
        let mut archive: Vec<u8> = [Sparse::Old, Sparse::Pax00, Sparse::Pax10].iter().enumerate().flat_map(|(index, how)| sparse(&format!("f{index}"), &content, *how)).collect();
        let len = archive.len();
        for (at, byte) in flips {
            archive[at % len] = byte;
        }
        archive.truncate(len.saturating_sub(cut.saturating_sub(3000)));
        for block in archive.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
            let kind = block[156];
            seal(block, kind);
        }
        if let Ok(members) = read(&archive) {
            for member in members {
                let mut end = 0;
                for piece in member.pieces {
                    prop_assert!(piece.start >= end && piece.len > 0);
                    end = piece.end();
                    prop_assert!(piece.offset + piece.len <= archive.len() as u64);
                }
                prop_assert!(end <= member.size);
            }
        }
    }
}

#[test]
fn names_are_made_plain() {
    let names = |bytes: &[u8]| files(bytes).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(&entry("./a//b/./c", b'0', b"x")), ["a/b/c"]);
    let mut prefixed = entry("name", b'0', b"x");
    prefixed[345..351].copy_from_slice(b"folder");
    seal(&mut prefixed[..512], b'0');
    assert_eq!(names(&prefixed), ["folder/name"]);
    // Old GNU tar has times there.
    prefixed[257..265].copy_from_slice(b"ustar  \0");
    seal(&mut prefixed[..512], b'0');
    assert_eq!(names(&prefixed), ["name"]);
    // v7 has neither magic nor prefix.
    prefixed[257..265].fill(0);
    seal(&mut prefixed[..512], 0);
    assert_eq!(names(&prefixed), ["name"]);
}

#[test]
fn sizes_above_8_gib_are_in_base_256() {
    let fields = |size| {
        let header = encode_header("a", size, 0);
        (header[124..136].to_vec(), header[257..265].to_vec())
    };
    assert_eq!(fields(MAX_OCTAL), (b"77777777777\0".to_vec(), b"ustar\x0000".to_vec()));
    assert_eq!(fields(MAX_OCTAL + 1), (b"\x80\0\0\0\0\0\0\x02\0\0\0\0".to_vec(), b"ustar  \0".to_vec()));
}

#[test]
fn only_a_file_with_holes_is_sparse() {
    let header = |size, runs: &[std::ops::Range<u64>]| {
        let header = encode_file("a", size, runs, 0);
        let numbers = header[386..].chunks(12).take(4).map(|digits| String::from_utf8_lossy(digits).into_owned());
        (header[156], numbers.collect::<String>())
    };
    assert_eq!(header(1024, std::slice::from_ref(&(0..1024))).0, b'0');
    let number = |number: u64| format!("{number:011o}\0");
    let unused = "\0".repeat(24);
    assert_eq!(header(1024, std::slice::from_ref(&(512..1024))), (b'S', number(512) + &number(512) + &unused));
    // A hole at the end is an entry without bytes.
    let with_end = [0, 512, 1024, 0].map(number).concat();
    assert_eq!(header(1024, std::slice::from_ref(&(0..512))), (b'S', with_end));
}

#[test]
fn a_comment_on_all_members_is_ignored() {
    let bytes = [entry("x", b'g', &record("comment", "0123")), entry("a", b'0', b"data")].concat();
    assert_eq!(files(&bytes), [("a".into(), b"data".to_vec())]);
}

#[test]
fn the_end_may_be_missing_padded_or_cut() {
    let one = entry("a", b'0', b"data");
    for bytes in
        [one.clone(), one[..516].to_vec(), [one.clone(), vec![0; 512]].concat(), [one, vec![0; 10240 + 7]].concat()]
    {
        assert_eq!(files(&bytes), [("a".into(), b"data".to_vec())]);
    }
}

#[test]
fn signed_checksums_and_blanks_at_the_end_are_read() {
    let mut bytes = entry("\u{e4}", b'0', b"x");
    let sum: i64 = bytes[..512].iter().map(|byte| i64::from(byte.cast_signed())).sum::<i64>()
        - bytes[148..156].iter().map(|byte| i64::from(*byte)).sum::<i64>()
        + 8 * 32;
    bytes[148..156].copy_from_slice(format!("{sum:06o} \0").as_bytes());
    bytes[124..136].copy_from_slice(b"00000000001 ");
    // The digits of the size count too.
    let sum = sum + 32;
    bytes[148..156].copy_from_slice(format!("{sum:06o} \0").as_bytes());
    assert_eq!(files(&bytes).len(), 1);
}

/// An archive, and the text of the error.
#[test]
fn hostile_archives_are_refused() {
    let link = |kind| entry("a.vmdk", kind, b"x");
    let mut wrong_sum = entry("a", b'0', b"x");
    wrong_sum[0] = b'b';
    let mut huge = entry("a", b'0', b"x");
    huge[124..136].copy_from_slice(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff");
    seal(&mut huge[..512], b'0');
    let pax = |records: &[(&str, &str)]| {
        let text: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        [entry("x", b'x', &text), entry("a", b'0', b"0123456789")].concat()
    };
    let global: Vec<u8> = [entry("x", b'g', &record("size", "5")), entry("a", b'0', b"x")].concat();
    let many = format!("{}\n", u64::MAX / 2);
    for (bytes, message) in [
        (entry("/etc/passwd", b'0', b"x"), "must not be absolute"),
        (entry("a/../../b", b'0', b"x"), "'..' component"),
        (entry("..", b'5', b""), "'..' component"),
        (entry("./", b'0', b"x"), "is a directory"),
        (entry("", b'0', b"x"), "a file must have a name"),
        ([entry("a", b'0', b"x"), entry("./a", b'0', b"y")].concat(), "another member has the same name"),
        (link(b'1'), "must be 0 for anything but a file"),
        (link(b'2'), "must be 0 for anything but a file"),
        (wrong_sum, "must be the sum of the bytes"),
        (huge, "is out of bounds"),
        (entry("a", b'0', &[1; 600])[..1000].to_vec(), "is out of bounds"),
        ([entry("a", b'0', b"x"), vec![1; 100]].concat(), "is out of bounds"),
        (entry("x", b'x', &record("path", "b")), "no member follows"),
        (entry("x", b'L', b"name\0"), "no member follows"),
        (entry("x", b'x', b"999 path=b\n"), "must consist of records"),
        (entry("x", b'M', b""), "multi-volume"),
        (global, "must not have names or sizes"),
        (entry("x", b'g', &record("path", "b")), "must not have names or sizes"),
        (pax(&[("size", "-1")]), "decimal number"),
        (pax(&[("size", "9223372036854775807")]), "is out of bounds"),
        (pax(&[("size", "9")]), "states another size"),
        (pax(&[("size", "9223372036854775808")]), "decimal number"),
        (pax(&[("path", "../a")]), "'..' component"),
        (pax(&[("path", "a\0b")]), "must not contain NUL"),
        (pax(&[("path", "a"), ("path", "/b")]), "must not be absolute"),
        (pax(&[("GNU.sparse.map", "0,10,5,1"), ("GNU.sparse.size", "10")]), "overlaps the previous entry"),
        (pax(&[("GNU.sparse.map", "0,5"), ("GNU.sparse.size", "10")]), "has fewer bytes"),
        (pax(&[("GNU.sparse.map", "0,10,10,10"), ("GNU.sparse.size", "100")]), "is out of bounds"),
        (pax(&[("GNU.sparse.map", "0,10"), ("GNU.sparse.size", "9")]), "is out of bounds"),
        (pax(&[("GNU.sparse.map", "0"), ("GNU.sparse.size", "9")]), "another number of entries"),
        (
            pax(&[("GNU.sparse.map", "0,10"), ("GNU.sparse.numblocks", "2"), ("GNU.sparse.size", "10")]),
            "another number of entries",
        ),
        (pax(&[("GNU.sparse.map", "0,10")]), "size of the sparse file"),
        (pax(&[("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0")]), "sparse files of version 2.0"),
        (
            [
                entry(
                    "x",
                    b'x',
                    &[
                        record("GNU.sparse.major", "1"),
                        record("GNU.sparse.minor", "0"),
                        record("GNU.sparse.realsize", "5"),
                    ]
                    .concat(),
                ),
                entry("a", b'0', many.as_bytes()),
            ]
            .concat(),
            "is out of bounds",
        ),
    ] {
        match read(&bytes) {
            Err(error) => assert!(error.to_string().contains(message), "{message}: {error}"),
            // A directory is not a file.
            Ok(members) => assert!(message == "is a directory" && members[0].kind == Kind::Directory, "{message}"),
        }
    }
}

/// An archive without end.
struct Endless([u8; 512]);

impl ReadAt for Endless {
    fn size(&self) -> std::io::Result<u64> {
        Ok(1 << 50)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        for (byte, at) in buf.iter_mut().zip(offset..) {
            *byte = self.0[at as usize % 512];
        }
        Ok(buf.len())
    }
}

#[test]
fn archives_without_end_are_refused() {
    let endless = |kind| Endless(entry("a", kind, b"")[..512].try_into().unwrap());
    for kind in [b'0', b'5', b'2'] {
        let error = members(&endless(kind), &Limits::default(), &Budget::new(1 << 22)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    }
    // Headers that describe no member.
    for kind in [b'g', b'V', b'K', b'L', b'x'] {
        let error = members(&endless(kind), &Limits::default(), &Budget::new(1 << 22)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{kind}: {error}");
    }
}

#[test]
fn memory_is_bounded_by_the_budget() {
    let many: Vec<u8> = (0..5000).flat_map(|index| entry(&index.to_string(), b'0', b"")).collect();
    assert_eq!(read(&many).unwrap_err().kind(), ErrorKind::Limit);
    let long = entry("x", b'L', &vec![b'n'; 2 << 20]);
    assert!(matches!(read(&long).unwrap_err(), Error::Limit { name: Some(LimitName::NameLength), .. }));
}
