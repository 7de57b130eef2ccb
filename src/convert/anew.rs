//! Guest data into an existing image of a format that drivers write from the start only: the file is written anew, with the
//! parameters that the image has.

use std::path::{Path, PathBuf};

use super::output::Output;
use super::{Backing, Converter, Report};
use crate::error::{Error, Result};
use crate::format::shared::table::Field;
use crate::image::{Image, Inspection, OpenOptions, SourceFile};
use crate::info::{ImageInfo, Value};
use crate::io::{FileStatus, directory_of};
use crate::options::Options;
use crate::spool::{self, Spool};

impl Converter {
    /// The converter that writes the image at `target` anew, and the size of its disk in bytes, for `size` bytes of guest data.
    pub(super) fn anew(&self, target: &Path, size: u64) -> Result<(Converter, u64)> {
        let inspection = OpenOptions::new().format(self.format).inspect(target)?;
        self.anew_of(&inspection, target, size).map_err(|e| e.in_file(target))
    }

    fn anew_of(&self, Inspection { info, .. }: &Inspection, target: &Path, size: u64) -> Result<(Converter, u64)> {
        let unsupported =
            |what: &str| Err(Error::unsupported(self.format.name(), format!("writing into an existing image {what}")));
        if self.options.names().next().is_some() {
            return Err(Error::Usage("the options are those of a new image".into()));
        }
        if !info.snapshots.is_empty() || info.snapshots_unreadable || info.property("bitmaps").is_some() {
            return unsupported("with snapshots or bitmaps");
        }
        if info.encryption.is_some() {
            return unsupported("that is encrypted");
        }
        if !info.files.is_empty() {
            return unsupported("of several files");
        }
        Field { format: self.format.name(), name: "size of the source", at: 0 }.at_most(size, info.virtual_size)?;
        if info.virtual_size > size && (info.backing.is_some() || has_data(target, self, size)?) {
            return unsupported("with data beyond the end of the source");
        }
        let backing = match (&self.backing, &info.backing) {
            // Without one, all data is stored.
            (_, None) => None,
            (Some(backing), Some(stated)) => {
                let is_given = |path: PathBuf| {
                    let identity = FileStatus::from_path(&path).ok().flatten().map(|status| status.identity);
                    let given = backing.image.files().next().and_then(SourceFile::identity);
                    identity.is_some() && identity == given
                };
                if !stated.path_from(target).is_some_and(is_given) {
                    let problem = "the backing file given is not that of the existing image";
                    return Err(Error::Usage(problem.into()));
                }
                Some(Backing { name: stated.name.clone(), ..backing.clone() })
            }
            (None, Some(_)) => return unsupported("that is an overlay, without its backing file"),
        };
        let options = self.options_of(info);
        Ok((Converter { options, backing, existing: false, in_place: true, ..self.clone() }, info.virtual_size))
    }

    /// Writes the image anew: complete in a temporary file, so that what is wrong with the source does not harm the existing image, and
    /// then into its file.
    pub(super) fn rewrite(&self, target: &Path, source: Option<&Image>, size: u64) -> Result<Report> {
        self.check_has_path()?;
        let output = Output::create(target, self.rules(self.in_use(source)))?;
        // Beside the image, whose file system has the space for it, unless the caller sets another directory.
        let spooled = match &self.temporary_directory {
            Some(directory) => Spool::create(directory)?,
            None => Spool::create(directory_of(target)).or_else(|_| Spool::create(&spool::default_directory()))?,
        };
        let report = self.write_by_copy(source, size, &*output.file(), spooled)?;
        output.commit()?;
        Ok(report)
    }

    /// The options that create an image like this one: the properties of the same names.
    fn options_of(&self, info: &ImageInfo) -> Options {
        let mut options = Options::new();
        for option in self.format.options() {
            let property = info.property(&option.name.replace('_', "-"));
            let value = match (option.name, property, info.block_size) {
                ("cluster_size" | "block_size", _, Some(size)) => size.to_string(),
                ("static", ..) => match info.property("type").map(text) {
                    Some(kind) if kind == "static" => "on".to_owned(),
                    _ => continue,
                },
                // VMDK: the property is the number, the option its digits in the descriptor.
                ("cid", Some(Value::Number(cid)), _) => format!("{cid:x}"),
                ("hwversion", ..) => match info.property("hardware-version") {
                    Some(version) => text(version),
                    None => continue,
                },
                ("subformat", None, _) => match info.property("create-type") {
                    Some(kind) => text(kind),
                    None => continue,
                },
                (_, Some(value), _) => text(value),
                (_, None, _) => continue,
            };
            options.set(option.name, value);
        }
        options
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Bool(on) => (if *on { "on" } else { "off" }).to_owned(),
        Value::Number(number) => number.to_string(),
        Value::Text(text) => text.to_text().into_owned(),
        _ => String::new(),
    }
}

/// Whether there is data in the existing image from `offset` on.
fn has_data(target: &Path, converter: &Converter, offset: u64) -> Result<bool> {
    let image: Image = OpenOptions::new().format(converter.format).open(target)?;
    for span in image.spans(offset..u64::MAX) {
        if span?.is_data() {
            return Ok(true);
        }
    }
    Ok(false)
}
