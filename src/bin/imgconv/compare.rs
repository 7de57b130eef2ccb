//! `imgconv compare`

use std::path::PathBuf;
use std::process::ExitCode;

use diskimage::{Comparison, Format};
use serde_json::{Value, json};

use crate::args::{self, Output, ReferenceArgs};
use crate::failure::{Failure, Outcome};
use crate::guest;
use crate::location::Location;
use crate::output::{self, Style};
use crate::sandbox::Needs;

/// Compare the guest data of two images
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Format of A [default: detected]
    #[arg(short = 'f', long = "a-format", value_name = "FMT", value_parser = args::format)]
    a_format: Option<Format>,

    /// Format of B [default: detected]
    #[arg(short = 'F', long = "b-format", value_name = "FMT", value_parser = args::format)]
    b_format: Option<Format>,

    /// A and B are lists of options, as in qemu-img:
    /// driver=FMT,file.filename=PATH,header.filename=PATH,key-secret=ID
    #[arg(long, verbatim_doc_comment)]
    image_opts: bool,

    /// Disk of A, if that is a package (OVA, OVF, tar): its number from 1 on,
    /// the name of its file, or its identifier
    #[arg(long = "a-disk", visible_alias = "disk", value_name = "DISK", verbatim_doc_comment)]
    a_disk: Option<String>,

    /// Disk of B, if that is a package
    #[arg(long = "b-disk", value_name = "DISK")]
    b_disk: Option<String>,

    /// Treat a size mismatch as a difference
    #[arg(short = 's', long)]
    strict: bool,

    /// Ignore what the file systems of each image do not use, as far as they
    /// are clean: it counts as zeros. Deleted files make no difference then
    #[arg(long, verbatim_doc_comment)]
    guest: bool,

    /// Print errors only; the exit code is the result
    #[arg(short = 'q', long)]
    quiet: bool,

    #[command(flatten)]
    references: ReferenceArgs,

    #[command(flatten)]
    pub output: Output,

    /// First image
    #[arg(value_name = "A", value_parser = args::file())]
    a: PathBuf,

    /// Second image
    #[arg(value_name = "B", value_parser = args::file())]
    b: PathBuf,
}

const AFTER_HELP: &str = "\
Exit codes: 0 the images are identical, 1 they differ, 2 the comparison failed.
Without --strict, disks of different sizes are identical if the rest of the longer one is
zeros; the difference in size is still reported.";

/// Name of this subcommand. Its exit code 1 means a difference, not a failure.
pub const NAME: &str = "compare";
const DIFFERENT: u8 = 1;
/// Exit code of every failure.
pub const FAILED: u8 = 2;

/// Result of a comparison.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    difference: Option<Difference>,
    /// Virtual sizes in bytes.
    sizes: [u64; 2],
    /// Whether free space of file systems was left out.
    is_of_guest: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Difference {
    Size,
    Content { offset: u64 },
}

impl Args {
    /// What reading both images needs.
    pub fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        for file in [&self.a, &self.b] {
            self.references.add_needs(&mut needs, self.image_opts, file);
        }
        needs
    }

    pub fn run(&self) -> Outcome {
        self.verdict().and_then(|verdict| self.print(&verdict)).map_err(|failure| failure.exit(FAILED))
    }

    fn verdict(&self) -> Result<Verdict, Failure> {
        let open = |format, file, disk: &Option<String>| {
            let (options, file) = self.references.open(self.image_opts, format, file)?;
            Ok::<_, Failure>(Location::find(file)?.open(&args::select_disk(options, disk.as_deref()))?)
        };
        let mut a = open(self.a_format, &self.a, &self.a_disk)?;
        let b = open(self.b_format, &self.b, &self.b_disk);
        let mut b = b.map_err(|failure| failure.format_option("-F").disk_option("--b-disk"))?;
        if self.guest {
            for (image, name) in [(&mut a, &self.a), (&mut b, &self.b)] {
                let volumes = image.drop_free_space()?;
                if !self.quiet {
                    guest::note_kept(volumes, &name.to_string_lossy());
                }
            }
        }
        let sizes = [a.virtual_size(), b.virtual_size()];
        let difference = match self.strict && sizes[0] != sizes[1] {
            true => Some(Difference::Size),
            false => match diskimage::compare(&a, &b)? {
                Comparison::Identical => None,
                Comparison::Different { offset } => Some(Difference::Content { offset }),
            },
        };
        Ok(Verdict { difference, sizes, is_of_guest: self.guest })
    }

    fn print(&self, verdict: &Verdict) -> Outcome {
        match self.output.style {
            Style::Json => output::print_json(&verdict.json())?,
            Style::Human if !self.quiet => output::print(&verdict.text())?,
            Style::Human => {}
        }
        Ok(if verdict.difference.is_none() { ExitCode::SUCCESS } else { ExitCode::from(DIFFERENT) })
    }
}

impl Verdict {
    fn same_size(&self) -> bool {
        self.sizes[0] == self.sizes[1]
    }

    /// The lines of qemu-img, where it could make the same comparison.
    fn text(&self) -> String {
        let verdict = match &self.difference {
            Some(Difference::Size) => return "Strict mode: Image size mismatch!\n".to_owned(),
            Some(Difference::Content { offset }) => format!("Content mismatch at offset {offset}!\n"),
            None if self.is_of_guest => {
                "Images are identical, but for what their file systems do not use.\n".to_owned()
            }
            None => "Images are identical.\n".to_owned(),
        };
        if self.same_size() { verdict } else { format!("Warning: Image size mismatch!\n{verdict}") }
    }

    fn json(&self) -> Value {
        let mut value = match &self.difference {
            None => json!({ "identical": true }),
            Some(Difference::Size) => json!({ "identical": false, "difference": "size" }),
            Some(Difference::Content { offset }) => {
                json!({ "identical": false, "difference": "content", "offset": offset })
            }
        };
        if !self.same_size() {
            value["virtual-sizes"] = json!(self.sizes);
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_sizes_are_told_whatever_the_content_is() {
        let told = |difference, sizes| {
            let verdict = Verdict { difference, sizes, is_of_guest: false };
            (verdict.text(), verdict.json())
        };
        assert_eq!(told(None, [1, 1]), ("Images are identical.\n".into(), json!({ "identical": true })));
        assert_eq!(
            told(None, [1, 2]),
            (
                "Warning: Image size mismatch!\nImages are identical.\n".into(),
                json!({ "identical": true, "virtual-sizes": [1, 2] })
            )
        );
        let (text, json) = told(Some(Difference::Content { offset: 7 }), [1, 2]);
        assert_eq!(text, "Warning: Image size mismatch!\nContent mismatch at offset 7!\n");
        assert_eq!(json, json!({ "identical": false, "difference": "content", "offset": 7, "virtual-sizes": [1, 2] }));
        let (text, json) = told(Some(Difference::Size), [1, 2]);
        assert_eq!(text, "Strict mode: Image size mismatch!\n");
        assert_eq!(json, json!({ "identical": false, "difference": "size", "virtual-sizes": [1, 2] }));
    }
}
