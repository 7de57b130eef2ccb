//! `imgconv inspect`

use std::fs;
use std::io::{self, Read};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use diskimage::inspect::{Judgement, Policy, Verdict};
use diskimage::{Error, Format, OpenOptions};
use serde_json::{Map, Value};

use crate::args::{self, Endpoint, Output, PackageArgs, ShareArgs};
use crate::failure::{Failure, Outcome};
use crate::location::{self, Location};
use crate::output::{self, Style, human_size, printable};
use crate::sandbox::Needs;
use crate::secrets::SecretArgs;
use crate::signals::Interrupt;
use crate::streams;

/// The subcommand as it is typed.
pub const NAME: &str = "inspect";

/// Judge whether an untrusted image can be accepted
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// What is accepted: default, glance, nova, strict, or a TOML file
    #[arg(long, value_name = "POLICY", default_value = "default")]
    policy: String,

    /// Format of FILE [default: detected]
    #[arg(short = 'f', long, value_name = "FMT", value_parser = args::format)]
    format: Option<Format>,

    #[command(flatten)]
    share: ShareArgs,

    #[command(flatten)]
    secrets: SecretArgs,

    #[command(flatten)]
    package: PackageArgs,

    #[command(flatten)]
    pub output: Output,

    /// Image file, its http or https URL, or - for standard input
    #[arg(value_parser = args::endpoint())]
    file: Endpoint,
}

const AFTER_HELP: &str = "\
No other file is opened: one that the image names is a reason to refuse it. The policies:
  default  every disk that can be read without another file
  glance   raw, qcow2, vmdk (monolithicSparse, streamOptimized), vpc, vhdx, vdi and luks, not
           compressed and not in a package
  nova     as glance, not encrypted
  strict   as nova, closed, without snapshots, leaks and warnings, no kernel or ramdisk, at
           most 64T; all data is read

