//! Who may use a file: owner, group, mode, access control list. A file that replaces another one is never more open than that.

use std::ffi::CStr;
use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use super::xattr::{self, Attribute};

/// The access control list of POSIX.1e, as Linux stores it. While a file has one, the group bits of its mode are the list's mask.
const POSIX_LIST: &CStr = c"system.posix_acl_access";
/// That of NFS version 4.
const NFS_LIST: &CStr = c"system.nfs4_acl";

/// Owner, group, mode and extended attributes.
#[derive(Clone, Debug)]
pub(crate) struct FileAccess {
    rights: Rights,
    /// Security labels, and what users have attached.
    attributes: Vec<Attribute>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rights {
    /// `None` for the user who creates the file.
    uid: Option<u32>,
    /// `None` for the group that the file is created with.
    gid: Option<u32>,
    mode: u32,
    /// The access control list. An empty value stands for one that cannot be read.
    list: Option<Attribute>,
}

impl FileAccess {
    pub(super) fn new(path: &Path, follow: bool, metadata: &Metadata) -> Self {
        let list = [POSIX_LIST, NFS_LIST].into_iter().find_map(|name| {
            let unreadable = || Attribute { name: name.to_owned(), value: Vec::new() };
            xattr::find(path, follow, name).unwrap_or_else(|_| Some(unreadable()))
        });
        let (uid, gid) = (Some(metadata.uid()), Some(metadata.gid()));
        let rights = Rights { uid, gid, mode: metadata.mode() & 0o7777, list };
        FileAccess { rights, attributes: xattr::list(path, follow, |name| is_label(name) || is_users(name)) }
    }
}

/// Labels of SELinux and Smack. The other security attributes belong to the content, as hashes or as capabilities of a program.
fn is_label(name: &[u8]) -> bool {
    [&b"security.selinux"[..], b"security.SMACK64"].contains(&name)
}

/// Attributes that users have set. macOS has no prefix for them, but one for those of the system.
fn is_users(name: &[u8]) -> bool {
    if cfg!(target_vendor = "apple") { !name.starts_with(b"com.apple.") } else { name.starts_with(b"user.") }
}

impl Rights {
    /// A mode that without the list allows nobody more than mode and list do together.
    fn plain_mode(&self) -> u32 {
        match &self.list {
            None => self.mode,
            Some(list) => posix_plain_mode(self.mode, &list.value).unwrap_or(self.mode & !0o077),
        }
    }

    /// What both allow.
    fn intersection(&self, other: &Rights) -> Rights {
        if self == other {
            return self.clone();
        }
        let gid = self.gid.filter(|_| self.gid == other.gid);
        let [one, two] = [self, other].map(|rights| match gid {
            Some(_) => rights.plain_mode(),
            None => for_any_group(rights.plain_mode()),
        });
        Rights { uid: self.uid.filter(|_| self.uid == other.uid), gid, mode: one & two, list: None }
    }
}

/// The mode for a file that gets another group. Its members were others, and the members of the old group are others now: both are
/// allowed what everybody was.
fn for_any_group(mode: u32) -> u32 {
    let everybody = mode & mode >> 3 & 7;
    mode & !0o077 | everybody << 3 | everybody
}

/// [`Rights::plain_mode`] with a list of POSIX.1e; `None` if `list` is not such a list. The format is that of
/// `<linux/posix_acl_xattr.h>`: a version, and entries of a tag, permissions and an ID.
fn posix_plain_mode(mode: u32, list: &[u8]) -> Option<u32> {
    const USER: u16 = 0x02;
    const GROUP_OBJ: u16 = 0x04;
    const GROUP: u16 = 0x08;
    let (version, entries) = list.split_first_chunk()?;
    let (entries, []) = entries.as_chunks::<8>() else { return None };
    if u32::from_le_bytes(*version) != 2 {
        return None;
    }
    let mask = mode >> 3 & 7;
    let (mut group, mut others) = (mask, mode & 7);
    for &[tag0, tag1, permissions, ..] in entries {
        let allowed = u32::from(permissions) & mask;
        match u16::from_le_bytes([tag0, tag1]) {
            // Without the list they are members of the group, or others.
            USER => (group, others) = (group & allowed, others & allowed),
            GROUP => others &= allowed,
            GROUP_OBJ => group &= allowed,
            _ => {}
        }
    }
    Some(mode & !0o077 | group << 3 | others)
}

/// A mode to create a file with, of any group, that allows nobody more than these files do. Its owner may write.
pub(super) fn common_mode<'a>(files: impl Iterator<Item = &'a FileAccess>) -> u32 {
    files.fold(0o666, |mode, access| mode & (0o600 | for_any_group(access.rights.plain_mode())))
}

