use std::sync::Arc;

use crate::convert::Converter;
use crate::driver::OpenContext;
use crate::error::{Error, SecretProblem};
use crate::format::Format;
use crate::image::{Image, OpenOptions};
use crate::io::{MemFile, ReadAt};
use crate::limits::{Budget, Limits};
use crate::options::Options;
use crate::secret::Secret;
use crate::testing::TempDir;

const SIZE: usize = (1 << 20) + 1536;

fn guest() -> Vec<u8> {
    // Zeros too: they are not holes.
    (0..SIZE).map(|at| if at / 4096 % 3 == 1 { 0 } else { (at * 13 / 5) as u8 }).collect()
}

fn raw(bytes: Vec<u8>) -> Image {
    OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(bytes))).unwrap()
}

fn converter(list: &str) -> Converter {
    let mut options = Options::new();
    options.add_list(list);
    options.set("iter-time", "1");
    Converter::new(Format::LUKS).options(options).secret(Secret::new("secret")).threads(2)
}

fn volume(list: &str) -> Vec<u8> {
    let out = Arc::new(MemFile::new());
    converter(list).convert_to(&raw(guest()), out.clone()).unwrap();
    out.to_vec()
}

fn options() -> OpenOptions {
    OpenOptions::new().secret(Secret::new("other")).secret(Secret::new("secret"))
}

fn content(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0xee; image.virtual_size() as usize];
    image.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn volumes_read_back_with_their_secret() {
    for list in ["", "cipher-alg=twofish-256,cipher-mode=cbc,ivgen-alg=essiv,hash-alg=sha1", "cipher-alg=serpent-128"] {
        let bytes = volume(list);
        let payload = bytes.len() - SIZE;
        assert!(payload.is_multiple_of(4096) && !bytes[payload..].chunks(512).any(|sector| sector == [0; 512]));
        let file = Arc::new(MemFile::from(bytes));
        let image = options().open_source(file.clone()).unwrap();
        assert_eq!((image.format(), image.virtual_size()), (Format::LUKS, SIZE as u64));
        assert!(content(&image) == guest(), "{list}");
        let spans: Vec<_> = image.spans(0..u64::MAX).map(|span| span.unwrap().len).collect();
        assert_eq!(spans, [SIZE as u64]);
        // Its ciphertext is a disk as well.
        let stored = OpenOptions::new().format(Format::RAW).open_source(file).unwrap();
        assert_eq!(stored.virtual_size(), (payload + SIZE) as u64);
    }
}

#[test]
fn properties_need_no_secret() {
    let file: Arc<dyn ReadAt> = Arc::new(MemFile::from(volume("")));
    let info = OpenOptions::new().inspect_source(file.clone()).unwrap().info;
    assert_eq!((info.encryption, info.virtual_size), (Some("LUKS"), SIZE as u64));
    assert_eq!(info.property("cipher-alg"), Some(&"aes-256".into()));
    let problem = |options: OpenOptions| match options.open_source(file.clone()).unwrap_err() {
        Error::Secret { format: "luks", problem } => problem,
        other => panic!("{other}"),
    };
    assert_eq!(problem(OpenOptions::new()), SecretProblem::Missing);
    let secret = "hunter2, which is not it";
    assert_eq!(problem(OpenOptions::new().secret(Secret::new(secret))), SecretProblem::Wrong);
    let wrong = OpenOptions::new().secret(Secret::new(secret));
    let texts = [
        format!("{wrong:?}"),
        wrong.open_source(file.clone()).unwrap_err().to_string(),
        format!("{:?}", converter("")),
    ];
    assert!(texts.iter().all(|text| !text.contains("hunter2") && !text.contains("secret\"")), "{texts:?}");
}

#[test]
fn a_new_volume_needs_a_secret_and_takes_no_compression() {
    let out = Arc::new(MemFile::new());
    let error = Converter::new(Format::LUKS).create_to(512, out.clone()).unwrap_err();
    assert!(matches!(error, Error::Secret { problem: SecretProblem::MissingForTarget, .. }), "{error}");
    let error = converter("").compress(true).create_to(512, out.clone()).unwrap_err();
    assert_eq!(error.kind().as_str(), "unsupported");
    assert_eq!(out.to_vec(), b"");
    converter("").create_to(1000, out.clone()).unwrap();
    assert_eq!(options().open_source(out).unwrap().virtual_size(), 1024);
}

