use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::binary::encode;
use crate::convert::Converter;
use crate::crypto::Hash;
use crate::driver::OpenContext;
use crate::error::Result;
use crate::format::Format;
use crate::image::{Image, OpenOptions};
use crate::info::Value;
use crate::io::MemFile;
use crate::limits::{Budget, Limits};
use crate::options::Options;
use crate::secret::Secret;

const SIZE: usize = 200 << 10;
const HEADER: usize = 16 << 10;

fn guest() -> Vec<u8> {
    (0..SIZE).map(|at| if at / 4096 % 3 == 1 { 0 } else { (at * 13 / 5) as u8 }).collect()
}

fn volume(list: &str) -> Vec<u8> {
    let mut options = Options::new();
    options.add_list(list);
    options.add_list("version=2,iter-time=1,argon2-memory=64k");
    let raw = OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(guest()))).unwrap();
    let out = Arc::new(MemFile::new());
    Converter::new(Format::LUKS).options(options).secret(Secret::new("x")).convert_to(&raw, out.clone()).unwrap();
    out.to_vec()
}

fn open(bytes: Vec<u8>) -> Result<Image> {
    OpenOptions::new().secret(Secret::new("y")).secret(Secret::new("x")).open_source(Arc::new(MemFile::from(bytes)))
}

fn content(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0xee; image.virtual_size() as usize];
    image.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// The JSON of the first header.
fn json_of(bytes: &[u8]) -> Json {
    let text = bytes[4096..HEADER].split(|byte| *byte == 0).next().unwrap();
    serde_json::from_slice(text).unwrap()
}

/// The volume with another JSON in both headers.
fn with_json(bytes: &[u8], json: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for at in [0, HEADER] {
        let header = encode(at as u64, HEADER as u64, 1, "uuid", &[1; 64], json);
        bytes[at..at + HEADER].copy_from_slice(&header);
    }
    bytes
}

#[test]
fn a_damaged_first_header_does_not_hide_the_volume() {
    let bytes = volume("");
    let overwritten = |range: std::ops::Range<usize>, value: u8| {
        let mut bytes = bytes.clone();
        bytes[range].fill(value);
        bytes
    };
    for damaged in [overwritten(0..6, 0), overwritten(0..4096, 0), overwritten(0..160, 0xff)] {
        let image = open(damaged).unwrap();
        assert_eq!((image.format(), content(&image) == guest()), (Format::LUKS, true));
    }
    // Another disk, which was put over the volume.
    let image = open(overwritten(0..4096, 0xff)).unwrap();
    assert_eq!((image.format(), image.virtual_size()), (Format::RAW, bytes.len() as u64));
}

#[test]
fn volumes_read_back() {
    for (list, sector_size) in
        [("", 512), ("sector-size=4096,cipher-alg=serpent-256", 4096), ("cipher-mode=cbc,hash-alg=sha1", 512)]
    {
        let bytes = volume(list);
        assert_eq!(bytes.len(), (16 << 20) + SIZE);
        let image = open(bytes).unwrap();
        assert!(content(&image) == guest(), "{list}");
        assert_eq!(image.info().property("sector-size"), Some(&sector_size.into()));
        assert_eq!(image.info().warnings.len(), 0);
    }
}

