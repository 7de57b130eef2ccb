//! `qemu-img compare`

use diskimage::{Comparison, Error, Image, compare_range};

use super::getopt::Parsed;
use super::message::{Failed, describe};
use super::progress::Printer;
use super::source::{SECTOR, Sources};
use super::{Outcome, print};
use crate::map;

const DIFFERENT: u8 = 1;
/// An image could not be opened, or the command line is wrong.
const CANNOT_OPEN: u8 = 2;
const CANNOT_READ: u8 = 4;

pub fn run(parsed: &Parsed) -> Outcome {
    let [a, b] = parsed.operands.as_slice() else {
        return Err(Failed::new("Expecting two image file names").see_help("compare"));
    };
    let sources = Sources::new(parsed);
    let open = |name, format: &str| sources.source(name, parsed.text(format).as_deref())?.open();
    let a = open(a, "a-format").map_err(|failed| failed.exit(CANNOT_OPEN))?;
    let b = open(b, "b-format").map_err(|failed| failed.exit(CANNOT_OPEN))?;
    let progress = Printer::new(parsed.flag("progress"));
    let quiet = parsed.flag("quiet");
    let (text, exit) = verdict(&a, &b, parsed.flag("strict"))?;
    progress.complete();
    if !quiet {
        print(&text)?;
    }
    progress.end_line();
    Ok(exit)
}

/// What is printed, and the exit code.
fn verdict(a: &Image, b: &Image, strict: bool) -> Result<(String, u8), Failed> {
    let same_size = a.virtual_size() == b.virtual_size();
    if strict && !same_size {
        return Ok(("Strict mode: Image size mismatch!\n".into(), DIFFERENT));
    }
    let cannot_read = |error: Error| Failed::new(describe(&error, "")).exit(CANNOT_READ);
    let other_state = if strict { map::first_other_state(a, b).map_err(cannot_read)? } else { None };
    let common = a.virtual_size().min(b.virtual_size());
    // What differs before it is told instead.
    let verdict = compare_range(a, b, 0..other_state.unwrap_or(u64::MAX)).map_err(cannot_read)?;
    if let (Comparison::Identical, Some(offset)) = (verdict, other_state) {
        return Ok((format!("Strict mode: Offset {offset} block status mismatch!\n"), DIFFERENT));
    }
    // The part that both have is compared first.
    let warning = match verdict {
        Comparison::Different { offset } if offset < common => "",
        _ if same_size => "",
        _ => "Warning: Image size mismatch!\n",
    };
    Ok(match verdict {
        Comparison::Identical => (format!("{warning}Images are identical.\n"), 0),
        // qemu-img compares whole sectors.
        Comparison::Different { offset } => {
            let offset = offset - offset % SECTOR;
            (format!("{warning}Content mismatch at offset {offset}!\n"), DIFFERENT)
        }
    })
}