Keys of a policy file, all optional, the defaults are those of the policy default:
  like = \"glance\"                        begin with the keys of this policy
  formats = [\"raw\", \"qcow2\"]           accepted formats; vmdk-subformats likewise
  content = [\"disk\", \"file-system\"]    what a raw disk may be, of these and optical-disc,
                                         kernel, ramdisk; disk is also what is unknown
  packages, compressed, encrypted, unclosed, snapshots, leaks, warnings = true or false
                                         whether such images are accepted
  external-files = true or false         whether they may name other files, which are not
                                         examined, but listed in the JSON [default: false]
  read-data = true or false              whether all data is read and decoded [default: false]
  virtual-size, file-size = \"2T\"         largest sizes
  expansion = 1000                       largest ratio of virtual size to file size
  limits = { decompressed = \"1T\" }      limits by the names of the options --max-NAME; they
                                         count if they are lower than those

Exit codes:
  0   safe: the policy accepts the image
  1   unsafe: the policy refuses it
  2   unknown: the image could not be examined to the end; or a mistake in the command line
      or in the policy

A raw disk has no format: any file that is not known to be something else, such as a picture, is
one. Leave raw out of the formats of a policy if raw disks are not wanted. Do not state the format
that an uploader claims (-f): compare it with that of the verdict. With -f raw, every file but a
text file is safe, and only for programs that read it as raw too.

A small compressed file can take minutes to be decoded. It is refused before that if compressed
is false; or else set limits = { decompressed = ... }.

Examples:
  imgconv inspect upload.qcow2
  imgconv inspect --policy strict --output json upload.vmdk
  curl -s https://example.com/disk.qcow2 | imgconv inspect --policy policy.toml -";

/// Most bytes of a policy file that are read.
const LARGEST_POLICY: u64 = 1 << 20;

/// Also of any other failure: nothing is known of the image.
pub const UNKNOWN: u8 = 2;

impl Args {
    /// What judging the image needs.
    pub fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        self.share.add_needs(&mut needs);
        self.secrets.add_needs(&mut needs);
        needs.read(&self.policy);
        match &self.file {
            Endpoint::File(path) if location::is_file(path) => needs.read(path),
            Endpoint::File(_) => needs.network(),
            Endpoint::Stream => {}
        }
        needs
    }

    pub fn run(&self) -> Outcome {
        self.judge().map_err(|failure| failure.exit(UNKNOWN))
    }

    fn judge(&self) -> Outcome {
        let policy = self.policy()?;
        let options = self.package.select(self.secrets.add_to(self.share.options(self.format), None)?);
        let judgement = match &self.file {
            Endpoint::Stream => judge_stream(&policy, &options)?,
            Endpoint::File(path) => match Location::find(path)? {
                Location::File(path) => policy.judge(&options, path),
                Location::Nbd(client) => policy.judge_source(&options, client),
                Location::Url(url) => policy.judge_url(&options, &url),
            },
        };
        match self.output.style {
            Style::Json => output::print_json(&self.json(&judgement))?,
            Style::Human => output::print(&human(&judgement))?,
        }
        Ok(ExitCode::from(match judgement.verdict {
            Verdict::Safe => 0,
            Verdict::Unsafe => 1,
            Verdict::Unknown => UNKNOWN,
        }))
    }

    /// The policy of this name, or else in the file of this name.
    fn policy(&self) -> Result<Policy, Failure> {
        if Policy::names().any(|name| name == self.policy) {
            return Ok(Policy::built_in(&self.policy)?);
        }
        let read = || -> io::Result<String> {
            let mut text = String::new();
            fs::File::open(&self.policy)?.take(LARGEST_POLICY).read_to_string(&mut text).map(|_| text)
        };
        let text = read().map_err(|error| {
            let names = Policy::names().collect::<Vec<_>>().join(", ");
            let file = printable(&self.policy);
            Failure::usage(format!("{file}: neither a policy file that can be read ({error}) nor one of {names}"))
        })?;
        Policy::parse(&text).map_err(|error| Failure::usage(format!("{}: {error}", printable(&self.policy))))
    }

    fn json(&self, judgement: &Judgement) -> Value {
        let mut object = match serde_json::to_value(judgement) {
            Ok(Value::Object(object)) => object,
            _ => Map::new(),
        };
        if let Endpoint::File(path) = &self.file {
            object.shift_insert(0, "filename".into(), location::shown(path).to_string_lossy().into());
        }
        Value::Object(object)
    }
}

/// A stream is copied to a temporary file, unless it is a file.
fn judge_stream(policy: &Policy, options: &OpenOptions) -> Result<Judgement, Failure> {
    if let Some(file) = streams::input_file() {
        return Ok(policy.judge_source(options, Arc::new(file)));
    }
    let interrupt = Interrupt::register()?;
    let judgement = policy.judge_stream(options, streams::input(interrupt.flag())?);
    match interrupt.flag().load(Ordering::Relaxed) {
        true => Err(interrupt.failure(Error::Cancelled)),
        false => Ok(judgement),
    }
}

/// The verdict, and a line for each finding.
fn human(judgement: &Judgement) -> String {
    let mut text = judgement.verdict.as_str().to_owned();
    if let Some(format) = judgement.format {
        let size = judgement.virtual_size.map(|size| format!(", {}", human_size(size))).unwrap_or_default();
        text.push_str(&format!(": {format}{size}"));
    }
    text.push('\n');
    for finding in &judgement.findings {
        let disk = finding.disk.as_ref().map(|disk| format!("{disk}: ")).unwrap_or_default();
        let unknown = if finding.verdict == Verdict::Unknown { " (cannot tell)" } else { "" };
        // The message of a field has its rule.
        let rule = finding.rule.as_ref().filter(|_| finding.field.is_none());
        let rule = rule.map(|rule| format!("; expected {}", printable(rule))).unwrap_or_default();
        text.push_str(&format!("  {}: {disk}{}{rule}{unknown}\n", finding.check, printable(&finding.message)));
    }
    text
}
