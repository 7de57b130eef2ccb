//! `--sparsify`: what the file systems of the guest do not use is left out.

use clap::ValueEnum;
use diskimage::{GuestVolume, Image};

use crate::failure::Failure;
use crate::output;

/// Options for the free space of guests.
#[derive(Clone, Debug, clap::Args)]
pub struct SparsifyArgs {
    /// Leave out what the file systems of the disk do not use: ext2, ext3,
    /// ext4, XFS, btrfs, NTFS, FAT and swap, as far as they are clean.
    /// Deleted files are gone from TARGET. With =strict, fail if a volume
    /// cannot be looked into
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "clean")]
    #[arg(hide_possible_values = true, verbatim_doc_comment)]
    sparsify: Option<How>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum How {
    Clean,
    Strict,
}

impl SparsifyArgs {
    pub fn is_given(&self) -> bool {
        self.sparsify.is_some()
    }

    /// Drops the free space of the image that messages call `name`.
    pub fn apply(&self, image: &mut Image, name: &str) -> Result<(), Failure> {
        let Some(how) = self.sparsify else { return Ok(()) };
        let volumes = image.drop_free_space()?;
        let kept = volumes.iter().find_map(|volume| Some((volume, volume.kept.as_ref()?)));
        match kept.filter(|_| how == How::Strict) {
            Some((volume, reason)) => Err(Failure::usage(format!("{name}: {}: {reason}", place(volume)))),
            None => Ok(()),
        }
    }
}

/// Tells of each volume what was dropped, or why nothing was.
pub fn note(volumes: &[GuestVolume], name: &str) {
    for volume in volumes {
        let content = volume.content.unwrap_or("unknown content");
        let what = match &volume.kept {
            Some(reason) => format!("kept: {reason}"),
            None => {
                let (size, free) = (volume.size.unwrap_or_default(), volume.free.unwrap_or_default());
                let [size, used, dropped] = [size, size.saturating_sub(free), volume.unused].map(output::human_size);
                format!("{size}, {used} used, {dropped} dropped")
            }
        };
        output::note(&format!("{name}: {}: {content}, {what}", place(volume)));
    }
}

fn place(volume: &GuestVolume) -> String {
    volume.partition.map_or_else(|| "the whole disk".into(), |number| format!("partition {number}"))
}
