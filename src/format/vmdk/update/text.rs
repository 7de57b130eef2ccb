//! Changes of the text of a descriptor. What is not changed stays as it is, byte for byte.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::format::vmdk::descriptor::{Geometry, quotable_name};
use crate::format::vmdk::{FORMAT_NAME, SECTOR};
use crate::name::Name;

/// Comments by which programs find the parts of a descriptor.
const TITLES: [&[u8]; 3] = [b"# Disk DescriptorFile", b"# Extent description", b"# The Disk Data Base"];
/// `parentCID` of a disk without a parent.
const NO_PARENT: &str = "ffffffff";

/// The text of a descriptor, without padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DescriptorText(Vec<u8>);

impl DescriptorText {
    /// The text up to the padding.
    pub fn new(mut bytes: Vec<u8>) -> DescriptorText {
        bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
        DescriptorText(bytes)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Sets the size of the extent in the last line of extents; returns the number of these lines.
    pub fn set_last_extent(&mut self, sectors: u64) -> usize {
        let sizes: Vec<_> = self.lines().filter_map(|line| self.extent_size(line)).collect();
        if let Some(size) = sizes.last() {
            self.replace(size.clone(), sectors.to_string().as_bytes());
        }
        sizes.len()
    }

    /// Sets the number of cylinders, if it is what VMware and qemu write for a disk of `old` sectors.
    pub fn set_geometry(&mut self, old: u64, new: u64) {
        let adapter = self.value("ddb.adapterType").map(|range| self.unquoted(range)).unwrap_or_default();
        let [old, new] = [old, new].map(|sectors| Geometry::new(sectors, &adapter));
        let number = |name: &str| {
            let range = self.value(&format!("ddb.geometry.{name}"))?;
            self.unquoted(range).parse::<u64>().ok()
        };
        let is_usual = [("cylinders", old.cylinders), ("heads", old.heads), ("sectors", old.sectors)]
            .into_iter()
            .all(|(name, value)| number(name) == Some(value));
        if let (true, Some(range)) = (is_usual, self.value("ddb.geometry.cylinders")) {
            self.replace(range, format!("\"{}\"", new.cylinders).as_bytes());
        }
    }

    /// Sets the name of the parent, and its content ID if one is given.
    pub fn set_parent(&mut self, name: &Name, content_id: Option<&str>) -> Result<()> {
        let text = quotable_name(name)?;
        let encoding = self.value("encoding").map(|range| self.unquoted(range));
        if !text.is_ascii() && encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case("UTF-8")) {
            return Err(Error::unsupported(
                FORMAT_NAME,
                "a name with such characters in the encoding of the descriptor",
            ));
        }
        if let Some(id) = content_id {
            self.set("parentCID", id, "CID")?;
        }
        self.set("parentFileNameHint", &format!("\"{text}\""), "createType")
    }

    /// Removes the parent, by whatever it is found.
    pub fn remove_parent(&mut self) -> Result<()> {
        self.set("parentCID", NO_PARENT, "CID")?;
        let uuid = self.value("ddb.uuid.parent");
        for at in uuid.into_iter().flatten() {
            if let Some(byte) = self.0.get_mut(at).filter(|byte| byte.is_ascii_hexdigit()) {
                *byte = b'0';
            }
        }
        let hint = self
            .lines()
            .find(|line| self.key_value(line.clone()).is_some_and(|(key, _)| self.is(key, "parentFileNameHint")));
        if let Some(line) = hint {
            self.replace(line.start..(line.end + 1).min(self.0.len()), b"");
        }
        Ok(())
    }

    /// Sets the value of a key, which gets a line after that of `before` if it has none.
    fn set(&mut self, key: &str, value: &str, before: &str) -> Result<()> {
        if let Some(range) = self.value(key) {
            self.replace(range, value.as_bytes());
            return Ok(());
        }
        let Some(range) = self.value(before) else {
            return Err(Error::unsupported(FORMAT_NAME, format!("a descriptor without the key {before}")));
        };
        let end = self.lines().find(|line| line.end >= range.end).map_or(range.end, |line| line.end);
        self.replace(end..end, format!("\n{key}={value}").as_bytes());
        Ok(())
    }

    /// The range of the value of a key, with its quotes.
    fn value(&self, key: &str) -> Option<Range<usize>> {
        self.lines()
            .filter_map(|line| self.key_value(line))
            .find(|(found, _)| self.is(found.clone(), key))
            .map(|(_, value)| value)
    }

