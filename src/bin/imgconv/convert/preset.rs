//! `--for`: conversions for a cloud or hypervisor.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use diskimage::{Format, Preset};

use super::{Args, has_extension};
use crate::args::{Endpoint, Target};
use crate::failure::Failure;
use crate::output;

/// Parses the argument of `--for`, for clap.
pub fn parser() -> impl TypedValueParser<Value = Preset> {
    PossibleValuesParser::new(Preset::ALL.map(Preset::name)).try_map(|name| Preset::by_name(&name))
}

impl Args {
    /// Sets the format of the preset, which `-O` and the name of the target must not contradict.
    pub(super) fn apply_preset(&mut self) -> Result<(), Failure> {
        let Some(preset) = self.preset else { return Ok(()) };
        let target = if preset == Preset::Gcp { Target::Gcp } else { Target::Image(preset.format()?) };
        match self.target_format {
            Some(other) if other != target => {
                let problem = format!("-O contradicts --for {}: {}", preset.name(), preset.description());
                return Err(Failure::usage(problem));
            }
            _ => self.target_format = Some(target),
        }
        self.check_name(preset)
    }

    /// Refuses a target with the extension of another format, and tells of one that the platform does not know.
    fn check_name(&self, preset: Preset) -> Result<(), Failure> {
        let Endpoint::File(path) = self.target() else { return Ok(()) };
        let (Some(name), Some(extension)) = (path.file_name(), path.extension()) else { return Ok(()) };
        if preset.has_extension(&name.to_string_lossy()) {
            return Ok(());
        }
        let usual = preset.extensions().first().copied().unwrap_or_default();
        let problem = format!("{}: the name of an image for {} ends with .{usual}", path.display(), preset.name());
        let is_other = Format::by_extension(&extension.to_string_lossy()).is_some();
        if is_other || has_extension(path, &["ova", "ovf"]) {
            return Err(Failure::usage(problem));
        }
        if !self.quiet {
            output::note(&problem);
        }
        Ok(())
    }
}
