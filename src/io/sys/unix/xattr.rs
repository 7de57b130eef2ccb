//! Extended attributes of Linux and macOS. On other systems files have none.

use std::ffi::CString;

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attribute {
    pub name: CString,
    pub value: Vec<u8>,
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
mod calls {
    use std::ffi::CStr;
    use std::fs::File;
    use std::path::Path;

    use rustix::fs::{
        XattrFlags, fgetxattr_query, fremovexattr, fsetxattr, getxattr, lgetxattr, listxattr, llistxattr,
    };
    use rustix::io::{Errno, Result};

    use super::Attribute;

    /// Largest list of names and largest value in bytes: `XATTR_LIST_MAX` and `XATTR_SIZE_MAX` of Linux.
    const MAX_LEN: usize = 64 << 10;
    #[cfg(target_vendor = "apple")]
    const ABSENT: Errno = Errno::NOATTR;
    #[cfg(not(target_vendor = "apple"))]
    const ABSENT: Errno = Errno::NODATA;

    /// The attributes with the `wanted` names. What cannot be read is left out.
    pub fn list(path: &Path, follow: bool, wanted: impl Fn(&[u8]) -> bool) -> Vec<Attribute> {
        let mut names = vec![0; MAX_LEN];
        let len = if follow { listxattr(path, &mut *names) } else { llistxattr(path, &mut *names) };
        names.truncate(len.unwrap_or(0));
        let names = names.split_inclusive(|&byte| byte == 0).filter_map(|name| CStr::from_bytes_with_nul(name).ok());
        let wanted = names.filter(|name| wanted(name.to_bytes()));
        wanted.filter_map(|name| find(path, follow, name).ok().flatten()).collect()
    }

    /// The attribute `name`; `None` if the file, or any file of this file system, has none.
    pub fn find(path: &Path, follow: bool, name: &CStr) -> Result<Option<Attribute>> {
        let mut value = vec![0; MAX_LEN];
        let len = if follow { getxattr(path, name, &mut *value) } else { lgetxattr(path, name, &mut *value) };
        match len {
            Ok(len) => value.truncate(len),
            Err(ABSENT | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(Some(Attribute { name: name.to_owned(), value }))
    }

    pub fn set(file: &File, attribute: &Attribute) -> Result<()> {
        fsetxattr(file, &*attribute.name, &attribute.value, XattrFlags::empty())
    }

    /// Removes the attribute `name` if there is one.
    pub fn remove(file: &File, name: &CStr) -> Result<()> {
        match fgetxattr_query(file, name) {
            Ok(_) => fremovexattr(file, name),
            Err(_) => Ok(()),
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
mod calls {
    use std::ffi::CStr;
    use std::fs::File;
    use std::path::Path;

    use rustix::io::{Errno, Result};

    use super::Attribute;

    pub fn list(_path: &Path, _follow: bool, _wanted: impl Fn(&[u8]) -> bool) -> Vec<Attribute> {
        Vec::new()
    }

    pub fn find(_path: &Path, _follow: bool, _name: &CStr) -> Result<Option<Attribute>> {
        Ok(None)
    }

    pub fn set(_file: &File, _attribute: &Attribute) -> Result<()> {
        Err(Errno::OPNOTSUPP)
    }

    pub fn remove(_file: &File, _name: &CStr) -> Result<()> {
        Ok(())
    }
}

pub(super) use calls::*;