/// Gives a new file the attributes of the file that it replaces, and the rights that this one and `within` both give.
///
/// Not all of it can be kept: only root can give a file away, and some file systems refuse to change any of it.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] if the file would be more open than those.
pub(crate) fn set_access(file: &File, replaced: Option<&FileAccess>, within: Option<&FileAccess>) -> io::Result<()> {
    let Some(like) = replaced.or(within) else { return Ok(()) };
    let rights = within.map_or_else(|| like.rights.clone(), |within| like.rights.intersection(&within.rights));
    // First, since it takes the permission to write, and the mode may be without.
    for attribute in like.attributes.iter().filter(|it| replaced.is_some() || is_label(it.name.to_bytes())) {
        let _ = xattr::set(file, attribute);
    }
    let created = file.metadata()?;
    let same_owner = rights.uid.is_some_and(|uid| uid == created.uid() || fchown(file, Some(uid), None).is_ok());
    let same_group = rights.gid.is_some_and(|gid| gid == created.gid() || fchown(file, None, Some(gid)).is_ok());
    let mut mode = if same_group { rights.plain_mode() } else { for_any_group(rights.plain_mode()) };
    if !(same_owner && same_group) {
        // Set-user-ID and set-group-ID.
        mode &= !0o6000;
    }
    // The default list of the directory. The group bits would let its entries take effect.
    if xattr::remove(file, POSIX_LIST).is_err() {
        mode &= !0o070;
    }
    // What counts is the result.
    let _ = file.set_permissions(Permissions::from_mode(mode));
    let list = rights.list.as_ref().filter(|list| same_group && !list.value.is_empty());
    if list.is_some_and(|list| xattr::set(file, list).is_ok()) {
        mode = rights.mode;
    }
    check_openness(file, mode)
}

