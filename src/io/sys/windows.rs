//! Windows: sparse files of NTFS and ReFS, access control lists, and disks by their device names (`\\.\PhysicalDrive0`).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::windows::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use windows_sys::Win32::Foundation::{GENERIC_READ, GENERIC_WRITE};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_ATTRIBUTE_SPARSE_FILE, FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_OPEN_REPARSE_POINT, FILE_LIST_DIRECTORY,
    FILE_READ_ATTRIBUTES, FILE_SHARE_DELETE, FILE_SHARE_READ, FILE_SHARE_WRITE, READ_CONTROL, SECURITY_ANONYMOUS,
    WRITE_DAC,
};

pub(crate) use super::page_cache::*;
use super::{FileKind, calls, directory_of};
use crate::io::FileIdentity;

/// The access control list; `None` on a file system without any, such as FAT.
#[derive(Clone, Debug)]
pub(crate) struct FileAccess(Option<Vec<u64>>);

/// Opens for reading.
pub(crate) fn open(path: &Path, follow: bool) -> io::Result<File> {
    // The other end of a named pipe learns nothing of this user.
    let file = OpenOptions::new().read(true).security_qos_flags(SECURITY_ANONYMOUS).open(path)?;
    if follow { Ok(file) } else { unless_link(path, file) }
}

/// `file`, which was opened at `path`, unless that is a symbolic link.
fn unless_link(path: &Path, file: File) -> io::Result<File> {
    // A symbolic link has an identity of its own. Opening the link itself for reading would also bypass what other reparse
    // points do, deduplication for instance.
    if identity(&open_to_ask(path, FILE_READ_ATTRIBUTES, false)?)? != identity(&file)? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a symbolic link"));
    }
    Ok(file)
}

/// Opens a directory so that it cannot be renamed.
pub(crate) fn hold_directory(path: &Path) -> io::Result<File> {
    let share = FILE_SHARE_READ | FILE_SHARE_WRITE;
    OpenOptions::new()
        .access_mode(FILE_LIST_DIRECTORY)
        .share_mode(share)
        .custom_flags(FILE_FLAG_BACKUP_SEMANTICS)
        .open(path)
}

/// Opens what is at `path`, of any kind, to ask the system about it.
fn open_to_ask(path: &Path, access: u32, follow: bool) -> io::Result<File> {
    let flags = if follow { 0 } else { FILE_FLAG_OPEN_REPARSE_POINT };
    OpenOptions::new().access_mode(access).custom_flags(FILE_FLAG_BACKUP_SEMANTICS | flags).open(path)
}

pub(crate) fn create(path: &Path, private: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    if private {
        // No other process can open it until it is closed. Its access control list is set by then.
        options.access_mode(GENERIC_READ | GENERIC_WRITE | WRITE_DAC).share_mode(FILE_SHARE_DELETE);
    }
    let file = options.open(path)?;
    // Where the file system has no sparse files, it becomes an ordinary one.
    let _ = calls::set_sparse(&file, true);
    Ok(file)
}

pub(crate) fn create_within(
    path: &Path,
    _replaced: Option<&FileAccess>,
    _within: Option<&FileAccess>,
) -> io::Result<File> {
    create(path, true)
}

/// Opens an existing file for writing. It stays as it is, sparse or not.
pub(crate) fn open_existing(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

/// Opens an existing file for reading and writing.
pub(crate) fn open_writable(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).security_qos_flags(SECURITY_ANONYMOUS).open(path)
}

/// Opens for reading and writing, unless it is a symbolic link.
pub(crate) fn open_writable_nofollow(path: &Path) -> io::Result<File> {
    unless_link(path, open_writable(path)?)
}

/// Removes the sparse attribute of a file that has no holes yet.
pub(crate) fn clear_sparse(file: &File) -> io::Result<()> {
    match file.metadata()?.file_attributes() & FILE_ATTRIBUTE_SPARSE_FILE {
        0 => Ok(()),
        _ => calls::set_sparse(file, false),
    }
}

pub(crate) fn open_device(_path: &Path) -> io::Result<File> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "writing to a device is not supported on Windows"))
}

pub(crate) fn kind(file: &File) -> io::Result<FileKind> {
    if !calls::is_on_disk(file) {
        return Ok(FileKind::Other);
    }
    Ok(match file.metadata() {
        Ok(metadata) if metadata.is_file() => FileKind::Regular,
        Ok(_) => FileKind::Other,
        // A device has none.
        Err(_) => calls::disk(file).map_or(FileKind::Other, |disk| FileKind::Device { sector: disk.sector }),
    })
}

