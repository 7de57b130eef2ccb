//! Comparison with other programs, in both directions.

use std::fs;
use std::path::Path;

use crate::support::{content, open_beside};
use diskimage::{Converter, Image, OpenOptions, ReferencePolicy};

#[cfg(feature = "dmg")]
mod dmg;
mod features;
#[cfg(feature = "sparsify")]
mod free_space;
#[cfg(target_os = "linux")]
mod in_use;
mod luks;
mod matrix;
#[cfg(feature = "cli")]
mod measure;
mod mkfs;
#[cfg(feature = "cli")]
mod old_formats;
pub(crate) mod overlays;
#[cfg(all(unix, feature = "packages"))]
mod packages;
mod partitions;
mod readers;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

/// An overlay of another program is refused without its parent, and with an unrelated disk of that name, created by
/// `unrelated`. `compare` gets the guest data.
fn assert_knows_its_parent(child: &Path, parent: &Path, unrelated: &Converter, compare: impl Fn(&[u8])) {
    let error = Image::open(child).err().unwrap();
    assert_eq!(error.kind().as_str(), "reference", "{error}");
    assert!(error.to_string().contains(parent.file_name().unwrap().to_str().unwrap()), "{error}");
    let opened = open_beside(child).unwrap();
    assert_eq!((opened.layer_count(), opened.info().warnings.len()), (2, 0), "{child:?}");
    assert_eq!(opened.file_path(1, Default::default()), Some(parent));
    compare(&content(&opened).unwrap());
    fs::remove_file(parent).unwrap();
    unrelated.create(opened.virtual_size(), parent).unwrap();
    let error = open_beside(child).err().unwrap();
    assert_eq!(error.kind().as_str(), "reference", "{error}");
    OpenOptions::new().reference_policy(ReferencePolicy::Beside).allow_changed_backing(true).open(child).unwrap();
}
