//! Names of images: file names, `PROTOCOL:…`, `json:{…}` and lists of options.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::path::PathBuf;

use diskimage::{Error, Format, Options, nbd, parse_size, remote};

/// What a name stands for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The format, unless it is to be detected.
    pub format: Option<Format>,
    /// Options of the format for reading.
    pub options: Options,
    pub storage: Storage,
    /// The range of the storage that is the image: offset, and length unless it is the rest.
    pub window: Option<(u64, Option<u64>)>,
    /// ID of the secret.
    pub secret: Option<String>,
    /// The file of a detached header.
    pub header: Option<PathBuf>,
    pub force_share: bool,
    /// Whether the image is read without its backing file.
    pub without_backing: bool,
    /// The file in place of the backing file that the image names.
    pub backing: Option<Backing>,
    /// ID of the certificates for a connection with TLS, and the name of the server in its certificate.
    pub tls: Option<(String, Option<String>)>,
    /// A metadata context of an NBD server, which is shown as the map.
    pub context: Option<String>,
}

/// An image of the command line that has options for the rest.
#[derive(Debug, PartialEq, Eq)]
pub struct Plain {
    /// The format, unless it is to be detected.
    pub format: Option<Format>,
    /// Options of the format for reading.
    pub options: Options,
    /// The path, or the name of a remote image.
    pub path: PathBuf,
    /// The file of a detached header.
    pub header: Option<PathBuf>,
    /// ID of the secret.
    pub secret: Option<String>,
    pub force_share: bool,
    /// Whether the image is read without its backing file.
    pub without_backing: bool,
    /// The file in place of the backing file that the image names.
    pub backing: Option<Backing>,
}

/// A backing file that the command line describes.
#[derive(Debug, PartialEq, Eq)]
pub struct Backing {
    pub path: PathBuf,
    /// The format, unless it is the one that the overlay states, or detected.
    pub format: Option<Format>,
}

/// Where the bytes of an image are.
#[derive(Debug, PartialEq, Eq)]
pub enum Storage {
    File(PathBuf),
    /// As many zeros.
    Null(u64),
    /// The URI of an export of an NBD server, or an http or https URL.
    Remote(String),
}

impl Default for Storage {
    fn default() -> Self {
        Storage::File(PathBuf::new())
    }
}

/// Why a name stands for no image.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

impl Invalid {
    fn new(problem: impl Into<String>) -> Invalid {
        Invalid(problem.into())
    }
}

impl From<Error> for Invalid {
    fn from(error: Error) -> Invalid {
        Invalid(error.to_string())
    }
}

/// The size of `null-co` by default, as in qemu-img.
const NULL_SIZE: u64 = 1 << 30;

impl Node {
    /// The image with this name.
    pub fn named(name: &OsStr) -> Result<Node, Invalid> {
        let Some(text) = name.to_str() else { return Ok(Node::file(name)) };
        if let Some(json) = text.strip_prefix("json:") {
            let mut options = Options::new();
            options.add_json(json)?;
            return Node::from_options(options);
        }
        if nbd::is_uri(text) || remote::is_url(text) {
            return Ok(Node { storage: Storage::Remote(text.to_owned()), ..Node::default() });
        }
        let Some((protocol, rest)) = split_protocol(text) else {
            return Ok(Node::file(name));
        };
        match protocol {
            "file" | "host_device" | "host_cdrom" => Ok(Node::file(OsStr::new(&*unambiguous(rest)))),
            "null-co" | "null-aio" => {
                Ok(Node { storage: Storage::Null(NULL_SIZE), format: Some(Format::RAW), ..Node::default() })
            }
            other => Err(Invalid::new(format!("Could not open '{text}': Unknown protocol '{other}'"))),
        }
    }

    /// The image that a list of options describes.
    pub fn from_list(list: &OsStr) -> Result<Node, Invalid> {
        let (mut given, mut options) = (Options::new(), Options::new());
        given.add_list(&list.to_string_lossy());
        let names: Vec<_> = given.names().map(str::to_owned).collect();
        // The last one counts, where one is given twice.
        for name in names {
            if let Some(value) = given.take(&name) {
                options.set(name, value);
            }
        }
        Node::from_options(options)
    }