/// Length in bytes.
pub(crate) fn size(file: &File, device: bool) -> io::Result<u64> {
    if device { Ok(calls::disk(file)?.size) } else { Ok(file.metadata()?.len()) }
}

pub(crate) fn allocated(file: &File) -> io::Result<u64> {
    match kind(file)? {
        FileKind::Regular => calls::allocated(file),
        _ => Ok(0),
    }
}

pub(crate) fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    file.seek_read(buf, offset)
}

pub(crate) fn write_all_at(file: &File, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match file.seek_write(buf, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                buf = buf.get(n..).unwrap_or_default();
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The next run of data. Fails where the file system, or the device, does not know holes.
pub(crate) fn next_data(file: &File, offset: u64) -> io::Result<Option<Range<u64>>> {
    let end = file.metadata()?.len();
    if offset >= end { Ok(None) } else { calls::allocated_range(file, offset, end) }
}

/// Makes a range read as zeros without storing them, or fails where that is impossible.
pub(crate) fn punch_hole(file: &File, range: &Range<u64>) -> io::Result<()> {
    calls::set_zero(file, range)
}

/// Zeroing takes any range.
pub(crate) fn block_size(_file: &File) -> io::Result<u64> {
    Err(io::ErrorKind::Unsupported.into())
}

/// In a sparse file only writing allocates.
pub(crate) fn allocate(_file: &File, _range: &Range<u64>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// ReFS shares blocks (`FSCTL_DUPLICATE_EXTENTS_TO_FILE`); NTFS does not.
pub(crate) fn clone_range(_file: &File, _source: &File, _offset: u64, _range: &Range<u64>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// A locked byte cannot be read by others here, so that no program marks images in this way.
pub(crate) fn set_lock(_file: &File, _bytes: &Range<u64>, _locked: bool) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn is_locked(_file: &File, _bytes: &Range<u64>) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Makes everything durable, with `FlushFileBuffers`.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    file.sync_all()
}

/// Directories cannot be flushed. NTFS and ReFS write their changes to a log in the order they were made.
pub(crate) fn sync_directory(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// Closing does not fail: the cache belongs to the file, not to the handle.
pub(crate) fn close(file: File) -> io::Result<()> {
    drop(file);
    Ok(())
}

pub(crate) fn identity(file: &File) -> io::Result<FileIdentity> {
    if let Ok((volume, file)) = calls::file_id(file) {
        return Ok(FileIdentity::from_parts(volume, file));
    }
    let number = calls::device_number(file)?;
    Ok(FileIdentity::from_parts(u64::MAX, number.iter().fold(0, |all, part| all << 32 | u128::from(*part))))
}

/// What is at `path`.
pub(crate) fn status(path: &Path, follow: bool) -> io::Result<(FileKind, FileIdentity, FileAccess)> {
    let file = open_to_ask(path, FILE_READ_ATTRIBUTES | READ_CONTROL, follow)?;
    let access = match calls::access_list(&file) {
        Ok(list) => Some(list),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
        Err(_) => None,
    };
    Ok((kind(&file)?, identity(&file)?, FileAccess(access)))
}

/// Gives a file the access control list of `within`, or of `replaced` if there is no such list: lists cannot be intersected.
pub(crate) fn set_access(file: &File, replaced: Option<&FileAccess>, within: Option<&FileAccess>) -> io::Result<()> {
    match [within, replaced].into_iter().flatten().find_map(|access| access.0.as_ref()) {
        Some(list) => calls::set_access_list(file, list),
        None => Ok(()),
    }
}

pub(crate) fn rename_obstacle(_new: &File, _path: &Path) -> Option<&'static str> {
    None
}

/// Gives the file at `from` the name `to` unless something has it.
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    // A verbatim path may be longer than 260 characters.
    let verbatim = |path: &Path| -> io::Result<PathBuf> {
        Ok(fs::canonicalize(directory_of(path))?.join(path.file_name().unwrap_or_default()))
    };
    calls::move_new(&verbatim(from)?, &verbatim(to)?)
}

/// Bytes from an image as a path of this system, if they can be one.
pub(crate) fn path_from_bytes(bytes: &[u8]) -> Option<&Path> {
    std::str::from_utf8(bytes).ok().map(Path::new)
}

/// There is no such limit.
pub(crate) fn address_space() -> Option<u64> {
    None
}

/// Files have no modes.
pub(crate) fn mode_within(_replaced: Option<&FileAccess>, _within: Option<&FileAccess>) -> u32 {
    0
}
