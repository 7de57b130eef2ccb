//! Packages: an archive as it is, or files of a package in it.

use std::sync::Arc;

use diskimage::OpenOptions;
use diskimage::io::{MemFile, ReadAt};

use super::{describe, limited, walk_once};

/// Opens the bytes as a package, after the first one, which chooses what they are: an archive, whose checksums are corrected; the
/// descriptor of an archive with some files, or beside such files; the manifest of an archive.
pub fn package(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    let disk = [7; 1024];
    let file: Arc<dyn ReadAt> = match choice % 4 {
        0 => Arc::new(MemFile::from(sealed(data))),
        1 => Arc::new(MemFile::from(archive(&[
            ("vm.ovf", data),
            ("a.img", &disk),
            ("a.img.000000000", &disk),
            ("b", &disk),
        ]))),
        2 => Arc::new(MemFile::from(data.to_vec())),
        _ => Arc::new(MemFile::from(archive(&[("vm.ovf", DESCRIPTOR), ("a.img", &disk), ("vm.mf", data)]))),
    };
    let resolve =
        move |_: &diskimage::ResolveRequest<'_>| Ok(Arc::new(MemFile::from(disk.to_vec())) as Arc<dyn ReadAt>);
    let options = limited().reference_policy(diskimage::ReferencePolicy::Beside).resolver(resolve);
    match options.package_source(file.clone()) {
        Ok(None) => {}
        Ok(Some(package)) => {
            for index in 0..package.disks.len().min(4) {
                open(&options.clone().member((index + 1).to_string()), &file);
            }
        }
        Err(error) => describe(&error),
    }
    open(&options, &file);
}

fn open(options: &OpenOptions, file: &Arc<dyn ReadAt>) {
    match options.open_source(file.clone()) {
        Ok(image) => {
            walk_once(&image);
            if let Err(error) = image.verify() {
                describe(&error);
            }
        }
        Err(error) => describe(&error),
    }
}

const DESCRIPTOR: &[u8] =
    br#"<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"><References><File href="a.img" id="f"/></References>
<DiskSection><Disk diskId="d" fileRef="f"/></DiskSection></Envelope>"#;

/// The bytes with the checksum of each block that has the magic of a header.
fn sealed(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    for block in bytes.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        seal(block);
    }
    bytes
}

fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// An archive of files.
pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, data) in files {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
        block[156] = b'0';
        block[257..265].copy_from_slice(b"ustar\x0000");
        seal(&mut block);
        archive.extend(block);
        archive.extend(*data);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive
}
