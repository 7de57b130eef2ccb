//! Device control codes, information about an open file, security descriptors and `MoveFileExW`.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::ops::Range;
use std::os::windows::ffi::OsStrExt;
use std::os::windows::io::AsRawHandle;
use std::path::Path;
use std::ptr::null_mut;

use windows_sys::Win32::Foundation::{ERROR_INSUFFICIENT_BUFFER, ERROR_MORE_DATA};
use windows_sys::Win32::Security::{DACL_SECURITY_INFORMATION, GetKernelObjectSecurity, SetKernelObjectSecurity};
use windows_sys::Win32::Storage::FileSystem::{
    BY_HANDLE_FILE_INFORMATION, FILE_COMPRESSION_INFO, FILE_ID_INFO, FILE_INFO_BY_HANDLE_CLASS, FILE_STANDARD_INFO,
    FILE_TYPE_DISK, FileCompressionInfo, FileIdInfo, FileStandardInfo, GetFileInformationByHandle,
    GetFileInformationByHandleEx, GetFileType, MOVEFILE_WRITE_THROUGH, MoveFileExW,
};
use windows_sys::Win32::System::IO::DeviceIoControl;
use windows_sys::Win32::System::Ioctl::{
    DISK_GEOMETRY, FILE_ALLOCATED_RANGE_BUFFER, FILE_ZERO_DATA_INFORMATION, FSCTL_QUERY_ALLOCATED_RANGES,
    FSCTL_SET_SPARSE, FSCTL_SET_ZERO_DATA, GET_LENGTH_INFORMATION, IOCTL_DISK_GET_DRIVE_GEOMETRY,
    IOCTL_DISK_GET_LENGTH_INFO, IOCTL_STORAGE_GET_DEVICE_NUMBER, STORAGE_DEVICE_NUMBER,
};

use super::Disk;

/// Structures of the system that consist of integers alone, so that any bytes are a value.
trait Plain: Copy + Default {}
impl Plain for () {}
impl Plain for u8 {}
impl Plain for DISK_GEOMETRY {}
impl Plain for FILE_ALLOCATED_RANGE_BUFFER {}
impl Plain for FILE_COMPRESSION_INFO {}
impl Plain for FILE_ID_INFO {}
impl Plain for FILE_STANDARD_INFO {}
impl Plain for FILE_ZERO_DATA_INFORMATION {}
impl Plain for GET_LENGTH_INFORMATION {}
impl Plain for STORAGE_DEVICE_NUMBER {}