    /// The image as a file or a remote one.
    pub fn into_plain(self) -> Result<Plain, Invalid> {
        let only_qemu_img = |what: &str| Err(Invalid::new(format!("{what} is known to imgconv qemu-img only")));
        let path = match self.storage {
            Storage::File(path) => path,
            Storage::Remote(uri) => uri.into(),
            Storage::Null(_) => return only_qemu_img("null-co"),
        };
        if self.window.is_some() {
            return only_qemu_img("a part of a file");
        }
        if self.context.is_some() {
            return only_qemu_img("x-dirty-bitmap");
        }
        if self.tls.is_some() {
            return Err(Invalid::new("tls-creds is not supported: name the server by a URI, as in nbds://HOST/EXPORT"));
        }
        let Node { format, options, header, secret, force_share, without_backing, backing, .. } = self;
        Ok(Plain { format, options, path, header, secret, force_share, without_backing, backing })
    }

    /// The name for messages: that of the file, and a URL without secrets.
    pub fn shown(&self, name: &OsStr) -> String {
        match &self.storage {
            Storage::Remote(uri) if remote::is_url(uri) => remote::shown(uri),
            Storage::File(path) if !name.to_string_lossy().starts_with("json:") => path.to_string_lossy().into_owned(),
            _ => name.to_string_lossy().into_owned(),
        }
    }

    /// The path of a file with this name, for what creates files only.
    pub fn new_file(name: &OsStr) -> Result<PathBuf, Invalid> {
        let node = Node::named(name)?;
        let shown = node.shown(name);
        match node.storage {
            Storage::File(path) if !shown.starts_with("json:") => Ok(path),
            _ => Err(Invalid::new(format!("{shown}: imgconv creates files only"))),
        }
    }

    fn file(name: &OsStr) -> Node {
        Node { storage: Storage::File(name.into()), ..Node::default() }
    }

    /// The file that the options `backing.…` describe, if they describe one.
    fn backing(options: &mut Options) -> Result<Option<Backing>, Invalid> {
        let mut described = Options::new();
        let names: Vec<_> = options.names().map(str::to_owned).collect();
        for (name, key) in names.iter().filter_map(|name| Some((name, name.strip_prefix("backing.")?))) {
            described.set(key, options.take(name).unwrap_or_default());
        }
        // Each image of a chain tries all secrets, so that it does not matter which one is for the backing file.
        for key in ["encrypt.key-secret", "encrypt.format", "key-secret"] {
            described.take(key);
        }
        if described.names().next().is_none() {
            return Ok(None);
        }
        if described.names().any(|name| name.starts_with("backing")) {
            return Err(Invalid::new("the backing file of a backing file is not supported by imgconv as an option"));
        }
        let node = Node::from_options(described).map_err(|invalid| Invalid(format!("backing: {invalid}")))?;
        let Node { format, storage: Storage::File(path), window: None, header: None, .. } = node else {
            return Err(Invalid::new("a backing file other than a whole file is not supported by imgconv"));
        };
        match node.options.names().next() {
            Some(option) => {
                Err(Invalid::new(format!("option 'backing.{option}' of an image is not supported by imgconv")))
            }
            None => Ok(Some(Backing { path, format })),
        }
    }

