//! Secrets of encrypted images: `--object` of qemu-img, and `--secret-file`.

use std::cell::OnceCell;
use std::convert::Infallible;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use diskimage::{Error, OpenOptions, Options, Secret};

use crate::failure::Failure;
use crate::output;
use crate::sandbox::Needs;

/// Options for secrets.
#[derive(Clone, Debug, clap::Args)]
pub struct SecretArgs {
    /// Secret of an encrypted image, as in qemu-img: secret,id=ID,file=PATH
    /// or secret,id=ID,data=TEXT, with format=base64 if it is encoded; may
    /// be given several times
    #[arg(long = "object", value_name = "SECRET", value_parser = text, verbatim_doc_comment)]
    objects: Vec<Text>,

    /// File with a secret of an encrypted image: all of its bytes, a line
    /// feed at the end too; may be given several times
    #[arg(long = "secret-file", value_name = "PATH", verbatim_doc_comment)]
    files: Vec<PathBuf>,

    /// Whether nothing is said about secrets on the command line.
    #[arg(skip)]
    quiet: bool,

    #[arg(skip)]
    loaded: OnceCell<Vec<Named>>,
}

/// The beginning of an object with certificates.
const CERTIFICATES: &str = "tls-creds-x509,";

/// Text that may contain a secret, and is not printed.
#[derive(Clone, Debug)]
struct Text(Secret);

/// Never fails: clap would print the argument.
fn text(argument: &str) -> Result<Text, Infallible> {
    Ok(Text(Secret::new(argument)))
}

/// A secret with the ID that options refer to.
#[derive(Clone, Debug)]
struct Named {
    id: Option<String>,
    secret: Secret,
}

impl SecretArgs {
    /// The secrets of these descriptions, as for `--object`.
    pub fn of_objects(objects: impl Iterator<Item = String>) -> SecretArgs {
        let objects = objects.map(|object| Text(Secret::new(object))).collect();
        SecretArgs { objects, files: Vec::new(), quiet: true, loaded: OnceCell::new() }
    }

    /// The directory of the certificates called `id`, which are an object of the type tls-creds-x509.
    pub fn certificates(&self, id: &str) -> Result<PathBuf, Failure> {
        for Text(object) in &self.objects {
            let text = String::from_utf8_lossy(object.as_bytes()).into_owned();
            let Some(rest) = text.strip_prefix(CERTIFICATES) else { continue };
            let mut options = Options::new();
            options.add_list(rest);
            if options.value("id") != Some(id) {
                continue;
            }
            return match (options.value("endpoint"), options.value("dir")) {
                (Some("client"), Some(directory)) => Ok(directory.into()),
                _ => Err(Failure::usage(format!(
                    "--object: certificates {id}: expected endpoint=client and dir=DIRECTORY"
                ))),
            };
        }
        Err(Failure::usage(format!("No TLS credentials with id '{id}'")))
    }

    /// Adds all secrets to the options for opening an image, the one called `first` before the others.
    pub fn add_to(&self, options: OpenOptions, first: Option<&str>) -> Result<OpenOptions, Failure> {
        let first = first.map(|id| self.named(id)).transpose()?;
        let all = first.into_iter().chain(self.all()?.iter().map(|named| &named.secret));
        Ok(all.fold(options, |options, secret| options.secret(secret.clone())))
    }

    /// Whether there is a secret called `id`, or one that cannot be read.
    pub fn has(&self, id: &str) -> bool {
        self.all().map_or(true, |all| all.iter().any(|named| named.id.as_deref() == Some(id)))
    }

    /// Reads the secrets now, before the sandbox is closed. Adds what is needed to report why they cannot be read.
    pub fn add_needs(&self, needs: &mut Needs) {
        if self.all().is_err() {
            needs.read_anything();
        }
    }

    /// Whether there are any.
    pub fn is_given(&self) -> bool {
        !self.objects.is_empty() || !self.files.is_empty()
    }

    /// The secret of a new image: the one called `id`, or else the only one.
    pub fn of_target(&self, id: Option<&str>) -> Result<Option<Secret>, Failure> {
        match (id, self.all()?) {
            (Some(id), _) => self.named(id).cloned().map(Some),
            (None, [only]) => Ok(Some(only.secret.clone())),
            (None, _) => Ok(None),
        }
    }

    fn named(&self, id: &str) -> Result<&Secret, Failure> {
        let found = self.all()?.iter().find(|named| named.id.as_deref() == Some(id));
        found.map(|named| &named.secret).ok_or_else(|| Failure::usage(format!("no secret with the ID {id:?} is given")))
    }

