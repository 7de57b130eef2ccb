//! Options of a new volume: those of qemu-img.

use crate::options::OptionSpec;

pub(super) static OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "cipher-alg",
        values: "{aes|serpent|twofish}-{128|192|256}",
        help: "cipher with the bits of its key [default: aes-256]",
    },
    OptionSpec { name: "cipher-mode", values: "xts|cbc", help: "mode of the cipher [default: xts]" },
    OptionSpec {
        name: "ivgen-alg",
        values: "plain|plain64|essiv",
        help: "generator of initialization vectors [default: plain64]",
    },
    OptionSpec {
        name: "ivgen-hash-alg",
        values: "sha256",
        help: "hash of essiv, whose digest must be a key of the cipher [default: sha256]",
    },
    OptionSpec {
        name: "hash-alg",
        values: "sha1|sha224|sha256|sha384|sha512|ripemd160",
        help: "hash of the key slots [default: sha256]",
    },
    OptionSpec {
        name: "iter-time",
        values: "1..3600000",
        help: "milliseconds that a try of a secret takes on this machine [default: 2000]",
    },
];
