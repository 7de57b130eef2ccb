//! Network Block Device: disks read and written over a socket.
//!
//! The protocol is that of `doc/proto.md` of NetworkBlockDevice/nbd, in its fixed newstyle; the comments name its sections. Names of
//! exports are those of `doc/uri.md`.
//!
//! [`connect`] opens an export of a server, such as `qemu-nbd` or `nbdkit`, as a file: any image can be read from it, and a disk or an image
//! be written to it. [`Server`] exports an opened image to other programs, which see the disk in it.
//!
//! | | |
//! |---|---|
//! | handshake | fixed newstyle, newstyle for the client; `NBD_OPT_GO`, `NBD_OPT_EXPORT_NAME` |
//! | replies | structured, if the other side can |
//! | holes | `base:allocation`; they are not read |
//! | several connections | with `NBD_FLAG_CAN_MULTI_CONN` |
//! | TLS | no; [`Client::from_stream`] takes a stream of the caller |

mod address;
mod client;
mod protocol;
mod server;
mod socket;

pub use address::{PORT, is_uri, tcp_uri, unix_uri};
pub use client::{Client, Connector};
pub use server::Server;

use crate::error::Result;

/// Connects to the server that an NBD URI names, and opens the export.
///
/// ```text
/// nbd://HOST[:PORT]/EXPORT
/// nbd+unix:///EXPORT?socket=PATH
/// nbd:HOST:PORT[:exportname=EXPORT]        as in qemu
/// nbd:unix:PATH[:exportname=EXPORT]
/// ```
///
/// # Errors
/// [`Error::Usage`](crate::Error::Usage) for what is not such a URI, [`Error::Unsupported`](crate::Error::Unsupported) for one with TLS
/// (`nbds:`), and errors of the system and of the server, which does not answer for 30 seconds, or has no such export.
pub fn connect(uri: &str) -> Result<Client> {
    Connector::new().connect(uri)
}
