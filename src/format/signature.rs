//! Signatures of disk image formats that this crate does not read.
//!
//! A file that carries one is no raw disk in the eyes of its owner, and a raw disk that carries one may be a guest's attempt
//! to have its host open other files. Either way the caller has to say what is meant.

use super::Probe;

/// A format that is recognised, and no more.
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

/// The names of the formats, beyond those of this crate, whose signature the file carries.
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
