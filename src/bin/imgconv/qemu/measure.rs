//! `qemu-img measure`

use super::Outcome;
use super::getopt::Parsed;

pub fn run(parsed: &Parsed) -> Outcome {
    super::refused(parsed)
}
