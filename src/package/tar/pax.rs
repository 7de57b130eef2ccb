//! Extended headers of PAX.

use super::FIELDS;
use crate::error::{Error, Problem, Result};

/// The records for the next member that matter here.
#[derive(Default)]
pub(super) struct Pax {
    path: Option<Vec<u8>>,
    size: Option<Vec<u8>>,
    /// `GNU.sparse.*`, without this prefix, in order.
    sparse: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether there was a header at all.
    present: bool,
}

impl Pax {
    pub fn is_empty(&self) -> bool {
        !self.present
    }

    /// Adds the records of an extended header at offset `at` of the archive.
    pub fn extend(&mut self, text: &[u8], at: u64) -> Result<()> {
        self.present = true;
        for record in records(text, at) {
            let (key, value) = record?;
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"size" => self.size = Some(value.to_vec()),
                key => {
                    if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                        self.sparse.push((key.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }

    /// Checks a header for all following members. What it could say of their data or names would be the same for all of them.
    pub fn check_global(text: &[u8], at: u64) -> Result<()> {
        for record in records(text, at) {
            let (key, value) = record?;
            if key == b"path" || key == b"size" || key.starts_with(b"GNU.sparse.") {
                let rule = "must not have names or sizes";
                return Err(FIELDS.at("global header", at).fault(Problem::Rule { value: value.len() as u64, rule }));
            }
        }
        Ok(())
    }

    /// The name of the member.
    pub fn name(&self) -> Option<&[u8]> {
        self.sparse("name").or(self.path.as_deref())
    }

    /// The number of bytes stored.
    pub fn size(&self, at: u64) -> Result<Option<u64>> {
        self.size.as_deref().map(|text| decimal(text).ok_or_else(|| invalid("size", at))).transpose()
    }

    pub fn is_sparse(&self) -> bool {
        ["major", "map", "size", "realsize", "numblocks"].iter().any(|key| self.sparse(key).is_some())
    }

    /// The last record `GNU.sparse.` + `key`.
    pub fn sparse(&self, key: &str) -> Option<&[u8]> {
        self.sparse.iter().rev().find(|(own, _)| own == key.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// The number in the record `GNU.sparse.` + `key`.
    pub fn sparse_number(&self, key: &str, at: u64) -> Result<Option<u64>> {
        self.sparse(key).map(|text| decimal(text).ok_or_else(|| invalid("number of the sparse map", at))).transpose()
    }

    /// The numbers of all records `offset` and `numbytes`, in order.
    pub fn sparse_list(&self, at: u64) -> Result<Vec<u64>> {
        let own = self.sparse.iter().filter(|(key, _)| key == b"offset" || key == b"numbytes");
        let mut numbers = Vec::new();
        for (index, (key, value)) in own.enumerate() {
            let expected: &[u8] = if index.is_multiple_of(2) { b"offset" } else { b"numbytes" };
            let number = decimal(value).filter(|_| key == expected);
            numbers.push(number.ok_or_else(|| invalid("number of the sparse map", at))?);
        }
        Ok(numbers)
    }
}

/// A decimal number below 2^63.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let value = text.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    });
    value.filter(|value| *value <= i64::MAX as u64)
}

pub(super) fn invalid(name: &'static str, at: u64) -> Error {
    FIELDS.at(name, at).fault(Problem::Rule { value: 0, rule: "must be a decimal number below 2^63" })
}

/// The records "LENGTH KEY=VALUE\n", where LENGTH is that of the whole record.
fn records(text: &[u8], at: u64) -> impl Iterator<Item = Result<(&[u8], &[u8])>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        // Some writers pad with NUL.
        if rest.iter().all(|byte| *byte == 0) {
            return None;
        }
        let Some((record, after)) = split_record(rest) else {
            rest = &[];
            let rule = "must consist of records of the form 'LENGTH KEY=VALUE'";
            return Some(Err(FIELDS.at("extended header", at).fault(Problem::Rule { value: text.len() as u64, rule })));
        };
        rest = after;
        Some(Ok(record))
    })
}

type Record<'a> = (&'a [u8], &'a [u8]);

fn split_record(text: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let blank = text.iter().take(20).position(|byte| *byte == b' ')?;
    let len = usize::try_from(decimal(text.get(..blank)?)?).ok()?;
    let (record, after) = text.split_at_checked(len)?;
    let record = record.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some(((record.get(..equals)?, record.get(equals + 1..)?), after))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records_are_refused_unless_their_lengths_are_right() {
        let all = |text: &[u8]| records(text, 0).map(|record| record.map(|_| ()).map_err(|_| ())).collect::<Vec<_>>();
        assert_eq!(all(b"9 size=1\n"), [Ok(())]);
        assert_eq!(all(b"9 size=1\n\0\0"), [Ok(())]);
        assert_eq!(all(b"9 size=1\n9 size=2\n"), [Ok(()), Ok(())]);
        for text in [
            &b"8 size=1\n"[..],
            b"11 size=1\n",
            b"9 size 1\n",
            b" 9size=1\n",
            b"x",
            b"99999999999999999999 a=b\n",
            b"2 \n",
        ] {
            assert_eq!(all(text), [Err(())], "{}", text.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_found(pairs in prop::collection::vec(("[a-z.]{1,20}", "[ -~]{0,120}"), 0..6)) {
            let text: Vec<u8> = pairs.iter().flat_map(|(key, value)| super::super::tests::record(key, value)).collect();
            let found: Vec<_> = records(&text, 0).map(|record| {
                let (key, value) = record.unwrap();
                (String::from_utf8(key.to_vec()).unwrap(), String::from_utf8(value.to_vec()).unwrap())
            }).collect();
            prop_assert_eq!(found, pairs);
        }
    }
}