/// Fails if the group or others are allowed more than with `mode`. The owner can change the mode, and is not looked at.
fn check_openness(file: &File, mode: u32) -> io::Result<()> {
    match file.metadata()?.mode() & 0o077 & !mode {
        0 => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::PermissionDenied, "the new file would be open to more users")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::io::{FileStatus, FileTarget};
    use crate::testing::TempDir;

    /// Tags of `<linux/posix_acl.h>`.
    const USER_OBJ: u16 = 0x01;
    const USER: u16 = 0x02;
    const GROUP_OBJ: u16 = 0x04;
    const GROUP: u16 = 0x08;
    const MASK: u16 = 0x10;
    const OTHER: u16 = 0x20;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            bytes.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    /// The list of a file with mode 060 for `user`, and nothing for its group.
    fn list_of_one_user(user: u32) -> Attribute {
        const NONE: u32 = u32::MAX;
        let entries = [(USER_OBJ, 6, NONE), (USER, 6, user), (GROUP_OBJ, 0, NONE), (MASK, 6, NONE), (OTHER, 0, NONE)];
        Attribute { name: POSIX_LIST.to_owned(), value: list(&entries) }
    }

    #[test]
    fn a_mode_without_its_list_allows_nobody_more() {
        let plain = |mode, entries: &[(u16, u16, u32)]| posix_plain_mode(mode, &list(entries)).unwrap();
        assert_eq!(plain(0o640, &[(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 0, 0)]), 0o640);
        // The group bits are the mask.
        assert_eq!(plain(0o660, &[(USER, 6, 33), (GROUP_OBJ, 0, 0), (MASK, 6, 0)]), 0o600);
        assert_eq!(plain(0o640, &[(USER, 7, 33), (GROUP_OBJ, 6, 0), (MASK, 4, 0)]), 0o640);
        // A user or a group with less than others have.
        assert_eq!(plain(0o664, &[(USER, 0, 33), (GROUP_OBJ, 6, 0), (MASK, 6, 0)]), 0o600);
        assert_eq!(plain(0o664, &[(GROUP, 0, 33), (GROUP_OBJ, 6, 0), (MASK, 6, 0)]), 0o660);
        for unknown in [&b""[..], b"\x02\0\0", b"\x03\0\0\0", b"\x02\0\0\0\x01\0\x07"] {
            assert_eq!(posix_plain_mode(0o644, unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn a_file_is_created_with_what_all_are_allowed() {
        let access =
            |mode, list| FileAccess { rights: Rights { uid: None, gid: None, mode, list }, attributes: Vec::new() };
        let common = |files: &[FileAccess]| common_mode(files.iter());
        for (mode, expected) in [(0o644, 0o644), (0o777, 0o666), (0o640, 0o600), (0o604, 0o600), (0o400, 0o600)] {
            assert_eq!(common(&[access(mode, None)]), expected, "{mode:o}");
        }
        assert_eq!(common(&[access(0o666, Some(list_of_one_user(33)))]), 0o600);
        assert_eq!(common(&[access(0o666, None), access(0o644, None)]), 0o644);
    }

    #[test]
    fn an_intersection_is_what_both_allow() {
        let rights = |uid, gid, mode| Rights { uid: Some(uid), gid: Some(gid), mode, list: None };
        let listed = |mode| Rights { list: Some(list_of_one_user(33)), ..rights(1, 1, mode) };
        let intersection = |one: Rights, two: Rights| {
            let Rights { uid, gid, mode, list } = one.intersection(&two);
            assert_eq!(two.intersection(&one), Rights { uid, gid, mode, list: list.clone() });
            (uid, gid, mode, list.is_some())
        };
        assert_eq!(intersection(rights(1, 1, 0o640), rights(1, 1, 0o604)), (Some(1), Some(1), 0o600, false));
        assert_eq!(intersection(listed(0o660), listed(0o660)), (Some(1), Some(1), 0o660, true));
        assert_eq!(intersection(listed(0o660), rights(1, 1, 0o660)), (Some(1), Some(1), 0o600, false));
        // Neither the owner nor the group of one file may use the other one.
        assert_eq!(intersection(rights(1, 1, 0o660), rights(2, 2, 0o666)), (None, None, 0o600, false));
        assert_eq!(intersection(rights(1, 1, 0o604), rights(1, 2, 0o644)), (Some(1), None, 0o600, false));
        assert_eq!(intersection(rights(1, 1, 0o644), rights(1, 2, 0o646)), (Some(1), None, 0o644, false));
    }

    /// A file with the given mode and attributes, or `None` where the file system does not take them.
    fn existing(dir: &TempDir, mode: u32, attributes: &[Attribute]) -> Option<PathBuf> {
        let path = dir.file("old", b"old");
        let file = File::options().write(true).open(&path).unwrap();
        for attribute in attributes {
            if let Err(error) = xattr::set(&file, attribute) {
                eprintln!("SKIPPED: {} takes no {:?}: {error}", dir.path().display(), attribute.name);
                return None;
            }
        }
        // With a list, this sets the mask.
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        Some(path)
    }

    /// The access of a file that replaces `old`.
    fn replaced(dir: &TempDir, old: &Path) -> FileAccess {
        let new = dir.join("new");
        let _ = fs::remove_file(&new);
        let status = FileStatus::from_link(old).unwrap().unwrap();
        FileTarget::create_private(&new).unwrap().set_access(Some(&status), None).unwrap();
        FileAccess::new(&new, false, &fs::metadata(&new).unwrap())
    }

    #[test]
    fn lists_and_attributes_of_a_replaced_file_are_kept() {
        let dir = TempDir::new();
        let attributes = [
            Attribute { name: c"user.comment".into(), value: b"precious".to_vec() },
            Attribute { name: c"user.empty".into(), value: Vec::new() },
        ];
        // The mode takes the permission to write.
        for mode in [0o640, 0o444] {
            let Some(old) = existing(&dir, mode, &attributes) else { return };
            let new = replaced(&dir, &old);
            assert_eq!((new.rights.mode, new.attributes.len()), (mode, 2));
            attributes.iter().for_each(|attribute| assert!(new.attributes.contains(attribute)));
            // A further file of the image is no copy of it.
            let status = FileStatus::from_link(&old).unwrap().unwrap();
            let part = dir.join("part");
            FileTarget::create_private(&part).unwrap().set_access(None, Some(&status)).unwrap();
            let part_access = FileAccess::new(&part, false, &fs::metadata(&part).unwrap());
            assert_eq!((part_access.rights, part_access.attributes.len()), (new.rights, 0));
            fs::remove_file(&part).unwrap();
            fs::remove_file(&old).unwrap();
        }
        let Some(old) = existing(&dir, 0o660, &[list_of_one_user(33)]) else { return };
        let new = replaced(&dir, &old).rights;
        assert_eq!((new.mode, new.list), (0o660, Some(list_of_one_user(33))));
    }

    #[test]
    fn the_default_list_of_a_directory_opens_no_replaced_file() {
        let dir = TempDir::new();
        let Some(old) = existing(&dir, 0o640, &[]) else { return };
        let default = Attribute { name: c"system.posix_acl_default".into(), ..list_of_one_user(33) };
        if let Err(error) = xattr::set(&File::open(dir.path()).unwrap(), &default) {
            eprintln!("SKIPPED: {} takes no default list: {error}", dir.path().display());
            return;
        }
        fs::write(dir.join("other"), b"").unwrap();
        let path = dir.join("other");
        assert!(FileAccess::new(&path, false, &fs::metadata(&path).unwrap()).rights.list.is_some());
        let new = replaced(&dir, &old).rights;
        assert_eq!((new.mode, new.list), (0o640, None));
    }

    #[test]
    fn a_list_that_cannot_be_read_or_set_leaves_a_narrower_mode() {
        let dir = TempDir::new();
        for value in [Vec::new(), b"unknown".to_vec()] {
            let file = FileTarget::create_private(&dir.join("new")).unwrap();
            let created = file.file().metadata().unwrap();
            let list = Some(Attribute { name: POSIX_LIST.to_owned(), value });
            let rights = Rights { uid: Some(created.uid()), gid: Some(created.gid()), mode: 0o664, list };
            set_access(file.file(), Some(&FileAccess { rights, attributes: Vec::new() }), None).unwrap();
            assert_eq!(file.file().metadata().unwrap().mode() & 0o7777, 0o600);
            fs::remove_file(dir.join("new")).unwrap();
        }
    }

    #[test]
    fn a_file_that_would_be_more_open_is_an_error() {
        let dir = TempDir::new();
        // As on a file system that gives every file the same mode.
        let path = dir.file("new", b"");
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        let check = |mode| check_openness(&File::open(&path).unwrap(), mode);
        assert!(check(0o666).is_ok() && check(0o777).is_ok());
        assert_eq!(check(0o660).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(check(0o606).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
