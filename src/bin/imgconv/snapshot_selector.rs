//! `-l`: the internal snapshot of an input image.

use std::path::Path;

use diskimage::{Name, OpenOptions, Snapshot};

use crate::failure::Failure;
use crate::location::Location;

/// The options for the snapshot of the image that `selector` names: an ID or a name, or `snapshot.id=ID,snapshot.name=NAME`.
pub fn select(options: OpenOptions, image: &Location, name: &Path, selector: &str) -> Result<OpenOptions, Failure> {
    let Some(wanted) = SnapshotSelector::parse(selector)? else { return Ok(options.snapshot(selector)) };
    let inspection = image.inspect(&options)?;
    match wanted.find(&inspection.info.snapshots) {
        Some(snapshot) => Ok(options.snapshot(snapshot.id.to_text().into_owned())),
        None => Err(Failure::usage(format!("{}: no snapshot matches {selector}", name.display()))),
    }
}

/// Selects a snapshot by ID, by name or by both.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SnapshotSelector<'a> {
    id: Option<&'a str>,
    name: Option<&'a str>,
}

impl<'a> SnapshotSelector<'a> {
    /// Parses `snapshot.id=ID`, `snapshot.name=NAME`, or both with a comma. Returns `None` for text without this prefix.
    pub fn parse(text: &'a str) -> Result<Option<Self>, Failure> {
        if !text.starts_with("snapshot.") {
            return Ok(None);
        }
        let mut wanted = SnapshotSelector::default();
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("snapshot.id", id)) => wanted.id = Some(id),
                Some(("snapshot.name", name)) => wanted.name = Some(name),
                _ => {
                    let problem =
                        format!("-l: invalid selector {part:?}: expected snapshot.id=ID or snapshot.name=NAME");
                    return Err(Failure::usage(problem));
                }
            }
        }
        Ok(Some(wanted))
    }

    /// The snapshot that is meant.
    pub fn find<'s>(&self, snapshots: &'s [Snapshot]) -> Option<&'s Snapshot> {
        let is = |name: &Name, wanted: Option<&str>| wanted.is_none_or(|wanted| name.as_bytes() == wanted.as_bytes());
        snapshots.iter().find(|snapshot| is(&snapshot.id, self.id) && is(&snapshot.name, self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshot_selectors() {
        let parse = |text| SnapshotSelector::parse(text).unwrap();
        assert_eq!(parse("before"), None);
        assert_eq!(parse("a=b,c"), None);
        assert_eq!(parse("snapshot.id=1"), Some(SnapshotSelector { id: Some("1"), name: None }));
        assert_eq!(parse("snapshot.name=a=b"), Some(SnapshotSelector { id: None, name: Some("a=b") }));
        assert_eq!(parse("snapshot.id=1,snapshot.name=x"), Some(SnapshotSelector { id: Some("1"), name: Some("x") }));
        assert!(SnapshotSelector::parse("snapshot.foo=1").is_err());
        assert!(SnapshotSelector::parse("snapshot.id").is_err());
    }
}
