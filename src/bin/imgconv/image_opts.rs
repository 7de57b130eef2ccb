//! Images given by options, as `--image-opts` and `--target-image-opts` of qemu-img take them.

use std::path::PathBuf;

use diskimage::{Format, Options};

use crate::failure::Failure;

/// `driver=FMT,file.filename=PATH,header.filename=PATH,key-secret=ID`
#[derive(Debug, PartialEq, Eq)]
pub struct ImageOpts {
    pub format: Option<Format>,
    pub path: PathBuf,
    /// The file of a detached header.
    pub header: Option<PathBuf>,
    /// ID of the secret.
    pub secret: Option<String>,
}

impl ImageOpts {
    /// Parses the argument in place of a file name.
    pub fn parse(text: &str) -> Result<ImageOpts, Failure> {
        let invalid = |problem: String| Failure::usage(format!("image options: {problem}"));
        let mut options = Options::new();
        options.add_list(text);
        let mut opts = ImageOpts { format: None, path: PathBuf::new(), header: None, secret: None };
        for name in options.names() {
            let value = options.value(name).unwrap_or_default();
            match (name, value) {
                ("driver", name) => opts.format = Some(Format::by_name(name)?),
                ("file.filename", path) => opts.path = path.into(),
                ("header.filename", path) => opts.header = Some(path.into()),
                ("key-secret" | "encrypt.key-secret", id) => opts.secret = Some(id.to_owned()),
                ("encrypt.format", "luks" | "aes") | ("file.driver" | "header.driver", "file" | "host_device") => {}
                ("encrypt.format" | "file.driver" | "header.driver", _) => {
                    return Err(invalid(format!("{name}={value} is not supported")));
                }
                _ => {
                    let known = "driver, file.filename, file.driver, header.filename, header.driver, key-secret, \
                                 encrypt.format, encrypt.key-secret";
                    return Err(invalid(format!("unknown option {name:?}; supported: {known}")));
                }
            }
        }
        match opts.path.as_os_str().is_empty() {
            true => Err(invalid("file.filename is missing".into())),
            false => Ok(opts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        let opts = ImageOpts::parse("driver=luks,file.filename=a,,b.img,key-secret=sec0").unwrap();
        let (format, secret) = (Some(Format::LUKS), Some("sec0".to_owned()));
        assert_eq!(opts, ImageOpts { format, path: "a,b.img".into(), header: None, secret: secret.clone() });
        let opts = ImageOpts::parse("driver=luks,header.driver=file,header.filename=h,file.filename=x").unwrap();
        assert_eq!(opts, ImageOpts { format, path: "x".into(), header: Some("h".into()), secret: None });
        let opts =
            ImageOpts::parse("file.driver=file,file.filename=x,encrypt.format=luks,encrypt.key-secret=sec0").unwrap();
        assert_eq!(opts, ImageOpts { format: None, path: "x".into(), header: None, secret });
        for text in [
            "",
            "x.img",
            "driver=luks",
            "driver=nope,file.filename=x",
            "file.filename=x,size=1",
            "file.filename=x,file.driver=nbd",
            "file.filename=x,header.driver=nbd,header.filename=h",
        ] {
            assert!(ImageOpts::parse(text).is_err(), "{text}");
        }
    }
}
