//! Images with the legacy encryption: plain images whose clusters are encrypted afterwards, as QEMU did.

use std::sync::Arc;

use super::LEGACY_AES_WARNING;
use crate::convert::Converter;
use crate::crypto::CipherSpec;
use crate::driver::ExtentKind;
use crate::error::{Error, SecretProblem};
use crate::format::Format;
use crate::image::{Image, OpenOptions};
use crate::io::{MemFile, WriteAt};
use crate::options::Options;
use crate::secret::Secret;
use crate::testing::SparseFile;

const SIZE: usize = (1 << 20) + 512;
const KEY: &[u8; 16] = b"passphrase\0\0\0\0\0\0";
/// Formats, and where the method of encryption is in their headers.
const FORMATS: [(Format, usize); 2] = [(Format::QCOW, 39), (Format::QCOW2, 35)];

/// Data, with clusters that are zeros.
fn guest() -> Vec<u8> {
    (0..SIZE).map(|at| if at / 65_536 % 3 == 1 { 0 } else { (at * 13 / 5) as u8 | 1 }).collect()
}

fn plain(format: Format, is_compressed: bool) -> Vec<u8> {
    let raw = OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(guest()))).unwrap();
    let out = Arc::new(MemFile::new());
    let converter = Converter::new(format).compress(is_compressed);
    converter.convert_to(&raw, out.clone()).unwrap();
    out.to_vec()
}

/// Encrypts the clusters of a plain image.
fn encrypted(mut bytes: Vec<u8>, method: usize) -> MemFile {
    let cipher = CipherSpec::parse("aes", "cbc-plain64").unwrap().with_key(KEY, 512).unwrap();
    let image = OpenOptions::new().open_source(Arc::new(MemFile::from(bytes.clone()))).unwrap();
    for span in image.spans(0..u64::MAX) {
        let span = span.unwrap();
        if let ExtentKind::Data(at) = span.kind {
            cipher.encrypt(&mut bytes[at.offset as usize..][..span.len as usize], span.offset / 512);
        }
    }
    bytes[method] = 1;
    MemFile::from(bytes)
}

fn open(file: &Arc<MemFile>, secrets: &[&str]) -> crate::Result<Image> {
    let options = secrets.iter().fold(OpenOptions::new(), |options, secret| options.secret(Secret::new(*secret)));
    options.open_source(file.clone())
}

fn content(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0xee; image.virtual_size() as usize];
    image.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn clusters_are_decrypted_by_their_guest_offset() {
    for (format, method) in FORMATS {
        let file = Arc::new(encrypted(plain(format, false), method));
        // What follows a NUL is not part of the key, nor is what is longer than it.
        for secret in ["passphrase", "passphrase\0x"] {
            let image = open(&file, &[secret, "other"]).unwrap();
            assert_eq!((image.format(), image.info().encryption), (format, Some("AES")));
            assert!(content(&image)[..SIZE] == guest()[..], "{format}");
            for (at, len) in [(0, 1), (511, 2), (700, 100), (65_000, 1), (131_072 + 100, 5000), (SIZE - 1, 1)] {
                let mut part = vec![0; len];
                image.read_exact_at(&mut part, at as u64).unwrap();
                assert!(part == guest()[at..at + len], "{format}: {len} bytes at {at}");
            }
            let out = Arc::new(MemFile::new());
            Converter::new(Format::RAW).threads(2).convert_to(&image, out.clone()).unwrap();
            assert!(out.to_vec()[..SIZE] == guest()[..], "{format}");
        }
    }
}

#[test]
fn a_wrong_secret_gives_another_disk_and_a_warning() {
    for (format, method) in FORMATS {
        let file = Arc::new(encrypted(plain(format, false), method));
        let info = OpenOptions::new().inspect_source(file.clone()).unwrap().info;
        assert_eq!(info.warnings, [LEGACY_AES_WARNING]);
        let image = open(&file, &["other", "passphrase"]).unwrap();
        assert_eq!(image.info().warnings, [LEGACY_AES_WARNING]);
        let read = content(&image);
        assert!(read[..65_536] != guest()[..65_536] && read[65_536..131_072] == guest()[65_536..131_072], "{format}");
        let missing = open(&file, &[]).unwrap_err();
        assert!(matches!(missing, Error::Secret { problem: SecretProblem::Missing, .. }), "{missing}");
    }
}

#[test]
fn a_hole_of_the_file_is_not_zeros() {
    let mut options = Options::new();
    options.set("preallocation", "metadata");
    let file = Arc::new(SparseFile::default());
    Converter::new(Format::QCOW2).options(options).create_to(SIZE as u64, file.clone()).unwrap();
    let has_holes = |image: &Image| image.spans(0..u64::MAX).any(|span| span.unwrap().host_hole);
    assert!(has_holes(&OpenOptions::new().open_source(file.clone()).unwrap()));
    file.write_all_at(&[1], 35).unwrap();
    let image = OpenOptions::new().secret(Secret::new("passphrase")).open_source(file).unwrap();
    assert!(!has_holes(&image) && content(&image)[..512] != [0; 512]);
}

#[test]
fn compressed_clusters_are_refused() {
    for (format, method) in FORMATS {
        let mut bytes = plain(format, true);
        bytes[method] = 1;
        let image = open(&Arc::new(MemFile::from(bytes)), &["passphrase"]).unwrap();
        let error = image.read_exact_at(&mut [0], 0).unwrap_err();
        assert!(error.to_string().contains("compressed clusters of an encrypted image"), "{error}");
    }
}
