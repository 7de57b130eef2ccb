//! By a descriptor, on which neither renaming the directory nor putting a link in its place has an effect.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io::Errno;

use super::{Access, EntryKind};
use crate::io::FileIdentity;

#[derive(Debug)]
pub(crate) struct Directory(OwnedFd);

/// Looking up a name needs no permission to list the directory.
#[cfg(any(target_os = "linux", target_os = "android"))]
const LOOK_UP: OFlags = OFlags::PATH;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const LOOK_UP: OFlags = OFlags::RDONLY;

impl Directory {
    pub fn open(path: &Path) -> io::Result<Directory> {
        let flags = LOOK_UP | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Directory(openat(CWD, path, flags, Mode::empty())?))
    }

    pub fn kind(&self, name: &OsStr) -> io::Result<EntryKind> {
        let stat = statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(match FileType::from_raw_mode(stat.st_mode as _) {
            FileType::RegularFile => EntryKind::Regular,
            FileType::Symlink => EntryKind::Link,
            _ => EntryKind::Other,
        })
    }

    pub fn identity(&self, name: &OsStr) -> io::Result<FileIdentity> {
        Ok(identity_in(&statat(&self.0, name, AtFlags::empty())?))
    }

    pub fn open_file(&self, name: &OsStr, access: Access) -> io::Result<File> {
        let access = match access {
            Access::Read => OFlags::RDONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
        // The other end of a FIFO that has just been put there is not waited for.
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        open_beneath(&self.0, name, flags)
    }

    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let listed = Dir::new(openat(&self.0, c".", flags, Mode::empty())?)?;
        let names = listed.map(|entry| Ok(OsString::from_vec(entry?.file_name().to_bytes().to_vec())));
        names.filter(|name| !matches!(name, Ok(name) if name == "." || name == "..")).collect()
    }
}

/// The kernel itself sees to it that the file is in the directory, whatever was concluded from the text of the name.
#[cfg(target_os = "linux")]
fn open_beneath(directory: &OwnedFd, name: &OsStr, flags: OFlags) -> io::Result<File> {
    use rustix::fs::{ResolveFlags, openat2};

    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(directory, name, flags, Mode::empty(), resolve) {
        // Linux before 5.6, and filters of system calls that do not know it.
        Err(Errno::NOSYS | Errno::PERM) => open_component(directory, name, flags),
        opened => Ok(opened?.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn open_beneath(directory: &OwnedFd, name: &OsStr, flags: OFlags) -> io::Result<File> {
    open_component(directory, name, flags)
}

/// Of a name that is one component, with `O_NOFOLLOW` nothing else could lead out of the directory. Others are refused as by the kernel.
fn open_component(directory: &OwnedFd, name: &OsStr, flags: OFlags) -> io::Result<File> {
    let mut components = Path::new(name).components();
    if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
        return Err(Errno::XDEV.into());
    }
    Ok(openat(directory, name, flags, Mode::empty())?.into())
}

/// As [`identity`](crate::io::sys::identity) of the open file.
#[allow(clippy::unnecessary_cast, reason = "the numbers have other sizes on other systems")]
fn identity_in(stat: &Stat) -> FileIdentity {
    match FileType::from_raw_mode(stat.st_mode as _) {
        FileType::BlockDevice | FileType::CharacterDevice => FileIdentity::from_parts(u64::MAX, stat.st_rdev as u128),
        _ => FileIdentity::from_parts(stat.st_dev as u64, stat.st_ino as u128),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn both_ways_open_what_is_in_the_directory_and_no_link() {
        let dir = TempDir::new();
        dir.file("file", b"content");
        std::os::unix::fs::symlink("file", dir.join("link")).unwrap();
        let directory = Directory::open(dir.path()).unwrap();
        for open in [open_beneath, open_component] {
            let open = |name: &str| open(&directory.0, OsStr::new(name), OFlags::RDONLY | OFlags::NOFOLLOW);
            assert_eq!(open("file").unwrap().metadata().unwrap().len(), 7);
            assert_eq!(open("link").unwrap_err().raw_os_error(), Some(Errno::LOOP.raw_os_error()));
            assert_eq!(open("absent").unwrap_err().kind(), io::ErrorKind::NotFound);
        }
    }

    #[test]
    fn both_ways_refuse_names_outside() {
        let dir = TempDir::new();
        std::fs::create_dir(dir.join("sub")).unwrap();
        let outside = dir.file("file", b"content");
        std::os::unix::fs::symlink("..", dir.join("sub/up")).unwrap();
        let directory = Directory::open(&dir.join("sub")).unwrap();
        for open in [open_beneath, open_component] {
            for name in [Path::new("../file"), Path::new("up/file"), &outside] {
                let opened = open(&directory.0, name.as_os_str(), OFlags::RDONLY);
                let errno = opened.unwrap_err().raw_os_error();
                let refusals = [Errno::XDEV, Errno::LOOP].map(|errno| Some(errno.raw_os_error()));
                assert!(refusals.contains(&errno), "{} {errno:?}", name.display());
            }
        }
    }
}