#[test]
fn existing_volumes_and_disks_are_written_into() {
    let dir = TempDir::new();
    let path = dir.join("disk");
    for format in [Format::LUKS, Format::RAW] {
        let open = || options().format(format).open(&path).unwrap();
        match format == Format::LUKS {
            true => converter("").create((SIZE + 4096) as u64, &path).unwrap(),
            false => Converter::new(Format::RAW).create((SIZE + 4096) as u64, &path).unwrap(),
        };
        let old = content(&open());
        let before = std::fs::read(&path).unwrap();
        let existing = Converter::new(format).existing(true);
        let larger =
            existing.clone().secret(Secret::new("secret")).convert(&raw(vec![7; SIZE + 4097]), &path).unwrap_err();
        assert_eq!(larger.kind().as_str(), "limit", "{larger}");
        if format == Format::LUKS {
            for converter in [existing.clone(), existing.clone().secret(Secret::new("wrong"))] {
                assert_eq!(converter.convert(&raw(guest()), &path).unwrap_err().kind().as_str(), "secret");
            }
        }
        assert!(std::fs::read(&path).unwrap() == before, "a failure before the first write changes nothing");

        existing.secret(Secret::new("secret")).convert(&raw(guest()), &path).unwrap();
        let new = content(&open());
        assert!(new[..SIZE] == guest()[..] && new[SIZE..] == old[SIZE..], "{format}");
        let after = std::fs::read(&path).unwrap();
        let header = before.len() - SIZE - 4096;
        assert_eq!((after.len(), after[..header] == before[..header]), (before.len(), true));
        std::fs::remove_file(&path).unwrap();
    }
    let missing = converter("iter-time=1").existing(true);
    assert_eq!(missing.convert(&raw(vec![0; 512]), &path).unwrap_err().kind().as_str(), "io");
    assert_eq!(missing.convert_to(&raw(vec![0; 512]), Arc::new(MemFile::new())).unwrap_err().kind().as_str(), "usage");
    let other = Converter::new(Format::VDI).existing(true);
    Converter::new(Format::VDI).create(512, &path).unwrap();
    assert_eq!(other.convert(&raw(vec![0; 1024]), &path).unwrap_err().kind().as_str(), "limit");
}

