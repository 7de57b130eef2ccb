//! The options of a new volume, which are those of qemu-img.

use std::time::Duration;

use super::cipher_name;
use crate::crypto::{CipherSpec, Hash};
use crate::error::Result;
use crate::options::{Options, wrong};

/// The parsed options. They are consistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parameters {
    pub spec: CipherSpec,
    /// Length of the key in bytes.
    pub key_len: usize,
    /// The hash of the key slots.
    pub hash: Hash,
    /// How long a try of a secret takes.
    pub iter_time: Duration,
}

const DEFAULT_ITER_TIME: u64 = 2000;

impl Parameters {
    /// Parses the options of `format` whose names begin with `prefix`.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option), and [`Error::Unsupported`](crate::Error::Unsupported) for a combination that does not exist.
    pub fn parse(format: &'static str, prefix: &str, options: &Options) -> Result<Parameters> {
        let name = |option: &str| format!("{prefix}{option}");
        let text = |option: &str| options.value(&name(option));
        let cipher = text("cipher-alg").unwrap_or("aes-256");
        let invalid = |option: &str, value: &str, expected: &str| {
            wrong(format, &name(option), format!("invalid value {value:?}: expected {expected}"))
        };
        let (cipher_text, key_bits) = match cipher.split_once('-') {
            Some((name @ ("aes" | "serpent" | "twofish"), "128")) => (name, 128),
            Some((name @ ("aes" | "serpent" | "twofish"), "192")) => (name, 192),
            Some((name @ ("aes" | "serpent" | "twofish"), "256")) => (name, 256),
            _ => return Err(invalid("cipher-alg", cipher, "aes, serpent or twofish with -128, -192 or -256")),
        };
        let mode = match text("cipher-mode").unwrap_or("xts") {
            mode @ ("xts" | "cbc") => mode,
            other => return Err(invalid("cipher-mode", other, "xts or cbc")),
        };
        let generator = match (text("ivgen-alg").unwrap_or("plain64"), text("ivgen-hash-alg")) {
            (generator @ ("plain" | "plain64"), None) => generator.to_owned(),
            ("essiv", hash) => format!("essiv:{}", hash.unwrap_or("sha256")),
            ("plain" | "plain64", Some(_)) => {
                return Err(wrong(format, &name("ivgen-hash-alg"), "requires ivgen-alg=essiv"));
            }
            (other, _) => return Err(invalid("ivgen-alg", other, "plain, plain64 or essiv")),
        };
        let hash_text = text("hash-alg").unwrap_or("sha256");
        let hashes = Hash::ALL.map(Hash::name).join(", ");
        let hash = Hash::from_name(hash_text).ok_or_else(|| invalid("hash-alg", hash_text, &hashes))?;
        let iter_time = options.number(format, &name("iter-time"), 1..=3_600_000)?.unwrap_or(DEFAULT_ITER_TIME);
        let key_len = key_bits / 8 * if mode == "xts" { 2 } else { 1 };
        let spec = cipher_name(format, cipher_text, &format!("{mode}-{generator}"), key_len)?;
        Ok(Parameters { spec, key_len, hash, iter_time: Duration::from_millis(iter_time) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Result<Parameters> {
        let mut options = Options::new();
        options.add_list(list);
        Parameters::parse("luks", "", &options)
    }

    #[test]
    fn defaults_are_those_of_qemu() {
        let parameters = parse("").unwrap();
        assert_eq!((parameters.spec.cipher.name(), &*parameters.spec.mode_name()), ("aes", "xts-plain64"));
        assert_eq!((parameters.key_len, parameters.hash), (64, Hash::Sha256));
        assert_eq!(parameters.iter_time, Duration::from_secs(2));
        let other =
            parse("cipher-alg=twofish-192,cipher-mode=cbc,ivgen-alg=plain,hash-alg=ripemd160,iter-time=7").unwrap();
        assert_eq!((other.spec.cipher.name(), &*other.spec.mode_name()), ("twofish", "cbc-plain"));
        assert_eq!((other.key_len, other.hash, other.iter_time.as_millis()), (24, Hash::Ripemd160, 7));
        assert_eq!(parse("iter-time=3600000").unwrap().iter_time, Duration::from_secs(3600));
        assert_eq!(parse("ivgen-alg=essiv").unwrap().spec.mode_name(), "xts-essiv:sha256");
    }

    #[test]
    fn invalid_options() {
        for (list, kind, text) in [
            ("cipher-alg=aes", "option", "aes, serpent or twofish"),
            ("cipher-alg=cast5-128", "option", "cast5-128"),
            ("cipher-mode=ecb", "option", "xts or cbc"),
            ("ivgen-alg=plain64be", "option", "plain, plain64 or essiv"),
            ("ivgen-hash-alg=sha256", "option", "requires ivgen-alg=essiv"),
            ("hash-alg=md5", "option", "sha1, sha224, sha256"),
            ("iter-time=0", "option", "from 1"),
            ("iter-time=3600001", "option", "from 1"),
            ("ivgen-alg=essiv,ivgen-hash-alg=sha1", "unsupported", "cipher aes-xts-essiv:sha1"),
        ] {
            let error = parse(list).unwrap_err();
            assert_eq!(error.kind().as_str(), kind, "{list}");
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
