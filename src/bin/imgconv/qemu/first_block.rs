//! The first block of a new raw disk, which QEMU allocates, so that it can find out how direct I/O has to be aligned in the file.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::Path;

/// Length in bytes.
const BLOCK: u64 = 4096;

/// Writes the zeros of the first block of a new raw disk. What fails has no effect on the disk.
pub fn allocate(path: &Path) {
    let is_file = fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
    let file = File::options().read(true).write(true).open(path);
    if let (true, Ok(mut file)) = (is_file, file) {
        let mut block = Vec::new();
        let is_read = (&file).take(BLOCK).read_to_end(&mut block).is_ok();
        if is_read && block.iter().all(|byte| *byte == 0) && file.rewind().is_ok() {
            // It was a hole, or has its zeros.
            let _ = file.write_all(&block);
        }
    }
}