#[test]
fn the_current_header_counts_and_one_is_enough() {
    let bytes = volume("");
    let json = json_of(&bytes).to_string();
    let with = |first: &[u8], second: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[..first.len()].copy_from_slice(first);
        bytes[HEADER..HEADER + second.len()].copy_from_slice(second);
        bytes
    };
    let header =
        |at: usize, sequence, json: &str| encode(at as u64, HEADER as u64, sequence, "u", &[0; 64], json.as_bytes());
    // An outdated copy is not looked at.
    assert!(open(with(&header(0, 7, &json), &header(HEADER, 6, "{}"))).is_ok());
    assert!(open(with(&header(0, 6, "{}"), &header(HEADER, 7, &json))).is_ok());
    assert!(open(with(&header(0, 7, "{}"), &header(HEADER, 7, &json))).is_err());
    for damaged in [with(b"", &[0; 8]), with(&[&bytes[..5000], b"#"].concat(), b"")] {
        let image = open(damaged).unwrap();
        assert!(content(&image) == guest() && image.info().warnings[0].contains("header is not valid"));
    }
    let none = open(with(&[&bytes[..5000], b"#"].concat(), &[0; 8])).unwrap_err().to_string();
    assert!(none.contains("csum is") && none.contains("checksum of the header"), "{none}");
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let bytes = volume("");
    let valid = json_of(&bytes);
    let open = |path: &str, value: Json| {
        let mut json = valid.clone();
        *json.pointer_mut(path).unwrap() = value;
        open(with_json(&bytes, json.to_string().as_bytes())).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(open("/segments/0/iv_tweak", json!("0")), Ok(()));
    let segment = &valid["segments"]["0"];
    let mut two = valid["segments"].clone();
    two["1"] = segment.clone();
    let mut integrity = segment.clone();
    integrity["integrity"] = json!({ "type": "hmac(sha256)" });
    let pbkdf2 =
        |iterations: u32| json!({ "type": "pbkdf2", "hash": "sha1", "salt": "AAAA", "iterations": iterations });
    let mut config = valid["config"].clone();
    config["requirements"] = json!({ "mandatory": ["online-reencrypt-v2"] });
    let mut unknown = config.clone();
    unknown["requirements"] = json!(["x"]);
    for (path, value, message) in [
        ("/segments", two, "luks: not supported: 2 segments, as during a re-encryption"),
        ("/segments/0", integrity, "luks: not supported: integrity protection (hmac(sha256))"),
        ("/segments/0/type", json!("hw-opal"), "luks: not supported: segment of type hw-opal"),
        ("/segments/0/encryption", json!("aes-xts-random"), "cipher aes-xts-random with a key of 512 bits"),
        ("/segments/0/encryption", json!("capi:x"), "cipher capi:x"),
        ("/segments/0/sector_size", json!(1536), "sector_size is 0x600, but must be a power of two"),
        ("/segments/0/sector_size", json!(8192), "sector_size is 8192, outside 512..=4096"),
        ("/segments/0/offset", json!("0"), "detached header"),
        ("/segments/0/offset", json!("16777217"), "segment offset is 0x1000001, not a multiple of 512"),
        ("/segments/0/offset", json!("18446744073709551104"), "segment is out of bounds"),
        ("/segments/0/size", json!("1000000000"), "segment is out of bounds"),
        ("/segments/0/size", json!(7), "size is missing, or is of another type"),
        ("/segments", json!({}), "segments is missing"),
        ("/config", config, "luks: not supported: requirement online-reencrypt-v2"),
        ("/config", unknown, "luks: not supported: requirements of unknown type"),
        ("/digests/0/segments", json!(["7"]), "digest of the segment is missing"),
        (
            "/digests/0/iterations",
            json!(4_294_967_295_u32),
            "PBKDF2 iterations at file offset 0x1000 is 4294967295, above",
        ),
        ("/digests/0/digest", json!("***"), "digest is missing"),
        ("/digests/0/type", json!("argon2id"), "luks: not supported: digest of type argon2id"),
        ("/keyslots/0/af/type", json!("luks2"), "luks: not supported: anti-forensic splitter of type luks2"),
        ("/keyslots/0/type", json!("reencrypt"), "luks: not supported: keyslot of type reencrypt"),
        ("/keyslots/0/kdf/type", json!("scrypt"), "luks: not supported: key derivation scrypt"),
        ("/keyslots/0/kdf/memory", json!(2_000_000), "memory of Argon2 at file offset 0x1000 is 2048000000, above"),
        ("/keyslots/0/kdf/memory", json!(4_294_967_295_u32), "memory of Argon2 at file offset 0x1000 is 4398046510080"),
        ("/keyslots/0/kdf/memory", json!(1_u64 << 32), "memory is 4294967296, outside 1..=4294967295"),
        ("/keyslots/0/kdf/memory", json!(-1), "memory is missing, or is of another type"),
        ("/keyslots/0/kdf/memory", json!(1), "parameters of Argon2"),
        ("/keyslots/0/kdf", pbkdf2(1 << 31), "PBKDF2 iterations at file offset 0x1000 is 2147483648, above"),
        ("/keyslots/0/kdf", pbkdf2(0), "iterations is 0, outside 1..=4294967295"),
        ("/keyslots/0/kdf/time", json!(4_000_000_000_u32), "memory times passes of Argon2"),
        ("/keyslots/0/kdf/cpus", json!(100_000_000), "parameters of Argon2"),
        ("/keyslots/0/af/hash", json!("md5"), "hash md5"),
        ("/keyslots/0/af/stripes", json!(8000), "keyslot area is out of bounds"),
        (
            "/keyslots/0/area/offset",
            json!("17179869184"),
            "keyslot area points to 0x400000000, which overlaps the guest data",
        ),
        ("/keyslots/0/area/offset", json!("18446744073709551615"), "overlaps the guest data"),
        ("/keyslots/0/area/offset", json!("28672"), "overlaps the header"),
        ("/keyslots/0/area/offset", json!((16 << 20) - 4096).to_string().into(), "overlaps the guest data"),
        ("/keyslots/0/area/size", json!("18446744073709551615"), "overlaps the guest data"),
        ("/keyslots/0/area/key_size", json!(65), "with a key of 520 bits"),
        ("/keyslots", json!({}), "keyslot of a digest is missing"),
        ("/keyslots/0/key_size", json!(32), "no secret given unlocks a key slot"),
    ] {
        let error = open(path, value).unwrap_err();
        assert!(error.contains(message), "{path}: {error}");
    }
}