fn succeeded(result: i32) -> io::Result<()> {
    if result == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends a control code; `None` when the answer is empty. A truncated answer is not an error.
fn control<I: Plain, O: Plain>(file: &File, code: u32, input: &I) -> io::Result<Option<O>> {
    let mut output = O::default();
    let mut returned = 0;
    // SAFETY: the handle is open and synchronous; both pointers are to plain structures of the lengths given, which live
    // until the call returns.
    let result = succeeded(unsafe {
        DeviceIoControl(
            file.as_raw_handle(),
            code,
            (&raw const *input).cast(),
            size_of::<I>() as u32,
            (&raw mut output).cast(),
            size_of::<O>() as u32,
            &raw mut returned,
            null_mut(),
        )
    });
    match result {
        Err(error) if error.raw_os_error() != Some(ERROR_MORE_DATA.cast_signed()) => Err(error),
        _ => Ok((returned as usize >= size_of::<O>()).then_some(output)),
    }
}

fn information<T: Plain>(file: &File, class: FILE_INFO_BY_HANDLE_CLASS) -> io::Result<T> {
    let mut value = T::default();
    // SAFETY: the handle is open; the pointer is to a plain structure of the length given.
    succeeded(unsafe {
        GetFileInformationByHandleEx(file.as_raw_handle(), class, (&raw mut value).cast(), size_of::<T>() as u32)
    })?;
    Ok(value)
}

fn unsigned(value: i64) -> io::Result<u64> {
    u64::try_from(value).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn signed(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

/// Whether it is a file or a disk, not a console or a pipe.
pub(in super::super) fn is_on_disk(file: &File) -> bool {
    // SAFETY: the handle is open.
    unsafe { GetFileType(file.as_raw_handle()) == FILE_TYPE_DISK }
}

/// Fails unless the handle is a disk or a volume.
pub(in super::super) fn disk(file: &File) -> io::Result<Disk> {
    let missing = || io::Error::from(io::ErrorKind::InvalidData);
    let length: GET_LENGTH_INFORMATION = control(file, IOCTL_DISK_GET_LENGTH_INFO, &())?.ok_or_else(missing)?;
    let geometry: DISK_GEOMETRY = control(file, IOCTL_DISK_GET_DRIVE_GEOMETRY, &())?.ok_or_else(missing)?;
    Ok(Disk { size: unsigned(length.Length)?, sector: geometry.BytesPerSector.max(1) as usize })
}

/// Type and number of a device, and the number of its partition.
pub(in super::super) fn device_number(file: &File) -> io::Result<[u32; 3]> {
    let number: Option<STORAGE_DEVICE_NUMBER> = control(file, IOCTL_STORAGE_GET_DEVICE_NUMBER, &())?;
    let number = number.ok_or(io::ErrorKind::InvalidData)?;
    Ok([number.DeviceType, number.DeviceNumber, number.PartitionNumber])
}

/// Serial number of the volume, and number of the file on it.
pub(in super::super) fn file_id(file: &File) -> io::Result<(u64, u128)> {
    if let Ok(info) = information::<FILE_ID_INFO>(file, FileIdInfo) {
        return Ok((info.VolumeSerialNumber, u128::from_le_bytes(info.FileId.Identifier)));
    }
    // FAT, and some network file systems.
    let mut info = BY_HANDLE_FILE_INFORMATION::default();
    // SAFETY: the handle is open; the pointer is to the structure that the function fills.
    succeeded(unsafe { GetFileInformationByHandle(file.as_raw_handle(), &raw mut info) })?;
    Ok((info.dwVolumeSerialNumber.into(), u128::from(info.nFileIndexHigh) << 32 | u128::from(info.nFileIndexLow)))
}

/// Bytes in use on the volume.
pub(in super::super) fn allocated(file: &File) -> io::Result<u64> {
    // The other class counts the holes of sparse files.
    match information::<FILE_COMPRESSION_INFO>(file, FileCompressionInfo) {
        Ok(info) => unsigned(info.CompressedFileSize),
        Err(_) => unsigned(information::<FILE_STANDARD_INFO>(file, FileStandardInfo)?.AllocationSize),
    }
}

pub(in super::super) fn set_sparse(file: &File, sparse: bool) -> io::Result<()> {
    // The one field of `FILE_SET_SPARSE_BUFFER`.
    control(file, FSCTL_SET_SPARSE, &u8::from(sparse)).map(|_: Option<()>| ())
}

/// The first allocated range at or after `offset`, up to `end`.
pub(in super::super) fn allocated_range(file: &File, offset: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    let input = FILE_ALLOCATED_RANGE_BUFFER { FileOffset: signed(offset)?, Length: signed(end - offset)? };
    let Some(found) = control::<_, FILE_ALLOCATED_RANGE_BUFFER>(file, FSCTL_QUERY_ALLOCATED_RANGES, &input)? else {
        return Ok(None);
    };
    let start = unsigned(found.FileOffset)?;
    // Ranges are whole units of the file system.
    let range = start.max(offset)..start.saturating_add(unsigned(found.Length)?).min(end);
    Ok(Some(range).filter(|range| range.start < end))
}

/// Makes a range read as zeros; in a sparse file it becomes a hole.
pub(in super::super) fn set_zero(file: &File, range: &Range<u64>) -> io::Result<()> {
    let input = FILE_ZERO_DATA_INFORMATION { FileOffset: signed(range.start)?, BeyondFinalZero: signed(range.end)? };
    control(file, FSCTL_SET_ZERO_DATA, &input).map(|_: Option<()>| ())
}

/// The access control list, as a self-relative security descriptor. In units of 8 bytes, since it has to be aligned.
pub(in super::super) fn access_list(file: &File) -> io::Result<Vec<u64>> {
    let mut descriptor: Vec<u64> = Vec::new();
    loop {
        let mut needed = 0;
        let len = (descriptor.len() * size_of::<u64>()) as u32;
        // SAFETY: the handle is open; the pointer is to `len` bytes that may be written.
        let result = succeeded(unsafe {
            GetKernelObjectSecurity(
                file.as_raw_handle(),
                DACL_SECURITY_INFORMATION,
                descriptor.as_mut_ptr().cast(),
                len,
                &raw mut needed,
            )
        });
        match result {
            Ok(()) => return Ok(descriptor),
            Err(error) if error.raw_os_error() == Some(ERROR_INSUFFICIENT_BUFFER.cast_signed()) && needed > len => {
                descriptor = vec![0; (needed as usize).div_ceil(size_of::<u64>())];
            }
            Err(error) => return Err(error),
        }
    }
}

/// Sets the access control list to one that [`access_list`] returned.
pub(in super::super) fn set_access_list(file: &File, descriptor: &[u64]) -> io::Result<()> {
    // SAFETY: the handle is open; the pointer is to a descriptor of the system's own making, which it reads only.
    succeeded(unsafe {
        SetKernelObjectSecurity(file.as_raw_handle(), DACL_SECURITY_INFORMATION, descriptor.as_ptr().cast_mut().cast())
    })
}

/// Renames a file, in one step; fails when something is at `to`.
pub(in super::super) fn move_new(from: &Path, to: &Path) -> io::Result<()> {
    let wide = |path: &Path| -> Vec<u16> { path.as_os_str().encode_wide().chain([0]).collect() };
    let (from, to) = (wide(from), wide(to));
    // SAFETY: both pointers are to text that ends in a NUL and is valid until the call returns.
    succeeded(unsafe { MoveFileExW(from.as_ptr(), to.as_ptr(), MOVEFILE_WRITE_THROUGH) })
}
