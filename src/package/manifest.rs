//! The manifest of a package: digests of its files (DSP0243, section 5.1).

use std::fmt;

use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha512};

use crate::error::Result;
use crate::format::shared::table;
use crate::io::ReadAt;
use crate::name::Name;

/// An algorithm of digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Sha1,
    Sha256,
    Sha512,
}

/// The digest of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub name: Name,
    pub algorithm: Algorithm,
    pub digest: Vec<u8>,
}

/// A manifest: a line for each file, `SHA256(name)= hex`, where programs put blanks in different places and openssl says `SHA2-256`.
#[derive(Debug, Default)]
pub(crate) struct Manifest {
    pub entries: Vec<Entry>,
    /// Number of lines that are something else.
    pub ignored: usize,
}

impl Manifest {
    /// Parses a manifest. Lines that are not understood are counted.
    pub fn parse(text: &[u8]) -> Manifest {
        let mut manifest = Manifest::default();
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        for line in text.split(|byte| matches!(byte, b'\n' | b'\r')).map(<[u8]>::trim_ascii) {
            match entry(line) {
                Some(entry) => manifest.entries.push(entry),
                None if line.is_empty() => {}
                None => manifest.ignored += 1,
            }
        }
        manifest
    }

    /// The digests of the file `name`.
    pub fn of<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| entry.name.as_bytes() == name)
    }
}

fn entry(line: &[u8]) -> Option<Entry> {
    let open = line.iter().position(|byte| *byte == b'(')?;
    let (algorithm, rest) = (line.get(..open)?.trim_ascii(), line.get(open + 1..)?);
    let algorithm = Algorithm::by_name(algorithm)?;
    // A name may have parentheses and equals signs, a digest has neither.
    let equals = rest.iter().rposition(|byte| *byte == b'=')?;
    let name = rest.get(..equals)?.trim_ascii_end().strip_suffix(b")")?;
    let digest = bytes_of_hex(rest.get(equals + 1..)?.trim_ascii())?;
    let name = name.strip_prefix(b"./").unwrap_or(name);
    (digest.len() == algorithm.digest_len() && !name.is_empty()).then(|| Entry {
        name: Name::from(name),
        algorithm,
        digest,
    })
}

fn bytes_of_hex(text: &[u8]) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pairs = pairs.iter().map(|[high, low]| u8::try_from(digit(*high)? << 4 | digit(*low)?).ok());
    if rest.is_empty() { pairs.collect() } else { None }
}

impl Algorithm {
    fn by_name(name: &[u8]) -> Option<Algorithm> {
        let name = name.to_ascii_uppercase();
        match name.as_slice() {
            b"SHA1" | b"SHA-1" => Some(Algorithm::Sha1),
            b"SHA256" | b"SHA-256" | b"SHA2-256" => Some(Algorithm::Sha256),
            b"SHA512" | b"SHA-512" | b"SHA2-512" => Some(Algorithm::Sha512),
            _ => None,
        }
    }

    /// Length of a digest in bytes.
    fn digest_len(self) -> usize {
        match self {
            Algorithm::Sha1 => 20,
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 => 64,
        }
    }

    /// The name in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha1 => "SHA1",
            Algorithm::Sha256 => "SHA256",
            Algorithm::Sha512 => "SHA512",
        }
    }
}

/// A digest that is being computed.
pub(crate) enum Hasher {
    Sha1(Sha1),
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub fn new(algorithm: Algorithm) -> Hasher {
        match algorithm {
            Algorithm::Sha1 => Hasher::Sha1(Sha1::new()),
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha1(state) => state.update(bytes),
            Hasher::Sha256(state) => state.update(bytes),
            Hasher::Sha512(state) => state.update(bytes),
        }
    }

    pub fn finish(self) -> Vec<u8> {
        match self {
            Hasher::Sha1(state) => state.finalize().to_vec(),
            Hasher::Sha256(state) => state.finalize().to_vec(),
            Hasher::Sha512(state) => state.finalize().to_vec(),
        }
    }

    /// Adds a whole file. Stops with `None` as soon as `cancelled` returns true.
    pub fn update_file(&mut self, file: &dyn ReadAt, cancelled: &dyn Fn() -> bool) -> Result<Option<()>> {
        let len = table::length(file)?;
        let mut buf = vec![0; len.min(256 << 10) as usize];
        let mut at = 0;
        while at < len {
            if cancelled() {
                return Ok(None);
            }
            buf.truncate((len - at).min(256 << 10) as usize);
            table::read(file, &mut buf, at)?;
            self.update(&buf);
            at += buf.len() as u64;
        }
        Ok(Some(()))
    }
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::io::MemFile;

    const SHA1: &str = "da39a3ee5e6b4b0d3255bfef95601890afd80709";
    const SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn all_spellings_are_read() {
        for (line, name) in [
            (format!("SHA1(a.vmdk)= {SHA1}"), "a.vmdk"),
            (format!("SHA1 (a.vmdk) = {SHA1}"), "a.vmdk"),
            (format!("SHA256 (a (1) = b.ovf) = {SHA256}"), "a (1) = b.ovf"),
            (format!("SHA2-256(a)= {}", SHA256.to_uppercase()), "a"),
            (format!("sha-256(./a)={SHA256}"), "a"),
            (format!("SHA512(a)={SHA256}{SHA256}"), "a"),
        ] {
            let manifest = Manifest::parse(format!("\u{feff}{line}\r\n\r\n").as_bytes());
            assert_eq!((manifest.entries.len(), manifest.ignored), (1, 0), "{line}");
            assert_eq!(manifest.of(name.as_bytes()).count(), 1, "{line}");
        }
        for line in [
            "SHA1(a)= 00".into(),
            format!("SHA1(a)= {SHA1}0"),
            format!("MD5(a)= {SHA1}"),
            format!("SHA256(a)= {SHA1}"),
            format!("SHA1()= {SHA1}"),
            "x".into(),
            format!("SHA1(a) {SHA1}"),
        ] {
            let manifest = Manifest::parse(line.as_bytes());
            assert_eq!((manifest.entries.len(), manifest.ignored), (0, 1), "{line}");
        }
    }

    #[test]
    fn digests_are_those_of_the_standards() {
        let digest = |algorithm| {
            let mut hasher = Hasher::new(algorithm);
            hasher.update_file(&MemFile::from(b"abc".to_vec()), &|| false).unwrap().unwrap();
            Hex(&hasher.finish()).to_string()
        };
        assert_eq!(digest(Algorithm::Sha1), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(digest(Algorithm::Sha256), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(digest(Algorithm::Sha512).starts_with("ddaf35a193617abacc417349ae204131"));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let manifest = Manifest::parse(&text);
            prop_assert!(manifest.entries.len() + manifest.ignored <= text.len() + 1);
        }

        #[test]
        fn what_is_written_is_read(name in "[a-zA-Z0-9 ()=.,-]{0,20}[a-z]", digest in prop::collection::vec(any::<u8>(), 32)) {
            let manifest = Manifest::parse(format!("SHA256({name})= {}\n", Hex(&digest)).as_bytes());
            prop_assert_eq!(&manifest.entries, &[Entry { name: Name::from(&*name), algorithm: Algorithm::Sha256, digest }]);
        }
    }
}
