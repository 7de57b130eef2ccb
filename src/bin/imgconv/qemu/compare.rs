//! `qemu-img compare`

use diskimage::{Comparison, Image};

use super::getopt::Parsed;
use super::message::{Failed, describe};
use super::progress::Printer;
use super::source::Sources;
use super::{Outcome, print};

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
    if strict && let Some(offset) = allocation_mismatch(a, b)? {
        return Ok((format!("Strict mode: Offset {offset} block status mismatch!\n"), DIFFERENT));
    }
    let common = a.virtual_size().min(b.virtual_size());
    let verdict = diskimage::compare(a, b).map_err(|error| Failed::new(describe(&error, "")).exit(CANNOT_READ))?;
    // The part that both have is compared first.
    let warning = match verdict {
        Comparison::Different { offset } if offset < common => "",
        _ if same_size => "",
        _ => "Warning: Image size mismatch!\n",
    };
    Ok(match verdict {
        Comparison::Identical => (format!("{warning}Images are identical.\n"), 0),
        Comparison::Different { offset } => (format!("{warning}Content mismatch at offset {offset}!\n"), DIFFERENT),
    })
}

/// The first offset at which one image has data, or stated zeros, and the other has nothing.
fn allocation_mismatch(a: &Image, b: &Image) -> Result<Option<u64>, Failed> {
    let mut other = runs(b);
    let mut theirs = other.next().transpose()?;
    for run in runs(a) {
        let mut run = run?;
        while run.len > 0 {
            let Some(their) = theirs else { return Ok(None) };
            if run.state != their.state {
                return Ok(Some(run.start));
            }
            let len = run.len.min(their.len);
            run = run.after(len);
            let rest = their.after(len);
            theirs = if rest.len == 0 { other.next().transpose()? } else { Some(rest) };
        }
    }
    Ok(None)
}

#[derive(Clone, Copy)]
struct Run {
    start: u64,
    len: u64,
    /// Whether it is allocated, reads as zeros, has data.
    state: (bool, bool, bool),
}

impl Run {
    fn after(self, len: u64) -> Run {
        Run { start: self.start + len, len: self.len - len, ..self }
    }
}

fn runs(image: &Image) -> impl Iterator<Item = Result<Run, Failed>> {
    image.spans(0..u64::MAX).map(|span| {
        let span = span.map_err(|error| Failed::new(describe(&error, "")).exit(CANNOT_READ))?;
        let present = !matches!(span.kind, diskimage::driver::ExtentKind::Hole);
        Ok(Run { start: span.offset, len: span.len, state: (present, span.is_zero(), span.is_data()) })
    })
}
