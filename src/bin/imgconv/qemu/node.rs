//! Names of images: file names, `PROTOCOL:…`, `json:{…}` and lists of options.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::path::PathBuf;

use diskimage::{Format, Options, nbd, parse_size, remote};
use serde_json::Value;

use super::message::Failed;
use crate::secrets::SecretArgs;

/// What a name stands for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The format, unless it is to be detected.
    pub format: Option<Format>,
    pub storage: Storage,
    /// The range of the storage that is the image: offset, and length unless it is the rest.
    pub window: Option<(u64, Option<u64>)>,
    /// ID of the secret.
    pub secret: Option<String>,
    /// The file of a detached header.
    pub header: Option<PathBuf>,
    pub force_share: bool,
    /// ID of the certificates for a connection with TLS, and the name of the server in its certificate.
    pub tls: Option<(String, Option<String>)>,
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

/// The size of `null-co` by default, as in qemu-img.
const NULL_SIZE: u64 = 1 << 30;

/// Options that change neither what is read nor where it is.
const HARMLESS: [&str; 17] = [
    "aio",
    "auto-read-only",
    "cache",
    "detect-zeroes",
    "discard",
    "drop-cache",
    "l2-cache",
    "lazy-refcounts",
    "latency-ns",
    "locking",
    "node-name",
    "overlap-check",
    "pass-discard",
    "pr-manager",
    "read-only",
    "read-zeroes",
    "refcount-cache",
];

impl Node {
    /// The image with this name.
    pub fn named(name: &OsStr) -> Result<Node, Failed> {
        let Some(text) = name.to_str() else { return Ok(Node::file(name)) };
        if let Some(json) = text.strip_prefix("json:") {
            return Node::from_options(flatten(json)?);
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
            other => Err(Failed::new(format!("Could not open '{text}': Unknown protocol '{other}'"))),
        }
    }

    /// The image that a list of options describes.
    pub fn from_list(list: &OsStr) -> Result<Node, Failed> {
        let mut options = Options::new();
        options.add_list(&list.to_string_lossy());
        let pairs = options.names().map(|name| (name.to_owned(), options.value(name).unwrap_or_default().to_owned()));
        Node::from_options(pairs.collect())
    }

    /// The name for messages: that of the file, and a URL without secrets.
    pub fn shown(&self, name: &OsStr) -> String {
        match &self.storage {
            Storage::Remote(uri) if remote::is_url(uri) => remote::shown(uri),
            Storage::File(path) if !name.to_string_lossy().starts_with("json:") => path.to_string_lossy().into_owned(),
            _ => name.to_string_lossy().into_owned(),
        }
    }

    /// With the certificates in the URI of an NBD server.
    pub fn secured(mut self, secrets: &SecretArgs) -> Result<Node, Failed> {
        if let (Some((id, hostname)), Storage::Remote(uri)) = (&self.tls, &self.storage) {
            let certificates = secrets.certificates(id)?;
            self.storage = Storage::Remote(nbd::tls_uri(uri, Some(&certificates), hostname.as_deref())?);
        }
        Ok(self)
    }

    /// The path of a file with this name, for what creates files only.
    pub fn new_file(name: &OsStr) -> Result<PathBuf, Failed> {
        let node = Node::named(name)?;
        let shown = node.shown(name);
        match node.storage {
            Storage::File(path) if !shown.starts_with("json:") => Ok(path),
            _ => Err(Failed::new(format!("{shown}: imgconv creates files only"))),
        }
    }

    fn file(name: &OsStr) -> Node {
        Node { storage: Storage::File(name.into()), ..Node::default() }
    }

