//! LUKS, the encrypted volumes of Linux and QEMU. Reads version 1; writes version 1.
//!
//! # Layout of version 1
//!
//! All integers are big-endian; offsets are in sectors of 512 bytes.
//!
//! | offset | content |
//! |---|---|
//! | 0 | header: cipher, mode, hash, digest of the key |
//! | 208 in the header | eight key slots: salt, iterations, offset of their stripes |
//! | in each slot | the key, encrypted with the passphrase and spread over 4000 stripes |
//! | payload offset | the guest data, encrypted sector by sector |
//!
//! # Support
//!
//! | feature | read | written |
//! |---|---|---|
//! | version 1 | yes | yes |
//! | aes, serpent, twofish with 128, 192 and 256 bits | yes | yes |
//! | xts, cbc; plain, plain64, essiv | yes | yes |
//! | sha1, sha224, sha256, sha384, sha512, ripemd160 | yes | yes |
//! | key slots | all are tried | the first one |
//! | writing into an existing volume | | yes |
//! | other ciphers, modes and hashes | refused by name | no |
//!
//! Images are written in the layout of QEMU, with the same defaults: aes-256, xts, plain64, sha256, and two seconds for a try of a secret.
//!
//! There are no holes: a hole of the file, and zeros in it, decrypt to something else. All guest data is written, zeros too; the content of a
//! new volume without guest data is undefined.
//!
//! The key, the salts and the UUID are random: no two volumes are the same.
//!
//! # References
//!
//! "LUKS1 On-Disk Format Specification", version 1.2.3.

mod options;
mod reader;
mod v2;
mod writer;

#[cfg(test)]
mod tests;

use crate::driver::FormatDriver;
use crate::format::shared::signature;
use crate::format::shared::table::Fields;

pub(crate) static DRIVER: FormatDriver =
    FormatDriver::new(FORMAT_NAME, signature::is_luks, |source, cx| Ok(Box::new(reader::Reader::open(source, cx)?)))
        .extensions(&["luks"])
        .description("encrypted volume of Linux and QEMU")
        .create(|cx| Ok(Box::new(writer::Writer::create(cx)?)), options::OPTIONS)
        .open_target(|file, cx| Ok(Box::new(writer::Writer::open(file, cx)?)));

const FORMAT_NAME: &str = "luks";

/// The fields of this format, for messages.
const FIELDS: Fields = Fields(FORMAT_NAME);