    fn unquoted(&self, range: Range<usize>) -> String {
        String::from_utf8_lossy(self.get(range)).trim_matches('"').to_owned()
    }

    /// The ranges of lines, without their ends.
    fn lines(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut start = 0;
        self.0.split(|byte| *byte == b'\n').map(move |line| {
            let range = start..start + line.len();
            start = range.end + 1;
            range
        })
    }

    fn key_value(&self, line: Range<usize>) -> Option<(Range<usize>, Range<usize>)> {
        let equals = self.get(line.clone()).iter().position(|byte| *byte == b'=')? + line.start;
        let key = self.trimmed(line.start..equals);
        (!self.get(key.clone()).starts_with(b"#")).then(|| (key, self.trimmed(equals + 1..line.end)))
    }

    /// The range of the size in an extent line.
    fn extent_size(&self, line: Range<usize>) -> Option<Range<usize>> {
        let line = self.trimmed(line);
        let text = self.get(line.clone());
        let access = text.iter().position(u8::is_ascii_whitespace)?;
        let is_access = [&b"RW"[..], b"RDONLY", b"NOACCESS"];
        let is_access =
            is_access.iter().any(|word| text.get(..access).is_some_and(|text| text.eq_ignore_ascii_case(word)));
        let start = self.trimmed(line.start + access..line.end).start;
        let len = self.get(start..line.end).iter().take_while(|byte| byte.is_ascii_digit()).count();
        (is_access && len > 0).then_some(start..start + len)
    }

    fn is(&self, range: Range<usize>, key: &str) -> bool {
        self.get(range).eq_ignore_ascii_case(key.as_bytes())
    }

    fn get(&self, range: Range<usize>) -> &[u8] {
        self.0.get(range).unwrap_or_default()
    }

    fn trimmed(&self, range: Range<usize>) -> Range<usize> {
        let text = self.get(range.clone());
        let start = range.start + (text.len() - text.trim_ascii_start().len());
        start..start + text.trim_ascii().len()
    }

    fn replace(&mut self, range: Range<usize>, bytes: &[u8]) {
        if range.end <= self.0.len() {
            self.0.splice(range, bytes.iter().copied());
        }
    }
}

/// The one write that makes the file `old` hold the text `new`: within a sector, so that a power cut leaves the old or the new text. Where other
/// sectors would move, blank lines and comments in it make up for the difference. `None` if that is not enough.
pub(super) fn write_in_one_sector(old: &[u8], new: &DescriptorText) -> Option<(u64, Vec<u8>)> {
    let sector = SECTOR as usize;
    let text = DescriptorText::new(old.to_vec());
    let differ = |(old, new): (&u8, &u8)| old != new;
    let first = text.0.iter().zip(&new.0).position(differ).unwrap_or(text.0.len().min(new.0.len()));
    let start = first - first % sector;
    let (old_end, new_len) = ((start + sector).min(old.len()), new.0.len());
    if text.0.len() <= start + sector && new_len <= start + sector {
        let mut bytes = new.0.get(start..)?.to_vec();
        // What is left of a longer text.
        bytes.resize(bytes.len().max(old_end.saturating_sub(start)), 0);
        return Some((start as u64, bytes));
    }
    let grown = new_len as i64 - text.0.len() as i64;
    let window_end = usize::try_from((start + sector) as i64 + grown).ok()?;
    if new.0.get(window_end..)? != text.0.get(start + sector..)? {
        return None;
    }
    let window = DescriptorText(new.0.get(start..window_end)?.to_vec());
    let bytes = match usize::try_from(grown) {
        Ok(more) => window.without(more)?,
        Err(_) => {
            // A blank line more, or several.
            let at = window.lines().find(|line| line.start > first - start).map(|line| line.start)?;
            let mut bytes = window.0;
            bytes.splice(at..at, std::iter::repeat_n(b'\n', grown.unsigned_abs() as usize));
            bytes
        }
    };
    (bytes.len() == sector).then_some((start as u64, bytes))
}

