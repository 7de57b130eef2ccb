//! Names of exports: NBD URIs, and the older notation of qemu.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use super::protocol::MAX_STRING;
use crate::error::{Error, Result};

/// The TCP port that IANA has assigned to NBD, which a URI without one means.
pub const PORT: u16 = 10809;

/// Returns the URI of an export over TCP.
///
/// ```
/// use diskimage::nbd::tcp_uri;
///
/// assert_eq!(tcp_uri("::1", 10809, "my disk"), "nbd://[::1]:10809/my%20disk");
/// ```
pub fn tcp_uri(host: &str, port: u16, export: &str) -> String {
    Address { server: ServerAddress::Tcp { host: host.into(), port }, export: export.into(), tls: None }.to_string()
}

/// Returns the URI of an export over a Unix socket.
///
/// ```
/// use diskimage::nbd::unix_uri;
///
/// assert_eq!(unix_uri("/run/nbd.sock", "disk"), "nbd+unix:///disk?socket=/run/nbd.sock");
/// ```
pub fn unix_uri(socket: impl AsRef<Path>, export: &str) -> String {
    Address { server: ServerAddress::Unix(socket.as_ref().into()), export: export.into(), tls: None }.to_string()
}

/// Returns the URI of the same export over TLS. `certificates` is the directory with the certificates, instead of those of the system; `hostname`
/// is the name that the certificate of the server has to be for, if it is not that of the host.
///
/// # Errors
/// [`Error::Usage`] for what is not an NBD URI.
///
/// ```
/// use std::path::Path;
///
/// use diskimage::nbd::tls_uri;
///
/// let uri = tls_uri("nbd://backup/disk", Some(Path::new("/etc/pki/nbd")), None)?;
/// assert_eq!(uri, "nbds://backup:10809/disk?tls-certificates=/etc/pki/nbd");
/// # Ok::<(), diskimage::Error>(())
/// ```
pub fn tls_uri(uri: &str, certificates: Option<&Path>, hostname: Option<&str>) -> Result<String> {
    let tls = Tls { certificates: certificates.map(Path::to_owned), hostname: hostname.map(str::to_owned) };
    Ok(Address { tls: Some(tls), ..Address::parse(uri)? }.to_string())
}

/// Where an export is, from one of:
///
/// ```text
/// nbd://HOST[:PORT]/EXPORT                 doc/uri.md of NetworkBlockDevice/nbd
/// nbd+unix:///EXPORT?socket=PATH
/// nbds://HOST[:PORT]/EXPORT?tls-certificates=DIRECTORY&tls-hostname=NAME
/// nbds+unix:///EXPORT?socket=PATH&tls-hostname=NAME
/// nbd:HOST:PORT[:exportname=EXPORT]        qemu
/// nbd:unix:PATH[:exportname=EXPORT]
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub server: ServerAddress,
    /// The name of the export; empty for the default export.
    pub export: String,
    /// `None` for a connection without TLS.
    pub tls: Option<Tls>,
}

/// Whom a client trusts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The directory with certificates; `None` for those of the system.
    pub certificates: Option<PathBuf>,
    /// The name of the server in its certificate; `None` for that of the host.
    pub hostname: Option<String>,
}

