//! The secrets of `--object`.

use super::getopt::Parsed;
use super::message::Failed;
use crate::secrets::SecretArgs;

/// The secrets on the command line.
pub fn of(parsed: &Parsed) -> Result<SecretArgs, Failed> {
    Ok(SecretArgs::of_objects(parsed.all("object")))
}
