//! Whole conversions by other crates, as their users would write them: what the crate has for it, and else reads and writes of 2 MiB by all cores.

use std::error::Error;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{available_parallelism, scope};

use imago::file::File;
use imago::qcow2::{Qcow2, Qcow2CreateBuilder};
use imago::{
    FormatAccess, FormatCreateBuilder, FormatDriverBuilder, Mapping, PermissiveImplicitOpenGate, Storage,
    StorageCreateOptions,
};
use virtdisk::{ConversionPolicy, Image, OperationContext, convert_image_with_policy_and_context};

const PIECE: u64 = 2 << 20;

/// Converts by the mappings of imago: to raw, and from raw to qcow2.
pub fn imago(from: &str, source: &str, to: &str, target: &str) -> Result<(), Box<dyn Error>> {
    let disk = crate::open_imago(from, source)?;
    let pieces = mapped(&disk)?;
    match (from, to) {
        (_, "raw") => {
            let out = fs::File::create(target)?;
            out.set_len(disk.size())?;
            for_each(&pieces, |buf, at| {
                disk.read(&mut *buf, at).unwrap();
                if buf.iter().any(|byte| *byte != 0) {
                    out.write_all_at(buf, at).unwrap();
                }
            });
        }
        ("raw", "qcow2") => {
            let file = File::create_open(StorageCreateOptions::new().filename(target))?;
            let new = Qcow2CreateBuilder::<File>::new(file).size(disk.size());
            let new = new.create_open(PermissiveImplicitOpenGate::default(), |file| {
                Ok(Qcow2::<File>::builder(file).write(true))
            })?;
            let new = FormatAccess::new(new);
            for_each(&pieces, |buf, at| {
                disk.read(&mut *buf, at).unwrap();
                // By the clusters of the new image.
                for (cluster, at) in buf.chunks(64 << 10).zip((at..).step_by(64 << 10)) {
                    if cluster.iter().any(|byte| *byte != 0) {
                        new.write(cluster, at).unwrap();
                    }
                }
            });
            new.flush()?;
        }
        _ => return Err(format!("imago does not convert {from} to {to}").into()),
    }
    Ok(())
}

/// The pieces of the disk that may have data.
fn mapped(disk: &FormatAccess<File>) -> Result<Vec<Range<u64>>, Box<dyn Error>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < disk.size() {
        let (mapping, len) = disk.get_mapping(at, disk.size() - at)?;
        let end = at + len.max(1);
        if !matches!(mapping, Mapping::Zero { .. } | Mapping::Eof { .. }) {
            pieces.extend((at..end).step_by(PIECE as usize).map(|start| start..end.min(start + PIECE)));
        }
        at = end;
    }
    Ok(pieces)
}

fn for_each(pieces: &[Range<u64>], work: impl Fn(&mut [u8], u64) + Sync) {
    let next = AtomicUsize::new(0);
    scope(|scope| {
        for _ in 0..available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let mut buf = vec![0; PIECE as usize];
                while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(&mut buf[..(piece.end - piece.start) as usize], piece.start);
                }
            });
        }
    });
}

/// Converts by virtdisk's own function, which syncs the result and compares it with the source.
pub fn virtdisk(from: &str, source: &str, to: &str, target: &str) -> Result<(), Box<dyn Error>> {
    let disk = Image::open(source, Some(crate::virtdisk_format(from)?))?;
    let workers = available_parallelism().map_or(1, usize::from);
    let mut context = OperationContext::default().with_workers(workers)?.with_streaming_allocation(true);
    let (format, policy) = (crate::virtdisk_format(to)?, ConversionPolicy::Sparse);
    Ok(convert_image_with_policy_and_context(&disk, target, format, policy, &mut context)?)
}