    fn from_options(mut options: Vec<(String, String)>) -> Result<Node, Failed> {
        let mut node = Node::default();
        let mut prefix = String::new();
        loop {
            let mut take = |key: &str| {
                let key = format!("{prefix}{key}");
                options.iter().position(|(other, _)| *other == key).map(|at| options.swap_remove(at).1)
            };
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
                    // The keys of the server, or those that earlier versions had in their place.
                    let mut either = |key: &str| take(&format!("server.{key}")).or_else(|| take(key));
                    let (path, host, port) = (either("path"), either("host"), either("port"));
                    take("server.type");
                    let hostname = take("tls-hostname");
                    node.tls = take("tls-creds").map(|id| (id, hostname));
                    let export = take("export").unwrap_or_default();
                    let port = port.map_or(Ok(nbd::PORT), |port| port.parse());
                    let port = port.map_err(|_| Failed::new("Parameter 'port' expects a port number"))?;
                    node.storage = Storage::Remote(match path {
                        Some(path) => nbd::unix_uri(path, &export),
                        None => nbd::tcp_uri(&host.unwrap_or("localhost".into()), port, &export),
                    });
                    node.format = node.format.or(if prefix.is_empty() { Some(Format::RAW) } else { None });
                    break;
                }
                Some("http" | "https") => {
                    let url = take("url").filter(|url| remote::is_url(url));
                    node.storage = Storage::Remote(url.ok_or_else(|| Failed::new("Parameter 'url' expects a URL"))?);
                    node.format = node.format.or(if prefix.is_empty() { Some(Format::RAW) } else { None });
                    break;
                }
                Some("raw") if node.format.is_some_and(|format| format == Format::RAW) => {
                    return Err(Failed::new("raw over raw is not supported by imgconv"));
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
                    let format = Format::by_name(name).map_err(|_| Failed::new(format!("Unknown driver '{name}'")))?;
                    if let Some(outer) = node.format {
                        let problem = format!("{} over {name} is not supported by imgconv", outer.name());
                        return Err(Failed::new(problem));
                    }
                    node.format = Some(format);
                }
                None => {}
            }
            if let Some(name) = take("filename") {
                let inner = Node::named(OsStr::new(&name))?;
                node.storage = inner.storage;
                node.format = node.format.or(inner.format);
                break;
            }
            if prefix.len() > 5 * 8 || !options.iter().any(|(key, _)| key.starts_with(&format!("{prefix}file."))) {
                return Err(Failed::new("A block device must be specified for \"file\""));
            }
            prefix.push_str("file.");
        }
        match options.iter().find(|(key, _)| !is_harmless(key)) {
            Some((key, _)) => Err(Failed::new(format!("option '{key}' of an image is not supported by imgconv"))),
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

fn is_harmless(key: &str) -> bool {
    let mut key = key;
    while let Some(inner) = key.strip_prefix("file.") {
        key = inner;
    }
    HARMLESS.iter().any(|harmless| key.starts_with(harmless))
}

fn number(text: &str) -> Result<u64, Failed> {
    parse_size(text).map_err(|_| Failed::new(format!("Parameter 'size' expects a size, not '{text}'")))
}

/// The options of a JSON object, with the names of nested ones joined by dots.
fn flatten(json: &str) -> Result<Vec<(String, String)>, Failed> {
    let value =
        serde_json::from_str(&double_quoted(json)).map_err(|_| Failed::new("Could not parse the JSON options"))?;
    let mut options = Vec::new();
    add(&mut options, "", &value)?;
    Ok(options)
}

/// The JSON with double quotes: qemu takes single ones, too.
fn double_quoted(json: &str) -> String {
    let mut quoted = String::with_capacity(json.len());
    let (mut quote, mut escaped) = (None, false);
    for c in json.chars() {
        match (quote, c) {
            (Some(_), _) if escaped => {
                escaped = false;
                if c == '\'' {
                    quoted.pop();
                }
                quoted.push(c);
            }
            (Some(_), '\\') => {
                escaped = true;
                quoted.push(c);
            }
            (None, '\'' | '"') => {
                quote = Some(c);
                quoted.push('"');
            }
            (Some(open), _) if open == c => {
                quote = None;
                quoted.push('"');
            }
            (Some('\''), '"') => quoted.push_str("\\\""),
            _ => quoted.push(c),
        }
    }
    quoted
}

fn add(options: &mut Vec<(String, String)>, name: &str, value: &Value) -> Result<(), Failed> {
    let text = match value {
        Value::Object(members) => {
            let dot = if name.is_empty() { "" } else { "." };
            return members.iter().try_for_each(|(key, value)| add(options, &format!("{name}{dot}{key}"), value));
        }
        Value::String(text) => text.clone(),
        Value::Bool(value) => (if *value { "on" } else { "off" }).to_owned(),
        Value::Number(number) => number.to_string(),
        Value::Null | Value::Array(_) => {
            return Err(Failed::new(format!("option '{name}' of an image is not supported by imgconv")));
        }
    };
    options.push((name.to_owned(), text));
    Ok(())
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
        assert_eq!(list("driver=null-co,size=4k").unwrap().storage, Storage::Null(4096));
        for (text, reason) in [
            ("driver=qcow2", "must be specified"),
            ("driver=nope,file.filename=a", "Unknown driver 'nope'"),
            ("driver=qcow2,file.driver=vmdk,file.file.filename=a", "qcow2 over vmdk"),
            ("driver=qcow2,file.filename=a,backing.file.filename=b", "backing.file.filename"),
        ] {
            assert!(list(text).unwrap_err().contains(reason), "{text}");
        }
    }
}