/// Data after the segment may be that of another program; and a segment beyond the end of the file has lost data, which must not read as zeros.
#[test]
fn a_segment_with_a_size_is_the_disk() {
    const SECTOR: usize = 4096;
    let bytes = volume("sector-size=4096");
    let mut json = json_of(&bytes);
    let len = bytes.len() - json["segments"]["0"]["offset"].as_str().unwrap().parse::<usize>().unwrap();
    assert_eq!(len, SIZE);
    let mut open = |size: usize| {
        json["segments"]["0"]["size"] = size.to_string().into();
        open(with_json(&bytes, json.to_string().as_bytes()))
    };
    for (size, disk, is_whole) in [
        (len, len, true),
        (len - SECTOR, len - SECTOR, true),
        (SECTOR, SECTOR, true),
        (len - 1, len - SECTOR, false),
        (2 * SECTOR - 512, SECTOR, false),
    ] {
        let image = open(size).unwrap();
        assert_eq!((image.virtual_size() as usize, image.info().warnings.is_empty()), (disk, is_whole), "{size}");
        assert!(content(&image) == guest()[..disk], "{size}");
    }
    for size in [len + 1, len + SECTOR] {
        let error = open(size).unwrap_err();
        assert_eq!(error.kind().as_str(), "out-of-bounds", "{size}: {error}");
    }
}

