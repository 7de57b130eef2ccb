//! Options that the program has with the meaning, or only for the scripts, of qemu-img.

use clap::ValueEnum;
use diskimage::io::CacheMode;
use diskimage::{BitmapPolicy, Report};

use crate::output;

/// Copying bitmaps.
#[derive(Clone, Debug, clap::Args)]
pub struct BitmapArgs {
    /// Copy the persistent bitmaps of SOURCE, for incremental backups; from
    /// qcow2 to qcow2
    #[arg(long, verbatim_doc_comment)]
    bitmaps: bool,

    /// Leave out inconsistent bitmaps instead of failing
    #[arg(long, requires = "bitmaps")]
    skip_broken_bitmaps: bool,
}

impl BitmapArgs {
    pub fn policy(&self) -> BitmapPolicy {
        match (self.bitmaps, self.skip_broken_bitmaps) {
            (false, _) => BitmapPolicy::Omit,
            (true, false) => BitmapPolicy::Copy,
            (true, true) => BitmapPolicy::SkipInconsistent,
        }
    }

    /// Prints notes about what was left out.
    pub fn note_skipped(report: &Report) {
        for name in &report.skipped_bitmaps {
            output::note(&format!("the inconsistent bitmap '{name}' is not copied"));
        }
    }
}

const WITHOUT_EFFECT: &str = "Options without effect, for scripts of qemu-img";

/// Cache modes.
#[derive(Clone, Debug, clap::Args)]
pub struct CacheArgs {
    /// How TARGET is written: none and directsync bypass the page cache,
    /// writethrough and directsync sync each write, unsafe is --no-sync
    #[arg(short = 't', long = "target-cache", value_name = "CACHE", default_value = "writeback", verbatim_doc_comment)]
    target_cache: Cache,

    /// How SOURCE is read: none and directsync bypass the page cache
    #[arg(short = 'T', long = "source-cache", value_name = "CACHE", default_value = "writeback")]
    source_cache: Cache,
}

impl CacheArgs {
    pub fn target(&self) -> CacheMode {
        self.target_cache.mode()
    }

    pub fn source(&self) -> CacheMode {
        self.source_cache.mode()
    }
}

/// Options that scripts pass to qemu-img, and that ask for nothing here.
#[derive(Clone, Debug, clap::Args)]
pub struct ScriptArgs {
    /// Write out of order, as all threads do anyway
    #[arg(short = 'W', long = "oob-writes", help_heading = WITHOUT_EFFECT)]
    _oob_writes: bool,

    /// Copy within the file system; data is read and written
    #[arg(short = 'C', long = "copy-range-offloading", help_heading = WITHOUT_EFFECT)]
    _copy_range_offloading: bool,

    /// TARGET reads as zeros, which become holes anyway; needs -n
    #[arg(long = "target-is-zero", requires = "no_create", help_heading = WITHOUT_EFFECT)]
    _target_is_zero: bool,
}

/// A cache mode of QEMU.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Cache {
    None,
    Writeback,
    Writethrough,
    Directsync,
    Unsafe,
}

impl Cache {
    fn mode(self) -> CacheMode {
        match self {
            Cache::None => CacheMode::None,
            Cache::Writeback => CacheMode::Writeback,
            Cache::Writethrough => CacheMode::Writethrough,
            Cache::Directsync => CacheMode::Directsync,
            Cache::Unsafe => CacheMode::Unsafe,
        }
    }
}
