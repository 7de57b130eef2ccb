//! Signatures of disk image formats that this crate does not support.
//!
//! A file with such a signature is not probed as raw: it may be an image of that format, or a raw disk on which a guest has
//! written the signature to make its host open other files. The caller has to state the format.

use super::Probe;

/// An unsupported format that is detected.
struct Signature {
    name: &'static str,
    matches: fn(&Probe<'_>) -> bool,
}

static SIGNATURES: &[Signature] = &[
    Signature { name: "qcow", matches: |p| p.head.starts_with(b"QFI\xfb\0\0\0\x01") },
    Signature { name: "qed", matches: |p| p.head.starts_with(b"QED\0") },
    Signature {
        name: "parallels",
        matches: |p| p.head.starts_with(b"WithoutFreeSpace") || p.head.starts_with(b"WithouFreSpacExt"),
    },
];

/// Names of the unsupported formats whose signature the file has.
pub(super) fn foreign<'a>(probe: &Probe<'a>) -> impl Iterator<Item = &'static str> + use<'a> {
    let probe = *probe;
    SIGNATURES.iter().filter(move |signature| (signature.matches)(&probe)).map(|signature| signature.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(head: &[u8], tail: &[u8]) -> Vec<&'static str> {
        foreign(&Probe { head, tail, len: 1 << 20 }).collect()
    }

    #[test]
    fn known_signatures() {
        assert_eq!(names(b"QED\0", b""), ["qed"]);
        assert_eq!(names(b"vhdxfile", b""), [""; 0]);
        assert_eq!(names(b"KDMV", b""), [""; 0]);
        assert_eq!(names(b"\0", b"conectix"), [""; 0]);
        assert_eq!(names(b"QFI\xfb\0\0\0\x02", b""), [""; 0]);
        assert_eq!(names(&[0; 512], &[0; 512]), [""; 0]);
    }
}
