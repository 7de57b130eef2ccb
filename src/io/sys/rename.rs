//! Renaming without replacing, on systems whose `rename` always replaces.

use std::fs;
use std::io;
use std::path::Path;

type Rename = fn(&Path, &Path) -> io::Result<()>;

/// The atomic ways first. Not every file system has them; the last one works everywhere.
const WAYS: [Rename; 3] = [rename_exclusive, link_and_unlink, check_and_rename];

/// Gives the file at `from` the name `to`, or fails with [`io::ErrorKind::AlreadyExists`] if something has it.
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    first_supported(&WAYS, from, to)
}

fn first_supported(ways: &[Rename], from: &Path, to: &Path) -> io::Result<()> {
    let mut result = Err(io::ErrorKind::Unsupported.into());
    for way in ways {
        result = way(from, to);
        match &result {
            // File systems do not agree on the error for a call that they lack.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {}
            _ => break,
        }
    }
    result
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn rename_exclusive(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn rename_exclusive(_from: &Path, _to: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

fn link_and_unlink(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to)?;
    fs::remove_file(from).inspect_err(|_| {
        let _ = fs::remove_file(to);
    })
}

/// Not atomic: what another process creates between the two calls is replaced.
fn check_and_rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::symlink_metadata(to) {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(from, to),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn no_way_replaces_a_file() {
        fn missing(_from: &Path, _to: &Path) -> io::Result<()> {
            Err(io::Error::from(io::ErrorKind::InvalidInput))
        }
        for ways in [&WAYS[..], &WAYS[1..], &WAYS[2..], &[missing, missing, check_and_rename]] {
            let dir = TempDir::new();
            let (from, to) = (dir.file("from", b"new"), dir.file("to", b"old"));
            let error = first_supported(ways, &from, &to).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{error}");
            assert_eq!((fs::read(&from).unwrap(), fs::read(&to).unwrap()), (b"new".to_vec(), b"old".to_vec()));
            fs::remove_file(&to).unwrap();
            first_supported(ways, &from, &to).unwrap();
            assert_eq!((dir.names(), fs::read(&to).unwrap()), (vec!["to".to_owned()], b"new".to_vec()));
            assert!(first_supported(ways, &from, &dir.join("other")).is_err());
        }
    }
}