    fn from_options(mut options: Options) -> Result<Node, Invalid> {
        options.remove_runtime_options();
        let mut node = Node::default();
        if let Some(backing) = options.take("backing") {
            if !backing.is_empty() {
                return Err(Invalid::new("option 'backing' of an image is not supported by imgconv, except null"));
            }
            node.without_backing = true;
        }
        node.backing = Node::backing(&mut options)?;
        let mut prefix = String::new();
        loop {
            let mut take = |key: &str| options.take(&format!("{prefix}{key}"));
            let driver = take("driver");
            node.secret = node.secret.or_else(|| take("key-secret").or_else(|| take("encrypt.key-secret")));
            take("encrypt.format");
            node.force_share |= take("force-share").is_some_and(|value| ["on", "true", "yes"].contains(&&*value));
            node.header = node.header.or_else(|| {
                take("header.driver");
                take("header.filename").or_else(|| take("header.file.filename")).map(PathBuf::from)
            });
            match driver.as_deref() {
                Some("null-co" | "null-aio") => {
                    node.storage = Storage::Null(take("size").map_or(Ok(NULL_SIZE), |size| number(&size))?);
                    node.format = node.format.or(Some(Format::RAW));
                    break;
                }
                Some("nbd") => {
                    // The keys of the server, or those of earlier versions.
                    let mut either = |key: &str| take(&format!("server.{key}")).or_else(|| take(key));
                    let (path, host, port) = (either("path"), either("host"), either("port"));
                    take("server.type");
                    let hostname = take("tls-hostname");
                    node.tls = take("tls-creds").map(|id| (id, hostname));
                    node.context = take("x-dirty-bitmap");
                    let export = take("export").unwrap_or_default();
                    let port = port.map_or(Ok(nbd::PORT), |port| port.parse());
                    let port = port.map_err(|_| Invalid::new("Parameter 'port' expects a port number"))?;
                    node.storage = Storage::Remote(match path {
                        Some(path) => nbd::unix_uri(path, &export),
                        None => nbd::tcp_uri(&host.unwrap_or("localhost".into()), port, &export),
                    });
                    node.format = node.format.or(if prefix.is_empty() { Some(Format::RAW) } else { None });
                    break;
                }
                Some("http" | "https") => {
                    let url = take("url").filter(|url| remote::is_url(url));
                    node.storage = Storage::Remote(url.ok_or_else(|| Invalid::new("Parameter 'url' expects a URL"))?);
                    node.format = node.format.or(if prefix.is_empty() { Some(Format::RAW) } else { None });
                    break;
                }
                Some("raw") if node.format.is_some_and(|format| format == Format::RAW) => {
                    return Err(Invalid::new("raw over raw is not supported by imgconv"));
                }
                Some("raw") => {
                    let (offset, size) = (take("offset"), take("size"));
                    if offset.is_some() || size.is_some() {
                        let offset = offset.map_or(Ok(0), |offset| number(&offset))?;
                        node.window = Some((offset, size.map(|size| number(&size)).transpose()?));
                    }
                    node.format = node.format.or(Some(Format::RAW));
                }
                Some("file" | "host_device" | "host_cdrom") => {
                    node.storage = Storage::File(take("filename").unwrap_or_default().into());
                    // A protocol without a format is a raw disk.
                    node.format = node.format.or(if prefix.is_empty() { Some(Format::RAW) } else { None });
                    break;
                }
                Some(name) => {
                    let format = Format::by_name(name).map_err(|_| Invalid::new(format!("Unknown driver '{name}'")))?;
                    if let Some(outer) = node.format {
                        let problem = format!("{} over {name} is not supported by imgconv", outer.name());
                        return Err(Invalid::new(problem));
                    }
                    node.format = Some(format);
                    for option in format.read_options() {
                        if let Some(value) = take(option.name) {
                            node.options.set(option.name, value);
                        }
                    }
                }
                None => {}
            }
            if let Some(name) = take("filename") {
                let inner = Node::named(OsStr::new(&name))?;
                node.storage = inner.storage;
                node.format = node.format.or(inner.format);
                break;
            }
            if prefix.len() > 5 * 8 || !options.names().any(|key| key.starts_with(&format!("{prefix}file."))) {
                return Err(Invalid::new("A block device must be specified for \"file\""));
            }
            prefix.push_str("file.");
        }
        match options.names().next() {
            Some(key) => Err(Invalid::new(format!("option '{key}' of an image is not supported by imgconv"))),
            None => Ok(node),
        }
    }
}

/// The protocol of a name, and the rest. A colon after a slash is a part of a path, as in qemu.
pub fn split_protocol(name: &str) -> Option<(&str, &str)> {
    name.split_once(':').filter(|(before, _)| !before.contains('/'))
}

/// A path in which a colon does not end a protocol, as qemu writes it.
fn unambiguous(path: &str) -> Cow<'_, str> {
    match split_protocol(path) {
        Some(_) => format!("./{path}").into(),
        None => path.into(),
    }
}