#[test]
fn hostile_headers() {
    let bytes = volume("");
    let open = |at: usize, value: &[u8], len: usize| {
        let mut bytes = bytes[..len].to_vec();
        bytes[at..at + value.len()].copy_from_slice(value);
        let (limits, budget) = (Limits { metadata: 1 << 20, ..Limits::default() }, Budget::new(1 << 20));
        let secrets = [Secret::new("secret")];
        let cx = OpenContext { secrets: &secrets, ..OpenContext::new(&limits, &budget) };
        Format::LUKS.open(Arc::new(MemFile::from(bytes)), &cx).map(drop).map_err(|error| error.to_string())
    };
    let len = bytes.len();
    assert_eq!(open(0, b"L", len), Ok(()));
    for (at, value, len, message) in [
        (0, &b"L"[..], 500, "unexpected end of file"),
        (0, b"L", 100_000, "payload offset is out of bounds"),
        (8, b"camellia\0", len, "luks: not supported: cipher camellia-xts-plain64 with a key of 512 bits"),
        (40, b"xts-random\0", len, "cipher aes-xts-random"),
        (72, b"whirlpool\0", len, "not supported: hash whirlpool"),
        (104, &[0; 4], len, "payload offset is 0x0, but must be after the header; if that is a detached header"),
        (104, &[0, 0, 0, 9], len, "0xf8: key material points to 0x1000, which overlaps the guest data"),
        (104, &[0xff; 4], len, "payload offset is out of bounds"),
        (108, &[0, 0, 0, 33], len, "with a key of 264 bits"),
        (164, &[0xff; 4], len, "mk-digest-iter at file offset 0xa4 is 4294967295, above the limit of 100000000"),
        (212, &[0xff; 4], len, "key slot iterations at file offset 0xd4 is 4294967295, above the limit of 100000000"),
        (248, &[0; 4], len, "overlaps the header"),
        (248, &[0xff; 4], len, "overlaps the guest data"),
        (252, &[0xff; 4], len, "overlaps the guest data"),
        (208, &0xdead_u32.to_be_bytes(), len, "no secret given unlocks a key slot"),
        (8192, &[0], len, "no secret given unlocks a key slot"),
    ] {
        let error = open(at, value, len).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
}

/// The volume with a detached header whose payload is at sector `sector` of its file.
fn detached(bytes: &[u8], sector: u32) -> (Arc<MemFile>, Arc<MemFile>) {
    let (header, payload) = bytes.split_at(bytes.len() - SIZE);
    let mut header = header.to_vec();
    header[104..108].copy_from_slice(&sector.to_be_bytes());
    let payload = [vec![0; sector as usize * 512], payload.to_vec()].concat();
    (Arc::new(MemFile::from(header)), Arc::new(MemFile::from(payload)))
}

#[test]
fn a_header_can_be_in_a_file_of_its_own() {
    let bytes = volume("");
    for sector in [0, 8, 4040] {
        let (header, payload) = detached(&bytes, sector);
        let with = options().detached_header_source(header.clone());
        for with in [with.clone(), with.clone().format(Format::LUKS)] {
            let image = with.open_source(payload.clone()).unwrap();
            assert_eq!((image.format(), image.virtual_size()), (Format::LUKS, SIZE as u64));
            assert!(content(&image) == guest());
        }
        let inspection = OpenOptions::new().detached_header_source(header.clone()).inspect_source(payload).unwrap();
        assert_eq!(inspection.info.property("detached-header"), Some(&true.into()));
        assert_eq!(inspection.file_len, (sector as usize * 512 + SIZE) as u64);
    }
    let attached = OpenOptions::new().inspect_source(Arc::new(MemFile::from(bytes))).unwrap();
    assert_eq!(attached.info.property("detached-header"), Some(&false.into()));
}

#[test]
fn what_is_wrong_with_a_detached_header_is_said_of_its_file() {
    let bytes = volume("");
    let dir = TempDir::new();
    let (header, payload) = detached(&bytes, 0);
    let path = dir.file("payload", &payload.to_vec());
    let open = |options: OpenOptions, header: &[u8]| {
        let header = dir.file("header", header);
        let error = options.detached_header(&header).open(&path).unwrap_err();
        assert_eq!(error.path(), Some(&*header), "{error}");
        error.root().to_string()
    };
    let mut damaged = header.to_vec();
    damaged[164..168].fill(0);
    assert!(open(options(), &damaged).contains("mk-digest-iter"));
    assert!(open(OpenOptions::new().secret(Secret::new("x")), &header.to_vec()).contains("no secret given"));
    assert!(open(options(), &header.to_vec()[..8192]).contains("key material is out of bounds"));
    // It is that of no image, or of one that has no such headers.
    assert_eq!(open(options(), &[0; 4096]), "raw: not supported: detached headers");
    let vdi = Arc::new(MemFile::new());
    Converter::new(Format::VDI).create_to(512, vdi.clone()).unwrap();
    assert_eq!(open(options(), &vdi.to_vec()), "vdi: not supported: detached headers");
    let stated = options().format(Format::VDI).detached_header_source(header).open(&path).unwrap_err();
    assert_eq!(stated.root().to_string(), "vdi: not supported: detached headers");
    let missing = options().detached_header(dir.join("missing")).open(&path).unwrap_err();
    assert_eq!((missing.kind().as_str(), missing.path()), ("io", Some(&*dir.join("missing"))));
}

#[test]
fn encrypted_bytes_are_not_taken_for_another_format() {
    let (header, _) = detached(&volume(""), 0);
    for start in [&b"\x1f\x8b\x08\0"[..], b"QFI\xfb\0\0\0\x03", b"LUKS\xba\xbe\0\x01"] {
        let mut bytes = vec![0; 2048];
        bytes[..start.len()].copy_from_slice(start);
        let mut with = options().detached_header_source(header.clone());
        if start.starts_with(b"QFI") {
            // More likely it is a qcow2 image, and the header is given by mistake.
            let error = with.open_source(Arc::new(MemFile::from(bytes.clone()))).unwrap_err();
            assert!(error.to_string().contains("the file is a qcow2 image of its own"), "{error}");
            with = with.format(Format::LUKS);
        }
        for with in [with.clone(), with.clone().one_pass(true)] {
            assert_eq!(with.open_source(Arc::new(MemFile::from(bytes.clone()))).unwrap().virtual_size(), 2048);
        }
        let dir = TempDir::new();
        assert_eq!(with.clone().one_pass(true).open(dir.file("x.gz", &bytes)).unwrap().virtual_size(), 2048);
    }
}

#[test]
fn the_file_of_a_header_is_not_replaced_by_a_conversion() {
    let dir = TempDir::new();
    let (header, payload) = detached(&volume(""), 0);
    let (header, payload) = (dir.file("header", &header.to_vec()), dir.file("payload", &payload.to_vec()));
    let image = options().detached_header(&header).open(payload).unwrap();
    let error = Converter::new(Format::RAW).convert(&image, &header).unwrap_err();
    assert!(error.to_string().contains("input file"), "{error}");
    assert_eq!(std::fs::read(&header).unwrap()[..4], *b"LUKS");
}
