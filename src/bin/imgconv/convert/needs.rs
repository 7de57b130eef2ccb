//! What the sandbox of a conversion leaves open.

use std::path::{Path, PathBuf};

use super::Args;
use crate::args::{self, Endpoint};
use crate::location;
use crate::sandbox::Needs;

impl Args {
    /// Files and networks that the command line names.
    pub fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        for source in self.sources() {
            match source {
                Endpoint::File(path) => self.references.add_needs(&mut needs, self.image_opts, path),
                Endpoint::Stream => {
                    self.references.add_needs_of_options(&mut needs);
                    // A file is opened again to bypass the page cache.
                    needs.read("/dev/stdin");
                }
            }
        }
        self.header.add_needs(&mut needs);
        let directory = match self.written_path() {
            Some(target) if location::is_file(&target) => {
                needs.replace(&target);
                target.with_file_name("")
            }
            Some(_) => {
                needs.network();
                PathBuf::new()
            }
            None => PathBuf::new(),
        };
        if self.no_create && self.references.allows_any() {
            // Data files of the existing image.
            needs.change_anything();
        }
        let options = args::format_options(&self.options);
        if let Some(data_file) = options.value("data_file").map(Path::new) {
            needs.replace(data_file);
            needs.replace(&directory.join(data_file));
        }
        if let Some(base) = self.backing.path(&options) {
            self.references.add_needs(&mut needs, false, &directory.join(base));
        }
        needs
    }

    fn written_path(&self) -> Option<PathBuf> {
        match self.target() {
            Endpoint::Stream => None,
            // A list that does not parse is reported when it is used.
            Endpoint::File(list) if self.target_image_opts => args::plain_image(list).ok().map(|image| image.path),
            Endpoint::File(path) => Some(path.clone()),
        }
    }
}