fn number(text: &str) -> Result<u64, Invalid> {
    parse_size(text).map_err(|_| Invalid::new(format!("Parameter 'size' expects a size, not '{text}'")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Result<Node, String> {
        Node::named(OsStr::new(name)).map_err(|failed| failed.to_string())
    }

    fn file(path: &str) -> Node {
        Node::file(OsStr::new(path))
    }

    #[test]
    fn names() {
        for (name, path) in [
            ("a", "a"),
            ("./a:b", "./a:b"),
            ("file:a:b", "./a:b"),
            ("file:///a", "///a"),
            ("host_device:/dev/x", "/dev/x"),
        ] {
            assert_eq!(named(name), Ok(file(path)), "{name}");
        }
        assert_eq!(named("null-co://").unwrap().storage, Storage::Null(1 << 30));
        let nbd = "nbd+unix:///e?socket=/s";
        assert_eq!(named(nbd).unwrap().storage, Storage::Remote(nbd.into()));
        let list = Node::from_list(OsStr::new("driver=nbd,server.type=unix,server.path=/s,export=e")).unwrap();
        assert_eq!(list.storage, Storage::Remote(nbd.into()));
        assert!(named("rbd:pool/x").unwrap_err().ends_with("Unknown protocol 'rbd'"));
    }

    #[test]
    fn descriptions() {
        let qcow2 = Node { format: Some(Format::QCOW2), ..file("a") };
        for name in [
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"a"}}"#,
            r#"json:{"driver":"qcow2","file.filename":"a","cache":{"direct":true},"file.locking":"off"}"#,
            "json:{'driver':'qcow2','file':{'filename':'a'}}",
        ] {
            assert_eq!(named(name), Ok(Node { format: Some(Format::QCOW2), ..file("a") }), "{name}");
        }
        let list = |list: &str| Node::from_list(OsStr::new(list)).map_err(|failed| failed.to_string());
        assert_eq!(list("driver=qcow2,file.driver=file,file.filename=a"), Ok(qcow2));
        assert_eq!(list("file.filename=a,,b"), Ok(file("a,b")));
        assert_eq!(
            list("driver=raw,offset=1M,size=512,file.filename=a"),
            Ok(Node { format: Some(Format::RAW), window: Some((1 << 20, Some(512))), ..file("a") })
        );
        assert_eq!(
            list("driver=qcow2,file.driver=raw,file.offset=512,file.file.filename=a"),
            Ok(Node { format: Some(Format::QCOW2), window: Some((512, None)), ..file("a") })
        );
        assert_eq!(
            list("driver=luks,key-secret=s,file.filename=a"),
            Ok(Node { format: Some(Format::LUKS), secret: Some("s".into()), ..file("a") })
        );
        assert_eq!(
            list("driver=qcow2,file.filename=a,encrypt.key-secret=s,backing.encrypt.key-secret=t"),
            Ok(Node { format: Some(Format::QCOW2), secret: Some("s".into()), ..file("a") })
        );
        assert_eq!(
            list(
                "file.filename=a,backing.driver=qcow2,backing.file.filename=b,backing.key-secret=s,backing.cache.direct=on"
            ),
            Ok(Node { backing: Some(Backing { path: "b".into(), format: Some(Format::QCOW2) }), ..file("a") })
        );
        let sized = list("driver=vpc,force_size_calc=chs,file.filename=a").unwrap();
        assert_eq!(sized.options.value("force_size_calc"), Some("chs"));
        assert_eq!(list("driver=null-co,size=4k").unwrap().storage, Storage::Null(4096));
        for (text, reason) in [
            ("driver=qcow2", "must be specified"),
            ("x.img", "must be specified"),
            ("driver=qcow2,file.filename=a,size=1", "option 'size'"),
            ("driver=qcow2,file.filename=a,force_size_calc=chs", "option 'force_size_calc'"),
            ("driver=nope,file.filename=a", "Unknown driver 'nope'"),
            ("driver=qcow2,file.driver=vmdk,file.file.filename=a", "qcow2 over vmdk"),
            ("driver=qcow2,file.filename=a,backing.driver=raw", "backing: A block device"),
            ("driver=qcow2,file.filename=a,backing.driver=null-co", "other than a whole file"),
            (
                "driver=qcow2,file.filename=a,backing.file.filename=b,backing.backing.filename=c",
                "backing file of a backing",
            ),
        ] {
            assert!(list(text).unwrap_err().contains(reason), "{text}");
        }
    }

    #[test]
    fn backing_files_are_left_out_on_request() {
        for name in [
            r#"json:{"driver":"qcow2","backing":null,"file.filename":"a"}"#,
            "json:{'backing':'','file':{'filename':'a'}}",
        ] {
            assert!(named(name).unwrap().without_backing, "{name}");
        }
        assert!(named(r#"json:{"driver":"raw","driver":"qcow2","file.filename":"a"}"#).unwrap_err().contains("twice"));
        assert!(named(r#"json:{"file":{"filename":"a"},"file.filename":"b"}"#).unwrap_err().contains("twice"));
    }

    #[test]
    fn plain_images() {
        let plain = |list: &str| {
            let node = Node::from_list(OsStr::new(list)).and_then(Node::into_plain);
            node.map_err(|invalid| invalid.to_string())
        };
        let found =
            plain("driver=luks,file.filename=a,,b.img,key-secret=sec0,header.filename=h,force-share=on").unwrap();
        let expected = Plain {
            format: Some(Format::LUKS),
            options: Options::new(),
            path: "a,b.img".into(),
            header: Some("h".into()),
            secret: Some("sec0".into()),
            force_share: true,
            without_backing: false,
            backing: None,
        };
        assert_eq!(found, expected);
        assert_eq!(plain("driver=nbd,host=h,port=1").unwrap().path, PathBuf::from("nbd://h:1/"));
        for (list, reason) in [
            ("driver=raw,offset=512,file.filename=a", "a part of a file"),
            ("driver=null-co", "null-co"),
            ("driver=nbd,host=h,tls-creds=t", "nbds://"),
        ] {
            assert!(plain(list).unwrap_err().contains(reason), "{list}");
        }
    }
}
