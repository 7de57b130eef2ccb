//! The lines of a descriptor, grouped by key.

use super::text::Text;
use super::{ACCESS, FORMAT_NAME};
use crate::error::{Error, Result};
use crate::limits::{LimitName, Limits};

/// Largest number of entries of the disk data base. Known writers use about twenty.
const MAX_DATABASE: u64 = 4096;

/// The values in a descriptor, not yet parsed.
#[derive(Debug, Default)]
pub(super) struct Lines<'a> {
    pub version: Option<Text<'a>>,
    pub encoding: Option<Text<'a>>,
    pub cid: Option<Text<'a>>,
    pub parent_cid: Option<Text<'a>>,
    pub create_type: Option<Text<'a>>,
    pub parent_hint: Option<Text<'a>>,
    /// Present in encrypted disks.
    pub key_id: Option<Text<'a>>,
    pub extents: Vec<Text<'a>>,
    /// Keys, without `ddb.`, and values.
    pub database: Vec<(Text<'a>, Text<'a>)>,
}

impl<'a> Lines<'a> {
    /// Splits `text` into lines and groups them.
    pub fn parse(text: Text<'a>, limits: &Limits) -> Result<Self> {
        let mut lines = Lines::default();
        for line in text.lines() {
            if line.word().0.lookup(ACCESS).is_some() {
                push(&mut lines.extents, line, Some(LimitName::Extents), limits.extents, "number of extents", line.at)?;
                continue;
            }
            let rule = "must be a comment, key=value, or an extent that begins with RW, RDONLY or NOACCESS";
            let (key, value) = line.key_value().ok_or_else(|| line.fault("line", rule))?;
            if let Some(key) = key.strip_prefix("ddb.") {
                push(&mut lines.database, (key, value), None, MAX_DATABASE, "number of ddb entries", line.at)?;
            } else if let Some(field) = lines.field(key) {
                field.get_or_insert(value);
            }
        }
        Ok(lines)
    }

    /// Returns the first value of `ddb.key`.
    pub fn database_value(&self, key: &str) -> Option<Text<'a>> {
        self.database.iter().find(|(name, _)| name.is(key)).map(|(_, value)| *value)
    }

    /// Returns the field for the value of `key`, if the key is known.
    fn field(&mut self, key: Text<'_>) -> Option<&mut Option<Text<'a>>> {
        let fields = [
            ("version", &mut self.version),
            ("encoding", &mut self.encoding),
            ("CID", &mut self.cid),
            ("parentCID", &mut self.parent_cid),
            ("createType", &mut self.create_type),
            ("parentFileNameHint", &mut self.parent_hint),
            ("keyID", &mut self.key_id),
        ];
        fields.into_iter().find(|(name, _)| key.is(name)).map(|(_, field)| field)
    }
}

/// Appends to a list of at most `limit` elements.
fn push<T>(
    list: &mut Vec<T>,
    element: T,
    name: Option<LimitName>,
    limit: u64,
    what: &'static str,
    at: u64,
) -> Result<()> {
    if list.len() as u64 >= limit {
        let value = limit.saturating_add(1);
        return Err(Error::Limit { name, format: FORMAT_NAME, field: what.into(), at: Some(at), value, limit });
    }
    list.push(element);
    Ok(())
}
