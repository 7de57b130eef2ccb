//! Where a new image is written: beside its target under a hidden name, until it is complete.

use std::collections::hash_map::RandomState;
use std::ffi::OsString;
use std::fs::{self, File, Metadata, Permissions};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::io::{FileIdentity, FileTarget, WriteAt};

/// A new file that is not in its place yet, or a device. Dropped before [`commit`](Output::commit), it leaves no trace.
pub(super) struct Output {
    target: PathBuf,
    file: Arc<FileTarget>,
    /// Nothing for a device.
    temporary: Option<Temporary>,
    sync: bool,
    clobber: bool,
}

impl Output {
    /// Prepares to write `target`, which must be none of the files `in_use`.
    pub fn create(target: &Path, in_use: &[FileIdentity], sync: bool, clobber: bool) -> Result<Output> {
        Self::prepare(target, in_use, sync, clobber).map_err(|e| e.in_file(target))
    }

    fn prepare(target: &Path, in_use: &[FileIdentity], sync: bool, clobber: bool) -> Result<Output> {
        if target.as_os_str().as_bytes().ends_with(b"/") {
            return Err(Error::Usage("the target is a directory by its name".into()));
        }
        let old = match fs::metadata(target) {
            Ok(metadata) => Some(metadata),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(Error::io("looking at the target", None)(e)),
        };
        let Some(metadata) = &old else {
            if fs::symlink_metadata(target).is_ok() {
                return Err(Error::Usage("the target is a link that leads nowhere".into()));
            }
            return Self::beside(target.to_owned(), old, sync, clobber);
        };
        if in_use.contains(&FileIdentity::of(metadata)) {
            return Err(Error::Usage("the target is a file that is read from".into()));
        }
        if metadata.file_type().is_block_device() {
            let device = FileTarget::open_device(target).map_err(Error::io("opening the device", None))?;
            let file = Arc::new(device.with_sync(sync));
            return Ok(Output { target: target.to_owned(), file, temporary: None, sync, clobber });
        }
        if !metadata.is_file() {
            return Err(Error::Usage("the target is neither a regular file nor a block device".into()));
        }
        if !clobber {
            return Err(Error::Usage("the target exists".into()));
        }
        // The file that a link leads to is replaced, not the link.
        let target = fs::canonicalize(target).map_err(Error::io("following the link", None))?;
        Self::beside(target, old, sync, clobber)
    }

    fn beside(target: PathBuf, old: Option<Metadata>, sync: bool, clobber: bool) -> Result<Output> {
        // Who may not read the old file may not read the new one either, at no time.
        let (file, temporary) = Temporary::create(&target, if old.is_some() { 0o600 } else { 0o666 })?;
        if let Some(old) = &old {
            // Only root can give a file away. Where the group is another one, it may do nothing.
            let same_group = fchown(file.file(), Some(old.uid()), Some(old.gid())).is_ok();
            let mode = if same_group { old.mode() } else { old.mode() & !0o070 };
            let permissions = Permissions::from_mode(mode & 0o7777);
            file.file().set_permissions(permissions).map_err(Error::io("setting the permissions", None))?;
        }
        let file = Arc::new(file.with_sync(sync));
        Ok(Output { target, file, temporary: Some(temporary), sync, clobber })
    }

    /// The file to write to.
    pub fn file(&self) -> Arc<dyn WriteAt> {
        self.file.clone()
    }

    /// Puts the file in its place. Its writer has synced it, and nobody else has it any more.
    ///
    /// # Errors
    /// Those of the system. Only the last step, syncing the directory, can fail when the new file has its name already.
    pub fn commit(self) -> Result<()> {
        let target = self.target.clone();
        self.close_and_rename().map_err(|e| e.in_file(&target))
    }

    fn close_and_rename(self) -> Result<()> {
        let Some(file) = Arc::into_inner(self.file) else {
            return Err(Error::Usage("the output is still in use".into()));
        };
        file.close().map_err(Error::io("closing", None))?;
        let Some(temporary) = self.temporary else { return Ok(()) };
        temporary.rename(&self.target, self.clobber)?;
        if self.sync {
            let directory = self.target.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let sync = File::open(directory).and_then(|directory| directory.sync_all());
            sync.map_err(Error::io("syncing the directory", None))?;
        }
        Ok(())
    }
}

