//! File systems of the guest: what they do not use can be left out.

use clap::ValueEnum;
use diskimage::{GuestVolume, Image};

use crate::failure::Failure;
use crate::output;

/// Options for the free space of guests.
#[derive(Clone, Debug, clap::Args)]
pub struct SparsifyArgs {
    /// Leave out what the file systems of the disk do not use: ext2, ext3,
    /// ext4, XFS, btrfs, NTFS, exFAT, FAT and swap, if they are clean, also
    /// in linear volumes of LVM, and free extents of LVM.
    /// Deleted files are gone from the result. With =strict, fail if a
    /// volume cannot be looked into
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
    /// `--sparsify`, if it was not given at all.
    pub fn or_clean(self) -> SparsifyArgs {
        SparsifyArgs { sparsify: self.sparsify.or(Some(How::Clean)) }
    }

    pub fn is_given(&self) -> bool {
        self.sparsify.is_some()
    }

    /// Drops the free space of the image that messages call `name`. Returns the volumes.
    pub fn apply(&self, image: &mut Image, name: &str) -> Result<Vec<GuestVolume>, Failure> {
        let Some(how) = self.sparsify else { return Ok(Vec::new()) };
        let volumes = image.drop_free_space()?;
        let kept = volumes.iter().find_map(|volume| Some((volume, volume.kept.as_ref()?)));
        match kept.filter(|_| how == How::Strict) {
            Some((volume, reason)) => {
                Err(Failure::usage(format!("{name}: {} cannot be sparsified: {reason}", place(volume))))
            }
            None => Ok(volumes),
        }
    }
}

/// Tells why volumes of which nothing is dropped are kept.
pub fn note_kept(mut volumes: Vec<GuestVolume>, name: &str) {
    volumes.retain(|volume| volume.kept.is_some());
    note(&volumes, name);
}

/// Tells of each volume what was dropped, or why nothing was.
pub fn note(volumes: &[GuestVolume], name: &str) {
    for volume in volumes {
        let content = volume.content.unwrap_or("unknown content");
        let what = match &volume.kept {
            Some(reason) => format!("kept: {reason}"),
            None => format!(
                "{}, {} of that was stored and is dropped",
                usage(volume),
                output::human_size(volume.unused_stored)
            ),
        };
        output::note(&format!("{name}: {}: {content}, {what}", place(volume)));
    }
}

/// Describes each volume on a line of its own, and why its free space is in doubt.
pub fn describe(volumes: &[GuestVolume]) -> String {
    let mut text = "Guest volumes:\n".to_owned();
    for volume in volumes {
        text.push_str(&format!("    {}: {}", place(volume), volume.content.unwrap_or("unknown content")));
        if !volume.label.as_bytes().is_empty() {
            text.push_str(&format!(", label {}", volume.label));
        }
        if let Some(uuid) = &volume.uuid {
            text.push_str(&format!(", UUID {uuid}"));
        }
        text.push_str(&format!(", {}", usage(volume)));
        if volume.unused_stored > 0 {
            text.push_str(&format!(", {} of that stored", output::human_size(volume.unused_stored)));
        }
        text.push('\n');
        if let Some(reason) = &volume.kept {
            text.push_str(&format!("        all in use for --sparsify: {}\n", output::printable(reason)));
        }
    }
    text
}

/// The size of the file system, or of the volume, and what is in use.
fn usage(volume: &GuestVolume) -> String {
    let size = volume.size.unwrap_or(volume.len);
    let used = volume.free.map(|free| {
        format!(", {} used, {} free", output::human_size(size.saturating_sub(free)), output::human_size(free))
    });
    format!("{}{}", output::human_size(size), used.unwrap_or_default())
}

fn place(volume: &GuestVolume) -> String {
    match (&volume.logical_volume, volume.partition) {
        (Some(name), _) => format!("logical volume {name}"),
        (None, Some(number)) => format!("partition {number}"),
        (None, None) => "the whole disk".into(),
    }
}
