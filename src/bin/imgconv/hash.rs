//! `imgconv hash`

use std::process::ExitCode;

use diskimage::{Converter, Format, HashAlgorithm};
use serde_json::json;

use crate::args::{self, Input};
use crate::failure::Outcome;
use crate::location::{self, Location};
use crate::output::{self, Style};
use crate::signals::Interrupt;

/// Show the digest of the guest data of an image
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// blake3 (the fastest), md5, sha1, sha256 or sha512; can be repeated
    #[arg(short = 'a', long, value_name = "ALGORITHM", value_parser = args::hash_algorithm, default_value = "sha256")]
    algorithm: Vec<HashAlgorithm>,

    #[command(flatten)]
    pub input: Input,
}

const AFTER_HELP: &str = "\
The digest is that of the raw disk, whatever the format of FILE is: what sha256sum says of
a conversion to raw. Zeros are hashed, too: a large empty disk takes time.

Examples:
  imgconv hash disk.qcow2
  imgconv hash -a blake3 --references beside overlay.qcow2";

impl Args {
    pub fn run(&self) -> Outcome {
        let interrupt = Interrupt::register()?;
        let (options, file) = self.input.open()?;
        let image = Location::find(file)?.open(&options)?;
        let converter = Converter::new(Format::RAW).cancel(interrupt.flag());
        let converter = self.algorithm.iter().fold(converter, |converter, algorithm| converter.hash(*algorithm));
        let digests = converter.digests(&image).map_err(|error| interrupt.failure(error))?;
        match self.input.output.style {
            Style::Human => {
                let line = |digest: &diskimage::Digest| format!("{} (guest): {digest}\n", digest.algorithm());
                output::print(&digests.iter().map(line).collect::<String>())?;
            }
            Style::Json => output::print_json(&json!({
                "filename": location::shown(&self.input.file).to_string_lossy(),
                "format": image.format().name(),
                "virtual-size": image.virtual_size(),
                "digests": output::digests(&digests),
            }))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