/// A file under a hidden name. Dropping it removes the file.
struct Temporary {
    path: PathBuf,
    /// The file has its final name.
    renamed: bool,
}

impl Temporary {
    /// Makes a file beside `target`, with a name that nobody else uses.
    fn create(target: &Path, mode: u32) -> Result<(FileTarget, Temporary)> {
        let Some(name) = target.file_name() else {
            return Err(Error::Usage("the target has no file name".into()));
        };
        loop {
            let path = target.with_file_name(hidden_name(name.as_bytes()));
            match FileTarget::create_new(&path, mode) {
                Ok(file) => return Ok((file, Temporary { path, renamed: false })),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io("making a file beside the target", None)(e)),
            }
        }
    }

    fn rename(mut self, target: &Path, clobber: bool) -> Result<()> {
        let result = if clobber { fs::rename(&self.path, target) } else { rename_new(&self.path, target) };
        result.map_err(Error::io("giving the new file its name", None))?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // There is nobody left to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// `.NAME.0123456789abcdef.tmp`, with as much of the name as fits.
fn hidden_name(name: &[u8]) -> OsString {
    let name = &name[..name.len().min(200)];
    let random = RandomState::new().build_hasher().finish();
    let mut hidden = vec![b'.'];
    hidden.extend(name);
    hidden.extend(format!(".{random:016x}.tmp").into_bytes());
    OsString::from_vec(hidden)
}

/// Gives the file at `from` the name `to` unless something has it: a second name is made only if it is free.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to)?;
    fs::remove_file(from)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;
    use crate::io::FileSource;
    use crate::tempdir::TempDir;

    fn create(target: impl AsRef<Path>) -> Result<Output> {
        Output::create(target.as_ref(), &[], true, true)
    }

    fn write(output: &Output) {
        output.file().write_all_at(b"new", 0).unwrap();
    }

    fn mode(path: impl AsRef<Path>) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    /// Checks that `target` is refused with these words, and that nothing changes in the directory.
    fn refused(dir: &TempDir, target: impl AsRef<Path>, words: &str) {
        let before = dir.names();
        let error = create(&target).err().unwrap();
        assert_eq!(error.kind(), "usage", "{error}");
        assert!(error.to_string().ends_with(words), "{error}");
        assert_eq!(error.path(), Some(target.as_ref()));
        assert_eq!(dir.names(), before);
    }

    #[test]
    fn the_new_file_is_never_more_readable_than_the_old_one() {
        for bits in [0o600, 0o640, 0o444] {
            let dir = TempDir::new();
            let old = dir.file("old", b"old");
            fs::set_permissions(&old, Permissions::from_mode(bits)).unwrap();
            let output = create(&old).unwrap();
            let names = dir.names();
            let [hidden, name] = &names[..] else { panic!("{names:?}") };
            assert!(hidden.starts_with(".old.") && hidden.ends_with(".tmp") && name == "old", "{names:?}");
            assert_eq!(mode(dir.join(hidden)), bits);
            write(&output);
            assert_eq!(fs::read(&old).unwrap(), b"old");
            output.commit().unwrap();
            assert_eq!((fs::read(&old).unwrap(), mode(&old)), (b"new".to_vec(), bits));
            assert_eq!(dir.names(), ["old"]);
        }
    }

    #[test]
    fn a_new_file_has_the_usual_permissions() {
        let dir = TempDir::new();
        let usual = mode(dir.file("other", b""));
        create(dir.join("new")).unwrap().commit().unwrap();
        assert_eq!(mode(dir.join("new")), usual);
    }

    #[test]
    fn what_is_dropped_leaves_nothing() {
        let dir = TempDir::new();
        let old = dir.file("old", b"old");
        for target in [dir.join("new"), old.clone()] {
            let output = create(&target).unwrap();
            write(&output);
            assert_eq!(dir.names().len(), 2);
            drop(output);
            assert_eq!(dir.names(), ["old"]);
        }
        // Neither does what cannot be committed.
        let output = create(&old).unwrap();
        let file = output.file();
        assert_eq!(output.commit().unwrap_err().kind(), "usage");
        drop(file);
        assert_eq!((dir.names(), fs::read(&old).unwrap()), (vec!["old".to_owned()], b"old".to_vec()));
    }

    #[test]
    fn a_link_stays_and_what_it_leads_to_is_replaced() {
        let dir = TempDir::new();
        fs::create_dir(dir.join("sub")).unwrap();
        dir.file("sub/old", b"old");
        symlink("sub/old", dir.join("link")).unwrap();
        let output = create(dir.join("link")).unwrap();
        let counts = || (dir.names().len(), fs::read_dir(dir.join("sub")).unwrap().count());
        assert_eq!(counts(), (2, 2));
        write(&output);
        output.commit().unwrap();
        assert_eq!(fs::read_link(dir.join("link")).unwrap(), Path::new("sub/old"));
        assert_eq!(fs::read(dir.join("sub/old")).unwrap(), b"new");
        assert_eq!(counts(), (2, 1));
    }

    #[test]
    fn what_a_file_cannot_replace_is_refused() {
        let dir = TempDir::new();
        symlink("nothing", dir.join("dangling")).unwrap();
        fs::create_dir(dir.join("sub")).unwrap();
        assert!(Command::new("mkfifo").arg(dir.join("fifo")).status().unwrap().success());
        refused(&dir, dir.join("dangling"), "a link that leads nowhere");
        refused(&dir, dir.join("new/"), "a directory by its name");
        refused(&dir, dir.join("sub/"), "a directory by its name");
        refused(&dir, dir.path(), "neither a regular file nor a block device");
        refused(&dir, dir.join("sub/.."), "neither a regular file nor a block device");
        refused(&dir, dir.join("fifo"), "neither a regular file nor a block device");
        refused(&dir, "", "has no file name");
        assert_eq!(create(dir.join("none/new")).err().unwrap().kind(), "io");
    }

    #[test]
    fn a_file_in_use_is_no_target_by_any_name() {
        let dir = TempDir::new();
        let source = dir.file("source", b"source");
        fs::hard_link(&source, dir.join("second")).unwrap();
        symlink("source", dir.join("link")).unwrap();
        let in_use = [FileSource::open(&source).unwrap().identity().unwrap()];
        for name in ["source", "second", "link"] {
            let error = Output::create(&dir.join(name), &in_use, true, true).err().unwrap();
            assert!(error.to_string().ends_with("a file that is read from"), "{error}");
        }
        assert_eq!(dir.names(), ["link", "second", "source"]);
    }

    #[test]
    fn without_clobber_nothing_is_replaced() {
        let dir = TempDir::new();
        let there = dir.file("there", b"old");
        let error = Output::create(&there, &[], true, false).err().unwrap();
        assert!(error.to_string().ends_with("the target exists"), "{error}");
        let create = |name| Output::create(&dir.join(name), &[], true, false).unwrap();
        let (late, free) = (create("late"), create("free"));
        write(&late);
        write(&free);
        dir.file("late", b"meanwhile");
        let error = late.commit().unwrap_err();
        let exists = |cause: &io::Error| cause.kind() == io::ErrorKind::AlreadyExists;
        assert!(matches!(error.root(), Error::Io { cause, .. } if exists(cause)), "{error}");
        free.commit().unwrap();
        assert_eq!(fs::read(dir.join("late")).unwrap(), b"meanwhile");
        assert_eq!(fs::read(dir.join("free")).unwrap(), b"new");
        assert_eq!(dir.names(), ["free", "late", "there"]);
    }

    #[test]
    fn the_longest_name_there_is() {
        let dir = TempDir::new();
        for name in ["n".repeat(255), "ü".repeat(127)] {
            for sync in [true, false] {
                let output = Output::create(&dir.join(&name), &[], sync, true).unwrap();
                write(&output);
                output.commit().unwrap();
                assert_eq!(fs::read(dir.join(&name)).unwrap(), b"new");
            }
        }
        assert_eq!(dir.names().len(), 2);
        assert_eq!(create(dir.join(&"n".repeat(256))).err().unwrap().kind(), "io");
    }
}