    /// The secrets, which are read once: a file can be a pipe.
    fn all(&self) -> Result<&[Named], Failure> {
        if let Some(loaded) = self.loaded.get() {
            return Ok(loaded);
        }
        let mut all: Vec<Named> = Vec::new();
        for Text(object) in
            self.objects.iter().filter(|Text(object)| !object.as_bytes().starts_with(CERTIFICATES.as_bytes()))
        {
            let named = Named::parse(&String::from_utf8_lossy(object.as_bytes()), self.quiet)?;
            if all.iter().any(|other| other.id == named.id) {
                return Err(Failure::usage(format!(
                    "--object: the ID {:?} is given twice",
                    named.id.unwrap_or_default()
                )));
            }
            all.push(named);
        }
        for file in &self.files {
            all.push(Named { id: None, secret: read(file)? });
        }
        Ok(self.loaded.get_or_init(|| all))
    }
}

impl Named {
    /// Parses the argument of `--object`. No message has the secret.
    fn parse(object: &str, quiet: bool) -> Result<Named, Failure> {
        let invalid = |problem: String| Failure::usage(format!("--object: {problem}"));
        let mut options = Options::new();
        let rest = match object.strip_prefix("secret,") {
            Some(rest) => rest,
            None => return Err(invalid("expected secret,id=ID,file=PATH or secret,id=ID,data=TEXT".into())),
        };
        options.add_list(rest);
        if let Some(other) = options.names().find(|name| !["id", "file", "data", "format"].contains(name)) {
            // A text with a comma that is not doubled is cut off here, and is not shown.
            let known = if ["keyid", "iv"].contains(&other) { other } else { "this property" };
            return Err(invalid(format!("{known} is not supported: expected id, file or data, and format")));
        }
        let Some(id) = options.value("id").map(str::to_owned) else {
            return Err(invalid("the property id is missing".into()));
        };
        let secret = match (options.value("file"), options.value("data")) {
            (Some(file), None) => read(Path::new(file))?,
            (None, Some(data)) => {
                if !quiet {
                    output::note(&format!(
                        "the secret {id} is on the command line, where other users of this machine can read it; use file="
                    ));
                }
                Secret::new(data)
            }
            _ => return Err(invalid(format!("secret {id}: expected either file or data"))),
        };
        let secret = match options.value("format") {
            None | Some("raw") => secret,
            Some("base64") => {
                let text = std::str::from_utf8(secret.as_bytes()).unwrap_or("?");
                Secret::from_base64(text).map_err(|_| invalid(format!("secret {id}: not valid base64")))?
            }
            Some(_) => return Err(invalid(format!("secret {id}: the format must be raw or base64"))),
        };
        Ok(Named { id: Some(id), secret })
    }
}

fn read(file: &Path) -> Result<Secret, Failure> {
    // As much as cryptsetup takes.
    const MOST: u64 = 8 << 20;
    let mut bytes = Vec::new();
    fs::File::open(file)
        .and_then(|open| open.take(MOST + 1).read_to_end(&mut bytes))
        .map_err(Error::io("reading the secret", None))
        .map_err(|error| error.in_file(file))?;
    if bytes.len() as u64 > MOST {
        return Err(Failure::usage(format!("{}: the file of the secret is larger than 8 MiB", file.display())));
    }
    if bytes.is_empty() {
        return Err(Failure::usage(format!("{}: the file of the secret is empty", file.display())));
    }
    Ok(Secret::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(object: &str) -> Result<(Option<String>, Secret), String> {
        Named::parse(object, true).map(|named| (named.id, named.secret)).map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn objects() {
        let parsed = |secret: &[u8]| Ok((Some("s".to_owned()), Secret::new(secret)));
        assert_eq!(parse("secret,id=s,data=a,,b=c"), parsed(b"a,b=c"));
        assert_eq!(parse("secret,id=s,data=MTIz,format=base64"), parsed(b"123"));
        assert_eq!(parse("secret,format=raw,id=s,data=MTIz"), parsed(b"MTIz"));
        for object in [
            "secret",
            "tls-creds,id=s",
            "secret,data=hunter2",
            "secret,id=s",
            "secret,id=s,data=hunter2,file=x",
            "secret,id=s,data=a,hunter2",
            "secret,id=s,data=hunter2,format=base64",
            "secret,id=s,data=hunter2,format=hex",
            "secret,id=s,data=hunter2,keyid=k",
        ] {
            let error = parse(object).unwrap_err();
            assert!(error.contains("--object") && !error.contains("hunter2"), "{error}");
        }
    }
}
