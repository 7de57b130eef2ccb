//! Network Block Device: disks read and written over a socket.
//!
//! The protocol is that of `doc/proto.md` of NetworkBlockDevice/nbd, in its fixed newstyle; the comments name its sections. Names of
//! exports are those of `doc/uri.md`.
//!
//! [`connect`] opens an export of a server, such as `qemu-nbd` or `nbdkit`, as a file: any image can be read from it, and a disk or an image
//! be written to it. [`Server`] exports an opened image to other programs, which see the disk in it, and write it if they may.
//!
//! | | |
//! |---|---|
//! | handshake | fixed newstyle, newstyle for the client; `NBD_OPT_GO`, `NBD_OPT_EXPORT_NAME` |
//! | replies | structured, if the other side can |
//! | holes | `base:allocation`; they are not read |
//! | several connections | with `NBD_FLAG_CAN_MULTI_CONN` |
//! | TLS | with the feature `tls`, which `remote` includes, on x86-64 and aarch64; certificates are those of a directory, with the names that QEMU and libnbd have for them (`ca-cert.pem`, `client-cert.pem` and `client-key.pem`, `server-cert.pem` and `server-key.pem`), or a client has those of the system; [`Client::from_stream`] takes a stream of the caller |

mod address;
mod client;
mod protocol;
mod server;
mod socket;

pub use address::{PORT, is_uri, tcp_uri, tls_uri, unix_uri};
pub use client::{Client, Connector};
pub use server::Server;

use crate::error::Result;

/// Connects to the server that an NBD URI names, and opens the export.
///
/// ```text
/// nbd://HOST[:PORT]/EXPORT
/// nbd+unix:///EXPORT?socket=PATH
/// nbds://HOST[:PORT]/EXPORT?tls-certificates=DIRECTORY&tls-hostname=NAME
/// nbds+unix:///EXPORT?socket=PATH&tls-certificates=DIRECTORY&tls-hostname=NAME
/// nbd:HOST:PORT[:exportname=EXPORT]        as in qemu
/// nbd:unix:PATH[:exportname=EXPORT]
/// ```
///
/// # Errors
/// [`Error::Usage`](crate::Error::Usage) for what is not such a URI, [`Error::Unsupported`](crate::Error::Unsupported) for one with TLS
/// (`nbds:`) where there is none, and errors of the system and of the server, which does not answer for 30 seconds, or has no such export.
pub fn connect(uri: &str) -> Result<Client> {
    Connector::new().connect(uri)
}
