//! The backing file of a new image, from the context or the options `backing_file` and `backing_fmt`.

use crate::driver::CreateContext;
use crate::error::{Error, Result};
use crate::info::FileReference;
use crate::name::Name;
use crate::options::wrong;

/// The backing file of a new image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backing {
    pub file: Name,
    pub format: Name,
}

/// Returns name and format of the backing file: those of the context, or else those of the options. A name has at most `max_name`
/// bytes.
pub(crate) fn backing_file(cx: &CreateContext<'_>, format: &'static str, max_name: u64) -> Result<Option<Backing>> {
    let invalid = |name: &str, problem: String| -> Error { wrong(format, name, problem) };
    let option = |name| cx.options.value(name).map(Name::from);
    let (file, backing_format) = (option("backing_file"), option("backing_fmt"));
    let backing = match (&cx.backing, file, backing_format) {
        (Some(given), _, _) => Backing { file: given.name.clone(), format: Name::from(given.info.format) },
        (None, Some(file), Some(format)) => Backing { file, format },
        (None, Some(_), None) => {
            let problem = "requires backing_fmt, as in backing_fmt=raw; detecting the format is unsafe";
            return Err(invalid("backing_file", problem.into()));
        }
        (None, None, Some(_)) => return Err(invalid("backing_fmt", "requires backing_file".into())),
        (None, None, None) => return Ok(None),
    };
    let name_len = backing.file.as_bytes().len();
    if name_len == 0 || name_len as u64 > max_name {
        return Err(invalid("backing_file", format!("invalid name of {name_len} bytes: expected 1 to {max_name}")));
    }
    // A description cannot be meant as a file name.
    let is_description = backing.file.as_bytes().starts_with(b"json:");
    if !is_description && !FileReference::new("backing file", backing.file.clone(), None).is_file_name() {
        let problem = format!("'{0}' is read as a URL, './{0}' is a file", backing.file);
        return Err(invalid("backing_file", problem));
    }
    Ok(Some(backing))
}
