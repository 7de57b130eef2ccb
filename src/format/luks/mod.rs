//! LUKS, the encrypted volumes of Linux and QEMU. Reads and writes version 1 and version 2.
//!
//! # Layout
//!
//! All integers are big-endian. In version 1, offsets are in sectors of 512 bytes.
//!
//! | offset | content | module |
//! |---|---|---|
//! | 0 | version 1: header with eight key slots | `format::shared::luks`, which qcow2 has too |
//! | 0 | version 2: binary header with a checksum, then JSON; a second copy follows | `v2` |
//! | in each key slot | the key, encrypted with the passphrase and spread over 4000 stripes | `crypto` |
//! | payload offset | the guest data, encrypted sector by sector | `crypto` |
//!
//! # Support
//!
//! | feature | read | written |
//! |---|---|---|
//! | version 1 | yes | yes |
//! | version 2: one encrypted segment, both headers | yes | yes, `version=2` |
//! | aes, serpent, twofish with 128, 192 and 256 bits | yes | yes |
//! | xts, cbc; plain, plain64, essiv | yes | yes |
//! | sha1, sha224, sha256, sha384, sha512, ripemd160 | yes | yes |
//! | pbkdf2; argon2i, argon2id of version 2 | yes | pbkdf2 in version 1, argon2id in version 2 |
//! | sectors of 512 to 4096 bytes in version 2 | yes | yes |
//! | key slots | all are tried | the first one; those of version 1 are added and erased |
//! | writing into an existing volume, and resizing it | | yes |
//! | detached headers, with [`OpenOptions::detached_header`](crate::OpenOptions::detached_header) | yes | no |
//! | integrity protection, re-encryption, hardware encryption, other ciphers and hashes | refused by name | no |
//!
//! Volumes of version 1 are written in the layout of QEMU, those of version 2 in that of cryptsetup, with the same defaults: aes-256, xts,
//! plain64, sha256, and two seconds for a try of a secret. Version 2 takes 128 MiB for it, of which cryptsetup would take up to 1 GiB.
//! `qemu-img` 10.0 aborts on keys of 192 bits in CBC.
//!
//! There are no holes: a hole of the file, and zeros in it, decrypt to something else. All guest data is written, zeros too; the content of a
//! new volume without guest data is undefined.
//!
//! The key, the salts and the UUID are random: no two volumes are the same.
//!
//! # References
//!
//! "LUKS1 On-Disk Format Specification", version 1.2.3; "LUKS2 On-Disk Format Specification", version 1.1.4.

mod options;
mod reader;
mod update;
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
        .measure(writer::measure)
        .detached_headers()
        .open_target(|file, cx| Ok(Box::new(writer::Writer::open(file, cx)?)))
        .update(|file, cx| Ok(Box::new(update::Update::open(file, cx)?)));

const FORMAT_NAME: &str = "luks";

/// The fields of this format, for messages.
const FIELDS: Fields = Fields(FORMAT_NAME);