impl Tls {
    /// The name that the certificate of the server has to be for.
    pub fn host(&self, server: &ServerAddress) -> String {
        match (&self.hostname, server) {
            (Some(name), _) => name.clone(),
            (None, ServerAddress::Tcp { host, .. }) => host.clone(),
            (None, ServerAddress::Unix(_)) => "localhost".into(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAddress {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// Whether `name` names an export of an NBD server, and not a file: it begins with the scheme of an NBD URI. A file of such a name
/// is `./nbd:x`.
///
/// ```
/// use diskimage::nbd::is_uri;
///
/// assert!(is_uri("nbd://localhost/disk") && is_uri("nbd:unix:/run/nbd.sock"));
/// assert!(!is_uri("./nbd:x") && !is_uri("nbd.raw"));
/// ```
pub fn is_uri(name: impl AsRef<Path>) -> bool {
    let name = name.as_ref().as_os_str().as_encoded_bytes();
    let scheme = name.split(|byte| *byte == b':').next().filter(|scheme| scheme.len() < name.len());
    scheme.is_some_and(|scheme| SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known.as_bytes())))
}

/// The last one is refused.
const SCHEMES: [&str; 5] = ["nbd", "nbd+unix", "nbds", "nbds+unix", "nbd+vsock"];

impl Address {
    /// # Errors
    /// [`Error::Usage`] for what is not an NBD URI, [`Error::Unsupported`] for other kinds of sockets.
    pub fn parse(text: &str) -> Result<Address> {
        let (scheme, rest) = text.split_once(':').ok_or_else(|| invalid("it has no scheme"))?;
        let scheme = scheme.to_ascii_lowercase();
        let address = match (scheme.as_str(), rest.strip_prefix("//")) {
            ("nbd+vsock", _) => return Err(Error::unsupported("NBD", "vsock sockets")),
            ("nbd", Some(rest)) => Address::tcp(Parts::split(rest, false)?)?,
            ("nbd+unix", Some(rest)) => Address::unix(Parts::split(rest, false)?)?,
            ("nbds", Some(rest)) => Address::tcp(Parts::split(rest, true)?)?,
            ("nbds+unix", Some(rest)) => Address::unix(Parts::split(rest, true)?)?,
            ("nbd", None) => Address::of_qemu(rest)?,
            _ => return Err(invalid("expected nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH")),
        };
        match address.export.len() {
            0..=MAX_STRING if !address.export.contains('\0') => Ok(address),
            _ => Err(invalid(format!("the export name has a NUL character, or more than {MAX_STRING} bytes"))),
        }
    }

    fn tcp(Parts { authority, export, socket, tls }: Parts<'_>) -> Result<Address> {
        if socket.is_some() {
            return Err(invalid("a socket needs the scheme nbd+unix"));
        }
        // RFC 3986, section 3.2.2: an IPv6 address is in brackets.
        let (host, port) = match authority.strip_prefix('[').map(|rest| rest.split_once(']')) {
            Some(Some((host, ""))) => (host, None),
            Some(Some((host, port))) => {
                (host, Some(port.strip_prefix(':').ok_or_else(|| invalid("expected [ADDRESS]:PORT"))?))
            }
            Some(None) => return Err(invalid("the bracket of an IPv6 address is not closed")),
            None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
        };
        if host.contains('@') {
            return Err(Error::unsupported("NBD", "user names"));
        }
        let port = port.filter(|port| !port.is_empty()).map_or(Ok(PORT), number)?;
        let host = if host.is_empty() { "localhost".into() } else { text(&decode(host)?)? };
        Ok(Address { server: ServerAddress::Tcp { host, port }, export, tls })
    }

    fn unix(Parts { authority, export, socket, tls }: Parts<'_>) -> Result<Address> {
        if !authority.is_empty() {
            return Err(invalid("a Unix socket has no host; expected nbd+unix:///EXPORT?socket=PATH"));
        }
        let socket = socket
            .filter(|path| !path.as_os_str().is_empty())
            .ok_or_else(|| invalid("the parameter socket is missing"))?;
        Ok(Address { server: ServerAddress::Unix(socket), export, tls })
    }

    fn of_qemu(rest: &str) -> Result<Address> {
        let (server, export) = rest.split_once(":exportname=").unwrap_or((rest, ""));
        let server = match server.strip_prefix("unix:") {
            Some("") => return Err(invalid("the path of the socket is missing")),
            Some(path) => ServerAddress::Unix(path.into()),
            None => {
                let (host, port) =
                    server.rsplit_once(':').ok_or_else(|| invalid("expected nbd:HOST:PORT or nbd:unix:PATH"))?;
                let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
                ServerAddress::Tcp {
                    host: if host.is_empty() { "localhost" } else { host }.into(),
                    port: number(port)?,
                }
            }
        };
        Ok(Address { server, export: export.into(), tls: None })
    }
}

/// The NBD URI.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = encode(self.export.as_bytes());
        let scheme = if self.tls.is_some() { "nbds" } else { "nbd" };
        let mut parameters = Vec::new();
        match &self.server {
            ServerAddress::Tcp { host, port } if host.contains(':') => {
                write!(f, "{scheme}://[{host}]:{port}/{export}")?
            }
            ServerAddress::Tcp { host, port } => write!(f, "{scheme}://{host}:{port}/{export}")?,
            ServerAddress::Unix(path) => {
                write!(f, "{scheme}+unix:///{export}")?;
                parameters.push(("socket", encode(path.as_os_str().as_encoded_bytes())));
            }
        }
        if let Some(Tls { certificates, hostname }) = &self.tls {
            let certificates = certificates.as_ref().map(|path| encode(path.as_os_str().as_encoded_bytes()));
            parameters.extend(certificates.map(|value| ("tls-certificates", value)));
            parameters.extend(hostname.as_ref().map(|name| ("tls-hostname", encode(name.as_bytes()))));
        }
        for (index, (name, value)) in parameters.iter().enumerate() {
            write!(f, "{}{name}={value}", if index == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

/// The parts of a URI after "//".
struct Parts<'a> {
    authority: &'a str,
    export: String,
    socket: Option<PathBuf>,
    tls: Option<Tls>,
}

impl Parts<'_> {
    /// With the parameters of TLS, if it is `secure`.
    fn split(rest: &str, secure: bool) -> Result<Parts<'_>> {
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let (mut socket, mut tls) = (None, secure.then(Tls::default));
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            match (parameter.split_once('='), &mut tls) {
                (Some(("socket", path)), _) => socket = Some(path_from(decode(path)?)?),
                (Some(("tls-certificates", path)), Some(tls)) => tls.certificates = Some(path_from(decode(path)?)?),
                (Some(("tls-hostname", name)), Some(tls)) => tls.hostname = Some(text(&decode(name)?)?),
                // doc/uri.md, "Other NBD URI query parameters": an unknown one is diagnosed.
                _ => {
                    let known = "socket, and of nbds: tls-certificates and tls-hostname";
                    return Err(invalid(format!("unknown parameter '{parameter}'; supported: {known}")));
                }
            }
        }
        Ok(Parts { authority, export: text(&decode(export)?)?, socket, tls })
    }
}

#[cfg(unix)]
fn path_from(bytes: Vec<u8>) -> Result<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    Ok(std::ffi::OsString::from_vec(bytes).into())
}

