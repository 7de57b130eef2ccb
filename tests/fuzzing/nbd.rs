//! Network Block Device: the bytes are those that a peer sends.

use std::io::{self, Cursor, Read, Write};
use std::sync::{Arc, OnceLock};

use diskimage::io::{MemFile, ReadAt, WriteAt};
use diskimage::nbd::{Client, Server};
use diskimage::{Converter, Error, Format, OpenOptions};

use super::{describe, limited};

/// Opens an export of a server that sends these bytes, reads, asks for holes, writes, and opens what is there as an image.
pub fn client(data: &[u8]) {
    let client = match Client::from_stream(Peer::new(data), "disk") {
        Ok(client) => Arc::new(client),
        Err(error) => return describe(&error),
    };
    let size = client.size().unwrap();
    assert!(size <= i64::MAX as u64);
    let mut buf = [0xee; 600];
    check(client.read_exact_at(&mut buf[..16], 0));
    for offset in [0, 4096, size / 2] {
        match client.next_data(offset) {
            Ok(Some(data)) => assert!(data.start >= offset && data.start < data.end, "{offset}: {data:?}"),
            Ok(None) => {}
            Err(error) => return check(Err(error)),
        }
    }
    check(client.read_exact_at(&mut buf, size.saturating_sub(600)));
    check(client.write_all_at(b"data", 5));
    check(client.zero_range(3..1000));
    check(client.trim(0..4096));
    check(client.sync());
    match limited().open_source(client) {
        Ok(image) => {
            let len = image.virtual_size().min(4096) as usize;
            check(image.read_exact_at(&mut vec![0; len], 0).map_err(io::Error::from));
        }
        Err(error) => describe(&error),
    }
}

/// Serves a small disk to a client that sends these bytes.
pub fn server(data: &[u8]) {
    /// Guest bytes: data and zeros.
    const SIZE: usize = 64 << 10;
    static SERVER: OnceLock<Server> = OnceLock::new();
    let server = SERVER.get_or_init(|| {
        let guest = MemFile::from([vec![7; 5000], vec![0; SIZE - 5000]].concat());
        let guest = OpenOptions::new().format(Format::RAW).open_source(Arc::new(guest)).unwrap();
        let file = Arc::new(MemFile::new());
        Converter::new(Format::QCOW2).convert_to(&guest, file.clone()).unwrap();
        Server::new(OpenOptions::new().open_source(file).unwrap()).unwrap().export_name("disk").unwrap()
    });
    let mut peer = Peer::new(data);
    check(server.serve_stream(&mut peer));
    assert!(peer.sent.starts_with(b"NBDMAGICIHAVEOPT"));
    // An answer has the disk at most; a request has 16 bytes at least.
    assert!(peer.sent.len() <= 200 + (data.len() / 16 + 1) * (SIZE + 100));
}

fn check(result: io::Result<()>) {
    if let Err(error) = result {
        describe(&Error::io("reading", None)(error));
    }
}

/// A stream with these bytes to read, that keeps what is written.
struct Peer {
    sends: Cursor<Vec<u8>>,
    sent: Vec<u8>,
}

impl Peer {
    fn new(data: &[u8]) -> Peer {
        Peer { sends: Cursor::new(data.to_vec()), sent: Vec::new() }
    }
}

impl Read for Peer {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.sends.read(buf)
    }
}

impl Write for Peer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.sent.extend(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