impl DescriptorText {
    /// The text with `count` bytes less, of blank lines and of comments, of which only whole lines are known here.
    fn without(&self, count: usize) -> Option<Vec<u8>> {
        let mut removable = Vec::new();
        let lines: Vec<_> = self.lines().collect();
        for line in lines.iter().skip(1).take(lines.len().saturating_sub(2)) {
            let text = self.get(line.clone());
            let is_title =
                TITLES.iter().any(|title| text.get(..title.len()).is_some_and(|text| text.eq_ignore_ascii_case(title)));
            if text.is_empty() {
                removable.push(line.end);
            } else if text.starts_with(b"#") && !is_title {
                removable.extend(line.start + 1..line.end);
            }
        }
        let removed = removable.get(..count)?;
        let kept = self.0.iter().enumerate().filter(|(at, _)| !removed.contains(at));
        Some(kept.map(|(_, byte)| *byte).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\n\
        # Extent description\nRW 2048 FLAT \"a-flat.vmdk\" 0\n\n# The Disk Data Base\n#DDB\n\nddb.adapterType = \"ide\"\n\
        ddb.geometry.cylinders = \"2\"\nddb.geometry.heads = \"16\"\nddb.geometry.sectors = \"63\"\n";

    fn text() -> DescriptorText {
        DescriptorText::new(TEXT.as_bytes().to_vec())
    }

    #[test]
    fn values_are_replaced() {
        let mut changed = text();
        assert_eq!(changed.set_last_extent(4_194_304), 1);
        changed.set_geometry(2048, 4_194_304);
        changed.set_parent(&Name::from("b \u{e4}.vmdk"), Some("0badcafe")).unwrap();
        let expected = TEXT
            .replace("RW 2048", "RW 4194304")
            .replace("\"2\"", "\"4161\"")
            .replace("parentCID=ffffffff", "parentCID=0badcafe")
            .replace("\"monolithicFlat\"\n", "\"monolithicFlat\"\nparentFileNameHint=\"b \u{e4}.vmdk\"\n");
        assert_eq!(String::from_utf8(changed.0.clone()).unwrap(), expected);
        changed.remove_parent().unwrap();
        assert_eq!(changed.value("parentFileNameHint"), None);
        assert_eq!(changed.value("parentCID").map(|range| changed.unquoted(range)), Some(NO_PARENT.into()));
        for name in ["", "a\"b", "a\nb"] {
            assert!(text().set_parent(&Name::from(name), None).is_err(), "{name}");
        }
        // Another geometry is somebody's choice.
        let mut other = text();
        other.set_geometry(4096, 1 << 30);
        assert_eq!(other, text());
    }

    /// The change at each position relative to the sectors.
    #[test]
    fn a_file_of_several_sectors_changes_in_one() {
        let mut found = [false; 2];
        for fill in 0..600 {
            let long = format!("{TEXT}ddb.comment = \"{}\"\n", "c".repeat(400));
            let long = long.replacen("version=1\n", &format!("version=1\nlonger=\"{}\"\n", "x".repeat(fill)), 1);
            let old = DescriptorText::new(long.into_bytes());
            let mut new = old.clone();
            new.set_last_extent(4_194_304);
            let write = write_in_one_sector(&old.0, &new);
            found[usize::from(write.is_some())] = true;
            let Some((at, bytes)) = write else { continue };
            assert!(at.is_multiple_of(SECTOR) && bytes.len() <= SECTOR as usize);
            let mut file = old.0.clone();
            file.splice(at as usize..at as usize + bytes.len(), bytes);
            let file = DescriptorText::new(file);
            let lines = |text: &DescriptorText| -> Vec<String> {
                let text = String::from_utf8(text.0.clone()).unwrap();
                text.lines().filter(|line| !line.is_empty() && !line.starts_with("#")).map(str::to_owned).collect()
            };
            assert_eq!(lines(&file), lines(&new), "{fill}");
            for title in TITLES {
                assert!(file.0.windows(title.len()).any(|part| part == title), "{fill}");
            }
        }
        assert_eq!(found, [true, true]);
    }

    #[test]
    fn a_short_file_is_written_whole() {
        let mut padded = TEXT.as_bytes().to_vec();
        padded.resize(512, 0);
        for old in [TEXT.as_bytes().to_vec(), padded] {
            let mut new = text();
            new.set_last_extent(1 << 30);
            let (at, bytes) = write_in_one_sector(&old, &new).unwrap();
            assert_eq!((at, bytes.len()), (0, old.len().max(new.0.len())));
            assert_eq!(DescriptorText::new(bytes), new);
            let (_, back) = write_in_one_sector(new.bytes(), &text()).unwrap();
            assert_eq!(DescriptorText::new(back), text());
        }
    }
}