#[cfg(not(unix))]
fn path_from(bytes: Vec<u8>) -> Result<PathBuf> {
    text(&bytes).map(PathBuf::from)
}

fn text(bytes: &[u8]) -> Result<String> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| invalid("it is not UTF-8"))
}

fn number(port: &str) -> Result<u16> {
    port.parse().map_err(|_| invalid(format!("invalid port '{port}': expected a number from 0 to 65535")))
}

/// Decodes "%20" (RFC 3986, section 2.1).
fn decode(text: &str) -> Result<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
                match (digit(), digit()) {
                    (Some(high), Some(low)) => (high << 4 | low) as u8,
                    _ => return Err(invalid("% is not followed by two hexadecimal digits")),
                }
            }
            byte => byte,
        });
    }
    Ok(decoded)
}

/// Encodes what is not an unreserved character or a slash.
fn encode(bytes: &[u8]) -> Cow<'_, str> {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(byte);
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.iter().all(is_plain) => Cow::Borrowed(text),
        _ => bytes
            .iter()
            .map(|byte| if is_plain(byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") })
            .collect(),
    }
}

fn invalid(problem: impl fmt::Display) -> Error {
    Error::Usage(format!("invalid NBD URI: {problem}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(host: &str, port: u16, export: &str) -> Address {
        Address { server: ServerAddress::Tcp { host: host.into(), port }, export: export.into(), tls: None }
    }

    fn unix(path: &str, export: &str) -> Address {
        Address { server: ServerAddress::Unix(path.into()), export: export.into(), tls: None }
    }

    fn secure(address: Address, certificates: Option<&str>, hostname: Option<&str>) -> Address {
        let tls = Tls { certificates: certificates.map(PathBuf::from), hostname: hostname.map(str::to_owned) };
        Address { tls: Some(tls), ..address }
    }

    #[test]
    fn uris() {
        for (text, address) in [
            ("nbds://host/x", secure(tcp("host", PORT, "x"), None, None)),
            ("nbds://host:1?tls-certificates=/a%20b", secure(tcp("host", 1, ""), Some("/a b"), None)),
            ("nbds+unix:///x?tls-hostname=h&socket=s", secure(unix("s", "x"), None, Some("h"))),
            // The table of doc/uri.md, "NBD URI export name".
            ("nbd://example.com/disk", tcp("example.com", PORT, "disk")),
            ("nbd+unix:///disk?socket=sock", unix("sock", "disk")),
            ("nbd://example.com/", tcp("example.com", PORT, "")),
            ("nbd://example.com", tcp("example.com", PORT, "")),
            ("nbd://example.com//disk", tcp("example.com", PORT, "/disk")),
            ("nbd://example.com/hello%20world", tcp("example.com", PORT, "hello world")),
            ("NBD://host:1/x", tcp("host", 1, "x")),
            ("nbd://", tcp("localhost", PORT, "")),
            ("nbd://[::1]:99/x", tcp("::1", 99, "x")),
            ("nbd://[::1]", tcp("::1", PORT, "")),
            ("nbd+unix:///?socket=/run/a%26b%3f", unix("/run/a&b?", "")),
            ("nbd:host:10810", tcp("host", 10810, "")),
            ("nbd:host:10810:exportname=a:b", tcp("host", 10810, "a:b")),
            ("nbd:[::1]:10810", tcp("::1", 10810, "")),
            ("nbd:unix:/run/nbd.sock", unix("/run/nbd.sock", "")),
            ("nbd:unix:/run/a:b:exportname=x", unix("/run/a:b", "x")),
        ] {
            assert_eq!(Address::parse(text).unwrap(), address, "{text}");
            assert!(is_uri(text), "{text}");
        }
    }

    #[test]
    fn other_uris_are_refused_with_the_reason() {
        let long = format!("nbd://host/{}", "x".repeat(4097));
        for (text, reason) in [
            ("nbds://host/x?tls-psk-file=p", "unknown parameter 'tls-psk-file=p'"),
            ("nbd://host/x?tls-hostname=h", "unknown parameter"),
            ("nbds+unix:///x", "socket is missing"),
            ("nbd+vsock://1:2/x", "vsock"),
            ("nbd://host/x?tls-type=x509", "unknown parameter 'tls-type=x509'"),
            ("nbd://host/x?socket=s", "nbd+unix"),
            ("nbd+unix:///x", "socket is missing"),
            ("nbd+unix:///x?socket=", "socket is missing"),
            ("nbd+unix://host/x?socket=s", "no host"),
            ("nbd+unix:x", "expected nbd://"),
            ("nbd://host:x/", "invalid port 'x'"),
            ("nbd://host:65536/", "invalid port"),
            ("nbd://[::1", "bracket"),
            ("nbd://[::1]x", "expected [ADDRESS]:PORT"),
            ("nbd://me@host/", "user names"),
            ("nbd://host/%2", "hexadecimal"),
            ("nbd://host/%zz", "hexadecimal"),
            ("nbd://host/%ff", "UTF-8"),
            ("nbd://host/%00", "NUL"),
            (&long, "4096"),
            ("nbd:", "nbd:HOST:PORT"),
            ("nbd:x", "nbd:HOST:PORT"),
            ("nbd:unix:", "path of the socket"),
        ] {
            let error = Address::parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn files_are_no_uris() {
        for name in ["nbd", "./nbd:x", "/nbd://x", "nbdx://host", "disk.raw", ""] {
            assert!(!is_uri(name), "{name}");
        }
        assert!(is_uri("nbds://host"));
    }

    proptest! {
        #[test]
        fn addresses_are_read_as_written(host in "[a-z0-9:.]{1,20}", port: u16, export in "[^\0]{0,40}", path in "[^\0]{1,40}") {
            let (plain, local) = (tcp(&host, port, &export), unix(&path, &export));
            let (trusting, named) = (secure(plain.clone(), None, None), secure(local.clone(), Some(&path), Some(&host)));
            for address in [plain, local, trusting, named] {
                prop_assert_eq!(Address::parse(&address.to_string()).unwrap(), address);
            }
        }

        #[test]
        fn any_text_is_an_address_or_an_error(text in "(nbd|nbd\\+unix):(//)?[a-z\\[\\]:/?=&%@]{0,30}") {
            let _ = Address::parse(&text);
        }
    }
}