#[test]
fn the_label_and_the_key_derivation_are_shown() {
    let bytes = volume("");
    let info = |label: &[u8], kdf: &str| {
        let mut json = json_of(&bytes);
        json["keyslots"]["0"]["kdf"]["type"] = kdf.into();
        let mut bytes = with_json(&bytes, json.to_string().as_bytes());
        for header in bytes[..2 * HEADER].chunks_mut(HEADER) {
            header[24..24 + label.len()].copy_from_slice(label);
            header[448..512].fill(0);
            let checksum = Hash::Sha256.digest(&[&*header]);
            header[448..448 + checksum.len()].copy_from_slice(&checksum);
        }
        let (limits, budget) = (Limits::default(), Budget::new(16 << 20));
        let cx = OpenContext { inspect: true, ..OpenContext::new(&limits, &budget) };
        let reader = Format::LUKS.open(Arc::new(MemFile::from(bytes)), &cx).unwrap();
        let Some(Value::List(slots)) = reader.info().property("slots") else { panic!() };
        let Value::Map(slot) = &slots[0] else { panic!() };
        let kdf = slot.iter().find(|(name, _)| *name == "kdf").map(|(_, kdf)| kdf.clone());
        (reader.info().property("label").cloned(), kdf)
    };
    assert_eq!(info(b"", "argon2id"), (None, Some("argon2id".into())));
    assert_eq!(info(b"backup", "argon2i"), (Some("backup".into()), Some("argon2i".into())));
}

#[test]
fn hostile_json() {
    let bytes = volume("");
    let open = |json: &[u8]| open(with_json(&bytes, json)).map(drop).unwrap_err().to_string();
    for (json, message) in [
        (&b""[..], "LUKS2 metadata is 0x0: the text is not valid JSON"),
        (b"{\"config\": ", "not valid JSON"),
        (b"[]", "config is missing"),
        (b"{\"config\": {}, \"segments\": 1}", "segments is missing"),
        (&[b'['; 12000], "not valid JSON"),
    ] {
        let error = open(json);
        assert!(error.contains(message), "{error}");
    }
    // Of members with the same name the last one counts, as for cryptsetup.
    let twice = json_of(&bytes).to_string().replacen('{', "{\"segments\": {}, ", 1);
    assert!(self::open(with_json(&bytes, twice.as_bytes())).is_ok());
    let twice = twice.replacen("\"sector_size\":512", "\"sector_size\":512,\"sector_size\":1e400", 1);
    assert!(open(twice.as_bytes()).contains("not valid JSON"), "a number that no float holds");
    // The memory for the parsed text is limited too.
    let (limits, budget) = (Limits::default(), Budget::new(64 << 10));
    let cx = OpenContext { inspect: true, ..OpenContext::new(&limits, &budget) };
    let error = Format::LUKS.open(Arc::new(MemFile::from(bytes)), &cx).map(drop).unwrap_err();
    assert_eq!(error.kind().as_str(), "limit", "{error}");
}

#[test]
fn a_header_can_be_in_a_file_of_its_own() {
    let bytes = volume("");
    let mut json = json_of(&bytes);
    for offset in [0, 4096, 16 << 20] {
        json["segments"]["0"]["offset"] = offset.to_string().into();
        let header = Arc::new(MemFile::from(with_json(&bytes, json.to_string().as_bytes())[..1 << 20].to_vec()));
        let payload = [vec![7; offset], bytes[bytes.len() - SIZE..].to_vec()].concat();
        let options = OpenOptions::new().secret(Secret::new("x")).detached_header_source(header);
        let image = options.open_source(Arc::new(MemFile::from(payload))).unwrap();
        assert!(content(&image) == guest());
        assert_eq!(image.info().property("detached-header"), Some(&true.into()));
    }
}

#[test]
fn a_second_header_of_any_size_is_found() {
    let bytes = volume("");
    let mut json = json_of(&bytes);
    let area = bytes[2 * HEADER..][..256_000].to_vec();
    for size in [32 << 10, 256 << 10, 4 << 20_usize] {
        json["keyslots"]["0"]["area"]["offset"] = (2 * size).to_string().into();
        let mut bytes = bytes.clone();
        // All but the magic.
        bytes[8..16 << 20].fill(0xff);
        let header = encode(size as u64, size as u64, 3, "u", &[0; 64], json.to_string().as_bytes());
        bytes[size..2 * size].copy_from_slice(&header);
        bytes[2 * size..][..area.len()].copy_from_slice(&area);
        let image = open(bytes).unwrap();
        assert!(content(&image) == guest() && image.info().warnings[0].contains("first header is not valid"), "{size}");
    }
}
