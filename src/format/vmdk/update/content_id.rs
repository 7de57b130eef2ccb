//! The content ID, which changes with the first write after an image was opened, so that its children notice (Virtual Disk Format 5.0, "The
//! Header").

use std::ops::Range;

use crate::error::{Error, Result};
use crate::format::shared::new_identifier;
use crate::format::vmdk::FORMAT_NAME;
use crate::format::vmdk::reader::content_id;
use crate::info::ImageInfo;
use crate::io::WriteAt;
use crate::name::Name;

/// The host range of the digits of the content ID in a descriptor at host offset `at`.
pub(super) fn find(text: &[u8], at: u64) -> Option<Range<u64>> {
    let mut start = 0;
    for line in text.split(|byte| *byte == b'\n') {
        let trimmed = line.trim_ascii();
        let value = trimmed.split_at_checked(3).filter(|(key, _)| key.eq_ignore_ascii_case(b"CID"));
        let digits =
            value.and_then(|(_, rest)| rest.trim_ascii_start().strip_prefix(b"=")).map(<[u8]>::trim_ascii_start);
        if let Some(digits) = digits.filter(|digits| digits.len() == 8 && digits.iter().all(u8::is_ascii_hexdigit)) {
            let end = at + start + line.trim_ascii_end().len() as u64;
            return Some(end - digits.len() as u64..end);
        }
        start += line.len() as u64 + 1;
    }
    None
}

/// Writes another content ID.
pub(super) fn change(file: &dyn WriteAt, at: &Range<u64>, info: &mut ImageInfo) -> Result<()> {
    let old = info.identities.first().map_or(&[][..], Name::as_bytes);
    let id = new_identifier(FORMAT_NAME, old).first_chunk().map_or(0, |id| u32::from_be_bytes(*id));
    // All ones stand for no parent.
    let id = id & !1;
    let digits = format!("{id:08x}");
    file.write_all_at(digits.as_bytes(), at.start).map_err(Error::io("writing the content ID", at.start))?;
    for (key, value) in &mut info.specific {
        if *key == "cid" {
            *value = u64::from(id).into();
        }
    }
    if let Some(identity) = info.identities.first_mut() {
        *identity = content_id(id);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digits_are_found() {
        let text = b"# Disk DescriptorFile\nversion=1\r\n  CID = fffffffe \r\nparentCID=ffffffff\n";
        let found = find(text, 512).unwrap();
        assert_eq!(&text[found.start as usize - 512..found.end as usize - 512], b"fffffffe");
        assert_eq!(find(b"parentCID=ffffffff\nCID=12\n", 0), None);
    }
}
